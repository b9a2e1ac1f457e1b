"""A pause and a cancel reach the wire within a second of their answer, and a resume is exact."""

import time

import httpx
import pytest

from tests.acceptance.conftest import SEND, System, start_send

WITHIN = 1.0
CAMPAIGN = {"campaignId": "spring"}


def _stop(client: httpx.Client, how: str) -> float:
    """The time of the answer."""
    answer = client.delete(SEND, params=CAMPAIGN) if how == "cancel" else client.post(f"{SEND}/pause", params=CAMPAIGN)
    assert answer.is_success, answer.text
    return time.time()


def _nothing_is_in_hand(system: System, user: str) -> bool:
    [row] = system.fetch(
        "SELECT count(*) AS n FROM campaign_send_batches WHERE user_id = $1 AND state = 'claimed'", user
    )
    return bool(row["n"] == 0)


@pytest.mark.parametrize("how", ["pause", "cancel"])
@pytest.mark.parametrize(
    ("name", "script", "rate"),
    [("fast", {}, 0), ("slow", {"delay": 0.3}, 0), ("limited", {}, 20)],
)
def test_nothing_begins_a_second_after_the_answer(
    system: System, name: str, script: dict[str, float], rate: int, how: str
) -> None:
    user = f"{how}-{name}"
    client = system.client(user)
    system.script(**script)
    if rate:
        system.fetch(
            "INSERT INTO user_limits (user_id, name, rate, burst) VALUES ($1, 'email-sending', $2, 5)",
            user,
            float(rate),
        )
    count = 20_000 if name == "fast" else 400
    start_send(client, count)
    system.until(lambda: len(system.arrivals().times) > 20)
    stopped = _stop(client, how)
    system.until(lambda: _nothing_is_in_hand(system, user), within=10)
    times = system.arrivals().times
    assert len(times) < count
    assert max(times) - stopped < WITHIN
    if how == "cancel":
        return
    system.script()
    if rate:
        system.fetch("UPDATE user_limits SET rate = 1000, burst = 1000 WHERE user_id = $1", user)
    assert client.post(f"{SEND}/resume", params=CAMPAIGN).is_success
    system.until(lambda: len(system.arrivals().mails) == count, within=60)
    arrivals = system.arrivals()
    assert (len(arrivals.mails), arrivals.repeated) == (count, 0)
