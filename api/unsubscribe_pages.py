"""What a recipient sees who follows the link of a mail: pages without scripts, pictures, cookies or anything from elsewhere."""

import base64
import hashlib
from html import escape
from typing import Final

from starlette.responses import HTMLResponse

from core.unsubscribe import masked
from store.unsubscribes import LinkedMail

STYLE: Final = (
    "*{box-sizing:border-box}"
    "body{margin:0;font:1.125rem/1.6 system-ui,sans-serif;color:#1a1a1a;background:#f4f4f5}"
    "main{max-width:34rem;margin:8vh auto;padding:2rem 1.5rem;background:#fff;border-radius:.5rem}"
    "h1{margin:0 0 1rem;font-size:1.6rem;line-height:1.25}"
    "p{margin:0 0 1.25rem;overflow-wrap:anywhere}"
    "button{min-height:3rem;padding:.5rem 1.5rem;border:2px solid #1d4ed8;border-radius:.5rem;"
    "font:inherit;font-weight:600;color:#fff;background:#1d4ed8;cursor:pointer}"
    "button.quiet{color:#1d4ed8;background:#fff}"
    "button:focus-visible{outline:3px solid #1a1a1a;outline-offset:3px}"
    "@media(prefers-color-scheme:dark){body{color:#f4f4f5;background:#18181b}main{background:#27272a}"
    "button{border-color:#93c5fd;color:#18181b;background:#93c5fd}button.quiet{color:#93c5fd;background:#27272a}"
    "button:focus-visible{outline-color:#f4f4f5}}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the link is the right to unsubscribe
    "Cache-Control": "no-store",
    "X-Robots-Tag": "noindex, nofollow",
}

ANSWER: Final = "answer=page"
"""The body of what the buttons post: so it is told from a mail program's one-click, which wants no page."""


def ask(mail: LinkedMail) -> HTMLResponse:
    return _page(
        "Unsubscribe?",
        f"<p>{_sender(mail)} will send no more newsletters or offers to {_address(mail)}.</p>"
        "<p>Mails you need, such as order confirmations, still come.</p>",
        _button("", "Unsubscribe"),
    )


def done(mail: LinkedMail, token: str) -> HTMLResponse:
    """Of an address that is suppressed. What a link did a link may undo."""
    undo = "<p>A mistake?</p>" + _button(f"{token}/undo", "Subscribe again", "quiet") if mail.by_link else ""
    return _page(
        "You are unsubscribed", f"<p>{_sender(mail)} sends no more newsletters or offers to {_address(mail)}.</p>", undo
    )


def undone(mail: LinkedMail, token: str) -> HTMLResponse:
    return _page(
        "You are subscribed again",
        f"<p>{_sender(mail)} may write to {_address(mail)}.</p>",
        _button(f"../{token}", "Unsubscribe", "quiet"),
    )


def stays(mail: LinkedMail) -> HTMLResponse:
    """Of an address that something else than a link suppressed."""
    return _page(
        "You stay unsubscribed",
        f"<p>Mails to {_address(mail)} were stopped in another way than by this page. To get them again, write to "
        f"{_sender(mail)}.</p>",
    )


def erased() -> HTMLResponse:
    return _page("You are unsubscribed", "<p>Your address has been erased here. Nothing is sent to it any more.</p>")


def unknown() -> HTMLResponse:
    return _page(
        "This link does not work",
        "<p>It is incomplete, or the mail it came with is too old. Open the link in a newer mail, or answer that mail and ask "
        "to be removed.</p>",
        status=404,
    )


def away() -> HTMLResponse:
    return _page(
        "Please try again in a minute",
        "<p>We cannot do this just now. Nothing has been changed.</p>",
        status=503,
        headers={"Retry-After": "60"},
    )


def _sender(mail: LinkedMail) -> str:
    address = "" if mail.sender is None else mail.sender
    if mail.sender_name and address:
        return f"<strong>{escape(mail.sender_name)}</strong> ({escape(address)})"
    return f"<strong>{escape(mail.sender_name or address or 'The sender')}</strong>"


def _address(mail: LinkedMail) -> str:
    return f"<strong>{escape(masked(mail.email))}</strong>"


def _button(action: str, text: str, kind: str = "") -> str:
    """`action` is relative, so that it holds behind any path of PUBLIC_URL; empty: the page itself."""
    where = f' action="{escape(action)}"' if action else ""
    look = f' class="{kind}"' if kind else ""
    name, _, value = ANSWER.partition("=")
    return f'<form method="post"{where}><button{look} name="{name}" value="{value}">{text}</button></form>'


def _page(
    title: str, text: str, form: str = "", status: int = 200, headers: dict[str, str] | None = None
) -> HTMLResponse:
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="robots" content="noindex">'
        f"<title>{title}</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{title}</h1>{text}{form}</main></body></html>\n",
        status,
        HEADERS | (headers or {}),
    )
