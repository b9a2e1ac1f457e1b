import resource
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidInput
from core.template_rules import PIECE_MAX, PIECES_MAX
from core.templates import MAX_BODY, MAX_OUTPUT, MAX_SUBJECT, Rendered, RenderFailed, compile_template, one_line
from schemas.states import MissingVariables

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def html(source: str, **variables: Any) -> str:
    body = compile_template("s", source, None).render(variables).html
    assert body is not None
    return body


def test_html_is_escaped_and_subject_and_text_are_not() -> None:
    template = compile_template("{{ name }}", "<b>{{ name }}</b>", "{{ name }}")
    assert template.render({"name": "<A&B>"}) == Rendered("<A&B>", "<b>&lt;A&amp;B&gt;</b>", "<A&B>")


def test_a_part_that_is_not_there_stays_away() -> None:
    assert compile_template("s", None, "t").render({}) == Rendered("s", None, "t")
    assert compile_template("s", "h", None).render({}) == Rendered("s", "h", None)


def test_variables_have_their_names_and_are_attributes_too() -> None:
    assert html("{{ city }}, {{ attributes.city }}, {{ attributes['city'] }}", city="Köln") == "Köln, Köln, Köln"


def test_an_attribute_called_attributes_keeps_its_name() -> None:
    assert html("{{ attributes.a }}", attributes={"a": 1}) == "1"


def test_nested_values_are_read_like_in_json() -> None:
    source = (
        "{{ a.b.c[1].d }} {% for one in a.list %}{{ one }},{% endfor %} {% for k, v in a.map|items %}{{ k }}={{ v }}"
    )
    source += "{% endfor %}"
    assert html(source, a={"b": {"c": [0, {"d": "x"}]}, "list": [1, 2], "map": {"k": "v"}}) == "x 1,2, k=v"


@pytest.mark.parametrize(
    "source", ["{{ no }}", "{{ no.such.thing }}", "{{ n }}", "{{ a.n }}{{ a.no }}", "{{ attributes.n }}"]
)
def test_what_is_missing_or_null_is_empty(source: str) -> None:
    assert html(f"|{source}|", n=None, a={"n": None}) == "||"


def test_null_counts_as_missing_for_a_default() -> None:
    assert html("{{ name|default('friend') }}", name=None) == "friend"


def test_line_ends_in_a_subject_become_a_space() -> None:
    template = compile_template("Hi {{ name }}\n", "x", None)
    assert template.render({"name": "A\r\nBcc: all@example.com\u2028\x00B"}).subject == "Hi A Bcc: all@example.com B"


