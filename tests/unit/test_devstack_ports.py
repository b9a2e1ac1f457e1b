import socket
from pathlib import Path

import pytest

from devstack.errors import StartFailed
from devstack.ports import HOST, Ports, free_port, is_free, need_free, settle


def test_a_free_port_is_given_only_once() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(port < 32768 for port in ports)


def test_a_listener_holds_its_port() -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        assert not is_free(port)
        with pytest.raises(StartFailed, match=f"kafka: port {port} is taken"):
            need_free(port, "kafka")
    assert is_free(port)


def test_ports_stay_the_same_while_they_are_free(tmp_path: Path) -> None:
    first = settle(Ports(), tmp_path / "ports.json")
    assert settle(Ports(), tmp_path / "ports.json") == first
    with socket.create_server((HOST, first["kafka"])):
        second = settle(Ports(), tmp_path / "ports.json")
    assert second["kafka"] != first["kafka"]
    assert second["postgres"] == first["postgres"]


def test_a_wanted_port_is_given_or_refused(tmp_path: Path) -> None:
    wanted = free_port()
    assert settle(Ports(api=wanted), tmp_path / "ports.json")["api"] == wanted
    with socket.create_server((HOST, wanted)), pytest.raises(StartFailed, match=f"api: port {wanted} is taken"):
        settle(Ports(api=wanted), tmp_path / "ports.json")


@pytest.mark.parametrize("text", ["", "not json", "[1, 2]", '{"kafka": "x", "postgres": 7}'])
def test_a_spoilt_memory_of_ports_is_no_harm(tmp_path: Path, text: str) -> None:
    (tmp_path / "ports.json").write_text(text)
    assert len(set(settle(Ports(), tmp_path / "ports.json").values())) == 6
