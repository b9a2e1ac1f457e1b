"""Single mails through the whole system: over HTTP and from another system's producer, in both lanes."""

import json
import subprocess
import sys
import time

from tests.acceptance.conftest import SENDER, TEMPLATE, System

EMAILS = "/api/queue/emails"


def test_single_mails_of_both_lanes_arrive_once(system: System) -> None:
    client = system.client("single")
    for lane in ("bulk", "transactional"):
        emails = [{"email": f"{lane}{number}@mail.com", "recipientId": str(number)} for number in range(100)]
        body = {"lane": lane, "template": TEMPLATE, "sender": SENDER, "emails": emails}
        answers = [client.post(EMAILS, json=body, headers={"Idempotency-Key": lane}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202], answers[0].text
        assert answers[0].json() == answers[1].json()
    _publish(system, "emails.tasks", "produced", times=2)
    _publish(system, "emails.transactional", "at-once", times=2)
    system.until(lambda: system.ledger("single").mails == {"sent": 300}, within=30)
    ledger, arrivals = system.ledger("single"), system.arrivals()
    assert set(arrivals.mails) == ledger.sent
    assert arrivals.repeated == 0
    mail = client.get(f"{EMAILS}/{answers[0].json()['ids'][7]}").json()
    assert (mail["email"], mail["state"]) == ("transactional7@mail.com", "sent")


def test_a_transactional_mail_arrives_within_a_moment(system: System) -> None:
    client = system.client("moment")
    body = {"lane": "transactional", "template": TEMPLATE, "sender": SENDER, "emails": [{"email": "a@mail.com"}]}
    begun = time.time()
    assert client.post(EMAILS, json=body).status_code == 202
    system.until(lambda: len(system.arrivals().times) == 1, within=10)
    assert system.arrivals().times[0] - begun < 2


def _publish(system: System, topic: str, name: str, times: int) -> None:
    """With the producer of the documents, each mail as often as told."""
    mails = [
        {
            "userId": "single",
            "id": f"{name}-{number}",
            "email": f"{name}{number}@mail.com",
            "template": {"subject": "Hi", "text": f"Number {number}"},
            "sender": {"email": "orders@shop.com"},
        }
        for number in range(50)
    ]
    done = subprocess.run(
        [sys.executable, "docs/examples/email_producer.py", system.stack.kafka.bootstrap, topic],
        input="\n".join(map(json.dumps, mails * times)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"{50 * times} mails are confirmed\n", done.stderr
