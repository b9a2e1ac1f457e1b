"""DKIM keys."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, SecretStr, StringConstraints

from schemas.http.base import NO_CONTROLS, Http
from schemas.states import DkimAlgorithm, DkimCanonicalization, DkimState

DKIM_MAX_BYTES = 32 * 1024
"""Of the body of one key."""

DkimDomain = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=NO_CONTROLS)]
DkimSelector = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=NO_CONTROLS)]
DkimPrivateKey = Annotated[SecretStr, Field(min_length=1, max_length=16 * 1024)]


class DkimKeyOrder(Http):
    """A key is made here, RSA of 2048 bits unless `algorithm` is ed25519; or is given as `private_key`: PEM without a
    passphrase, RSA of 2048 to 4096 bits or Ed25519. Without a `selector` one is made up.
    """

    domain: DkimDomain
    selector: DkimSelector | None = None
    algorithm: DkimAlgorithm | None = None
    canonicalization: DkimCanonicalization = DkimCanonicalization.RELAXED
    private_key: DkimPrivateKey | None = None


class DkimRecord(Http):
    """What has to be in DNS. `strings` are `value` in pieces of at most 255 bytes, `zone` is both as zone files have it."""

    name: str
    type: Literal["TXT"] = "TXT"
    value: str
    strings: list[str]
    zone: str


class DkimKeyAnswer(Http):
    """`usable`: SECRET_KEYS of the API decrypt it; while those of the workers do not, mails of its domain wait.
    `removable_at`: of one that is retiring; until then its record has to stay in DNS.
    """

    id: UUID
    domain: str
    selector: str
    algorithm: DkimAlgorithm
    canonicalization: DkimCanonicalization
    state: DkimState
    shared: bool
    usable: bool
    record: DkimRecord
    created_at: datetime
    activated_at: datetime | None
    retired_at: datetime | None
    removable_at: datetime | None


class DkimKeyList(Http):
    """By domain and selector. There are 100 at the most."""

    keys: list[DkimKeyAnswer]


class DkimChecked(Http):
    """Whether DNS has the record; else why not, with what it has under that name."""

    published: bool
    reason: str | None
    found: list[str]
