"""Bad input gets one line with the value and the remedy, the right exit code, and leaves everything as it was."""

import contextlib
import importlib
import json
import os
import shutil
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from mt5_crs_pipeline import cli
from mt5_crs_pipeline.adapters.model_store import ModelStore
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.settings import Settings
from tests.adapters.small_model import VERSION, save_model
from tests.commands import environment, hashes, run, short_folder, succeed, write_daily_bars

NOBODY = 65534
COMMANDS = ("demo", "ingest", "retrain", "search", "predict", "report", "rollback", "ui", "roles", "doctor", "exec")
EXPORT = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>\r\n"
ROW = "2025.06.23\t00:00:00\t1.1\t1.2\t1.0\t1.1\t100\t0\t5\r\n"
as_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: only root can act as another OS user")


class Answer:
    """What a command said and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def fails(self, code: int, *words: object) -> None:
        """One line of error after the progress, with all `words` in it."""
        lines = [line for line in self.err.splitlines() if line and not line.startswith("  ")]
        assert len(lines) == 1 and lines[0].startswith("mt5-crs: "), self.err
        missing = [word for word in words if str(word) not in lines[0]]
        assert not missing, f"{missing} not in {lines[0]}"
        assert self.code == code, self.err
        assert "Traceback" not in self.err + self.out


Command = Callable[..., Answer]


@pytest.fixture
def mt5_crs(settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process, on a state folder and a database of the test's own."""
    monkeypatch.setenv("MT5_CRS_HOME", str(settings.home))
    monkeypatch.setenv("MT5_CRS_DATABASE_URL", settings.database_url.get_secret_value())
    # Dagster's environment is put into our own; a test must not hand it on.
    kept = dict(os.environ)

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["mt5-crs", *map(str, arguments)])
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        for name in set(os.environ) - set(kept):
            del os.environ[name]
        out, err = capfd.readouterr()
        return Answer(int(str(code or 0)), out, err)

    return call


@pytest.fixture
def model(settings: Settings) -> Path:
    """Folder of a small real model of AAPL and IBM."""
    return save_model(ModelStore(settings.models)).folder


def bars_file(folder: Path, name: str = "AAPL_D1.csv", first: str = "2012-01-01", last: str = "2012-12-31") -> Path:
    write_daily_bars(folder / name, first, last)
    return folder / name


# ---------------------------------------------------------------- help and options


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(mt5_crs: Command, command: str) -> None:
    answer = mt5_crs(command, "--help")
    assert answer.code == 0
    assert "Example" in answer.out and f"mt5-crs {command}" in answer.out.split("Example")[1]


def test_the_commands_are_those_of_the_contract(mt5_crs: Command) -> None:
    listed = mt5_crs("--help").out.split("Commands:")[1]
    assert {line.split()[0] for line in listed.splitlines() if line.strip()} == set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ingest"], ["give files, or --table NAME, or --terminal", "mt5-crs ingest --help"]),
        (["ingest", "a.csv", "--table", "t"], ["give files, or --table NAME, or --terminal"]),
        (["ingest", "--table", "t", "--column", "time"], ["OURS=THEIRS"]),
        (["ingest", "--table", "t", "--source-url-env", "NO_SUCH"], ["NO_SUCH", "not set"]),
        (["ingest", "--terminal"], ["--symbol", "--since"]),
        (["predict"], ["--symbol", "--bars"]),
        (["ui", "--port", "0"], ["0", "1<=x<=65535"]),
        (["ui", "--port", "web"], ["'web'"]),
        (["retrain", "--fast"], ["--fast", "mt5-crs retrain --help"]),
        (["search"], ["--trials", "mt5-crs search --help"]),
        (["search", "--trials", "0"], ["0", "1<=x<=1000"]),
        (["search", "--trials", "1001"], ["1001", "1<=x<=1000"]),
        (["search", "--trials", "many"], ["'many'"]),
        (["train"], ["'train'", "mt5-crs --help"]),
        (["exec", "no-such-program"], ["no-such-program", "installed"]),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(mt5_crs: Command, arguments: list[str], words: list[str]) -> None:
    mt5_crs(*arguments).fails(2, *words)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TIMEFRAME", "H7", ["MT5_CRS_TIMEFRAME", "H7", "H1", "D1"]),
        ("START", "2015-13", ["MT5_CRS_START", "2015-13", "2015-01"]),
        ("SYMBOLS", "AAPL,../x", ["MT5_CRS_SYMBOLS", "../x"]),
        ("DATABASE_URL", "mysql://u:secret@h/db", ["MT5_CRS_DATABASE_URL", "mysql", "postgresql://"]),
        ("DATABASE_URL", "localhost", ["MT5_CRS_DATABASE_URL", "postgresql://"]),
    ],
)
def test_a_bad_setting_is_one_line_and_exit_2(
    mt5_crs: Command, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: list[str]
) -> None:
    monkeypatch.setenv(f"MT5_CRS_{variable}", value)
    answer = mt5_crs("predict", "--symbol", "AAPL") if variable != "DATABASE_URL" else mt5_crs("retrain")
    answer.fails(2, *words)
    assert "secret" not in answer.err


