"""What the assets work on, made from the settings."""

import contextlib
from collections.abc import Callable, Iterator

from mt5_crs_pipeline.adapters.alerts import alert
from mt5_crs_pipeline.adapters.database import Database
from mt5_crs_pipeline.adapters.feast_store import FeastStore
from mt5_crs_pipeline.adapters.lake import Lake
from mt5_crs_pipeline.adapters.model_store import ModelStore
from mt5_crs_pipeline.adapters.postgres import wait_for_lock
from mt5_crs_pipeline.adapters.recipe_file import read_recipe
from mt5_crs_pipeline.core.recipe import Recipe
from mt5_crs_pipeline.settings import Settings


class Stores:
    """The database, lake, feature store and model store of one state folder and timeframe."""

    def __init__(self, settings: Settings) -> None:
        self.timeframe = settings.timeframe
        self.symbols = settings.symbols
        self.calendars = settings.calendars
        self.reports = settings.reports
        self.trading_cost = settings.trading_cost
        self.noise_runs = settings.noise_runs
        self.database = Database(settings)
        self.lake = Lake(settings.lake)
        self._redis_url = settings.redis_url
        self.models = ModelStore(settings.models)
        self._recipe_file = settings.recipe
        self._alert_urls = settings.alert_urls

    @property
    def recipe(self) -> Recipe:
        """The label and training settings as the user's file has them now."""
        return read_recipe(self._recipe_file)

    @contextlib.contextmanager
    def alone(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the one place for writers of this lake, among all processes; call `waiting` once if somebody has it."""
        with self.database.connection() as connection:
            wait_for_lock(connection, f"lake {self.lake.folder}", waiting)
            yield

    def alert(self, key: str, title: str, body: str) -> None:
        """Tell people, once a day for each `key`; nothing without MT5_CRS_ALERT_URLS."""
        alert(self.database, self._alert_urls.get_secret_value(), f"{self.timeframe} {key}", title, body)

    @contextlib.contextmanager
    def feast(self) -> Iterator[FeastStore]:
        """Yield the feature store while the database runs, and close its connections."""
        with (
            self.database.url() as url,
            contextlib.closing(
                FeastStore(url, self.timeframe, self.lake.folder, self._redis_url.get_secret_value())
            ) as store,
        ):
            yield store
