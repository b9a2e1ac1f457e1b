"""What a request must have before anything is read of it: a token, where its user is limited."""

import math
import re

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.resources import Resources
from core.errors import TooMany
from core.limits import Grant, Rate, api_limits, import_limits
from schemas.http.base import NO_CONTROLS
from schemas.ids import UserId
from schemas.states import KeyScope, LimitName
from store.keys import Key

_HEADERS = "limit_headers"
_ID = re.compile(rf"(?={NO_CONTROLS}).{{1,200}}", re.DOTALL).fullmatch


async def admit_import(use: Resources, user_id: UserId) -> None:
    """Takes the token of one import. Raises TooMany, and for a limited user Unavailable while Redis is away."""
    limits = import_limits(user_id, await use.book.rate(LimitName.LEADS_IMPORT, user_id))
    if not limits:
        return
    grant = await use.limiter.take(limits, 1)
    if not grant.tokens:
        raise TooMany(LimitName.LEADS_IMPORT, grant.wait)


async def admit_request(request: HTTPConnection, use: Resources, key: Key) -> None:
    """Takes the token of one request, of the user it acts for, else of its key. Raises as `admit_import`.

    A user that is named in the body alone is not known yet: then it is the key's.
    """
    named = request.query_params.get("userId", "")
    # A name that is none is the route's to refuse.
    who = key.user_id if key.scope is KeyScope.USER else _ID(named) and UserId(named)
    subject = who or UserId(str(key.id))
    rate = await use.book.rate(LimitName.API, subject)
    if rate is None:
        return
    grant = await use.limiter.take(api_limits(subject, rate), 1)
    request.scope.setdefault("state", {})[_HEADERS] = limit_headers(LimitName.API, rate, grant)
    if not grant.tokens:
        raise TooMany(LimitName.API, grant.wait)


def limit_headers(name: LimitName, rate: Rate, grant: Grant) -> dict[str, str]:
    """draft-ietf-httpapi-ratelimit-headers: the policy as a quota and its seconds; what is left, and the seconds until all of
    it is there again.
    """
    quota, window = _policy(rate)
    return {
        "RateLimit-Policy": f'"{name}";q={quota};w={window}',
        "RateLimit": f'"{name}";r={grant.remaining};t={math.ceil(grant.full)}',
    }


def _policy(rate: Rate) -> tuple[int, int]:
    """Of the shortest kind there is: a burst, and the seconds it takes to come again."""
    if rate.per_second:
        return rate.burst, max(1, math.ceil(rate.burst / rate.per_second))
    return next(
        (quota, seconds)
        for quota, seconds in ((rate.per_minute, 60), (rate.per_hour, 3_600), (rate.per_day, 86_400))
        if quota
    )


class LimitHeaders:
    """Puts on an answer, whatever it is, the headers of the limit that its request has passed or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                found: dict[str, str] = scope.get("state", {}).get(_HEADERS, {})
                headers = MutableHeaders(scope=message)
                for name, value in found.items():
                    headers.append(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
