"""The command line: mt5-crs demo, ingest, retrain, search, predict, report, rollback, ui, roles, doctor, exec."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from mt5_crs_pipeline.core.errors import ConfigurationError, PipelineError
from mt5_crs_pipeline.settings import Settings, load_settings

JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def main() -> None:
    """Run the command line; every expected error is one line on stderr and exit 1, or 2 for bad usage."""
    # XGBoost's threads spin while they wait for each other: on a busy machine training then takes eight times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        commands(prog_name="mt5-crs", standalone_mode=False)
    except ConfigurationError as error:
        _fail(str(error), 2)
    except PipelineError as error:
        _fail(str(error), 1)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "mt5-crs"
        _fail(f"{error.format_message()}; see `{command} --help`", 2)
    except click.ClickException as error:
        _fail(error.format_message(), 1)
    except (click.Abort, KeyboardInterrupt) as stop:
        # Click puts its own exception in the place of one that may say more.
        said = str(stop.__cause__ or "")
        _fail(said or "interrupted: what was finished is kept, nothing is half written", 130)


def _fail(message: str, code: int) -> None:
    click.echo(f"mt5-crs: {message}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mt5-crs-pipeline", prog_name="mt5-crs")
def commands() -> None:
    """Market bars in, an honestly judged direction model out.

    State lives in MT5_CRS_HOME (default: .mt5_crs in this folder). First steps: mt5-crs demo
    """


@commands.command(epilog="Example: mt5-crs demo")
@JSON_OPTION
def demo(as_json: bool) -> None:
    """Run everything on real daily bars of five stocks: ingest, features, training, evaluation, prediction."""
    from mt5_crs_pipeline.adapters import demo_bars
    from mt5_crs_pipeline.adapters.bar_store import ingest as store
    from mt5_crs_pipeline.adapters.database import Database
    from mt5_crs_pipeline.inference import predict_stored

    settings = load_settings()
    if settings.timeframe != demo_bars.TIMEFRAME:
        raise ConfigurationError(f"the demo's bars are daily: unset MT5_CRS_TIMEFRAME={settings.timeframe}")
    started = time.monotonic()
    database = Database(settings)
    with _step("starting PostgreSQL"), contextlib.ExitStack() as running:
        url = running.enter_context(database.url())
        stay = running.pop_all()
    with stay:
        with _step("reading bars of " + ", ".join(demo_bars.SYMBOLS)):
            bars = demo_bars.demo_bars()
        with _step("storing them"):
            counts = store(url, bars, demo_bars.TIMEFRAME, demo_bars.SOURCE, datetime.now(UTC))
        click.echo(_counts_line(counts.to_dict()), err=True)
        result = _retrain(settings, database)
        predictions = [predict_stored(settings, symbol).to_dict() for symbol in demo_bars.SYMBOLS]
    result = {"bars": counts.to_dict(), **result, "predictions": predictions, "seconds": time.monotonic() - started}
    if as_json:
        click.echo(json.dumps(result))
        return
    _print_model(result)
    click.echo()
    for prediction in predictions:
        _print_prediction(prediction)
    click.echo(f"\nDone in {result['seconds']:.0f} s. Next: open the report, or `mt5-crs ui` for the Dagster UI.")


@commands.command(epilog="Example: mt5-crs ingest EURUSD_H1.csv GBPUSD_H1.csv")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--symbol", help="Instrument, where neither file name nor columns say so.")
@click.option("--timeframe", help="M1 ... H1 ... D1, W1, MN1, where neither file name nor columns say so.")
@click.option(
    "--timezone",
    help="Zone of the times: mt5-server (New York + 7 h; default for MetaTrader files) or an IANA name"
    " such as Europe/Athens (default for other files: UTC).",
)
@click.option("--table", help="Take bars over from this table ([schema.]name) instead of files.")
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS", help="Column of --table; repeatable.")
@click.option("--source-url-env", help="Environment variable with the URL of the database that --table is in.")
@click.option("--terminal", is_flag=True, help="Read from a running MetaTrader 5 terminal (Windows, extra `mt5`).")
@click.option("--since", type=click.DateTime(["%Y-%m-%d"]), help="First day (UTC) to read with --terminal.")
@JSON_OPTION
def ingest(files: tuple[Path, ...], as_json: bool, **options: Any) -> None:
    """Store bars, append-only: MetaTrader 5 exports, copy_rates files, OHLCV as CSV or Parquet, or a table.

    Every row is inserted, unchanged, revised (kept beside the old version) or quarantined with a reason.
    """
    from mt5_crs_pipeline.ingest import ingest_files, ingest_table, ingest_terminal

    ways = bool(files) + bool(options["table"]) + options["terminal"]
    if ways != 1:
        raise click.UsageError("give files, or --table NAME, or --terminal")
    settings = load_settings()
    if options["table"]:
        mapping = dict(pair.split("=", 1) for pair in options["columns"] if "=" in pair)
        if len(mapping) != len(options["columns"]):
            raise click.UsageError("--column takes OURS=THEIRS, for example --column time=ts")
        reports = ingest_table(
            settings,
            options["table"],
            mapping,
            source_url=_from_environment(options["source_url_env"]),
            symbol=options["symbol"],
            timeframe=options["timeframe"],
            timezone=options["timezone"],
        )
    elif options["terminal"]:
        if not (options["symbol"] and options["since"]):
            raise click.UsageError("--terminal needs --symbol and --since")
        reports = ingest_terminal(
            settings,
            options["symbol"],
            options["timeframe"] or settings.timeframe,
            options["since"].replace(tzinfo=UTC),
        )
    else:
        reports = ingest_files(settings, list(files), options["symbol"], options["timeframe"], options["timezone"])
    told = []
    for report in reports:
        told.append(report)
        if not as_json:
            click.echo(
                f"{report['source']}: {report['symbols']} {report['timeframe']}, times read as {report['timezone']}"
            )
            click.echo(_counts_line(report["counts"], report["first"], report["last"]))
            for reason, rows in report["reasons"].items():
                click.echo(f"    quarantined {rows:,}: {reason}")
    if as_json:
        click.echo(json.dumps(told))


@commands.command(epilog="Example: MT5_CRS_TIMEFRAME=H1 mt5-crs retrain")
@click.option(
    "--as-of",
    metavar="TIME",
    help="Train on what was recorded by then, for example 2026-01-31T18:00:00+00:00 (default: on everything).",
)
@JSON_OPTION
def retrain(as_of: str | None, as_json: bool) -> None:
    """Run the daily_retrain job now, over every month that has bars: features, model, evaluation, verdict."""
    from mt5_crs_pipeline.adapters.database import Database
    from mt5_crs_pipeline.core.bars import instant

    settings = load_settings()
    result = _retrain(settings, Database(settings), instant(as_of) if as_of is not None else None)
    if as_json:
        click.echo(json.dumps(result))
    else:
        _print_model(result)


@commands.command(epilog="Example: mt5-crs search --trials 20")
@click.option(
    "--trials",
    required=True,
    type=click.IntRange(1, 1000),
    help="How many settings to try. Each is a recipe that counts: N of them raise the evidence asked of all by ln N.",
)
@click.option(
    "--write", is_flag=True, help="Put the best settings into the recipe file; `mt5-crs retrain` trains them."
)
@JSON_OPTION
def search(trials: int, write: bool, as_json: bool) -> None:
    """Search training settings at random, each judged out of sample on the stored training set and counted as tried."""
    from mt5_crs_pipeline.search import search, summary

    outcome = search(load_settings(), trials, write, lambda text: click.echo(text, nl=False, err=True))
    click.echo(json.dumps(outcome.to_dict()) if as_json else "\n".join(summary(outcome)))


@commands.command(epilog="Examples: mt5-crs predict --symbol AAPL    mt5-crs predict --bars EURUSD_H1.csv")
@click.option("--symbol", help="Instrument whose stored bars to predict from; with --bars, the file's instrument.")
@click.option("--bars", type=click.Path(path_type=Path), help="File with the bars to predict from.")
@click.option("--timezone", help="Zone of the file's times, as for ingest.")
@click.option("--model", "version", help="Model version (default: the champion, else the newest).")
@JSON_OPTION
def predict(symbol: str | None, bars: Path | None, timezone: str | None, version: str | None, as_json: bool) -> None:
    """Say whether the price is likelier to rise or not, and how far to trust it."""
    from mt5_crs_pipeline.inference import PricePredictor, predict_stored

    settings = load_settings()
    if bars:
        from mt5_crs_pipeline.adapters.mt5 import read_bars

        file = read_bars(bars, symbol=symbol, timeframe=None, timezone=timezone)
        if file.timeframe != settings.timeframe:
            raise ConfigurationError(
                f"{bars} holds {file.timeframe} bars, the models in use are of {settings.timeframe}:"
                f" set MT5_CRS_TIMEFRAME={file.timeframe}"
            )
        result = PricePredictor(settings.models, version).predict_from_ohlcv(file.bars).to_dict()
    elif symbol:
        result = predict_stored(settings, symbol, version).to_dict()
    else:
        raise click.UsageError("give --symbol or --bars")
    if as_json:
        click.echo(json.dumps(result))
    else:
        _print_prediction(result)


@commands.command(epilog="Example: MT5_CRS_TIMEFRAME=H1 mt5-crs rollback")
@JSON_OPTION
def rollback(as_json: bool) -> None:
    """Return to the champion before this one, once its files are verified and it has predicted from stored bars."""
    from mt5_crs_pipeline.rollback import return_to_earlier_champion

    result = return_to_earlier_champion(load_settings())
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"Champion is {result['model_version']} again; it replaces {result['replaced'] or 'a model that is gone'}"
    )
    _print_prediction(result["prediction"])


@commands.command(epilog="Example: mt5-crs report --open")
@click.option("--open", "show", is_flag=True, help="Show it in the web browser.")
@click.option("--model", "version", help="Model version (default: the newest).")
@JSON_OPTION
def report(show: bool, version: str | None, as_json: bool) -> None:
    """Print the path of a model's report, or open it."""
    from mt5_crs_pipeline.adapters.model_store import ModelStore
    from mt5_crs_pipeline.core.errors import InputError

    settings = load_settings()
    chosen = version or next(reversed(ModelStore(settings.models).versions()), None)
    if chosen is None:
        raise InputError(f"no model in {settings.models}: run `mt5-crs retrain` first")
    path = settings.reports / f"{chosen}.html"
    if not path.is_file():
        raise InputError(f"there is no report of model {chosen} in {settings.reports}: run `mt5-crs retrain`")
    click.echo(json.dumps({"model_version": chosen, "report": str(path)}) if as_json else path)
    if show:
        click.launch(str(path))


