"""Imports on whole processes: an API that is killed, servers that go away, users beside one another, hostile bodies."""

import gzip
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from devstack.once import run_all_once
from devstack.processes import BEFORE, PROCESSES, Processes, full_environment
from devstack.sample import make_sample
from devstack.server import Server
from devstack.stack import Stack
from tests.acceptance.conftest import IMPORT, System

CSV, NDJSON = {"Content-Type": "text/csv"}, {"Content-Type": "application/x-ndjson"}
NEEDED = ("api", "leads", "progress", "maintenance")
PIECE = 64 * 1024


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Of its own: its servers are stopped in here."""
    with Stack(tmp_path_factory.mktemp("imports"), durable=False) as stack:
        run_all_once(BEFORE, full_environment(stack))
        with Processes(stack, [one for one in PROCESSES if one.name in NEEDED]) as processes:
            system = System(stack, processes)
            yield system
            while system.clients:
                system.clients.pop().close()


def new_client(system: System) -> tuple[httpx.Client, str]:
    user = f"u{uuid4().hex[:8]}"
    return system.client(user), user


def pieces(data: bytes, meanwhile: Mapping[float, Callable[[], object]] | None = None) -> Iterator[bytes]:
    """`meanwhile`: what to do at which share of the data."""
    waiting = sorted((meanwhile or {}).items())
    for at in range(0, len(data), PIECE):
        while waiting and at >= waiting[0][0] * len(data):
            waiting.pop(0)[1]()
        yield data[at : at + PIECE]


def until_done(system: System, client: httpx.Client, import_id: str, within: float = 60) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def done() -> bool:
        try:
            answer = client.get(IMPORT, params={"importId": import_id})
        except httpx.TransportError:
            return False
        found.update(answer.json() if answer.is_success else {})
        return found.get("state") in ("done", "cancelled")

    system.until(done, within)
    return found


def upload_until_taken(system: System, client: httpx.Client, data: bytes, key: str, within: float = 60) -> str:
    """As a client is told to: the same again with the same key, as long as nobody is there."""
    deadline = time.monotonic() + within
    while True:
        system.processes.restart_dead(lambda said: None)
        try:
            answer = client.post(IMPORT, content=pieces(data), headers=CSV | {"Idempotency-Key": key})
            assert answer.status_code in (202, 503), answer.text
            if answer.status_code == 202:
                import_id: str = answer.json()["importId"]
                return import_id
            assert int(answer.headers["Retry-After"]) > 0
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "it was not taken in time"
        time.sleep(0.3)


SAMPLE = make_sample(60_000)


def check(system: System, client: httpx.Client, user: str, import_id: str, within: float = 60) -> None:
    """rows = stored + duplicate + rejected + dead, and each lead is there once."""
    found = until_done(system, client, import_id, within)
    assert found["rows"] == SAMPLE.rows
    assert found["counts"] == {
        "stored": SAMPLE.stored,
        "duplicate": SAMPLE.duplicate,
        "rejected": SAMPLE.rejected,
        "dead": 0,
    }
    assert system.ledger(user).leads == SAMPLE.stored
    assert len(client.get(IMPORT).json()["imports"]) == 1


@pytest.mark.parametrize("share", [0.02, 0.4, 0.95])
def test_an_api_that_is_killed_in_mid_upload_costs_nothing(system: System, share: float) -> None:
    client, user = new_client(system)

    def kill() -> None:
        os.kill(system.processes.pids()["api"], signal.SIGKILL)

    with pytest.raises(httpx.TransportError):
        client.post(IMPORT, content=pieces(SAMPLE.data, {share: kill}), headers=CSV | {"Idempotency-Key": "k"})
    check(system, client, user, upload_until_taken(system, client, SAMPLE.data, "k"))


def _away(server: Server, seconds: float) -> None:
    server.stop()
    time.sleep(seconds)
    server.start()


def _upload_while_away(system: System, name: str, seconds: float) -> httpx.Response:
    """The server goes away in mid-upload; whatever the client is told, the same upload again completes the import."""
    client, user = new_client(system)
    client.timeout = httpx.Timeout(2 * seconds + 60)
    server: Server = getattr(system.stack, name)
    with ThreadPoolExecutor() as pool:
        away: list[Future[None]] = []
        body = pieces(
            SAMPLE.data, {0.3: lambda: away.append(pool.submit(_away, server, seconds)), 0.35: lambda: time.sleep(1)}
        )
        begun = time.monotonic()
        answer = client.post(IMPORT, content=body, headers=CSV | {"Idempotency-Key": "k"})
        assert time.monotonic() - begun < seconds + 40
        away[0].result()
    if answer.status_code != 202:
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), answer.text
    check(system, client, user, upload_until_taken(system, client, SAMPLE.data, "k"), within=120)
    return answer


@pytest.mark.parametrize("name", ["kafka", "postgres"])
def test_a_server_that_is_away_for_seconds_costs_nothing(system: System, name: str) -> None:
    _upload_while_away(system, name, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kafka", "postgres"])
def test_a_server_that_is_away_for_a_minute_costs_a_second_upload(system: System, name: str) -> None:
    assert _upload_while_away(system, name, 60).status_code == 503


@pytest.mark.parametrize("name", ["kafka", "postgres"])
def test_while_a_server_is_away_an_upload_is_told_so_at_once(system: System, name: str) -> None:
    client, user = new_client(system)
    client.get(IMPORT)
    server: Server = getattr(system.stack, name)
    server.stop()
    try:
        begun = time.monotonic()
        answer = client.post(IMPORT, content=pieces(SAMPLE.data), headers=CSV | {"Idempotency-Key": "k"})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert time.monotonic() - begun < 6
    finally:
        server.start()
    check(system, client, user, upload_until_taken(system, client, SAMPLE.data, "k"))


FEW = b"email,name\n" + b"".join(b"few%d@example.com,F\n" % number for number in range(100))


def _timed(system: System, client: httpx.Client) -> float:
    begun = time.monotonic()
    answer = client.post(IMPORT, content=FEW, headers=CSV)
    assert answer.status_code == 202
    until_done(system, client, answer.json()["importId"])
    return time.monotonic() - begun


@pytest.mark.slow
def test_a_hundred_rows_beside_many_are_soon_done(system: System) -> None:
    small, _ = new_client(system)
    large, user = new_client(system)
    alone = min(_timed(system, small) for _ in range(3))
    rows = b"".join(b"many%d@example.com,Name %d\n" % (number, number) for number in range(200_000))
    data = b"email,name\n" + rows
    with ThreadPoolExecutor() as pool:
        upload = pool.submit(large.post, IMPORT, content=pieces(data), headers=CSV)
        system.until(lambda: system.ledger(user).leads > 20_000)
        beside = _timed(system, small)
        unfinished = system.ledger(user).leads < 200_000
        answer = upload.result()
    assert beside < 1.5 * alone + 2
    assert unfinished, "the large one was too quick to say anything"
    assert until_done(system, large, answer.json()["importId"])["counts"]["stored"] == 200_000


def test_a_cancelled_import_stops_within_a_second(system: System) -> None:
    client, user = new_client(system)
    rows = b"".join(b"c%d@example.com,Name %d\n" % (number, number) for number in range(300_000))
    told = threading.Event()

    def upload() -> httpx.Response:
        body = pieces(b"email,name\n" + rows, {0.001: told.set})
        return client.post(IMPORT, content=body, headers=CSV)

    with ThreadPoolExecutor() as pool:
        uploading = pool.submit(upload)
        told.wait()
        system.until(lambda: system.ledger(user).leads > 5_000)
        (summary,) = client.get(IMPORT).json()["imports"]
        assert client.delete(IMPORT, params={"importId": summary["importId"]}).is_success
        time.sleep(1)  # what it may take
        after = system.ledger(user).leads
        assert uploading.result().status_code in (202, 409)
    assert after < 300_000

    def nothing_waits() -> bool:
        found = client.get(IMPORT, params={"importId": summary["importId"]}).json()
        return bool(found["batches"]["published"] == 0)

    system.until(nothing_waits)
    assert system.ledger(user).leads == after


# Hostile bodies


def _rows(count: int) -> bytes:
    return b"".join(b"p%d@example.com,P\n" % number for number in range(count))


def _long_rows(size: int) -> bytes:
    note = b"n" * 1_900
    return b"".join(b"p%d@example.com,%s\n" % (number, note) for number in range(size // 1_930))


MANY_COLUMNS = b"email," + b",".join(b"c%d" % number for number in range(100_000))
MUCH = 50 * 2**20
LONG = _long_rows(MUCH)

Body = Callable[[], bytes]
REFUSED: Mapping[str, tuple[Body, dict[str, str], str, str]] = {
    "empty": (lambda: b"", CSV, "", "empty"),
    "empty ndjson": (lambda: b"\n \n", NDJSON, "", "empty"),
    "no header": (lambda: _rows(1_000), CSV, "columns", "no column is named email"),
    "an unbalanced quote in the header": (lambda: b'"email,name\n' + LONG, CSV, "columns", "a quote"),
    "100,000 columns": (lambda: MANY_COLUMNS + b"\n" + _rows(10), CSV, "columns", "length"),
    "a header of 50 MB": (lambda: b"email," + b"x" * MUCH, CSV, "columns", "length"),
    "300 columns": (lambda: MANY_COLUMNS[:1_200] + b"\n", CSV, "columns", "at most 200"),
    "binary": (lambda: bytes(range(128, 256)) * 8_000, CSV, "columns", "encoding"),
    "control characters": (lambda: bytes(range(256)) * 4_000, CSV, "columns", "control character"),
    "a header name twice": (lambda: b"email,city,city\na@example.com,X,Y\n", CSV, "columns", "two columns"),
    "email twice": (lambda: b"E-Mail,Email Address\n", CSV, "columns", "more than one column"),
    "UTF-16": (lambda: "email\na@example.com\n".encode("utf-16"), CSV, "encoding", "UTF-16"),
    "a gzip bomb": (
        lambda: gzip.compress(b"email,note\na@example.com," + b"x" * 2 * MUCH),
        CSV | {"Content-Encoding": "gzip"},
        "",
        "more than 200 times",
    ),
    "gzip cut short": (
        lambda: gzip.compress(b"email,name\n" + _rows(5_000))[:-10],
        CSV | {"Content-Encoding": "gzip"},
        "",
        "ends early",
    ),
    "no gzip": (lambda: b"email\n", CSV | {"Content-Encoding": "gzip"}, "", "corrupt"),
}
TAKEN: Mapping[str, tuple[Body, dict[str, str], tuple[int, int, int]]] = {
    "header only": (lambda: b"email,name\n", CSV, (0, 0, 0)),
    "wrong column counts": (lambda: b"email,name\na@example.com\nb@example.com,B,x\nc@example.com,C\n", CSV, (1, 0, 2)),
    "an unbalanced quote at the top": (
        lambda: b'email,note\n"a@example.com,x\n' + LONG,
        CSV,
        (LONG.count(b"\n"), 0, 1),
    ),
    "a field of 50 MB": (
        lambda: b"email,note\na@example.com," + b"x" * MUCH + b"\nb@example.com,B\n",
        CSV,
        (1, 0, 1),
    ),
    "a value of 50 MB": (
        lambda: b'{"email":"a@example.com","note":"' + b"x" * MUCH + b'"}\n{"email":"b@example.com"}\n',
        NDJSON,
        (1, 0, 1),
    ),
    "mixed encodings": (
        lambda: "email,name\na@example.com,Zoë\n".encode() + "b@example.com,Zoë\n".encode("latin-1"),
        CSV,
        (1, 0, 1),
    ),
    "a body that ends in mid-row": (lambda: b"email,name\na@example.com,A\nb@exam", CSV, (1, 0, 1)),
    "all rejected": (lambda: b"email\n" + b"".join(b"x%d\n" % number for number in range(10_000)), CSV, (0, 0, 10_000)),
    "all the same": (lambda: b"email\n" + b"Same@example.com\n" * 10_000, CSV, (1, 9_999, 0)),
    "binary lines": (lambda: bytes(range(32, 256)) * 100 + b"\n", NDJSON, (0, 0, 1)),
}
FLAT_MB = 32
"""What the API may grow by in all of this, beyond an import like any other: less than one of the bodies has."""


def _memory_mb(system: System, name: str = "VmHWM") -> float:
    status = Path(f"/proc/{system.processes.pids()['api']}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) / 1024


@pytest.fixture(scope="module")
def warm(system: System) -> float:
    """The API's memory after an import like any other."""
    client, _ = new_client(system)
    answer = client.post(IMPORT, content=pieces(SAMPLE.data), headers=CSV)
    until_done(system, client, answer.json()["importId"])
    return _memory_mb(system)


