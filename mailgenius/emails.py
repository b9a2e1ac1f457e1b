"""Single mails, and what became of each mail."""

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final
from uuid import UUID

from mailgenius.answers import MailAnswer, MailPage, SingleMailsAccepted
from mailgenius.connection import Connection
from mailgenius.orders import Lane, SenderLike, SingleMail, TemplateLike
from mailgenius.pages import each

EMAILS: Final = "/api/queue/emails"


class Emails:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def send(
        self,
        user_id: str,
        emails: Iterable[SingleMail | Mapping[str, Any]],
        *,
        lane: Lane = "bulk",
        template: TemplateLike | None = None,
        sender: SenderLike | None = None,
        idempotency_key: str | None = None,
    ) -> SingleMailsAccepted:
        """Up to 500 mails. `transactional` ones go at once, before all others. `template` and `sender` are of mails without one
        of their own.
        """
        body = {"lane": lane, "template": template, "sender": sender, "emails": [*emails]}
        return await self._connection.write(
            SingleMailsAccepted, "POST", EMAILS, key=idempotency_key, body=body, user_id=user_id
        )

    async def get(self, mail_id: UUID | str, user_id: str | None = None) -> MailAnswer:
        """A single mail, by the id it was given. It is there a moment after it was accepted: NotFound until then."""
        return await self._connection.read(MailAnswer, f"{EMAILS}/{mail_id}", user_id=user_id)

    async def of_send(self, send_id: UUID | str, position: int, user_id: str | None = None) -> MailAnswer:
        """The mail to one recipient of a send."""
        return await self._connection.read(MailAnswer, f"{EMAILS}/{send_id}/{position}", user_id=user_id)

    def find(
        self,
        user_id: str | None = None,
        *,
        email: str | None = None,
        message_id: str | None = None,
        campaign_id: str | None = None,
        send_id: UUID | str | None = None,
        state: str | None = None,
    ) -> AsyncIterator[MailAnswer]:
        """All mails to an address, newest first, each attempt with the relay's reply; or the one with a Message-ID."""

        async def read(after: str | None) -> MailPage:
            return await self._connection.read(
                MailPage,
                EMAILS,
                user_id=user_id,
                email=email,
                message_id=message_id,
                campaign_id=campaign_id,
                send_id=send_id,
                state=state,
                after=after,
                limit=100,
            )

        return each(read, lambda page: page.mails)
