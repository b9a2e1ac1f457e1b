"""One address erased everywhere it is known for one user: first it is suppressed, then it goes from table after table.

Each step is a short transaction of its own, so that nobody waits for long; whoever breaks off asks again, and the rest goes.
"""

import unicodedata
from typing import Final
from uuid import UUID

from api.resources import Resources
from core.addresses import Refused, judge, judge_by_library
from core.erasure import Sought, in_bytes, in_text, user_pattern
from core.errors import InvalidInput
from schemas.http.leads import Erased, ErasedRows
from schemas.ids import ImportId, UserId
from store.erasures import (
    erase_answers,
    erase_checkpoints,
    erase_dead_letters,
    erase_failed_mails,
    erase_lead,
    erase_mails,
    erase_rejects,
    finish_erasure,
    imports_under_way,
    imports_with_rejects,
    start_erasure,
    suppress_erased,
    wait_for_intake,
)
from store.feedback import erase_feedback

MAILS_AT_ONCE: Final = 100
REJECTS_AT_ONCE: Final = 5_000
IMPORTS_AT_ONCE: Final = 500
DEAD_LETTERS_AT_ONCE: Final = 100
"""Most have a kilobyte, a chunk of an import half a megabyte."""

KEPT: Final = (
    "Kafka: records of imports (14 days), of upstream and of dead letters keep the address until their retention is over.",
    "Backups of the database, until they are replaced.",
    "Months of mails that were detached from the table: erase again once they are attached.",
    "Mails whose address was none, and other people's names, attributes and variables that mention it.",
)


async def erase_address(use: Resources, user_id: UserId, email: str, requested_by: UUID) -> Erased:
    """Raises InvalidInput for what is no address."""
    address = judge(email)
    if isinstance(address, Refused):
        raise InvalidInput("email", address.reason, address.code)
    key = address.email_key
    async with use.database.transaction() as connection:
        erasure = await start_erasure(connection, user_id, key, requested_by)
        suppressions = await suppress_erased(connection, user_id, key, erasure.address)
        written = await erase_lead(connection, user_id, key)
    async with use.database.transaction() as connection:
        await wait_for_intake(connection, user_id)
    forms = _forms(key, address.email, written)
    mails, in_hand = await _mails(use, user_id, key, erasure.address)
    async with use.database.connection() as connection:
        checkpoints = await erase_checkpoints(connection, user_id, key)
        feedback = await erase_feedback(connection, user_id, key)
        await erase_answers(connection, user_id, in_text(forms))
        failed = await erase_failed_mails(connection, user_id, erasure.address)
    rejected = await _rejects(use, user_id, in_text(forms))
    dead_letters = failed + await _dead_letters(use, user_id, in_bytes(forms))
    rows = ErasedRows(
        leads=int(written is not None),
        mails=mails,
        rejected_rows=rejected,
        dead_letters=dead_letters,
        suppressions=suppressions,
        checkpoints=checkpoints,
        feedback_events=feedback,
    )
    async with use.database.connection() as connection:
        under_way = await imports_under_way(connection, user_id)
        await finish_erasure(connection, erasure, user_id, list(rows.model_dump().items()))
    return Erased(
        erasure_id=erasure.id, erased=rows, mails_in_hand=in_hand, imports_under_way=under_way, kept=list(KEPT)
    )


def _forms(*written: str | None) -> set[str]:
    """How the address may be written: as given, as stored, its domain in both alphabets, accents apart."""
    forms = {form for form in written if form}
    for form in tuple(forms):
        valid = judge_by_library(form)
        forms |= {valid.normalized, f"{valid.local_part}@{valid.ascii_domain}"}
    return forms | {unicodedata.normalize("NFD", form) for form in forms}


async def _mails(use: Resources, user_id: UserId, key: str, address: str) -> tuple[int, int]:
    mails = in_hand = 0
    while True:
        async with use.database.transaction() as connection:
            some, held = await erase_mails(connection, user_id, key, address, MAILS_AT_ONCE)
        mails, in_hand = mails + some, in_hand + held
        if some < MAILS_AT_ONCE:
            return mails, in_hand


async def _rejects(use: Resources, user_id: UserId, sought: Sought) -> int:
    erased, after = 0, None
    while True:
        async with use.database.connection() as connection:
            imports = await imports_with_rejects(connection, user_id, after, IMPORTS_AT_ONCE)
        for import_id in imports:
            erased += await _rejects_of(use, user_id, import_id, sought)
        if len(imports) < IMPORTS_AT_ONCE:
            return erased
        after = imports[-1]


async def _rejects_of(use: Resources, user_id: UserId, import_id: ImportId, sought: Sought) -> int:
    erased = 0
    last: int | None = 0
    while last is not None:
        async with use.database.transaction() as connection:
            last, some = await erase_rejects(connection, import_id, user_id, last, sought, REJECTS_AT_ONCE)
        erased += some
    return erased


async def _dead_letters(use: Resources, user_id: UserId, sought: Sought) -> int:
    erased, last, more = 0, None, True
    while more:
        async with use.database.transaction() as connection:
            last, some = await erase_dead_letters(
                connection, user_id, last, sought, user_pattern(user_id), DEAD_LETTERS_AT_ONCE
            )
        erased, more = erased + some, last is not None
    return erased
