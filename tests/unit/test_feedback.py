"""What an event of feedback does, beside the others of its page and what the mail says already."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from api.feedback import read_events
from core.errors import InvalidInput
from core.feedback import (
    Event,
    Ignored,
    Mail,
    Person,
    Place,
    Result,
    Told,
    judge_feedback,
    place_of_message_id,
    short_reason,
)
from schemas.ids import SendId, UserId
from schemas.states import BounceClass, FeedbackType, MailState, SuppressionReason

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
EARLIER = NOW - timedelta(hours=1)
SEND = SendId(UUID("01a21039-4038-738c-bcdf-ed3c8547979c"))
PLACE: Place = (SEND, 0)
USER = UserId("owner")
HARD, SOFT = BounceClass.HARD, BounceClass.SOFT
APPLIED, REPEATED = (Result.APPLIED, None), (Result.REPEATED, None)


def _mail(state: MailState = MailState.SENT, told: Told = Told()) -> Mail:  # noqa: B008
    return Mail(PLACE, USER, "spring", "crm-1", "ann@mail.com", state, told)


def _bounce(event_id: str, bounce_class: BounceClass = HARD, about: object = PLACE, at: datetime = EARLIER) -> Event:
    return Event(event_id, FeedbackType.BOUNCE, bounce_class, at, f"said {event_id}", about)  # type: ignore[arg-type]


def _complaint(event_id: str) -> Event:
    return Event(event_id, FeedbackType.COMPLAINT, None, EARLIER, "", PLACE)


def _delayed(event_id: str) -> Event:
    return Event(event_id, FeedbackType.DELAYED, None, None, "", PLACE)


def test_a_bounce_is_told_on_its_mail_and_suppresses_when_it_is_hard() -> None:
    judged = judge_feedback([_bounce("1")], {PLACE: _mail()}, set(), NOW)
    assert judged.results == [APPLIED]
    assert judged.told == {PLACE: Told(HARD, EARLIER, "said 1", None)}
    assert [effect.suppresses for effect in judged.effects] == [SuppressionReason.BOUNCE]


def test_a_soft_bounce_suppresses_nobody() -> None:
    judged = judge_feedback([_bounce("1", SOFT)], {PLACE: _mail()}, set(), NOW)
    assert judged.told[PLACE].bounce_class is SOFT
    assert [effect.suppresses for effect in judged.effects] == [None]


def test_the_first_bounce_stays_but_a_hard_one_takes_a_soft_ones_place() -> None:
    events = [_bounce("1", SOFT), _bounce("2", SOFT), _bounce("3", HARD), _bounce("4", SOFT), _bounce("5", HARD)]
    judged = judge_feedback(events, {PLACE: _mail()}, set(), NOW)
    assert judged.results == [APPLIED, REPEATED, APPLIED, REPEATED, REPEATED]
    assert judged.told[PLACE].bounce_reason == "said 3"


def test_a_bounce_and_a_complaint_are_both_told() -> None:
    judged = judge_feedback([_complaint("1"), _bounce("2"), _complaint("3")], {PLACE: _mail()}, set(), NOW)
    assert judged.results == [APPLIED, APPLIED, REPEATED]
    assert judged.told[PLACE] == Told(HARD, EARLIER, "said 2", EARLIER)


def test_what_the_mail_says_already_is_repeated_whatever_its_id() -> None:
    mail = _mail(told=Told(HARD, EARLIER, "before", None))
    judged = judge_feedback([_bounce("new"), _complaint("newer")], {PLACE: mail}, set(), NOW)
    assert judged.results == [REPEATED, APPLIED]


def test_the_same_id_has_its_effect_once() -> None:
    person = Person(USER, "ann@mail.com")
    events = [_bounce("1", about=person), _bounce("1", about=person), _bounce("2", about=person)]
    assert judge_feedback(events, {}, {"2"}, NOW).results == [APPLIED, REPEATED, REPEATED]


def test_a_delay_changes_nothing_and_is_known_when_it_comes_again() -> None:
    judged = judge_feedback([_delayed("1"), _delayed("1")], {PLACE: _mail()}, set(), NOW)
    assert (judged.results, judged.told) == ([APPLIED, REPEATED], {})
    assert [effect.suppresses for effect in judged.effects] == [None]


@pytest.mark.parametrize("state", MailState)
def test_every_mail_that_may_have_gone_out_can_bounce(state: MailState) -> None:
    [(result, reason)] = judge_feedback([_bounce("1")], {PLACE: _mail(state)}, set(), NOW).results
    if state in (MailState.DUPLICATE, MailState.INVALID):
        assert (result, reason) == (Result.IGNORED, Ignored.NEVER_SENT)
    else:
        assert result is Result.APPLIED


def test_what_is_ignored_holds_up_no_other() -> None:
    elsewhere: Place = (SEND, 7)
    events = [_bounce("1", about=elsewhere), _bounce("2", about=Ignored.NO_ADDRESS), _bounce("3")]
    assert judge_feedback(events, {PLACE: _mail()}, set(), NOW).results == [
        (Result.IGNORED, Ignored.UNKNOWN_MAIL),
        (Result.IGNORED, Ignored.NO_ADDRESS),
        APPLIED,
    ]


def test_nothing_happened_later_than_now() -> None:
    judged = judge_feedback([_bounce("1", at=NOW + timedelta(days=9))], {PLACE: _mail()}, set(), NOW)
    assert judged.told[PLACE].bounced_at == NOW
    assert judge_feedback([_delayed("1")], {PLACE: _mail()}, set(), NOW).effects[0].at == NOW


@pytest.mark.parametrize("text", [f"<{SEND.hex}.7@shop.com>", f"{SEND.hex}.7@shop.com", f" <{SEND.hex}.7@shop.com>\n"])
def test_a_message_id_tells_the_place(text: str) -> None:
    assert place_of_message_id(text) == (SEND, 7)


@pytest.mark.parametrize("text", ["", "<x@y>", f"{SEND.hex}.{2**31}@shop.com", f"{SEND.hex}.-1@shop.com", "\ud7ff"])
def test_another_message_id_is_of_no_mail(text: str) -> None:
    assert place_of_message_id(text) is Ignored.UNKNOWN_MAIL


def test_a_reason_is_one_line_that_can_be_stored() -> None:
    assert short_reason("550 no\r\n such\0user ") == "550 no such user"
    assert len(short_reason("x" * 9_999)) == 500


def _read(*events: object) -> int:
    return len(read_events(json.dumps(events[0] if len(events) == 1 else list(events)).encode()))


GOOD = {"type": "bounce", "class": "hard", "email": "ann@mail.com"}


def test_one_event_or_a_list_of_them_is_read() -> None:
    assert _read(GOOD) == 1
    assert _read([GOOD]) == 1
    assert _read(GOOD, {"type": "complaint", "mailId": str(SEND)}) == 2
    assert len(read_events(b" \n" + json.dumps([GOOD] * 1_000).encode())) == 1_000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", ""),
        (b"no json", ""),
        (b"[]", ""),
        (b"{}", "type"),
        (b"[1]", "0"),
        (b'{"type":"bounce","class":"hard","email":"a@b.c"},{"type":"complaint","email":"a@b.c"}', ""),
        (json.dumps([GOOD] * 1_001).encode(), ""),
        (json.dumps([GOOD, GOOD | {"type": "lost"}]).encode(), "1.type"),
        (json.dumps(GOOD | {"class": "firm"}).encode(), "class"),
        (json.dumps({"type": "bounce", "email": "a@b.c"}).encode(), ""),
        (json.dumps(GOOD | {"type": "complaint"}).encode(), ""),
        (json.dumps({"type": "complaint"}).encode(), ""),
        (json.dumps({"type": "complaint", "sendId": str(SEND)}).encode(), ""),
        (json.dumps(GOOD | {"at": "2026-11-25T12:00:00"}).encode(), "at"),
        (json.dumps(GOOD | {"position": -1}).encode(), "position"),
        (json.dumps(GOOD | {"what": 1}).encode(), "what"),
        (json.dumps(GOOD | {"id": "x" * 201}).encode(), "id"),
    ],
)
def test_what_is_no_event_is_told_by_field(body: bytes, field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_events(body)
    assert refused.value.field == field
    assert refused.value.reason
