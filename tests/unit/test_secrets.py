import base64
import os

import pytest

from core.errors import Misconfigured
from core.secrets import CannotDecrypt, KeyRing, parse_keys
from core.settings import load


def _key(byte: int = 1) -> str:
    return base64.b64encode(bytes([byte]) * 32).decode()


def test_what_is_encrypted_is_decrypted_at_its_place_alone() -> None:
    ring = parse_keys(f"a:{_key()}")
    stored = ring.encrypt("hush", "relays/1")
    assert "hush" not in stored
    assert stored.startswith("a:")
    assert ring.decrypt(stored, "relays/1") == "hush"
    with pytest.raises(CannotDecrypt):
        ring.decrypt(stored, "relays/2")


def test_the_same_secret_is_never_stored_alike() -> None:
    ring = parse_keys(f"a:{_key()}")
    assert ring.encrypt("hush", "relays/1") != ring.encrypt("hush", "relays/1")


def test_the_first_key_encrypts_and_every_key_decrypts() -> None:
    old = parse_keys(f"a:{_key(1)}")
    stored = old.encrypt("hush", "relays/1")
    both = parse_keys(f"b:{_key(2)},a:{_key(1)}")
    assert both.decrypt(stored, "relays/1") == "hush"
    assert not both.is_newest(stored)
    again = both.encrypt("hush", "relays/1")
    assert both.is_newest(again)
    with pytest.raises(CannotDecrypt, match="no key 'b'"):
        old.decrypt(again, "relays/1")


def test_a_ciphertext_is_not_taken_for_one_of_another_key() -> None:
    ring = parse_keys(f"a:{_key(1)},b:{_key(1)}")
    stored = ring.encrypt("hush", "relays/1")
    with pytest.raises(CannotDecrypt):
        ring.decrypt("b" + stored.removeprefix("a"), "relays/1")


@pytest.mark.parametrize("broken", ["a:", "a:AAAA", "a:no base64", "a:" + "A" * 60])
def test_what_was_changed_is_not_decrypted(broken: str) -> None:
    with pytest.raises(CannotDecrypt):
        parse_keys(f"a:{_key()}").decrypt(broken, "relays/1")


def test_without_a_key_nothing_is_encrypted() -> None:
    assert not KeyRing()
    with pytest.raises(Misconfigured, match="SECRET_KEYS"):
        KeyRing().encrypt("hush", "relays/1")


def test_wrong_keys_are_named_and_not_shown() -> None:
    for text in ("nokey", "a:short", f"a:{base64.b64encode(os.urandom(16)).decode()}", f"a:{_key()},a:{_key(2)}"):
        with pytest.raises(Misconfigured, match="SECRET_KEYS: key") as caught:
            load({"SECRET_KEYS": text})
        assert text.partition(":")[2] == "" or text.partition(":")[2] not in str(caught.value)


def test_keys_are_not_shown_with_the_settings() -> None:
    settings = load({"SECRET_KEYS": f"a:{_key()}"})
    assert settings.relays.ring
    assert _key() not in repr(settings)
    assert _key() not in repr(settings.relays.ring)
    assert str(bytes([1]) * 32) not in repr(settings.relays.ring)
