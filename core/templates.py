"""Templates of campaigns: compiled and tried once, then rendered for each recipient inside a sandbox with a budget."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from minijinja import Environment, TemplateError, safe

from core.errors import InvalidInput, QueueError
from core.merge import merge_of
from core.sources import MAX_BODY as MAX_BODY
from core.sources import names_in, paths_in, pieces_of
from core.template_rules import SCALAR, checked
from schemas.states import MissingVariables

MAX_SUBJECT = 2_000
"""Characters, of the source and of what it renders to."""
MAX_OUTPUT = 1024 * 1024
"""Bytes of one rendered body."""
FUEL = 50_000
"""For one render of one part. minijinja takes 1 an instruction and 1 for each 64 bytes it puts out or copies, so this
bounds the memory too, to about 3 MiB; the time it bounds to about 5 ms."""

_NAMES = {"subject": "subject.txt", "html": "body.html", "text": "body.txt"}
"""The suffix decides about escaping."""
_GIVEN = "given__"
_METHODS = frozenset(dir(dict)) - frozenset(dir(object))
"""Of the dict that minijinja looks names up in: where no variable has such a name, it would find these."""
_SAMPLE = {"email": "sample@example.com", "name": "Sample", "id": "1"}
_OF_VALUES = frozenset(("InvalidOperation", "UndefinedError", "BadSerialization", "UnknownMethod"))
"""Errors that another value may not have."""
_GLOBALS = frozenset(("range", "loop"))
_NO_FIELDS = _GLOBALS | {_GIVEN, "attributes", "self", "not", "true", "false", "none", "True", "False", "None"}
_NOT_ONE_LINE = re.compile(r"\s*[\x00-\x1f\x7f-\x9f\u2028\u2029]+\s*")
_SCALARS = frozenset({str, int, float, bool})


class RenderFailed(QueueError):
    """The mail of one recipient cannot be made; it fails, the others go on."""


class Rendered(NamedTuple):
    """`subject` is one line without control characters. A part the template does not have is None."""

    subject: str
    html: str | None
    text: str | None


class Template:
    """Made by `compile_template`. Rendering does not change it."""

    __slots__ = ("_environment", "_merges", "_names", "_sources", "_wants_all", "_wants_given", "has_html", "has_text")

    def __init__(self, environment: Environment, sources: Mapping[str, str], *, lenient: bool) -> None:
        self._environment = environment
        self._sources = sources
        # Others need not be handed over at all: that is what rendering costs most.
        self._names = frozenset[str]().union(
            *(names_in(one.text) for text in sources.values() for one in pieces_of(text))
        )
        self._wants_all = "attributes" in self._names
        self._wants_given = _GIVEN in self._names
        self._merges = {
            part: merge_of(source, escape=part == "html", lenient=lenient, without=_NO_FIELDS)
            for part, source in sources.items()
        }
        self.has_html = "html" in sources
        self.has_text = "text" in sources

    def render(self, variables: Mapping[str, Any]) -> Rendered:
        """`variables` (what JSON can hold) are the template's names; `attributes.x` is the same as `x`. A missing one
        is empty, or where the template is strict the end of this mail. Raises RenderFailed.
        """
        context = self._context(variables)
        subject = self._put_together("subject", context)
        html = self._put_together("html", context) if self.has_html else None
        text = self._put_together("text", context) if self.has_text else None
        if len(subject) > MAX_SUBJECT:
            raise RenderFailed(f"subject: longer than {MAX_SUBJECT} characters")
        return Rendered(one_line(subject), _within("html", html), _within("text", text))

    def missing(self, variables: Mapping[str, Any]) -> list[str]:
        """What the template reads and these variables do not have, by name; defaults and conditions may well see to it."""
        found: dict[str, None] = {}
        context = self._context(variables)
        for part, source in self._sources.items():
            read = self._environment.undeclared_variables_in_template(_NAMES[part], nested=True)
            order = {path: None for one in pieces_of(source) for path in paths_in(one.text) if path in read}
            found |= {path: None for path in order if not _is_there(path, context)}
        return list(found)

    def _context(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        # null counts as missing, or mails would say "None".
        names = self._names
        context = {
            name: value if type(value) in _SCALARS else _frozen(value)
            for name, value in variables.items()
            if value is not None and name in names
        }
        if self._wants_given:
            context[_GIVEN] = _Given(context.copy())
        if self._wants_all and "attributes" not in context:
            context["attributes"] = _frozen(variables)
        return context

    def _put_together(self, part: str, context: dict[str, Any]) -> str:
        merge = self._merges[part]
        done = None if merge is None else merge.render(context)
        return self._render(part, context) if done is None else done

    def _render(self, part: str, context: dict[str, Any]) -> str:
        try:
            return self._environment.render_template(_NAMES[part], **context)
        except TemplateError as error:
            if error.kind == "UndefinedError":
                raise RenderFailed(f"{part}: {self._undefined(part, error, context)}") from error
            raise RenderFailed(f"{part}: {_complaint(error)}") from error
        except Exception as error:  # a method of a Python value, called by the template with wrong arguments
            raise RenderFailed(f"{part}: {error}") from error

    def _undefined(self, part: str, error: TemplateError, context: Mapping[str, Any]) -> str:
        """Which variable it was: minijinja tells only where."""
        there, piece = self._place(part, error)
        read = paths_in(piece)
        first = [path for path in paths_in(there) if path in read]
        name = next((path for path in (*first, *read) if not _is_there(path, context)), None)
        what = "a variable is missing" if name is None else f"the variable {name} is missing"
        return f"line {error.line}: {what}"

    def _place(self, part: str, error: TemplateError) -> tuple[str, str]:
        """What the error is about, and the piece it stands in; minijinja counts bytes."""
        source, (start, end) = self._sources[part], error.range or (0, 0)
        encoded = source.encode("utf-8", "replace")
        at = len(encoded[:start].decode("utf-8", "replace"))
        piece = next((one.text for one in pieces_of(source) if one.start <= at < one.end), "")
        return encoded[start:end].decode("utf-8", "replace"), piece

    def try_part(self, part: str) -> None:
        """Renders with nothing but a name, then with a number for whatever is asked for: `price * 2` needs one. Raises
        InvalidInput for what fails with everything: where no variable is to blame, or it takes too long, or is not known.
        """
        read = self._environment.undeclared_variables_in_template(_NAMES[part], nested=True)
        flat = {path.partition(".")[0]: 1 for path in read} | _SAMPLE
        failed = []
        for sample in (_SAMPLE, flat, flat | _nested(read) | _SAMPLE):
            try:
                self._render(part, self._context(sample))
            except RenderFailed as error:
                failed.append(error)
            else:
                return
        to_blame = next((one for one in failed if not self._is_of_values(part, one, read)), None)
        if to_blame is not None:
            reason = str(to_blame).removeprefix(f"{part}: ")
            raise InvalidInput(f"template.{part}", reason, "render") from to_blame

    def _is_of_values(self, part: str, failed: RenderFailed, read: Set[str]) -> bool:
        """Whether other variables may well do."""
        cause = failed.__cause__
        if not isinstance(cause, TemplateError) or cause.kind not in _OF_VALUES:
            return False
        return not read.isdisjoint(paths_in(self._place(part, cause)[1]))


def compile_template(
    subject: str, html: str | None, text: str | None, missing: MissingVariables = MissingVariables.LENIENT
) -> Template:
    """Raises InvalidInput, with the part as its field (`template.html`), when no recipient could ever get this."""
    if html is None and text is None:
        raise InvalidInput("template", "needs html or text", "empty")
    given = {"subject": subject, "html": html, "text": text}
    sources = {part: _source(part, source) for part, source in given.items() if source is not None}
    template = _compiled(sources, "chainable")
    for part in sources:
        template.try_part(part)
    # Tried without being strict: what is missing then is missing for everybody.
    return template if missing is MissingVariables.LENIENT else _compiled(sources, "strict")


def _within(part: str, body: str | None) -> str | None:
    # No character takes more than four bytes: short bodies need no count.
    if body is not None and len(body) * 4 > MAX_OUTPUT and len(body.encode("utf-8", "replace")) > MAX_OUTPUT:
        raise RenderFailed(f"{part}: larger than {MAX_OUTPUT} bytes")
    return body


def one_line(text: str) -> str:
    """Control characters and line ends become one space, so that nothing of it can start a header of its own."""
    return (text if text.isprintable() else _NOT_ONE_LINE.sub(" ", text)).strip()


def _source(part: str, source: str) -> str:
    """As it is compiled."""
    field = f"template.{part}"
    if not source.strip():
        raise InvalidInput(field, "is empty", "empty")
    if part == "subject" and len(source) > MAX_SUBJECT:
        raise InvalidInput(field, f"is longer than {MAX_SUBJECT} characters", "too_long")
    source = checked(field, source)
    names = frozenset[str]().union(*(names_in(one.text) for one in pieces_of(source)))
    return "".join(f'{{% set {name} = {_GIVEN}["{name}"] %}}' for name in sorted(names & _METHODS)) + source


def _compiled(sources: Mapping[str, str], undefined: Any) -> Template:
    environment = Environment(fuel=FUEL, undefined_behavior=undefined, keep_trailing_newline=True, debug=False)
    environment.remove_global("debug")
    environment.add_filter("tojson", _as_json)
    environment.add_filter(SCALAR, _scalar)
    for part, source in sources.items():
        try:
            environment.add_template(_NAMES[part], source)
        except TemplateError as error:
            raise InvalidInput(f"template.{part}", _complaint(error), "syntax") from error
    return Template(environment, sources, lenient=undefined == "chainable")


def _nested(paths: Iterable[str]) -> dict[str, Any]:
    """Objects in which all of these paths are there."""
    whole: dict[str, Any] = {}
    for path in sorted(paths):
        at, names = whole, path.split(".")
        for name in names[:-1]:
            if not isinstance(at.get(name), dict):
                at[name] = {}
            at = at[name]
        at.setdefault(names[-1], 1)
    return whole


def _scalar(value: Any) -> Any:
    """In front of + and *: lists that grow with every step are walked without any fuel."""
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError("+ and * are for numbers and texts")


def _as_json(value: Any) -> Any:
    """In place of minijinja's, which indents as far as it is told to."""
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    for mark, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("'", "\\u0027")):
        text = text.replace(mark, escaped)
    return safe(text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, Iterable) else str(value)


def _is_there(path: str, context: Mapping[str, Any]) -> bool:
    value: Any = context
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return not isinstance(value, Sequence) or isinstance(value, str)  # its methods
        if name in _GLOBALS and value is context:
            return True
        value = value.get(name)
        if value is None:
            return False
    return True


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


class _Given:
    """Variables by subscript, and nothing else: no method stands in for one that is not there."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]


def _frozen(value: Any) -> Any:
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        return _Fields(
            {
                str(name): inner if type(inner) in _SCALARS else _frozen(inner)
                for name, inner in value.items()
                if inner is not None
            }
        )
    if isinstance(value, list | tuple):
        return tuple(_frozen(inner) for inner in value)
    return "" if value is None else str(value)
