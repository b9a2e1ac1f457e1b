"""`python -m bench.dkim`: groups of 25 mails of 4 KB, signed and put on the wire: on the loop, on a thread, on processes."""

import asyncio
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dkim
import uvloop

from bench.measure import save
from bench.wire import CONNECTIONS, GROUP, envelope
from core.dkim import KeyPair, load_private, new_pair
from core.outcomes import Accepted
from devstack.sink_process import Sink
from mailer.dkim import Signer, SigningKey
from mailer.mime import Envelope
from mailer.pool import Connections
from mailer.relay import RelaySettings
from schemas.states import DkimAlgorithm, DkimCanonicalization

MAILS = int(os.environ.get("MAILS", "10000"))
WORKERS = os.cpu_count() or 1
TICK = 0.001
HOME = Path(".devstack/bench-dkim")
KEYS = {
    "rsa": [DkimAlgorithm.RSA],
    "ed25519": [DkimAlgorithm.ED25519],
    "rsa and ed25519": [DkimAlgorithm.RSA, DkimAlgorithm.ED25519],
}
DKIMPY_MAILS = 50

Sign = Callable[[Sequence[Envelope]], Awaitable[list[Envelope]]]
_of_process: list[Signer] = []


def signer(pairs: Sequence[KeyPair]) -> Signer:
    return Signer(
        [
            SigningKey(
                "example.com", pair.algorithm, pair.algorithm, DkimCanonicalization.RELAXED, load_private(pair.private)
            )
            for pair in pairs
        ]
    )


def headers(one: Signer, contents: Sequence[bytes]) -> list[bytes]:
    now = int(time.time())
    return [one.headers(content, now) for content in contents]


def begin_process(pairs: Sequence[KeyPair]) -> None:
    _of_process.append(signer(pairs))


def headers_in_process(contents: Sequence[bytes]) -> list[bytes]:
    return headers(_of_process[0], contents)


async def unsigned(group: Sequence[Envelope]) -> list[Envelope]:
    return list(group)


def on_loop(pairs: Sequence[KeyPair]) -> Sign:
    one = signer(pairs)

    async def sign(group: Sequence[Envelope]) -> list[Envelope]:
        return _with(group, headers(one, [mail.content for mail in group]))

    return sign


def elsewhere(executor: Executor, work: Callable[..., list[bytes]], *more: Any) -> Sign:
    async def sign(group: Sequence[Envelope]) -> list[Envelope]:
        loop = asyncio.get_running_loop()
        contents = [mail.content for mail in group]
        return _with(group, await loop.run_in_executor(executor, work, *more, contents))

    return sign


def _with(group: Sequence[Envelope], found: Sequence[bytes]) -> list[Envelope]:
    return [mail._replace(content=head + mail.content) for mail, head in zip(group, found, strict=True)]


async def run(sink: Sink, sign: Sign, groups: int) -> dict[str, float]:
    """Mails a second, and how late a timer of a millisecond is meanwhile."""
    group = [envelope(position) for position in range(GROUP)]
    pool = Connections(RelaySettings(sink.host, sink.port, "bench.example", CONNECTIONS, 1_000_000))
    todo = iter(range(groups))
    late: list[float] = []

    async def send() -> None:
        for _ in todo:
            mails = await sign(group)
            async with pool.connection() as connection:
                found = await connection.send(mails)
            if not all(type(one) is Accepted for one in found):
                raise AssertionError(found)

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK)
            late.append(time.perf_counter() - before - TICK)

    ticking = asyncio.create_task(tick())
    await sign(group)  # threads and processes are there, then
    begun, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(send() for _ in range(CONNECTIONS)))
    seconds, cpu = time.perf_counter() - begun, time.process_time() - used
    ticking.cancel()
    await pool.close(5)
    late.sort()
    mails = groups * GROUP
    return {
        "mails_per_s": round(mails / seconds),
        "cpu_us_per_mail": round(cpu * 1e6 / mails, 1),
        "loop_late_ms_p50": round(late[len(late) // 2] * 1e3, 2),
        "loop_late_ms_p99": round(late[len(late) * 99 // 100] * 1e3, 2),
    }


def measure(sink: Sink, pairs: Sequence[KeyPair]) -> dict[str, dict[str, float]]:
    groups = MAILS // GROUP
    spawn = multiprocessing.get_context("spawn")
    with (
        ThreadPoolExecutor(1) as thread,
        ThreadPoolExecutor(WORKERS) as threads,
        ProcessPoolExecutor(WORKERS, spawn, begin_process, (pairs,)) as processes,
    ):
        one = signer(pairs)
        ways = {
            "on the loop": on_loop(pairs),
            "one thread": elsewhere(thread, headers, one),
            f"{WORKERS} threads": elsewhere(threads, headers, one),
            f"{WORKERS} processes": elsewhere(processes, headers_in_process),
        }
        return {name: uvloop.run(run(sink, sign, groups)) for name, sign in ways.items()}


def alone(pairs: Sequence[KeyPair]) -> float:
    """Microseconds a mail, with nothing beside."""
    one, contents = signer(pairs), [envelope(position).content for position in range(GROUP)]
    begun = time.process_time()
    for _ in range(20):
        headers(one, contents)
    return round((time.process_time() - begun) * 1e6 / (20 * GROUP), 1)


def by_dkimpy(pair: KeyPair) -> float:
    content = envelope(0).content
    pem = b"-----BEGIN PRIVATE KEY-----\n" + pair.private.encode() + b"\n-----END PRIVATE KEY-----\n"
    begun = time.process_time()
    for _ in range(DKIMPY_MAILS):
        dkim.sign(content, b"rsa", b"example.com", pem, canonicalize=(b"relaxed", b"relaxed"))
    return round((time.process_time() - begun) * 1e6 / DKIMPY_MAILS, 1)


def main() -> None:
    pairs = {algorithm: new_pair(algorithm) for algorithm in DkimAlgorithm}
    with Sink(HOME, keep=0) as sink:
        result: dict[str, Any] = {
            "mails": MAILS,
            "unsigned": uvloop.run(run(sink, unsigned, MAILS // GROUP)),
            "sign_us_alone": {name: alone([pairs[one] for one in kinds]) for name, kinds in KEYS.items()},
            "dkimpy_rsa_us": by_dkimpy(pairs[DkimAlgorithm.RSA]),
            "signed": {name: measure(sink, [pairs[one] for one in kinds]) for name, kinds in KEYS.items()},
        }
    print(save("dkim", result).read_text())


if __name__ == "__main__":
    main()
