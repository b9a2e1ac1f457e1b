"""What rendering costs: a subject and 4 KB of HTML with three variables, without and with a text part. Microseconds of CPU."""

import time
from collections.abc import Callable

from bench.measure import save
from core.finishing import finished
from core.templates import compile_template
from schemas.states import MissingVariables

LINE = "<p>" + "Lorem ipsum dolor sit amet, consectetur elit. " * 8 + "</p>\n"
HTML = f"<h1>Hello {{{{ name }}}}</h1>\n<p>Your code in {{{{ city }}}} is {{{{ code }}}}.</p>\n{LINE * 10}"
SUBJECT = "Hi {{ name }}, news from {{ city }}"
VARIABLES = {"name": "Ann", "email": "ann@mail.com", "id": "7", "city": "Paris", "code": "X-1234"}
TIMES, ROUNDS = 10_000, 7


def main() -> None:
    _, text = finished(HTML, None, inline=True)
    alone, both = compile_template(SUBJECT, HTML, None), compile_template(SUBJECT, HTML, text)
    strict = compile_template(SUBJECT, HTML, None, MissingVariables.STRICT)
    result = {
        "html": best(lambda: alone.render(VARIABLES)),
        "html_and_text": best(lambda: both.render(VARIABLES)),
        "strict_html": best(lambda: strict.render(VARIABLES)),
        "once_per_send_ms": best(lambda: finished(HTML, None, inline=True), 20) / 1000,
    }
    print(result, save("render", result))


def best(work: Callable[[], object], times: int = TIMES) -> float:
    """Of several rounds the quickest, in microseconds: what else the machine did is not this."""
    rounds = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(times):
            work()
        rounds.append((time.process_time() - begun) / times * 1e6)
    return round(min(rounds), 2)


if __name__ == "__main__":
    main()