@given(st.text())
def test_a_subject_is_always_one_line(name: str) -> None:
    subject = compile_template("{{ name }}", "x", None).render({"name": name}).subject
    assert len(subject.splitlines()) <= 1
    assert one_line(subject) == subject


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("\n\n{{ name", "line 3: unexpected end of input"),
        ("{% if %}", "line 1: unexpected end of block"),
        ("{% for a in b %}", "line 1: unexpected end of input"),
        ("a\n{{ name|nosuch }}", "line 2: filter nosuch is unknown"),
        ("{{ nosuch() }}", "line 1: nosuch is unknown"),
        ("{{ debug() }}", "line 1: debug is unknown"),
        ("{% include 'other' %}", "line 1: include is not known"),
        ("{{ 1 / 0 }}", "line 1: unable to calculate"),
        (" \n", "is empty"),
        ("x" * (MAX_BODY + 1), "is larger than"),
        ("é" * (MAX_BODY // 2 + 1), "is larger than"),
    ],
)
def test_a_template_nobody_could_get_is_refused_with_part_and_line(source: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        compile_template("s", source, None)
    assert refused.value.field == "template.html"
    with pytest.raises(InvalidInput, match=reason) as refused:
        compile_template("s", "x", source)
    assert refused.value.field == "template.text"


def test_a_subject_is_needed_and_a_body() -> None:
    with pytest.raises(InvalidInput, match="needs html or text"):
        compile_template("s", None, None)
    for subject in ("", "x" * (MAX_SUBJECT + 1), "{{ a"):
        with pytest.raises(InvalidInput) as refused:
            compile_template(subject, "x", None)
        assert refused.value.field == "template.subject"


@pytest.mark.parametrize(
    "source",
    [
        "{{ order.total * 2 }}{{ name.upper() }}",
        "{{ total * 2 }}{% for one in items %}{{ one.price + 1 }}{% endfor %}",
        "{{ price * 2 }}",
        "{{ a.b|upper }}",
        "{{ name.upper() }}",
        "{{ '%.2f'|format(price) }}",
    ],
)
def test_a_template_that_needs_a_value_of_some_kind_is_accepted(source: str) -> None:
    compile_template("s", source, None)


def test_a_value_of_the_wrong_kind_ends_one_mail() -> None:
    template = compile_template("s", "\n{{ price - 2 }}", None)
    assert template.render({"price": 4}).html == "\n2"
    with pytest.raises(RenderFailed, match="html: line 2: "):
        template.render({"price": "much"})
    with pytest.raises(RenderFailed, match="html: line 2: "):
        template.render({})


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% for a in range(90000) %}" + "x" * 10000 + "{% endfor %}",
        "{% for a in range(90000) %}{{ 'x' * 10000 }}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{% macro f(a) %}{{ f(a) }}{{ f(a) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(a) %}{{ f(a ~ a) }}{% endmacro %}{{ f('xxxxxxxxxxxxxxxx') }}",
        "{% set n = namespace(a='xxxxxxxx') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
        "{{ range(100000)|list|tojson }}",
        "{{ order.total * 2 }}{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ '%1000000000d'|format(1) }}",
    ],
)
def test_a_template_cannot_take_time_or_memory(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    with pytest.raises(InvalidInput):
        compile_template("s", source, None)
    assert time.process_time() - begun < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_loop_over_the_variables_of_one_recipient_is_bounded_too() -> None:
    template = compile_template(
        "s", "{% for a in l %}{% for b in l %}{% for c in l %}{% endfor %}{% endfor %}{% endfor %}", None
    )
    with pytest.raises(RenderFailed, match="takes too long"):
        template.render({"l": list(range(1000))})


def test_a_rendered_mail_has_a_bound() -> None:
    template = compile_template("{{ a }}", "{{ b }}", None)
    with pytest.raises(RenderFailed, match="subject: longer"):
        template.render({"a": "x" * (MAX_SUBJECT + 1)})
    with pytest.raises(RenderFailed, match="html: larger"):
        template.render({"b": "x" * (MAX_OUTPUT + 1)})
    assert template.render({"b": "x" * MAX_OUTPUT}).html == "x" * MAX_OUTPUT


@pytest.mark.parametrize(
    "source",
    [
        "{{ a.clear() }}",
        "{{ a.update(c=1) }}",
        "{{ a.pop('b') }}",
        "{{ l.append(1) }}",
        "{{ l.extend(l) }}",
        "{{ attributes.clear() }}",
        "{{ attributes.a.clear() }}",
        "{{ a.get(1, 2, 3) }}",
        "{{ a.__class__.__base__.__subclasses__() }}",
        "{{ a.get.__globals__.x() }}",
    ],
)
def test_a_template_cannot_reach_into_our_values(source: str) -> None:
    variables: dict[str, Any] = {"a": {"b": 1}, "l": [1]}
    with pytest.raises((InvalidInput, RenderFailed)):
        compile_template("s", source, None).render(variables)
    assert variables == {"a": {"b": 1}, "l": [1]}


def test_hidden_attributes_are_empty() -> None:
    assert html("|{{ a._values }}{{ a.__class__ }}{{ l.__class__ }}|", a={"b": 1}, l=[1]) == "||"


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_whatever_the_variables_are_the_mail_is_made_or_fails_alone(variables: dict[str, Any]) -> None:
    template = compile_template("{{ name }}", "{{ name }}{{ attributes.name }}{{ attributes }}", None)
    try:
        rendered = template.render(variables)
    except RenderFailed:
        return
    assert rendered.html is not None


@given(st.text())
def test_whatever_the_source_is_it_compiles_or_is_refused(source: str) -> None:
    for wrapped in (source, "{{" + source + "}}", "{%" + source + "%}"):
        with suppress(InvalidInput):
            compile_template("s", wrapped, None)


def strict(source: str, **variables: Any) -> str:
    template = compile_template("s", source, None, MissingVariables.STRICT)
    body = template.render(variables).html
    assert body is not None
    return body


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a\n{{ city }}", "city"),
        ("{{ größe }}{{ other }}", "größe"),
        ("{{ a.b.c }}", "a.b.c"),
        ("{{ city|upper }}", "city"),
        ("{% if city %}x{% endif %}", "city"),
        ("{% for one in people %}x{% endfor %}", "people"),
        ("{{ 'name' ~ city }}", "city"),
        ("{{ attributes.city }}", "attributes.city"),
        ("{{ items }}", "items"),
    ],
)
def test_a_strict_template_says_which_variable_is_missing(source: str, name: str) -> None:
    with pytest.raises(RenderFailed, match=f"^html: line [12]: the variable {name} is missing$"):
        strict(source, name="Ann", a={"b": {}})
    with pytest.raises(RenderFailed):
        strict(source, name="Ann", city=None, a=None)


