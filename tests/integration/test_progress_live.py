"""Progress as it happens, over both ways, on a real socket."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from api.routes import progress_live
from core.settings import ProgressSettings, RedisSettings, Settings
from mailgenius import MailGenius
from mailgenius.event_stream import Event, EventReader
from schemas.ids import UserId
from schemas.states import KeyScope
from store.live import LiveCounts
from store.progress import settle_progress, write_progress
from tests.integration.api_client import CSV, IMPORT, OWNER, PROGRESS, SEND, STRANGER, Api, leads_csv, running_api
from tests.integration.served import served
from tests.orders import order

STREAM, SOCKET = f"{PROGRESS}/stream", f"{PROGRESS}/ws"
WITHIN = 10.0


@dataclass
class Server:
    api: Api
    url: str
    stack: AsyncExitStack

    async def events(self, user: UserId = OWNER, last: str | None = None, **query: Any) -> "Events":
        headers = {"Authorization": f"Bearer {await self.api.secret(user)}"} | ({"Last-Event-ID": last} if last else {})
        client = await self.stack.enter_async_context(
            httpx.AsyncClient(base_url=self.url, headers=headers, timeout=WITHIN)
        )
        answer = await self.stack.enter_async_context(client.stream("GET", STREAM, params=query))
        return Events(answer)

    async def socket(self, user: UserId = OWNER, query: str = "", **more: Any) -> ClientConnection:
        secret = await self.api.secret(user)
        made = connect(self.address(query), additional_headers={"Authorization": f"Bearer {secret}"}, **more)
        return await self.stack.enter_async_context(made)

    def address(self, query: str = "") -> str:
        return f"{self.url.replace('http', 'ws')}{SOCKET}{query}"

    async def heard(
        self, way: str, user: UserId = OWNER, operation: str | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Snapshots and changes, one after the other, either way."""
        if way == "sse":
            events = await self.events(user, **({"id": operation} if operation else {}))
            async for event in events:
                data = json.loads(event.data)
                yield {"event": event.name, "operations": data["operations"] if event.name == "snapshot" else [data]}
            return
        socket = await self.socket(user, f"?id={operation}" if operation else "")
        async for text in socket:
            message = json.loads(text)
            yield {
                "event": message["event"],
                "operations": message["operations"] if "operations" in message else [message["operation"]],
            }

    async def tell(self, import_id: str, stored: int, user: UserId = OWNER) -> None:
        counts = LiveCounts(UUID(import_id), {"stored": stored}, time.time(), 5.0)
        await self.api.resources.live.write({user: [counts]})

    async def end(self, import_id: str, stored: int) -> None:
        async with self.api.resources.database.connection() as connection:
            await settle_progress(connection, UUID(import_id), OWNER, "done", stored, {"stored": stored}, ended=True)


class Events:
    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.reader = EventReader()
        self.raw = b""

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for some in self.answer.aiter_bytes():
            self.raw += some
            for event in self.reader.feed(some):
                yield event


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Server]:
    async with running_api(settings) as api, served(api.app) as url, AsyncExitStack() as stack:
        yield Server(api, url, stack)


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    async with serving(settings) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> httpx.AsyncClient:
    return await server.api.client_of(OWNER)


async def new_import(client: httpx.AsyncClient, rows: int = 100) -> str:
    name: str = (await client.post(IMPORT, content=leads_csv(rows), headers=CSV)).json()["importId"]
    return name


async def until_heard(server: Server) -> None:
    """Both channels are."""
    listeners = server.api.resources.listeners
    async with asyncio.timeout(WITHIN):
        while not listeners.hears:
            await asyncio.sleep(0.01)


async def next_of(heard: AsyncIterator[Any]) -> Any:
    async with asyncio.timeout(WITHIN):
        return await anext(heard)


async def until_done(heard: AsyncIterator[dict[str, Any]], done: int) -> dict[str, Any]:
    """The first change that tells so much."""
    async with asyncio.timeout(WITHIN):
        async for told in heard:
            for operation in told["operations"]:
                if operation["done"] == done:
                    found: dict[str, Any] = operation
                    return found
    raise AssertionError("it was never told")


