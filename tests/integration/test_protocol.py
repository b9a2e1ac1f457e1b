"""The ledger protocol holds whatever the order of its steps, and a fence that is missing is noticed."""

import asyncio

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from core.settings import load
from store import batches as store_batches
from store import release as store_release
from store import sends as store_sends
from store import workers as store_workers
from store.postgres import Database
from store.queries import SQL
from tests.integration.protocol import Protocol

SHORT = settings(
    max_examples=100,
    stateful_step_count=50,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_sends, "CANCEL_PAGE", 3)
    monkeypatch.setattr(store_sends, "DEFERRED_PAGE", 2)


def _drive(environment: dict[str, str], how: settings) -> None:
    with asyncio.Runner() as runner:
        database = Database(load(environment).postgres)
        runner.run(database.open())
        try:
            run_state_machine_as_test(lambda: Protocol(runner.run, database), settings=how)
        finally:
            runner.run(database.close())


LONG = settings(SHORT, max_examples=400, stateful_step_count=60)

# A statement, what of it is a fence, and what stands there instead. Outcomes have two fences, each of which would do alone.
BROKEN: dict[str, tuple[str, ...]] = {
    "a claim of any epoch": ("claim_batch", "b.epoch = $2", "b.epoch >= $2"),
    "a claim of what is claimed": ("claim_batch", "b.state = 'released' OR", "b.state IN ('released', 'claimed') OR"),
    "a claim for a stopped send": ("claim_batch", "s.state = 'running'", "s.state <> 'done'"),
    "outcomes of anybody, whatever became of the batch": (
        "fence_batches",
        "b.epoch = mine.epoch AND b.worker = $3 AND b.state = 'claimed'",
        "$3::uuid IS NOT NULL",
        "w.fenced_at IS NULL",
        "true",
    ),
    "outcomes over an end": ("write_outcomes", "AND m.state = 'queued'", ""),
    "a cursor without fence": ("release_batches", "AND s.next_position = cut.next_position", ""),
    "deferred mails of open batches": ("release_due", "b.state <> 'done' AND", "false AND"),
    "no doubt at a death": ("doubtful_mails", "AND m.tried", "AND false"),
    "tried by anybody": (
        "mark_tried",
        "b.epoch = $2 AND b.worker = $3 AND b.state = 'claimed'",
        "$2::integer > 0 AND $3::uuid IS NOT NULL",
    ),
    "reopened in the same epoch": ("reopen_batches", "epoch = b.epoch + 1", "epoch = b.epoch"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("small_pages")
def test_the_protocol_holds_in_very_many_orders_of_its_steps(environment: dict[str, str]) -> None:
    _drive(environment, LONG)


@pytest.mark.slow
@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("broken", BROKEN)
def test_a_fence_that_is_missing_is_noticed(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    name, *holes = BROKEN[broken]
    statement = SQL[name]
    for fence, hole in zip(holes[::2], holes[1::2], strict=True):
        assert fence in statement
        statement = statement.replace(fence, hole)
    for module in (store_batches, store_release, store_workers):
        monkeypatch.setattr(module, "SQL", {**SQL, name: statement})
    with pytest.raises(AssertionError):
        _drive(environment, settings(LONG, phases=[Phase.generate], report_multiple_bugs=False))


@pytest.mark.usefixtures("small_pages")
def test_the_protocol_holds_in_any_order_of_its_steps(environment: dict[str, str]) -> None:
    _drive(environment, SHORT)
