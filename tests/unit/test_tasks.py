"""Which records are mails, which key stands for each, and which send of which day they belong to."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from core.errors import InvalidInput
from core.tasks import CODES, Judge, NewMail, daily_sends, first_of_each, key_of_id, key_of_place, unusable
from schemas.ids import UserId, daily_send_id, mail_id
from schemas.messages import BatchPointer, EmailTask, TaskSender, TaskTemplate, decode_transactional, encode
from schemas.states import FailedStage, Lane, OnDoubt
from store.migrations import first_id

USER = UserId("u")


def task(**fields: Any) -> EmailTask:
    template = TaskTemplate(subject="Hi {{ name }}", text="Hello {{ name }}")
    return EmailTask(
        **{
            "user_id": USER,
            "email": "ann@mail.com",
            "template": template,
            "sender": TaskSender(email="a@shop.com"),
            **fields,
        }
    )


def clean(key: str = "id:1", **fields: Any) -> NewMail:
    return Judge().clean(task(**fields), key)


def test_a_task_becomes_a_mail_with_its_content() -> None:
    mail = clean(
        email=" Ann@Mail.com ",
        name="Ann",
        recipient_id="7",
        variables={"n": 1},
        sender=TaskSender(email="a@shop.com", name="Shop", reply_to="help@shop.com"),
    )
    assert (mail.email, mail.email_key, mail.name, mail.recipient_id, mail.reason) == (
        "Ann@Mail.com",
        "ann@mail.com",
        "Ann",
        "7",
        "",
    )
    assert msgspec.json.decode(mail.variables) == {"n": 1}
    assert msgspec.json.decode(mail.content) == {
        "template": {"subject": "Hi {{ name }}", "text": "Hello {{ name }}"},
        "sender": {"email": "a@shop.com", "name": "Shop", "reply_to": "help@shop.com"},
    }
    assert mail.id == mail_id(USER, "id:1")


def test_an_address_that_is_none_makes_an_invalid_mail() -> None:
    mail = clean(email="nonsense")
    assert (mail.email, mail.email_key) == ("nonsense", "")
    assert mail.reason


@pytest.mark.parametrize(
    ("fields", "field", "code", "stage"),
    [
        ({"email": "  "}, "email", "no_address", FailedStage.VALIDATE),
        ({"email": "a\0@mail.com"}, "email", "no_address", FailedStage.VALIDATE),
        ({"template": TaskTemplate(subject="Hi")}, "template", "template", FailedStage.RENDER),
        ({"template": TaskTemplate(subject="Hi", html="{{ x")}, "template.html", "template", FailedStage.RENDER),
        ({"template": TaskTemplate(subject="", text="x")}, "template.subject", "template", FailedStage.RENDER),
        ({"template": TaskTemplate(subject="Hi", text="\0")}, "template.text", "template", FailedStage.RENDER),
        ({"sender": TaskSender(email="nobody")}, "sender.email", "sender", FailedStage.VALIDATE),
        ({"sender": TaskSender(email="a@shop.com", reply_to="x")}, "sender.replyTo", "sender", FailedStage.VALIDATE),
        ({"sender": TaskSender(email="a@shop.com", name="A\r\nBcc: b")}, "sender.name", "sender", FailedStage.VALIDATE),
        ({"variables": {"a": "\0"}}, "variables", "variables", FailedStage.VALIDATE),
        ({"variables": {"a": [[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]}}, "variables", "variables", FailedStage.VALIDATE),
    ],
)
def test_what_cannot_be_sent_says_where_and_why(
    fields: dict[str, Any], field: str, code: str, stage: FailedStage
) -> None:
    with pytest.raises(InvalidInput) as raised:
        clean(**fields)
    letter = unusable(raised.value)
    assert (raised.value.field, letter.code, letter.stage) == (field, code, stage)
    assert code in CODES.values()


def test_a_backslash_before_an_escape_is_no_nul() -> None:
    assert clean(variables={"a": "\\u0000"})
    with pytest.raises(InvalidInput):
        clean(variables={"a": "\\\0"})


def test_a_name_and_a_place_never_stand_for_the_same_mail() -> None:
    place = key_of_place("emails.tasks", 0, 7, 1000)
    assert place not in (key_of_id(place), key_of_id("emails.tasks:0:7:1000"))
    assert (
        len({place, *(key_of_place(*other) for other in (("emails.tasks", 1, 7, 1000), ("emails.tasks", 0, 7, 1001)))})
        == 3
    )
    assert mail_id(USER, "id:1") != mail_id(UserId("other"), "id:1")


def test_of_one_key_the_first_is_kept_and_known_ones_are_left_out() -> None:
    one, again, other, known = clean("id:1"), clean("id:1", name="again"), clean("id:2"), clean("id:3")
    assert first_of_each([one, again, other, known], {known.id}) == [one, other]


def test_mails_of_a_day_share_a_send_by_user_lane_and_what_becomes_of_doubt() -> None:
    late = datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC)
    today, tomorrow = daily_sends(clean(), Lane.BULK, late)
    assert today == daily_send_id(USER, "bulk", late.date())
    assert daily_sends(clean("id:9"), Lane.BULK, late - timedelta(hours=20))[0] == today
    others = {
        daily_sends(clean(), Lane.TRANSACTIONAL, late)[0],
        daily_sends(clean(on_doubt=OnDoubt.SKIP), Lane.BULK, late)[0],
        daily_sends(clean(user_id="other"), Lane.BULK, late)[0],
        daily_sends(clean(), Lane.BULK, late + timedelta(seconds=1))[0],
    }
    assert today not in others
    assert len(others) == 4
    assert tomorrow in others
    assert first_id(datetime(2026, 3, 31, tzinfo=UTC)) <= today < first_id(datetime(2026, 4, 1, tzinfo=UTC)) <= tomorrow


def test_a_transactional_record_is_a_mail_or_a_pointer() -> None:
    pointer = BatchPointer(
        send_id=daily_send_id(USER, "x", datetime.now(UTC).date()), batch_id=mail_id(USER, "x"), epoch=2
    )
    assert decode_transactional(encode(pointer)) == pointer
    assert decode_transactional(encode(task(id="7"))) == task(id="7")
    with pytest.raises(msgspec.ValidationError):
        decode_transactional(b'{"batch_id":"no id"}')
    with pytest.raises(msgspec.ValidationError):
        decode_transactional(b'{"v":1}')
