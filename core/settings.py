"""Settings, read once from the environment in each entry point and passed down. `.env.example` lists them all.

A setting NAME may instead come from a file whose path is in NAME_FILE (container secrets).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from core.errors import Misconfigured
from core.relays import DEFAULT
from core.secrets import KeyRing, parse_keys
from schemas.states import RelayTls

Port = Annotated[int, Field(ge=1, le=65535)]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PostgresSettings(_Group):
    database_url: SecretStr = SecretStr("postgresql://postgres@127.0.0.1:5432/mailgenius")
    database_pool_size: Annotated[int, Field(ge=1, le=100)] = 4


class KafkaSettings(_Group):
    kafka_bootstrap_servers: str = "127.0.0.1:9092"
    kafka_topic_prefix: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]*$", max_length=100)] = ""
    kafka_partitions: Annotated[int, Field(ge=1, le=1000)] = 8
    kafka_replication_factor: Annotated[int, Field(ge=1, le=9)] = 1


class RedisSettings(_Group):
    redis_host: str = "127.0.0.1"
    redis_port: Port = 6379
    redis_password: SecretStr | None = None
    redis_db: Annotated[int, Field(ge=0)] = 0
    redis_prefix: str = "mailgenius:"


class ApiSettings(_Group):
    api_host: str = "127.0.0.1"
    api_port: Port = 8000
    start_workers: bool = False


class LimitSettings(_Group):
    """Defaults of the named limits; a row of `user_limits` overrides them for a user. Rates a second; 0 = no limit."""

    rate_limit_enabled: bool = True
    limit_email_sending_rate: Annotated[float, Field(ge=0)] = 0
    limit_email_sending_burst: Annotated[int, Field(ge=1)] = 100
    limit_email_sending_per_minute: Annotated[int, Field(ge=0)] = 0
    limit_email_sending_per_hour: Annotated[int, Field(ge=0)] = 0
    limit_email_sending_per_day: Annotated[int, Field(ge=0)] = 0
    limit_leads_import_rate: Annotated[float, Field(ge=0)] = 0
    limit_leads_import_burst: Annotated[int, Field(ge=1)] = 10
    limit_leads_import_per_hour: Annotated[int, Field(ge=0)] = 0
    limit_leads_import_per_day: Annotated[int, Field(ge=0)] = 0
    limit_api_rate: Annotated[float, Field(ge=0)] = 0
    limit_api_burst: Annotated[int, Field(ge=1)] = 50
    limit_api_per_minute: Annotated[int, Field(ge=0)] = 0
    limit_bulk_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    limit_adaptive: bool = True

    @property
    def adapts(self) -> bool:
        """Whether replies slow anything down."""
        return self.rate_limit_enabled and self.limit_adaptive


class ImportSettings(_Group):
    import_chunk_rows: Annotated[int, Field(ge=1, le=1000)] = 1000
    import_chunk_bytes: Annotated[int, Field(ge=1024, le=512 * 1024)] = 512 * 1024


class SendSettings(_Group):
    send_batch_size: Annotated[int, Field(ge=1, le=100)] = 100
    send_retry_base: Annotated[float, Field(gt=0)] = 60
    send_retry_factor: Annotated[float, Field(ge=1)] = 3
    send_retry_cap: Annotated[float, Field(gt=0)] = 4 * 3600
    send_retry_total: Annotated[float, Field(gt=0)] = 24 * 3600
    smtp_host: str = "127.0.0.1"
    smtp_port: Port = 25
    smtp_connections: Annotated[int, Field(ge=1, le=200)] = 8
    smtp_helo_name: str = "localhost"
    smtp_tls: RelayTls = RelayTls.NONE
    smtp_verify: bool = True
    smtp_ca_file: str | None = None
    smtp_username: str | None = None
    smtp_password: SecretStr | None = None

    @property
    def relay(self) -> str:
        """As outcomes and limits call it."""
        return DEFAULT


class AttachmentSettings(_Group):
    """Bytes: of one, and of all that a mail has."""

    attachment_max_bytes: Annotated[int, Field(ge=1024, le=25 * 2**20)] = 10 * 2**20
    attachments_max_bytes: Annotated[int, Field(ge=1024, le=50 * 2**20)] = 20 * 2**20


class ProgressSettings(_Group):
    """Of one API process: how many may listen to progress, in all and of one user."""

    progress_listeners: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    progress_listeners_per_user: Annotated[int, Field(ge=1, le=100_000)] = 200


class RelaysSettings(_Group):
    """Of relays that are rows. `secret_keys` is read by core/secrets.py."""

    secret_keys: SecretStr | None = None
    relay_private_addresses: bool = False

    @field_validator("secret_keys")
    @classmethod
    def _can_be_used(cls, keys: SecretStr | None) -> SecretStr | None:
        parse_keys(keys.get_secret_value() if keys else "")
        return keys

    @property
    def ring(self) -> KeyRing:
        """Empty where no key is set."""
        return parse_keys(self.secret_keys.get_secret_value() if self.secret_keys else "")


class DkimSettings(_Group):
    """`dkim_lifetime` of a signature in seconds, 0: it has no end. `dkim_nameserver` is asked whether records are published."""

    dkim_lifetime: Annotated[int, Field(ge=0, le=366 * 86_400)] = 0
    dkim_nameserver: Annotated[str, Field(pattern=r"^[0-9A-Fa-f.:]+(#[0-9]{1,5})?$")] | None = None


class UnsubscribeSettings(_Group):
    """With neither, mails have no List-Unsubscribe. Links are signed by SECRET_KEYS: core/unsubscribe.py."""

    public_url: Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9._~%:/\[\]-]+$", max_length=200)] | None = None
    unsubscribe_mailto: Annotated[str, Field(pattern=r"^[!-~]+@[!-~]+$", max_length=254)] | None = None

    @field_validator("public_url")
    @classmethod
    def _begins_links(cls, url: str | None) -> str | None:
        if url is not None and not _is_base(url):
            raise ValueError("write it as https://host or https://host/path")
        return None if url is None else url.rstrip("/")

    @property
    def links(self) -> str | None:
        """What the links of mails begin with."""
        return None if self.public_url is None else f"{self.public_url}/u/"


class EventsSettings(_Group):
    """What others are told. `webhook_private_addresses`: users' webhooks may be in our own network, and without TLS."""

    events_enabled: bool = True
    webhook_private_addresses: bool = False


