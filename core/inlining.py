"""CSS of <style> elements written into the style attributes of a template's HTML, once, before anything is rendered.

Only start tags and the content of <style> change; all else stays as it is written, template pieces included. Inlined are
rules whose selectors are made of elements, classes and ids, one within the other. What else there is (pseudo-classes, @media,
siblings, attributes, what is !important) stays in <style>, and wins there as it did: its declarations become !important.

Where it is not sure that every recipient's mail means the same as before, nothing changes.
"""

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import tinycss2
from tinycss2.ast import AtRule, Declaration, QualifiedRule

from core.markup import VOID, Attribute, Kind, Token, Unreadable, attributes, tokens
from core.sources import HIDDEN, MAX_BODY, Piece, hidden, names_in, pieces_of

ELEMENTS_MAX: Final = 20_000
DEPTH_MAX: Final = 200
CSS_MAX: Final = 128 * 1024
SELECTORS_MAX: Final = 3_000
STEPS_MAX: Final = 500_000
"""Looks of a selector at an element: about half a second."""

_OPENED, _CLOSED, _DIGIT = "\ue001", "\ue002", 0xE010
_RESERVED = re.compile("[\ue000-\ue01f]")
_MARK = re.compile(f"{_OPENED}([\ue010-\ue019]+){_CLOSED}")
_COMPOUND = re.compile(r"(\*|[a-zA-Z][\w-]*)?((?:[.#][a-zA-Z_-][\w-]*)*)")
_PART = re.compile(r"([.#])([\w-]+)")
_BINDING: Final = frozenset(("for", "set", "with", "macro", "call", "import", "from", "block"))
_BLOCKS: Final = frozenset(("if", "for", "with", "macro", "call", "filter", "autoescape", "block"))
_BETWEEN: Final = frozenset(("else", "elif"))
_CLOSED_BY: Final = {name: {name} for name in ("li", "option")} | {
    "p": {
        "address",
        "blockquote",
        "center",
        "div",
        "dl",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "hr",
        "ol",
        "p",
        "pre",
        "section",
        "table",
        "ul",
    },
    "td": {"td", "th", "tr", "tbody"},
    "th": {"td", "th", "tr", "tbody"},
    "tr": {"tr", "tbody"},
    "dt": {"dt", "dd"},
    "dd": {"dt", "dd"},
}
"""Elements that end without a tag of their own where another begins."""


class _Unsure(Exception):
    """The source is left as it is."""


@dataclass(frozen=True, slots=True)
class _Compound:
    """`direct`: what stands left of it is its parent, not just an ancestor."""

    tag: str
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    direct: bool = False


@dataclass(frozen=True, slots=True)
class _Rule:
    specificity: tuple[int, int, int]
    order: int
    selector: tuple[_Compound, ...]
    declarations: tuple[tuple[str, str], ...]
    """Names, and declarations as text."""


@dataclass(slots=True, eq=False)
class _Element:
    tag: str
    id: str
    classes: frozenset[str]
    parent: "_Element | None"
    depth: int
    known: bool
    """Its id and classes, and those of all around it, are the same in every mail."""
    insert_at: int = 0
    style: Attribute | None = None


@dataclass(slots=True)
class _Document:
    elements: list[_Element] = field(default_factory=list)
    styles: list[Token] = field(default_factory=list)


@dataclass(slots=True)
class _Sheet:
    rules: list[_Rule] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """What the <style> elements hold afterwards."""
    selectors: int = 0


def inline_css(source: str) -> str:
    """`source` compiles as a template. Whatever it is, this ends in a second or two."""
    if "<style" not in source.lower() or _RESERVED.search(source):
        return source
    try:
        return _inlined(source)
    except (_Unsure, Unreadable, RecursionError):
        return source


def _inlined(source: str) -> str:
    pieces = pieces_of(source)
    masked = hidden(source, pieces)
    document = _read(masked, pieces)
    if sum(style.end - style.start for style in document.styles) > CSS_MAX:
        raise _Unsure
    sheet = _sheet([_css_of(source, style, pieces) for style in document.styles])
    patches = [(style.start, style.end, text) for style, text in zip(document.styles, sheet.texts, strict=True)]
    patches += _attributes(document.elements, sheet.rules)
    return _MARK.sub(lambda mark: pieces[_number(mark[1])].text, _patched(source, patches))


def _patched(source: str, patches: list[tuple[int, int, str]]) -> str:
    parts, at = [], 0
    for start, end, text in sorted(patches):
        parts += [source[at:start], text]
        at = end
    return "".join((*parts, source[at:]))


def _read(masked: str, pieces: Sequence[Piece]) -> _Document:
    document = _Document()
    stack: list[_Element] = []
    blocks: list[tuple[int, _Element | None]] = []
    statements = iter([piece for piece in pieces if piece.keyword])
    statement = next(statements, None)
    for token in tokens(masked):
        while statement is not None and statement.start < token.start:
            _follow(statement, stack, blocks)
            statement = next(statements, None)
        if token.kind is Kind.OPEN:
            _open(token, masked, stack, document)
        elif token.kind is Kind.CLOSE:
            _close(token.name, stack)
        elif token.kind is Kind.RAW and token.name == "style" and _is_for_all(document.elements[-1], masked):
            document.styles.append(token)
    return document


