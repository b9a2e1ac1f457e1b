"""The standard library's parser and its EmailMessage are the judges."""

import email
import email.policy
import re
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import parseaddr, parsedate_to_datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.attachments import OTHER
from core.errors import InvalidInput
from core.message_ids import message_id, parse_message_id
from core.templates import RenderFailed, compile_template, one_line
from mailer.attachments import Attachment
from mailer.mime import Envelope, Sender, compile_mail
from schemas.states import Lane

SEND = UUID("018f0000-0000-7000-8000-000000000001")
NEWS = Sender("news@example.com", "News")
BODIES = {"subject": "{{ s }}", "html": "{{ h|safe }}", "text": "{{ t }}"}

words = st.text() | st.text('ab ,."\\()<>@=?_é€\U0001f600\r\n\t\u00a0\u2028', max_size=200)
subjects = words | st.just("x") | st.lists(st.text("abc", min_size=1, max_size=30), max_size=40).map(" ".join)
bodies = words | st.lists(
    st.sampled_from(
        [
            ".",
            "..",
            "\n",
            "\r\n",
            "\r",
            " ",
            "From ",
            "--",
            "=",
            "a" * 80,
            "b" * 1000,
            "é" * 500,
            "é",
            "\t\n",
            "x" * 998,
        ]
    )
).map("".join)


def build(subject: str = "S", html: str | None = None, text: str | None = None, **given_: Any) -> Envelope:
    sender = given_.pop("sender", NEWS)
    template = compile_template(
        "{{ s }}", None if html is None else "{{ h|safe }}", None if text is None else "{{ t }}"
    )
    variables = {"s": subject, "h": html, "t": text}
    position, to, name = given_.pop("position", 3), given_.pop("to", "a@example.net"), given_.pop("name", None)
    return compile_mail(SEND, template, sender, **given_).build(position, to, name, variables, "r1")


