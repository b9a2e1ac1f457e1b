"""What a template may not be, since no budget of minijinja stops it: read before it is compiled.

Expressions without end overflow the stack of its parser. Lists that are added, multiplied or put into one another again and
again grow twofold with each step, and are walked without fuel. So: pieces have a length; sums and products are of numbers and
texts only, which a filter in front of the operator sees to; nothing keeps a value from one turn of a loop to the next.
"""

import re
from typing import Final

from core.errors import InvalidInput
from core.sources import HIDDEN, MAX_BODY, Piece, pieces_of, without_texts

PIECE_MAX: Final = 4_000
"""Characters. The parser's stack of 8 MiB holds 18,000 operators."""
PIECES_MAX: Final = 10_000
ELIF_MAX: Final = 500
NAMES_IN_LISTS_MAX: Final = 16
SCALAR: Final = "only_number_or_text"

REFUSED: Final = frozenset(("include", "import", "from", "extends", "block", "call"))
_UNKNOWN: Final = re.compile(
    r"(?<![.\w])(?:namespace|dict|self|caller|recursive)\b|\|\s*(?:chain|zip)\b|\.\s*format\s*\("
)
_NAME = re.compile(r"(?<![.\w|])[^\W\d]\w*")
_CONSTANTS: Final = frozenset(("true", "false", "none", "True", "False", "None"))
_OPERATOR = re.compile(r"(?<!\*)[+*](?![*%}])")
_KEYWORD_BEFORE = re.compile(r"(?:^|\W)(?:and|or|not|in|is|if|elif|else)$")
_SIGNS = re.compile(r"[\s+-]*")
_WORD = re.compile(rf"[\w.]+|{HIDDEN}+")
_BRACKET = re.compile(r"[(\[{}\])]")
_MORE = re.compile(r"\s*(?:\.\s*\w+|(?=[(\[]))")


def checked(field: str, source: str) -> str:
    """The source as it is compiled, line by line the same. Raises InvalidInput."""
    if len(source.encode("utf-8", "replace")) > MAX_BODY:
        raise InvalidInput(field, f"is larger than {MAX_BODY} bytes", "too_long")
    pieces = pieces_of(source)
    if len(pieces) > PIECES_MAX:
        raise InvalidInput(field, f"there are more than {PIECES_MAX} expressions and statements", "not_allowed")
    for piece in pieces:
        if piece.end - piece.start > PIECE_MAX and (piece.keyword or piece.is_expression):
            raise _refusal(field, source, piece.start, f"an expression is longer than {PIECE_MAX} characters")
    elifs = sum(piece.keyword == "elif" for piece in pieces)
    if elifs > ELIF_MAX:
        raise InvalidInput(field, f"there are more than {ELIF_MAX} elif", "not_allowed")
    macros = {name for piece in pieces if piece.keyword == "macro" for name in _NAME.findall(piece.text)[1:2]}
    names, inside, parts, at = 0, 0, [], 0
    for piece in pieces:
        if piece.text.startswith("{#") or (piece.text.startswith("{%") and not piece.keyword):
            continue
        code = without_texts(piece.text)
        inside += (piece.keyword == "macro") - (piece.keyword == "endmacro")
        _check(field, source, piece, code, macros if inside and piece.keyword != "macro" else frozenset())
        names += _names_in_lists(code)
        if "+" in code or "*" in code:
            parts += [source[at : piece.start], _with_numbers(piece, code)]
            at = piece.end
    if names > NAMES_IN_LISTS_MAX:
        raise InvalidInput(field, f"there are more than {NAMES_IN_LISTS_MAX} variables in lists", "not_allowed")
    return "".join((*parts, source[at:]))


def _check(field: str, source: str, piece: Piece, code: str, macros: frozenset[str] | set[str]) -> None:
    if piece.keyword in REFUSED:
        raise _refusal(field, source, piece.start, f"{piece.keyword} is not known here")
    found = _UNKNOWN.search(code)
    if found is not None:
        raise _refusal(field, source, piece.start, f"{found[0].strip(' |(.')} is not known here")
    if called := macros.intersection(_NAME.findall(code)):
        raise _refusal(field, source, piece.start, f"the macro {min(called)} is used within a macro")


def _names_in_lists(code: str) -> int:
    """Variables in lists and maps written in the piece; a subscript has none."""
    count, open_lists, previous = 0, [], ""
    for token in re.findall(r"\{\{|\}\}|\{%|%\}|\w+|[^\w\s]", code)[1:-1]:
        if token in "[{" or token == "{{":
            open_lists += [not (token == "[" and (previous in ")]" or previous[-1:].isalnum()))] * len(token)
        elif token in ("]", "}", "}}"):
            del open_lists[-len(token) :]
        elif any(open_lists) and not token[0].isdigit() and (token[0].isalpha() or token[0] == "_"):
            count += token not in _CONSTANTS
        previous = token
    return count


def _with_numbers(piece: Piece, code: str) -> str:
    """The piece with a filter on the left side of each + and *, which takes no list, and on the right side of a *. On the right
    of a + a list is an error of its own then.
    """
    places = []
    for found in _OPERATOR.finditer(code):
        left = code[: found.start()].rstrip()
        if not left or not (left[-1].isalnum() or left[-1] in f"_)]}}{HIDDEN}") or _KEYWORD_BEFORE.search(left[-8:]):
            continue  # a sign, or whitespace control
        places.append(len(left))
        if found[0] == "*":
            places.append(_end_of_operand(code, found.end()))
    parts, at = [], 0
    for place in sorted(places):
        parts += [piece.text[at:place], f"|{SCALAR}"]
        at = place
    return "".join((*parts, piece.text[at:]))


def _end_of_operand(code: str, at: int) -> int:
    signs = _SIGNS.match(code, at)
    at = at if signs is None else signs.end()
    word = _WORD.match(code, at)
    at = _behind_bracket(code, at) if word is None else word.end()
    while (more := _MORE.match(code, at)) is not None:
        at = more.end() if more[0].strip() else _behind_bracket(code, more.end())
    return at


def _behind_bracket(code: str, at: int) -> int:
    depth = 0
    for bracket in _BRACKET.finditer(code, at):
        depth += 1 if bracket[0] in "([{" else -1
        if depth <= 0:
            return bracket.end()
    return len(code) - 2


def _refusal(field: str, source: str, at: int, reason: str) -> InvalidInput:
    return InvalidInput(field, f"line {source.count(chr(10), 0, at) + 1}: {reason}", "not_allowed")
