"""What a relay's reply means: temporary or permanent (RFC 5321 section 4.2), about what (RFC 3463), and whether by policy."""

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from msgspec import Struct

from core.reply_texts import GREYLISTED_FOR, Meaning, meaning_of, named_wait

MAX_TEXT = 500

_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]+")


class Stage(StrEnum):
    """What was said when the reply came: MAIL, RCPT, DATA, or the content with its final dot."""

    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"


class About(StrEnum):
    """Who would have to change for this to go through. Only `recipient` may ever suppress an address."""

    RECIPIENT = "recipient"
    SENDER = "sender"
    MESSAGE = "message"
    RELAY = "relay"


class Reply(Struct, frozen=True, gc=False):
    """`enhanced` is the code of RFC 3463 (`5.1.1`), which `text` does not repeat. Made by `parse_reply`."""

    code: int
    enhanced: str | None
    text: str


@dataclass(frozen=True, slots=True)
class ReplyClass:
    """`policy`: it might have gone, if it had come from others, or more slowly, or with other words. `no_mailbox`: there is
    nobody at this address. `wait`: seconds, where a temporary reply says when to come back.
    """

    permanent: bool
    about: About
    policy: bool = False
    no_mailbox: bool = False
    wait: float | None = None

    @property
    def suppresses(self) -> bool:
        """Whether the address must not be written to again: only when it is certain that nobody is there. A full or disabled
        mailbox may come back, policy is mostly about us, and a bare 550 may be either (RFC 5321, 4.2.3).
        """
        return self.permanent and self.no_mailbox and self.about is About.RECIPIENT and not self.policy


def parse_reply(code: int, text: str) -> Reply:
    """`text` may have several lines, each with the enhanced code before it (RFC 2034), and bytes that are not UTF-8
    as surrogates. The result is one line that any database stores.
    """
    if len(text) <= MAX_TEXT and text.isascii() and text.isprintable():  # nearly all are, and it costs half
        enhanced, said = _split(code, text)
        return Reply(code, enhanced, " ".join(said.split()))
    enhanced = None
    lines = []
    for line in text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").splitlines():
        found, said = _split(code, _said(line))
        enhanced = enhanced or found
        lines.append(said)
    return Reply(code, enhanced, " ".join(line for line in lines if line)[:MAX_TEXT])


def classify(reply: Reply, stage: Stage) -> ReplyClass:
    """For 4yz and 5yz. The first digit says whether it is permanent; about whom it is, a text that is known tells best, then
    the enhanced code, then the basic one; where none tells, the stage decides.
    """
    permanent = reply.code >= 500
    meaning = meaning_of(reply.text)
    known = None if meaning is None or stage is Stage.MAIL else _MEANINGS.get(meaning)
    if meaning in _POLICY:
        about, policy = _about_policy(reply, stage, meaning), True
    else:
        about, policy = known or _about(reply, stage), known is None and _is_policy(reply)
    return ReplyClass(
        permanent,
        about,
        policy,
        no_mailbox=about is About.RECIPIENT and stage is not Stage.MAIL and _says_no_mailbox(reply, meaning),
        wait=None if permanent else _wait(reply, meaning),
    )


_POLICY = frozenset({Meaning.BLOCKED, Meaning.UNWANTED, Meaning.GREYLISTED})
_MEANINGS = {
    Meaning.NO_MAILBOX: About.RECIPIENT,
    Meaning.FULL: About.RECIPIENT,
    Meaning.DISABLED: About.RECIPIENT,
    Meaning.TOO_LARGE: About.MESSAGE,
    Meaning.NO_RELAY: About.RELAY,
}
_NO_MAILBOX = frozenset({"1.1", "1.2", "1.3", "1.6", "1.10"})
"""No such mailbox, no such domain, no address at all, moved away, a domain that takes no mail (RFC 3463, 3.2; RFC 7505)."""
_NO_POLICY = frozenset({"7.8", "7.9", "7.17", "7.18"})
"""A wrong password, and mailboxes or domains that have a new owner."""