def _next_one_works(system: System, client: httpx.Client) -> None:
    answer = client.post(IMPORT, content=b"email\nnext@example.com\n", headers=CSV)
    assert answer.status_code == 202
    assert until_done(system, client, answer.json()["importId"])["counts"]["stored"] == 1


@pytest.mark.parametrize("name", REFUSED)
def test_a_body_that_is_none_is_refused_with_its_reason(system: System, warm: float, name: str) -> None:
    body, headers, field, reason = REFUSED[name]
    client, _ = new_client(system)
    answer = client.post(IMPORT, content=pieces(body()), headers=headers)
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error.get("field", ""), reason in error["message"]) == (field, True), error
    assert _memory_mb(system) - warm < FLAT_MB
    _next_one_works(system, client)


@pytest.mark.parametrize("name", TAKEN)
def test_rows_that_are_none_are_rejected_and_the_others_stored(system: System, warm: float, name: str) -> None:
    body, headers, ends = TAKEN[name]
    client, _ = new_client(system)
    answer = client.post(IMPORT, content=pieces(body()), headers=headers)
    assert answer.status_code == 202, answer.text
    counts = until_done(system, client, answer.json()["importId"])["counts"]
    assert (counts["stored"], counts["duplicate"], counts["rejected"]) == ends
    assert _memory_mb(system) - warm < FLAT_MB
    _next_one_works(system, client)


