"""The contract's parts agree with one another, with the database and with the documents."""

import re
from enum import StrEnum
from pathlib import Path

import msgspec
import pytest

from schemas import states
from schemas.messages import BatchPointer, LeadChunk, ProgressEvent, UnknownVersion, decode_batch_pointer
from schemas.topics import CATALOGUE, DLQS, SOURCES
from store.queries import SQL

ROOT = Path(__file__).parents[2]
MIGRATIONS = "\n".join(path.read_text() for path in sorted((ROOT / "migrations").glob("*.sql")))

CHECKS = {
    ("lead_imports", "state"): states.ImportState,
    ("lead_imports", "on_conflict"): states.OnConflict,
    ("lead_import_batches", "state"): states.ChunkState,
    ("campaign_sends", "state"): states.SendState,
    ("campaign_sends", "on_doubt"): states.OnDoubt,
    ("campaign_send_batches", "state"): states.BatchState,
    ("email_sends", "state"): states.MailState,
    ("dkim_keys", "state"): states.DkimState,
    ("dkim_keys", "algorithm"): states.DkimAlgorithm,
    ("progress_tracking", "kind"): states.OperationKind,
    ("api_keys", "scope"): states.KeyScope,
    ("dead_letters", "state"): states.DeadLetterState,
    ("webhooks", "state"): states.WebhookState,
}


@pytest.mark.parametrize(("table", "column"), CHECKS)
def test_the_database_knows_just_these_states(table: str, column: str) -> None:
    body = re.search(rf"CREATE TABLE {table} \((.*?)^\)", MIGRATIONS, re.DOTALL | re.MULTILINE)
    assert body
    check = re.search(rf"CHECK \({column} IN \(([^)]*)\)\)", body[1])
    assert check
    assert set(re.findall(r"'(\w+)'", check[1])) == {state.value for state in CHECKS[table, column]}


@pytest.mark.parametrize(
    "kind",
    [
        states.ImportState,
        states.ChunkState,
        states.SendState,
        states.BatchState,
        states.MailState,
        states.DkimState,
        states.DeadLetterState,
        states.WebhookState,
    ],
)
def test_states_are_drawn_in_the_documents(kind: type[StrEnum]) -> None:
    text = (ROOT / "docs" / "states.md").read_text()
    section = text.split(f"## {kind.__name__}", 1)[1].split("\n## ", 1)[0]
    assert [state for state in kind if not re.search(rf"\b{state}\b", section)] == []


def test_every_source_topic_has_a_dlq_that_takes_a_little_more() -> None:
    for source, dlq in zip(SOURCES, DLQS, strict=True):
        assert dlq.name == source.dlq
        assert dlq.max_bytes > source.max_bytes


def test_topic_names_are_told_once() -> None:
    assert len({topic.name for topic in CATALOGUE}) == len(CATALOGUE)


def test_a_consumer_ignores_fields_it_does_not_know() -> None:
    value = b'{"v":1,"send_id":"%s","batch_id":"%s","epoch":2,"later":true}' % (
        (b"0" * 8 + b"-0000-7000-8000-" + b"0" * 12,) * 2
    )
    assert decode_batch_pointer(value).epoch == 2


def test_a_later_version_is_not_guessed_at() -> None:
    value = b'{"v":2,"send_id":"%s","batch_id":"%s","epoch":2}' % ((b"0" * 8 + b"-0000-7000-8000-" + b"0" * 12,) * 2)
    with pytest.raises(UnknownVersion, match="v=2"):
        decode_batch_pointer(value)


@pytest.mark.parametrize("kind", [LeadChunk, BatchPointer, ProgressEvent])
def test_every_message_carries_its_version(kind: type[msgspec.Struct]) -> None:
    assert "v" in kind.__struct_fields__


def test_every_statement_is_used() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "store").glob("*.py"))
    used = set(re.findall(r'SQL\["(\w+)"\]', code))
    assert used == set(SQL)


def test_every_index_names_the_statements_that_need_it() -> None:
    """An index without a query that needs it costs every write."""
    indexes = re.findall(r"^CREATE (?:UNIQUE )?INDEX (\w+)[^;]*;(.*)$", MIGRATIONS, re.MULTILINE)
    unnamed = [name for name, comment in indexes if not re.search(r"\w+\.sql: |idempotency|active", name + comment)]
    assert unnamed == []
    for file, names in re.findall(r"(\w+\.sql): ([\w, ]+)", MIGRATIONS):
        text = (ROOT / "store" / "queries" / file).read_text()
        assert [name for name in names.split(", ") if f"-- name: {name.strip()}\n" not in text] == [], file
