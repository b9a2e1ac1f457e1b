"""Signed webhooks: who has the secret is believed, now and for nothing else."""

import base64
import hashlib
import hmac

import pytest

from core.signatures import Signed, Verdict, new_secret, sign, verify

NOW = 1_764_000_000.0
TIME = str(int(NOW))
BODY = b'{"type": "bounce"}'


def _signed(secret: str, body: bytes = BODY, webhook_id: str = "msg_1", at: str = TIME) -> Signed:
    return Signed(webhook_id, at, sign(secret, webhook_id, at, body))


def test_the_published_example_of_standard_webhooks_is_signed_alike() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    made = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body)
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_it_is_an_hmac_over_id_time_and_body() -> None:
    secret = new_secret()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    assert len(key) == 32
    digest = hmac.new(key, b"msg_1." + TIME.encode() + b"." + BODY, hashlib.sha256).digest()
    assert sign(secret, "msg_1", TIME, BODY) == "v1," + base64.b64encode(digest).decode()


def test_who_has_the_secret_is_believed() -> None:
    secret = new_secret()
    assert verify([secret], _signed(secret), BODY, NOW) is Verdict.GOOD


def test_each_of_two_secrets_is_good_and_so_is_one_of_two_signatures() -> None:
    old, new, other = new_secret(), new_secret(), new_secret()
    for secret in (old, new):
        assert verify([new, old], _signed(secret), BODY, NOW) is Verdict.GOOD
    both = f"{_signed(other).signature} {_signed(old).signature}"
    assert verify([new, old], Signed("msg_1", TIME, both), BODY, NOW) is Verdict.GOOD


@pytest.mark.parametrize(
    "change",
    [
        {"webhook_id": "msg_2"},
        {"body": b'{"type": "complaint"}'},
        {"at": str(int(NOW) - 1)},
    ],
)
def test_what_was_changed_on_the_way_is_wrong(change: dict[str, str]) -> None:
    secret = new_secret()
    signature = _signed(secret, **change).signature  # type: ignore[arg-type]
    assert verify([secret], Signed("msg_1", TIME, signature), BODY, NOW) is Verdict.WRONG


@pytest.mark.parametrize("signature", ["", "v1,", "v1", "v2,abc", "ü", "v1,ü", " ", "v1,AAAA v1,BBBB"])
def test_what_is_no_signature_is_wrong(signature: str) -> None:
    assert verify([new_secret()], Signed("msg_1", TIME, signature), BODY, NOW) is Verdict.WRONG


def test_only_so_many_signatures_are_looked_at() -> None:
    secret = new_secret()
    good = _signed(secret).signature
    for wrong, verdict in ((9, Verdict.GOOD), (10, Verdict.WRONG)):
        many = " ".join(["v1,AAAA"] * wrong + [good])
        assert verify([secret], Signed("msg_1", TIME, many), BODY, NOW) is verdict


@pytest.mark.parametrize(
    ("away", "verdict"),
    [
        (-300, Verdict.GOOD),
        (300, Verdict.GOOD),
        (-301, Verdict.STALE),
        (301, Verdict.STALE),
        (-86_400, Verdict.STALE),
    ],
)
def test_five_minutes_from_now_it_is_stale(away: int, verdict: Verdict) -> None:
    secret = new_secret()
    assert verify([secret], _signed(secret, at=str(int(NOW) + away)), BODY, NOW) is verdict


def test_of_a_wrong_signature_nobody_learns_whether_its_time_was_good() -> None:
    assert verify([new_secret()], _signed(new_secret(), at="1"), BODY, NOW) is Verdict.WRONG


@pytest.mark.parametrize("at", ["", "soon", "-1", "1e9", "1764000000.5", "٣", "9" * 13])
def test_a_time_that_is_none_is_wrong_however_well_it_is_signed(at: str) -> None:
    secret = new_secret()
    assert verify([secret], _signed(secret, at=at), BODY, NOW) is Verdict.WRONG


@pytest.mark.parametrize("webhook_id", ["", "a b", "a\n", "é", "x" * 201])
def test_an_id_that_is_none_is_wrong_however_well_it_is_signed(webhook_id: str) -> None:
    secret = new_secret()
    assert verify([secret], _signed(secret, webhook_id=webhook_id), BODY, NOW) is Verdict.WRONG
