"""What large providers mean by the texts of their replies, where the codes do not say it, or say something else."""

import re
from enum import StrEnum

GREYLISTED_FOR = 300.0
"""Seconds to wait where greylisting does not say how long: the usual default."""

_ADDRESS = re.compile(r"\S+@\S+")
_LINK = re.compile(r"https?://\S+", re.IGNORECASE)


class Meaning(StrEnum):
    NO_MAILBOX = "there is no such mailbox"
    FULL = "the mailbox is full"
    DISABLED = "the mailbox takes no mail, for now or for good"
    BLOCKED = "who sends is not wanted: address, domain, rate, reputation, authentication"
    UNWANTED = "what is sent is not wanted"
    GREYLISTED = "come back later, as mail servers do"
    TOO_LARGE = "the mail is larger than is taken"
    NO_RELAY = "this server does not take mail for that domain from us"


def _any(*texts: str) -> re.Pattern[str]:
    return re.compile("|".join(texts), re.IGNORECASE)


# The first that fits counts. Policy comes first: "blocked" next to "user unknown" must not cost anybody their address.
_TEXTS: tuple[tuple[Meaning, re.Pattern[str]], ...] = (
    (Meaning.GREYLISTED, _any(r"gr[ea]y.?list")),
    (
        Meaning.NO_RELAY,
        _any(r"relay(ing)? (access |is )?(denied|not (permitted|allowed))", r"(unable|not permitted) to relay"),
    ),
    (
        Meaning.UNWANTED,
        _any(
            r"message (was |has been )?(rejected|refused|blocked|not accepted) .{0,40}(spam|content|virus)",
            r"spam message rejected",  # mail.ru
            r"likely (that this message is )?(unsolicited|suspicious)",  # Gmail
            r"(contains|detected as) (a )?(spam|virus|malware|url)",
            r"content.{0,30}(presents a potential security issue|rejected|blocked)",  # Gmail
            r"message identified as spam",
            r"spam (is )?(detected|content)",
            r"suspicion of spam",  # Yandex
        ),
    ),
    (
        Meaning.BLOCKED,
        _any(
            r"spamhaus|spamcop|barracuda|sorbs|proofpoint|cloudmark|\b[rd]nsbl\b|\brbls?\b",
            r"block.?list|black.?list|deny.?list|\bbanned\b|blocked",
            r"access denied|not authori[sz]ed|not allowed to send|rejecting? .{0,30}policy|policy (reasons|violation)",
            r"unusual rate|rate.?limit|too many (messages|connections|mails|recipients|errors|concurrent)|throttl",
            r"unexpected volume|excessive volume|user complaints|complaint",  # Yahoo, iCloud
            r"reputation|unsolicited|\[TSS?\d+\]|\(S\d{3,4}\)|\bOFR_?(004|006|103|104|105|106|506|999)",
            r"\b(spf|dkim|dmarc|arc)\b|unauthenticated|ptr record|reverse dns|no reverse",
            r"local policy|due to (its )?policy|transaction failed .{0,20}reject due to policy",  # GMX, web.de
            r"trop de connexions|adresse ip source bloquee|bad dns ptr",  # Orange, GMX
            r"temporarily deferred|delayed due to|try sending .{0,20}(later|slower)|spam",
        ),
    ),
    (
        Meaning.TOO_LARGE,
        _any(r"(message|mail|size).{0,40}(exceeds|larger than|too (big|large)).{0,60}", r"too (big|large)"),
    ),
    (
        Meaning.FULL,
        _any(
            r"(over|exceed\w*|out of|insufficient).{0,25}(quota|storage|space)|quota.{0,20}(exceeded|full)|overquota",
            r"(mailbox|inbox|account).{0,20}(is )?full|mailfull|bo[iî]te du destinataire pleine",
            r"speichervolumen ueberschritten|exhausted allowed storage",  # web.de
        ),
    ),
    (
        Meaning.DISABLED,
        _any(
            r"inactiv|disabled|discontinued|suspended|not currently being accepted|receiving (e?mail )?at a rate",
            r"mailbox unavailable",  # Outlook, GMX: mostly nobody is there, but they say it of policy, too
            r"(account|mailbox|user) (is |has been )?(locked|terminated|frozen|not active)",
            r"gesperrt|deaktiviert|d[eé]sactiv",
        ),
    ),
    (
        Meaning.NO_MAILBOX,
        _any(
            r"(account|user|mailbox|address|recipient|alias)\b.{0,40}(does ?n[o']t|do(es)? not) exist",
            r"no such (user|recipient|mailbox|address|account|person|local user)|\bno mailbox here\b",
            r"(user|recipient|account|mailbox|address|alias|local part)s? (is )?(unknown|not found)|not found.{0,10}user",
            r"unknown (user|recipient|account|mailbox|address|local part|or illegal alias)",
            r"user does ?n[o']t have an?|dd requested mail action aborted, mailbox not found",  # Yahoo
            r"recipient ?not ?found|recipient address rejected: (user unknown|undeliverable address)",
            r"invalid (recipient|mailbox)|destinataire invalide|no longer (available|valid)",  # Orange, mail.ru
            r"benutzer nicht bekannt",  # web.de
        ),
    ),
)

_UNIT = r"(seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h)\b"
_WAIT = re.compile(
    rf"(?:again|retry|wait|back|later|list\w*|deferred|delayed)\b[^.;\d]{{0,40}}(\d{{1,5}})\s*{_UNIT}", re.IGNORECASE
)
_CLOCK = re.compile(r"(?:again|retry|wait|back|later|list\w*)\b[^.;\d]{0,40}(\d{1,2}):(\d\d):(\d\d)\b", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def meaning_of(text: str) -> Meaning | None:
    """By words alone: addresses and links may have any word in them."""
    words = _ADDRESS.sub(" ", _LINK.sub(" ", text))
    return next((meaning for meaning, pattern in _TEXTS if pattern.search(words)), None)


def named_wait(text: str) -> float | None:
    """Seconds, where the text says when to come back."""
    words = _ADDRESS.sub(" ", _LINK.sub(" ", text))
    if found := _CLOCK.search(words):
        hours, minutes, seconds = map(int, found.groups())
        return float(hours * 3600 + minutes * 60 + seconds)
    if found := _WAIT.search(words):
        return float(int(found[1]) * _SECONDS[found[2][0].lower()])
    return None
