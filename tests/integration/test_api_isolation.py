"""Nobody sees or changes what is another user's, on any route there is. A new route has to say here how it is called."""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from core.dkim import new_pair
from core.leads import RejectedRow
from core.secrets import KeyRing
from core.settings import Settings
from schemas.ids import ImportId
from schemas.states import DkimAlgorithm, DkimCanonicalization, KeyScope
from store.dkim import NewKey, create_dkim_key
from store.leads import add_rejects
from store.queries import SQL
from tests.integration.api_client import (
    CSV,
    EMAILS,
    IMPORT,
    LEADS,
    OWNER,
    PROGRESS,
    SEND,
    STRANGER,
    SUPPRESSIONS,
    Api,
    leads_csv,
    running_api,
)
from tests.orders import order

FEEDBACK = "/api/webhooks/feedback/{source}"
"""Who posts there signs."""
OPEN = {"/healthz", "/readyz", "/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc", FEEDBACK}
OPEN |= {
    "/u/{token}",
    "/u/{token}/undo",
}  # for recipients, who have no key: the signed link is theirs (test_unsubscribe.py)
RATE_LIMIT, RELAYS = "/api/queue/rate-limit", "/api/queue/relays"
SOURCES = "/api/queue/feedback/sources"
DKIM_KEYS = "/api/queue/dkim-keys"
ATTACHMENTS = "/api/queue/attachments"
DEAD_LETTERS = "/api/queue/dead-letters"
KEYS = "/api/queue/keys"
WEBHOOKS = "/api/queue/webhooks"
SHARED_LIMITS = f"{RATE_LIMIT}/shared"
SINGLE = {"template": {"subject": "Hi", "text": "Hi"}, "sender": {"email": "news@shop.com"}}
CAMPAIGNS = "/api/queue/campaigns"
PREVIEWED = SINGLE
MAKING = ("POST", "PUT")
"""A stranger who makes something gets an answer about it."""
SECRETS = ("secret@mail.com", "Secret Name", "secret row", "secret-tag")


@dataclass(frozen=True)
class Ids:
    """What a call can name."""

    import_id: str
    send_id: str
    campaign_id: str
    email: str


NOBODYS = Ids("01a21039-4038-738c-bcdf-ed3c8547979c", "01a21039-4038-738c-bcdf-ed3c8547979d", "nothing", "no@mail.com")


def _campaign(ids: Ids) -> dict[str, Any]:
    return {"params": {"campaignId": ids.campaign_id}}


def _send(ids: Ids) -> dict[str, Any]:
    return {"params": {"sendId": ids.send_id}}


def _import(ids: Ids) -> dict[str, Any]:
    return {"params": {"importId": ids.import_id}}


def _operation(ids: Ids) -> dict[str, Any]:
    return {"params": {"id": ids.import_id}}


def _lead(ids: Ids, **call: Any) -> dict[str, Any]:
    return {"url": f"{LEADS}/{ids.email}", **call}


def _selections(ids: Ids) -> list[dict[str, Any]]:
    """Of leads, in a query."""
    every: list[dict[str, Any]] = [{}, {"emailPrefix": ids.email[:3]}, {"email": ids.email}, {"name": "secret"}]
    return [
        {"params": one} for one in (*every, {"tags": "secret-tag"}, {"attributes": "city"}, {"importId": ids.import_id})
    ]


def _relay(ids: Ids, more: str = "", **call: Any) -> dict[str, Any]:
    return {"url": f"{RELAYS}/{ids.campaign_id}{more}", **call}


def _webhook(ids: Ids, more: str = "", **call: Any) -> dict[str, Any]:
    return {"url": f"{WEBHOOKS}/{ids.campaign_id}{more}", **call}


def _dkim_key(ids: Ids, more: str = "", **call: Any) -> dict[str, Any]:
    return {"url": f"{DKIM_KEYS}/{ids.send_id}{more}", **call}


