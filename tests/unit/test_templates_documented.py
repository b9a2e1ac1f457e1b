"""The examples of docs/templates.md are what they say."""

import json
import re
from pathlib import Path

import pytest

from core.template_rules import ELIF_MAX, NAMES_IN_LISTS_MAX, PIECE_MAX, PIECES_MAX
from core.templates import FUEL, MAX_SUBJECT, compile_template

TEXT = Path("docs/templates.md").read_text()
VARIABLES = json.loads(re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)[0])
EXAMPLES = re.findall(r"^\| `(.+?)` \| `(.*?)` \|$", TEXT.partition("**Variables**")[0], re.MULTILINE)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 10


@pytest.mark.parametrize(("source", "text"), EXAMPLES)
def test_an_example_is_rendered_as_documented(source: str, text: str) -> None:
    assert compile_template("s", None, source.replace("\\|", "|")).render(VARIABLES).text == text


def test_the_filters_are_there() -> None:
    for name in re.findall(r"`(\w+)`", TEXT.partition("**Filters**")[2].partition("##")[0]):
        compile_template("s", None, f"{{% if no %}}{{{{ x|{name}(x) }}}}{{% endif %}}")


def test_the_limits_are_those_of_the_code() -> None:
    for number in (ELIF_MAX, NAMES_IN_LISTS_MAX, PIECE_MAX, PIECES_MAX, FUEL, MAX_SUBJECT):
        assert f"{number:,}" in TEXT
