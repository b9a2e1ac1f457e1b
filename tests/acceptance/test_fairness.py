"""Fair shares with all processes; `make bench-fairness` is the large one."""

import asyncio

import pytest

from bench.fairness import measure
from tests.acceptance.conftest import System


@pytest.mark.slow
def test_a_small_send_is_not_held_up_by_a_large_one_and_weights_count(system: System) -> None:
    result = asyncio.run(measure(system.environment | {"SINK_URL": system.stack.sink.control_url}, 60_000, 5.0))
    assert result["big_was_still_sending"]
    assert max(result["beside_s"]) <= result["allowed_s"]
    assert 2 < result["ratio"] < 4
