import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from core.errors import Misconfigured
from core.settings import load
from devstack.postgres import Postgres
from store.migrations import ensure_partitions, first_id, migrate, migration_lock, read_migrations
from store.postgres import Database
from store.queries import SQL

HOT_PLANS = {
    "lease_users": "release_users_due",
    "claim_batch": "campaign_send_batches_pkey",
    "open_mails": "campaign_send_batches_open",
    "batches_to_publish": "campaign_send_batches_released",
    "releasable_sends": "campaign_sends_running",
    "read_batch": r"email_sends_\d+_\d+_pkey",
    "import_of_chunk": "lead_imports_counting",
    "open_chunks": "lead_import_batches_open",
    "unannounced_batches": "campaign_send_batches_unannounced",
    "list_progress": "progress_tracking_by_user",
    "open_operations": "progress_tracking_open",
    "operations_ended_since": "progress_tracking_ended",
    "operations_to_compare": "progress_tracking_open",
    "send_blocks": "campaign_send_batches_send_id_number_key",
    "import_blocks": "lead_import_batches_pkey",
    "list_imports": "lead_imports_by_user",
    "search_leads": "leads_pkey",
    "tag_leads": "leads_pkey",
    "mails_of_address": r"email_sends_\d+_\d+_email_key_send_id_idx",
    "read_mail": r"email_sends_\d+_\d+_pkey",
    "mail_of_id": "mail_keys_pkey",
    "suppress_bounced": r"email_sends_\d+_\d+_pkey",
    "places_of_mails": "mail_keys_pkey",
    "lock_feedback_mails": r"email_sends_\d+_\d+_pkey",
    "write_feedback": r"email_sends_\d+_\d+_pkey",
    "known_feedback": "feedback_events_pkey",
    "unannounced_feedback": "feedback_events_unannounced",
    "erase_feedback": "feedback_events_address",
    "list_suppressions": "suppressions_pkey",
    "suppressed_in_hand": r"(?s)campaign_send_batches_pkey.*email_sends_\d+_\d+_pkey.*suppressions_pkey",
    "mail_of_link": r"(?s)email_sends_\d+_\d+_pkey.*suppressions_pkey",
    "unannounced_unsubscribes": "unsubscribes_unannounced",
    "unended_sends": "campaign_sends_pkey",
    "erase_mails": r"email_sends_\d+_\d+_email_key_send_id_idx",
    "erase_rejects": "lead_rejects_pkey",
    "batch_outcomes": r"(?s)campaign_send_batches_pkey.*email_sends_\d+_\d+_pkey",
    "rejects_of_chunks": "lead_rejects_pkey",
    "lease_webhooks": "webhooks_due",
    "waiting_deliveries": "webhook_deliveries_waiting",
    "list_deliveries": "webhook_deliveries_of_webhook",
    "take_tests": "webhook_deliveries_tests",
    "wait_for_intake": "(?s)campaign_sends_(active|receiving).*campaign_sends_running.*campaign_sends_pkey",
}


async def test_every_statement_prepares(database: Database) -> None:
    async with database.connection() as connection:
        for name, statement in SQL.items():
            try:
                await connection.prepare(statement)
            except asyncpg.PostgresError as error:
                pytest.fail(f"{name}: {error}")


@pytest.mark.parametrize("name", HOT_PLANS)
async def test_hot_statements_use_their_index(database: Database, name: str) -> None:
    async with database.connection() as connection, connection.transaction():
        await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await connection.execute("SET LOCAL enable_seqscan = off")
        await connection.execute("SET LOCAL enable_bitmapscan = off")
        parameters = (await connection.prepare(SQL[name])).get_parameters()
        types = ", ".join(_sql_type(parameter) for parameter in parameters)
        await connection.execute(f"PREPARE hot ({types}) AS {SQL[name]}")
        values = ", ".join(f"'{uuid7()}'" if parameter.name == "uuid" else "NULL" for parameter in parameters)
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN EXECUTE hot ({values})"))
        await connection.execute("DEALLOCATE hot")
    assert re.search(HOT_PLANS[name], plan), plan


async def test_two_migrators_at_once_apply_each_migration_once(postgres: Postgres) -> None:
    dsn = postgres.dsn.rsplit("/", 1)[0]
    connection = await asyncpg.connect(f"{dsn}/postgres")
    await connection.execute("CREATE DATABASE two_migrators")

    async def one() -> list[str]:
        database = Database(load({"DATABASE_URL": f"{dsn}/two_migrators"}).postgres)
        await database.open()
        try:
            async with database.connection() as mine, migration_lock(mine):
                return await migrate(mine, read_migrations()) + await ensure_partitions(mine, datetime.now(UTC))
        finally:
            await database.close()

    try:
        first, second = await asyncio.gather(one(), one())
        assert sorted(first + second) == sorted(set(first + second))
        assert {migration.name for migration in read_migrations()} <= set(first + second)
    finally:
        await connection.execute("DROP DATABASE two_migrators WITH (FORCE)")
        await connection.close()


async def test_a_migration_that_was_changed_stops_everything(database: Database) -> None:
    changed = [replace(read_migrations()[0], sql="SELECT 1"), *read_migrations()[1:]]
    async with database.connection() as connection, migration_lock(connection):
        with pytest.raises(Misconfigured, match="0001_access was changed"):
            await migrate(connection, changed)


async def test_a_mail_goes_to_the_partition_of_its_sends_month(database: Database) -> None:
    async with database.connection() as connection:
        month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        await connection.execute(
            "INSERT INTO email_sends (send_id, position, user_id, email, email_key) VALUES ($1, 0, 'u', 'a@b.c', 'a@b.c')",
            first_id(month),
        )
        assert (
            await connection.fetchval("SELECT tableoid::regclass::text FROM email_sends")
            == f"email_sends_{month:%Y_%m}"
        )


def _sql_type(parameter: asyncpg.Type) -> str:
    return parameter.name.removesuffix("[]") + ("[]" if parameter.kind == "array" else "")
