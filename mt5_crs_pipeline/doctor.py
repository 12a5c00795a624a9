"""What `mt5-crs doctor` looks at: each finding says what was examined, what was found, and whether it is right."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from mt5_crs_pipeline.adapters.bar_store import stored_symbols
from mt5_crs_pipeline.adapters.calendars import lake_attendance
from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.feast_store import FeastStore
from mt5_crs_pipeline.adapters.feature_parity import StoredMonths, parity_of_lake, parity_of_online_store
from mt5_crs_pipeline.adapters.lake import MARKET_DATA, TECHNICAL_FEATURES, Lake, read_parquet
from mt5_crs_pipeline.adapters.live_predictions import live_record
from mt5_crs_pipeline.adapters.model_store import ModelStore
from mt5_crs_pipeline.adapters.postgres import connected, describe
from mt5_crs_pipeline.adapters.versions import library_versions, package_version
from mt5_crs_pipeline.core.errors import PipelineError
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.core.live import NO_OUTCOME_YET
from mt5_crs_pipeline.core.parity import Parity
from mt5_crs_pipeline.settings import Settings


def examine(settings: Settings, rebuild: bool = False) -> Iterator[dict[str, Any]]:
    """Yield findings (what, found, ok), the database's first; an examination that fails is a finding too.

    With `rebuild` all months are built anew as well, and compared with the lake.
    """
    yield _finding("package", lambda: f"{package_version()} with {_versions()}")
    yield _finding("state folder", lambda: str(settings.home))
    database = Database(settings)
    try:
        with database.url() as url:
            yield _finding("database", lambda: _database(url, settings.timeframe))
            yield _finding("feature registry", lambda: _registry(url, settings))
            yield _finding("online features", lambda: _online_features(url, settings))
            yield _finding("live outcomes", lambda: _live(url, settings))
    except PipelineError as error:
        yield {"what": "database", "found": str(error), "ok": False}
    yield _finding("lake", lambda: _lake(Lake(settings.lake)))
    yield _finding("market time", lambda: _market_time(settings))
    yield _finding("stored features", lambda: _stored_features(Lake(settings.lake)))
    yield _finding("models", lambda: _models(ModelStore(settings.models)))
    if rebuild:
        yield _finding("rebuild", lambda: _rebuild(settings))


def _finding(what: str, look: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"what": what, "found": look(), "ok": True}
    except PipelineError as error:
        return {"what": what, "found": str(error), "ok": False}


def _versions() -> str:
    return ", ".join(f"{name} {version}" for name, version in library_versions().items())


def _database(url: str, timeframe: str) -> str:
    with connected(url) as connection:
        symbols = stored_symbols(connection, timeframe)
        with connection.cursor() as cursor:
            cursor.execute("select count(*) from market_data_quarantine")
            (quarantined,) = cursor.fetchall()[0]
    return f"{describe(url)}, {timeframe} bars of {len(symbols)} symbols, {quarantined} rows in quarantine"


def _registry(url: str, settings: Settings) -> str:
    with contextlib.closing(_feast(url, settings)) as store:
        registered = store.registered_feature_set()
    if registered is None:
        return "nothing applied yet"
    if registered != PIPELINE_FEATURES.feature_set_hash:
        raise PipelineError(f"holds feature set {registered[:12]}, the code computes another: run `mt5-crs retrain`")
    return f"feature set {registered[:12]}"


def _feast(url: str, settings: Settings) -> FeastStore:
    return FeastStore(url, settings.timeframe, settings.lake, settings.redis_url.get_secret_value())


def _lake(lake: Lake) -> str:
    files = sorted(lake.folder.rglob("*.parquet"))
    for path in files:
        read_parquet(path)
    return f"{len(files)} files read with their checksums verified"


def _market_time(settings: Settings) -> str:
    lake, now = Lake(settings.lake), datetime.now(UTC)
    found = lake_attendance(lake, lake.months(MARKET_DATA), settings.timeframe, settings.calendars, now)
    parts = []
    for calendar in sorted({one.calendar.name for one in found}):
        of = [one for one in found if one.calendar.name == calendar]
        states = Counter(one.state for one in of)
        gaps = [gap for one in of for gap in one.gaps]
        guessed = " (guessed)" if all(one.calendar.is_guess for one in of) else ""
        parts.append(
            f"{calendar}{guessed}: {len(of)} symbols, {states['ended']} ended, {len(gaps)} gaps"
            f" ({sum(gap.bars for gap in gaps)} bars), {states['outage']} outages"
        )
    said = "; ".join(parts) or "no bars yet"
    if late := [f"{one.symbol} since {one.outage.first:%Y-%m-%d %H:%M}" for one in found if one.outage]:
        raise PipelineError(f"{said}: no bars of {', '.join(late)} UTC: look after what delivers them")
    return said


def _stored_features(lake: Lake) -> str:
    return _equal(parity_of_lake(StoredMonths(lake, lake.months(TECHNICAL_FEATURES))))


def _rebuild(settings: Settings) -> str:
    # Dagster costs seconds that the other examinations need not pay.
    from mt5_crs_pipeline.rebuild import rebuild_check

    found = rebuild_check(settings)
    if found.different:
        raise PipelineError(f"{_first(found.different)} not what the bars give: delete them and run `mt5-crs retrain`")
    if found.waiting:
        raise PipelineError(
            f"{found.equal} files equal a full rebuild, {_first(found.waiting)} behind the table: `mt5-crs ui` computes"
            " them when its sensor looks, or run `mt5-crs retrain`"
        )
    return f"{found.equal} files equal a full rebuild byte for byte"


def _first(files: Sequence[str]) -> str:
    return f"{len(files)} files ({', '.join(files[:3])}{', ...' if len(files) > 3 else ''}) are"


def _online_features(url: str, settings: Settings) -> str:
    lake = Lake(settings.lake)
    with contextlib.closing(_feast(url, settings)) as store:
        if store.registered_feature_set() is None:
            return "nothing applied yet"
        return _equal(parity_of_online_store(store, lake, lake.months(TECHNICAL_FEATURES)))


def _live(url: str, settings: Settings) -> str:
    store = ModelStore(settings.models)
    if store.champion() is None:
        return "no champion: nothing is predicted live"
    with connected(url) as connection:
        record = live_record(connection, store, Lake(settings.lake))
    return record.sentence if record else NO_OUTCOME_YET


def _equal(parity: Parity) -> str:
    if parity.different:
        raise PipelineError(
            f"{parity.different} of {parity.values:,} values differ from a fresh computation, the first is"
            f" {parity.first_difference}: run `mt5-crs retrain`"
        )
    return f"{parity.values:,} values of {parity.rows} rows equal a fresh computation to the last bit"


def _models(store: ModelStore) -> str:
    versions = store.versions()
    for version in versions:
        store.load(version)
    champion = store.champion()
    return f"{len(versions)} verified, champion: {champion['model_version'] if champion else 'none'}"
