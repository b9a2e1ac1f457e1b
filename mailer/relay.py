"""A relay as settings know it: where it is, how to get in, how long to wait for it, and what it is trusted with."""

import ssl
from dataclasses import dataclass, field
from functools import lru_cache

from core.errors import Misconfigured
from schemas.states import RelayTls

Tls = RelayTls


@dataclass(frozen=True, slots=True)
class Login:
    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds (RFC 5321, 4.5.3.2). Only `connect`, which ends when mails can be sent, is shorter: no mail has begun by
    then. The others must not be cut short: after the dot that would make doubt out of nothing.

    `ahead` is ours: how long commands that were written ahead may stay without any reply, before the relay is taken for one
    that loses them. No content is on its way then; one by one the mail gets RFC 5321's time.
    """

    connect: float = 10.0
    ahead: float = 60.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0
    dot: float = 600.0
    quit: float = 5.0


RFC_TIMEOUTS = Timeouts()


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """`max_mails_per_connection` and `max_age` (seconds) are looked at between groups, so a group may run over them. With
    `ca_file`, or `ca`, the text of one, only its authorities are believed. `pipelining=False`: not even where the relay offers
    it. `public_only`: never at an address of a private network, whatever its name resolves to. Raises Misconfigured.
    """

    host: str
    port: int
    helo_name: str
    connections: int
    max_mails_per_connection: int = 1000
    max_age: float = 300.0
    tls: Tls = Tls.NONE
    verify: bool = True
    ca_file: str | None = None
    login: Login | None = None
    pipelining: bool = True
    ca: str | None = None
    public_only: bool = False
    called: str | None = None

    def __post_init__(self) -> None:
        if self.login is not None and self.tls is Tls.NONE:
            raise Misconfigured(f"relay {self.name}: a password is not sent without TLS")

    @property
    def name(self) -> str:
        """As outcomes and messages call it."""
        return self.called or f"{self.host}:{self.port}"


@lru_cache(maxsize=64)
def tls_context(relay: RelaySettings) -> ssl.SSLContext:
    """Read once: a changed `ca_file` counts from the next start. Raises Misconfigured."""
    try:
        context = ssl.create_default_context(cafile=relay.ca_file, cadata=relay.ca)
    except (OSError, ValueError) as error:
        raise Misconfigured(f"relay {relay.name}: cannot use {relay.ca_file or 'its ca'}: {error}") from error
    if not relay.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Trust:
    """Whether a relay is written ahead to, as long as it has shown that it can stand it. Shared by all its connections."""

    __slots__ = ("_losses", "_proven", "lost")

    def __init__(self, allowed: bool = True) -> None:
        self.lost: str | None = None if allowed else "switched off"
        self._proven = False
        self._losses = 0

    @property
    def holds(self) -> bool:
        return self.lost is None

    def prove(self) -> None:
        """A group went through, written ahead."""
        self._proven = True

    def betray(self, reason: str) -> None:
        """It lost or mixed up commands: never again."""
        self.lost = self.lost or reason

    def suspect(self, reason: str) -> None:
        """A connection was lost while commands were written ahead. That may be the network's doing, but not twice in a row
        with a relay that never took a group.
        """
        self._losses += 1
        if not self._proven and self._losses > 1:
            self.betray(reason)
