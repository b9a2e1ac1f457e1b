"""Headers of a dead letter: what a record says of an earlier failure is believed of a replay alone, and never grows."""

from core.dead_letters import KEPT_MAX, describe
from core.errors import Unusable
from schemas import headers
from schemas.states import FailedStage

BEFORE = {
    headers.ORIGINAL_TOPIC: b"leads.upstream",
    headers.ORIGINAL_PARTITION: b"1",
    headers.ORIGINAL_OFFSET: b"7",
    headers.TRACEPARENT: b"\xff" * 300_000,
}


def said(**more: bytes) -> dict[str, str]:
    before = BEFORE | {name.replace("_", "-"): value for name, value in more.items()}
    error = Unusable(FailedStage.DECODE, "no_json", "no JSON")
    return dict(
        describe(error, topic="leads.upstream", partition=0, offset=99, timestamp=1.0, group="workers", before=before)
    )


def test_a_record_that_is_no_replay_failed_where_it_is() -> None:
    told = said()
    assert (told[headers.ORIGINAL_PARTITION], told[headers.ORIGINAL_OFFSET]) == ("0", "99")
    assert headers.REPLAY_COUNT not in told


def test_a_replay_keeps_the_place_of_its_first_failure() -> None:
    told = said(x_replay_count=b"2")
    assert (told[headers.ORIGINAL_PARTITION], told[headers.ORIGINAL_OFFSET], told[headers.REPLAY_COUNT]) == (
        "1",
        "7",
        "2",
    )


def test_a_replay_to_another_topic_is_none() -> None:
    told = said(x_replay_count=b"2", x_original_topic=b"emails.tasks")
    assert (told[headers.ORIGINAL_TOPIC], told[headers.ORIGINAL_OFFSET]) == ("leads.upstream", "99")


def test_what_is_kept_is_cut() -> None:
    assert len(said()[headers.TRACEPARENT]) == KEPT_MAX