@pytest.mark.parametrize("way", ["sse", "ws"])
async def test_where_it_stands_and_then_what_changes(server: Server, client: httpx.AsyncClient, way: str) -> None:
    over, import_id = await new_import(client), await new_import(client)
    await server.end(over, 100)
    heard = server.heard(way)
    snapshot = await next_of(heard)
    assert snapshot["event"] == "snapshot"
    assert [(one["id"], one["state"]) for one in snapshot["operations"]] == [(import_id, "received"), (over, "done")]

    await until_heard(server)
    await server.tell(import_id, 40)
    told = await next_of(heard)
    assert (told["event"], told["operations"][0]["done"]) == ("progress", 40)
    assert (told["operations"][0]["rateNow"], told["operations"][0]["etaBasis"]) == (5.0, "now")
    await server.end(import_id, 100)
    told = await until_done(heard, 100)
    assert (told["state"], told["endedAt"] is None) == ("done", False)


@pytest.mark.parametrize("way", ["sse", "ws"])
async def test_what_begins_and_what_changes_its_state_is_told(
    server: Server, client: httpx.AsyncClient, way: str
) -> None:
    """Without a word from Redis."""
    heard = server.heard(way)
    assert (await next_of(heard))["operations"] == []
    await until_heard(server)
    made = await client.post(SEND, json=order([{"email": "a@mail.com"}], campaignId="spring"))
    assert made.status_code == 202, made.text
    send_id = made.json()["sendId"]
    states: list[str] = []
    while "running" not in states:
        [operation] = (await next_of(heard))["operations"]
        assert operation["id"] == send_id
        states.append(operation["state"])
    await client.post(f"{SEND}/pause", params={"campaignId": "spring"})
    assert (await next_of(heard))["operations"][0]["state"] == "paused"


async def test_an_operation_is_told_four_times_a_second_at_most_and_its_newest_state(
    server: Server, client: httpx.AsyncClient
) -> None:
    import_id = await new_import(client, 1_000)
    heard = server.heard("ws")
    await next_of(heard)
    await until_heard(server)
    begun = time.monotonic()
    for stored in range(1, 101):
        await server.tell(import_id, stored)
        await asyncio.sleep(0.01)
    told = [await next_of(heard)]
    while told[-1]["operations"][0]["done"] < 100:
        told.append(await next_of(heard))
    assert len(told) <= 4 * (time.monotonic() - begun) + 1


async def test_who_comes_back_hears_what_changed_meanwhile(server: Server, client: httpx.AsyncClient) -> None:
    """No snapshot, and nothing of what had ended long before."""
    old, ended, running = [await new_import(client) for _ in range(3)]
    await server.end(old, 100)
    async with server.api.resources.database.connection() as connection:
        await connection.execute(
            "UPDATE progress_tracking SET ended_at = now() - interval '1 hour' WHERE operation_id = $1", UUID(old)
        )
    events = await server.events()
    assert (await next_of(aiter(events))).name == "snapshot"
    assert events.reader.last_id
    await server.end(ended, 100)
    again = aiter(await server.events(last=events.reader.last_id))
    found = [await next_of(again) for _ in range(2)]
    assert [one.name for one in found] == ["progress", "progress"]
    assert {json.loads(one.data)["id"] for one in found} == {ended, running}
    for strange in ("x", "12", "9" * 14, "²"):
        assert (await next_of(aiter(await server.events(lastEventId=strange)))).name == "snapshot"


@pytest.mark.parametrize("way", ["sse", "ws"])
async def test_chosen_operations_alone_are_heard_until_all_have_ended(
    server: Server, client: httpx.AsyncClient, way: str
) -> None:
    chosen, other = await new_import(client), await new_import(client)
    heard = server.heard(way, operation=chosen)
    assert [one["id"] for one in (await next_of(heard))["operations"]] == [chosen]
    await until_heard(server)
    await server.tell(other, 7)
    await server.end(chosen, 100)
    async with asyncio.timeout(WITHIN):
        told = [told async for told in heard]
    assert {one["operations"][0]["id"] for one in told} == {chosen}
    assert [one["operations"][0]["endedAt"] is None for one in told[-2:]] in ([False], [True, False])


