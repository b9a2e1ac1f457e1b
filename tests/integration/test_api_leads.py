"""Leads over HTTP: found, read, edited, tagged, exported."""

import asyncio
import csv
import io
import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import pytest

from api import lead_pages
from core.cleaning import clean_chunk
from core.settings import load
from schemas.ids import UserId
from schemas.messages import LeadChunk
from schemas.states import OnConflict
from store.imports import create_import
from store.leads import merge_leads, skip_leads, upsert_leads
from tests.integration.api_client import LEADS, OWNER, STRANGER, Api, running_api

WRITES = {OnConflict.REPLACE: upsert_leads, OnConflict.MERGE: merge_leads, OnConflict.SKIP: skip_leads}


@pytest.fixture
async def api(environment: dict[str, str]) -> AsyncIterator[Api]:
    async with running_api(load(environment)) as api:
        yield api


@pytest.fixture
async def client(api: Api) -> httpx.AsyncClient:
    return await api.client_of(OWNER)


async def _many(api: Api, count: int, user: UserId = OWNER) -> None:
    """Every tenth is of Ulm, every hundredth a vip."""
    async with api.resources.database.connection() as connection:
        await connection.execute(
            """INSERT INTO leads (user_id, email_key, email, name, attributes, tags, origin_seq, origin_row, counted_for)
               SELECT $1, k, k, 'P ' || n,
                      jsonb_build_object('n', n, 'city', CASE WHEN n % 10 = 0 THEN 'Ulm' ELSE 'Bonn' END),
                      CASE WHEN n % 100 = 0 THEN '{spring,vip}' ELSE '{spring}' END::text[], 0, n, '{}'
               FROM generate_series(0, $2 - 1) AS n,
                    LATERAL (SELECT 'p' || lpad(n::text, 6, '0') || '@mail.com' AS k) AS keys""",
            user,
            count,
        )


async def _put(client: httpx.AsyncClient, email: str, **body: Any) -> dict[str, Any]:
    answer = await client.put(f"{LEADS}/{email}", json=body)
    assert answer.status_code in (200, 201), answer.text
    lead: dict[str, Any] = answer.json()
    return lead


async def _emails(client: httpx.AsyncClient, **conditions: Any) -> list[str]:
    """Of all pages."""
    found: list[str] = []
    after: dict[str, Any] = {}
    while True:
        answer = await client.get(LEADS, params=conditions | after)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += [lead["email"] for lead in page["leads"]]
        if page["next"] is None:
            return found
        after = {"after": page["next"]}


async def _new_import(api: Api, mode: OnConflict = OnConflict.REPLACE) -> tuple[UUID, int]:
    async with api.resources.database.connection() as connection:
        made = await create_import(connection, OWNER, None, mode, [])
    assert made is not None
    return made


async def _store(
    api: Api, made: tuple[UUID, int], rows: list[Any], user: UserId = OWNER, columns: list[str] | None = None
) -> None:
    """What a worker does with a chunk of the import."""
    await _write(api, made, rows, OnConflict.REPLACE, user, columns or [])


async def _write(
    api: Api, made: tuple[UUID, int], rows: list[Any], mode: OnConflict, user: UserId, columns: list[str]
) -> None:
    chunk = LeadChunk(
        import_id=made[0],
        user_id=user,
        number=0,
        first_row=1,
        origin_seq=made[1],
        on_conflict=mode,
        columns=columns,
        lines=[],
        rows=rows,
    )
    clean = clean_chunk(chunk)
    assert clean.rejected == []
    async with api.resources.database.transaction() as connection:
        await WRITES[mode](connection, user, [], clean, slice(0, len(clean.email_keys)), made[1], made[1])


# Search


async def test_leads_come_in_pages_by_address(api: Api, client: httpx.AsyncClient) -> None:
    await _many(api, 120)
    await _many(api, 5, STRANGER)
    first = (await client.get(LEADS)).json()
    assert [lead["email"] for lead in first["leads"]] == [f"p{n:06}@mail.com" for n in range(50)]
    assert first["next"] == "p000049@mail.com"
    assert first["leads"][10]["attributes"] == {"n": 10, "city": "Ulm"}
    assert set(first["leads"][0]) == {"email", "name", "attributes", "tags", "createdAt", "updatedAt"}
    assert await _emails(client, limit=7) == [f"p{n:06}@mail.com" for n in range(120)]
    assert (await client.get(LEADS, params={"limit": 501})).status_code == 422


