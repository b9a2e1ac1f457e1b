"""What processes write while something is away under load: that it went, that it is back, and few lines between."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from devstack.server import Server
from tests.acceptance.conftest import System, start_send

LINES_MAX = 40
"""Of one process, for an outage and until it goes on. Before, release alone wrote one a second and the completer two."""
RECIPIENTS = 5_000

Says = Callable[[dict[str, Any]], bool]


def _lines(system: System) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for path in (system.stack.home / "logs").glob("*.log"):
        texts = path.read_text(errors="replace").splitlines()
        found[path.stem] = [json.loads(text) if text.startswith("{") else {"event": text} for text in texts]
    return found


def _is(event: str, **values: str) -> Says:
    return lambda line: line.get("event") == event and values.items() <= line.items()


GOES_AND_COMES: dict[str, tuple[Callable[[System], Server], Says, Says, tuple[str, ...]]] = {
    "postgres": (
        lambda system: system.stack.postgres,
        _is("a dependency is away", dependency="postgres"),
        _is("a dependency is back", dependency="postgres"),
        ("emails", "release", "maintenance"),
    ),
    "redis": (
        lambda system: system.stack.valkey,
        _is("a dependency is away", dependency="redis"),
        _is("a dependency is back", dependency="redis"),
        ("emails", "progress"),
    ),
    "relay": (
        lambda system: system.stack.sink,
        _is("a relay is suspended"),
        _is("a relay is back"),
        ("emails",),
    ),
}


@pytest.fixture
def healed(system: System) -> Iterator[System]:
    yield system
    for server in (system.stack.postgres, system.stack.valkey, system.stack.sink):
        if not server.running:
            server.start()


def _check(system: System, away: str, seconds: float) -> None:
    server_of, goes, comes, processes = GOES_AND_COMES[away]
    client = system.client(f"waits for {away}")
    system.script(delay=0.02)  # or the send would be over before
    send = start_send(client, RECIPIENTS, campaignId=f"{away} {seconds:g}")
    system.until(lambda: len(system.arrivals().times) > 100)
    before = {name: len(lines) for name, lines in _lines(system).items()}
    server = server_of(system)
    server.stop(10)
    time.sleep(seconds)
    server.start()

    def written() -> dict[str, list[dict[str, Any]]]:
        return {name: lines[before.get(name, 0) :] for name, lines in _lines(system).items()}

    system.until(lambda: all(any(map(comes, written()[name])) for name in processes), 90)
    assert system.until_ended(client, send, 120)["state"] == "done"
    for name, lines in written().items():
        many = Counter(str(line.get("event")) for line in lines).most_common(5)
        assert len(lines) <= LINES_MAX, (name, len(lines), many)
    for name in processes:
        assert [goes(line) for line in written()[name]].count(True) == 1, name
        [end] = [line for line in written()[name] if comes(line)]
        assert 0.5 * seconds <= end["away_for"] <= seconds + 60


@pytest.mark.parametrize("away", GOES_AND_COMES)
def test_a_short_outage_is_a_begin_and_an_end(healed: System, away: str) -> None:
    _check(healed, away, 5)


@pytest.mark.slow
@pytest.mark.parametrize("away", GOES_AND_COMES)
def test_twenty_seconds_away_are_a_begin_and_an_end(healed: System, away: str) -> None:
    _check(healed, away, 20)
