"""Relays."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, SecretStr, StringConstraints

from schemas.http.base import NO_CONTROLS, Http, KeyText
from schemas.states import (
    RelayTls,
)

RELAY_MAX_BYTES = 128 * 1024
"""Of the body of one relay; most of it are its authorities."""

RelayName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
RelayHost = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9:][A-Za-z0-9.:_-]{0,252}$")]
RelayPort = Annotated[int, Field(ge=1, le=65535)]
RelayPassword = Annotated[SecretStr, Field(min_length=1, max_length=1_000)]
RelayUser = Annotated[str, StringConstraints(min_length=1, max_length=320, pattern=NO_CONTROLS)]
RelayWeight = Annotated[int, Field(ge=0, le=1_000)]
RelayConnections = Annotated[int, Field(ge=1, le=50)]
RelayMails = Annotated[int, Field(ge=1, le=100_000)]
RelayAge = Annotated[int, Field(ge=1, le=86_400)]
RelayAuthorities = Annotated[str, StringConstraints(min_length=1, max_length=64 * 1024, pattern=r"^[^\x00]*$")]


class RelayOrder(Http):
    """`ca`: PEM, only these authorities are believed. With `weight` 0 it gets only what no other relay takes. `max_age` of a
    connection in seconds; `connections` of each worker. `username` and `password` come together, and need TLS.
    """

    name: RelayName
    host: RelayHost
    port: RelayPort
    tls: RelayTls = RelayTls.STARTTLS
    verify: bool = True
    ca: RelayAuthorities | None = None
    username: RelayUser | None = None
    password: RelayPassword | None = None
    weight: RelayWeight = 1
    connections: RelayConnections = 4
    mails_per_connection: RelayMails = 1_000
    max_age: RelayAge = 300
    enabled: bool = True


class RelayPatch(Http):
    """What is left out stays. `username` null: no login any more. Where mails go, and how, changes only with the password given
    again.
    """

    host: RelayHost | None = None
    port: RelayPort | None = None
    tls: RelayTls | None = None
    verify: bool | None = None
    ca: RelayAuthorities | None = None
    username: RelayUser | None = None
    password: RelayPassword | None = None
    weight: RelayWeight | None = None
    connections: RelayConnections | None = None
    mails_per_connection: RelayMails | None = None
    max_age: RelayAge | None = None
    enabled: bool | None = None


class RelayHealthAnswer(Http):
    """How one worker finds it. `open`: suspended, and tried again by itself; `half-open`: it is being tried."""

    worker: str
    state: Literal["closed", "open", "half-open"]
    since: datetime
    last_error: str | None
    connections_in_use: int
    at: datetime


class RelayAnswer(Http):
    """`health` has the workers that used it in the last minutes; null: Redis is away. `of_settings`: the one of SMTP_HOST,
    which is used, and shown, while there is no shared one.
    """

    name: str
    shared: bool
    of_settings: bool
    host: str
    port: int
    tls: RelayTls
    verify: bool
    ca: str | None
    username: str | None
    has_password: bool
    weight: int
    connections: int
    mails_per_connection: int
    max_age: int
    enabled: bool
    created_at: datetime | None
    updated_at: datetime | None
    health: list[RelayHealthAnswer] | None


class RelayList(Http):
    """By name. There are 100 at the most."""

    relays: list[RelayAnswer]


class RelayTestOrder(Http):
    """With `recipient` a mail is sent to it. `sender`, else the relay's username, is whom it is from."""

    recipient: KeyText | None = None
    sender: KeyText | None = None


class RelayTestStep(Http):
    """`code` and `text` are the relay's own; without a code the text is ours."""

    name: str
    ok: bool
    code: int | None
    text: str
    milliseconds: float


class RelayTested(Http):
    """`ok`: all steps were. The first that was not is the last one."""

    ok: bool
    worker: str
    steps: list[RelayTestStep]
