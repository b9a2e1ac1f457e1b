"""Limits over HTTP: what they say, what they refuse, and who may change them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from api.app import ROUTERS
from api.depends import authenticated
from core.settings import load
from schemas.states import KeyScope
from tests.integration.api_client import LEADS, OWNER, Api, running_api

LIMIT = "/api/queue/rate-limit"
SHARED = f"{LIMIT}/shared"
FOR_OWNER = {"userId": OWNER}


@asynccontextmanager
async def _api(environment: dict[str, str], **limits: str) -> AsyncIterator[Api]:
    async with running_api(load(environment | limits)) as api:
        # As if Redis had been there for long: who has taken nothing is idle.
        await api.resources.redis.set(f"{environment['REDIS_PREFIX']}limit:since", 1)
        yield api


async def test_without_limits_all_is_allowed_and_nothing_is_said(with_kafka: dict[str, str]) -> None:
    async with _api(with_kafka) as api:
        client = await api.client_of(OWNER)
        answer = await client.get(LIMIT)
        assert answer.status_code == 200
        assert [one["limit"] for one in answer.json()["limits"]] == [None, None, None]
        assert "RateLimit" not in answer.headers
        answer = await client.post(LIMIT, json={"name": "email-sending", "tokens": 1000})
        assert (answer.json()["allowed"], answer.json()["limited"]) == (True, False)


async def test_a_check_takes_nothing_unless_it_is_told_to(with_kafka: dict[str, str]) -> None:
    limits = {"LIMIT_EMAIL_SENDING_RATE": "1", "LIMIT_EMAIL_SENDING_BURST": "100", "LIMIT_EMAIL_SENDING_PER_DAY": "500"}
    async with _api(with_kafka, **limits) as api:
        client = await api.client_of(OWNER)
        for _ in range(2):
            answer = await client.post(LIMIT, json={"name": "email-sending", "tokens": 80})
            assert answer.json() == {
                "name": "email-sending",
                "enabled": True,
                "limited": True,
                "allowed": True,
                "granted": 80,
                "remaining": 10,
                "retryAfter": None,
                "factor": 1.0,
            }
        answer = await client.post(LIMIT, json={"name": "email-sending", "tokens": 80, "take": True})
        assert answer.headers["RateLimit-Policy"] == '"email-sending";q=90;w=100'
        assert answer.headers["RateLimit"].startswith('"email-sending";r=10;t=')
        answer = await client.post(LIMIT, json={"name": "email-sending", "tokens": 80})
        assert (answer.json()["allowed"], answer.json()["granted"]) == (False, 10)
        assert int(answer.headers["Retry-After"]) >= 1
        [status] = (await client.get(LIMIT, params={"name": "email-sending"})).json()["limits"]
        assert status["limit"] == {"rate": 1, "burst": 100, "perMinute": 0, "perHour": 0, "perDay": 500}
        assert (status["level"]["second"]["remaining"], status["bulk"]["second"]["remaining"]) == (20, 10)
        assert (status["level"]["day"]["remaining"], status["bulk"]["day"]["remaining"]) == (420, 370)


async def test_a_factor_is_seen_in_a_check(with_kafka: dict[str, str]) -> None:
    async with _api(with_kafka, LIMIT_EMAIL_SENDING_RATE="10") as api:
        sending, prefix = api.resources.settings.sending, with_kafka["REDIS_PREFIX"]
        relay = sending.relay.replace(":", "%3A")
        await api.resources.redis.set(f"{prefix}limit:factor:{OWNER}:{relay}", "0.4")
        client = await api.client_of(OWNER)
        answer = await client.post(LIMIT, json={"name": "email-sending"})
        assert answer.json()["factor"] == 0.4
        [status] = (await client.get(LIMIT, params={"name": "email-sending"})).json()["limits"]
        assert status["factor"] == 0.4


async def test_requests_over_the_limit_are_refused_and_told_when_to_come_again(with_kafka: dict[str, str]) -> None:
    async with _api(with_kafka, LIMIT_API_RATE="0.5", LIMIT_API_BURST="3") as api:
        client, other = await api.client_of(OWNER), await api.client_of(None, KeyScope.SERVICE)
        first = await client.get(LEADS)
        assert first.headers["RateLimit-Policy"] == '"api";q=3;w=6'
        assert first.headers["RateLimit"] == '"api";r=2;t=2'
        assert (await other.get(LEADS, params=FOR_OWNER)).headers["RateLimit"].startswith('"api";r=1;')
        assert (await client.get(f"{LEADS}/nobody@example.com")).headers["RateLimit"].startswith('"api";r=0;')
        refused = await client.get(LEADS)
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] in ("1", "2")
        assert refused.headers["RateLimit"].startswith('"api";r=0;')
        assert (await other.get(LEADS, params={"userId": "somebody else"})).status_code == 200
        assert (await client.get("/healthz")).status_code == 200


async def test_a_name_that_is_none_is_refused_by_the_route_and_no_error(with_kafka: dict[str, str]) -> None:
    async with _api(with_kafka, LIMIT_API_RATE="10") as api:
        service = await api.client_of(None, KeyScope.SERVICE)
        assert (await service.get(LEADS, params={"userId": "a\x00b"})).status_code == 422


def test_every_route_but_health_asks_for_a_key_and_with_it_for_a_token() -> None:
    def asks(dependant: Dependant) -> bool:
        return any(one.call is authenticated or asks(one) for one in dependant.dependencies)

    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    assert len(routes) > 20
    signed = {"/u/{token}", "/u/{token}/undo", "/api/webhooks/feedback/{source}"}  # by what is in the request
    assert {route.path for route in routes if not asks(route.dependant)} == {"/healthz", "/readyz"} | signed


async def test_redis_away_refuses_limited_requests_and_no_others(environment: dict[str, str]) -> None:
    away = environment | {"REDIS_PORT": "1"}
    async with running_api(load(away | {"LIMIT_API_RATE": "10"})) as api:
        answer = await (await api.client_of(OWNER)).get(LEADS)
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
    async with running_api(load(away | {"LIMIT_EMAIL_SENDING_RATE": "10"})) as api:
        client = await api.client_of(OWNER)
        assert (await client.get(LEADS)).status_code == 200
        assert (await client.post(LIMIT, json={"name": "email-sending"})).status_code == 503
        assert (await client.post(LIMIT, json={"name": "leads-import"})).status_code == 200


async def test_an_own_limit_goes_over_the_default_member_by_member(with_kafka: dict[str, str]) -> None:
    async with _api(with_kafka, LIMIT_LEADS_IMPORT_RATE="5") as api:
        service = await api.client_of(None, KeyScope.SERVICE)
        answer = await service.put(LIMIT, params=FOR_OWNER, json={"name": "leads-import", "burst": 2, "perHour": 7})
        assert answer.status_code == 200, answer.text
        assert answer.json()["limit"] == {"rate": 5, "burst": 2, "perMinute": 0, "perHour": 7, "perDay": 0}
        assert answer.json()["overridden"]
        answer = await service.put(LIMIT, params=FOR_OWNER, json={"name": "leads-import", "rate": 0})
        assert answer.json()["limit"] is None
        answer = await service.put(LIMIT, params=FOR_OWNER, json={"name": "leads-import"})
        assert (answer.json()["limit"]["burst"], answer.json()["overridden"]) == (10, False)


async def test_a_limit_of_the_day_counts_what_the_day_has_had(with_kafka: dict[str, str]) -> None:
    async with _api(with_kafka) as api:
        service = await api.client_of(None, KeyScope.SERVICE)
        async with api.resources.database.connection() as connection:
            await connection.execute("INSERT INTO lead_imports (user_id) SELECT $1 FROM generate_series(1, 3)", OWNER)
        answer = await service.put(LIMIT, params=FOR_OWNER, json={"name": "leads-import", "perDay": 5})
        assert answer.json()["remaining"] == 2


async def test_a_reset_gives_all_tokens_again(with_kafka: dict[str, str]) -> None:
    async with _api(with_kafka, LIMIT_EMAIL_SENDING_RATE="1", LIMIT_EMAIL_SENDING_PER_HOUR="90") as api:
        service = await api.client_of(None, KeyScope.SERVICE)
        body = {"name": "email-sending", "tokens": 80, "take": True}
        assert (await service.post(LIMIT, params=FOR_OWNER, json=body)).json()["allowed"]
        assert not (await service.post(LIMIT, params=FOR_OWNER, json=body)).json()["allowed"]
        assert (await service.delete(LIMIT, params=FOR_OWNER)).status_code == 200
        assert (await service.post(LIMIT, params=FOR_OWNER, json=body)).json()["allowed"]


async def test_a_user_key_changes_no_limit(with_kafka: dict[str, str]) -> None:
    async with _api(with_kafka) as api:
        client = await api.client_of(OWNER)
        assert (await client.delete(LIMIT)).status_code == 403
        assert (await client.put(LIMIT, json={"name": "api", "rate": 1})).status_code == 403
        for scope in (KeyScope.USER, KeyScope.SERVICE):
            one = await api.client_of(OWNER if scope is KeyScope.USER else None, scope)
            assert (await one.get(SHARED)).status_code == 403
            assert (await one.put(SHARED, json={"kind": "relay", "target": "*"})).status_code == 403


@pytest.mark.parametrize("wrong", [{"rate": -1}, {"burst": 0}, {"perDay": 1.5}, {"perHour": 10**10}, {"speed": 1}])
async def test_a_limit_that_is_none_is_refused(with_kafka: dict[str, str], wrong: dict[str, float]) -> None:
    async with _api(with_kafka) as api:
        service = await api.client_of(None, KeyScope.SERVICE)
        answer = await service.put(LIMIT, params=FOR_OWNER, json={"name": "email-sending", **wrong})
        assert answer.status_code == 422
        assert answer.json()["error"]["field"] == next(iter(wrong))


async def test_shared_limits_are_set_shown_and_removed(with_kafka: dict[str, str]) -> None:
    async with _api(with_kafka) as api:
        admin = await api.client_of(None, KeyScope.ADMIN)
        relay = api.resources.settings.sending.relay
        body = {"kind": "recipient-domain", "target": "Example.COM", "rate": 5, "burst": 5, "perHour": 100}
        assert (await admin.put(SHARED, json=body)).json()["target"] == "example.com"
        assert (await admin.put(SHARED, json={"kind": "relay", "target": "*", "rate": 50})).status_code == 200
        listed = (await admin.get(SHARED)).json()["limits"]
        assert {(one["kind"], one["target"]) for one in listed} == {("recipient-domain", "example.com"), ("relay", "*")}
        [status] = (await admin.get(LIMIT, params=FOR_OWNER)).json()["shared"]
        assert (status["target"], status["level"]["second"]["remaining"]) == (relay, 1)
        gone = {"kind": "recipient-domain", "target": "example.com"}
        assert (await admin.delete(SHARED, params=gone)).status_code == 204
        assert (await admin.delete(SHARED, params=gone)).status_code == 404


async def test_switched_off_it_says_so_and_allows_all(with_kafka: dict[str, str]) -> None:
    off = {"RATE_LIMIT_ENABLED": "false", "LIMIT_API_RATE": "0.1", "LIMIT_API_BURST": "1"}
    async with _api(with_kafka, **off) as api:
        client = await api.client_of(OWNER)
        answers = await asyncio.gather(*(client.get(LIMIT) for _ in range(5)))
        assert {answer.status_code for answer in answers} == {200}
        assert not answers[0].json()["enabled"]
        checked: httpx.Response = await client.post(LIMIT, json={"name": "api", "tokens": 10})
        assert (checked.json()["enabled"], checked.json()["allowed"]) == (False, True)