def _attachment(ids: Ids) -> dict[str, Any]:
    return {"url": f"{ATTACHMENTS}/{ids.send_id}"}


def _suppressed(ids: Ids, **call: Any) -> dict[str, Any]:
    return {"params": {"email": ids.email}, **call}


def calls(ids: Ids) -> Mapping[tuple[str, str], list[dict[str, Any]]]:
    """How each route is called, with ids in all places where one can be given. Those that make something come last."""
    return {
        ("GET", IMPORT): [_import(ids), {}, {"params": {"after": ids.import_id}}],
        ("DELETE", IMPORT): [_import(ids)],
        ("GET", f"{IMPORT}/rejected.csv"): [_import(ids)],
        ("GET", SEND): [_campaign(ids), _send(ids)],
        ("GET", f"{SEND}s"): [{}, _campaign(ids), {"params": {"after": ids.send_id}}],
        ("GET", f"{SEND}/recipients"): [_campaign(ids), _send(ids)],
        ("GET", f"{SEND}/recipients.csv"): [_campaign(ids), _send(ids)],
        ("POST", f"{SEND}/retry"): [_campaign(ids), _send(ids)],
        ("POST", f"{SEND}/pause"): [_campaign(ids)],
        ("POST", f"{SEND}/resume"): [_campaign(ids)],
        ("DELETE", SEND): [_campaign(ids)],
        ("GET", PROGRESS): [_operation(ids), {"params": {"id": ids.send_id}}, {}, {"params": {"after": ids.send_id}}],
        ("GET", f"{PROGRESS}/stream"): [_operation(ids), {"params": {"id": [ids.import_id, ids.send_id]}}],
        ("DELETE", PROGRESS): [_operation(ids), {"params": {"id": ids.send_id}}],
        ("GET", SUPPRESSIONS): [
            {},
            _suppressed(ids),
            {"params": {"after": ids.email}},
            {"params": {"reason": "manual"}},
        ],
        ("GET", DEAD_LETTERS): [
            {},
            {"params": {"topic": "emails.batches", "state": "open"}},
            {"params": {"after": ids.send_id}},
        ],
        ("GET", f"{DEAD_LETTERS}/{{id}}"): [{"url": f"{DEAD_LETTERS}/{ids.send_id}"}],
        ("POST", f"{DEAD_LETTERS}/replay"): [{"json": {"ids": [ids.send_id]}}],
        ("DELETE", SUPPRESSIONS): [_suppressed(ids)],
        ("GET", LEADS): [*_selections(ids), {"params": {"after": ids.email}}],
        ("GET", f"{LEADS}/export"): [*_selections(ids), {"params": {"format": "ndjson"}}],
        ("GET", f"{LEADS}/{{email:path}}"): [_lead(ids)],
        ("PATCH", f"{LEADS}/{{email:path}}"): [_lead(ids, json={"name": "Other"})],
        ("POST", f"{LEADS}/tags"): [
            {"json": {"emails": [ids.email], "add": ["x"]}},
            {"json": {"filter": {}, "remove": ["secret-tag"]}},
            {"json": {"filter": {"importId": ids.import_id}, "add": ["x"]}},
        ],
        ("POST", f"{LEADS}/erase"): [{"json": {"email": ids.email}}, {"json": {"email": "secret@mail.com"}}],
        ("PUT", f"{LEADS}/{{email:path}}"): [_lead(ids, json={"name": "Other"})],
        ("GET", EMAILS): [
            {"params": {"email": "secret@mail.com"}},
            {"params": {"email": "secret@mail.com", "sendId": ids.send_id}},
            {"params": {"email": "secret@mail.com", "campaignId": ids.campaign_id, "after": f"{ids.send_id}/7"}},
            {"params": {"messageId": f"{UUID(ids.send_id).hex}.0@shop.com"}},
        ],
        ("GET", f"{EMAILS}/{{id}}"): [{"url": f"{EMAILS}/{ids.send_id}"}],
        ("GET", f"{EMAILS}/{{sendId}}/{{position}}"): [{"url": f"{EMAILS}/{ids.send_id}/0"}],
        ("GET", SOURCES): [{}],
        ("GET", f"{SOURCES}/{{name}}"): [{"url": f"{SOURCES}/{ids.campaign_id}"}],
        ("POST", f"{SOURCES}/{{name}}/rotate"): [{"url": f"{SOURCES}/{ids.campaign_id}/rotate", "json": {}}],
        ("DELETE", f"{SOURCES}/{{name}}"): [{"url": f"{SOURCES}/{ids.campaign_id}"}],
        ("GET", RELAYS): [{}],
        ("GET", f"{RELAYS}/{{name}}"): [_relay(ids)],
        ("PATCH", f"{RELAYS}/{{name}}"): [_relay(ids, json={"weight": 2})],
        ("DELETE", f"{RELAYS}/{{name}}"): [_relay(ids)],
        ("GET", WEBHOOKS): [{}],
        ("GET", f"{WEBHOOKS}/{{name}}"): [_webhook(ids)],
        ("PATCH", f"{WEBHOOKS}/{{name}}"): [_webhook(ids, json={"enabled": False})],
        ("GET", f"{WEBHOOKS}/{{name}}/deliveries"): [_webhook(ids, "/deliveries")],
        ("POST", f"{WEBHOOKS}/{{name}}/rotate"): [_webhook(ids, "/rotate", json={})],
        ("POST", f"{WEBHOOKS}/{{name}}/test"): [_webhook(ids, "/test")],
        ("DELETE", f"{WEBHOOKS}/{{name}}"): [_webhook(ids)],
        ("GET", ATTACHMENTS): [{}, {"params": {"after": ids.send_id}}],
        ("GET", f"{ATTACHMENTS}/{{attachment_id}}"): [_attachment(ids)],
        ("DELETE", f"{ATTACHMENTS}/{{attachment_id}}"): [_attachment(ids)],
        ("POST", ATTACHMENTS): [{"params": {"filename": "a.txt"}, "content": b"a"}],
        ("GET", DKIM_KEYS): [{}, {"params": {"domain": "shop.com"}}],
        ("GET", f"{DKIM_KEYS}/{{id}}"): [_dkim_key(ids)],
        ("POST", f"{DKIM_KEYS}/{{id}}/activate"): [_dkim_key(ids, "/activate")],
        ("POST", f"{DKIM_KEYS}/{{id}}/retire"): [_dkim_key(ids, "/retire")],
        ("POST", f"{DKIM_KEYS}/{{id}}/check"): [_dkim_key(ids, "/check")],
        ("DELETE", f"{DKIM_KEYS}/{{id}}"): [_dkim_key(ids)],
        ("GET", RATE_LIMIT): [{}, {"params": {"name": "api"}}],
        ("POST", f"{RELAYS}/{{name}}/test"): [_relay(ids, "/test", json={})],
        ("POST", RELAYS): [{"json": {"name": ids.campaign_id, "host": "relay.shop.com", "port": 587}}],
        ("POST", SOURCES): [{"json": {"name": ids.campaign_id}}],
        ("POST", WEBHOOKS): [{"json": {"name": ids.campaign_id, "url": "https://hook.shop.com/events"}}],
        ("POST", DKIM_KEYS): [{"json": {"domain": "shop.com", "algorithm": "ed25519"}}],
        ("POST", RATE_LIMIT): [{"json": {"name": "api"}}],
        ("POST", EMAILS): [{"json": {"emails": [SINGLE | {"email": ids.email}]}}],
        ("POST", f"{CAMPAIGNS}/preview"): [{"json": PREVIEWED | {"leads": [ids.email]}}],
        ("POST", f"{CAMPAIGNS}/test"): [{"json": PREVIEWED | {"to": ["x@mail.com"]}}],
        ("POST", SUPPRESSIONS): [{"json": {"emails": [ids.email], "reason": "manual"}}],
        ("POST", f"{SUPPRESSIONS}/import"): [{"content": f"email\n{ids.email}\n", "headers": CSV}],
        ("POST", IMPORT): [{"content": leads_csv(1), "headers": CSV | {"Idempotency-Key": "owners"}}],
        ("POST", SEND): [{"json": order(campaignId=ids.campaign_id), "headers": {"Idempotency-Key": "owners"}}],
    }


