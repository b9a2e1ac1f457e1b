"""Templates of campaigns: compiled and tried once, then rendered for each recipient inside a sandbox with a budget."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from minijinja import Environment, TemplateError

from core.errors import InvalidInput, QueueError

MAX_SUBJECT = 2_000
"""Characters, of the source and of what it renders to."""
MAX_BODY = 512 * 1024
"""Bytes of the source of one body."""
MAX_OUTPUT = 1024 * 1024
"""Bytes of one rendered body."""
FUEL = 50_000
"""For one render of one part. minijinja takes 1 an instruction and 1 for each 64 bytes it puts out or copies, so this
bounds the memory too, to about 3 MiB; the time it bounds to about 5 ms."""

_NAMES = {"subject": "subject.txt", "html": "body.html", "text": "body.txt"}
"""The suffix decides about escaping."""
_NOT_ONE_LINE = re.compile(r"\s*[\x00-\x1f\x7f-\x9f\u2028\u2029]+\s*")
_SCALARS = frozenset({str, int, float, bool})


class RenderFailed(QueueError):
    """The mail of one recipient cannot be made; it fails, the others go on."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """`subject` is one line without control characters. A part the template does not have is None."""

    subject: str
    html: str | None
    text: str | None


class Template:
    """Made by `compile_template`. Rendering does not change it."""

    __slots__ = ("_environment", "has_html", "has_text")

    def __init__(self, environment: Environment, *, has_html: bool, has_text: bool) -> None:
        self._environment = environment
        self.has_html = has_html
        self.has_text = has_text

    def render(self, variables: Mapping[str, Any]) -> Rendered:
        """`variables` (what JSON can hold) are the template's names; `attributes.x` is the same as `x`. A missing one
        is empty. Raises RenderFailed.
        """
        context = _context(variables)
        return Rendered(
            subject=self._subject(context),
            html=self._body("html", context) if self.has_html else None,
            text=self._body("text", context) if self.has_text else None,
        )

    def _subject(self, context: dict[str, Any]) -> str:
        subject = self._render("subject", context)
        if len(subject) > MAX_SUBJECT:
            raise RenderFailed(f"subject: longer than {MAX_SUBJECT} characters")
        return one_line(subject)

    def _body(self, part: str, context: dict[str, Any]) -> str:
        body = self._render(part, context)
        # No character takes more than four bytes: short bodies need no count.
        if len(body) * 4 > MAX_OUTPUT and len(body.encode("utf-8", "replace")) > MAX_OUTPUT:
            raise RenderFailed(f"{part}: larger than {MAX_OUTPUT} bytes")
        return body

    def _render(self, part: str, context: dict[str, Any]) -> str:
        try:
            return self._environment.render_template(_NAMES[part], **context)
        except TemplateError as error:
            raise RenderFailed(f"{part}: {_complaint(error)}") from error
        except Exception as error:  # a method of a Python value, called by the template with wrong arguments
            raise RenderFailed(f"{part}: {error}") from error


def compile_template(subject: str, html: str | None, text: str | None) -> Template:
    """Raises InvalidInput, with the part as its field (`template.html`), when no recipient could ever get this."""
    parts = {"subject": subject, "html": html, "text": text}
    if html is None and text is None:
        raise InvalidInput("template", "needs html or text", "empty")
    environment = Environment(fuel=FUEL, undefined_behavior="chainable", keep_trailing_newline=True, debug=False)
    environment.remove_global("debug")
    for part, source in parts.items():
        if source is not None:
            _add(environment, part, source)
    template = Template(environment, has_html=html is not None, has_text=text is not None)
    for part, source in parts.items():
        if source is not None:
            _try(template, part, source)
    return template


def one_line(text: str) -> str:
    """Control characters and line ends become one space, so that nothing of it can start a header of its own."""
    return (text if text.isprintable() else _NOT_ONE_LINE.sub(" ", text)).strip()


def _add(environment: Environment, part: str, source: str) -> None:
    field = f"template.{part}"
    if not source.strip():
        raise InvalidInput(field, "is empty", "empty")
    if part == "subject" and len(source) > MAX_SUBJECT:
        raise InvalidInput(field, f"is longer than {MAX_SUBJECT} characters", "too_long")
    if len(source.encode("utf-8", "replace")) > MAX_BODY:
        raise InvalidInput(field, f"is larger than {MAX_BODY} bytes", "too_long")
    try:
        environment.add_template(_NAMES[part], source)
    except TemplateError as error:
        raise InvalidInput(field, _complaint(error), "syntax") from error


def _try(template: Template, part: str, source: str) -> None:
    """Renders with nothing but a name, then with a number for whatever is asked for: `price * 2` needs one. A template
    that fails with both fails with everything.
    """
    known = {"email": "sample@example.com", "name": "Sample", "id": "1"}
    names = template._environment.undeclared_variables_in_str(source)
    try:
        template._render(part, _context(known))
    except RenderFailed as first:
        try:
            template._render(part, _context({name: known.get(name, 1) for name in names}))
        except RenderFailed:
            raise InvalidInput(f"template.{part}", str(first).removeprefix(f"{part}: "), "render") from first


def _complaint(error: TemplateError) -> str:
    what = "takes too long: a loop without end?" if error.kind == "OutOfFuel" else error.detail or error.message
    return f"line {error.line}: {what}" if error.line else what


class _Fields(Mapping[str, Any]):
    """An object of the variables, as templates see it. A dict would lend them its methods: `update` in a loop fills the
    memory without any fuel, and `clear` empties the caller's value.
    """

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


def _context(variables: Mapping[str, Any]) -> dict[str, Any]:
    # null counts as missing, or mails would say "None".
    context = {
        name: value if type(value) in _SCALARS else _frozen(value)
        for name, value in variables.items()
        if value is not None
    }
    context.setdefault("attributes", _Fields(context.copy()))
    return context


def _frozen(value: Any) -> Any:
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        return _Fields({str(name): _frozen(inner) for name, inner in value.items() if inner is not None})
    if isinstance(value, list | tuple):
        return tuple(_frozen(inner) for inner in value)
    return "" if value is None else str(value)
