import json

from devstack.sink.book import Book


def filled(keep: int, mails: int) -> Book:
    book = Book(keep)
    for number in range(mails):
        book.add(float(number), b"<%d@x>" % number, b"a@x", [b"b%d@x" % number, b"c@x"], b"..x\r\n")
    return book


def test_every_arrival_is_remembered_and_the_last_mails_are_kept() -> None:
    book = filled(keep=3, mails=10)
    assert [mail.index for mail in book.last(100)] == [7, 8, 9]
    assert [mail.index for mail in book.last(1)] == [9]
    assert book.last(0) == []
    assert list(book.arrivals(8, 100)) == [(8.0, "<8@x>", "b8@x"), (9.0, "<9@x>", "b9@x")]
    assert book.last(1)[0].content == b".x\r\n"


def test_arrivals_are_lines_of_json_whatever_bytes_came() -> None:
    book = Book(0)
    book.add(1.5, b'<"\xff@x>', b"a@x", ["ü@x".encode()], b"")
    assert json.loads(book.arrival_lines(0, 1)) == [1.5, '<"�@x>', "ü@x"]


def test_a_cleared_book_begins_at_zero() -> None:
    book = filled(keep=3, mails=2)
    book.clear()
    assert book.stats()["accepted"] == 0
    assert book.add(1.0, b"", b"", [b"a@x"], b"") == 0
    assert list(book.arrivals(0, 10)) == [(1.0, "", "a@x")]
