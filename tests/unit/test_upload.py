import gzip
import uuid
import zlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.chunks import ChunkCutter, Cut, content_hash
from core.csv_rows import CsvRows
from core.errors import InvalidInput
from core.upload import GUNZIP_OUT_BYTES, Gunzip, NumberedRow
from schemas.messages import LeadChunk, Row, decode_lead_chunk, encode
from schemas.topics import CHUNK_MAX_BYTES

rows = st.one_of(
    st.lists(st.text(max_size=20), max_size=5),
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=20), st.integers(), st.floats(allow_nan=False))),
)


def cut_in_parts(numbered: list[NumberedRow], parts: int, max_rows: int, max_bytes: int) -> list[Cut]:
    cutter = ChunkCutter(max_rows, max_bytes)
    cuts = [cut for at in range(0, len(numbered), parts) for cut in cutter.add(numbered[at : at + parts])]
    cuts += cutter.finish()
    assert cutter.rows == len(numbered)
    assert cutter.chunks == len(cuts)
    return cuts


def test_chunks_are_full_but_the_last() -> None:
    cuts = cut_in_parts([(number * 2, [str(number)]) for number in range(1, 2501)], 7, 1000, CHUNK_MAX_BYTES)
    assert [(cut.number, cut.first_row, len(cut.rows)) for cut in cuts] == [
        (0, 1, 1000),
        (1, 1001, 1000),
        (2, 2001, 500),
    ]
    assert cuts[1].lines[0] == 2002
    assert cuts[1].rows[0] == ["1001"]


def test_no_rows_make_no_chunk() -> None:
    assert cut_in_parts([], 1, 10, 1024) == []


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1), rows), max_size=40), st.integers(1, 50), st.integers(1, 8), st.integers(40, 200)
)
def test_chunks_stay_within_both_bounds_and_miss_no_row(
    numbered: list[NumberedRow], parts: int, max_rows: int, max_bytes: int
) -> None:
    cuts = cut_in_parts(numbered, parts, max_rows, max_bytes)
    assert cuts == cut_in_parts(numbered, 1, max_rows, max_bytes)
    assert [line for cut in cuts for line in cut.lines] == [line for line, _ in numbered]
    assert [cut.number for cut in cuts] == list(range(len(cuts)))
    first_row = 1
    for cut in cuts:
        assert 1 <= len(cut.rows) <= max_rows
        assert len(msgspec.json.encode(cut.rows)) <= max_bytes
        assert cut.first_row == first_row
        first_row += len(cut.rows)


def test_chunks_are_as_full_as_their_bytes_allow() -> None:
    row = ["x" * 96]  # 100 bytes of JSON
    assert [len(cut.rows) for cut in cut_in_parts([(1, row)] * 21, 5, 1000, 1 + 10 * 101)] == [10, 10, 1]
    assert [len(cut.rows) for cut in cut_in_parts([(1, row)] * 21, 5, 1000, 10 * 101)] == [9, 9, 3]


@pytest.mark.parametrize("row", [["x" * 600_000, "\0"], {"a": "\x01" * 100_000}, ["\x01"] * 99_999])
def test_a_row_too_large_for_a_chunk_becomes_the_beginning_of_its_text(row: Row) -> None:
    for max_bytes in (CHUNK_MAX_BYTES, 1024):
        (cut,) = cut_in_parts([(1, row)], 1, 1000, max_bytes)
        assert isinstance(cut.rows[0], str)
        assert 0 < len(cut.rows[0]) <= 1000
        assert len(msgspec.json.encode(cut.rows)) <= max_bytes


def test_the_same_upload_gives_the_same_chunks_however_it_is_cut() -> None:
    data = b"email,n\n" + b"".join(b'%d@b.de,"%s"\r\n' % (n, b"x\n" * (n % 90)) for n in range(3000))

    def hashes(step: int) -> list[bytes]:
        reader, cutter = CsvRows(), ChunkCutter(500, 20_000)
        cuts = []
        for at in range(0, len(data), step):
            cuts += cutter.add(reader.feed(data[at : at + step]))
        cuts += cutter.add(reader.finish()) + cutter.finish()
        return [content_hash(reader.columns, cut.lines, cut.rows) for cut in cuts]

    assert hashes(1000) == hashes(65_536) == hashes(len(data)) == hashes(77)
    assert len(set(hashes(1000))) > 6


@settings(max_examples=200, deadline=None)
@given(st.lists(rows, min_size=1, max_size=10))
def test_the_hash_is_the_same_after_the_journey(some: list[Row]) -> None:
    lines = list(range(len(some)))
    chunk = LeadChunk(
        import_id=uuid.UUID(int=1),
        user_id="u",
        number=0,
        first_row=1,
        origin_seq=1,
        columns=["email"],
        lines=lines,
        rows=some,
    )
    there = decode_lead_chunk(encode(chunk))
    assert content_hash(there.columns, there.lines, there.rows) == content_hash(["email"], lines, some)
    assert len(content_hash([], [], some)) == 16


def test_the_hash_tells_columns_lines_and_rows_apart() -> None:
    assert len({content_hash(*parts) for parts in [(["a"], [1], ["b"]), (["b"], [1], ["a"]), (["a"], [2], ["b"])]}) == 3


def unpacked(data: bytes, step: int = 1000, gunzip: Gunzip | None = None) -> bytes:
    gunzip = gunzip or Gunzip()
    out = [piece for at in range(0, len(data), step) for piece in gunzip.feed(data[at : at + step])]
    gunzip.finish()
    assert all(0 < len(piece) <= GUNZIP_OUT_BYTES for piece in out)
    return b"".join(out)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=500), min_size=1, max_size=4), st.integers(1, 50), st.integers(0, 9))
def test_gzip_members_are_unpacked_one_after_another(members: list[bytes], step: int, padding: int) -> None:
    assert unpacked(b"".join(map(gzip.compress, members)) + b"\0" * padding, step) == b"".join(members)


@pytest.mark.parametrize("size", [0, 1, GUNZIP_OUT_BYTES, 3 * GUNZIP_OUT_BYTES, 10_000_000])
def test_output_of_any_size_comes_whole(size: int) -> None:
    assert unpacked(gzip.compress(b"x" * size)) == b"x" * size


def test_a_truncated_stream_is_refused() -> None:
    whole = gzip.compress(b"some text" * 100)
    for end in range(len(whole)):
        with pytest.raises(InvalidInput):
            unpacked(whole[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"email,name\n",
        gzip.compress(b"x", mtime=0) + b"garbage",
        zlib.compress(b"x"),
        gzip.compress(b"some text" * 9, mtime=0)[:-8] + b"01234567",
        gzip.compress(b"", mtime=0)[:3] + b"\xff" * 9,
    ],
)
def test_a_corrupt_stream_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        unpacked(data)


def test_a_bomb_is_refused_after_its_free_part() -> None:
    bomb = gzip.compress(bytes(20_000_000))
    seen: list[int] = []
    pieces = map(len, Gunzip(free_bytes=1_000_000).feed(bomb))
    with pytest.raises(InvalidInput):
        seen.extend(pieces)
    assert 1_000_000 <= sum(seen) + GUNZIP_OUT_BYTES < 200 * len(bomb) + 2 * GUNZIP_OUT_BYTES
    assert unpacked(bomb) == bytes(20_000_000)
