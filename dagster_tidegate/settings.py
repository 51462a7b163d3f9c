"""All settings that come from the environment: their names, bounds and defaults.

Each group is a model; a field `port` of a group with the prefix `TIDEGATE_SERVE_` is the variable
`TIDEGATE_SERVE_PORT`. An empty variable counts as one that is not set. docs/settings.md lists all.
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
"""Variables of this project's own tests; nothing else reads them."""
HIDDEN = "********"
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
# A Kubernetes Service named "tidegate..." puts such variables into every container beside it.
_SERVICE_LINK = re.compile(
    r"TIDEGATE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)"
)


class SettingsError(ValueError):
    """A setting has a value that can't be used; the message says which and what would be right."""


def _split(value: Any) -> Any:
    return tuple(re.findall(r"[^\s,]+", value)) if isinstance(value, str) else value


def _split_at_spaces(value: Any) -> Any:
    return tuple(value.split()) if isinstance(value, str) else value


def _true_or_false(value: Any) -> Any:
    return _BOOLEANS.get(value.strip().lower(), value) if isinstance(value, str) else value


def _web_address(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
        raise ValueError("it can be a web address, such as https://dagster.example.org")
    return value.rstrip("/")


def _host_names(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if not re.fullmatch(r"[\w.-]+", value) and not _is_address(value):
            raise ValueError(
                f"{value!r} is no name of a host: it can be dagster.example.org, without https:// "
                "and without a port"
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
                    f"{value!r} is no address or network: it can be 10.0.0.7 or 10.0.0.0/8"
                ) from None
        if is_everybody:
            raise ValueError(
                f"{value!r} is everybody, and then anybody says which address they have: name the "
                "proxies, such as 10.0.0.7 or 10.0.0.0/8"
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
        raise ValueError("it can be a path such as /dagster, without a slash at its end")
    return value


Switch = Annotated[bool, Field(strict=True), BeforeValidator(_true_or_false)]
"""True or false, and nothing that could be taken for either."""
WebAddress = Annotated[str, AfterValidator(_web_address)]
"""An http or https URL without a query; a slash at its end is dropped."""
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""Words between spaces or commas."""
SecretWords = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_at_spaces)]
"""Secrets between spaces or line ends."""


class Settings(BaseSettings):
    """A group of settings. Make it with `load`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )


class GeneralSettings(Settings):
    """What every process of a deployment reads."""

    store_url: SecretStr | None = Field(
        default=None,
        description="SQLAlchemy URL of the store: SQLite or PostgreSQL. Not set: the SQLite file "
        "`tidegate.db` in `DAGSTER_HOME`.",
    )
    enabled: Switch = Field(
        default=True,
        description="`false` is the kill switch: calls pass and are counted, nothing trips or "
        "pauses.",
    )
    public_url: WebAddress | None = Field(
        default=None,
        description="Where people reach the pages, for links in messages: "
        "`https://dagster.example.org`.",
    )
    opentelemetry: Switch = Field(
        default=False,
        description="`true`: runs and sensors tell OpenTelemetry what their breakers do. Needs the "
        "extra `otel`, and an SDK that is set up.",
    )


class ServeSettings(Settings):
    """What `tidegate serve` reads."""

    model_config = SettingsConfigDict(env_prefix="TIDEGATE_SERVE_")

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on. Beyond loopback a token must exist.",
    )
    port: int = Field(default=3000, ge=0, le=65535, description="Port; 0 takes a free one.")
    path_prefix: Annotated[str, AfterValidator(_path_prefix)] = Field(
        default="",
        description="Path below which everything is served, such as `/dagster`.",
    )
    workspace: Path | None = Field(
        default=None,
        description="The workspace file. Not set: `workspace.yaml` in the current directory; the "
        "API alone then starts no runs.",
    )
    allowed_hosts: Annotated[Words, AfterValidator(_host_names)] = Field(
        default=(),
        description="Names, besides loopback's, by which browsers may ask for the pages "
        "(the `Host` header), without scheme and port, separated by spaces or commas.",
    )
    trusted_proxies: Annotated[Words, AfterValidator(_proxies)] = Field(
        default=(),
        description="Addresses or networks of the proxies in front, whose `X-Forwarded-For` and "
        "`X-Forwarded-Proto` are believed, separated by spaces or commas.",
    )
    session_hours: float = Field(
        default=12.0,
        gt=0,
        le=720,
        description="How long a browser stays logged in, at the most; it ends with its token.",
    )
    requests_per_token: int = Field(
        default=1200, ge=1, description="How many requests a minute a token may make."
    )
    requests_per_address: int = Field(
        default=3000, ge=1, description="How many requests a minute a network address may make."
    )
    refusals_per_address: int = Field(
        default=10,
        ge=1,
        description="How many wrong tokens a minute of a network address are answered and logged "
        "one by one; further wrong ones are refused for a while, right ones never.",
    )
    request_bytes: int = Field(
        default=1_000_000,
        ge=10_000,
        le=100_000_000,
        description="How large the body of a request may be, in bytes.",
    )
    ui_changes: Literal["operator", "admin"] = Field(
        default="operator",
        description="The role that may change things in Dagster's own pages. They know no owners "
        "of campaigns: where you have some, use `admin`.",
    )


class AlertSettings(Settings):
    """What the sender of alerts reads."""

    model_config = SettingsConfigDict(env_prefix="TIDEGATE_ALERT_")

    urls: SecretWords = Field(
        default=(),
        description="Where alerts are sent to: Apprise URLs, separated by spaces, each with a name "
        "before it if you like: `ops=slack://... mailto://...`. They are secrets.",
    )
    hold_expires_within_s: float = Field(
        default=900.0,
        ge=0,
        le=86_400,
        description="A hold that ends by itself is told of so many seconds before, or after three "
        "quarters of its time.",
    )
    hold_older_than_s: float = Field(
        default=86_400.0,
        ge=60,
        description="A hold that is older is told of, in seconds.",
    )
    gate_stale_after_s: float = Field(
        default=180.0,
        ge=60,
        description="A gate of which a part has not finished its work for so many seconds is told "
        "of.",
    )
    in_doubt_after_s: float = Field(
        default=300.0,
        ge=0,
        description="Records that are in doubt for so many seconds are told of.",
    )
    resume_within_s: float = Field(
        default=600.0,
        ge=60,
        description="Paused runs that nothing holds, and that did not resume for so many seconds, "
        "are told of.",
    )
    repeat_after_s: float = Field(
        default=600.0,
        ge=10,
        description="After two messages within an hour of the same kind about the same thing, the "
        "next comes so many seconds after the one before; what happens meanwhile is summed up.",
    )
    per_minute: int = Field(
        default=10,
        ge=1,
        le=600,
        description="So many messages a minute at most; beyond that, alerts share one message.",
    )


GROUPS: tuple[type[Settings], ...] = (
    GeneralSettings,
    ServeSettings,
    AlertSettings,
)

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Effective:
    """A setting as it is in force.

    Attributes:
        variable: Its name in the environment.
        value: Its value as text; `HIDDEN` where it is a secret, None where there is none.
        source: `default`, `environment` or `command line`.
        description: What it is for.
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
        group: The group.
        given: Fields that a command line names; they come before the environment. None: not named.

    Raises:
        SettingsError: If a value can't be used. A secret is not repeated in the message.
    """
    named = {field: value for field, value in given.items() if value is not None}
    if named:
        return _validated(group, named)
    # A worker asks before each record, and the model takes a third of a millisecond.
    values = tuple(os.environ.get(variable(group, field)) for field in group.model_fields)
    return _from_environment(group, values)  # type: ignore[return-value]


def unknown(environment: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that looks like a setting and is none.

    Args:
        environment: The variables, by name.
    """
    return [
        f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else "")
        for name in sorted(environment)
        if _looks_like_ours(name.upper()) and name.upper() not in variables()
        for near in [get_close_matches(name.upper(), variables(), n=1, cutoff=0.8)]
    ]


def problems() -> list[str]:
    """Return a sentence for each setting of this process that is unknown or can't be used."""
    found = unknown(os.environ)
    for group in GROUPS:
        try:
            load(group)
        except SettingsError as error:
            found.append(str(error))
    return found


def effective(group: type[Settings], **given: Any) -> Iterator[Effective]:
    """Yield the settings of a group as they are in force, and where each comes from.

    Args:
        group: The group.
        given: Fields that a command line names, as for `load`.

    Raises:
        SettingsError: If a value can't be used.
    """
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
    """Return a value as text that may be printed, or None where there is none."""
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
    for found in error.errors(include_url=False):
        field = str(found["loc"][0])
        if field not in group.model_fields:
            yield f"{field} is not a setting of {group.__name__}"
            continue
        secret = "SecretStr" in str(group.model_fields[field].annotation)
        what = "has a value that can't be used" if secret else f"is {found['input']!r}"
        right = found["msg"].removeprefix("Value error, ")
        if found["type"] == "bool_type":
            right = "it can be true or false"
        yield f"{variable(group, field)} {what}; {right[0].lower()}{right[1:]}"
