"""One Faust app as one process: its settings, its start, and its end within a bounded time."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import faust
from faust import streams as faust_streams
from faust.transport import conductor

from core.errors import Misconfigured
from store import broker_away
from streams.consumer import SafeConsumer, install
from streams.intake import Handlers

log = logging.getLogger(__name__)

DRAIN_FOR = 20.0
"""Seconds handlers have to finish after SIGTERM. With LEAVE_FOR it is less than the 30 s an orchestrator waits."""
LEAVE_FOR = 5.0
"""Seconds to commit, leave the group and close connections."""
FETCH = 500
"""Records of one fetch at most. Of each partition it brings 1 MiB, or one record that is larger."""
CHUNKS_AHEAD = 20
"""Chunks of a partition that may be buffered when more are fetched: they are memory."""

Hook = Callable[[], Awaitable[None]]


class App(faust.App):
    """Says when it is ready, and leaves no directory behind.

    `ask_at`, by topic: with as many records of a partition in flight, more are fetched. Otherwise half of what may be.
    """

    consumer: SafeConsumer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.ready_file: Path | None = None
        self.ask_at: dict[str, int] = {}
        super().__init__(*args, **kwargs)

    async def on_first_start(self) -> None:
        """Faust would make a data directory in the working directory; tables live in memory."""

    def on_rebalance_end(self) -> None:
        super().on_rebalance_end()
        if self.ready_file is not None:
            self.ready_file.touch()


def make_app(
    group: str,
    *,
    bootstrap: str,
    partitions: int,
    max_poll_records: int = FETCH,
    commit_interval: float = 1.0,
) -> App:
    """An app that is a member of `group`. To be made inside the event loop that will run it.

    `bootstrap` is "host:port,host:port". `partitions` is how many this process may be given, over all source topics.
    Of each, two fetches of `max_poll_records` are buffered at most, and less where `ask_at` of its topic says so.
    """
    _check_extensions()
    install()
    broker_away.install()
    return App(
        group,
        broker=";".join(f"kafka://{address.strip()}" for address in bootstrap.split(",")),
        store="memory://",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=partitions,
        table_standby_replicas=0,
        broker_commit_interval=commit_interval,
        broker_max_poll_records=max_poll_records,
        # After a kill -9 the others wait for this long.
        broker_session_timeout=10.0,
        broker_heartbeat_interval=3.0,
        broker_rebalance_timeout=15.0,
        broker_request_timeout=30.0,
        # A consumer that holds all its partitions while Postgres is away does not fetch, and is not idle for that.
        broker_max_poll_interval=86_400.0,
        # What is fetched already must fit above the 80 % where Faust stops fetching, or one topic holds up the others.
        stream_buffer_maxsize=5 * partitions * max_poll_records,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
    )


def raw_topic(app: App, name: str, partitions: int) -> Any:
    """Keys and values as bytes, or None: what cannot be decoded must reach the handler, and from there the DLQ."""
    return app.topic(
        name,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        allow_empty=True,
        partitions=partitions,
    )


async def run(
    app: App, intakes: Sequence[Handlers[Any]], *, on_start: Hook | None = None, on_stop: Hook | None = None
) -> int:
    """Runs the app until SIGTERM or SIGINT and returns 0, or until it breaks and returns 1.

    `on_start` is through before the first record comes, `on_stop` begins after the last handler ended. READY_FILE names
    a file that is touched whenever the group has settled and the consumer stands where it should.
    """
    if ready_file := os.environ.get("READY_FILE"):
        app.ready_file = Path(ready_file)
    signalled = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    if on_start is not None:
        await on_start()
    try:
        ok = await _until_end(app, signalled)
        await _drain(app, intakes)
    finally:
        if on_stop is not None:
            await on_stop()
    return 0 if ok and not app.crashed else 1


async def _until_end(app: App, signalled: asyncio.Event) -> bool:
    starting = asyncio.create_task(app.start())
    ends = [asyncio.create_task(signalled.wait()), asyncio.create_task(app.wait_until_stopped())]
    await asyncio.wait([starting, *ends], return_when=asyncio.FIRST_COMPLETED)
    failed = starting.done() and starting.exception() is not None
    if failed:
        log.error("the app did not start", exc_info=starting.exception())
    else:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in (starting, *ends):
        task.cancel()
    return signalled.is_set() and not failed


async def _drain(app: App, intakes: Sequence[Handlers[Any]]) -> None:
    log.info("draining")
    app.consumer.stop_taking()
    # A crashed app has lost its place in the group: what handlers finish now will be repeated anyway.
    drained = await asyncio.gather(*(intake.drain(0 if app.crashed else DRAIN_FOR) for intake in intakes))
    if not all(drained):
        log.warning("some handlers were not through and were cancelled; their records will be read again")
    leaving = asyncio.create_task(_leave(app))
    _, late = await asyncio.wait([leaving], timeout=LEAVE_FOR)
    if late:
        log.critical("leaving takes more than %g s", LEAVE_FOR)
        logging.shutdown()
        # The consumer's thread is no daemon: it would keep the process alive.
        os._exit(1)
    leaving.result()


async def _leave(app: App) -> None:
    if not app.crashed:
        await app.consumer.force_commit()
    await app.stop()


def _check_extensions() -> None:
    if faust_streams._CStreamIterator is None or conductor.ConductorHandler is None:  # type: ignore[attr-defined]
        raise Misconfigured("Faust runs without its compiled parts, several times slower. Is NO_CYTHON set?")
