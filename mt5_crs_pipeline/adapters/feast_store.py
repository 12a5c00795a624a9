"""Feast: apply the definitions, write heads, point-in-time training rows, online reads.

feast is imported inside the functions: it costs seconds that most processes need not pay.
"""

import contextlib
import importlib.resources
import io
import math
import string
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml
from psycopg2.extensions import parse_dsn

from mt5_crs_pipeline.adapters.feast_import import import_feast
from mt5_crs_pipeline.adapters.online_store import OnlineStore, OnlineWrite
from mt5_crs_pipeline.adapters.postgres import FEAST_SCHEMA, libpq_url, sqlalchemy_url
from mt5_crs_pipeline.adapters.redis_address import feast_connection_string, one_line_redis_errors
from mt5_crs_pipeline.core.errors import FeaturesNotStoredError
from mt5_crs_pipeline.core.feature_rows import PIPELINE_FEATURES
from mt5_crs_pipeline.core.features import get_feature_names
from mt5_crs_pipeline.core.labels import EVENT_TIMESTAMP
from mt5_crs_pipeline.core.online import OnlineFeatures, StoredRow, servable

TECHNICAL_FEATURES = "technical_features"
DIRECTION_MODEL = "direction_model"
_NAMES = get_feature_names(PIPELINE_FEATURES)


def feast_environment(url: str, timeframe: str, redis_url: str = "") -> dict[str, str]:
    """Return the variables that feature_store.yaml names, for the server at `url`; one Feast project per timeframe.

    The online store is in Redis where there is a `redis_url`. Every value is YAML: no character of a password, which
    some contain, can change the configuration's structure.
    """
    values: dict[str, str | dict[str, str]] = {
        "PROJECT": f"mt5_crs_{timeframe.lower()}",
        "REGISTRY": sqlalchemy_url(url, FEAST_SCHEMA),
        "ONLINE_STORE": _in_redis(redis_url) if redis_url else _in_postgres(url),
    }
    return {f"MT5_CRS_FEAST_{name}": _as_yaml(value) for name, value in values.items()}


def _in_redis(redis_url: str) -> dict[str, str]:
    return {"type": "redis", "connection_string": feast_connection_string(redis_url)}


def _in_postgres(url: str) -> dict[str, str]:
    parts = parse_dsn(libpq_url(url))
    return {
        "type": "postgres",
        "host": parts.get("host", "localhost"),
        "port": parts.get("port", "5432"),
        "database": parts.get("dbname", "postgres"),
        "db_schema": FEAST_SCHEMA,
        "user": parts.get("user", "postgres"),
        "password": parts.get("password", ""),
        "sslmode": parts.get("sslmode", "prefer"),
    }


def _as_yaml(value: str | dict[str, str]) -> str:
    """Return `value` as YAML in one line, every string in double quotes and ASCII."""
    text: str = yaml.safe_dump(value, default_flow_style=True, default_style='"', width=math.inf)
    return text.strip()


class FeastStore:
    """The Feast feature store of one lake, one server and, for the online rows, perhaps a Redis server."""

    def __init__(self, url: str, timeframe: str, lake: Path, redis_url: str = "") -> None:
        self.lake = lake
        self._url = url
        self._redis_url = redis_url
        self._environment = feast_environment(url, timeframe, redis_url)
        self._store: Any = None
        self._online: OnlineStore | None = None

    @property
    def store(self) -> Any:
        """The feast.FeatureStore, opened at first use."""
        if self._store is None:
            import_feast()
            from feast import FeatureStore
            from feast.repo_config import RepoConfig

            folder = importlib.resources.files("feature_repo")
            text = folder.joinpath("feature_store.yaml").read_text("utf-8")
            # As the feast command line does it: the text first, the values being YAML.
            filled_in = yaml.safe_load(string.Template(text).substitute(self._environment))
            self._store = FeatureStore(config=RepoConfig(repo_path=Path(str(folder)), **filled_in))
        return self._store

    def apply(self) -> dict[str, int]:
        """Make the registry equal to the definitions; return how many of each kind there are now."""
        import_feast()
        from feature_repo.feature_definitions import build

        repository = build(self.lake)
        with self._one_line_errors():
            self.store.apply(repository.objects())
        self._online = None
        self._online_store().prepare()
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

    def write_online(self, candidates: Callable[[], pa.Table]) -> OnlineWrite:
        """Write the newest row per symbol of `candidates` to the online store, under the lock; see OnlineStore.write.

        Where this feature set, or the place for its rows, is not there, `apply` comes first. The write raises
        DatabaseUnavailableError or DatabaseRefusedError, in one line, when a server does not play along.
        """
        with self._one_line_errors():
            registered = self.registered_feature_set() == PIPELINE_FEATURES.feature_set_hash
            if not (registered and self._online_store().is_prepared()):
                self.apply()
            return self._online_store().write(candidates)

    def online_features(self, symbols: Sequence[str], now: datetime) -> list[OnlineFeatures]:
        """Return what may be served of each of `symbols` at `now` (aware), in their order, or why nothing may.

        A value that is expired, from the future, missing or not stored is never served: see core.online.servable.
        """
        return [servable(row, _NAMES, now) for row in self._stored_rows(symbols)]

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
            rows: pd.DataFrame = job.to_df()[[*labels.columns, *_NAMES]]
        return rows

    def online_rows(self, symbols: list[str]) -> pd.DataFrame:
        """Return symbol, event_timestamp and the features as stored, of any age; NaN where there is none.

        For comparing what is stored. What serves predictions asks `online_features`.
        """
        rows = self._stored_rows(symbols)
        time = pd.to_datetime(pd.Series([row.event_timestamp for row in rows]), utc=True).dt.as_unit("us")
        values = pd.DataFrame([row.values for row in rows], columns=_NAMES, dtype=float)
        return pd.DataFrame({"symbol": symbols, EVENT_TIMESTAMP: time}).join(values)

    def close(self) -> None:
        """Close the connections; Feast keeps them open and has no call of its own that does."""
        if self._store is None:
            return
        self._store.registry.write_engine.dispose()
        online_store = self._store._get_provider().online_store
        connection = online_store._client if self._redis_url else online_store._conn
        if connection is not None:
            connection.close()
        self._store = self._online = None

    def _stored_rows(self, symbols: Sequence[str]) -> list[StoredRow]:
        with self._one_line_errors():
            return self._online_store().read(symbols)

    def _online_store(self) -> OnlineStore:
        if self._online is None:
            if self.registered_feature_set() is None:
                raise FeaturesNotStoredError("no features are registered yet: run `mt5-crs retrain` first")
            self._online = OnlineStore(self.store, TECHNICAL_FEATURES, _NAMES, self._url)
        return self._online

    def _one_line_errors(self) -> contextlib.AbstractContextManager[None]:
        return one_line_redis_errors(self._redis_url) if self._redis_url else contextlib.nullcontext()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Feast's progress prints and its libraries' deprecation warnings away from our output."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
