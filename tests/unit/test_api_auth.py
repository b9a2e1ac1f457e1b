"""For whom a key acts."""

from uuid import uuid4

import pytest

from api.auth import user_of
from core.errors import InvalidInput, NotFound
from schemas.ids import UserId
from schemas.states import KeyScope
from store.keys import Key


def _key(scope: KeyScope) -> Key:
    return Key(uuid4(), scope, UserId("ann") if scope is KeyScope.USER else None)


@pytest.mark.parametrize("named", [None, "ann"])
def test_a_user_key_acts_for_its_own_user(named: str | None) -> None:
    assert user_of(_key(KeyScope.USER), named) == "ann"


def test_another_user_does_not_exist_for_a_user_key() -> None:
    with pytest.raises(NotFound):
        user_of(_key(KeyScope.USER), "bob")


@pytest.mark.parametrize("scope", [KeyScope.SERVICE, KeyScope.ADMIN])
def test_other_keys_act_for_whom_they_name(scope: KeyScope) -> None:
    assert user_of(_key(scope), "bob") == "bob"
    with pytest.raises(InvalidInput) as raised:
        user_of(_key(scope), None)
    assert raised.value.field == "userId"
