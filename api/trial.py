"""A dry run: reads and judges an upload to its end, and stores nothing."""

import asyncio
from uuid import UUID

from api.rows import Incoming
from core.chunks import ChunkCutter, Cut
from core.cleaning import clean_chunk
from core.errors import TooLarge
from core.trial import Trial
from schemas.http.imports import ImportTrial, RejectedLead
from schemas.ids import UserId
from schemas.messages import LeadChunk

ROWS_MAX = 10_000_000
"""80 MB of hashes."""
ROWS_AT_ONCE = 250
"""Judged without a pause: 3 ms in which the loop does nothing else."""
NOWHERE = UUID(int=0)


async def try_rows(incoming: Incoming, user_id: UserId) -> ImportTrial:
    """Raises InvalidInput for what is wrong with the upload as a whole, TooLarge for more than ROWS_MAX rows."""
    trial, cutter = Trial(), ChunkCutter(ROWS_AT_ONCE)
    async for rows in incoming.rows:
        for cut in cutter.add(rows):
            trial.add(clean_chunk(_chunk(cut, incoming, user_id)))
            await asyncio.sleep(0)
        if trial.rows > ROWS_MAX:
            raise TooLarge(f"a dry run takes {ROWS_MAX} rows at most; try a part of them")
    for cut in cutter.finish():
        trial.add(clean_chunk(_chunk(cut, incoming, user_id)))
    stored = await asyncio.to_thread(trial.stored)
    return ImportTrial(
        rows=trial.rows,
        stored=stored,
        duplicate=trial.rows - trial.rejected - stored,
        rejected=trial.rejected,
        first_rejected=[
            RejectedLead(
                row=one.row, line=one.line, field=one.field, code=one.code, reason=one.reason, content=one.content
            )
            for one in trial.first_rejected
        ],
    )


def _chunk(cut: Cut, incoming: Incoming, user_id: UserId) -> LeadChunk:
    return LeadChunk(
        import_id=NOWHERE,
        user_id=user_id,
        number=cut.number,
        first_row=cut.first_row,
        origin_seq=0,
        columns=incoming.reader.columns,
        lines=cut.lines,
        rows=cut.rows,
    )
