"""What all bodies and answers of the HTTP API have in common. Names are camelCase outside."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel

TAGS_MAX = 20

NO_CONTROLS = r"^[^\x00-\x1f\x7f-\x9f]*$"
IdText = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NO_CONTROLS)]
"""An id that others have chosen: a user's, a campaign's, an idempotency key."""
LineText = Annotated[str, StringConstraints(max_length=200, pattern=NO_CONTROLS)]
Tag = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_CONTROLS)]
KeyText = Annotated[str, StringConstraints(min_length=1, max_length=320, pattern=NO_CONTROLS)]
"""An address, or the begin of one."""


class Http(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class ErrorDetail(Http):
    """`field` is a path in what was sent, where one is to blame. `code` is stable, `message` is for people."""

    code: str
    message: str
    field: str | None = None


class ErrorAnswer(Http):
    error: ErrorDetail
