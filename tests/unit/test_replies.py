import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.replies import MAX_TEXT, About, Reply, ReplyClass, Stage, classify, parse_reply


@pytest.mark.parametrize(
    ("code", "text", "reply"),
    [
        (250, "2.0.0 Ok: queued as 4B1C", Reply(250, "2.0.0", "Ok: queued as 4B1C")),
        (250, "OK", Reply(250, None, "OK")),
        (550, "5.1.1", Reply(550, "5.1.1", "")),
        (550, "5.1.1 The account\n5.1.1 does not exist.\n5.1.1  ", Reply(550, "5.1.1", "The account does not exist.")),
        (550, "5.7.511 banned", Reply(550, "5.7.511", "banned")),
        (550, "4.7.1 class and code differ", Reply(550, None, "4.7.1 class and code differ")),
        (250, "5.1.1.1 is no code", Reply(250, None, "5.1.1.1 is no code")),
        (250, "2.0.0Ok", Reply(250, None, "2.0.0Ok")),
        (250, "", Reply(250, None, "")),
        (550, "5.1.1 n\udcff\x00o", Reply(550, "5.1.1", "n\ufffd o")),
    ],
)
def test_a_reply_gives_its_enhanced_code(code: int, text: str, reply: Reply) -> None:
    assert parse_reply(code, text) == reply


@given(st.integers(200, 599), st.binary())
def test_any_reply_can_be_stored(code: int, said: bytes) -> None:
    text = parse_reply(code, said.decode("utf-8", "surrogateescape")).text
    assert len(text.encode("utf-8").decode()) <= MAX_TEXT
    assert len(text.splitlines()) <= 1
    assert "\x00" not in text


@pytest.mark.parametrize(
    ("code", "enhanced", "stage", "about"),
    [
        # By the enhanced code, whatever the stage.
        (550, "5.1.1", Stage.RCPT, About.RECIPIENT),
        (550, "5.1.1", Stage.CONTENT, About.RECIPIENT),
        (550, "5.1.10", Stage.RCPT, About.RECIPIENT),
        (550, "5.1.8", Stage.MAIL, About.SENDER),
        (550, "5.1.8", Stage.RCPT, About.SENDER),
        (552, "5.2.2", Stage.RCPT, About.RECIPIENT),
        (552, "5.2.3", Stage.CONTENT, About.MESSAGE),
        (451, "4.3.0", Stage.CONTENT, About.RELAY),
        (552, "5.3.4", Stage.MAIL, About.MESSAGE),
        (451, "4.4.1", Stage.CONTENT, About.RELAY),
        (550, "5.4.1", Stage.RCPT, About.RECIPIENT),
        (503, "5.5.1", Stage.DATA, About.RELAY),
        (550, "5.6.7", Stage.MAIL, About.MESSAGE),
        # Policy.
        (550, "5.7.1", Stage.MAIL, About.SENDER),
        (550, "5.7.1", Stage.RCPT, About.SENDER),
        (554, "5.7.1", Stage.RCPT, About.SENDER),
        (550, "5.7.1", Stage.CONTENT, About.MESSAGE),
        (535, "5.7.8", Stage.MAIL, About.RELAY),
        (550, "5.7.17", Stage.RCPT, About.RECIPIENT),
        # An enhanced code that says nothing.
        (550, "5.0.0", Stage.RCPT, About.RECIPIENT),
        (550, "5.9.9", Stage.CONTENT, About.MESSAGE),
        # By the code and the stage.
        (550, None, Stage.MAIL, About.SENDER),
        (550, None, Stage.RCPT, About.RECIPIENT),
        (553, None, Stage.RCPT, About.RECIPIENT),
        (450, None, Stage.RCPT, About.RECIPIENT),
        (552, None, Stage.MAIL, About.MESSAGE),
        (552, None, Stage.RCPT, About.RECIPIENT),
        (552, None, Stage.CONTENT, About.MESSAGE),
        (554, None, Stage.RCPT, About.RELAY),
        (554, None, Stage.CONTENT, About.MESSAGE),
        (556, None, Stage.RCPT, About.RECIPIENT),
        (451, None, Stage.RCPT, About.RELAY),
        (421, None, Stage.RCPT, About.RELAY),
        (500, None, Stage.RCPT, About.RELAY),
        (530, None, Stage.MAIL, About.RELAY),
    ],
)
def test_a_refusal_is_about_somebody(code: int, enhanced: str | None, stage: Stage, about: About) -> None:
    assert classify(Reply(code, enhanced, ""), stage) == ReplyClass(code >= 500, about)


@given(st.integers(400, 599), st.integers(0, 999), st.integers(0, 999), st.sampled_from(Stage))
def test_every_refusal_has_a_class_and_the_first_digit_decides_about_permanence(
    code: int, subject: int, detail: int, stage: Stage
) -> None:
    for enhanced in (None, f"{code // 100}.{subject}.{detail}"):
        assert classify(Reply(code, enhanced, ""), stage).permanent == (code // 100 == 5)


def test_relay_access_denied_never_suppresses_a_recipient() -> None:
    said = parse_reply(554, "5.7.1 <user@example.com>: Relay access denied")
    assert classify(said, Stage.RCPT).about is not About.RECIPIENT
    assert classify(parse_reply(554, "blocked, see https://rbl.example/"), Stage.RCPT).about is not About.RECIPIENT
