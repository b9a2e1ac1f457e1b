"""What a template's parts get once, before they are stored: their CSS inlined, and a text part where there is none."""

from collections.abc import Callable

from core.errors import InvalidInput
from core.inlining import inline_css
from core.plain_text import text_of
from core.templates import compile_template


def finished(html: str | None, text: str | None, *, inline: bool) -> tuple[str | None, str | None]:
    """HTML and text of a template that has been tried. Where something would not be a template any more, it is left out."""
    if html is None:
        return html, text
    styled = _if_it_compiles(lambda: inline_css(html)) if inline else None
    made = text if text is not None else _if_it_compiles(lambda: text_of(html))
    return styled or html, made


def _if_it_compiles(make: Callable[[], str | None]) -> str | None:
    made = make()
    if made is None:
        return None
    try:
        compile_template("x", made, None)
    except InvalidInput:
        return None
    return made
