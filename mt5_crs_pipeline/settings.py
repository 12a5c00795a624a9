"""The one place that reads the environment: variables MT5_CRS_*, and a `.env` file in the working directory."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from mt5_crs_pipeline.core.bars import check_symbol, check_timeframe
from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.core.market_time import ALWAYS_OPEN, FX, parse_calendars

ENVIRONMENT_PREFIX = "MT5_CRS_"
T = TypeVar("T")


class Settings(BaseSettings):
    """What a user can choose from outside; every default lives here."""

    # An empty variable counts as unset: an empty HOME must not make the working directory the state folder.
    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    home: Path = Path(".mt5_crs")
    database_url: SecretStr = SecretStr("")
    redis_url: SecretStr = SecretStr("")
    alert_urls: SecretStr = SecretStr("")
    timeframe: str = "D1"
    start: str = "2000-01"
    trading_cost: float | None = Field(default=None, ge=0, lt=1)
    noise_runs: int = Field(default=10, ge=0, le=1000)
    executor: Literal["in_process", "multiprocess"] = "in_process"
    symbols: Annotated[tuple[str, ...], NoDecode] = ()
    calendars: Annotated[dict[str, str], NoDecode] = {}

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        try:
            return value.expanduser().absolute()
        except RuntimeError as error:
            raise ConfigurationError(f"{ENVIRONMENT_PREFIX}HOME {str(value)!r} names no folder: {error}") from error

    @field_validator("timeframe")
    @classmethod
    def _known_timeframe(cls, value: str) -> str:
        return _naming("TIMEFRAME", check_timeframe, value)

    @field_validator("start")
    @classmethod
    def _month(cls, value: str) -> str:
        if not re.fullmatch(r"(19|20)\d\d-(0[1-9]|1[0-2])", value):
            raise ConfigurationError(f"{ENVIRONMENT_PREFIX}START {value!r} is no month: write it like 2015-01")
        return value

    @field_validator("symbols", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return names
        return tuple(_naming("SYMBOLS", check_symbol, name) for name in names if name)

    @field_validator("calendars", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        return _naming("CALENDARS", parse_calendars, value) if isinstance(value, str) else value

    @field_validator("calendars")
    @classmethod
    def _known_calendars(cls, value: dict[str, str]) -> dict[str, str]:
        exchanges = {symbol: name for symbol, name in value.items() if name not in (FX, ALWAYS_OPEN)}
        if exchanges:
            import exchange_calendars

            known = exchange_calendars.get_calendar_names(include_aliases=True)
            for symbol, name in exchanges.items():
                if name not in known:
                    choices = ", ".join(exchange_calendars.get_calendar_names(include_aliases=False))
                    raise ConfigurationError(
                        f"{ENVIRONMENT_PREFIX}CALENDARS: calendar {name!r} of {symbol} is unknown: choose one of"
                        f" {FX}, {ALWAYS_OPEN}, {choices}"
                    )
        return value

    @property
    def lake(self) -> Path:
        """Folder of the Parquet files of the chosen timeframe."""
        return self.home / "lake" / self.timeframe

    @property
    def models(self) -> Path:
        """Folder of the model bundles of the chosen timeframe."""
        return self.home / "models" / self.timeframe

    @property
    def recipe(self) -> Path:
        """File of the label and training settings of the chosen timeframe; without it the defaults hold."""
        return self.home / "recipes" / f"{self.timeframe}.json"

    @property
    def reports(self) -> Path:
        """Folder of the evaluation reports of the chosen timeframe."""
        return self.home / "reports" / self.timeframe

    @property
    def dagster_home(self) -> Path:
        """Folder that Dagster reads as DAGSTER_HOME."""
        return self.home / "dagster"


def _naming(variable: str, check: Callable[[str], T], value: str) -> T:
    """Return what `check` makes of `value`; its error begins with the variable's name."""
    try:
        return check(value)
    except ConfigurationError as error:
        raise ConfigurationError(f"{ENVIRONMENT_PREFIX}{variable}: {error}") from error


def load_settings() -> Settings:
    """Read the settings once; raise ConfigurationError with one line that names the variable and the choices."""
    try:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the file .env cannot be read as UTF-8 text: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        name = ENVIRONMENT_PREFIX + str(first["loc"][0]).upper()
        raise ConfigurationError(f"{name}: {first['msg']} (got {first['input']!r})") from error