def test_a_report_that_is_not_there_is_one_line_and_exit_1(mt5_crs: Command, settings: Settings) -> None:
    mt5_crs("report").fails(1, "no model", "mt5-crs retrain")
    mt5_crs("report", "--model", "20240101-abc").fails(1, "20240101-abc", "mt5-crs retrain")


def test_the_demo_refuses_another_timeframe(mt5_crs: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MT5_CRS_TIMEFRAME", "H1")
    mt5_crs("demo").fails(2, "MT5_CRS_TIMEFRAME=H1", "daily")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("EURUSD_H1.csv", None, ["EURUSD_H1.csv"]),
        ("EURUSD_H1.csv", b"", ["EURUSD_H1.csv", "empty"]),
        ("EURUSD_H1.csv", EXPORT.encode(), ["EURUSD_H1.csv", "no rows"]),
        ("EURUSD_H1.csv", bytes(range(256)) * 40, ["EURUSD_H1.csv"]),
        ("EURUSD_H1.parquet", b"PAR1 cut off", ["EURUSD_H1.parquet"]),
        ("EURUSD_H1.csv", b"a,b,c\n1,2,3\n", ["EURUSD_H1.csv", "'a', 'b', 'c'"]),
        (
            "two_D1.csv",
            b"Symbol,Date,Open,High,Low,Close,Volume\nA,2024-01-02,1,1,1,1,1\nB,2024-01-02,1,1,1,1,1\n",
            ["two_D1.csv", "A", "B"],
        ),
        ("export.csv", (EXPORT + ROW).encode(), ["export.csv", "--symbol"]),
    ],
    ids=["missing", "empty", "header only", "binary", "truncated", "unknown columns", "two symbols", "unnamed"],
)
def test_a_file_without_bars_is_refused_and_nothing_is_stored(
    mt5_crs: Command, settings: Settings, tmp_path: Path, name: str, content: bytes | None, words: list[str]
) -> None:
    good = bars_file(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    answer = mt5_crs("ingest", good, tmp_path / name)
    answer.fails(2 if name == "export.csv" else 1, *words)
    assert stored_rows(settings) in (None, 0)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--timezone", "Mars/Olympus", ["Mars/Olympus", "mt5-server"]),
        ("--timeframe", "H7", ["H7", "H1"]),
        *(
            ("--symbol", value, ["symbol"])
            for value in ("../x", "x'; drop table market_data; --", 'a"b', "a\nb", "€/$")
        ),
        ("--symbol", "", ["symbol"]),
    ],
)
def test_a_hostile_or_senseless_option_is_refused_with_its_value(
    mt5_crs: Command, settings: Settings, tmp_path: Path, option: str, value: str, words: list[str]
) -> None:
    mt5_crs("ingest", bars_file(tmp_path), option, value).fails(2, *words)
    assert stored_rows(settings) in (None, 0)


def test_ingest_says_which_zone_it_used_and_counts_every_row(mt5_crs: Command, tmp_path: Path) -> None:
    file = tmp_path / "EURUSD_H1.csv"
    file.write_text(EXPORT + ROW + ROW.replace("00:00", "01:00").replace("1.2", "0.9"), newline="")
    said = mt5_crs("ingest", file)
    assert (said.code, said.err) == (0, "")
    assert "times read as mt5-server (New York + 7 h)" in said.out
    assert "1 inserted, 0 unchanged, 0 revised, 1 quarantined" in said.out
    assert "quarantined 1: " in said.out
    (report,) = json.loads(mt5_crs("ingest", file, "--json").out)
    assert report["counts"] == {"inserted": 0, "unchanged": 1, "revised": 0, "quarantined": 1}
    assert report["timezone"] == "mt5-server (New York + 7 h)"
    assert report["first"] == "2025-06-22T21:00:00Z"


# ---------------------------------------------------------------- database