def _follow(statement: Piece, stack: list[_Element], blocks: list[tuple[int, _Element | None]]) -> None:
    """Each branch of a block has to leave the elements open that were open before, or there is more than one tree."""
    here = (len(stack), stack[-1] if stack else None)
    if statement.keyword in _BLOCKS:
        blocks.append(here)
    elif statement.keyword in _BETWEEN or (statement.keyword.startswith("end") and statement.keyword != "endset"):
        if not blocks or blocks[-1] != here:
            raise _Unsure
        if statement.keyword not in _BETWEEN:
            blocks.pop()


def _open(token: Token, masked: str, stack: list[_Element], document: _Document) -> None:
    while stack and token.name in _CLOSED_BY.get(stack[-1].tag, ()):
        stack.pop()
    parent = stack[-1] if stack else None
    element = _element(token, masked, parent)
    document.elements.append(element)
    if len(document.elements) > ELEMENTS_MAX or element.depth > DEPTH_MAX:
        raise _Unsure
    if token.name not in VOID and not masked.startswith("/>", token.end - 2):
        stack.append(element)


def _element(token: Token, masked: str, parent: _Element | None) -> _Element:
    has = attributes(masked, token)
    identity = has.get("id"), has.get("class")
    style = has.get("style")
    known = (
        (parent is None or parent.known)
        and HIDDEN not in token.name
        and not any(HIDDEN in name for name in has)
        and not any(one is not None and HIDDEN in one.value for one in identity)
        and (style is None or style.quoted)
    )
    return _Element(
        tag=token.name,
        id="" if identity[0] is None else html.unescape(identity[0].value),
        classes=frozenset() if identity[1] is None else frozenset(html.unescape(identity[1].value).split()),
        parent=parent,
        depth=1 if parent is None else parent.depth + 1,
        known=known,
        insert_at=token.start + 1 + len(token.name),
        style=style,
    )


def _close(name: str, stack: list[_Element]) -> None:
    for at in range(len(stack) - 1, -1, -1):
        if stack[at].tag == name:
            del stack[at:]
            return


def _is_for_all(style: _Element, masked: str) -> bool:
    """Not one of another language, or for some media only."""
    tag = masked[style.insert_at : masked.find(">", style.insert_at)].lower()
    return not re.search(r"\b(?:media|type|amp)", tag) or bool(
        re.fullmatch(r"\s*type\s*=\s*[\"']?text/css[\"']?\s*", tag)
    )


def _css_of(source: str, style: Token, pieces: Sequence[Piece]) -> str:
    """With a mark in place of each expression, which CSS takes for a part of a name."""
    inside = [(number, one) for number, one in enumerate(pieces) if style.start <= one.start < style.end]
    if not inside:
        return source[style.start : style.end]
    bound = {name for one in pieces if one.keyword in _BINDING for name in names_in(one.text)} | {"loop"}
    if any(not one.is_expression or names_in(one.text) & bound for _, one in inside):
        raise _Unsure  # it may have another value, or none, where the element is
    parts, at = [], style.start
    for number, one in inside:
        parts += [source[at : one.start], _OPENED, "".join(chr(_DIGIT + int(d)) for d in str(number)), _CLOSED]
        at = one.end
    return "".join((*parts, source[at : style.end]))


def _number(mark: str) -> int:
    return int("".join(str(ord(digit) - _DIGIT) for digit in mark))


def _sheet(sources: Sequence[str]) -> _Sheet:
    parsed = [tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True) for css in sources]
    sheet = _Sheet()
    sheet.texts = ["\n".join(_kept(rules, sheet)) for rules in parsed]
    return sheet


def _kept(rules: Iterable[Any], sheet: _Sheet) -> Iterator[str]:
    """What stays in <style> of these; what can be inlined is added to the sheet's rules."""
    for rule in rules:
        if isinstance(rule, AtRule):
            yield _winning(rule)
        elif not isinstance(rule, QualifiedRule):
            raise _Unsure
        else:
            yield from _split(rule, sheet)


def _split(rule: QualifiedRule, sheet: _Sheet) -> Iterator[str]:
    staying = []
    found = [one for one in _declarations(rule) if not one.important]
    declarations = tuple((one.lower_name, one.serialize()) for one in found)
    selectors = [text.strip() for text in tinycss2.serialize(rule.prelude).split(",")]
    for text in selectors:
        sheet.selectors += 1
        if sheet.selectors > SELECTORS_MAX:
            raise _Unsure
        selector = _selector(text)
        if selector is None:
            staying.append(text)
        else:
            sheet.rules.append(_Rule(_specificity(selector), sheet.selectors, selector, declarations))
    if not staying:
        yield rule.serialize()
        return
    if inlined := [text for text in selectors if text not in staying]:
        yield f"{','.join(inlined)}{{{tinycss2.serialize(rule.content)}}}"
    yield f"{','.join(staying)}{{{_important(rule)}}}"


