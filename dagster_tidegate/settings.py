"""All settings from environment variables: their names, bounds and defaults.

Each group is a model: the field `port` of a group with the prefix `TIDEGATE_SERVE_` is the variable
`TIDEGATE_SERVE_PORT`. An empty variable counts as not set. docs/settings.md lists them all.
"""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PREFIX = "TIDEGATE_"
TESTS_PREFIX = "TIDEGATE_TEST_"
"""Prefix of variables that only this project's tests read."""
HIDDEN = "********"
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# Kubernetes sets such variables in every container for a Service named "tidegate...".
_SERVICE_LINK = re.compile(
    r"TIDEGATE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)"
)


PAGES = "/tidegate"
"""Where Tidegate's own pages are, below the URL of the UI."""


class SettingsError(ValueError):
    """A setting has an invalid value; the message names it and says what is valid."""


def _split(value: Any) -> Any:
    return tuple(re.findall(r"[^\s,]+", value)) if isinstance(value, str) else value


def _split_at_spaces(value: Any) -> Any:
    return tuple(value.split()) if isinstance(value, str) else value


def _true_or_false(value: Any) -> Any:
    return _BOOLEANS.get(value.strip().lower(), value) if isinstance(value, str) else value


def _web_address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
        raise ValueError("use a web address such as https://dagster.example.org")
    return value.rstrip("/")


def _host_names(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not re.fullmatch(r"[\w.-]+", value) and not _is_address(value):
            raise ValueError(
                f"{value!r} is not a host name: use dagster.example.org, without https:// and "
                "without a port"
            )
    return values


def _proxies(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            is_everybody = ipaddress.ip_network(value).prefixlen == 0
        except ValueError:
            is_everybody = value == "*"
            if not is_everybody:
                raise ValueError(
                    f"{value!r} is not an address or network: use 10.0.0.7 or 10.0.0.0/8"
                ) from None
        if is_everybody:
            raise ValueError(
                f"{value!r} means every address, so anyone could forge theirs: name the proxies, "
                "such as 10.0.0.7 or 10.0.0.0/8"
            )
    return values


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _path_prefix(value: str) -> str:
    if not re.fullmatch(r"(/[\w.~-]+)*", value):
        raise ValueError("use a path such as /dagster, without a trailing slash")
    return value


Switch = Annotated[bool, Field(strict=True), BeforeValidator(_true_or_false)]
"""`true`, `false`, `1` or `0`."""
WebAddress = Annotated[str, AfterValidator(_web_address)]
"""An http or https URL without a query; a trailing slash is dropped."""
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Words separated by spaces or commas."""
SecretWords = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_at_spaces)]
"""Secrets separated by whitespace."""


class Settings(BaseSettings):
    """A group of settings. Create it with `load`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )


class GeneralSettings(Settings):
    """Settings of every process of a deployment."""

    store_url: SecretStr | None = Field(
        default=None,
        description="SQLAlchemy URL of the state database, SQLite or PostgreSQL. Default: the "
        "SQLite file `tidegate.db` in `DAGSTER_HOME`, created on first use.",
    )
    enabled: Switch = Field(
        default=True,
        description="`false` is the kill switch: calls pass and are counted, but nothing trips or "
        "pauses.",
    )
    public_url: WebAddress | None = Field(
        default=None,
        description="Public URL of the UI, for links in alerts and to runbooks: "
        "`https://dagster.example.org`.",
    )
    opentelemetry: Switch = Field(
        default=False,
        description="`true`: runs and sensors report breaker metrics to OpenTelemetry. Needs the "
        "extra `otel` and a configured SDK.",
    )

    def page_url(self, path: str) -> str | None:
        """Return the public URL of one of Tidegate's pages; None if `public_url` is not set."""
        return None if self.public_url is None else f"{self.public_url}{PAGES}{path}"


class ServeSettings(Settings):
    """Settings of `tidegate serve`."""

    model_config = SettingsConfigDict(env_prefix="TIDEGATE_SERVE_")

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on. Beyond loopback, a token must exist.",
    )
    port: int = Field(default=3000, ge=0, le=65535, description="Port; 0 picks a free one.")
    path_prefix: Annotated[str, AfterValidator(_path_prefix)] = Field(
        default="",
        description="URL path prefix, such as `/dagster`.",
    )
    workspace: Path | None = Field(
        default=None,
        description="The workspace file. Default: the project of the current directory; with "
        "`--api-only` none, and no runs can be started.",
    )
    allowed_hosts: Annotated[Words, AfterValidator(_host_names)] = Field(
        default=(),
        description="Allowed values of the `Host` header besides loopback names, without scheme "
        "and port, separated by spaces or commas.",
    )
    trusted_proxies: Annotated[Words, AfterValidator(_proxies)] = Field(
        default=(),
        description="Addresses or networks of reverse proxies whose `X-Forwarded-For` and "
        "`X-Forwarded-Proto` are trusted, separated by spaces or commas.",
    )
    session_hours: float = Field(
        default=12.0,
        gt=0,
        le=720,
        description="Maximum length of a browser session, in hours; it ends with its token.",
    )
    requests_per_token: int = Field(
        default=1200, ge=1, description="Rate limit per token, in requests per minute."
    )
    requests_per_address: int = Field(
        default=3000, ge=1, description="Rate limit per network address, in requests per minute."
    )
    refusals_per_address: int = Field(
        default=10,
        ge=1,
        description="Limit on different wrong tokens per network address, per minute; beyond it, "
        "wrong tokens get a 429 and valid ones are still accepted.",
    )
    request_bytes: int = Field(
        default=1_000_000,
        ge=10_000,
        le=100_000_000,
        description="Maximum size of a request body, in bytes.",
    )
    ui_changes: Literal["operator", "admin"] = Field(
        default="operator",
        description="Role required for changes in the Dagster UI. The UI ignores owners of "
        "campaigns: if you use owners, set `admin`.",
    )


