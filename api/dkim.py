"""How a DKIM key is made of what was asked for, and how its row is answered."""

from datetime import date, timedelta

from uuid_utils.compat import uuid7

from core.dkim import KEEP_RECORD_DAYS, KeyPair, check_selector, new_pair, new_selector, read_pem, signing_domain
from core.errors import InvalidInput
from core.secrets import CannotDecrypt, KeyRing
from schemas.http.dkim import DkimKeyAnswer, DkimKeyOrder, DkimRecord
from schemas.ids import SHARED
from schemas.states import DkimAlgorithm, DkimState
from store.dkim import DkimRow, NewKey, private_of


def new_key(order: DkimKeyOrder, ring: KeyRing, today: date) -> NewKey:
    """Takes a tenth of a second and more. Raises InvalidInput."""
    if not ring:
        raise InvalidInput("", "no private key can be stored here: SECRET_KEYS is not set", "no_key")
    domain = signing_domain(order.domain)
    if order.selector is not None:
        check_selector(order.selector, domain)
    pair = _pair(order)
    selector = order.selector or new_selector(pair.algorithm, today)
    check_selector(selector, domain)
    return NewKey(uuid7(), domain, selector, order.canonicalization, pair)


def _pair(order: DkimKeyOrder) -> KeyPair:
    if order.private_key is None:
        return new_pair(order.algorithm or DkimAlgorithm.RSA)
    pair = read_pem(order.private_key.get_secret_value())
    if order.algorithm not in (None, pair.algorithm):
        raise InvalidInput("algorithm", f"the private key is one of {pair.algorithm}")
    return pair


def answer_of(row: DkimRow, ring: KeyRing) -> DkimKeyAnswer:
    removable = None
    if row.state is DkimState.RETIRING and row.retired_at is not None:
        removable = row.retired_at + timedelta(days=KEEP_RECORD_DAYS)
    record = row.record
    return DkimKeyAnswer(
        id=row.id,
        domain=row.domain,
        selector=row.selector,
        algorithm=row.algorithm,
        canonicalization=row.canonicalization,
        state=row.state,
        shared=row.user_id == SHARED,
        usable=_is_usable(row, ring),
        record=DkimRecord(name=record.name, value=record.value, strings=record.strings, zone=record.zone),
        created_at=row.created_at,
        activated_at=row.activated_at,
        retired_at=row.retired_at,
        removable_at=removable,
    )


def _is_usable(row: DkimRow, ring: KeyRing) -> bool:
    try:
        private_of(row, ring)
    except CannotDecrypt:
        return False
    return True
