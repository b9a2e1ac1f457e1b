"""What arrives under a limit, in time."""

import time

from devstack.audit import over_limit
from tests.acceptance.conftest import SEND, System, run, start_send

RATE, BURST, SECONDS = 200, 40, 8.0


def test_a_limited_send_is_exact_at_the_sink(system: System) -> None:
    client = system.client("limited")
    service = run(system.environment, "-m", "streams", "key", "--scope", "service", "--name", "limits")
    answer = client.put(
        "/api/queue/rate-limit",
        params={"userId": "limited"},
        json={"name": "email-sending", "rate": RATE, "burst": BURST},
        headers={"Authorization": f"Bearer {service}"},
    )
    assert answer.status_code == 200, answer.text
    start_send(client, int(RATE * SECONDS * 2))
    system.until(lambda: len(system.arrivals().times) > BURST + RATE)
    time.sleep(SECONDS)  # what is measured is what arrives in a time
    ended = time.time()
    assert client.delete(SEND, params={"campaignId": "spring"}).is_success
    times = [at for at in system.arrivals().times if at < ended]
    bulk = RATE * 0.9
    assert over_limit(times, bulk, int(BURST * 0.9)) == 0
    lately = [at for at in times if at > ended - SECONDS]
    assert len(lately) >= 0.97 * bulk * SECONDS