async def test_every_condition_finds_just_the_leads_that_fit(api: Api, client: httpx.AsyncClient) -> None:
    await _many(api, 300)
    await _put(client, "Ann.Lee@Mail.com", name="Ann ÖZIL", attributes={"city": "Ulm", "n": 7, "a=b": 1}, tags=["vip"])
    assert await _emails(client, email=" ann.lee@mail.com") == ["Ann.Lee@Mail.com"]
    assert await _emails(client, emailPrefix="ANN.") == ["Ann.Lee@Mail.com"]
    assert len(await _emails(client, emailPrefix="p00001")) == 10
    assert await _emails(client, emailPrefix="p00001", email="ann.lee@mail.com") == []
    assert await _emails(client, name="özil") == ["Ann.Lee@Mail.com"]
    assert await _emails(client, name="%") == []
    assert len(await _emails(client, tags="vip")) == 4
    assert len(await _emails(client, tags=["vip", "spring"])) == 3
    assert len(await _emails(client, attributes="city=Ulm")) == 31
    assert await _emails(client, attributes=["city=Ulm", "n=7"]) == ["Ann.Lee@Mail.com"]
    assert len(await _emails(client, attributes="n")) == 301
    assert await _emails(client, attributes="nothing") == []
    assert len(await _emails(client, attributes="city=Ulm", tags="vip", limit=1)) == 4


async def test_what_changed_since_and_what_an_import_wrote_last(api: Api, client: httpx.AsyncClient) -> None:
    made = await _new_import(api)
    await _store(api, made, [{"email": "a@mail.com"}, {"email": "b@mail.com"}])
    edited = await _put(client, "a@mail.com", name="A")
    assert await _emails(client, importId=str(made[0])) == ["b@mail.com"]
    assert await _emails(client, updatedSince=edited["updatedAt"]) == ["a@mail.com"]
    unknown = await client.get(LEADS, params={"importId": "01a21039-4038-738c-bcdf-ed3c8547979c"})
    assert unknown.status_code == 404


async def test_a_page_says_next_when_its_time_is_up_before_it_is_full(
    api: Api, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lead_pages, "SLICE", 100)
    monkeypatch.setattr(lead_pages, "SCAN_MAX", 200)
    await _many(api, 1_000)
    rare = await client.get(LEADS, params={"attributes": "n=950"})
    assert rare.json() == {"leads": [], "next": "p000199@mail.com"}
    assert await _emails(client, attributes="n=950") == ["p000950@mail.com"]
    assert len(await _emails(client, tags="vip", limit=3)) == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"email": "nonsense"},
        {"tags": "a\x00"},
        {"attributes": "a=\x00"},
        {"after": "\x00"},
        {"name": ""},
        {"colour": "red"},
        {"updatedSince": "yesterday"},
    ],
)
async def test_a_wrong_condition_is_named(client: httpx.AsyncClient, wrong: dict[str, str]) -> None:
    answer = await client.get(LEADS, params=wrong)
    assert (answer.status_code, answer.json()["error"]["field"].split(".")[0]) == (422, next(iter(wrong)))


# One lead


async def test_a_lead_is_made_read_and_replaced(client: httpx.AsyncClient) -> None:
    body = {"name": " Ann ", "attributes": {"city": "Ulm", "n": [1, 2.5, None]}, "tags": ["b", "a", "b"]}
    made = await client.put(f"{LEADS}/Ann@Mail.com", json=body, headers={"Idempotency-Key": "k"})
    assert made.status_code == 201
    lead = made.json()
    assert (lead["email"], lead["name"], lead["tags"]) == ("Ann@Mail.com", "Ann", ["b", "a"])
    assert lead["attributes"] == body["attributes"]
    assert (await client.get(f"{LEADS}/ann@mail.com")).json() == lead
    again = await client.put(f"{LEADS}/ann@mail.com", json={"name": "Ann Lee"})
    assert again.status_code == 200
    replaced = again.json()
    assert (replaced["email"], replaced["attributes"], replaced["tags"]) == ("ann@mail.com", {}, [])
    assert replaced["createdAt"] == lead["createdAt"]
    assert (await client.get(f"{LEADS}/b@mail.com")).status_code == 404
    assert (await client.get(f"{LEADS}/nonsense")).status_code == 404


