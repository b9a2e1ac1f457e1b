"""What a relay must be like before it becomes a row, and how its row is answered."""

import ssl
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from pydantic import SecretStr

from core.errors import InvalidInput
from core.hosts import may_be_public
from core.relays import DEFAULT
from core.secrets import KeyRing
from core.settings import RelaysSettings, SendSettings
from schemas.http.relays import RelayAnswer, RelayHealthAnswer, RelayOrder, RelayPatch
from schemas.ids import SHARED, UserId
from schemas.states import RelayTls
from store.relay_health import RelayHealth
from store.relays import RelayFields, RelayRow, secret_place

_NULLABLE: Final = {"ca", "username"}
_WHERE: Final = ("host", "port", "tls", "verify", "ca", "username")
"""What decides who gets the password."""


def new_fields(order: RelayOrder, user: UserId, relay_id: UUID, settings: RelaysSettings) -> RelayFields:
    """Raises InvalidInput."""
    values = order.model_dump(exclude={"name", "password"})
    fields = RelayFields(**values, password=_encrypted(order.password, relay_id, settings.ring))
    _check(fields, user, settings)
    return fields


def changed_fields(row: RelayRow, patch: RelayPatch, settings: RelaysSettings) -> RelayFields:
    """Raises InvalidInput."""
    given = patch.model_dump(include=patch.model_fields_set, exclude={"password"})
    empty = sorted(name for name, value in given.items() if value is None and name not in _NULLABLE)
    if empty:
        raise InvalidInput(_outside(empty[0]), "it cannot be null")
    before = row.fields
    fields = replace(before, **given)
    if patch.password is not None:
        fields = replace(fields, password=_encrypted(patch.password, row.id, settings.ring))
    elif fields.username is None:
        fields = replace(fields, password=None)
    elif before.password is not None and any(getattr(fields, name) != getattr(before, name) for name in _WHERE):
        # Else whoever may change a relay could have its password sent to a host of his own.
        raise InvalidInput("password", "give it again: where mails go, and how, has changed", "missing")
    _check(fields, row.user_id, settings)
    return fields


def _encrypted(password: SecretStr | None, relay_id: UUID, ring: KeyRing) -> str | None:
    if password is None:
        return None
    if "\0" in password.get_secret_value():
        raise InvalidInput("password", "it holds the character U+0000")
    if not ring:
        raise InvalidInput("password", "no password can be stored here: SECRET_KEYS is not set", "no_key")
    return ring.encrypt(password.get_secret_value(), secret_place(relay_id))


def _check(fields: RelayFields, user: UserId, settings: RelaysSettings) -> None:
    if user != SHARED and not settings.relay_private_addresses and not may_be_public(fields.host):
        raise InvalidInput("host", "it is not at a public address", "private")
    if (fields.username is None) != (fields.password is None):
        missing = "username" if fields.username is None else "password"
        raise InvalidInput(missing, "username and password come together", "missing")
    if fields.password is not None and fields.tls == RelayTls.NONE:
        raise InvalidInput("tls", "a password goes over TLS alone: starttls or implicit")
    if fields.ca is not None:
        _check_ca(fields.ca)


def _check_ca(text: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        raise InvalidInput("ca", "it is no certificate in PEM") from None


def _outside(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def answer_of(row: RelayRow, health: Sequence[RelayHealth] | None) -> RelayAnswer:
    fields = row.fields
    return _answer(
        {
            "host": fields.host,
            "port": fields.port,
            "tls": fields.tls,
            "verify": fields.verify,
            "ca": fields.ca,
            "username": fields.username,
            "has_password": fields.password is not None,
            "weight": fields.weight,
            "connections": fields.connections,
            "mails_per_connection": fields.mails_per_connection,
            "max_age": fields.max_age,
            "enabled": fields.enabled,
        },
        name=row.name,
        shared=row.user_id == SHARED,
        of_settings=False,
        created_at=row.created_at,
        updated_at=row.updated_at,
        health=health,
    )


def answer_of_settings(sending: SendSettings, health: Sequence[RelayHealth] | None) -> RelayAnswer:
    return _answer(
        {
            "host": sending.smtp_host,
            "port": sending.smtp_port,
            "tls": sending.smtp_tls,
            "verify": sending.smtp_verify,
            "ca": None,
            "username": sending.smtp_username,
            "has_password": sending.smtp_password is not None,
            "weight": 1,
            "connections": sending.smtp_connections,
            "mails_per_connection": 1_000,
            "max_age": 300,
            "enabled": True,
        },
        name=DEFAULT,
        shared=True,
        of_settings=True,
        created_at=None,
        updated_at=None,
        health=health,
    )


def _answer(values: dict[str, Any], *, health: Sequence[RelayHealth] | None, **more: Any) -> RelayAnswer:
    told = None if health is None else [_health(one) for one in sorted(health, key=lambda one: one.worker)]
    return RelayAnswer.model_validate({**values, **more, "health": told})


def _health(one: RelayHealth) -> RelayHealthAnswer:
    return RelayHealthAnswer.model_validate(
        {
            "worker": one.worker,
            "state": one.state,
            "since": datetime.fromtimestamp(one.since, UTC),
            "last_error": one.last_error or None,
            "connections_in_use": one.in_use,
            "at": datetime.fromtimestamp(one.at, UTC),
        }
    )
