"""The application: routes, errors, and the resources it opens while it lives."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from api import errors
from api.document import Api
from api.limits import LimitHeaders
from api.resources import open_resources
from api.routes import (
    attachments,
    dead_letters,
    dkim,
    emails,
    feedback,
    health,
    imports,
    keys,
    leads,
    mails,
    previews,
    progress,
    progress_live,
    rate_limit,
    recipients,
    relays,
    sends,
    suppressions,
    unsubscribes,
    webhooks,
    workers,
)
from core.settings import Settings

ROUTERS = (
    imports.router,
    leads.router,
    sends.router,
    attachments.router,
    recipients.router,
    progress.router,
    progress_live.router,
    emails.router,
    mails.router,
    previews.router,
    suppressions.router,
    rate_limit.router,
    relays.router,
    dkim.router,
    dead_letters.router,
    feedback.router,
    feedback.webhooks,
    unsubscribes.router,
    webhooks.router,
    keys.router,
    workers.router,
    health.router,
)


def create_app(settings: Settings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_resources(settings) as resources:
            app.state.resources = resources
            yield

    app = Api(title="MailGenius queue", lifespan=lifespan, responses=errors.ERROR_ANSWERS)
    errors.install(app)
    app.add_middleware(LimitHeaders)
    for router in ROUTERS:
        app.include_router(router)
    return app
