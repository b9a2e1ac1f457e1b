"""One dead letter, with what the record holds: for whose it is, or for admin keys where it does not say."""

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest

from core.settings import Settings
from schemas.ids import SHARED, UserId
from schemas.states import KeyScope
from store.dead_letters import DeadLetter, add_dead_letter
from tests.integration.api_client import OWNER, STRANGER, Api, running_api

LETTERS = "/api/queue/dead-letters"


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with running_api(settings) as api:
        yield api


async def letter(api: Api, user: UserId, value: bytes) -> UUID:
    one = DeadLetter("leads.upstream", 1, 7, b"key", value, {}, "decode", "poison", "no_json", "it is none", 0, user)
    async with api.resources.database.connection() as connection:
        assert await add_dead_letter(connection, one)
        found: UUID = await connection.fetchval("SELECT id FROM dead_letters WHERE user_id = $1", user)
    return found


async def test_it_is_shown_to_its_user_with_the_bytes(api: Api) -> None:
    one = await letter(api, OWNER, b'{"email": \xff')
    found = (await (await api.client_of(OWNER)).get(f"{LETTERS}/{one}")).json()
    assert (found["key"], found["content"]) == ("key", '{"email": \N{REPLACEMENT CHARACTER}')
    assert (found["topic"], found["offset"], found["code"]) == ("leads.upstream", 7, "no_json")
    [listed] = (await (await api.client_of(OWNER)).get(LETTERS)).json()["deadLetters"]
    assert found == listed | {"key": found["key"], "content": found["content"]}
    for wrong in (one, uuid4()):
        answer = await (await api.client_of(STRANGER)).get(f"{LETTERS}/{wrong}")
        assert (answer.status_code, answer.json()["error"]["message"]) == (404, "there is no such dead letter")


async def test_what_does_not_say_whose_it_is_is_for_admins(api: Api) -> None:
    one = await letter(api, SHARED, b"x")
    admin = await api.client_of(None, KeyScope.ADMIN)
    assert (await admin.get(f"{LETTERS}/{one}", params={"shared": True})).json()["content"] == "x"
    assert (await admin.get(f"{LETTERS}/{one}", params={"userId": OWNER})).status_code == 404
    service = await api.client_of(None, KeyScope.SERVICE)
    assert (await service.get(f"{LETTERS}/{one}", params={"shared": True})).status_code == 403
