"""A few rounds of faults under load: `make chaos` has them all, and more."""

import asyncio
from contextlib import ExitStack
from pathlib import Path

import pytest

from devstack.chaos.faults import FAULTS, losing_everything
from devstack.chaos.load import IMPORT, Load, sizes_for
from devstack.chaos.rounds import run_rounds, standing, until_healed
from devstack.chaos.speed import Speed
from devstack.chaos.verdict import dead_letters, judge

QUICK = (
    "Kafka restarted",
    "Postgres cuts connections in mid-commit",
    "Valkey stopped, and empty then",
    "the relay takes a mail and cuts",
)
"""Of them a seed makes four rounds in less than two minutes: they need no rescue, which takes 20 s."""
AWAY = ("Kafka stopped", "Postgres stopped", "Valkey stopped, and empty then", "the relay hangs", "the relay refuses")


def test_everything_heals_and_nothing_is_lost_or_comes_twice_in_silence(tmp_path: Path) -> None:
    faults = [fault for fault in FAULTS if fault.name in QUICK]
    with standing(tmp_path / "stack", seed=4) as (place, client):
        rounds = list(run_rounds(place, client, len(faults), faults, seconds=3))
    assert [one for one in rounds if not one.right] == []
    assert sum(one.verdict.arrived for one in rounds) > 20_000


@pytest.mark.slow
@pytest.mark.parametrize("name", AWAY)
def test_what_is_away_for_two_minutes_costs_time_alone(tmp_path: Path, name: str) -> None:
    faults = [fault for fault in FAULTS if fault.name == name]
    with standing(tmp_path / "stack", seed=1) as (place, client):
        rounds = list(run_rounds(place, client, 3, faults, seconds=120))
    assert [one for one in rounds if not one.right] == []


@pytest.mark.slow
def test_when_kafka_loses_everything_sends_go_on_and_imports_name_what_they_miss(tmp_path: Path) -> None:
    with standing(tmp_path / "stack", seed=1) as (place, client):
        place.script()
        load = Load(client, place.pool, "lost", sizes_for(5))
        load.begin()
        with ExitStack() as stack:
            for name in place.living("leads"):
                stack.enter_context(place.frozen(name))
            load.upload()
            Speed(place.sink_url).steady(2)
            with losing_everything(place):
                pass
        params = {"userId": load.user("rows"), "importId": load.import_id}
        assert load.ask("GET", IMPORT, params=params)["state"] == "incomplete"
        load.upload()
        assert Speed(place.sink_url).reached(100, within=60) is not None
        load.cancel()
        assert until_healed(place, load, within=120) == []
        verdict = judge(place, load, place.take_held(), 0, asyncio.run(dead_letters(place.dsn)))
    assert verdict.right, verdict