class ProcessSettings(_Group):
    queue_concurrency: Annotated[int, Field(ge=1, le=1000)] = 16
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = "info"


class Settings(_Group):
    postgres: PostgresSettings = PostgresSettings()
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    api: ApiSettings = ApiSettings()
    limits: LimitSettings = LimitSettings()
    imports: ImportSettings = ImportSettings()
    sending: SendSettings = SendSettings()
    attachments: AttachmentSettings = AttachmentSettings()
    progress: ProgressSettings = ProgressSettings()
    relays: RelaysSettings = RelaysSettings()
    dkim: DkimSettings = DkimSettings()
    unsubscribe: UnsubscribeSettings = UnsubscribeSettings()
    events: EventsSettings = EventsSettings()
    process: ProcessSettings = ProcessSettings()


def _is_base(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def groups() -> dict[str, type[_Group]]:
    """The groups by their name in `Settings`."""
    return {name: type(group) for name, group in Settings()}


def names() -> dict[str, str]:
    """Every environment variable that is read, with its group."""
    return {setting.upper(): group for group, kind in groups().items() for setting in kind.model_fields}


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """Raises Misconfigured naming every wrong value. An empty value counts as not set."""
    given = os.environ if environment is None else environment
    values: dict[str, dict[str, Any]] = {}
    for name, group in names().items():
        value = _value(name, given)
        if value:
            values.setdefault(group, {})[name.lower()] = value
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise Misconfigured("; ".join(_complaint(one) for one in error.errors())) from None


def _value(name: str, given: Mapping[str, str]) -> str | None:
    path = given.get(f"{name}_FILE")
    if not path:
        return given.get(name)
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise Misconfigured(f"{name}_FILE: cannot read {path}: {error.strerror}") from None


def _complaint(error: Any) -> str:
    name = str(error["loc"][-1]).upper()
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"