async def test_any_address_can_be_a_path(client: httpx.AsyncClient) -> None:
    for email, quoted in (("a/b@mail.com", "a%2Fb@mail.com"), ("jürgen+x@müller.de", "j%C3%BCrgen%2Bx@m%C3%BCller.de")):
        assert (await client.put(f"{LEADS}/{quoted}", json={"name": "X"})).status_code == 201
        assert (await client.get(f"{LEADS}/{quoted}")).json()["email"] == email
    # A word that is another route is no address either.
    assert (await client.put(f"{LEADS}/export", json={})).status_code == 422


async def test_an_edit_changes_what_it_names(client: httpx.AsyncClient) -> None:
    await _put(client, "Ann@mail.com", name="Ann", attributes={"city": "Ulm", "age": 7, "big": 2**60}, tags=["a", "b"])
    url = f"{LEADS}/ann@mail.com"
    changed = (await client.patch(url, json={"attributes": {"city": None, "plan": "pro", "none": None}})).json()
    assert changed["attributes"] == {"age": 7, "plan": "pro", "big": 2**60}
    assert (changed["email"], changed["name"], changed["tags"]) == ("Ann@mail.com", "Ann", ["a", "b"])
    changed = (await client.patch(url, json={"name": "", "tags": {"add": ["c", "a"], "remove": ["b"]}})).json()
    assert (changed["name"], changed["tags"]) == ("", ["a", "c"])
    changed = (await client.patch(url, json={"tags": {"set": ["z"]}})).json()
    assert (changed["tags"], changed["attributes"]) == (["z"], {"age": 7, "plan": "pro", "big": 2**60})
    assert (await client.patch(url, json={"tags": {"set": ["z"]}})).json()["tags"] == ["z"]
    assert (await client.patch(f"{LEADS}/b@mail.com", json={"name": "B"})).status_code == 404


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "x" * 201}, "name"),
    ({"name": "a\x07b"}, "name"),
    ({"attributes": {"a": "x" * 2_001}}, "attributes.a"),
    ({"attributes": {"": "x"}}, "attributes."),
    ({"attributes": {"a": {"b": {"c": {"d": 1}}}}}, "attributes.a"),
    ({"attributes": {str(n): n for n in range(65)}}, "attributes"),
    ({"attributes": {str(n): "x" * 2_000 for n in range(9)}}, "attributes"),
    ({"attributes": {"a": "nul \x00"}}, "attributes.a"),
    ({"attributes": [1]}, "attributes"),
    ({"colour": "red"}, "colour"),
]


async def test_an_edit_passes_the_rules_of_imports(client: httpx.AsyncClient) -> None:
    before = await _put(client, "ann@mail.com", name="Ann", attributes={"city": "Ulm"})
    for body, field in WRONG:
        for method in ("PUT", "PATCH"):
            answer = await client.request(method, f"{LEADS}/ann@mail.com", json=body)
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, field), (method, body)
    for tags in ({"add": ["a"], "remove": ["a"]}, {"set": ["a"], "add": ["b"]}, {"add": [str(n) for n in range(21)]}):
        assert (await client.patch(f"{LEADS}/ann@mail.com", json={"tags": tags})).status_code == 422
    assert (await client.put(f"{LEADS}/nonsense", json={})).json()["error"]["field"] == "email"
    assert (await client.put(f"{LEADS}/ann@mail.com", content=b"nonsense")).status_code == 422
    assert (await client.put(f"{LEADS}/ann@mail.com", content=b"x" * 200_000)).status_code == 413
    assert (await client.get(f"{LEADS}/ann@mail.com")).json() == before