def parsed(mail: Envelope) -> EmailMessage:
    message = email.message_from_bytes(mail.content + mail.tail, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def body(message: EmailMessage, subtype: str) -> str:
    part = message.get_body((subtype,))
    assert part is not None
    assert not part.defects
    content = part.get_content()
    assert isinstance(content, str)
    return content


def lines(text: str) -> str:
    """Up to line ends, and to those at the end."""
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\n")


def assert_carried_by_any_relay(mail: Envelope) -> None:
    content = mail.content + mail.tail
    assert content.endswith(b"\r\n")
    assert mail.content.endswith(b"\r\n")
    assert not re.search(rb"(^|\n)\.", mail.tail)
    assert mail.tail.isascii()
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\x00", content)
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert content.isascii() or mail.smtputf8
    head = content.partition(b"\r\n\r\n")[0]
    assert max(map(len, head.split(b"\r\n"))) <= 78 + len(mail.recipient)


@settings(max_examples=300, deadline=None)
@given(subjects, words, bodies, bodies)
def test_a_mail_says_what_it_was_given(subject: str, name: str, html: str, text: str) -> None:
    mail = build(subject, html, text, name=name)
    assert_carried_by_any_relay(mail)
    message = parsed(mail)

    judge = EmailMessage()
    judge["Subject"] = one_line(subject)
    judge.set_content("x")
    assert message["subject"] == judge["subject"]
    assert [address.addr_spec for address in message["to"].addresses] == ["a@example.net"]
    # The parser of Python 3.11 makes white space of its own where a name takes more than one encoded word.
    assert "".join(message["to"].addresses[0].display_name.split()) == "".join(one_line(name).split())
    assert [address.addr_spec for address in message["from"].addresses] == ["news@example.com"]
    assert lines(body(message, "html")) == lines(html)
    assert lines(body(message, "plain")) == lines(text)
    assert sorted(key.lower() for key in message) == sorted(
        ["from", "to", "subject", "date", "message-id", "mime-version", "precedence", "content-type"]
    )


@settings(max_examples=200, deadline=None)
@given(bodies)
def test_a_mail_of_one_part_says_what_it_was_given(text: str) -> None:
    for kind, mail in (("plain", build(text=text)), ("html", build(html=text))):
        assert_carried_by_any_relay(mail)
        message = parsed(mail)
        assert not message.is_multipart()
        assert lines(body(message, kind)) == lines(text)


@settings(deadline=None)
@given(words)
def test_a_recipient_is_addressed_safely_or_not_at_all(to: str) -> None:
    try:
        mail = build(text="x", to=to)
    except RenderFailed:
        return
    assert_carried_by_any_relay(mail)
    assert not re.search(r"[\s<>]", mail.recipient)
    assert len(parsed(mail)["to"].addresses) == 1


@pytest.mark.parametrize(
    "name", ["Jürgen", "é " * 100 + "é", "\U0001f600" * 50, "x" * 200, "=?utf-8?q?x?=", "ü, (x) <a@b>"]
)
def test_a_name_in_encoded_words_is_read_as_it_was_given(name: str) -> None:
    raw = email.message_from_bytes(build(text="t", name=name).content)["to"]
    assert str(make_header(decode_header(raw))) == f"{name} <a@example.net>"


@pytest.mark.parametrize("name", ["Jo", "Jo  Neil", 'O\'Neil, "X" \\', "a@b <c>", "(x)", "Dr. No"])
def test_a_name_in_ascii_is_read_as_it_was_given(name: str) -> None:
    assert parseaddr(email.message_from_bytes(build(text="t", name=name).content)["to"]) == (name, "a@example.net")


def test_both_bodies_make_an_alternative_with_the_better_one_last() -> None:
    message = parsed(build(html="<b>h</b>", text="t"))
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("plain\nlines\n", "7bit"),
        ("x" * 998, "7bit"),
        ("x" * 999, "quoted-printable"),
        ("Grüße aus Köln, mit etwas mehr Text", "quoted-printable"),
        ("Привет мир", "base64"),
        ("a\x00b", "quoted-printable"),
        ("a\x0cb", "quoted-printable"),
        (f"--=_{SEND.hex}\n", "7bit"),
    ],
)
def test_the_encoding_is_the_simplest_that_works_everywhere(text: str, encoding: str) -> None:
    assert parsed(build(text=text))["content-transfer-encoding"] == encoding


def test_a_body_cannot_contain_the_boundary() -> None:
    evil = f"x\n--=_{SEND.hex}--\nContent-Type: text/html\n\nevil"
    message = parsed(build(html=evil, text=evil))
    assert len(list(message.iter_parts())) == 2
    assert lines(body(message, "html")) == lines(body(message, "plain")) == evil


@pytest.mark.parametrize(
    "evil", ["a\r\nBcc: x@example.org", "a\nBcc: x@example.org", "a\rBcc: x@example.org", "a\x00\r\n\r\nbody"]
)
def test_no_header_can_be_smuggled_in(evil: str) -> None:
    message = parsed(build(evil, text="t", name=evil))
    assert "bcc" not in message
    assert lines(body(message, "plain")) == "t"
    with pytest.raises(RenderFailed):
        build(text="t", to=f"a@example.net{evil}")
    with pytest.raises(InvalidInput):
        Sender("a@example.com", evil)
    with pytest.raises(InvalidInput):
        Sender(f"a@example.com{evil}", "x")
    with pytest.raises(InvalidInput):
        Sender("a@example.com", "x", f"a@example.com{evil}")


def test_a_domain_of_other_letters_travels_as_a_labels() -> None:
    mail = build(text="t", to="a@bücher.example", sender=Sender("b@bücher.example", "B", "c@bücher.example"))
    assert (mail.sender, mail.recipient) == ("b@xn--bcher-kva.example", "a@xn--bcher-kva.example")
    assert not mail.smtputf8
    message = parsed(mail)
    assert message["to"].addresses[0].addr_spec == "a@xn--bcher-kva.example"
    assert message["reply-to"].addresses[0].addr_spec == "c@xn--bcher-kva.example"
    assert mail.message_id.endswith("@xn--bcher-kva.example>")


