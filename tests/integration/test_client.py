"""The Python client against the API on a real socket."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from core.settings import Settings
from mailgenius import (
    Conflict,
    ConnectionFailed,
    InvalidInput,
    MailGenius,
    NotAllowed,
    NotFound,
    Retries,
    Selection,
    Sender,
    Template,
    TooMany,
    Unauthenticated,
    UnsupportedType,
)
from mailgenius.answers import OperationProgress
from schemas.states import KeyScope
from store.progress import settle_progress
from tests.integration.api_client import OWNER, STRANGER, Api, chunk_done, running_api, until
from tests.integration.served import AT_THE_END, breaking, served

TEMPLATE = Template(subject="Welcome {{name}}", html="<h1>Welcome {{name}}!</h1>", text="Welcome {{name}}!")
SENDER = Sender(email="noreply@mailgenius.com", name="MailGenius")
QUICK = Retries(attempts=4, first=0.01, longest=0.05)
ROWS = 3_456


class Server:
    """Clients are closed with it."""

    def __init__(self, api: Api, url: str, stack: AsyncExitStack) -> None:
        self.api = api
        self.url = url
        self._stack = stack

    async def client(self, scope: KeyScope = KeyScope.USER, *, url: str | None = None, **more: Any) -> MailGenius:
        secret = await self.api.secret(OWNER if scope is KeyScope.USER else None, scope)
        made = MailGenius(url or self.url, secret, retries=QUICK, **more)
        return await self._stack.enter_async_context(made)

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        async with self.api.resources.database.connection() as connection:
            return list(await connection.fetch(sql, *arguments))

    async def rows(self, import_id: UUID) -> int:
        """Of the chunks that the ledger has of an import, whose numbers follow one another."""
        found = await self.fetch(
            "SELECT number, first_row, rows FROM lead_import_batches WHERE import_id = $1 ORDER BY number", import_id
        )
        next_row = 1
        for number, chunk in enumerate(found):
            assert (chunk["number"], chunk["first_row"]) == (number, next_row)
            next_row += chunk["rows"]
        return next_row - 1


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    async with running_api(settings) as api, served(api.app) as url, AsyncExitStack() as stack:
        yield Server(api, url, stack)


@pytest.fixture
async def mg(server: Server) -> MailGenius:
    return await server.client()


def lead(number: int) -> dict[str, Any]:
    return {"email": f"p{number}@mail.com", "name": f"P {number}", "city": "Köln", "number": number}


def generated(rows: int = ROWS) -> Iterator[dict[str, Any]]:
    for number in range(rows):
        yield lead(number)


async def generated_slowly(rows: int = ROWS) -> AsyncIterator[dict[str, Any]]:
    for number in range(rows):
        if number % 500 == 0:
            await asyncio.sleep(0)
        yield lead(number)


def files(folder: Path) -> list[Any]:
    lines = "".join(json.dumps(lead(number)) + "\n" for number in range(ROWS)).encode()
    table = ("email,name,city\n" + "".join(f"p{number}@mail.com,P,Köln\n" for number in range(ROWS))).encode()
    (folder / "leads.ndjson").write_bytes(lines)
    (folder / "leads.csv").write_bytes(table)
    (folder / "leads.csv.gz").write_bytes(gzip.compress(table))
    (folder / "leads").write_bytes(table)
    return [folder / "leads.ndjson", str(folder / "leads.csv"), folder / "leads.csv.gz"]


async def test_leads_come_from_a_list_a_generator_an_async_generator_and_files(
    server: Server, mg: MailGenius, tmp_path: Path
) -> None:
    sources: list[Any] = [list(generated()), generated(), generated_slowly(), *files(tmp_path)]
    for source in sources:
        accepted = await mg.leads.import_leads(OWNER, source)
        assert (accepted.rows, accepted.state, accepted.user_id) == (ROWS, "received", OWNER)
        assert await server.rows(accepted.import_id) == ROWS
    with (tmp_path / "leads").open("rb") as file:
        accepted = await mg.leads.import_leads(OWNER, file, content_type="text/csv", tags=["vip"], on_conflict="merge")
    found = await mg.leads.get_import(accepted.import_id)
    assert (found.rows, found.tags, found.on_conflict) == (ROWS, ["vip"], "merge")
    assert len([one async for one in mg.leads.imports()]) == len(sources) + 1
    assert (await mg.leads.cancel_import(accepted.import_id)).state == "cancelled"


async def test_a_dry_run_stores_nothing(mg: MailGenius) -> None:
    trial = await mg.leads.try_import(OWNER, [lead(1), lead(1), {"email": "none"}])
    assert (trial.rows, trial.stored, trial.duplicate, trial.rejected) == (3, 1, 1, 1)
    assert trial.first_rejected[0].field == "email"
    assert [one async for one in mg.leads.imports()] == []


@pytest.mark.parametrize("source", [generated, generated_slowly, lambda: list(generated())])
async def test_an_upload_that_breaks_off_is_completed(server: Server, source: Any) -> None:
    """Twice in its middle, and once when all of it is there and the answer is not."""
    async with breaking(server.url, 150_000, 100_000, AT_THE_END) as (way, url):
        accepted = await (await server.client(url=url)).leads.import_leads(OWNER, source())
        assert way.lost == 3
    assert await server.rows(accepted.import_id) == accepted.rows == ROWS
    assert len(await server.fetch("SELECT id FROM lead_imports")) == 1


async def test_what_an_error_left_undone_is_completed_with_its_key(server: Server) -> None:
    async with breaking(server.url, *[50_000] * QUICK.attempts) as (way, url):
        mg = await server.client(url=url)
        with pytest.raises(ConnectionFailed) as caught:
            await mg.leads.import_leads(OWNER, generated())
        assert (way.lost, caught.value.temporary) == (QUICK.attempts, True)
        accepted = await mg.leads.import_leads(OWNER, generated(), idempotency_key=caught.value.idempotency_key)
    assert await server.rows(accepted.import_id) == accepted.rows == ROWS
    assert len(await server.fetch("SELECT id FROM lead_imports")) == 1


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), httpx.ReadError("mine")])
async def test_a_source_that_fails_ends_the_upload_and_not_as_if_it_were_whole(
    server: Server, mg: MailGenius, error: Exception
) -> None:
    """Also when it fails as a connection does: tried again it would give nothing more, and look complete."""

    def failing() -> Iterator[dict[str, Any]]:
        yield from generated(2_000)
        raise error

    with pytest.raises(type(error), match="mine"):
        await mg.leads.import_leads(OWNER, failing())
    states = [row["state"] for row in await server.fetch("SELECT state FROM lead_imports")]
    assert states in ([], ["receiving"])


async def test_the_same_key_with_other_rows_is_a_conflict(mg: MailGenius) -> None:
    await mg.leads.import_leads(OWNER, generated(), idempotency_key="monday")
    with pytest.raises(Conflict, match="another body") as caught:
        await mg.leads.import_leads(OWNER, generated(5), idempotency_key="monday")
    assert (caught.value.idempotency_key, caught.value.temporary, caught.value.status) == ("monday", False, 409)


@pytest.mark.parametrize("kind", ["list", "generator", "async", "ndjson", "csv", "gz", "selection"])
async def test_a_campaign_goes_to_recipients_of_any_source(
    server: Server, mg: MailGenius, tmp_path: Path, kind: str
) -> None:
    paths = files(tmp_path)
    recipients: Any = {
        "list": [{"id": "1", "email": "p1@mail.com"}, {"id": 2, "email": "p2@mail.com"}],
        "generator": generated(),
        "async": generated_slowly(),
        "ndjson": paths[0],
        "csv": paths[1],
        "gz": paths[2],
        "selection": Selection(all=True),
    }[kind]
    accepted = await mg.campaigns.send_campaign_emails("spring", recipients, TEMPLATE, SENDER, OWNER, priority=1)
    count = {"list": 2, "selection": 0}.get(kind, ROWS)
    assert (accepted.campaign_id, accepted.recipients) == ("spring", count)
    found = await mg.campaigns.get("spring")
    assert (found.send_id, found.priority, found.recipients) == (accepted.send_id, 1, count)
    listed = [one async for one in mg.campaigns.recipients(send_id=accepted.send_id)]
    assert [one.position for one in listed] == list(range(count))
    if kind == "list":
        assert [one.id for one in listed] == ["1", "2"]


async def test_a_send_that_breaks_off_has_each_recipient_once(server: Server) -> None:
    async with breaking(server.url, 100_000, 200_000) as (way, url):
        mg = await server.client(url=url)
        accepted = await mg.campaigns.send_campaign_emails("spring", generated(), TEMPLATE, SENDER, OWNER)
        assert way.lost == 2
    mails = await server.fetch("SELECT position, email FROM email_sends ORDER BY position")
    assert [tuple(mail) for mail in mails] == [(one, f"p{one}@mail.com") for one in range(ROWS)]
    assert (accepted.recipients, accepted.state) == (ROWS, "running")


async def test_a_campaign_is_paused_resumed_and_cancelled(mg: MailGenius) -> None:
    await mg.campaigns.send_campaign_emails("spring", [lead(1)], TEMPLATE, SENDER, OWNER)
    states = [(await act("spring")).state for act in (mg.campaigns.pause, mg.campaigns.resume, mg.campaigns.cancel)]
    assert states == ["paused", "running", "cancelled"]
    with pytest.raises(Conflict, match="cancelled"):
        await mg.campaigns.resume("spring")
    assert [one.state async for one in mg.campaigns.sends(campaign_id="spring")] == ["cancelled"]


async def test_each_kind_of_error_is_a_class_that_says_which_field_and_why(server: Server, mg: MailGenius) -> None:
    with pytest.raises(InvalidInput) as caught:
        await mg.campaigns.send_campaign_emails("spring", [lead(1)], {"subject": "{{"}, SENDER, OWNER)
    assert (caught.value.field, caught.value.status) == ("template", 422)
    assert caught.value.reason
    with pytest.raises(NotFound):
        await mg.campaigns.get("autumn")
    with pytest.raises(NotFound):
        await mg.leads.search(STRANGER).__anext__()
    with pytest.raises(NotAllowed):
        await mg.rate_limits.reset(OWNER)
    with pytest.raises(UnsupportedType):
        await mg.leads.import_leads(OWNER, Path(__file__), content_type="text/x-python")
    service = await server.client(KeyScope.SERVICE)
    with pytest.raises(InvalidInput, match="name one") as missing:
        await service.progress.get(UUID(int=0))
    assert (missing.value.field, missing.value.code) == ("userId", "missing")
    async with MailGenius(server.url, "mg_nobody") as nobody:
        with pytest.raises(Unauthenticated):
            await nobody.rate_limits.get()
        with pytest.raises(Unauthenticated):
            await nobody.leads.import_leads(OWNER, generated(200_000))


async def test_a_limit_that_is_used_up_says_when(server: Server, mg: MailGenius) -> None:
    service = await server.client(KeyScope.SERVICE)
    await service.rate_limits.set(OWNER, "email-sending", rate=10, burst=20)
    async with asyncio.timeout(10):
        while not (checked := await mg.rate_limits.check(OWNER, "email-sending")).allowed:
            await asyncio.sleep(checked.retry_after or 0)
    assert checked.limited
    taken = await mg.rate_limits.take(OWNER, "email-sending", 1_000)
    assert (taken.allowed, 0 < taken.granted <= 20) == (False, True)
    [status] = (await mg.rate_limits.get(OWNER, "email-sending")).limits
    assert status.overridden
    assert (await service.rate_limits.reset(OWNER)).names

    await service.rate_limits.set(OWNER, "leads-import", per_day=1)
    await mg.leads.import_leads(OWNER, [lead(1)])
    with pytest.raises(TooMany) as caught:
        await mg.leads.import_leads(OWNER, [lead(1)])
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > QUICK.patience


async def test_suppressions_are_added_found_and_removed(mg: MailGenius) -> None:
    added = await mg.suppressions.add(OWNER, ["a@mail.com", "none"], "unsubscribe")
    assert (added.added, added.invalid[0].index) == (1, 1)
    many = await mg.suppressions.import_suppressions(OWNER, ({"email": f"{n}@mail.com"} for n in range(1_200)))
    assert (many.rows, many.added) == (1_200, 1_200)
    assert len([one async for one in mg.suppressions.find(OWNER)]) == 1_201
    assert [one.email async for one in mg.suppressions.find(email="a@mail.com")] == ["a@mail.com"]
    assert (await mg.suppressions.remove(OWNER, "a@mail.com")).reason == "unsubscribe"
    with pytest.raises(NotFound):
        await mg.suppressions.remove(OWNER, "a@mail.com")


async def test_leads_are_put_edited_found_tagged_exported_and_erased(mg: MailGenius, tmp_path: Path) -> None:
    await mg.leads.put("a/b@mail.com", name="Ann", attributes={"city": "Köln"}, tags=["new"])
    edited = await mg.leads.edit("a/b@mail.com", attributes={"age": 5}, add_tags=["vip"], remove_tags=["new"])
    assert (edited.attributes, edited.tags, edited.name) == ({"city": "Köln", "age": 5}, ["vip"], "Ann")
    for number in range(1_100):
        if number % 100 == 0:
            await mg.leads.put(f"p{number}@mail.com")
    assert (await mg.leads.tag(emails=["p100@mail.com"], add=["vip"])).changed == 1
    assert [one.email async for one in mg.leads.search(tags=["vip"])] == ["a/b@mail.com", "p100@mail.com"]
    assert (await mg.leads.get("p0@mail.com")).tags == []
    size = await mg.leads.export(tmp_path / "leads.ndjson", format="ndjson", tags=["vip"])
    lines = (tmp_path / "leads.ndjson").read_bytes()
    assert (len(lines), lines.count(b"\n")) == (size, 2)
    assert (await mg.leads.try_import(OWNER, tmp_path / "leads.ndjson")).stored == 2
    assert (await mg.leads.erase("p0@mail.com")).erased.leads == 1
    with pytest.raises(NotFound):
        await mg.leads.get("p0@mail.com")


async def test_single_mails_are_accepted_once(mg: MailGenius) -> None:
    mails = [{"email": "ann@mail.com", "name": "Ann"}]
    first, again = [
        await mg.emails.send(
            OWNER, mails, lane="transactional", template=TEMPLATE, sender=SENDER, idempotency_key="receipt"
        )
        for _ in range(2)
    ]
    assert first == again
    assert (first.lane, len(first.ids)) == ("transactional", 1)
    with pytest.raises(NotFound):
        await mg.emails.get(first.ids[0])
    assert [one async for one in mg.emails.find(email="ann@mail.com")] == []


async def test_rejected_rows_are_saved(server: Server, mg: MailGenius, tmp_path: Path) -> None:
    accepted = await mg.leads.import_leads(OWNER, [lead(1)])
    assert await mg.leads.save_rejected(accepted.import_id, tmp_path / "rejected.csv") > 0
    assert (tmp_path / "rejected.csv").read_text().startswith("row,line,field,code,reason,content")


async def test_progress_is_got_watched_and_told(server: Server) -> None:
    service = await server.client(KeyScope.SERVICE)
    accepted = await service.leads.import_leads(OWNER, generated(10))
    progress = await service.progress.get(accepted)
    assert progress.id == (await service.progress.get(accepted.import_id, OWNER)).id == accepted.import_id
    assert (progress.total, progress.done, progress.ended_at) == (10, 0, None)

    told: list[OperationProgress] = []
    unsubscribe = await service.progress.subscribe(OWNER, told.append)
    finished = asyncio.create_task(service.progress.finished(accepted))
    await until(lambda: told)
    async with server.api.resources.database.connection() as connection:
        await chunk_done(connection, str(accepted.import_id), 0, stored=9, duplicate=1)
        await settle_progress(
            connection, accepted.import_id, OWNER, "done", 10, {"stored": 9, "duplicate": 1}, ended=True
        )
    async with asyncio.timeout(10):
        ended = await finished
    assert (ended.done, ended.counts["stored"], ended.state) == (10, 9, "done")
    await until(lambda: told[-1].ended_at is not None)
    await unsubscribe()

    again = [one async for one in service.progress.watch(operation=accepted)]
    assert again[-1].state == "done"
    async for update in service.progress.watch(OWNER):
        assert update.id == accepted.import_id
        break
    await service.progress.forget(accepted)
    assert [one async for one in service.progress.operations(OWNER)] == []


async def test_a_subscription_without_a_key_is_refused_at_once(server: Server) -> None:
    async with MailGenius(server.url, "mg_nobody") as nobody:
        with pytest.raises(Unauthenticated):
            await nobody.progress.subscribe(OWNER, print)