NOT_FOR_USERS: Mapping[tuple[str, str], dict[str, Any]] = {
    ("PUT", RATE_LIMIT): {"json": {"name": "api", "rate": 1}},
    ("DELETE", RATE_LIMIT): {},
    ("GET", SHARED_LIMITS): {},
    ("GET", KEYS): {},
    ("POST", KEYS): {"json": {"name": "mine", "userId": "owner"}},
    ("DELETE", f"{KEYS}/{{id}}"): {"url": f"{KEYS}/{NOBODYS.send_id}"},
    ("GET", "/api/queue/workers"): {},
    ("GET", "/api/queue/lag"): {},
    ("PUT", SHARED_LIMITS): {"json": {"kind": "relay", "target": "*", "rate": 1}},
    ("DELETE", SHARED_LIMITS): {"params": {"kind": "relay", "target": "*"}},
    ("DELETE", f"{RATE_LIMIT}/destinations"): {"params": {"relay": "default", "destination": "gmail.com"}},
    ("POST", "/api/queue/unsubscribes"): {"json": {"token": "x"}},  # of a mailbox that is all users'
}
"""Routes of other scopes, and a good call of each."""


async def ask(client: httpx.AsyncClient, route: tuple[str, str], call: Mapping[str, Any]) -> httpx.Response:
    """`url` in a call is the route's path with ids in it."""
    return await client.request(**{"method": route[0], "url": route[1], **call})