def test_a_local_part_of_other_letters_needs_smtputf8() -> None:
    mail = build(text="t", to="jö@example.net")
    assert mail.smtputf8
    assert mail.recipient == "jö@example.net"
    assert "\r\nTo: jö@example.net\r\n".encode() in mail.content
    assert build(text="t", sender=Sender("jö@example.com", "J")).smtputf8
    assert build(text="t", sender=Sender("j@example.com", "J", "jö@example.com")).smtputf8
    assert not build(text="é", name="é").smtputf8


def test_the_recipient_is_known_to_the_template_before_variables_of_the_same_name() -> None:
    mail = compile_mail(SEND, compile_template("{{ name }} {{ email }} {{ id }} {{ city }}", None, "x"), NEWS)
    variables = {"name": "other", "email": "other", "id": "other", "city": "Köln"}
    assert parsed(mail.build(1, "a@example.net", "A", variables, "r1"))["subject"] == "A a@example.net r1 Köln"
    assert parsed(mail.build(1, "a@example.net", None, variables, None))["subject"] == "other a@example.net other Köln"


def test_a_failing_template_ends_one_mail() -> None:
    mail = compile_mail(SEND, compile_template("{{ price * 2 }}", None, "x"), NEWS)
    with pytest.raises(RenderFailed):
        mail.build(1, "a@example.net", None, {}, None)
    assert parsed(mail.build(1, "a@example.net", None, {"price": 2}, None))["subject"] == "4"


def test_the_same_mail_is_the_same_bytes_but_for_its_date() -> None:
    first, second = (re.sub(rb"Date: .*", b"", build(html="h", text="t").content) for _ in range(2))
    assert first == second


def test_the_date_is_now() -> None:
    date = parsedate_to_datetime(parsed(build(text="t"))["date"])
    assert date.utcoffset() is not None
    assert abs((date - date.now(date.tzinfo)).total_seconds()) < 60


@pytest.mark.parametrize(
    ("lane", "precedence", "auto_submitted"),
    [(Lane.CAMPAIGN, "bulk", None), (Lane.BULK, "bulk", None), (Lane.TRANSACTIONAL, None, "auto-generated")],
)
def test_bulk_says_that_it_is_and_so_does_what_a_program_wrote_to_one_person(
    lane: Lane, precedence: str | None, auto_submitted: str | None
) -> None:
    message = parsed(build(text="t", lane=lane))
    assert (message["precedence"], message["auto-submitted"]) == (precedence, auto_submitted)


def test_bounces_go_to_the_return_path_and_the_mail_stays_that_of_its_from() -> None:
    sender = Sender("news@shop.example", "News", return_path="bounces@Mail.example")
    compiled = compile_mail(SEND, compile_template("S", None, "t"), sender)
    mail = compiled.build(3, "a@example.net", None, {}, None)
    assert mail.sender == "bounces@Mail.example"
    assert mail.message_id == message_id(SEND, 3, "shop.example")
    assert compiled.sending_domain == "shop.example"
    assert parsed(mail)["from"].addresses[0].addr_spec == "news@shop.example"
    assert "return-path" not in parsed(mail)


def test_who_sends_for_somebody_else_is_in_sender() -> None:
    assert parsed(build(text="t", sender=Sender("a@x.test", "A", sender="b@x.test")))["sender"] == "b@x.test"
    assert parsed(build(text="t", sender=Sender("a@x.test", "A", sender="a@x.test")))["sender"] is None


