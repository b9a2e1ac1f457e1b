"""Campaign sends: started, watched, paused, resumed, cancelled, and sent again where they failed."""

from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from mailgenius.answers import (
    RecipientAnswer,
    RecipientPage,
    SendAccepted,
    SendChanged,
    SendDetail,
    SendPage,
    SendRetried,
    SendSummary,
)
from mailgenius.connection import Connection
from mailgenius.downloads import Target, save
from mailgenius.orders import OnDoubt, Selection, SenderLike, TemplateLike
from mailgenius.pages import each
from mailgenius.uploads import File, Rows, order_and_rows

SEND: Final = "/api/queue/campaigns/send"


class Campaigns:
    """A send is named by its campaign, whose newest it is then, or by its own id."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def send_campaign_emails(
        self,
        campaign_id: str,
        recipients: Rows | File | Selection,
        template: TemplateLike,
        sender: SenderLike,
        user_id: str | None,
        *,
        priority: Literal[1, 2, 3] = 2,
        on_doubt: OnDoubt = "resend",
        start_at: datetime | None = None,
        relay: str | None = None,
        content_type: str | None = None,
        idempotency_key: str | None = None,
    ) -> SendAccepted:
        """Returns when all recipients are in the ledger; nothing goes before that.

        `recipients`: dicts with `id`, `email`, `name` and the template's variables, from a list, a generator or an async
        generator, of any length; a file, as path or open in binary mode: CSV, NDJSON, gzip or not; or a Selection of stored
        leads. Nothing goes before `start_at`, which has a time zone.

        A request that breaks off is sent again and completed. What an error left undone, the same call with the error's
        `idempotency_key` completes, within a week.
        """
        order: dict[str, Any] = {
            "campaignId": campaign_id,
            "template": template,
            "sender": sender,
            "priority": priority,
            "onDoubt": on_doubt,
            "startAt": start_at,
            "relay": relay,
        }
        if isinstance(recipients, Selection):
            accepted = await self._connection.write(
                SendAccepted,
                "POST",
                SEND,
                key=idempotency_key,
                body={**order, "selection": recipients},
                user_id=user_id,
            )
        else:
            upload = order_and_rows(order, recipients, content_type)
            accepted = await self._connection.upload(SendAccepted, SEND, upload, key=idempotency_key, user_id=user_id)
        return msgspec.structs.replace(accepted, user_id=user_id)

    async def get(
        self, campaign_id: str | None = None, user_id: str | None = None, *, send_id: UUID | str | None = None
    ) -> SendDetail:
        return await self._connection.read(SendDetail, SEND, campaign_id=campaign_id, send_id=send_id, user_id=user_id)

    def sends(
        self, user_id: str | None = None, *, campaign_id: str | None = None, state: str | None = None
    ) -> AsyncIterator[SendSummary]:
        """Newest first."""

        async def read(after: UUID | None) -> SendPage:
            return await self._connection.read(
                SendPage, f"{SEND}s", user_id=user_id, campaign_id=campaign_id, state=state, after=after, limit=100
            )

        return each(read, lambda page: page.sends)

    def recipients(
        self,
        campaign_id: str | None = None,
        user_id: str | None = None,
        *,
        send_id: UUID | str | None = None,
        state: str | None = None,
        email: str | None = None,
        code: int | None = None,
    ) -> AsyncIterator[RecipientAnswer]:
        """Each with how it ended, by position; page after page while they are read."""

        async def read(after: int | None) -> RecipientPage:
            return await self._connection.read(
                RecipientPage,
                f"{SEND}/recipients",
                campaign_id=campaign_id,
                user_id=user_id,
                send_id=send_id,
                state=state,
                email=email,
                code=code,
                after=after,
                limit=500,
            )

        return each(read, lambda page: page.recipients)

    async def save_recipients(
        self,
        to: Target,
        campaign_id: str | None = None,
        user_id: str | None = None,
        *,
        send_id: UUID | str | None = None,
        state: str | None = None,
    ) -> int:
        """The same as CSV, to a path or a file open in binary mode; the number of bytes."""
        return await save(
            self._connection,
            f"{SEND}/recipients.csv",
            to,
            campaign_id=campaign_id,
            user_id=user_id,
            send_id=send_id,
            state=state,
        )

    async def pause(
        self, campaign_id: str, user_id: str | None = None, *, idempotency_key: str | None = None
    ) -> SendChanged:
        """Nothing more is released; what is on the wire is finished."""
        return await self._change("POST", f"{SEND}/pause", campaign_id, user_id, idempotency_key)

    async def resume(
        self, campaign_id: str, user_id: str | None = None, *, idempotency_key: str | None = None
    ) -> SendChanged:
        return await self._change("POST", f"{SEND}/resume", campaign_id, user_id, idempotency_key)

    async def cancel(
        self, campaign_id: str, user_id: str | None = None, *, idempotency_key: str | None = None
    ) -> SendChanged:
        """What is sent is sent; everything else ends as cancelled."""
        return await self._change("DELETE", SEND, campaign_id, user_id, idempotency_key)

    async def retry(
        self,
        campaign_id: str | None = None,
        user_id: str | None = None,
        *,
        send_id: UUID | str | None = None,
        states: Iterable[Literal["failed", "bounced", "unknown"]] = ("failed",),
        codes: Iterable[int] | None = None,
        emails: Iterable[str] | None = None,
        after: int | None = None,
        idempotency_key: str | None = None,
    ) -> SendRetried:
        """Mails that ended so go again. One in doubt (`unknown`) may have arrived: then it arrives twice."""
        body: dict[str, Any] = {"states": [*states], "after": after}
        if codes is not None:
            body["codes"] = [*codes]
        if emails is not None:
            body["emails"] = [*emails]
        return await self._connection.write(
            SendRetried,
            "POST",
            f"{SEND}/retry",
            key=idempotency_key,
            body=body,
            campaign_id=campaign_id,
            send_id=send_id,
            user_id=user_id,
        )

    async def _change(
        self, method: str, path: str, campaign_id: str, user_id: str | None, key: str | None
    ) -> SendChanged:
        return await self._connection.write(
            SendChanged, method, path, key=key, campaign_id=campaign_id, user_id=user_id
        )
