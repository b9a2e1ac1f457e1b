"""The client as a whole."""

import os
from types import TracebackType
from typing import Final, Self

import httpx

from mailgenius.campaigns import Campaigns
from mailgenius.connection import Connection
from mailgenius.dead_letters import DeadLetters
from mailgenius.emails import Emails
from mailgenius.keys import Keys
from mailgenius.leads import Leads
from mailgenius.progress import Progress
from mailgenius.rate_limits import Limits
from mailgenius.retries import Retries
from mailgenius.suppressions import Suppressions
from mailgenius.system import System

UPLOAD_TIMEOUT: Final = 300.0
"""Seconds in which an upload moves on: the API takes no more while too much of the user's is under way."""

RETRIES: Final = Retries()


class MailGenius:
    """Use it as `async with MailGenius(…) as mg:`, or `close` it. One of it serves any number of tasks.

    `url` and `key` are those of MAILGENIUS_URL and MAILGENIUS_KEY where they are not given. `user_id` is whom a service key
    acts for in calls that name nobody. `timeout` in seconds: to connect, and to answer.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        user_id: str | None = None,
        timeout: float = 30.0,
        upload_timeout: float = UPLOAD_TIMEOUT,
        retries: Retries = RETRIES,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=_url(url or os.environ.get("MAILGENIUS_URL", "")),
            headers=_headers(key or os.environ.get("MAILGENIUS_KEY", "")),
            timeout=timeout,
            transport=transport,
        )
        connection = Connection(self._http, user_id, retries, upload_timeout)
        self.leads = Leads(connection)
        self.campaigns = Campaigns(connection)
        self.emails = Emails(connection)
        self.progress = Progress(connection)
        self.suppressions = Suppressions(connection)
        self.rate_limits = Limits(connection)
        self.dead_letters = DeadLetters(connection)
        self.keys = Keys(connection)
        self.system = System(connection)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


def _url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("the API's address is needed, as url or MAILGENIUS_URL: https://…")
    return url


def _headers(key: str) -> dict[str, str]:
    if not key:
        raise ValueError("an API key is needed, as key or MAILGENIUS_KEY: mg_…")
    return {"Authorization": f"Bearer {key}", "User-Agent": "mailgenius-python"}
