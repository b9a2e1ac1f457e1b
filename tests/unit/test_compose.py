"""No Docker engine runs these tests: what docker-compose.yml says is held against the processes and settings there are."""

from pathlib import Path
from typing import Any

import yaml

from core.settings import load, names
from devstack.processes import PROCESSES

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def test_every_process_is_a_service() -> None:
    commands = {tuple(service["command"]) for service in OURS.values()}
    assert {("python", *process.argv) for process in PROCESSES} <= commands
    assert {("python", "-m", "streams", "migrate"), ("python", "-m", "streams", "topics")} <= commands


def test_services_set_only_settings_there_are() -> None:
    for service in OURS.values():
        assert set(service["environment"]) <= set(names())
        load(service["environment"])


def test_servers_have_health_checks_and_one_offs_come_first() -> None:
    assert all("healthcheck" in service for name, service in SERVICES.items() if name not in OURS)
    for name, service in OURS.items():
        waits = service["depends_on"]
        assert all(wait["condition"] != "service_started" for wait in waits.values()), name
        if name not in ("migrate", "topics"):
            assert {"migrate", "topics"} <= set(waits)


def test_the_image_holds_every_room_it_needs() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for room in ("api", "core", "mailer", "migrations", "schemas", "store", "streams"):
        assert f"COPY {room} {room}" in dockerfile
    assert "USER mailgenius" in dockerfile