@pytest.mark.parametrize("mode", OnConflict)
async def test_an_edit_is_later_than_every_row_of_an_import_that_began_before(
    api: Api, client: httpx.AsyncClient, mode: OnConflict
) -> None:
    made = await _new_import(api, mode)
    await _put(client, "a@mail.com", name="put", attributes={"x": 1}, tags=["t"])
    await _put(client, "b@mail.com", name="B", attributes={"x": 1})
    edited = (await client.patch(f"{LEADS}/b@mail.com", json={"attributes": {"y": 2}})).json()
    rows = [{"email": f"{one}@mail.com", "name": "import", "x": 9, "z": 9} for one in "ab"]
    await _write(api, made, rows, mode, OWNER, [])
    assert (await client.get(f"{LEADS}/a@mail.com")).json()["name"] == "put"
    found = (await client.get(f"{LEADS}/b@mail.com")).json()
    assert (found["name"], found["attributes"]) == (edited["name"], edited["attributes"])


@pytest.mark.parametrize("mode", OnConflict)
async def test_an_import_that_begins_after_an_edit_is_later(
    api: Api, client: httpx.AsyncClient, mode: OnConflict
) -> None:
    merged = await _new_import(api, OnConflict.MERGE)
    await _write(api, merged, [{"email": "a@mail.com", "name": "M", "x": 0, "w": 0}], OnConflict.MERGE, OWNER, [])
    await client.patch(f"{LEADS}/a@mail.com", json={"name": "edit", "attributes": {"x": 1}})
    made = await _new_import(api, mode)
    await _write(api, made, [{"email": "a@mail.com", "name": "import", "y": 2}], mode, OWNER, [])
    found = (await client.get(f"{LEADS}/a@mail.com")).json()
    assert (found["name"], found["attributes"]) == {
        OnConflict.REPLACE: ("import", {"y": 2}),
        OnConflict.MERGE: ("import", {"x": 1, "w": 0, "y": 2}),
        OnConflict.SKIP: ("edit", {"x": 1, "w": 0}),
    }[mode]


# Tags of many


async def test_tags_come_and_go_for_named_leads(api: Api, client: httpx.AsyncClient) -> None:
    await _many(api, 20)
    body = {"emails": ["P000001@mail.com", "p000002@mail.com", "nobody@mail.com"], "add": ["new"], "remove": ["spring"]}
    for changed in (2, 0):
        answer = await client.post(f"{LEADS}/tags", json=body, headers={"Idempotency-Key": f"tags {changed}"})
        assert answer.json() == {"leads": 2, "changed": changed, "full": 0, "next": None}
        assert await _emails(client, tags="new") == ["p000001@mail.com", "p000002@mail.com"]
        assert len(await _emails(client, tags="spring")) == 18


async def test_tags_come_and_go_for_all_leads_that_fit(
    api: Api, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lead_pages, "PAGE", 30)
    await _many(api, 500)
    body = {"filter": {"tags": ["spring"], "attributes": ["city=Ulm"]}, "add": ["ulm"], "remove": ["spring"]}
    answer = await client.post(f"{LEADS}/tags", json=body)
    assert answer.json() == {"leads": 50, "changed": 50, "full": 0, "next": None}
    assert len(await _emails(client, tags="ulm", limit=500)) == 50
    assert len(await _emails(client, tags="spring", limit=500)) == 450
    every = await client.post(f"{LEADS}/tags", json={"filter": {}, "add": ["all"]})
    assert every.json()["changed"] == 500


