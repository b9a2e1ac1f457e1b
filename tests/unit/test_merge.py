from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import InvalidInput
from core.merge import merge_of
from core.templates import RenderFailed, compile_template
from schemas.states import MissingVariables

NAMES = ("name", "city", "Käse", "_x", "email", "in_", "loop_", "super", "items")
PIECES = st.one_of(
    st.sampled_from([f"{{{{{space}{name}{space}}}}}" for name in NAMES for space in ("", " ", "  ")]),
    st.sampled_from(
        ["}}", "{", "}", "%}", "{ {", "\r\n", "\n", "\n\n", "\t", "<p>", "&amp;", " ", "'", "ä", "\0", "\\", "%s", "{}"]
    ),
    st.text(max_size=5).filter(lambda text: "{" not in text),
)
VALUES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["<b>", "a/b", "'", '"', "&", "", "{{ name }}", "https://example.com/u/x?a=1&b=2"]),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
    st.lists(st.integers(), max_size=2),
)


@given(
    source=st.lists(PIECES, min_size=1, max_size=8).map("".join),
    values=st.dictionaries(st.sampled_from(NAMES), VALUES),
    missing=st.sampled_from(MissingVariables),
)
@settings(max_examples=600)
def test_what_is_put_together_is_what_the_engine_renders(
    source: str, values: dict[str, Any], missing: MissingVariables
) -> None:
    source += "."
    try:
        template = compile_template("s", source, source, missing)
    except InvalidInput:
        return  # "{" before a variable
    context = template._context(values)
    for part in ("html", "text"):
        merge = template._merges[part]
        done = None if merge is None else merge.render(context)
        if done is not None:
            assert done == template._render(part, context)


def test_most_templates_are_put_together() -> None:
    template = compile_template("Hi {{ name }}", "<p>{{name}} in {{ city }}</p>", None)
    assert all(template._merges.values())
    rendered = template.render({"name": "A & B", "city": 7})
    assert (rendered.subject, rendered.html) == ("Hi A & B", "<p>A &amp; B in 7</p>")


@pytest.mark.parametrize(
    "source", ["{{ a|upper }}", "{% if a %}x{% endif %}", "{# a #}", "{{- a }}", "{{ a.b }}", "{{ attributes }}"]
)
def test_whatever_has_more_in_it_is_for_the_engine(source: str) -> None:
    assert merge_of(source, escape=True, lenient=True, without=frozenset(("attributes",))) is None


def test_what_is_missing_in_a_strict_template_ends_its_mail() -> None:
    template = compile_template("Hi", "{{ city }}", None, MissingVariables.STRICT)
    with pytest.raises(RenderFailed, match="the variable city is missing"):
        template.render({})
