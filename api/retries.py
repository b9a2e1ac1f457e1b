"""Mails of a campaign send that ended and go again, a page at a time, in the ledger: nothing is published a second time."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from api.addresses import keys_of
from core.errors import Conflict, NotFound
from schemas.http.sends import RetryOrder, SendRetried
from schemas.states import MailState, OperationKind, SendState
from store.postgres import Connection
from store.progress import reopen_progress
from store.recipients import lock_retried_send, positions_of, retry_mails
from store.sends import Send, wake_release

PAGE: Final = 2_000
"""Positions looked at in one transaction."""
RETRIED: Final = frozenset({SendState.RUNNING, SendState.PAUSED, SendState.DONE})


@dataclass(frozen=True, slots=True)
class Retry:
    """Which mails. `positions`, where addresses were named; None for all of the send."""

    send: Send
    states: Sequence[MailState]
    codes: Sequence[int] | None
    positions: Sequence[int] | None

    @classmethod
    async def of(cls, connection: Connection, send: Send, asked: RetryOrder) -> "Retry":
        """Raises InvalidInput for an address that is none."""
        positions = None
        if asked.emails is not None:
            positions = await positions_of(connection, send.id, send.user_id, keys_of(asked.emails))
        return cls(send, [MailState(state) for state in asked.states], asked.codes, positions)

    def page(self, first: int, recipients: int) -> Sequence[int]:
        """The next positions from `first` on."""
        if self.positions is None:
            return range(first, min(first + PAGE, recipients))
        return [position for position in self.positions if position >= first][:PAGE]


async def retry_page(
    connection: Connection, work: Retry, so_far: SendRetried, ended_until: datetime | None
) -> SendRetried:
    """One page more, in the caller's transaction. Mails that ended after `ended_until` are left: they went again already.

    Raises Conflict for a send that has not begun or was cancelled, and where another one of its campaign is active.
    """
    send, first = work.send, so_far.next or 0
    if so_far.send_id != send.id:
        raise Conflict("the campaign has a newer send than the one this request began with")
    found = await lock_retried_send(connection, send.id, send.user_id)
    if found is None:
        raise NotFound("the send is gone")
    state, recipients = found
    if state not in RETRIED:
        raise Conflict(f"the send is {state}")
    positions = work.page(first, recipients)
    done = await retry_mails(connection, send.id, send.user_id, list(positions), work.states, work.codes, ended_until)
    if done.mails and state is SendState.DONE:
        state = SendState.RUNNING
        await reopen_progress(connection, send.id, send.user_id, OperationKind.SEND, state)
    if done.mails:
        await wake_release(connection, send.user_id)
    more = len(positions) == PAGE and positions[-1] + 1 < recipients
    return so_far.model_copy(
        update={
            "state": state,
            "retried": so_far.retried + done.mails,
            "suppressed": so_far.suppressed + done.suppressed,
            "next": positions[-1] + 1 if more else None,
        }
    )