async def test_who_knows_that_all_chosen_have_ended_need_not_come_again(
    server: Server, client: httpx.AsyncClient
) -> None:
    import_id = await new_import(client)
    await server.end(import_id, 100)
    async with server.api.resources.database.connection() as connection:
        await connection.execute("UPDATE progress_tracking SET ended_at = now() - interval '1 hour'")
    events = await server.events(id=import_id)
    assert [event.name async for event in events] == ["snapshot"]
    again = await server.events(last=events.reader.last_id, id=import_id)
    assert again.answer.status_code == 204


async def test_nobody_hears_what_is_anothers(server: Server, client: httpx.AsyncClient) -> None:
    import_id = await new_import(client)
    stranger = await server.api.client_of(STRANGER)
    theirs = await new_import(stranger)
    heard = server.heard("ws", STRANGER)
    assert [one["id"] for one in (await next_of(heard))["operations"]] == [theirs]
    await until_heard(server)
    await server.tell(import_id, 5)
    await server.end(import_id, 100)
    await server.tell(theirs, 9, STRANGER)
    told = await next_of(heard)
    assert [(one["id"], one["done"]) for one in told["operations"]] == [(theirs, 9)]
    for unknown in (import_id, str(uuid4())):
        with pytest.raises(InvalidStatus) as caught:
            await server.socket(STRANGER, f"?id={unknown}")
        assert caught.value.response.status_code == 404
        assert (await server.events(STRANGER, id=unknown)).answer.status_code == 404


async def test_a_socket_needs_a_key_and_not_in_its_address(server: Server) -> None:
    secret = await server.api.secret(OWNER)
    service = await server.api.secret(None, KeyScope.SERVICE)
    bearer = {"Authorization": f"Bearer {service}"}
    refused: list[tuple[str, dict[str, Any], int]] = [
        ("", {}, 401),
        ("", {"additional_headers": {"X-API-Key": "mg_wrong"}}, 401),
        (f"?token={secret}&key={secret}&access_token={secret}", {}, 401),
        ("", {"additional_headers": bearer}, 422),
        ("?id=7", {"additional_headers": bearer}, 422),
    ]
    for query, more, status in refused:
        with pytest.raises(InvalidStatus) as caught:
            await connect(server.address(query), **more)
        assert caught.value.response.status_code == status
        assert json.loads(caught.value.response.body or b"")["error"]["code"]
    async with connect(server.address(f"?userId={OWNER}"), additional_headers=bearer) as socket:
        assert json.loads(await socket.recv())["event"] == "snapshot"


async def test_a_browser_offers_its_key_as_a_protocol(server: Server) -> None:
    secret = await server.api.secret(OWNER)
    offered = [Subprotocol("mailgenius.progress"), Subprotocol(f"mailgenius.key.{secret}")]
    async with connect(server.address(), subprotocols=offered) as socket:
        assert json.loads(await socket.recv())["event"] == "snapshot"
        assert socket.subprotocol == "mailgenius.progress"
    with pytest.raises(InvalidStatus):
        await connect(server.address(), subprotocols=[offered[0], Subprotocol("mailgenius.key.mg_x")])


async def test_a_key_that_is_revoked_ends_what_it_has_opened(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_live, "CHECK", 0.0)
    monkeypatch.setattr(progress_live, "HEARTBEAT", 0.05)
    monkeypatch.setattr(server.api.resources.keys, "_ttl", 0.0)
    socket, events = await server.socket(), await server.events()
    async with server.api.resources.database.connection() as connection:
        await connection.execute("UPDATE api_keys SET revoked_at = now()")
    async with asyncio.timeout(WITHIN):
        with pytest.raises(ConnectionClosed):
            await _all_of(socket)
        assert [event.name async for event in events] == ["snapshot"]
    assert socket.close_code == 4401


async def _all_of(socket: ClientConnection) -> None:
    while True:
        await socket.recv()


async def test_silence_is_broken_by_signs_of_life(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_live, "HEARTBEAT", 0.05)
    socket, events = await server.socket(), await server.events()
    found = [json.loads(await socket.recv())["event"] for _ in range(3)]
    assert found == ["snapshot", "heartbeat", "heartbeat"]
    async with asyncio.timeout(WITHIN):
        async for some in events.answer.aiter_bytes():
            events.raw += some
            if events.raw.endswith(b"\n\n:\n\n:\n\n"):
                break


