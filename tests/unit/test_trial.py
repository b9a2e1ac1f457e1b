import sys

from core.cleaning import CleanChunk
from core.leads import RejectedRow
from core.trial import PARTS, REJECTED_SHOWN, Keys, Trial


def test_keys_are_counted_exactly_in_a_few_bytes_each() -> None:
    keys = [f"person.{number % 290_000}@example.com" for number in range(300_000)]
    counted = Keys()
    counted.add(keys)
    assert counted.count() == 290_000
    assert sum(map(sys.getsizeof, counted._parts)) < 12 * len(keys)
    assert max(map(len, counted._parts)) < 2 * len(keys) / PARTS  # so much is in a set at once


def _chunk(keys: list[str], duplicates: int, rejected: int) -> CleanChunk:
    rejects = [RejectedRow(number, number, "email", "invalid", "", "") for number in range(rejected)]
    return CleanChunk(keys, keys, keys, keys, list(range(len(keys))), duplicates, rejects)


def test_every_row_is_counted_once() -> None:
    trial = Trial()
    trial.add(_chunk(["a", "b"], 1, 60))
    trial.add(_chunk(["b", "c"], 0, 60))
    assert (trial.rows, trial.stored(), trial.rejected) == (125, 3, 120)
    assert len(trial.first_rejected) == REJECTED_SHOWN