class AlertSettings(Settings):
    """Settings of the alert sender."""

    model_config = SettingsConfigDict(env_prefix="TIDEGATE_ALERT_")

    urls: SecretWords = Field(
        default=(),
        description="Alert targets: Apprise URLs, separated by spaces, each with an optional name: "
        "`ops=slack://... mailto://...`. They are secrets.",
    )
    hold_expires_within_s: float = Field(
        default=900.0,
        ge=0,
        le=86_400,
        description="Alert this many seconds before a hold expires, but not before three quarters "
        "of its duration have passed.",
    )
    hold_older_than_s: float = Field(
        default=86_400.0,
        ge=60,
        description="Holds older than this raise an alert, in seconds.",
    )
    gate_stale_after_s: float = Field(
        default=180.0,
        ge=60,
        description="Alert when a gate sensor has not completed a tick for this many seconds.",
    )
    in_doubt_after_s: float = Field(
        default=300.0,
        ge=0,
        description="Alert when records have been in doubt for this many seconds.",
    )
    failed_records_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Alert when a campaign run has ended and more than this share of its records "
        "failed.",
    )
    resume_within_s: float = Field(
        default=600.0,
        ge=60,
        description="Alert when paused runs that are no longer held have not resumed for this many "
        "seconds.",
    )
    repeat_after_s: float = Field(
        default=600.0,
        ge=10,
        description="After two messages of the same kind about the same thing within an hour, the "
        "minimum seconds between further ones, which summarize what happened in between.",
    )
    per_minute: int = Field(
        default=10,
        ge=1,
        le=600,
        description="Maximum messages per minute; beyond that, alerts share one message.",
    )


GROUPS: tuple[type[Settings], ...] = (
    GeneralSettings,
    ServeSettings,
    AlertSettings,
)

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Effective:
    """A setting in effect.

    Attributes:
        value: Its value as text; `HIDDEN` for a secret, None if it has none.
        source: `default`, `environment` or `command line`.
    """

    variable: str
    value: str | None
    source: str
    description: str


def variable(group: type[Settings], field: str) -> str:
    """Return the environment variable of a field.

    Example:
        >>> variable(ServeSettings, "port")
        'TIDEGATE_SERVE_PORT'
    """
    return f"{group.model_config.get('env_prefix')}{field}".upper()


@cache
def variables() -> tuple[str, ...]:
    """Return the environment variables of all settings."""
    return tuple(variable(group, field) for group in GROUPS for field in group.model_fields)


def load(group: type[S], **given: Any) -> S:
    """Read a group of settings.

    Args:
        given: Values from the command line, which override the environment; None means not given.

    Raises:
        SettingsError: If a value is invalid. Secrets are not repeated in the message.
    """
    named = {field: value for field, value in given.items() if value is not None}
    if named:
        return _validated(group, named)
    # Workers read settings before each record, and building the model takes 0.3 ms.
    values = tuple(os.environ.get(variable(group, field)) for field in group.model_fields)
    return _from_environment(group, values)  # type: ignore[return-value]


def unknown(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each unknown variable with this package's prefix."""
    return [
        f"unknown variable {name}" + (f"; did you mean {near[0]}?" if near else "")
        for name in sorted(environment)
        if _looks_like_ours(name.upper()) and name.upper() not in variables()
        for near in [get_close_matches(name.upper(), variables(), n=1, cutoff=0.8)]
    ]


def problems() -> list[str]:
    """Return a sentence for each unknown variable and invalid value in the environment."""
    sentences = unknown(os.environ)
    for group in GROUPS:
        try:
            load(group)
        except SettingsError as error:
            sentences.append(str(error))
    return sentences


def effective(group: type[Settings], **given: Any) -> Iterator[Effective]:
    """Yield the settings of a group that are in effect; arguments and errors as in `load`."""
    loaded = load(group, **given)
    for name, field in group.model_fields.items():
        named = given.get(name) is not None
        yield Effective(
            variable=variable(group, name),
            value=shown(getattr(loaded, name)),
            source="command line"
            if named
            else "environment"
            if name in loaded.model_fields_set
            else "default",
            description=field.description or "",
        )


def shown(value: Any) -> str | None:
    """Return a value as text without secrets, or None if it is empty."""
    if value in (None, "", ()):
        return None
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, tuple):
        return " ".join(shown(each) or "" for each in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


@lru_cache(maxsize=64)
def _from_environment(group: type[Settings], _values: tuple[str | None, ...]) -> Settings:
    return _validated(group, {})


def _validated(group: type[S], named: Mapping[str, Any]) -> S:
    try:
        return group(**named)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(group, error))) from None


def _looks_like_ours(name: str) -> bool:
    return (
        name.startswith(PREFIX)
        and not name.startswith(TESTS_PREFIX)
        and (name in variables() or not _SERVICE_LINK.fullmatch(name))
    )


def _explain(group: type[Settings], error: ValidationError) -> Iterator[str]:
    for flaw in error.errors(include_url=False):
        field = str(flaw["loc"][0])
        if field not in group.model_fields:
            yield f"{group.__name__} has no setting {field}"
            continue
        secret = "SecretStr" in str(group.model_fields[field].annotation)
        value = "has an invalid value" if secret else f"is {flaw['input']!r}"
        remedy = flaw["msg"].removeprefix("Value error, ")
        if flaw["type"] == "bool_type":
            remedy = "use true or false"
        yield f"{variable(group, field)} {value}; {remedy[0].lower()}{remedy[1:]}"