def _about_policy(reply: Reply, stage: Stage, meaning: Meaning | None) -> About:
    about = _about(reply, stage)
    if meaning is Meaning.UNWANTED:
        return About.MESSAGE
    # Never the recipient's fault, whatever code comes with it.
    return About.SENDER if about is About.RECIPIENT else about


def _is_policy(reply: Reply) -> bool:
    key = _keys(reply)[0]
    return reply.enhanced is not None and key.startswith("7.") and key not in _NO_POLICY


def _says_no_mailbox(reply: Reply, meaning: Meaning | None) -> bool:
    if meaning is not None:
        return meaning is Meaning.NO_MAILBOX
    return reply.code == 556 if reply.enhanced is None else _keys(reply)[0] in _NO_MAILBOX


def _wait(reply: Reply, meaning: Meaning | None) -> float | None:
    return named_wait(reply.text) or (GREYLISTED_FOR if meaning is Meaning.GREYLISTED else None)


_TABLE: dict[tuple[Stage | None, str], About] = {
    # RFC 3463 section 3, by subject: address, mailbox, system, network, protocol, content.
    (None, "1"): About.RECIPIENT,
    (None, "2"): About.RECIPIENT,
    (None, "3"): About.RELAY,
    (None, "4"): About.RELAY,
    (None, "5"): About.RELAY,
    (None, "6"): About.MESSAGE,
    # To RCPT, "no route" is about the recipient's domain, not about the relay that says so.
    (Stage.RCPT, "4"): About.RECIPIENT,
    # Policy may mean anybody. To RCPT it is mostly our address or our IP, so it must not suppress the recipient.
    (Stage.MAIL, "7"): About.SENDER,
    (Stage.RCPT, "7"): About.SENDER,
    (Stage.DATA, "7"): About.MESSAGE,
    (Stage.CONTENT, "7"): About.MESSAGE,
    # Details that differ from their subject (IANA's registry of enhanced status codes).
    (None, "1.7"): About.SENDER,
    (None, "1.8"): About.SENDER,
    (None, "1.9"): About.RELAY,
    (None, "2.3"): About.MESSAGE,
    (None, "3.4"): About.MESSAGE,
    (None, "7.8"): About.RELAY,
    (None, "7.9"): About.RELAY,
    (None, "7.17"): About.RECIPIENT,
    (None, "7.18"): About.RECIPIENT,
    # RFC 5321, RFC 4954 (53z) and RFC 7504 (521, 556), where the stage alone would be wrong.
    **{(None, str(code)): About.RELAY for code in (421, 451, 452, 454, 521, 530, 534, 535, 538, 555)},
    **{(None, str(code)): About.RELAY for code in range(500, 510)},
    (None, "556"): About.RECIPIENT,
    (Stage.MAIL, "552"): About.MESSAGE,
    # To RCPT mostly policy ("relay access denied", a block list).
    (Stage.RCPT, "554"): About.RELAY,
}
"""By x.y.z's `y.z`, its `y`, or the basic code; with its stage, or for any."""

_BY_STAGE = {
    Stage.MAIL: About.SENDER,
    Stage.RCPT: About.RECIPIENT,
    Stage.DATA: About.MESSAGE,
    Stage.CONTENT: About.MESSAGE,
}


def _about(reply: Reply, stage: Stage) -> About:
    for key in _keys(reply):
        about = _TABLE.get((stage, key)) or _TABLE.get((None, key))
        if about:
            return about
    return _BY_STAGE[stage]


def _keys(reply: Reply) -> list[str]:
    if reply.enhanced is None:
        return [str(reply.code)]
    _, subject, detail = reply.enhanced.split(".")
    return [f"{subject}.{detail}", subject, str(reply.code)]


def _split(code: int, line: str) -> tuple[str | None, str]:
    head, _, said = line.partition(" ")
    return (head, said) if _is_enhanced(code, head) else (None, line)


@lru_cache(maxsize=256)
def _is_enhanced(code: int, word: str) -> bool:
    """RFC 2034: the class of the enhanced code is the reply's own first digit. Else it is only text."""
    return _ENHANCED.fullmatch(word) is not None and word[0] == str(code)[0]


def _said(line: str) -> str:
    return " ".join(_CONTROLS.sub(" ", line).split())
