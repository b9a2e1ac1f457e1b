"""Unsubscribing for a recipient: what reads the mailbox of UNSUBSCRIBE_MAILTO calls it."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field, StringConstraints

from schemas.http.base import Http


class UnsubscribeOrder(Http):
    token: Annotated[str, StringConstraints(max_length=1_000)] = Field(
        description="As in the subject of the recipient's mail, behind `unsubscribe:`."
    )


class UnsubscribeAnswer(Http):
    """Which mail it was. `already`: the address was suppressed, or has been erased."""

    state: Literal["unsubscribed", "already"]
    user_id: str
    send_id: UUID
    position: int
    recipient_id: str | None
