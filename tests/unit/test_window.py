from api.window import POLL, SIZE, STALLED, Window
from store.imports import OpenChunks


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_there_is_room_until_the_window_is_full() -> None:
    window = Window(clock=Clock())
    for _ in range(SIZE):
        assert window.pause() is None
        window.published()
    assert window.pause() == 0  # the last look is old: look now
    window.look(OpenChunks(SIZE - 1, 40), 0)
    assert window.pause() is None


def test_what_the_ledger_does_not_know_counts() -> None:
    window = Window(clock=Clock())
    window.look(OpenChunks(SIZE - 3, 0), 3)
    assert window.pause() == 0
    assert window.pause() == POLL


def test_while_workers_move_the_upload_waits() -> None:
    clock = Clock()
    window = Window(clock=clock)
    for low in range(100):
        window.look(OpenChunks(SIZE, low), 0)
        assert window.pause() in (0, POLL)
        clock.now += STALLED / 4


def test_when_nothing_moves_kafka_is_the_buffer_until_something_does() -> None:
    clock = Clock()
    window = Window(clock=clock)
    clock.now += 1_000  # the client was slow: that says nothing about workers
    window.look(OpenChunks(SIZE, 7), 0)
    assert window.pause() == 0
    clock.now += STALLED
    window.look(OpenChunks(SIZE, 7), 0)
    for _ in range(3 * SIZE):
        assert window.pause() is None
        window.published()
        window.look(OpenChunks(SIZE, 7), 1)
    window.look(OpenChunks(SIZE, 8), 0)
    assert window.pause() == POLL
