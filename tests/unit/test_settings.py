import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from core.errors import Misconfigured
from core.settings import Settings, groups, load, names

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def _example() -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE))


def test_the_example_lists_every_setting_with_its_default() -> None:
    assert set(_example()) == set(names())
    assert load(_example()) == load({}) == Settings()


def test_no_setting_stands_in_two_groups() -> None:
    assert len(names()) == sum(len(kind.model_fields) for kind in groups().values())


def test_every_wrong_value_is_named() -> None:
    with pytest.raises(Misconfigured, match="REDIS_PORT.*KAFKA_PARTITIONS|KAFKA_PARTITIONS.*REDIS_PORT"):
        load({"REDIS_PORT": "many", "KAFKA_PARTITIONS": "0"})


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hush\n")
    settings = load({"REDIS_PASSWORD_FILE": str(tmp_path / "password")})
    assert settings.redis.redis_password == SecretStr("hush")
    assert "hush" not in repr(settings)


def test_a_missing_secret_file_is_named() -> None:
    with pytest.raises(Misconfigured, match="REDIS_PASSWORD_FILE: cannot read /nowhere"):
        load({"REDIS_PASSWORD_FILE": "/nowhere"})


def test_settings_of_the_old_system_keep_their_names() -> None:
    old = {
        "REDIS_HOST",
        "REDIS_PORT",
        "REDIS_PASSWORD",
        "REDIS_DB",
        "START_WORKERS",
        "QUEUE_CONCURRENCY",
        "RATE_LIMIT_ENABLED",
    }
    assert old <= set(names())
