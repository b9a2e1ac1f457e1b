"""`python -m bench.mime`: what rendering and building a mail of 4 KB with three variables costs, beside EmailMessage's way."""

import os
import time
from collections.abc import Callable, Mapping
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate
from statistics import median
from typing import Any
from uuid import UUID

from bench.measure import save
from core.attachments import OTHER
from core.templates import Template, compile_template
from mailer.attachments import Attachment
from mailer.mime import CompiledMail, Sender, compile_mail

ROUNDS = int(os.environ.get("ROUNDS", "15"))
MAILS = 4_000
"""Of ours in a round; EmailMessage makes a hundredth of them in the time."""
SEND = UUID(int=1)
LINE = "<p style='color:#333'>Lorem ipsum dolor sit amet, consectetur elit, sed do eiusmod {}</p>\n"
HTML = "<html><body>\n" + LINE.format("{{ name }}") + LINE.format("") * 45 + "{{ city }}, {{ code }}</body></html>\n"
TEXT = (
    "Hello {{ name }},\n"
    + "Lorem ipsum dolor sit amet, consectetur elit, sed do eiusmod.\n" * 20
    + "{{ city }}, {{ code }}\n"
)
SENDER = Sender("news@example.com", "News")
LARGE = Attachment("large.bin", OTHER, os.urandom(10 * 2**20))


def variables(position: int) -> Mapping[str, Any]:
    return {"city": "Berlin", "code": f"ABC-{position}"}


PEOPLE = [(f"user{position}@example.net", f"User {position}", variables(position)) for position in range(MAILS)]


def ours(mail: CompiledMail) -> Callable[[int], object]:
    def build(position: int) -> object:
        email, name, own = PEOPLE[position]
        return mail.build(position, email, name, own, "r1")

    return build


def rendering(template: Template) -> Callable[[int], object]:
    """The part of it that is not MIME."""

    def render(position: int) -> object:
        email, name, own = PEOPLE[position]
        return template.render({**own, "email": email, "name": name, "id": "r1"})

    return render


def stdlib(template: Template) -> Callable[[int], object]:
    def build(position: int) -> bytes:
        email, name, own = PEOPLE[position]
        rendered = template.render({**own, "email": email, "name": name, "id": "r1"})
        message = EmailMessage(policy=SMTP)
        message["From"] = "News <news@example.com>"
        message["To"] = f"{name} <{email}>"
        message["Subject"] = rendered.subject
        message["Date"] = formatdate()
        message["Message-ID"] = f"<{SEND.hex}.{position}@example.com>"
        message["Precedence"] = "bulk"
        if rendered.text is not None:
            message.set_content(rendered.text)
            message.add_alternative(rendered.html or "", subtype="html")
        else:
            message.set_content(rendered.html or "", subtype="html")
        return message.as_bytes()

    return build


def measure(ways: Mapping[str, tuple[Callable[[int], object], int]]) -> dict[str, dict[str, float]]:
    """CPU of this process in microseconds a mail, round by round, so that what else the machine does falls on all alike."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (build, mails) in ways.items():
            begun = time.process_time()
            for position in range(mails):
                build(position)
            found[name].append((time.process_time() - begun) * 1e6 / mails)
    return {name: {"best": round(min(all_), 2), "median": round(median(all_), 2)} for name, all_ in found.items()}


def main() -> None:
    html = compile_template("Hello {{ name }}", HTML, None)
    both = compile_template("Hello {{ name }}", HTML, TEXT)
    begun = time.process_time()
    with_large = compile_mail(SEND, html, SENDER, attachments=[LARGE])
    compiling = time.process_time() - begun
    costs = measure(
        {
            "html": (ours(compile_mail(SEND, html, SENDER)), MAILS),
            "html_rendering_alone": (rendering(html), MAILS),
            "html_by_email_message": (stdlib(html), MAILS // 100),
            "html_and_text": (ours(compile_mail(SEND, both, SENDER)), MAILS),
            "html_and_text_rendering_alone": (rendering(both), MAILS),
            "html_and_text_by_email_message": (stdlib(both), MAILS // 100),
            "html_and_10_mb": (ours(with_large), MAILS),
        }
    )
    result = {
        "html_bytes": len(html.render(variables(1)).html or ""),
        "text_bytes": len(both.render(variables(1)).text or ""),
        "us_cpu_per_mail": costs,
        "email_message_to_ours": {
            name: round(costs[f"{name}_by_email_message"]["median"] / costs[name]["median"], 1)
            for name in ("html", "html_and_text")
        },
        "compile_10_mb_attachment_ms": round(compiling * 1e3, 1),
    }
    print(save("mime", result).read_text())


if __name__ == "__main__":
    main()
