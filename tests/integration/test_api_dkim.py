"""DKIM keys over HTTP: made or imported, never given out, activated, retired, kept while it matters, looked for in DNS."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from dns.zonefile import read_rrsets

from core.dkim import new_pair
from core.secrets import CannotDecrypt, KeyRing, parse_keys
from core.settings import load
from schemas.ids import SHARED
from schemas.states import DkimAlgorithm, KeyScope
from store.dkim import list_dkim_keys, private_of, rotate_dkim_keys
from streams.__main__ import main
from tests.integration.api_client import OWNER, STRANGER, Api, running_api
from tests.integration.dns_server import NameServer, name_server

KEYS = "/api/queue/dkim-keys"
RING = "new:" + base64.b64encode(b"n" * 32).decode()
OLD = "old:" + base64.b64encode(b"o" * 32).decode()
ED25519: dict[str, Any] = {"domain": "shop.com", "algorithm": "ed25519"}


@pytest.fixture
async def dns() -> AsyncIterator[tuple[NameServer, str]]:
    async with name_server() as found:
        yield found


@pytest.fixture
async def api(environment: dict[str, str], dns: tuple[NameServer, str]) -> AsyncIterator[Api]:
    async with running_api(load({**environment, "SECRET_KEYS": RING, "DKIM_NAMESERVER": dns[1]})) as api:
        yield api


@pytest.fixture
async def owner(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


def _error(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    return answer.status_code, error.get("field", error["code"])


async def _made(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    answer = await client.post(KEYS, json=ED25519 | more)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def _step(client: httpx.AsyncClient, key: dict[str, Any], step: str) -> httpx.Response:
    return await client.post(f"{KEYS}/{key['id']}/{step}")


def _pem(bits: int) -> str:
    key = generate_private_key(65537, bits)
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()


async def test_a_key_is_made_activated_retired_and_kept_for_a_week(api: Api, owner: httpx.AsyncClient) -> None:
    made = await _made(owner, selector="s1")
    assert (made["state"], made["algorithm"], made["usable"], made["shared"]) == ("pending", "ed25519", True, False)
    assert made["record"]["name"] == "s1._domainkey.shop.com"
    assert made["record"]["zone"] == f's1._domainkey.shop.com. IN TXT "{made["record"]["value"]}"'
    assert (await owner.get(f"{KEYS}/{made['id']}")).json() == made
    assert (await _step(owner, made, "retire")).status_code == 409
    active = (await _step(owner, made, "activate")).json()
    assert (active["state"], active["removableAt"]) == ("active", None)
    assert (await _step(owner, made, "activate")).json() == active
    assert (await owner.delete(f"{KEYS}/{made['id']}")).status_code == 409
    retiring = (await _step(owner, made, "retire")).json()
    assert (retiring["state"], retiring["removableAt"][:4] >= "2025") == ("retiring", True)
    refused = await owner.delete(f"{KEYS}/{made['id']}")
    assert refused.status_code == 409
    assert "7 days" in refused.json()["error"]["message"]
    async with api.resources.database.connection() as connection:
        await connection.execute("UPDATE dkim_keys SET retired_at = now() - interval '7 days 1 second'")
    assert (await owner.delete(f"{KEYS}/{made['id']}")).status_code == 204
    assert (await owner.get(KEYS)).json() == {"keys": []}


async def test_a_retiring_key_may_come_back_and_a_pending_one_go(owner: httpx.AsyncClient) -> None:
    made = await _made(owner)
    for step, state in (("activate", "active"), ("retire", "retiring"), ("activate", "active")):
        assert (await _step(owner, made, step)).json()["state"] == state
    other = await _made(owner)
    assert other["selector"] != made["selector"]
    assert (await owner.delete(f"{KEYS}/{other['id']}")).status_code == 204


async def test_an_rsa_record_comes_in_strings_that_dns_carries(owner: httpx.AsyncClient) -> None:
    made = (await owner.post(KEYS, json={"domain": "Müller.example"})).json()
    assert (made["algorithm"], made["domain"]) == ("rsa", "xn--mller-kva.example")
    record = made["record"]
    assert [len(one) <= 255 for one in record["strings"]] == [True, True]
    assert "".join(record["strings"]) == record["value"]
    assert record["value"].startswith("v=DKIM1; k=rsa; p=MIIBIjANBgkq")


async def test_a_private_key_is_in_no_answer_and_encrypted_in_the_ledger(api: Api, owner: httpx.AsyncClient) -> None:
    pem = _pem(2048)
    body = pem.splitlines()[1]
    answers = [
        await owner.post(KEYS, json={"domain": "a.com", "privateKey": pem}, headers={"Idempotency-Key": "k"}),
        await owner.get(KEYS),
        await owner.post(KEYS, json={"domain": "b.com", "privateKey": [pem]}),
        await owner.post(KEYS, json={"domain": "b.com", "privateKey": pem, "algorithm": "ed25519"}),
    ]
    assert [answer.status_code for answer in answers] == [201, 200, 422, 422]
    async with api.resources.database.connection() as connection:
        [row] = await list_dkim_keys(connection, OWNER)
        kept = await connection.fetchval("SELECT string_agg(body, ' ') FROM answers")
    secret = private_of(row, api.resources.settings.relays.ring)
    assert len(secret) > 1500
    for text in (*(answer.text for answer in answers), kept, repr(row), row.private_key):
        assert body not in text
        assert secret[100:200] not in text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"domain": "com"}, "domain"),
        ({"domain": "a@shop.com"}, "domain"),
        ({"domain": ""}, "domain"),
        ({"selector": "S 1"}, "selector"),
        ({"selector": "a_b"}, "selector"),
        ({"algorithm": "dsa"}, "algorithm"),
        ({"canonicalization": "simple/simple"}, "canonicalization"),
        ({"privateKey": "no key"}, "privateKey"),
        ({"algorithm": None, "privateKey": _pem(1024)}, "privateKey"),
        ({"bits": 1024}, "bits"),
    ],
)
async def test_what_cannot_be_a_key_is_refused_by_field(
    owner: httpx.AsyncClient, change: dict[str, Any], field: str
) -> None:
    assert _error(await owner.post(KEYS, json=ED25519 | change)) == (422, field)


async def test_without_secret_keys_none_is_stored(environment: dict[str, str]) -> None:
    async with running_api(load(environment)) as api:
        refused = await (await api.client_of(OWNER)).post(KEYS, json=ED25519)
    assert _error(refused) == (422, "no_key")
    assert "SECRET_KEYS" in refused.json()["error"]["message"]


async def test_a_selector_is_given_once_and_of_a_domain_four_keys_sign(owner: httpx.AsyncClient) -> None:
    made = [await _made(owner, selector=f"s{number}") for number in range(5)]
    assert (await owner.post(KEYS, json=ED25519 | {"selector": "s1"})).status_code == 409
    answers = [await _step(owner, one, "activate") for one in made]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 409]
    assert (await _step(owner, made[0], "retire")).status_code == 200
    assert (await _step(owner, made[4], "activate")).status_code == 200
    other = await _made(owner, domain="other.com")
    assert (await _step(owner, other, "activate")).status_code == 200
    listed = (await owner.get(KEYS, params={"domain": "SHOP.com"})).json()["keys"]
    assert [one["selector"] for one in listed] == ["s0", "s1", "s2", "s3", "s4"]


async def test_asked_twice_with_a_key_it_is_made_once(owner: httpx.AsyncClient) -> None:
    once = {"Idempotency-Key": "once"}
    first, second = [await owner.post(KEYS, json=ED25519, headers=once) for _ in range(2)]
    assert first.json() == second.json()
    assert len((await owner.get(KEYS)).json()["keys"]) == 1


async def test_what_is_another_users_does_not_exist(api: Api, owner: httpx.AsyncClient) -> None:
    made, stranger = await _made(owner, selector="s1"), await api.client_of(STRANGER)
    assert (await stranger.get(KEYS)).json() == {"keys": []}
    answers = [await _step(stranger, made, step) for step in ("activate", "retire", "check")]
    answers += [await stranger.get(f"{KEYS}/{made['id']}"), await stranger.delete(f"{KEYS}/{made['id']}")]
    assert [answer.status_code for answer in answers] == [404] * 5
    assert (await _made(stranger, selector="s1"))["state"] == "pending"


async def test_shared_keys_are_for_admin_keys(api: Api, owner: httpx.AsyncClient) -> None:
    admin = await api.client_of(None, KeyScope.ADMIN)
    assert (await owner.post(f"{KEYS}?shared=true", json=ED25519)).status_code == 403
    made = (await admin.post(f"{KEYS}?shared=true", json=ED25519)).json()
    assert made["shared"]
    assert (await owner.get(f"{KEYS}/{made['id']}")).status_code == 404
    assert (await admin.post(f"{KEYS}/{made['id']}/activate?shared=true")).json()["state"] == "active"


async def test_dns_is_asked_whether_the_record_is_there(owner: httpx.AsyncClient, dns: tuple[NameServer, str]) -> None:
    server, _ = dns
    made = (await owner.post(KEYS, json={"domain": "shop.com", "selector": "s1"})).json()
    name, strings = made["record"]["name"], made["record"]["strings"]
    other = new_pair(DkimAlgorithm.RSA).public
    value = made["record"]["value"]

    async def check(*texts: str) -> tuple[bool, str | None]:
        server.texts[name] = list(texts)
        answer = await _step(owner, made, "check")
        assert answer.status_code == 200
        assert len(answer.json()["found"]) == len(texts)
        return answer.json()["published"], answer.json()["reason"]

    def quoted(text: str) -> str:
        return " ".join(f'"{text[at : at + 200]}"' for at in range(0, len(text), 200))

    assert await check() == (False, "there is no record of this name")
    assert await check(" ".join(f'"{one}"' for one in strings)) == (True, None)
    assert await check(quoted(value.replace("v=DKIM1; k=rsa; ", "").replace("p=", "t=s; p= "))) == (True, None)
    assert await check(quoted(f"v=DKIM1; k=rsa; p={other}")) == (False, "it is of another key")
    assert await check('"v=DKIM1; k=rsa; p="') == (False, "it revokes the key: p= is empty")
    assert await check('"google-site-verification=x"') == (False, "it is no DKIM record")
    assert await check(quoted(value), '"other"') == (
        False,
        "there are 2 records of this name, where verifiers want one",
    )
    assert await check(quoted(f"{value}; h=sha1")) == (False, "its h= does not allow sha256")
    assert set(server.asked) == {"s1._domainkey.shop.com"}


async def test_a_name_server_that_is_silent_is_told_as_away(
    owner: httpx.AsyncClient, dns: tuple[NameServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.dns.ANSWER_WITHIN", 0.3)
    dns[0].silent = True
    answer = await _step(owner, await _made(owner), "check")
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "dns is away, try again")


async def test_keys_are_encrypted_anew_and_what_cannot_be_is_told(api: Api, owner: httpx.AsyncClient) -> None:
    for number in range(3):
        await _made(owner, selector=f"s{number}")
    both = parse_keys(f"{OLD},{RING}")
    async with api.resources.database.connection() as connection:
        assert await rotate_dkim_keys(connection, both) == (3, 0)
        assert await rotate_dkim_keys(connection, both) == (0, 0)
        row = (await list_dkim_keys(connection, OWNER))[0]
        assert private_of(row, parse_keys(OLD))
        with pytest.raises(CannotDecrypt):
            private_of(row, api.resources.settings.relays.ring)
        assert await rotate_dkim_keys(connection, KeyRing({"new": b"n" * 32})) == (0, 3)
    assert [one["usable"] for one in (await owner.get(KEYS)).json()["keys"]] == [False] * 3


async def test_a_ciphertext_is_of_no_use_in_another_row(api: Api, owner: httpx.AsyncClient) -> None:
    await _made(owner, selector="s1")
    await _made(owner, selector="s2")
    async with api.resources.database.connection() as connection:
        await connection.execute(
            "UPDATE dkim_keys SET private_key = (SELECT private_key FROM dkim_keys WHERE selector = 's1')"
        )
        rows = await list_dkim_keys(connection, OWNER)
    ring = api.resources.settings.relays.ring
    assert private_of(rows[0], ring)
    with pytest.raises(CannotDecrypt):
        private_of(rows[1], ring)


def test_a_command_makes_keys_and_prints_their_records(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (environment | {"SECRET_KEYS": RING}).items():
        monkeypatch.setenv(name, value)
    of_domain = ["--domain", "Shop.com"]
    assert main(["dkim", "records", *of_domain]) == 1
    assert capsys.readouterr().err == "streams dkim: shop.com has no keys for everybody\n"
    assert main(["dkim", "create", *of_domain, "--selector", "s1"]) == 0
    made = capsys.readouterr().out
    assert main(["dkim", "create", *of_domain, "--selector", "s2", "--algorithm", "ed25519"]) == 0
    assert made.endswith("/activate?shared=true\n")
    assert main(["dkim", "create", *of_domain, "--selector", "s2", "--user", "an owner"]) == 0
    assert capsys.readouterr().out.endswith("/activate?userId=an+owner\n")
    assert main(["dkim", "create", *of_domain, "--selector", "s1"]) == 1
    assert "this selector for everybody" in capsys.readouterr().err
    assert main(["dkim", "records", *of_domain]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(made.partition("\n\n; then")[0])
    found = read_rrsets(printed, rdclass=None, default_ttl=60)
    assert [one.name.to_text() for one in found] == ["s1._domainkey.shop.com.", "s2._domainkey.shop.com."]
    assert [b"".join(one[0].strings).decode()[:18] for one in found] == ["v=DKIM1; k=rsa; p=", "v=DKIM1; k=ed25519"]
    monkeypatch.delenv("SECRET_KEYS")
    assert main(["dkim", "create", *of_domain]) == 1
    assert "SECRET_KEYS is not set" in capsys.readouterr().err


async def test_keys_for_everybody_and_of_a_user_are_apart(api: Api, owner: httpx.AsyncClient) -> None:
    await _made(owner)
    async with api.resources.database.connection() as connection:
        assert await list_dkim_keys(connection, SHARED) == []
