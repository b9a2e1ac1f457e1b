"""What is better changed in a mail before it goes to many: by rules of thumb, none of which stops it."""

import re
from collections.abc import Iterator
from typing import Final

from core.markup import Kind, Unreadable, attributes, tokens
from core.templates import Rendered

CLIPPED_AT: Final = 102 * 1024
"""Bytes of HTML that Gmail shows before it cuts."""
SUBJECT_SHOWN: Final = 78
LINKS_OUT = re.compile(r"unsubscribe|abmelden|abbestellen|désabonner|opt.?out", re.IGNORECASE)
_SHOUTED: Final = 10
"""Letters."""


def lint(mail: Rendered) -> Iterator[tuple[str, str]]:
    """Codes, which are stable, and what they say."""
    yield from _subject(mail.subject)
    html = mail.html or ""
    size = len(html.encode("utf-8", "replace"))
    if size > CLIPPED_AT:
        yield "html_clipped", f"the HTML has {size} bytes: Gmail shows {CLIPPED_AT}"
    if mail.text is None:
        yield "no_text", "there is no text part, and none could be made from the HTML"
    if not LINKS_OUT.search(html) and not LINKS_OUT.search(mail.text or ""):
        yield "no_unsubscribe", "no link to unsubscribe: {{ unsubscribe_url }}"
    without_alt = _images_without_alt(html)
    if without_alt:
        yield "image_without_alt", f"{without_alt} images have no alt text"


def _subject(subject: str) -> Iterator[tuple[str, str]]:
    if not subject:
        yield "subject_empty", "the subject is empty"
    letters = [one for one in subject if one.isalpha()]
    if len(letters) >= _SHOUTED and all(map(str.isupper, letters)):
        yield "subject_capitals", "the subject is all capitals"
    if len(subject) > SUBJECT_SHOWN:
        yield "subject_long", f"the subject has {len(subject)} characters: most programs show {SUBJECT_SHOWN} at most"
    if "!!" in subject or "$$" in subject:
        yield "subject_marks", "the subject has !! or $$"


def _images_without_alt(html: str) -> int:
    count = 0
    try:
        for token in tokens(html):
            if token.kind is Kind.OPEN and token.name == "img" and "alt" not in attributes(html, token):
                count += 1
    except Unreadable:
        pass
    return count
