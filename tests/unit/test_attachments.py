"""What may be attached, how templates refer to it, and the headers that a user may add."""

from uuid import UUID

import pytest

from core.attachments import check_attachments, clean_filename, clean_type
from core.errors import InvalidInput
from core.mail_headers import BYTES_MAX, HEADERS_MAX, clean_headers
from schemas.messages import TaskAttachment

LOGO = TaskAttachment(id=UUID(int=1), inline="logo@shop")


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("application/pdf", "application/pdf"),
        ("Text/CSV ; Charset=utf-8", "text/csv; charset=utf-8"),
        ('text/calendar;method="REQUEST"; name=x', 'text/calendar; method="REQUEST"'),
    ],
)
def test_a_media_type_is_written_in_one_way(given: str, clean: str) -> None:
    assert clean_type("type", given) == clean


@pytest.mark.parametrize(
    "given",
    ["", "pdf", "a/", "a/b;", "a/b; c", "a/b\r\nX: y", 'a/b; c="\r\n"', "multipart/mixed", "message/rfc822", "é/b"],
)
def test_what_is_no_media_type_of_a_file_is_refused(given: str) -> None:
    with pytest.raises(InvalidInput):
        clean_type("type", given)


@pytest.mark.parametrize("given", ["", " ", ".", "..", "a/b", "a\\b", "a\0", "a\nb", "x" * 201])
def test_what_is_no_name_of_a_file_is_refused(given: str) -> None:
    with pytest.raises(InvalidInput):
        clean_filename("name", given)


@pytest.mark.parametrize(
    "html",
    [
        '<img src="cid:logo@shop">',
        "<img src=CID:logo@shop>",
        "<a style='background:url( cid:logo@shop)'>",
        '"cid:{{ x }}"',
    ],
)
def test_an_image_that_the_html_shows_is_taken(html: str) -> None:
    check_attachments([LOGO], html)


@pytest.mark.parametrize("html", [None, "<p>acid:logo@shop, cid:logo@shop</p>", '<img src="cid:other">'])
def test_an_image_that_the_html_does_not_show_is_refused(html: str | None) -> None:
    with pytest.raises(InvalidInput):
        check_attachments([LOGO], html)


def test_headers_are_known_by_their_names_in_any_case() -> None:
    assert clean_headers({"list-id": " <a.b> ", "X-a": "1"}) == {"List-Id": "<a.b>", "X-a": "1"}


@pytest.mark.parametrize(
    "name",
    [
        "From", "to", "BCC", "Subject", "Date", "Message-ID", "Content-Type", "MIME-Version", "Received", "Return-Path",
        "DKIM-Signature", "List-Unsubscribe", "List-Unsubscribe-Post", "Precedence", "Auto-Submitted", "Resent-To",
        "X-", "", "X-A:b", "X-A b", "X-Ä", "X-" + "a" * 70, "X-SMTPAPI", "X-Mailgun-Recipient-Variables", "X-MSYS-API",
    ],
)  # fmt: skip
def test_a_header_that_is_ours_or_a_relays_order_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        clean_headers({name: "x"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-A", ""),
        ("X-A", "{{ name }}"),
        ("X-A", "x" * 901),
        ("List-Id", "Käse <a.b>"),
        ("References", "none"),
        ("In-Reply-To", "<a@b>, <c@d>"),
        ("X-A", "a\r\n b"),
    ],
)
def test_a_value_that_a_header_cannot_have_is_refused(name: str, value: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        clean_headers({name: value})
    assert refused.value.field == f"template.headers.{name}"


def test_headers_are_bounded_in_number_and_size() -> None:
    clean_headers({f"X-{number}": "x" for number in range(HEADERS_MAX)})
    for headers in (
        {f"X-{number}": "x" for number in range(HEADERS_MAX + 1)},
        {f"X-{number}": "x" * 900 for number in range(BYTES_MAX // 900 + 1)},
        {"X-A": "b", "x-a": "b"},
    ):
        with pytest.raises(InvalidInput) as refused:
            clean_headers(headers)
        assert refused.value.field == "template.headers"
