"""What a relay's reply means: temporary or permanent (RFC 5321 section 4.2), and about what (RFC 3463)."""

import re
from dataclasses import dataclass
from enum import StrEnum

MAX_TEXT = 500

_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?=\s|$)")
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


@dataclass(frozen=True, slots=True)
class Reply:
    """`enhanced` is the code of RFC 3463 (`5.1.1`), which `text` does not repeat. Made by `parse_reply`."""

    code: int
    enhanced: str | None
    text: str


@dataclass(frozen=True, slots=True)
class ReplyClass:
    permanent: bool
    about: About


def parse_reply(code: int, text: str) -> Reply:
    """`text` may have several lines, each with the enhanced code before it (RFC 2034), and bytes that are not UTF-8
    as surrogates. The result is one line that any database stores.
    """
    enhanced = None
    lines = []
    for line in text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").splitlines():
        found = _ENHANCED.match(line)
        # RFC 2034: the class is the reply's own first digit. Else it is only text.
        if found and found[1][0] == str(code)[0]:
            enhanced = enhanced or found[1]
            lines.append(_said(line[found.end() :]))
        else:
            lines.append(_said(line))
    return Reply(code, enhanced, " ".join(line for line in lines if line)[:MAX_TEXT])


def classify(reply: Reply, stage: Stage) -> ReplyClass:
    """For 4yz and 5yz. The enhanced code tells more than the basic one; where neither tells, the stage decides."""
    return ReplyClass(reply.code >= 500, _about(reply, stage))


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


def _said(line: str) -> str:
    return " ".join(_CONTROLS.sub(" ", line).split())