HEADERS = {
    "X-Campaign": "Spring, 2026",
    "x-note": "Grüße " * 20 + "x",
    "List-Id": "News <news.shop.example>",
    "Feedback-ID": "1:2:3:shop",
    "references": " ".join(f"<{number}{'0' * 30}@shop.example>" for number in range(8)),
    "Organization": "Käse & Co",
    "X-Long": "x" * 900,
    "X-Json": '{"a": "=?utf-8?q?x?="}',
}


def test_headers_of_ones_own_are_read_as_they_were_given() -> None:
    mail = build(text="t", headers=HEADERS)
    message = parsed(mail)
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", mail.content)
    assert max(map(len, mail.content.split(b"\r\n"))) <= 998
    for name, value in HEADERS.items():
        assert str(message[name]).strip() == value.strip(), name


header_values = st.text('abc ,;:"\\()<>@=?_é€\U0001f600\u3000', min_size=1, max_size=300)


@settings(deadline=None)
@given(st.from_regex(r"X-[A-Za-z0-9_-]{1,60}", fullmatch=True), header_values | st.text(min_size=1, max_size=300))
def test_any_header_is_read_as_it_was_given_or_refused(name: str, value: str) -> None:
    try:
        mail = build(text="t", headers={name: value})
    except InvalidInput:
        return
    assert max(map(len, mail.content.split(b"\r\n"))) <= 998
    message = parsed(mail)
    assert message.keys().count(name) == 1
    raw = email.message_from_bytes(mail.content)[name]
    read = str(make_header(decode_header(raw))) if "=?utf-8?b?" in raw else raw.replace("\r\n ", " ")
    assert read == value.strip(" \t")
    assert lines(body(message, "plain")) == "t"


filenames = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=100) | st.just("a.pdf")
content_ids = st.from_regex(r"[A-Za-z0-9._@+-]{1,40}", fullmatch=True)
files = st.builds(
    Attachment,
    filenames.filter(lambda name: one_line(name) == name and name not in (".", "..") and not set(name) & {"/", "\\"}),
    st.sampled_from([OTHER, "image/png", "text/csv; charset=utf-8", 'text/calendar; method=REQUEST; x="a; b"']),
    st.binary(max_size=300) | st.just(b"\n.\r\n." * 100),
    st.none() | content_ids,
)


@settings(deadline=None)
@given(st.lists(files, max_size=4), st.none() | bodies, bodies)
def test_attachments_and_images_are_what_the_standard_library_makes_of_them(
    given_files: list[Attachment], text: str | None, html: str
) -> None:
    mail = build("S", html, text, attachments=given_files)
    assert_carried_by_any_relay(mail)
    message = parsed(mail)
    judge = email.message_from_bytes(_judged(html, text, given_files).as_bytes(), policy=email.policy.default)
    assert lines(body(message, "html")) == lines(html)
    assert text is None or lines(body(message, "plain")) == lines(text)
    assert _files(message) == _files(judge)
    if any(one.inline is None for one in given_files):
        attached = list(message.iter_attachments())
        assert [_told(one) for one in attached] == [one for one in _files(judge) if one[3] == "attachment"]
    for part in message.walk():
        assert not part.defects


def _judged(html: str, text: str | None, given_files: list[Attachment]) -> EmailMessage:
    judge = EmailMessage()
    judge.set_content("x" if text is None else text)
    judge.add_alternative(html, subtype="html")
    page = judge.get_body(("html",))
    assert page is not None
    for one in sorted(given_files, key=lambda file: file.inline is None):
        where, more = (
            (judge, {"disposition": "attachment"}) if one.inline is None else (page, {"disposition": "inline"})
        )
        add = where.add_attachment if one.inline is None else where.add_related
        kind = EmailMessage()
        kind["content-type"] = one.content_type
        if one.inline is not None:
            more["cid"] = f"<{one.inline}>"
        add(
            one.data,
            kind.get_content_maintype(),
            kind.get_content_subtype(),
            filename=one.filename,
            params=dict(kind["content-type"].params),
            **more,
        )
    return judge


