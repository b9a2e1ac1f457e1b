"""A log that can be read while something is away: its begin and its end, and of everything else a few lines."""

import logging
from typing import Any

import pytest

from core.logs import OFTEN, WINDOW, Thin
from core.outages import BACK_AFTER, Outages


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(event: str | dict[str, Any]) -> logging.LogRecord:
    return logging.LogRecord("streams.release", logging.WARNING, __file__, 1, event, (), None)


def test_what_waits_for_a_dependency_is_said_once_in_a_while_and_counted() -> None:
    clock = Clock()
    thin = Thin(clock)
    waits = {"event": "release waits", "error": "postgres is away: refused"}
    assert [thin.filter(record(dict(waits))) for _ in range(100)].count(True) == 1
    assert thin.filter(record({"event": "release waits", "error": "kafka is away: refused"}))
    clock.now += WINDOW
    later = record(dict(waits))
    assert thin.filter(later)
    assert isinstance(later.msg, dict)
    assert later.msg["left_out"] == 99


@pytest.mark.parametrize("event", ["%s failed", {"event": "dead letter", "error": "no JSON"}])
def test_nothing_else_is_said_more_often_than_somebody_reads(event: Any) -> None:
    clock = Clock()
    thin = Thin(clock)
    texts = [event if isinstance(event, str) else dict(event) for _ in range(1000)]
    assert [thin.filter(record(text)) for text in texts].count(True) == OFTEN
    assert thin.filter(record("something else"))
    clock.now += WINDOW
    assert thin.filter(record(event))


def test_texts_without_number_do_not_fill_the_memory() -> None:
    thin = Thin(Clock())
    assert all(thin.filter(record(f"line {number}")) for number in range(5_000))
    assert len(thin._seen) <= 1_000


def test_an_outage_has_a_begin_and_an_end_with_its_length() -> None:
    said: list[tuple[str, dict[str, Any]]] = []

    class Log:
        def warning(self, event: str, **values: Any) -> None:
            said.append((event, values))

    clock = Clock()
    outages = Outages(clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.outages.log", Log())
        outages.works("postgres")
        for _ in range(200):
            outages.fails("postgres", "refused")
            clock.now += 0.1
        outages.works("postgres")
        assert len(said) == 1  # it may be gone again in a moment
        clock.now += BACK_AFTER
        outages.works("postgres")
        outages.works("postgres")
    assert said == [
        ("a dependency is away", {"dependency": "postgres", "reason": "refused"}),
        ("a dependency is back", {"dependency": "postgres", "away_for": 19.9}),
    ]
