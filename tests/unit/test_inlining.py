"""CSS inlined before anything is rendered: what every mail says stays the same, and the template with it."""

import re
import time
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.inlining import inline_css
from core.templates import compile_template

STYLES = re.compile(r"""\s*style=(?:"[^"]*"|'[^']*')|<style>.*?</style>""", re.DOTALL)
SHEET = "<style>p{color:red} .a{margin:1px} div .b{color:blue;top:0} #i{left:0} div>p{right:0}</style>"


def rendered(source: str, **variables: Any) -> str:
    body = compile_template("s", source, None).render(variables).html
    assert body is not None
    return body


def styles(html: str) -> list[str | None]:
    """Of each tag outside of <style>, in order; declarations sorted, since of different properties the order says nothing."""
    found: list[str | None] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            style = dict(attrs).get("style")
            found.append(None if not style else ";".join(sorted(re.split(r";\s*", style.strip("; ")))))

    Reader().feed(html)
    return found


@pytest.mark.parametrize(
    ("css", "body", "expected"),
    [
        ("p{color:red}", "<p>x</p>", '<p style="color:red">x</p>'),
        ("p{color:red}", '<p style="margin:0">x</p>', '<p style="color:red; margin:0">x</p>'),
        ("p{color:red}", "<p style='margin:0'>x</p>", "<p style='color:red; margin:0'>x</p>"),
        (".a{color:red} p{color:blue;top:0}", "<p class=a>x</p>", '<p style="top:0; color:red" class=a>x</p>'),
        ("p{color:red} p{color:blue}", "<p>x</p>", '<p style="color:blue">x</p>'),
        ("p{background:red;background:url(x)}", "<p>x</p>", '<p style="background:red; background:url(x)">x</p>'),
        ("td p{color:red}", "<table><tr><td><b><p>x</table>", None),
        ("table > tr{color:red}", "<table><tr><td>x</table>", ""),
        ("p > b{color:red}", "<p><i><b>x</b></i></p>", ""),
        ('p{font-family:"A B"}', "<p>x</p>", '<p style="font-family:&quot;A B&quot;">x</p>'),
        ("p{color:{{ brand }}}", "<p>x</p>", '<p style="color:{{ brand }}">x</p>'),
        ("p{width:{{ w|default(5) }}px}", "<p>x</p>", '<p style="width:{{ w|default(5) }}px">x</p>'),
    ],
)
def test_rules_are_written_where_they_apply(css: str, body: str, expected: str | None) -> None:
    inlined = inline_css(f"<style>{css}</style>{body}").partition("</style>")[2]
    if expected is None:
        assert 'style="color:red"' in inlined
    else:
        assert inlined == (expected or body)


@pytest.mark.parametrize(
    ("css", "kept"),
    [
        ("a:hover{color:blue}", "a:hover{color:blue !important}"),
        ("@media (max-width:9px){a{color:blue}}", "@media (max-width:9px){a{color:blue !important}}"),
        ("a{color:red!important}", "a{color:red!important}"),
        ("a + a{color:red}", "a + a{color:red !important}"),
        ("a,a:hover{color:red}", "a:hover{color:red !important}"),
        ("@font-face{font-family:x}", "@font-face{font-family:x}"),
        ("@import 'http://x.test/a.css';", '@import "http://x.test/a.css";'),
    ],
)
def test_what_cannot_be_inlined_stays_in_style_and_wins_there(css: str, kept: str) -> None:
    inlined = inline_css(f"<style>{css}</style><a href=x>x</a>")
    assert kept in inlined
    assert ("style=" in inlined) is css.startswith("a,")


@pytest.mark.parametrize(
    "source",
    [
        "{% if a %}<div class=a>{% else %}<div class=b>{% endif %}<p>x</p></div>",
        "<p class='{{ kind }}'>x</p>",
        "<div class='{{ kind }}'><p>x</p></div>",
        "<div {% if a %}class=a{% endif %}><p>x</p></div>",
        "<p title='",
        "<style>{% if dark %}p{color:white}{% endif %}</style><p>x</p>",
        "{% for c in l %}<style>p{color:{{ c }}}</style><p>x</p>{% endfor %}",
        "<style media=print>b{color:white}</style><b>x</b>",
        "<p>\ue000</p>",
        "<link rel=stylesheet href=file:///etc/passwd><b>x</b>",
    ],
)
def test_where_it_is_not_sure_nothing_changes(source: str) -> None:
    html = f"<style>p{{color:red}}</style>{source}"
    assert inline_css(html) == html


def test_rows_of_a_loop_are_styled() -> None:
    source = "<style>td{color:red}</style><table>{% for i in l %}<tr><td>{{ i }}</td></tr>{% endfor %}</table>"
    assert rendered(inline_css(source), l=[1, 2]).count('<td style="color:red">') == 2


WORDS = st.sampled_from(["x", "{{ a }}", "{{ a|default('<') }}", "{# no #}", "&amp;", "{% set q = 1 %}"])
INNER = st.recursive(
    WORDS,
    lambda inner: st.one_of(
        st.builds(
            "<{0}{1}>{2}</{0}>".format,
            st.sampled_from(["div", "p", "b"]),
            st.sampled_from(["", " class=a", ' class="a b"', " id=i", ' style="top: {{ a }}"', " class='{{ a }}'"]),
            inner,
        ),
        st.builds("{{% if a %}}{0}{{% else %}}{1}{{% endif %}}".format, inner, inner),
        st.builds("{{% for i in l %}}{0}{{% endfor %}}".format, inner),
        st.lists(inner, max_size=3).map("".join),
    ),
    max_leaves=12,
)


@given(INNER, st.sampled_from(["", "a", "b"]), st.lists(st.integers(0, 9), max_size=2))
def test_inlined_then_rendered_is_rendered_then_inlined(body: str, a: str, items: list[int]) -> None:
    source = SHEET + body
    inlined = inline_css(source)
    assert STYLES.sub("", inlined) == STYLES.sub("", source)
    before, after = rendered(source, a=a, l=items), rendered(inlined, a=a, l=items)
    assert STYLES.sub("", after) == STYLES.sub("", before)
    if inlined != source and "class='{{" not in body:
        assert styles(after) == styles(inline_css(before))


@given(st.text(alphabet="<>/\"'={}%# -!pab.;:&\ue000\n", max_size=80))
def test_whatever_the_source_is_it_is_read_to_its_end(source: str) -> None:
    inline_css(SHEET + source)
    inline_css(f"<style>{source}</style><p>x</p>")


@pytest.mark.parametrize(
    "source",
    [
        "<div>" * 100_000,
        "<p class=a>x</p>" * 30_000,
        '<a "' * 100_000,
        "<!--" * 100_000,
        "<" * 500_000,
        "<a " + "b=c " * 100_000 + ">",
        "<style>" + "{(" * 60_000 + "</style>",
        "<style>" + "@media{" * 10_000 + "</style>",
        "<style>" + "* * * * * z *{color:red}" * 1_000 + "</style>" + "<div>" * 150,
        "<style>" + "".join(f".a {{x{n}:red}}" for n in range(2_500)) + "</style>" + "<p class=a>x</p>" * 10_000,
        "<style></style>" * 30_000,
        "<div>" * 150 + "</x>" * 100_000,
    ],
)
def test_a_hostile_source_takes_a_bounded_time(source: str) -> None:
    begun = time.process_time()
    inline_css(SHEET + source)
    assert time.process_time() - begun < 5