async def test_there_is_room_for_so_many(settings: Settings) -> None:
    few = ProgressSettings(progress_listeners=3, progress_listeners_per_user=2)
    async with serving(settings.model_copy(update={"progress": few})) as server:
        first, _ = await server.socket(), await server.socket()
        third = await server.events()
        assert (third.answer.status_code, third.answer.headers["Retry-After"]) == (429, "5")
        assert (await server.events(STRANGER)).answer.status_code == 200
        assert (await server.events(UserId("third"))).answer.status_code == 503
        await first.close()
        async with asyncio.timeout(WITHIN):
            while (await server.events()).answer.status_code != 200:
                await asyncio.sleep(0.01)


async def test_a_process_that_stops_ends_what_listens(server: Server) -> None:
    socket, events = await server.socket(), await server.events()
    assert json.loads(await socket.recv())["event"] == "snapshot"
    server.api.resources.listeners.close()
    async with asyncio.timeout(WITHIN):
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert [event.name async for event in events] == ["snapshot"]
    assert socket.close_code == 1012
    assert (await server.events()).answer.status_code == 503


@pytest.mark.parametrize("way", ["sse", "ws"])
async def test_without_redis_it_is_looked_up(settings: Settings, way: str) -> None:
    away = settings.model_copy(update={"redis": RedisSettings(redis_port=1)})
    async with serving(away) as server:
        client = await server.api.client_of(OWNER)
        import_id = await new_import(client)
        heard = server.heard(way)
        await next_of(heard)
        async with server.api.resources.database.connection() as connection:
            await write_progress(connection, {UUID(import_id): {"stored": 60}})
        await until_done(heard, 60)
        await server.end(import_id, 100)
        assert (await until_done(heard, 100))["state"] == "done"


async def test_what_was_told_while_redis_did_not_hear_is_caught_up(server: Server, client: httpx.AsyncClient) -> None:
    import_id = await new_import(client)
    heard = server.heard("ws")
    await next_of(heard)
    await until_heard(server)
    redis = server.api.resources.redis
    await server.tell(import_id, 1)
    await until_done(heard, 1)
    assert await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    counts = LiveCounts(UUID(import_id), {"stored": 50}, time.time())
    key = server.api.resources.live._key(UUID(import_id))
    await redis.set(key, json.dumps({"operation_id": import_id, "counts": counts.counts, "at": counts.at}))
    await until_done(heard, 50)
    await until_heard(server)
    await server.tell(import_id, 70)
    await until_done(heard, 70)


async def test_what_changed_while_postgres_did_not_tell_is_caught_up(server: Server, client: httpx.AsyncClient) -> None:
    import_id = await new_import(client)
    heard = server.heard("sse")
    await next_of(heard)
    await until_heard(server)
    async with server.api.resources.database.connection() as connection:
        killed = await connection.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query ILIKE 'LISTEN%'"
        )
        assert killed == 1
    await server.end(import_id, 100)
    assert (await until_done(heard, 100))["state"] == "done"


async def test_who_has_left_is_forgotten(server: Server, client: httpx.AsyncClient) -> None:
    await new_import(client)
    listeners = server.api.resources.listeners
    for _ in range(3):
        socket, events = await server.socket(), await server.events()
        assert listeners.count == 2
        await socket.close()
        await events.answer.aclose()
        async with asyncio.timeout(WITHIN):
            while listeners.count:
                await asyncio.sleep(0.01)
    assert listeners._users == {}


async def test_the_python_client_is_told_and_does_not_ask(server: Server, client: httpx.AsyncClient) -> None:
    import_id = await new_import(client)
    secret = await server.api.secret(None, KeyScope.SERVICE)
    async with MailGenius(server.url, secret) as mg:
        told = mg.progress.watch(OWNER)
        assert (await next_of(told)).id == UUID(import_id)
        await until_heard(server)
        await server.tell(import_id, 30)
        update = await next_of(told)
        assert (update.done, update.rate_now, update.eta_basis) == (30, 5.0, "now")
        await told.aclose()