def _connect(system: System, client: httpx.Client, length: str, body: bytes) -> socket.socket:
    """A request with this Content-Length and this body."""
    host, port = system.processes.api_url.removeprefix("http://").split(":")
    head = f"POST {IMPORT} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {client.headers['Authorization']}\r\n"
    head += f"Content-Type: text/csv\r\nContent-Length: {length}\r\n\r\n"
    connection = socket.create_connection((host, int(port)), 10)
    connection.sendall(head.encode() + body)
    return connection


def _answer(connection: socket.socket) -> bytes:
    with connection:
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_wrong_content_length_harms_nobody(system: System) -> None:
    client, user = new_client(system)
    body = b"email,name\na@example.com,A\nb@example.com,B\n"
    for length in ("nonsense", "-1"):
        assert _answer(_connect(system, client, length, body)).startswith(b"HTTP/1.1 400")
    # What is behind the length is another request, and none.
    assert b"HTTP/1.1 400" in _answer(_connect(system, client, str(len(body) - 16), body))
    with _connect(system, client, str(len(body) + 1_000), body):
        pass
    many = b"email,name\n" + _rows(1_500)

    def stored() -> bool:
        return system.ledger(user).leads >= 1_000

    with _connect(system, client, str(len(many) + 100_000_000), many):
        system.until(stored)
    states = {one["state"] for one in client.get(IMPORT).json()["imports"]}
    assert states <= {"receiving", "received", "done"}
    assert "receiving" in states  # until maintenance sees that it does not move
    _next_one_works(system, client)
