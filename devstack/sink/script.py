"""How the sink is told to misbehave."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import translate
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Stage = Literal["connect", "mail", "rcpt", "data", "content", "end", "taken"]
Extension = Literal["PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE", "STARTTLS"]


class Rule(BaseModel):
    """What happens `at` a stage instead of the usual. The first rule that applies wins.

    `connect`: at the greeting. `mail`, `rcpt`, `data`: instead of the command's reply. `content`: when the first bytes of the
    content come. `end`: after the content, which is not taken. `taken`: the mail is taken and counted, only its reply differs:
    with `drop` it is lost, and the client cannot know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: Stage
    reply: Annotated[str | None, Field(pattern=r"^[2-5]\d\d( [\x20-\x7e]*)?$")] = None
    drop: bool = False
    """Close the connection, after the reply if there is one. A reply 421 always closes."""
    match: str = "*"
    """A glob over addresses, in any case: the sender's at `mail`, any recipient's later."""
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Drawn anew at each visit of an address; the same seed and visits give the same draws, in whatever order they come."""
    times: Annotated[int | None, Field(ge=0)] = None
    """At most so often in all."""
    first: Annotated[int | None, Field(ge=0)] = None
    """Only at the first visits of each address: greylisting."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.reply is None and not self.drop:
            raise ValueError("a rule needs a reply, or drop")
        if self.at == "content" and self.reply is not None:
            raise ValueError("no reply can be given while the content comes")
        return self


class Script(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[Rule, ...] = ()
    seed: int = 0
    delay: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """Seconds between a mail's end and its reply."""
    hide: frozenset[Extension] = frozenset()
    """Extensions that EHLO does not announce."""


class Play:
    """A script being played: its counters with it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.delay = script.delay
        self._rules: dict[str, list[tuple[int, Rule, re.Pattern[str]]]] = {stage: [] for stage in get_args(Stage)}
        for index, rule in enumerate(script.rules):
            self._rules[rule.at].append((index, rule, re.compile(translate(rule.match.lower()))))
        self._used: Counter[int] = Counter()
        self._visits: Counter[tuple[int, str]] = Counter()

    def rule(self, at: Stage, addresses: Sequence[bytes] = (b"",)) -> Rule | None:
        """The rule that applies now; asking counts as a visit."""
        for index, rule, pattern in self._rules[at]:
            address = _matching(pattern, addresses)
            if address is None:
                continue
            visit = self._visits[index, address]
            self._visits[index, address] += 1
            if rule.first is not None and visit >= rule.first:
                continue
            if rule.share < 1 and self._draw(index, address, visit) >= rule.share:
                continue
            if rule.times is not None and self._used[index] >= rule.times:
                continue
            self._used[index] += 1
            return rule
        return None

    def _draw(self, index: int, address: str, visit: int) -> float:
        text = f"{self.script.seed} {index} {visit} {address}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") / 2**64


def _matching(pattern: re.Pattern[str], addresses: Sequence[bytes]) -> str | None:
    for address in addresses:
        text = address.decode("utf-8", "replace").lower()
        if pattern.match(text):
            return text
    return None
