import os
import signal
import time

from aiokafka import AIOKafkaProducer

from devstack.sample import make_sample
from tests.acceptance.conftest import IMPORT, PROGRESS, SEND, SENDER, TEMPLATE, System, start_send

CSV = {"Content-Type": "text/csv"}
UNWRITTEN = 500
"""Mails whose outcome a killed worker may not have written yet: these may come twice."""


def test_leads_come_in_and_every_stored_one_gets_its_mail(system: System) -> None:
    client = system.client("journey")
    sample = make_sample(3_000)
    answer = client.post(IMPORT, content=sample.data, headers=CSV)
    assert answer.status_code == 202, answer.text
    progress = system.until_ended(client, answer.json()["importId"])
    assert progress["counts"] == {
        "stored": sample.stored,
        "duplicate": sample.duplicate,
        "rejected": sample.rejected,
        "dead": 0,
    }
    body = {"campaignId": "spring", "template": TEMPLATE, "sender": SENDER, "selection": {"all": True}}
    answer = client.post(SEND, json=body)
    assert answer.status_code == 202, answer.text
    progress = system.until_ended(client, answer.json()["sendId"])
    assert progress["total"] == progress["counts"]["sent"] == sample.stored
    ledger, arrivals = system.ledger("journey"), system.arrivals()
    assert ledger.mails == {"sent": sample.stored}
    assert set(arrivals.mails) == ledger.sent
    assert arrivals.repeated == 0


def test_a_killed_worker_loses_no_mail(system: System) -> None:
    client = system.client("killed-emails")
    system.script(delay=0.005)
    send = start_send(client, 4_000)
    system.until(lambda: len(system.arrivals().times) > 500)
    os.kill(system.processes.pids()["emails"], signal.SIGKILL)
    progress = system.until_ended(client, send, within=100)
    assert progress["counts"]["sent"] == 4_000
    ledger, arrivals = system.ledger("killed-emails"), system.arrivals()
    assert len(ledger.sent) == 4_000
    assert ledger.sent - set(arrivals.mails) == set()
    assert arrivals.repeated <= UNWRITTEN


def test_a_killed_worker_loses_no_lead(system: System) -> None:
    client = system.client("killed-leads")
    sample = make_sample(60_000)
    answer = client.post(IMPORT, content=sample.data, headers=CSV)
    os.kill(system.processes.pids()["leads"], signal.SIGKILL)
    progress = system.until_ended(client, answer.json()["importId"], within=100)
    assert progress["counts"]["stored"] == sample.stored == system.ledger("killed-leads").leads
    assert sum(progress["counts"].values()) == sample.rows


async def _publish(system: System, topic: str, values: list[bytes]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=system.stack.kafka.bootstrap)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(topic, value, key=b"k", headers=[("traceparent", b"00-ab-cd-01")])
    finally:
        await producer.stop()


def test_what_cannot_be_decoded_is_a_dead_letter_and_stops_nothing(system: System) -> None:
    import asyncio

    topics = ("leads.chunks", "emails.batches", "progress.events")
    for topic in topics:
        asyncio.run(_publish(system, topic, [b"\xff no json", b"{}"]))
    columns, order = "topic, stage, kind, code, value, headers", 'topic, "offset"'
    letters = f"SELECT {columns} FROM dead_letters WHERE kind = 'poison' ORDER BY {order}"
    system.until(lambda: len(system.fetch(letters)) >= 6)
    rows = system.fetch(letters)
    assert [(row["topic"], row["stage"], row["value"]) for row in rows] == [
        (topic, stage, value)
        for topic in sorted(topics)
        for stage, value in (("decode", b"\xff no json"), ("validate", b"{}"))
    ]
    assert all("00-ab-cd-01" in row["headers"] and row["kind"] == "poison" for row in rows)
    client = system.client("after-poison")
    answer = client.post(IMPORT, content=b"email\nafter@example.com\n", headers=CSV)
    assert system.until_ended(client, answer.json()["importId"])["counts"]["stored"] == 1


def test_pause_resume_and_cancel_are_exact(system: System) -> None:
    client = system.client("pausing")
    system.script(delay=0.01)
    send = start_send(client, 2_000)
    system.until(lambda: len(system.arrivals().times) > 100)
    assert client.post(f"{SEND}/pause", params={"campaignId": "spring"}).is_success
    paused = -1

    def nothing_more_arrives() -> bool:
        nonlocal paused
        before, paused = paused, len(system.arrivals().times)
        time.sleep(1)
        return before == paused

    system.until(nothing_more_arrives, within=10)
    assert paused < 2_000
    assert client.post(f"{SEND}/resume", params={"campaignId": "spring"}).is_success
    system.until(lambda: len(system.arrivals().times) > paused + 100)
    assert client.delete(SEND, params={"campaignId": "spring"}).is_success
    progress = system.until_ended(client, send)
    ledger, arrivals = system.ledger("pausing"), system.arrivals()
    assert set(arrivals.mails) == ledger.sent
    assert arrivals.repeated == 0
    assert progress["counts"]["sent"] == len(ledger.sent)
    assert progress["counts"]["sent"] + progress["counts"]["cancelled"] == 2_000


def test_progress_moves_while_an_operation_runs(system: System) -> None:
    client = system.client("watching")
    system.script(delay=0.01)
    send = start_send(client, 1_500)
    seen: set[int] = set()

    def ended() -> bool:
        answer = client.get(PROGRESS, params={"id": send}).json()
        seen.add(answer["done"])
        return bool(answer["endedAt"])

    system.until(ended)
    assert len(seen) >= 4
    assert max(seen) == 1_500


def test_every_process_stops_in_time_and_nothing_is_repeated_or_lost(system: System) -> None:
    client = system.client("stopping")
    system.script(delay=0.005)
    send = start_send(client, 4_000)
    sample = make_sample(50_000)
    answer = client.post(IMPORT, content=sample.data, headers=CSV)
    assert answer.status_code == 202, answer.text
    system.until(lambda: len(system.arrivals().times) > 300)
    begun = time.monotonic()
    system.processes.stop()
    assert time.monotonic() - begun < 25
    assert set(system.processes.exit_codes().values()) == {0}
    assert len(system.arrivals().times) < 4_000
    system.processes.start()
    assert system.until_ended(client, answer.json()["importId"])["counts"]["stored"] == sample.stored
    assert system.until_ended(client, send)["counts"]["sent"] == 4_000
    arrivals = system.arrivals()
    assert len(arrivals.mails) == 4_000
    assert arrivals.repeated == 0
