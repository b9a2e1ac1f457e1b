"""`python -m streams worker KIND`, `release`, `maintenance`, `webhooks`; and what is run once: `--help` lists it."""

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
from store.dkim import rotate_dkim_keys
from store.feedback_sources import rotate_secrets
from store.keys import create_key
from store.migrations import ensure_partitions, migrate, migration_lock, read_migrations
from store.postgres import Database
from store.relays import rotate_passwords
from store.release import set_weight
from store.topics import create_topics
from store.webhooks import rotate_webhook_secrets
from streams.check import run_check
from streams.dkim_keys import add_parser, run_dkim
from streams.partitions import run_partitions
from streams.recover import run_recover

LIGHTEST, HEAVIEST = 0.01, 100.0

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
    worker.add_argument("kind", choices=["leads", "emails", "transactional", "progress"])
    commands.add_parser("release", help="let waiting mails go, within limits")
    commands.add_parser("maintenance", help="rescue, republish, materialise, finish")
    commands.add_parser("webhooks", help="post events to webhooks")
    commands.add_parser("migrate", help="bring the database to the newest schema")
    commands.add_parser("topics", help="create the topics that are missing")
    commands.add_parser(
        "recover", help="after Kafka lost its data: release again from the ledger, name what is missing"
    )
    commands.add_parser("doctor", help="one line for each thing we need: is it there, how is it, what to do")
    check = commands.add_parser("check", help="hold ledger, Kafka, Redis and progress against each other")
    check.add_argument("--all", action="store_true", help="every send there is: reads all mails")
    check.add_argument("--repair", action="store_true", help="say what would be done about it")
    check.add_argument("--yes", action="store_true", help="with --repair: do it")
    partitions = commands.add_parser("partitions", help="list the months of mails, or take one out of the table")
    chosen = partitions.add_mutually_exclusive_group()
    chosen.add_argument("--list", action="store_true", help="rows and size of each; so without any option")
    chosen.add_argument("--detach", metavar="YYYY-MM", help="a month that is over, with all its sends")
    commands.add_parser("rotate-secrets", help="encrypt stored passwords and secrets with the first of SECRET_KEYS")
    add_parser(commands)
    key = commands.add_parser("key", help="make an API key and print it, the only time it can be read")
    key.add_argument("--scope", choices=[scope.value for scope in KeyScope], required=True)
    key.add_argument("--name", required=True)
    key.add_argument("--user", help="the user a user key is bound to")
    weight = commands.add_parser("weight", help="set a user's share while several send")
    weight.add_argument("--user", required=True)
    weight.add_argument("--weight", type=_weight, required=True, help="1 is everybody's; 2 gets twice as much")
    return parser


def _run(chosen: argparse.Namespace, settings: Settings) -> int:
    if chosen.command == "worker":
        from streams.workers import WORKERS  # Faust is slow to import, and no other command needs it

        spare_the_collector()
        return uvloop.run(WORKERS[chosen.kind](settings))  # type: ignore[arg-type]
    if chosen.command in ("release", "maintenance", "webhooks"):
        from streams.loops import run_loop

        spare_the_collector()
        return uvloop.run(run_loop(chosen.command, settings))
    if chosen.command == "migrate":
        return asyncio.run(_migrate(settings))
    if chosen.command == "topics":
        made = asyncio.run(create_topics(settings.kafka))
        print("\n".join(made) if made else "all topics are there")
        return 0
    if chosen.command == "recover":
        return asyncio.run(run_recover(settings))
    if chosen.command == "doctor":
        from streams.doctor import run_doctor  # and the mailer with it

        return asyncio.run(run_doctor(settings))
    if chosen.command == "check":
        really = chosen.repair and chosen.yes
        return asyncio.run(run_check(settings, everything=chosen.all, repair=chosen.repair, really=really))
    if chosen.command == "partitions":
        return asyncio.run(run_partitions(settings, chosen.detach))
    if chosen.command == "weight":
        return asyncio.run(_weigh(settings, UserId(chosen.user), chosen.weight))
    if chosen.command == "dkim":
        return asyncio.run(run_dkim(chosen, settings))
    if chosen.command == "rotate-secrets":
        return asyncio.run(_rotate(settings))
    return asyncio.run(_key(chosen, settings))


def _weight(text: str) -> float:
    weight = float(text)
    if not LIGHTEST <= weight <= HEAVIEST:
        raise argparse.ArgumentTypeError(f"a weight is from {LIGHTEST:g} to {HEAVIEST:g}")
    return weight


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


async def _weigh(settings: Settings, user_id: UserId, weight: float) -> int:
    database = Database(settings.postgres)
    await database.open()
    try:
        async with database.connection() as connection:
            await set_weight(connection, user_id, weight)
    finally:
        await database.close()
    print(f"{user_id} has weight {weight:g}")
    return 0


async def _rotate(settings: Settings) -> int:
    """1 when there is a password, or a secret, that none of the keys decrypts."""
    database = Database(settings.postgres)
    await database.open()
    try:
        async with database.connection() as connection:
            done, lost = await rotate_passwords(connection, settings.relays.ring)
            more_done, more_lost = await rotate_secrets(connection, settings.relays.ring)
            keys_done, keys_lost = await rotate_dkim_keys(connection, settings.relays.ring)
            hooks_done, hooks_lost = await rotate_webhook_secrets(connection, settings.relays.ring)
            done, lost = done + more_done + keys_done + hooks_done, lost + more_lost + keys_lost + hooks_lost
    finally:
        await database.close()
    print(f"{done} passwords, secrets and private keys encrypted anew")
    if lost:
        print(f"streams rotate-secrets: {lost} of them cannot be decrypted by any of SECRET_KEYS", file=sys.stderr)
    return 1 if lost else 0


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