def routes(api: Api) -> Iterator[tuple[str, str]]:
    for route in iter_route_contexts(api.app.routes):
        for method in sorted((route.methods or set()) - {"HEAD"}):
            assert route.path is not None
            yield method, route.path


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


@pytest.fixture
async def owned(api: Api) -> Ids:
    """An import with a rejected row, a lead, a running send, and their progress."""
    owner = await api.client_of(OWNER)
    key = {"Idempotency-Key": "owners"}
    tags = {"tags": ["secret-tag"]}
    imported = await owner.post(IMPORT, content=leads_csv(5), headers=CSV | key, params=tags)
    people = [{"email": "secret@mail.com", "name": "Secret Name"}]
    sent = await owner.post(SEND, json=order(people, campaignId="owners"), headers=key)
    lead = {"name": "Secret Name", "attributes": {"city": "X"}, "tags": ["secret-tag"]}
    assert (await owner.put(f"{LEADS}/person@mail.com", json=lead)).status_code == 201
    ids = Ids(imported.json()["importId"], sent.json()["sendId"], "owners", "person@mail.com")
    rejects = [RejectedRow(1, 2, "email", "invalid", "no @", "secret row")]
    async with api.resources.database.connection() as connection:
        await add_rejects(connection, ImportId(UUID(ids.import_id)), rejects)
        # With the send's id, so that a call which names the one names the other.
        pair = new_pair(DkimAlgorithm.ED25519)
        dkim_key = NewKey(UUID(ids.send_id), "secret.com", "s1", DkimCanonicalization.RELAXED, pair)
        assert await create_dkim_key(connection, OWNER, dkim_key, KeyRing({"k": b"k" * 32}))
        # The same for an attachment.
        row = (UUID(ids.send_id), OWNER, b"s" * 32, "secret row", "text/plain", b"secret row")
        await connection.execute(SQL["add_attachment"], *row)
    return ids


