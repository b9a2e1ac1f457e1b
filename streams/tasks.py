"""Makes single mails rows of the ledger: a batch of records in one transaction, and of each key one row."""

from collections.abc import Awaitable, Callable, Sequence, Set
from typing import TypeAlias

import asyncpg
import structlog

from core.errors import InvalidInput, Unavailable, Unusable
from core.tasks import Judge, NewMail, daily_sends, first_of_each, key_of_id, key_of_place, unusable
from schemas.ids import MailId, SendId
from schemas.messages import EmailTask, decode_email_task
from schemas.states import ErrorKind, FailedStage, Lane
from store.postgres import Connection
from store.sends import wake_release
from store.tasks import DailySend, add_mails, known_mails, open_daily_sends
from streams.batching import Batch
from streams.dead_letters import Bury, Dead, decoded, place_of
from streams.intake import Record
from streams.resources import Resources

TRIES = 5
"""Of a batch that finds a mail written by somebody else since it looked."""

REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
"""A mail's own fault. What else Postgres finds wrong no record can help, and waits."""

Given: TypeAlias = tuple[Record, NewMail]
Then: TypeAlias = Callable[[Connection, Sequence[SendId], Set[MailId]], Awaitable[None]]
"""What else belongs to the transaction that added mails to these sends; and those that were rows before."""

log = structlog.get_logger(__name__)


async def store_mails(batch: Batch, use: Resources, bury: Bury) -> None:
    """Returns when the batch's mails are rows and its unusable records are dead letters.

    Raises Unavailable while Postgres or Kafka is away, or Postgres is not as it should be: then it may be called again at any
    time, with these records in any batches.
    """
    given: list[Given] = []
    dead: list[Dead] = []
    judge = Judge()
    for record in batch.records:
        try:
            given.append((record, clean_mail(judge, record, decoded(decode_email_task, record.value))))
        except Exception as error:  # one record must never be the end of 500
            dead.append((record, error))
    await bury(dead)
    await add(given, Lane.BULK, use, bury)


def clean_mail(judge: Judge, record: Record, task: EmailTask) -> NewMail:
    """Raises Unusable."""
    key = key_of_place(*place_of(record))
    try:
        return judge.clean(task, key if task.id is None else key_of_id(task.id))
    except InvalidInput as error:
        raise unusable(error) from error


async def add(given: Sequence[Given], lane: Lane, use: Resources, bury: Bury, then: Then | None = None) -> None:
    """Returns when the mails are rows, in one transaction with `then`; release is woken. Those that the database refuses are
    buried before it. After the commit nothing more can fail. Raises Unavailable.
    """
    try:
        while given and (refused := await _add(given, lane, use, then)):
            await bury([(record, _refusal(error)) for record, _, error in refused])
            gone = {mail.id for _, mail, _ in refused}
            given = [one for one in given if one[1].id not in gone]
    except asyncpg.PostgresError as error:
        raise Unavailable("postgres", f"{type(error).__name__}: {error}") from error


async def _add(
    given: Sequence[Given], lane: Lane, use: Resources, then: Then | None
) -> list[tuple[Record, NewMail, asyncpg.PostgresError]]:
    """Those that the database refuses; then nothing is stored."""
    mails = [mail for _, mail in given]
    for _ in range(TRIES):
        try:
            async with use.database.transaction() as connection:
                sends, known = await _add_new(connection, mails, lane)
                if then is not None:
                    await then(connection, sends, known)
            return []
        except asyncpg.UniqueViolationError:
            continue  # it is known now
        except REFUSED as error:
            log.warning("mails refused", mails=len(mails), error=str(error))
            return await _find_refused(given, lane, use)
    raise Unavailable("postgres", "others write the same mails again and again")


async def _add_new(connection: Connection, mails: Sequence[NewMail], lane: Lane) -> tuple[list[SendId], set[MailId]]:
    """The sends that got any, and the mails that are rows already."""
    now, known = await known_mails(connection, [mail.id for mail in mails])
    waiting = [(mail, daily_sends(mail, lane, now)) for mail in first_of_each(mails, known)]
    users = sorted({mail.user_id for mail, _ in waiting})
    sends: set[SendId] = set()
    while waiting:
        if not waiting[0][1]:
            raise Unavailable("postgres", "the sends of this day and the next have ended: is its clock right?")
        asked = {days[0]: DailySend(days[0], mail.user_id, mail.on_doubt) for mail, days in waiting}
        running = await open_daily_sends(connection, list(asked.values()), lane)
        sends |= running
        if placed := [(days[0], mail) for mail, days in waiting if days[0] in running]:
            await add_mails(connection, placed)
        waiting = [(mail, days[1:]) for mail, days in waiting if days[0] not in running]
    if users:
        await wake_release(connection, *users)
    return sorted(sends), known


async def _find_refused(
    given: Sequence[Given], lane: Lane, use: Resources
) -> list[tuple[Record, NewMail, asyncpg.PostgresError]]:
    """Tries halves, in a transaction that is rolled back."""
    refused: list[tuple[Record, NewMail, asyncpg.PostgresError]] = []
    async with use.database.connection() as connection:
        trial = connection.transaction()
        await trial.start()
        try:
            parts = [list(given)]
            while parts:
                part = parts.pop()
                try:
                    async with connection.transaction():
                        await _add_new(connection, [mail for _, mail in part], lane)
                except REFUSED as error:
                    if len(part) > 1:
                        middle = len(part) // 2
                        parts += [part[middle:], part[:middle]]
                    else:
                        refused.append((*part[0], error))
        finally:
            await trial.rollback()
    if not refused:
        raise Unavailable("postgres", "it refused a batch of mails, and none of them alone")
    return refused


def _refusal(error: asyncpg.PostgresError) -> Unusable:
    why = Unusable(FailedStage.STORE, "refused", f"the database refused it: {error}", ErrorKind.PERMANENT)
    why.__cause__ = error
    return why
