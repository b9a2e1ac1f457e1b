"""`python -m streams dkim`: DKIM keys made, and their DNS records printed, without the API."""

import argparse
from datetime import UTC, datetime
from urllib.parse import urlencode

from uuid_utils.compat import uuid7

from core.dkim import check_selector, new_pair, new_selector, signing_domain
from core.errors import Conflict, Misconfigured, NotFound
from core.settings import Settings
from schemas.ids import SHARED, UserId
from schemas.states import DkimAlgorithm, DkimCanonicalization, DkimState
from store.dkim import DkimRow, NewKey, create_dkim_key, list_dkim_keys
from store.postgres import Database

_STATES = {
    DkimState.PENDING: "pending: signs nothing yet. Publish the record, then activate the key",
    DkimState.ACTIVE: "active: signs mails. Leave the record where it is",
    DkimState.RETIRING: "retiring: signs no more. Leave the record where it is for a week",
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    dkim = commands.add_parser("dkim", help="DKIM keys: print their DNS records, or make one")
    actions = dkim.add_subparsers(dest="action", required=True)
    records = actions.add_parser("records", help="the DNS records of a domain's keys, as zone files have them")
    create = actions.add_parser("create", help="make a key, and print its DNS record; it signs when it is activated")
    for one in (records, create):
        one.add_argument("--domain", required=True)
        one.add_argument("--user", help="whose keys; without it those for everybody")
    create.add_argument("--selector", help="else one is made up")
    create.add_argument("--algorithm", choices=[one.value for one in DkimAlgorithm], default=DkimAlgorithm.RSA.value)
    create.add_argument(
        "--canonicalization",
        choices=[one.value for one in DkimCanonicalization],
        default=DkimCanonicalization.RELAXED.value,
    )


async def run_dkim(chosen: argparse.Namespace, settings: Settings) -> int:
    """Raises InvalidInput, NotFound, Conflict or Misconfigured for what can be told in a line."""
    domain, user = signing_domain(chosen.domain), UserId(chosen.user or SHARED)
    database = Database(settings.postgres)
    await database.open()
    try:
        async with database.connection() as connection:
            if chosen.action == "records":
                rows = await list_dkim_keys(connection, user, domain)
                if not rows:
                    raise NotFound(f"{domain} has no keys {_whose(user)}")
                print("\n\n".join(map(_text, rows)))
                return 0
            row = await create_dkim_key(connection, user, _new(chosen, domain, settings), settings.relays.ring)
            if row is None:
                raise Conflict(f"{domain} has a key of this selector {_whose(user)}, or there are too many keys")
            asked = "shared=true" if user == SHARED else urlencode({"userId": user})
            print(f"{_text(row)}\n\n; then: POST /api/queue/dkim-keys/{row.id}/activate?{asked}")
    finally:
        await database.close()
    return 0


def _new(chosen: argparse.Namespace, domain: str, settings: Settings) -> NewKey:
    if not settings.relays.ring:
        raise Misconfigured("SECRET_KEYS is not set: a private key cannot be stored")
    algorithm = DkimAlgorithm(chosen.algorithm)
    selector = chosen.selector or new_selector(algorithm, datetime.now(UTC).date())
    check_selector(selector, domain)
    return NewKey(uuid7(), domain, selector, DkimCanonicalization(chosen.canonicalization), new_pair(algorithm))


def _whose(user: UserId) -> str:
    return "for everybody" if user == SHARED else f"of {user}"


def _text(row: DkimRow) -> str:
    """As a zone file takes it: what is for people is a comment."""
    return f"; {row.algorithm}, {_STATES[row.state]}\n; key {row.id}\n{row.record.zone}"
