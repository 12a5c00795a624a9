"""Feast: apply the definitions, materialize heads, point-in-time training rows, online reads.

feast is imported inside the functions: it costs seconds that most processes need not pay.
"""

import contextlib
import importlib.resources
import io
import string
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from psycopg2.extensions import parse_dsn

from mt5_crs_pipeline.adapters.feast_import import import_feast
from mt5_crs_pipeline.adapters.postgres import FEAST_SCHEMA, libpq_url, sqlalchemy_url
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP

TECHNICAL_FEATURES = "technical_features"
DIRECTION_MODEL = "direction_model"


def feast_environment(url: str, timeframe: str) -> dict[str, str]:
    """Return the variables that feature_store.yaml names, for the server at `url`; one Feast project per timeframe."""
    parts = parse_dsn(libpq_url(url))
    values = {
        "PROJECT": f"mt5_crs_{timeframe.lower()}",
        "REGISTRY": sqlalchemy_url(url, FEAST_SCHEMA),
        "HOST": parts.get("host", "localhost"),
        "PORT": parts.get("port", "5432"),
        "DATABASE": parts.get("dbname", "postgres"),
        "SCHEMA": FEAST_SCHEMA,
        "USER": parts.get("user", "postgres"),
        "PASSWORD": parts.get("password", ""),
        "SSLMODE": parts.get("sslmode", "prefer"),
    }
    return {f"MT5_CRS_FEAST_{name}": value for name, value in values.items()}


class FeastStore:
    """The Feast feature store of one lake and one server."""

    def __init__(self, url: str, timeframe: str, lake: Path) -> None:
        self.lake = lake
        self._environment = feast_environment(url, timeframe)
        self._store: Any = None

    @property
    def store(self) -> Any:
        """The feast.FeatureStore, opened at first use."""
        if self._store is None:
            import_feast()
            import yaml
            from feast import FeatureStore
            from feast.repo_config import RepoConfig

            folder = importlib.resources.files("feature_repo")
            raw = yaml.safe_load(folder.joinpath("feature_store.yaml").read_text("utf-8"))
            self._store = FeatureStore(
                config=RepoConfig(repo_path=Path(str(folder)), **_filled_in(raw, self._environment))
            )
        return self._store

    def apply(self) -> dict[str, int]:
        """Make the registry equal to the definitions; return how many of each kind there are now."""
        import_feast()
        from feature_repo.feature_definitions import build

        repository = build(self.lake)
        self.store.apply(repository.objects())
        return {
            "entities": len(self.store.list_entities()),
            "feature views": len(self.store.list_feature_views()),
            "feature services": len(self.store.list_feature_services()),
            "features": len(repository.technical_features.features),
        }

    def registered_feature_set(self) -> str | None:
        """Return the hash of the feature set the registry was last made equal to, or None before the first time."""
        views = {view.name: view for view in self.store.list_feature_views()}
        return views[TECHNICAL_FEATURES].tags.get("feature_set_hash") if TECHNICAL_FEATURES in views else None

    def materialize(self, start: datetime, end: datetime) -> None:
        """Write the newest row per symbol of those with event_timestamp in [start, end] to the online store.

        Stock stores write whatever comes, so `end` must reach the newest row of all: an older window alone would
        put older values over newer ones.
        """
        with _quiet():
            self.store.materialize(start, end, feature_views=[TECHNICAL_FEATURES])

    def training_rows(self, labels: pd.DataFrame, as_of: datetime | None = None) -> pd.DataFrame:
        """Return `labels` (symbol, event_timestamp, ...) joined with the features as known at each event_timestamp.

        What was recorded after `as_of` (aware) does not exist; None means that everything does.
        """
        import_feast()
        from mt5_crs_pipeline.adapters.asof_offline_store import as_of as seen_as_of

        with _quiet(), seen_as_of(as_of):
            job = self.store.get_historical_features(
                entity_df=labels, features=self.store.get_feature_service(DIRECTION_MODEL)
            )
            rows: pd.DataFrame = job.to_df()[[*labels.columns, *get_feature_names(PIPELINE_FEATURES)]]
        return rows

    def online_rows(self, symbols: list[str]) -> pd.DataFrame:
        """Return symbol, event_timestamp and the features of the newest materialized row; NaN where there is none."""
        response = self.store.get_online_features(
            features=[f"{TECHNICAL_FEATURES}:{name}" for name in get_feature_names(PIPELINE_FEATURES)],
            entity_rows=[{"symbol": symbol} for symbol in symbols],
        )
        names = get_feature_names(PIPELINE_FEATURES)
        rows: pd.DataFrame = response.to_df(include_event_timestamps=True)
        # Feast gives seconds since 1970, and 0 where it has no row.
        seconds = rows[f"{names[0]}__ts"]
        time = pd.to_datetime(seconds.where(seconds > 0), unit="s", utc=True).dt.as_unit("us")
        return rows[["symbol"]].assign(**{EVENT_TIMESTAMP: time}).join(rows[names].astype(float))

    def close(self) -> None:
        """Close the connections; Feast keeps them open and has no call of its own that does."""
        if self._store is None:
            return
        self._store.registry.write_engine.dispose()
        online_store = self._store._get_provider().online_store
        if online_store._conn is not None:
            online_store._conn.close()
        self._store = None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Feast's progress prints and its libraries' deprecation warnings away from our output."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _filled_in(node: Any, environment: dict[str, str]) -> Any:
    """Replace ${NAME} in every string of a parsed YAML document, so that values cannot change its structure."""
    if isinstance(node, dict):
        return {key: _filled_in(value, environment) for key, value in node.items()}
    return string.Template(node).substitute(environment) if isinstance(node, str) else node
