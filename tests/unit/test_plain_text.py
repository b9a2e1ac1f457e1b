"""The text part made from HTML: readable, and still a template."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.plain_text import text_of
from core.templates import compile_template


def rendered(source: str, **variables: Any) -> str:
    text = text_of(source)
    assert text is not None
    body = compile_template("s", None, text).render(variables).text
    assert body is not None
    return body


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<h1>Hi</h1><p>One\n two</p><p>Three</p>", "Hi\n\nOne two\n\nThree\n"),
        ("<ul><li>a</li><li>b</li></ul>c", "- a\n- b\n\nc\n"),
        ("a<br>b<br><br>c", "a\nb\n\nc\n"),
        ("<div>a</div><div><div>b</div></div>c", "a\nb\nc\n"),
        ("<a href='http://x.test/?a=1&amp;b=2'>go</a>!", "go (http://x.test/?a=1&b=2)!\n"),
        ("<a href='http://x.test'>http://x.test</a>", "http://x.test\n"),
        ("<a href='#'>top</a> <a>none</a>", "top none\n"),
        ("<a href='mailto:a@b.test'>write</a>", "write (a@b.test)\n"),
        ("<a href='http://x.test'><img src=x></a>", "http://x.test\n"),
        ("<img src=x alt='A &amp; B'>", "A & B\n"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc\n"),
        ("<head><title>t</title><style>p{}</style></head><script>x<p></script><p>a</p>", "a\n"),
        ("<div style='display: none'>pre<b>view</b></div><div hidden>x</div>a", "a\n"),
        ("<!--[if mso]>x<![endif]-->a", "a\n"),
        ("1 &lt; 2 &amp; 3&nbsp;4", "1 < 2 & 3 4\n"),
        ("a <b>b</b><i>c</i> d", "a bc d\n"),
    ],
)
def test_html_is_readable_as_text(html: str, text: str) -> None:
    assert text_of(html) == text


@pytest.mark.parametrize("html", ["", "<p></p>", "<img src=x>", "<a href='x", "<style>p{}</style>", "{% set a = 1 %}"])
def test_where_there_is_nothing_to_read_there_is_no_text(html: str) -> None:
    assert text_of(html) is None


def test_pieces_stay_and_nothing_is_escaped() -> None:
    html = "<p>Hello {{ name }},</p><p><a href='{{ url }}?u={{ id }}'>go</a></p>"
    assert text_of(html) == "Hello {{ name }},\n\ngo ({{ url }}?u={{ id }})\n"
    assert rendered(html, name="<A&B>", url="http://x.test", id=7) == "Hello <A&B>,\n\ngo (http://x.test?u=7)\n"


def test_conditions_and_loops_stay_with_their_line_ends() -> None:
    html = "<p>a</p>{% if vip %}<p>VIP</p>{% else %}<p>you</p>{% endif %}"
    html += "<ul>{% for i in items %}<li>{{ i }}</li>{% endfor %}</ul>b"
    assert rendered(html, vip=True, items=[1, 2]) == "a\n\nVIP\n\n- 1\n- 2\n\nb\n"
    assert rendered(html, items=[]).split() == ["a", "you", "b"]


def test_what_hidden_parts_set_is_known_behind_them() -> None:
    html = "<head>{% set brand = 'Shop' %}</head><!-- {% if a %}x{% endif %} --><p>{{ brand }}</p>"
    assert rendered(html) == "Shop\n"


def test_what_only_looks_like_a_template_is_text() -> None:
    assert rendered("<p>&#123;{ name }} &#123;% if %}</p>", name="x") == "{{ name }} {% if %}\n"


@given(st.text(alphabet="<>/\"'={}%# -!pabli&;\n", max_size=80))
def test_whatever_the_source_is_it_is_read_to_its_end(source: str) -> None:
    text_of(source)


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 100_000,
        "<p class=a>x</p>" * 30_000,
        "<a href=x>y" * 45_000,
        "<div>" * 200 + "</x>" * 100_000,
        "<a href=x>" * 20_000 + "x" + "</a>" * 20_000,
        "<" * 500_000,
        "&" * 500_000,
        "{{ a }}" * 60_000,
    ],
)
def test_a_hostile_source_takes_a_bounded_time(html: str) -> None:
    begun = time.process_time()
    text_of(html)
    assert time.process_time() - begun < 5