async def _ledger(api: Api) -> list[Any]:
    """Everything that is the owner's."""
    tables = ("lead_imports", "campaign_sends", "email_sends", "campaign_send_batches", "progress_tracking")
    tables += (
        "leads",
        "suppressions",
        "erasures",
        "relays",
        "user_limits",
        "mail_keys",
        "feedback_sources",
        "dkim_keys",
    )
    tables += ("dead_letters", "webhooks")
    async with api.resources.database.connection() as connection:
        return [await connection.fetch(f"SELECT * FROM {table} WHERE user_id = $1", OWNER) for table in tables]


def _shows_nothing(answer: httpx.Response, ids: Ids) -> bool:
    return not any(mark in answer.text for mark in (*SECRETS, ids.import_id, ids.send_id))


async def test_every_route_is_called_here(api: Api) -> None:
    known = {*calls(NOBODYS), *NOT_FOR_USERS}
    there = {(method, path) for method, path in routes(api) if path not in OPEN}
    assert there == known


async def test_without_a_valid_key_nothing_answers(api: Api, owned: Ids) -> None:
    before = await _ledger(api)
    nobody, wrong, basic = await api.client(None), await api.client("mg_" + "x" * 43), await api.client(None)
    basic.headers["Authorization"] = "Basic bWdfOng="
    for route in routes(api):
        if route[1] in OPEN:
            continue
        for call in calls(owned).get(route) or [NOT_FOR_USERS[route]]:
            for client in (nobody, wrong, basic):
                answer = await ask(client, route, call)
                assert answer.status_code == 401, route
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert _shows_nothing(answer, owned)
    assert await _ledger(api) == before


async def test_for_a_stranger_what_is_anothers_is_what_does_not_exist(api: Api, owned: Ids) -> None:
    before = await _ledger(api)
    stranger = await api.client_of(STRANGER)
    for route, its_calls in calls(owned).items():
        for call, other_call in zip(its_calls, calls(NOBODYS)[route], strict=True):
            answer = await ask(stranger, route, call)
            assert answer.status_code < 500, route
            assert _shows_nothing(answer, owned), route
            if route[0] not in MAKING or answer.status_code >= 400:
                nothing = await ask(stranger, route, other_call)
                assert (answer.status_code, answer.text) == (nothing.status_code, nothing.text), route
    assert await _ledger(api) == before


async def test_a_stranger_cannot_name_the_owner(api: Api, owned: Ids) -> None:
    before = await _ledger(api)
    stranger = await api.client_of(STRANGER)
    for route, its_calls in calls(owned).items():
        for call in its_calls:
            named = call | {"params": call.get("params", {}) | {"userId": OWNER}}
            answer = await ask(stranger, route, named)
            assert answer.status_code == 404, route
            assert _shows_nothing(answer, owned), route
    in_body = await stranger.post(SEND, json=order(userId=OWNER))
    assert in_body.status_code == 404
    assert await _ledger(api) == before


async def test_what_is_not_for_users_a_user_key_cannot_do(api: Api, owned: Ids) -> None:
    before = await _ledger(api)
    owner = await api.client_of(OWNER)
    for route, call in NOT_FOR_USERS.items():
        assert (await ask(owner, route, call)).status_code == 403, route
    assert await _ledger(api) == before


async def test_a_service_key_has_to_say_for_whom(api: Api, owned: Ids) -> None:
    service = await api.client_of(None, KeyScope.SERVICE)
    for route, its_calls in calls(owned).items():
        for call in its_calls:
            answer = await ask(service, route, call)
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, "userId"), route
    found = await service.get(IMPORT, params={"importId": owned.import_id, "userId": OWNER})
    assert found.json()["importId"] == owned.import_id
    other = await service.get(IMPORT, params={"importId": owned.import_id, "userId": STRANGER})
    assert other.status_code == 404