async def test_tagging_goes_on_where_its_time_was_up(
    api: Api, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.routes import leads

    monkeypatch.setattr(lead_pages, "PAGE", 30)
    monkeypatch.setattr(leads, "TAG_WITHIN", -1.0)
    await _many(api, 100)
    body: dict[str, Any] = {"filter": {}, "add": ["x"]}
    following, changed, calls = None, 0, 0
    while True:
        answer = (await client.post(f"{LEADS}/tags", json=body | {"after": following})).json()
        changed, following, calls = changed + answer["changed"], answer["next"], calls + 1
        if following is None:
            break
    assert (changed, calls) == (100, 4)


async def test_a_lead_does_not_get_tags_without_end(api: Api, client: httpx.AsyncClient) -> None:
    await _many(api, 2)
    for first in range(0, 80, 20):
        body = {"emails": ["p000001@mail.com"], "add": [f"t{n}" for n in range(first, first + 20)]}
        assert (await client.post(f"{LEADS}/tags", json=body)).json()["full"] == 0
    body = {"filter": {}, "add": [f"u{n}" for n in range(20)]}
    assert (await client.post(f"{LEADS}/tags", json=body)).json() == {"leads": 2, "changed": 1, "full": 1, "next": None}
    one = await client.patch(f"{LEADS}/p000001@mail.com", json={"tags": {"add": [f"u{n}" for n in range(20)]}})
    assert one.status_code == 422


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"add": ["a"]}, "emails"),
        ({"emails": [], "filter": {}, "add": ["a"]}, "emails"),
        ({"emails": ["nonsense"], "add": ["a"]}, "emails.0"),
        ({"emails": ["a@mail.com"] * 1_001, "add": ["a"]}, "emails"),
        ({"filter": {}, "add": ["a"], "remove": ["a"]}, "tags"),
        ({"filter": {"email": "nonsense"}, "add": ["a"]}, "email"),
    ],
)
async def test_wrong_tagging_changes_nothing(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    answer = await client.post(f"{LEADS}/tags", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


# Export


async def test_an_export_has_the_leads_that_fit(api: Api, client: httpx.AsyncClient) -> None:
    await _many(api, 200)
    answer = await client.get(f"{LEADS}/export", params={"format": "ndjson", "tags": "vip"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert 'filename="leads.ndjson"' in answer.headers["content-disposition"]
    assert [json.loads(line)["email"] for line in answer.text.splitlines()] == ["p000000@mail.com", "p000100@mail.com"]
    answer = await client.get(f"{LEADS}/export", params={"columns": ["city", "n", "none"], "emailPrefix": "p00001"})
    head, *rows = csv.reader(io.StringIO(answer.text))
    assert head == ["email", "name", "tags", "city", "n", "none"]
    assert rows[0] == ["p000010@mail.com", "P 10", "spring", "Ulm", "10", ""]
    assert len(rows) == 10
    empty = await client.get(f"{LEADS}/export", params={"tags": "nothing"})
    assert empty.text == "email,name,tags,attributes\r\n"


async def test_an_export_of_csv_has_no_formula(client: httpx.AsyncClient) -> None:
    evil = {"=cmd|'/c calc'!A1": "=1+1", "tab": "\t=1", "at": "@SUM(A1)", "quoted": "'=1"}
    await _put(client, "=x@mail.com", name="=1+1", attributes=evil, tags=["@home", "+1"])
    for params in ({}, {"columns": list(evil)}):
        answer = await client.get(f"{LEADS}/export", params=params)
        for row in csv.reader(io.StringIO(answer.text)):
            assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]


@pytest.mark.parametrize("params", [{"columns": "name"}, {"columns": ["a", "a"]}, {"format": "ndjson", "columns": "a"}])
async def test_columns_an_export_cannot_have_are_refused(client: httpx.AsyncClient, params: dict[str, Any]) -> None:
    answer = await client.get(f"{LEADS}/export", params=params)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "columns")


@pytest.mark.parametrize("format", ["csv", "ndjson"])
async def test_an_export_holds_no_more_than_a_page(api: Api, format: str) -> None:
    await _many(api, 50_000)
    secret = await api.secret(OWNER)
    lines, most = 0, 0
    held: list[int] = []
    asked = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not asked:
            await asyncio.Event().wait()  # the client stays
        return asked.pop()

    async def send(message: Any) -> None:
        nonlocal lines, most
        body = message.get("body", b"")
        lines, most = lines + body.count(b"\n"), max(most, len(body))
        held.append(tracemalloc.get_traced_memory()[0])

    scope = {"type": "http", "method": "GET", "path": f"{LEADS}/export", "raw_path": f"{LEADS}/export".encode()}
    scope |= {"query_string": f"format={format}".encode(), "headers": [(b"authorization", f"Bearer {secret}".encode())]}
    scope |= {"scheme": "http", "server": ("api", 80), "client": ("c", 1), "http_version": "1.1"}
    tracemalloc.start()
    try:
        await api.app(scope, receive, send)
    finally:
        tracemalloc.stop()
    assert lines == 50_000 + (format == "csv")
    assert most < 300_000
    assert max(held[len(held) // 2 :]) < max(held[: len(held) // 2]) + 1_000_000
