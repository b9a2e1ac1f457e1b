"""A group that is stopped on the wire, over a slow relay."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from core.outcomes import Accepted, NotBegun
from devstack.audit import read_arrivals
from mailer.pool import Connections
from mailer.relay import RelaySettings
from tests.integration.relays import campaign, kinds


def _script(sink_url: str, script: dict[str, Any]) -> None:
    httpx.post(f"{sink_url}/script", json=script).raise_for_status()


@pytest.mark.parametrize("hide", [[], ["PIPELINING"]])
async def test_of_a_stopped_group_only_what_is_begun_is_finished(with_sink: dict[str, str], hide: list[str]) -> None:
    _script(with_sink["SINK_URL"], {"delay": 0.1, "hide": hide})
    build = campaign("Hi")
    group = [build(number, f"p{number}@example.net") for number in range(25)]
    pool = Connections(RelaySettings(with_sink["SMTP_HOST"], int(with_sink["SMTP_PORT"]), "test", 1))
    async with pool.connection() as connection:
        sending = asyncio.create_task(connection.send(group))
        while not read_arrivals(with_sink["SINK_URL"]).times:
            await asyncio.sleep(0.01)
        connection.stop()
        stopped = time.time()
        found = await sending
        # Whoever has the connection next finds it as it should be.
        again = await connection.send(group[-1:])
    await pool.close(1)
    arrivals = read_arrivals(with_sink["SINK_URL"])
    accepted = kinds(found).count(Accepted)
    assert kinds(found) == [Accepted] * accepted + [NotBegun] * (25 - accepted)
    assert accepted <= 4
    assert kinds(again) == [Accepted]
    assert len(arrivals.times) == accepted + 1
    assert arrivals.times[accepted - 1] - stopped < 0.5