def test_a_strict_template_takes_defaults_and_asks_what_there_is() -> None:
    assert strict("{{ city|default('friend') }}") == "friend"
    assert strict("{% if city is defined %}x{% endif %}|") == "|"
    assert strict("{{ city }}", city="Ulm") == "Ulm"


def test_missing_variables_are_listed_as_they_are_read() -> None:
    source = "{{ city }} {{ a.b }} {{ a.c }} {{ name.upper() }} {% for i in l %}{{ i.x }}{{ loop.index }}{% endfor %}"
    template = compile_template("{{ subject }}", source, "{{ city }}")
    assert template.missing({"name": "Ann", "a": {"b": 1}, "l": [{"x": 1}]}) == ["subject", "city", "a.c"]


@pytest.mark.parametrize("name", ["items", "keys", "values", "get", "update", "clear", "pop", "copy"])
def test_a_missing_variable_is_never_a_method_of_ours(name: str) -> None:
    assert html(f"|{{{{ {name} }}}}{{{{ {name}|default('x') }}}}{{% for i in {name} %}}y{{% endfor %}}|") == "|x|"
    assert html(f"{{{{ {name} }}}}", **{name: 5}) == "5"


def test_numbers_and_texts_are_added_and_multiplied() -> None:
    source = "{{ price * (1 - 0.5) * n.a + 1 }} {{ 'a' + name }} {{ -n.a + 3 }} {{ '=' * 3 }}"
    assert html(source, price=10, n={"a": 2}, name="b") == "11.0 ab 1 ==="


@pytest.mark.parametrize(
    "source",
    [
        "{{ l + l }}",
        "{{ l * 3 }}",
        "{{ 10000 * (10000 * (10000 * [1])) }}",
        "{% set a = [1] %}" + "{% set a = a + a %}" * 40 + "{{ a }}",
        "{% set a = [1] %}" + "{% set a = [a, a] %}" * 40 + "{{ a }}",
        "{% set n = namespace(a=1) %}{% for i in range(40) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}",
        "{% macro f(a, n) %}{{ f([a, a], n - 1) if n else a }}{% endmacro %}{{ f(1, 40) }}",
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ l|tojson(indent=1000000000) }}",
        "{{ l|map('tojson', 1000000000)|join }}",
        "{% include 'body.html' %}",
        "{{ " + "-" * (PIECE_MAX + 1) + "1 }}",
        "{{ a" + ".b" * 200_000 + " }}",
        "{{ a" + "|e" * 200_000 + " }}",
        "{{ {1:{1:1}} }}{% raw %}{#{% endraw %}{{ " + "not " * 100_000 + "1 }}{# #}",
        "{% if a %}" + "{% elif a %}" * 8_000 + "{% endif %}",
        "{% if a %}" * 8_000 + "{% endif %}" * 8_000,
        "{{ a }}" * (PIECES_MAX + 1),
    ],
)
def test_what_no_fuel_can_stop_is_refused(source: str) -> None:
    begun = time.process_time()
    with pytest.raises((InvalidInput, RenderFailed)):
        compile_template("s", source, None).render({"l": [1, 2], "a": 1})
    assert time.process_time() - begun < 2


def test_json_in_html_cannot_leave_its_place() -> None:
    assert html("{{ a|tojson }}", a={"b": "</script>'&", "l": [1, None]}) == (
        '{"b": "\\u003c/script\\u003e\\u0027\\u0026", "l": [1, ""]}'
    )