def test_an_unreachable_database_is_one_line(mt5_crs: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MT5_CRS_DATABASE_URL", "postgresql://me:secret@127.0.0.1:1/bars")
    for command in (["retrain"], ["ingest", bars_file(tmp_path)], ["exec", "true"], ["ui", "--port", "39977"]):
        answer = mt5_crs(*command)
        answer.fails(1, "me@127.0.0.1:1/bars", "MT5_CRS_DATABASE_URL")
        assert "secret" not in answer.err


def test_a_refused_login_is_one_line(mt5_crs: Command, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    url = settings.database_url.get_secret_value()
    monkeypatch.setenv("MT5_CRS_DATABASE_URL", url.replace("mt5_crs@", "stranger:secret@"))
    answer = mt5_crs("retrain")
    answer.fails(1, "refused", "stranger", "MT5_CRS_DATABASE_URL")
    assert "secret" not in answer.err


def test_a_foreign_table_is_refused_with_the_difference_and_left_alone(mt5_crs: Command, settings: Settings) -> None:
    execute(settings, "create table market_data (ticker text); insert into market_data values ('AAPL')")
    mt5_crs("retrain").fails(1, "market_data", "ticker", "MT5_CRS_DATABASE_URL")
    assert execute(settings, "select * from market_data") == [("AAPL",)]


# ---------------------------------------------------------------- retrain


def test_retrain_without_bars_names_the_next_step(mt5_crs: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    mt5_crs("retrain").fails(1, "no D1 bars are stored", "mt5-crs ingest")
    monkeypatch.setenv("MT5_CRS_SYMBOLS", "TSLA")
    mt5_crs("retrain").fails(1, "TSLA", "mt5-crs ingest")


@pytest.mark.parametrize("time", ["2026-01-31T18:00:00", "soon", "", "2026-02-30T00:00:00Z"])
def test_retrain_as_of_what_is_no_instant_is_bad_usage(mt5_crs: Command, time: str) -> None:
    mt5_crs("retrain", "--as-of", time).fails(2, repr(time), "with its offset, for example 2026-01-31T18:00:00+00:00")


def test_retrain_as_of_a_time_before_the_first_bar_came_names_both(settings: Settings, tmp_path: Path) -> None:
    url = settings.database_url.get_secret_value()
    run(settings.home, "ingest", bars_file(tmp_path, last="2012-01-20"), DATABASE_URL=url)
    done = run(settings.home, "retrain", "--as-of", "2012-06-01T02:00:00+02:00", DATABASE_URL=url, START="2012-01")
    Answer(done.returncode, done.stdout, done.stderr).fails(1, "as of 2012-06-01T00:00:00+00:00", "was recorded at")


def test_retrain_from_after_the_last_bar_names_both(
    mt5_crs: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert mt5_crs("ingest", bars_file(tmp_path)).code == 0
    monkeypatch.setenv("MT5_CRS_START", "2013-01")
    mt5_crs("retrain").fails(1, "MT5_CRS_START=2013-01", "2012-01", "2012-12")


def test_retrain_on_fewer_bars_than_the_features_need_names_both(
    mt5_crs: Command, settings: Settings, tmp_path: Path
) -> None:
    assert mt5_crs("ingest", bars_file(tmp_path, last="2012-01-20")).code == 0
    done = run(settings.home, "retrain", DATABASE_URL=settings.database_url.get_secret_value(), START="2012-01")
    assert (
        Answer(done.returncode, done.stdout, done.stderr).fails(1, "no training rows", "13 bars", "ingest more") is None
    )


# ---------------------------------------------------------------- predict


def test_predict_from_stored_bars_and_from_their_file_agree(mt5_crs: Command, model: Path, tmp_path: Path) -> None:
    file = bars_file(tmp_path)
    assert mt5_crs("ingest", file).code == 0
    stored = json.loads(mt5_crs("predict", "--symbol", "AAPL", "--json").out)
    assert stored == json.loads(mt5_crs("predict", "--bars", file, "--json").out)
    assert stored["bar_close"] == "2013-01-01T00:00:00+00:00"
    assert stored["model_version"] == model.name == VERSION
    said = mt5_crs("predict", "--symbol", "AAPL")
    assert said.err == "" and "unproven" in said.out


def test_predict_of_what_is_not_known_says_what_is(
    mt5_crs: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mt5_crs("ingest", bars_file(tmp_path)).code == 0
    assert mt5_crs("ingest", bars_file(tmp_path, "TSLA_D1.csv")).code == 0
    mt5_crs("predict", "--symbol", "x' or '1'='1").fails(1, "x' or '1'='1", "stored are AAPL, TSLA")
    mt5_crs("predict", "--symbol", "TSLA").fails(1, "TSLA", "AAPL, IBM")
    mt5_crs("predict", "--symbol", "AAPL", "--model", "20990101-x").fails(1, "20990101-x")
    mt5_crs("predict", "--symbol", "AAPL", "--model", "../../x").fails(1, "../../x")
    mt5_crs("predict", "--bars", bars_file(tmp_path, "AAPL_H1.csv")).fails(2, "H1", "MT5_CRS_TIMEFRAME=H1")
    mt5_crs("predict", "--bars", bars_file(tmp_path, last="2012-01-10")).fails(
        1, "6 closed D1 bars", str(PIPELINE_FEATURES.lookback)
    )
    mt5_crs("predict", "--bars", tmp_path / "absent_D1.csv").fails(1, "absent_D1.csv")


def test_predict_without_a_model_names_the_next_step(mt5_crs: Command) -> None:
    mt5_crs("predict", "--symbol", "AAPL").fails(1, "no model", "mt5-crs retrain")


@pytest.mark.parametrize("name", ["model.ubj", "model_metadata.json", "SHA256SUMS"])
def test_predict_refuses_a_damaged_bundle(mt5_crs: Command, model: Path, name: str) -> None:
    content = bytearray((model / name).read_bytes())
    content[len(content) // 2] ^= 1
    (model / name).write_bytes(content)
    mt5_crs("predict", "--symbol", "AAPL").fails(1, VERSION, "SHA256SUMS", "retrain")


def test_predict_refuses_a_foreign_bundle(mt5_crs: Command, settings: Settings) -> None:
    foreign = settings.models / "20200101-foreign"
    foreign.mkdir(parents=True)
    (foreign / "model_metadata.json").write_text("{}")
    mt5_crs("predict", "--symbol", "AAPL").fails(1, "20200101-foreign", "no model bundle")


# ---------------------------------------------------------------- state folder


def test_a_file_in_the_way_of_the_state_folder_is_named(
    mt5_crs: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MT5_CRS_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("MT5_CRS_DATABASE_URL")
    mt5_crs("retrain").fails(1, tmp_path / "file", "MT5_CRS_HOME")


@as_root_only
@pytest.mark.parametrize("with_server", [False, True], ids=["embedded", "own server"])
def test_a_state_folder_without_write_permission_is_named(with_server: bool) -> None:
    with short_folder() as folder:
        folder.chmod(0o755)
        home = folder / "home"
        home.mkdir(mode=0o755)
        (home / "models").mkdir(mode=0o755)
        url = "postgresql://me@127.0.0.1:1/x" if with_server else ""
        answer = as_nobody(["ui", "--port", "39978"] if with_server else ["retrain"], home, url)
        answer.fails(1, home, "MT5_CRS_HOME")
        assert not hashes(home)


@as_root_only
def test_a_full_disk_is_named_with_its_remedy(settings: Settings, tmp_path: Path) -> None:
    file = bars_file(tmp_path, first="2010-01-01")
    with short_folder() as folder, small_disk(folder / "disk", "1m") as disk:
        done = run(disk / "home", "ingest", file)
        Answer(done.returncode, done.stdout, done.stderr).fails(1, disk / "home")
        shutil.rmtree(disk / "home")
        url = {"DATABASE_URL": settings.database_url.get_secret_value(), "START": "2010-01"}
        succeed(disk / "home", "ingest", file, **url)
        (disk / "ballast").write_bytes(b"0" * (shutil.disk_usage(disk).free - 200_000))
        done = run(disk / "home", "retrain", **url)
        Answer(done.returncode, done.stdout, done.stderr).fails(1, "disk is full", "free space")
        assert not list(disk.rglob(".partial-*"))


# ---------------------------------------------------------------- helpers


def stored_rows(settings: Settings) -> int | None:
    """Rows in market_data, or None where nobody has made the table yet."""
    exists = execute(settings, "select to_regclass('market_data') is not null") == [(True,)]
    return int(str(execute(settings, "select count(*) from market_data")[0][0])) if exists else None


def execute(settings: Settings, sql: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(settings.database_url.get_secret_value())
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("SKIPPED LOUDLY: no right to mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def as_nobody(arguments: list[str], home: Path, database_url: str) -> Answer:
    """Run the command line in a forked child that has become the user nobody.

    A fork, because this Python may lie where no other user can start it.
    """
    for module in ("adapters.embedded_postgres", "definitions", "ui"):  # what nobody may not read
        importlib.import_module(f"mt5_crs_pipeline.{module}")
    with (home.parent / "said").open("w+b") as said:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            os.environ.update(environment(home, DATABASE_URL=database_url))
            os.chdir(home)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            sys.argv, sys.stderr = ["mt5-crs", *arguments], os.fdopen(2, "w", closefd=False)
            try:
                cli.main()
            except SystemExit as end:
                sys.stderr.flush()
                os._exit(int(str(end.code or 0)))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(99)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return Answer(os.waitstatus_to_exitcode(status), "", said.read().decode())


def test_the_state_folder_is_for_its_owner_alone(mt5_crs: Command, settings: Settings, tmp_path: Path) -> None:
    assert mt5_crs("exec", "true").code == 0
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700
