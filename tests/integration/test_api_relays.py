"""Relays over HTTP: whose they are, what is refused, that passwords are write-only, health and the test button."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from core.settings import load
from schemas.states import KeyScope
from store.relay_health import RelayHealth, RelayHealthBoard
from store.relays import read_relay, rotate_passwords, secret_place
from tests.integration.api_client import OWNER, STRANGER, Api, running_api
from tests.integration.ledger import new_send

RELAYS = "/api/queue/relays"
KEYS = "new:" + base64.b64encode(b"n" * 32).decode()
OLD = "old:" + base64.b64encode(b"o" * 32).decode()
RELAY: dict[str, Any] = {"name": "mx1", "host": "smtp.example.com", "port": 587}
LOGIN = {"username": "me", "password": "hush-hush"}


@pytest.fixture
async def api(environment: dict[str, str]) -> AsyncIterator[Api]:
    async with running_api(load({**environment, "SECRET_KEYS": KEYS})) as api:
        yield api


@asynccontextmanager
async def _with(environment: dict[str, str], **settings: str) -> AsyncIterator[Api]:
    async with running_api(load({**environment, **settings})) as api:
        yield api


def _error(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    return answer.status_code, error.get("field", error["code"])


async def test_a_relay_is_made_read_changed_and_removed(api: Api) -> None:
    owner = await api.client_of(OWNER)
    made = await owner.post(RELAYS, json={**RELAY, **LOGIN, "weight": 3})
    assert made.status_code == 201
    assert (made.json()["tls"], made.json()["weight"], made.json()["hasPassword"]) == ("starttls", 3, True)
    assert (await owner.get(f"{RELAYS}/mx1")).json() == made.json()
    assert (await owner.get(RELAYS)).json() == {"relays": [made.json()]}
    changed = await owner.patch(f"{RELAYS}/mx1", json={"weight": 0, "enabled": False})
    assert (changed.json()["weight"], changed.json()["enabled"], changed.json()["hasPassword"]) == (0, False, True)
    assert (await owner.delete(f"{RELAYS}/mx1")).status_code == 204
    assert (await owner.get(f"{RELAYS}/mx1")).status_code == 404
    assert (await owner.get(RELAYS)).json() == {"relays": []}


async def test_removed_twice_with_a_key_it_is_removed_once(api: Api) -> None:
    owner = await api.client_of(OWNER)
    assert (await owner.post(RELAYS, json={**RELAY, **LOGIN})).status_code == 201
    key = {"Idempotency-Key": "remove"}
    assert [(await owner.delete(f"{RELAYS}/mx1", headers=key)).status_code for _ in range(2)] == [204, 204]
    assert (await owner.delete(f"{RELAYS}/mx1")).status_code == 404


async def test_a_password_is_in_no_answer_and_encrypted_in_the_ledger(api: Api) -> None:
    owner = await api.client_of(OWNER)
    answers = [
        await owner.post(RELAYS, json={**RELAY, **LOGIN}, headers={"Idempotency-Key": "k"}),
        await owner.get(RELAYS),
        await owner.patch(f"{RELAYS}/mx1", json={"weight": 2}),
        await owner.post(RELAYS, json={**RELAY, **LOGIN, "password": ["hush-hush"]}),
        await owner.post(RELAYS, json={**RELAY, **LOGIN, "name": "mx2", "tls": "none"}),
    ]
    assert [answer.status_code for answer in answers] == [201, 200, 200, 422, 422]
    assert not any("hush" in answer.text for answer in answers)
    async with api.resources.database.connection() as connection:
        row = await read_relay(connection, OWNER, "mx1")
        kept = await connection.fetchval("SELECT string_agg(body, ' ') FROM answers")
    assert row is not None
    assert row.fields.password is not None
    assert "hush" not in row.fields.password
    assert "hush" not in repr(row)
    assert "hush" not in kept
    assert api.resources.settings.relays.ring.decrypt(row.fields.password, secret_place(row.id)) == "hush-hush"


async def test_without_a_key_only_relays_with_a_password_are_refused(environment: dict[str, str]) -> None:
    async with _with(environment) as api:
        owner = await api.client_of(OWNER)
        refused = await owner.post(RELAYS, json={**RELAY, **LOGIN})
        assert _error(refused) == (422, "password")
        assert "SECRET_KEYS" in refused.json()["error"]["message"]
        assert (await owner.post(RELAYS, json=RELAY)).status_code == 201


async def test_what_is_another_users_does_not_exist(api: Api) -> None:
    owner, stranger = await api.client_of(OWNER), await api.client_of(STRANGER)
    assert (await owner.post(RELAYS, json=RELAY)).status_code == 201
    assert (await stranger.get(RELAYS)).json() == {"relays": []}
    for answer in (
        await stranger.get(f"{RELAYS}/mx1"),
        await stranger.patch(f"{RELAYS}/mx1", json={"weight": 9}),
        await stranger.delete(f"{RELAYS}/mx1"),
        await stranger.post(f"{RELAYS}/mx1/test"),
    ):
        assert answer.status_code == 404
    assert (await stranger.post(RELAYS, json=RELAY)).status_code == 201
    assert (await owner.post(RELAYS, json=RELAY)).status_code == 409


async def test_shared_relays_are_for_admin_keys(api: Api) -> None:
    owner, service = await api.client_of(OWNER), await api.client_of(None, KeyScope.SERVICE)
    admin = await api.client_of(None, KeyScope.ADMIN)
    for client in (owner, service):
        assert (await client.post(f"{RELAYS}?shared=true", json=RELAY)).status_code == 403
        assert (await client.get(f"{RELAYS}?shared=true")).status_code == 403
    # The one of the settings, while there is no other.
    listed = (await admin.get(f"{RELAYS}?shared=true")).json()["relays"]
    assert [(one["name"], one["ofSettings"]) for one in listed] == [("default", True)]
    assert (await admin.get(f"{RELAYS}/default?shared=true")).json()["ofSettings"]
    local = {**RELAY, "host": "127.0.0.1"}
    assert (await admin.post(f"{RELAYS}?shared=true", json=local)).status_code == 201
    listed = (await admin.get(f"{RELAYS}?shared=true")).json()["relays"]
    assert [(one["name"], one["shared"]) for one in listed] == [("mx1", True)]
    assert (await admin.get(f"{RELAYS}/default?shared=true")).status_code == 404
    assert (await owner.get(RELAYS)).json() == {"relays": []}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "Not/One"}, "name"),
        ({"host": "exa mple.com"}, "host"),
        ({"host": "127.0.0.1"}, "host"),
        ({"host": "localhost"}, "host"),
        ({"host": "169.254.169.254"}, "host"),
        ({"port": 0}, "port"),
        ({"tls": "maybe"}, "tls"),
        ({"ca": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"}, "ca"),
        ({"ca": "no certificate"}, "ca"),
        ({"username": "me"}, "password"),
        ({"password": "hush"}, "username"),
        ({**LOGIN, "tls": "none"}, "tls"),
        ({**LOGIN, "password": "hu\0sh"}, "password"),
        ({"weight": -1}, "weight"),
        ({"connections": 51}, "connections"),
        ({"passwort": "x"}, "passwort"),
    ],
)
async def test_what_cannot_be_a_relay_is_refused_by_field(api: Api, change: dict[str, Any], field: str) -> None:
    owner = await api.client_of(OWNER)
    assert _error(await owner.post(RELAYS, json={**RELAY, **change})) == (422, field)


async def test_private_addresses_only_where_the_settings_allow_them(environment: dict[str, str]) -> None:
    async with _with(environment, RELAY_PRIVATE_ADDRESSES="true") as api:
        owner = await api.client_of(OWNER)
        assert (await owner.post(RELAYS, json={**RELAY, "host": "127.0.0.1"})).status_code == 201


async def test_a_stored_password_is_not_sent_elsewhere_by_a_change(api: Api) -> None:
    owner = await api.client_of(OWNER)
    await owner.post(RELAYS, json={**RELAY, **LOGIN})
    for change in ({"host": "evil.example.com"}, {"port": 25}, {"verify": False}, {"username": "other"}):
        assert _error(await owner.patch(f"{RELAYS}/mx1", json=change)) == (422, "password")
    again = {"host": "other.example.com", "password": "hush"}
    assert (await owner.patch(f"{RELAYS}/mx1", json=again)).status_code == 200
    assert _error(await owner.patch(f"{RELAYS}/mx1", json={"weight": None})) == (422, "weight")
    bare = (await owner.patch(f"{RELAYS}/mx1", json={"username": None})).json()
    assert (bare["username"], bare["hasPassword"]) == (None, False)


async def test_a_relay_that_an_active_send_names_stays(api: Api) -> None:
    owner, admin = await api.client_of(OWNER), await api.client_of(None, KeyScope.ADMIN)
    await owner.post(RELAYS, json=RELAY)
    await admin.post(f"{RELAYS}?shared=true", json=RELAY)
    async with api.resources.database.transaction() as connection:
        send = await new_send(connection, 1, user_id=OWNER)
        await connection.execute("UPDATE campaign_sends SET relay = 'mx1' WHERE id = $1", send)
    # The owner's own is meant, so the shared one may go.
    assert (await admin.delete(f"{RELAYS}/mx1?shared=true")).status_code == 204
    assert (await owner.delete(f"{RELAYS}/mx1")).status_code == 409
    async with api.resources.database.transaction() as connection:
        await connection.execute("UPDATE campaign_sends SET state = 'done' WHERE id = $1", send)
    assert (await owner.delete(f"{RELAYS}/mx1")).status_code == 204


async def test_health_is_what_workers_told_lately(api: Api) -> None:
    owner = await api.client_of(OWNER)
    await owner.post(RELAYS, json=RELAY)
    async with api.resources.database.connection() as connection:
        row = await read_relay(connection, OWNER, "mx1")
    assert row is not None
    board = RelayHealthBoard(api.resources.redis, api.resources.settings.redis.redis_prefix)
    await board.tell("w1", {str(row.id): RelayHealth("w1", "open", 1e9, "refused", 0, 1e9)})
    await board.tell("w2", {str(row.id): RelayHealth("w2", "closed", 1e9, "", 2, 1e9)})
    health = (await owner.get(f"{RELAYS}/mx1")).json()["health"]
    assert [(one["worker"], one["state"], one["lastError"], one["connectionsInUse"]) for one in health] == [
        ("w1", "open", "refused", 0),
        ("w2", "closed", None, 2),
    ]
    await board.tell("w1", {})
    assert [one["worker"] for one in (await owner.get(RELAYS)).json()["relays"][0]["health"]] == ["w2"]


async def test_relays_can_be_looked_at_while_redis_is_away(environment: dict[str, str]) -> None:
    async with _with(environment, REDIS_PORT="1") as api:
        owner = await api.client_of(OWNER)
        await owner.post(RELAYS, json=RELAY)
        assert (await owner.get(f"{RELAYS}/mx1")).json()["health"] is None
        assert (await owner.post(f"{RELAYS}/mx1/test")).status_code == 503


async def test_a_test_that_no_worker_makes_says_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.routes.relays.ANSWER_WITHIN", 2)
    owner = await api.client_of(OWNER)
    await owner.post(RELAYS, json=RELAY)
    answer = await owner.post(f"{RELAYS}/mx1/test")
    assert answer.status_code == 503
    assert "emails worker" in answer.json()["error"]["message"]
    assert await api.resources.redis.llen(f"{api.resources.settings.redis.redis_prefix}relay-tests") == 0


async def test_a_test_mail_is_not_sent_to_who_is_suppressed(api: Api) -> None:
    owner = await api.client_of(OWNER)
    await owner.post(RELAYS, json=RELAY)
    await owner.post("/api/queue/suppressions", json={"emails": ["no@example.com"], "reason": "manual"})
    test = f"{RELAYS}/mx1/test"
    assert (await owner.post(test, json={"recipient": "no@example.com", "sender": "me@example.com"})).status_code == 409
    assert _error(await owner.post(test, json={"recipient": "yes@example.com"})) == (422, "sender")
    assert _error(await owner.post(test, json={"recipient": "nobody"})) == (422, "recipient")


async def test_rotation_encrypts_with_the_newest_key_and_changes_no_password(environment: dict[str, str]) -> None:
    async with _with(environment, SECRET_KEYS=OLD) as api:
        owner = await api.client_of(OWNER)
        await owner.post(RELAYS, json={**RELAY, **LOGIN})
    ring = load({"SECRET_KEYS": f"{KEYS},{OLD}"}).relays.ring
    async with _with(environment, SECRET_KEYS=KEYS) as api, api.resources.database.connection() as connection:
        before = await read_relay(connection, OWNER, "mx1")
        assert await rotate_passwords(connection, load({"SECRET_KEYS": KEYS}).relays.ring) == (0, 1)
        assert await rotate_passwords(connection, ring) == (1, 0)
        assert await rotate_passwords(connection, ring) == (0, 0)
        row = await read_relay(connection, OWNER, "mx1")
        assert before is not None
        assert row is not None
        assert row.updated_at == before.updated_at
        assert row.fields.password is not None
        only_new = api.resources.settings.relays.ring
        assert only_new.decrypt(row.fields.password, secret_place(row.id)) == "hush-hush"


async def test_two_changes_at_once_both_count(api: Api) -> None:
    owner = await api.client_of(OWNER)
    await owner.post(RELAYS, json=RELAY)
    await asyncio.gather(
        owner.patch(f"{RELAYS}/mx1", json={"weight": 7}), owner.patch(f"{RELAYS}/mx1", json={"maxAge": 60})
    )
    relay = (await owner.get(f"{RELAYS}/mx1")).json()
    assert (relay["weight"], relay["maxAge"]) == (7, 60)