@commands.command(epilog="Example: mt5-crs ui --port 3001")
@click.option("--port", default=3000, show_default=True, type=click.IntRange(1, 65535))
def ui(port: int) -> None:
    """Start the database, the Dagster UI and the daemon; Ctrl-C stops all of it."""
    from mt5_crs_pipeline.ui import serve_ui

    serve_ui(load_settings(), port, click.echo)


@commands.command(epilog="Example: mt5-crs roles --sql")
@click.option("--sql", is_flag=True, help="Print the statements for an administrator to run, and change nothing.")
def roles(sql: bool) -> None:
    """Create the SQL roles mt5_crs_reader and mt5_crs_writer, to be granted to logins of your own."""
    from mt5_crs_pipeline.adapters.database import Database
    from mt5_crs_pipeline.adapters.roles import READER, WRITER, create_roles, roles_sql

    with Database(load_settings()).url() as url:
        if sql:
            click.echo(roles_sql(url))
            return
        schema = create_roles(url)
    click.echo(f"{READER} may read schema {schema} and feast, {WRITER} may add bars: grant them to your logins")


@commands.command(epilog="Example: mt5-crs doctor")
@click.option(
    "--rebuild-check",
    is_flag=True,
    help="Also build all months anew from the table, beside the lake, and compare every file byte for byte.",
)
@JSON_OPTION
def doctor(rebuild_check: bool, as_json: bool) -> None:
    """Check settings, database, stored files, models and registry; exit 1 when something is wrong."""
    from mt5_crs_pipeline.doctor import examine

    findings = []
    for finding in examine(load_settings(), rebuild_check):
        findings.append(finding)
        if not as_json:
            click.echo(f"{'ok  ' if finding['ok'] else 'FAIL'} {finding['what']}: {finding['found']}")
    if as_json:
        click.echo(json.dumps(findings))
    if not all(finding["ok"] for finding in findings):
        sys.exit(1)


