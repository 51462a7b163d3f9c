"""The settings of this deployment, from environment variables."""

from pathlib import Path
from typing import Self

from pydantic import AnyHttpUrl, Field, SecretStr, TypeAdapter, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class SettingsError(ValueError):
    """A variable has an invalid value; the message names it."""


class DemoSettings(BaseSettings):
    """The settings of this deployment: the variables that start with `DEMO_`."""

    model_config = SettingsConfigDict(
        env_prefix="DEMO_", env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    sandbox_url: str = Field(
        default="http://127.0.0.1:8765",
        description="Address of the sandbox, which simulates the third-party services.",
    )
    leads: Path | None = Field(
        default=None, description="Directory of the lead files. Default: `pipelines/leads`."
    )
    results_url: SecretStr | None = Field(
        default=None,
        description="SQLAlchemy URL of the results database. Default: the SQLite file "
        "`results.db` in `DAGSTER_HOME`.",
    )

    @field_validator("sandbox_url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        TypeAdapter(AnyHttpUrl).validate_python(url)
        return url.rstrip("/")

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            SettingsError: If a value is invalid.
        """
        try:
            return cls()
        except ValidationError as error:
            raise SettingsError(
                "; ".join(
                    f"DEMO_{str(flaw['loc'][0]).upper()} is invalid: {flaw['msg']}"
                    for flaw in error.errors(include_url=False)
                )
            ) from None
