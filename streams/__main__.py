"""`python -m streams worker leads|emails|progress`, `release`, `maintenance`; once: `migrate`, `topics`, `key`."""

import argparse
import asyncio
import gc
import sys
from datetime import UTC, datetime

import structlog
import uvloop

from core.errors import QueueError
from core.logs import configure_logging
from core.settings import Settings, load
from schemas.ids import UserId
from schemas.states import KeyScope
from store.keys import create_key
from store.migrations import ensure_partitions, migrate, migration_lock, read_migrations
from store.postgres import Database
from store.topics import create_topics

log = structlog.get_logger("streams")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 1 with one line on standard error for what can be told in one."""
    chosen = _parser().parse_args(arguments)
    try:
        settings = load()
        configure_logging(settings.process.log_level)
        return _run(chosen, settings)
    except QueueError as error:
        print(f"streams {chosen.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m streams", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    worker = commands.add_parser("worker", help="read topics with Faust until SIGTERM")
    worker.add_argument("kind", choices=["leads", "emails", "progress"])
    commands.add_parser("release", help="let waiting mails go, within limits")
    commands.add_parser("maintenance", help="rescue, republish, materialise, finish")
    commands.add_parser("migrate", help="bring the database to the newest schema")
    commands.add_parser("topics", help="create the topics that are missing")
    key = commands.add_parser("key", help="make an API key and print it, the only time it can be read")
    key.add_argument("--scope", choices=[scope.value for scope in KeyScope], required=True)
    key.add_argument("--name", required=True)
    key.add_argument("--user", help="the user a user key is bound to")
    return parser


def _run(chosen: argparse.Namespace, settings: Settings) -> int:
    if chosen.command == "worker":
        from streams.workers import WORKERS  # Faust is slow to import, and no other command needs it

        spare_the_collector()
        return uvloop.run(WORKERS[chosen.kind](settings))  # type: ignore[arg-type]
    if chosen.command in ("release", "maintenance"):
        from streams.loops import run_loop

        spare_the_collector()
        return uvloop.run(run_loop(chosen.command, settings))
    if chosen.command == "migrate":
        return asyncio.run(_migrate(settings))
    if chosen.command == "topics":
        made = asyncio.run(create_topics(settings.kafka))
        print("\n".join(made) if made else "all topics are there")
        return 0
    return asyncio.run(_key(chosen, settings))


def spare_the_collector() -> None:
    """A chunk is thousands of objects that live for a moment: with Python's thresholds the collector walks over all that
    was imported for each one (measured: a fifth of the CPU of worker leads).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


async def _migrate(settings: Settings) -> int:
    database = Database(settings.postgres)
    await database.open()
    try:
        async with database.connection() as connection, migration_lock(connection):
            done = await migrate(connection, read_migrations())
            done += await ensure_partitions(connection, datetime.now(UTC))
    finally:
        await database.close()
    print("\n".join(done) if done else "the schema is up to date")
    return 0


async def _key(chosen: argparse.Namespace, settings: Settings) -> int:
    scope = KeyScope(chosen.scope)
    if (scope is KeyScope.USER) != bool(chosen.user):
        print("streams key: --user belongs to --scope user, and to no other", file=sys.stderr)
        return 1
    database = Database(settings.postgres)
    await database.open()
    try:
        async with database.connection() as connection:
            print(await create_key(connection, chosen.name, scope, UserId(chosen.user) if chosen.user else None))
    finally:
        await database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