def _winning(rule: AtRule) -> str:
    """With declarations that win over what is inlined."""
    if rule.lower_at_keyword not in ("media", "supports") or rule.content is None:
        return str(rule.serialize())
    inner = tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True)
    texts = []
    for one in inner:
        if isinstance(one, AtRule):
            texts.append(_winning(one))
        elif isinstance(one, QualifiedRule):
            texts.append(f"{tinycss2.serialize(one.prelude).strip()}{{{_important(one)}}}")
        else:
            raise _Unsure
    return f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{' '.join(texts)}}}"


def _important(rule: QualifiedRule) -> str:
    return ";".join(
        one.serialize() if one.important else f"{one.serialize()} !important" for one in _declarations(rule)
    )


def _declarations(rule: QualifiedRule) -> list[Declaration]:
    found = tinycss2.parse_blocks_contents(rule.content, skip_comments=True, skip_whitespace=True)
    if any(one.type in ("qualified-rule", "at-rule") for one in found):
        raise _Unsure  # rules within rules
    return [one for one in found if isinstance(one, Declaration)]


def _selector(text: str) -> tuple[_Compound, ...] | None:
    """None for one that stays in <style>."""
    compounds: list[_Compound] = []
    direct = False
    for part in text.replace(">", " > ").split():
        if part == ">":
            direct = True
            continue
        found = _COMPOUND.fullmatch(part)
        if found is None or (direct and not compounds):
            return None
        parts = _PART.findall(found[2])
        compounds.append(
            _Compound(
                tag="" if found[1] in (None, "*") else found[1].lower(),
                ids=tuple(name for kind, name in parts if kind == "#"),
                classes=tuple(name for kind, name in parts if kind == "."),
                direct=direct,
            )
        )
        direct = False
    return None if direct or not compounds else tuple(compounds)


def _specificity(selector: tuple[_Compound, ...]) -> tuple[int, int, int]:
    return (
        sum(len(one.ids) for one in selector),
        sum(len(one.classes) for one in selector),
        sum(bool(one.tag) for one in selector),
    )


def _attributes(elements: Sequence[_Element], rules: Sequence[_Rule]) -> Iterator[tuple[int, int, str]]:
    by_last: dict[tuple[str, str], list[_Rule]] = {}
    for rule in rules:
        by_last.setdefault(_key(rule.selector[-1]), []).append(rule)
    steps = [STEPS_MAX]
    known: dict[tuple[int, ...], str] = {}
    growth = 0
    for element in elements:
        if not element.known:
            continue
        keys = [("#", element.id), *((".", name) for name in element.classes), ("", element.tag), ("", "")]
        found = [rule for key in keys for rule in by_last.get(key, ()) if _matches(rule.selector, element, steps)]
        if not found:
            continue
        found.sort(key=lambda rule: (rule.specificity, rule.order))
        orders = tuple(rule.order for rule in found)
        if orders not in known:
            known[orders] = _css(found, steps)
        growth += len(known[orders])
        if growth > MAX_BODY:
            raise _Unsure
        yield _attribute(element, known[orders])


def _key(last: _Compound) -> tuple[str, str]:
    """By which an element finds the selectors that may be meant for it."""
    if last.ids:
        return "#", last.ids[0]
    return (".", last.classes[0]) if last.classes else ("", last.tag)


def _matches(selector: Sequence[_Compound], element: _Element, steps: list[int]) -> bool:
    """Whether the last of `selector` is the element, and those before are around it."""
    _pay(steps, 1)
    last = selector[-1]
    if not (
        last.tag in ("", element.tag)
        and all(one == element.id for one in last.ids)
        and element.classes.issuperset(last.classes)
    ):
        return False
    if len(selector) == 1:
        return True
    around = element.parent
    if last.direct and around is not None and (around.tag, element.tag) == ("table", "tr"):
        return False  # browsers put a tbody between them
    while around is not None:
        if _matches(selector[:-1], around, steps):
            return True
        around = None if last.direct else around.parent
    return False


def _css(rules: Sequence[_Rule], steps: list[int]) -> str:
    """A rule's own fallbacks (the same property twice) stay; what an earlier rule says of the property goes."""
    declarations: list[tuple[str, str]] = []
    for rule in rules:
        names = {name for name, _ in rule.declarations}
        _pay(steps, len(declarations))
        declarations = [one for one in declarations if one[0] not in names] + list(rule.declarations)
    return html.escape("; ".join(text for _, text in declarations))


def _attribute(element: _Element, css: str) -> tuple[int, int, str]:
    if element.style is None:
        return element.insert_at, element.insert_at, f' style="{css}"' if css else ""
    return element.style.start, element.style.start, f"{css}; " if css and element.style.value.strip() else css


def _pay(steps: list[int], price: int) -> None:
    steps[0] -= price
    if steps[0] < 0:
        raise _Unsure
