"""The error tree. Foreign errors become one of these at the adapter's edge, the cause kept.

QueueError
├── InvalidInput     what was given is wrong: says which field and why
├── NotFound         it does not exist, or it is not yours
├── Conflict         it exists already, or is in another state
├── NotAllowed       the key may not do this
├── TooMany          a limit says: later
├── Unavailable      a dependency is away: try again
├── Unusable         a Kafka record that nobody can use: a dead letter
├── MailError        a relay refused or was lost
└── Misconfigured    the program cannot start like this
"""

from dataclasses import dataclass

from schemas.states import ErrorKind, FailedStage


class QueueError(Exception):
    """Whatever this project raises on purpose."""


@dataclass(slots=True)
class InvalidInput(QueueError):
    """`field` is a path in the input (`template.subject`), empty for the input as a whole; `code` is stable."""

    field: str
    reason: str
    code: str = "invalid"

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}" if self.field else self.reason


class NotFound(QueueError):
    """It does not exist, or belongs to somebody else: the two look the same from outside."""


class Conflict(QueueError):
    """It exists already, or its state does not allow this."""


class NotAllowed(QueueError):
    """Who asks is known, and may not."""


class Unauthenticated(QueueError):
    """Who asks is not known."""


@dataclass(slots=True)
class TooMany(QueueError):
    """A limit is used up; `retry_after` in seconds says when a token is there again."""

    limit: str
    retry_after: float

    def __str__(self) -> str:
        return f"limit {self.limit} is used up, retry after {self.retry_after:.1f} s"


@dataclass(slots=True)
class TooLarge(QueueError):
    """The input is over a bound; the text names the bound and the way round."""

    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(slots=True)
class Unavailable(QueueError):
    """`dependency` (postgres, kafka, redis, relay) did not answer. Waiting helps."""

    dependency: str
    reason: str

    def __str__(self) -> str:
        return f"{self.dependency} is away: {self.reason}"


@dataclass(slots=True)
class Unusable(QueueError):
    """A record that will not get better by trying again. `code` is stable, for filters."""

    stage: FailedStage
    code: str
    reason: str
    kind: ErrorKind = ErrorKind.POISON

    def __str__(self) -> str:
        return self.reason


class MailError(QueueError):
    """A relay refused or was lost; `mailer` says what it means."""


class Misconfigured(QueueError):
    """The program cannot start with these settings; the text says which and why."""
