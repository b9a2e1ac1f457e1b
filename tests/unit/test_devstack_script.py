from typing import Any

import pytest
from pydantic import ValidationError

from devstack.sink.script import Play, Script


def play(*rules: dict[str, Any], seed: int = 0) -> Play:
    return Play(Script.model_validate({"rules": rules, "seed": seed}))


def address(number: int) -> list[bytes]:
    return [b"user%d@example.com" % number]


def test_the_first_rule_that_matches_wins() -> None:
    played = play(
        {"at": "rcpt", "reply": "550 no", "match": "*@Bad.example"},
        {"at": "rcpt", "reply": "451 later"},
    )
    bad, good = played.rule("rcpt", [b"A@bad.EXAMPLE"]), played.rule("rcpt", [b"a@good.example"])
    assert bad is not None
    assert bad.reply == "550 no"
    assert good is not None
    assert good.reply == "451 later"
    assert played.rule("data", [b"a@bad.example"]) is None


def test_a_share_is_about_that_share() -> None:
    played = play({"at": "rcpt", "reply": "451 later", "share": 0.2})
    hit = sum(played.rule("rcpt", address(number)) is not None for number in range(5000))
    assert 900 < hit < 1100


def test_a_share_is_drawn_the_same_whatever_the_order() -> None:
    def refused(order: list[int], seed: int) -> set[int]:
        played = play({"at": "rcpt", "reply": "451 later", "share": 0.5}, seed=seed)
        return {number for number in order if played.rule("rcpt", address(number))}

    forward = refused(list(range(200)), 1)
    assert refused(list(reversed(range(200))), 1) == forward
    assert refused(list(range(200)), 2) != forward


def test_a_share_is_drawn_anew_at_each_try() -> None:
    played = play({"at": "rcpt", "reply": "451 later", "share": 0.5})
    assert {played.rule("rcpt", address(1)) is None for _ in range(64)} == {True, False}


def test_greylisting_refuses_the_first_try_of_each_address() -> None:
    played = play({"at": "rcpt", "reply": "451 later", "first": 1})
    assert [played.rule("rcpt", address(number)) is not None for number in (1, 1, 2, 1, 2)] == [
        True,
        False,
        True,
        False,
        False,
    ]


def test_a_rule_can_be_used_up() -> None:
    played = play({"at": "connect", "drop": True, "times": 2})
    assert [played.rule("connect") is not None for _ in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(
    "rule",
    [
        {"at": "rcpt"},
        {"at": "nowhere", "drop": True},
        {"at": "rcpt", "reply": "451 two\r\n250 lines"},
        {"at": "rcpt", "reply": "later"},
        {"at": "rcpt", "reply": "451 x", "share": 1.5},
        {"at": "rcpt", "reply": "451 x", "shrae": 0.5},
        {"at": "content", "reply": "451 x"},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        play(rule)