@commands.command(
    "exec",
    context_settings={"ignore_unknown_options": True},
    epilog="Example: mt5-crs exec feast -c feature_repo entities list",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(command: tuple[str, ...]) -> None:
    """Run another program, such as feast, dagster or psql, with the database up and the environment it needs."""
    import subprocess

    from mt5_crs_pipeline.adapters.database import Database
    from mt5_crs_pipeline.runner import child_environment, prepare_dagster_home

    settings = load_settings()
    with Database(settings).url() as url:
        prepare_dagster_home(settings)
        environment = child_environment(settings, url)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
        try:
            code = subprocess.run(command, env=environment, check=False).returncode
        except FileNotFoundError as error:
            raise ConfigurationError(f"no program {command[0]!r} is installed here") from error
    sys.exit(code)


def _retrain(settings: Settings, database: Any, as_of: datetime | None = None) -> dict[str, Any]:
    """Run the job and return what the newest model is worth."""
    with _step("loading Dagster"):
        from mt5_crs_pipeline.runner import newest_result, retrain
    retrain(settings, database, lambda text: click.echo(text, err=True), as_of)
    return newest_result(settings)


def _from_environment(name: str | None) -> str | None:
    if name is None:
        return None
    if not os.environ.get(name):
        raise ConfigurationError(f"--source-url-env {name}: that environment variable is not set")
    return os.environ[name]


@contextlib.contextmanager
def _step(text: str) -> Iterator[None]:
    """Show on stderr what is being waited for, and how long it took."""
    started = time.monotonic()
    click.echo(f"  {text} ...", nl=False, err=True)
    try:
        yield
    except BaseException:
        click.echo(err=True)
        raise
    click.echo(f" {time.monotonic() - started:.1f} s", err=True)


def _counts_line(counts: dict[str, int], first: str | None = None, last: str | None = None) -> str:
    said = ", ".join(f"{rows:,} {what}" for what, rows in counts.items())
    return f"    {said}" + (f"; first bar {first}, last {last}" if first else "")


def _print_model(result: dict[str, Any]) -> None:
    outcome = "promoted" if result["promoted"] else f"not promoted, {result['kind']}"
    click.echo(f"\nModel {result['model_version']}: {outcome}")
    click.echo(f"  {result['verdict']}")
    click.echo(f"  champion: {result['champion'] or 'none yet, the newest model answers'}")
    click.echo(f"  report: {result['report']}")


def _print_prediction(prediction: dict[str, Any]) -> None:
    bars = prediction["horizon_bars"]
    click.echo(
        f"{prediction['symbol']}: {prediction['direction']} with {prediction['confidence']:.1%} for the"
        f" {'bar' if bars == 1 else f'{bars} bars'} after"
        f" {prediction['bar_close']} ({prediction['note']})"
    )


if __name__ == "__main__":
    main()