def _told(part: Any) -> tuple[Any, ...]:
    parameters = dict(part["content-type"].params)
    content = part.get_payload(decode=True)
    return (
        part.get_content_type(),
        parameters,
        part.get_filename(),
        part.get_content_disposition(),
        part["content-id"],
        content,
    )


def _files(message: Any) -> list[tuple[Any, ...]]:
    return [_told(part) for part in message.walk() if part.get_content_disposition() is not None]


def test_mails_of_a_send_share_what_is_attached() -> None:
    template = compile_template("S", "<img src=cid:logo>", "t")
    compiled = compile_mail(
        SEND,
        template,
        NEWS,
        attachments=[Attachment("a.png", "image/png", b"x" * 1000, "logo"), Attachment("b", OTHER, b"y")],
    )
    first, second = (compiled.build(position, "a@example.net", None, {}, None) for position in (1, 2))
    assert first.tail is second.tail
    assert compiled.size == len(first.tail) > 1000
    assert parsed(first).get_content_type() == "multipart/mixed"
    kinds = [part.get_content_type() for part in parsed(second).walk()]
    assert kinds == [
        "multipart/mixed", "multipart/related", "multipart/alternative", "text/plain", "text/html", "image/png", OTHER,
    ]  # fmt: skip


def test_a_large_attachment_is_whole() -> None:
    data = bytes(range(256)) * 1000
    message = parsed(build(html="x", attachments=[Attachment("a.bin", OTHER, data)]))
    (attached,) = message.iter_attachments()
    assert attached.get_content() == data


EVIL = ["a\r\nBcc: x@example.org", "a\nBcc: x", "a\rBcc: x", "a\x00", "a\x0bb", "a\x85b", "a\u2028b"]


@pytest.mark.parametrize("evil", EVIL)
def test_nothing_that_a_user_gives_can_start_a_header_of_its_own(evil: str) -> None:
    for refused in (
        lambda: build(text="t", headers={"X-A": evil}),
        lambda: build(text="t", headers={f"X-{evil}": "b"}),
        lambda: build(text="t", headers={"References": f"<{evil}@b>"}),
        lambda: Attachment(evil, OTHER, b""),
        lambda: Attachment("a", f"text/{evil}", b""),
        lambda: Attachment("a", f'text/plain; x="{evil}"', b""),
        lambda: Attachment("a", OTHER, b"", evil),
        lambda: Sender("a@example.com", "A", sender=f"b@example.com{evil}"),
        lambda: Sender("a@example.com", "A", return_path=f"b@example.com{evil}"),
    ):
        with pytest.raises(InvalidInput):
            refused()


@given(st.uuids(), st.integers(0, 2**31))
def test_a_message_id_tells_send_and_position(send_id: UUID, position: int) -> None:
    made = message_id(send_id, position, "example.com")
    assert parse_message_id(made) == (send_id, position, "example.com")
    assert made == f"<{send_id.hex}.{position}@example.com>"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<a@example.com>",
        f"{SEND.hex}.1@example.com",
        f"<{SEND.hex}.01@example.com>",
        f"<{SEND.hex}.1@>",
        f"<{SEND.hex}.x@e>",
    ],
)
def test_other_message_ids_are_not_ours(text: str) -> None:
    assert parse_message_id(text) is None


def test_an_envelope_carries_its_message_id() -> None:
    mail = build(text="t", position=42)
    assert mail.message_id == message_id(SEND, 42, "example.com") == parsed(mail)["message-id"]


@pytest.mark.parametrize(
    "address", ["", "a", "a@", "@example.com", "a b@example.com", "<a@example.com>", "a@example.com, b@example.com"]
)
def test_a_sender_without_a_good_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Sender(address, "x")
    assert refused.value.field == "sender.email"
    with pytest.raises(InvalidInput) as refused:
        Sender("a@example.com", "x", address)
    assert refused.value.field == "sender.reply_to"
