"""The server everything is kept in: the one the settings name, or the embedded one."""

import contextlib
from collections.abc import Iterator

from mt5_crs_pipeline.adapters.files import make_folder
from mt5_crs_pipeline.adapters.postgres import Connection, connected, libpq_url, prepare_database
from mt5_crs_pipeline.settings import Settings


class Database:
    """Access to the PostgreSQL server of `settings`; the embedded one runs as long as anybody uses it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prepared = False

    @contextlib.contextmanager
    def url(self) -> Iterator[str]:
        """Yield the libpq URL of the running server, its schema prepared."""
        with self._server() as url:
            if not self._prepared:
                prepare_database(url)
                self._prepared = True
            yield url

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """Yield a connection with one transaction, as `connected` does."""
        with self.url() as url, connected(url) as connection:
            yield connection

    @contextlib.contextmanager
    def _server(self) -> Iterator[str]:
        remote = self._settings.database_url.get_secret_value()
        if remote:
            yield libpq_url(remote)
            return
        from mt5_crs_pipeline.adapters.embedded_postgres import running_server

        with running_server(make_folder(self._settings.home) / "postgres") as url:
            yield url
