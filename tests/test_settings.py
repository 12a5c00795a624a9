"""Settings: read once, from the environment and `.env`, each bad value refused in one line."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from mt5_crs_pipeline.core.bars import TIMEFRAMES
from mt5_crs_pipeline.core.errors import ConfigurationError
from mt5_crs_pipeline.settings import Settings, load_settings

SECRET = "postgresql://user:t0p-s3cret@host/db"


def refused() -> str:
    with pytest.raises(ConfigurationError) as error:
        load_settings()
    text = str(error.value)
    assert text and "\n" not in text
    return text


def test_defaults_work_on_daily_bars_in_the_working_directory(tmp_path: Path) -> None:
    settings = load_settings()
    assert settings.home == tmp_path / ".mt5_crs"
    assert settings.database_url.get_secret_value() == settings.redis_url.get_secret_value() == ""
    assert (settings.timeframe, settings.start, settings.symbols) == ("D1", "2000-01", ())
    assert not settings.home.exists()


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "HOME": str(tmp_path / "state"),
        "DATABASE_URL": SECRET,
        "REDIS_URL": "redis://host",
        "ALERT_URLS": "json://a, mailto://b",
        "TIMEFRAME": "H1",
        "START": "2015-07",
        "NOISE_RUNS": "3",
        "EXECUTOR": "multiprocess",
        "SYMBOLS": " EURUSD, US30.cash ,,#AAPL ",
        "CALENDARS": " EURUSD=fx, BTCUSD = 24/7,,SAP=XETR, IBM=NYSE",
    }.items():
        monkeypatch.setenv(f"MT5_CRS_{name}", value)
    settings = load_settings()
    assert settings.home == tmp_path / "state"
    assert settings.database_url.get_secret_value() == SECRET
    assert settings.redis_url.get_secret_value() == "redis://host"
    assert (settings.timeframe, settings.start) == ("H1", "2015-07")
    assert (settings.noise_runs, settings.executor) == (3, "multiprocess")
    assert settings.symbols == ("EURUSD", "US30.cash", "#AAPL")
    assert settings.lake == tmp_path / "state" / "lake" / "H1"
    assert settings.models == tmp_path / "state" / "models" / "H1"
    assert settings.reports == tmp_path / "state" / "reports" / "H1"
    assert settings.dagster_home == tmp_path / "state" / "dagster"
    assert settings.alert_urls.get_secret_value() == "json://a, mailto://b"
    assert settings.calendars == {"EURUSD": "fx", "BTCUSD": "24/7", "SAP": "XETR", "IBM": "NYSE"}


def test_a_dotenv_file_counts_less_than_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MT5_CRS_TIMEFRAME=H4\nMT5_CRS_START=2011-01\nMT5_CRS_SYMBOLS=EURUSD\nOTHER=1\n")
    monkeypatch.setenv("MT5_CRS_START", "2012-02")
    settings = load_settings()
    assert (settings.timeframe, settings.start, settings.symbols) == ("H4", "2012-02", ("EURUSD",))


def test_an_empty_variable_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "HOME",
        "DATABASE_URL",
        "REDIS_URL",
        "ALERT_URLS",
        "TIMEFRAME",
        "START",
        "SYMBOLS",
        "CALENDARS",
        "TRADING_COST",
        "NOISE_RUNS",
        "EXECUTOR",
    ):
        monkeypatch.setenv(f"MT5_CRS_{name}", "")
    assert load_settings() == Settings()
    assert load_settings().home == tmp_path / ".mt5_crs"


def test_a_home_in_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MT5_CRS_HOME", "~/state")
    assert load_settings().home == tmp_path / "state"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TIMEFRAME", "H7", ["'H7'", *TIMEFRAMES]),
        ("TIMEFRAME", "d1", ["'d1'", "D1"]),
        ("START", "2015", ["'2015'", "2015-01"]),
        ("START", "2015-13", ["'2015-13'", "2015-01"]),
        ("START", "2015-01-01", ["'2015-01-01'"]),
        ("START", "2015-01\n", ["2015-01"]),
        ("TRADING_COST", "1", ["less than 1", "'1'"]),
        ("TRADING_COST", "-0.1", ["greater than or equal to 0", "'-0.1'"]),
        ("TRADING_COST", "nan", ["TRADING_COST", "nan"]),
        ("TRADING_COST", "cheap", ["number", "cheap"]),
        ("NOISE_RUNS", "-1", ["greater than or equal to 0", "'-1'"]),
        ("NOISE_RUNS", "1001", ["less than or equal to 1000", "'1001'"]),
        ("NOISE_RUNS", "2.5", ["integer", "'2.5'"]),
        ("EXECUTOR", "threads", ["'in_process' or 'multiprocess'", "'threads'"]),
        ("SYMBOLS", "EURUSD,../etc", ["'../etc'", "A-Z"]),
        ("SYMBOLS", "'; drop table market_data; --", ["drop table", "A-Z"]),
        ("SYMBOLS", "EUR USD", ["'EUR USD'"]),
        ("CALENDARS", "EURUSD", ["'EURUSD'", "EURUSD=fx"]),
        ("CALENDARS", "EUR USD=fx", ["'EUR USD'"]),
        ("CALENDARS", "IBM=XNYS,IBM=XETR", ["'IBM=XETR'", "XNYS already"]),
        ("CALENDARS", "BTCUSD=24/7,SAP=XETRA", ["'XETRA' of SAP", "fx, 24/7", "XNYS", "XETR"]),
        ("HOME", "~nobody-at-all/x", ["~nobody-at-all"]),
    ],
)
@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_bad_value_is_named_with_its_variable_and_the_choices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, words: list[str], place: str
) -> None:
    if place == "environment":
        monkeypatch.setenv(f"MT5_CRS_{variable}", value)
    else:
        (tmp_path / ".env").write_text(f'MT5_CRS_{variable}="{value}"\n')
    text = refused()
    assert f"MT5_CRS_{variable}" in text
    assert all(word in text for word in words), text


def test_values_given_in_code_are_checked_as_well() -> None:
    for bad in ({"symbols": ("EUR USD",)}, {"symbols": ["EUR USD"]}, {"timeframe": "H7"}, {"start": "x"}):
        with pytest.raises(ConfigurationError):
            Settings(**bad)  # type: ignore[arg-type]
    assert Settings(symbols=("EURUSD",)).symbols == ("EURUSD",)


def test_a_dotenv_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"MT5_CRS_START=\xff\xfe")
    assert ".env" in refused()


def test_a_secret_never_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MT5_CRS_DATABASE_URL", SECRET)
    monkeypatch.setenv("MT5_CRS_REDIS_URL", "redis://:t0p-s3cret@host")
    monkeypatch.setenv("MT5_CRS_ALERT_URLS", "mailto://me:t0p-s3cret@host")
    settings = load_settings()
    for shown in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json(), f"{settings}"):
        assert "s3cret" not in shown
    monkeypatch.setenv("MT5_CRS_TIMEFRAME", "H7")
    assert "s3cret" not in refused()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_settings().timeframe = "H1"
