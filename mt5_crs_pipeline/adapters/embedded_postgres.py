"""A private PostgreSQL server inside the state folder: started by its first user, stopped by its last.

One lock file counts the users: each process holds it shared, so a killed process counts no more. Starting, attaching
and leaving happen under a second, exclusive lock, so the last one out never stops a server a newcomer attaches to.
On POSIX it has no TCP port, its socket is in a 0700 folder, and only the OS user who runs the pipeline is let in.
"""

import contextlib
import os
import re
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import fasteners
import psutil
import psycopg2
import psycopg2.errors
from psycopg2.extensions import encrypt_password

from mt5_crs_pipeline.adapters.embedded_postgres_setup import (
    DATABASE,
    ROLE,
    SUPERUSER,
    create_data,
    make_socket_folder,
    password_file,
    refuse_foreign,
    repair_owner,
    write_access_rules,
)
from mt5_crs_pipeline.adapters.embedded_postgres_site import OTHER_FOLDER, Site, find_site, processes, run
from mt5_crs_pipeline.core.errors import DatabaseUnavailableError, StateFolderError

START_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 10
LOG_BYTES = 10_000_000
SETTINGS = {
    "max_connections": "100",
    "shared_buffers": "64MB",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "unix_socket_permissions": "0700",
}
WORTH_ANOTHER_TRY = re.compile(
    r"lock file .* already exists|shared memory block .* still in use|could not bind|could not create any TCP"
)


class _Share:
    """This process's hold on one server; one lock object per folder, as closing a second one would drop the lock."""

    def __init__(self, folder: Path) -> None:
        self.lock = fasteners.InterProcessReaderWriterLock(folder / "users.lock")
        self.users = 0


_mutex = threading.Lock()
_shares: dict[Path, _Share] = {}


def _forget_in_forked_child() -> None:
    global _mutex
    _mutex = threading.Lock()
    _shares.clear()  # a child holds none of its parent's locks


if os.name != "nt":
    os.register_at_fork(after_in_child=_forget_in_forked_child)


@contextlib.contextmanager
def running_server(folder: Path, *, over_tcp: bool = os.name == "nt", binaries: Path | None = None) -> Iterator[str]:
    """Yield the libpq URL of the server whose data lives in `folder`; create, repair, start and stop it as needed.

    Any number of processes, threads and nested calls share one server. `over_tcp` is for systems without Unix
    sockets: a port on 127.0.0.1 and a random password. Raises StateFolderError, DatabaseUnavailableError,
    ConfigurationError.
    """
    with _one_line_errors(folder):
        site = find_site(folder, over_tcp, binaries)
        share, url = _enter(site)
    try:
        yield url
    finally:
        with _one_line_errors(folder):
            _leave(site, share)


def _enter(site: Site) -> tuple[_Share, str]:
    with _mutex, _start_lock(site):
        share = _shares.setdefault(site.folder, _Share(site.folder))
        if share.users == 0:
            share.lock.acquire_read_lock()
        share.users += 1
        try:
            return share, _ensure_running(site)
        except BaseException:
            _drop_user(site, share)
            raise


def _leave(site: Site, share: _Share) -> None:
    if _shares.get(site.folder) is not share:
        return  # a forked child unwinds its parent's block
    with _mutex, _start_lock(site):
        _drop_user(site, share)


def _drop_user(site: Site, share: _Share) -> None:
    share.users -= 1
    if share.users > 0:
        return
    share.lock.release_read_lock()
    if share.lock.acquire_write_lock(blocking=False):
        try:
            _stop(site)
        finally:
            share.lock.release_write_lock()


@contextlib.contextmanager
def _start_lock(site: Site) -> Iterator[None]:
    lock = fasteners.InterProcessLock(site.folder / "start.lock")
    if not lock.acquire(timeout=3 * START_TIMEOUT_S):
        raise DatabaseUnavailableError(f"another process has been starting the database in {site.folder} for too long")
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _one_line_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause = f"{error.strerror or error}: {error.filename or folder}"
        raise StateFolderError(f"cannot use {folder} ({cause}): {OTHER_FOLDER} of your own") from error


def _ensure_running(site: Site) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        address = _address(site)
        cause = "it is starting or stopping" if address is None else _refusal(site, *address)
        if address is not None and not cause:
            return _url(site, *address)
        if not processes(site):
            cause = _start(site)
            if not cause:
                continue
        if time.monotonic() > deadline:
            raise DatabaseUnavailableError(f"the database in {site.folder} did not come up in time: {cause}")
        time.sleep(0.1)


def _start(site: Site) -> str:
    """Start a server that is not running; return "" or a cause that may pass by itself."""
    if site.log.exists() and site.log.stat().st_size > LOG_BYTES:
        site.log.replace(site.log.with_suffix(".log.1"))
    write_access_rules(site)
    create_data(site)
    repair_owner(site)
    with contextlib.suppress(OSError, ValueError, IndexError):
        if psutil.pid_exists(int(_pid_file(site)[0])):
            (site.data / "postmaster.pid").unlink()  # a program that got the dead server's number
    settings = SETTINGS | {
        "cluster_name": site.mark,
        "hba_file": str(site.folder / "pg_hba.conf"),
        "ident_file": str(site.folder / "pg_ident.conf"),
        "listen_addresses": "127.0.0.1" if site.over_tcp else "",
        "port": str(_free_port()) if site.over_tcp else "5432",
        "unix_socket_directories": ""
        if site.over_tcp
        else '"{}"'.format(str(make_socket_folder(site)).replace('"', '""')),
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    joined = subprocess.list2cmdline(options) if os.name == "nt" else shlex.join(options)
    code, cause = run(site, "pg_ctl", "start", "-s", "-w", "-t", str(START_TIMEOUT_S), "-o", joined)
    if code == 0 or WORTH_ANOTHER_TRY.search(cause):
        return cause if code else ""
    if processes(site):
        raise DatabaseUnavailableError(f"the database in {site.folder} did not come up in time: {cause}")
    raise StateFolderError(f"the database in {site.folder} does not start: {cause} (more in {site.log})")


def _stop(site: Site) -> None:
    """Stop the server if it is surely ours; `immediate` loses nothing, the next start replays the log."""
    address = _address(site)
    with contextlib.suppress(OSError, ValueError, IndexError):
        if int(_pid_file(site)[0]) in processes(site):
            for mode in ("fast", "immediate"):
                if run(site, "pg_ctl", "stop", "-s", "-w", "-t", str(START_TIMEOUT_S), "-m", mode)[0] == 0:
                    break
    if address is not None and not site.over_tcp and site.folder not in address[0].parents:
        with contextlib.suppress(OSError):
            address[0].rmdir()


def _pid_file(site: Site) -> list[str]:
    """Lines of postmaster.pid: process id, data folder, start time, port, socket folder, ..."""
    return (site.data / "postmaster.pid").read_text(errors="surrogateescape").splitlines()


def _address(site: Site) -> tuple[Path, int] | None:
    """Return the socket folder and port of the server that wrote postmaster.pid, if it is safe to talk to."""
    try:
        pid, _, _, port, socket_folder = _pid_file(site)[:5]
        if site.over_tcp:
            return (Path(), int(port)) if int(pid) in processes(site) else None
        if not socket_folder:
            return None  # it has not got that far
        if site.folder not in Path(socket_folder).parents:
            refuse_foreign(site, Path(socket_folder))
        return Path(socket_folder), int(port)
    except (OSError, ValueError):
        return None


def _url(site: Site, socket_folder: Path, port: int, role: str = ROLE, database: str = DATABASE) -> str:
    if site.over_tcp:
        return f"postgresql://{role}:{password_file(site, role).read_text()}@127.0.0.1:{port}/{database}"
    return f"postgresql://{role}@/{database}?host={quote(os.fsencode(socket_folder), safe='')}&port={port}"


def _refusal(site: Site, socket_folder: Path, port: int) -> str:
    """Log in as the pipeline's role, making role and database when they are absent; return "" or why it failed."""
    try:
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(_url(site, socket_folder, port), connect_timeout=CONNECT_TIMEOUT_S).close()
            return ""
        _make_role_and_database(site, _url(site, socket_folder, port, SUPERUSER, "postgres"))
        return ""
    except psycopg2.errors.DiskFull as error:
        raise StateFolderError(f"cannot use {site.folder}: the disk is full, free space") from error
    except psycopg2.Error as error:
        return str(error).strip().splitlines()[-1]


def _make_role_and_database(site: Site, superuser_url: str) -> None:
    connection = psycopg2.connect(superuser_url, connect_timeout=CONNECT_TIMEOUT_S)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", (ROLE,))
            if not cursor.rowcount:
                cursor.execute(f"CREATE ROLE {ROLE}")
            cursor.execute(f"ALTER ROLE {ROLE} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS")
            if site.over_tcp:
                password = password_file(site, ROLE).read_text()
                verifier = encrypt_password(password, ROLE, scope=connection, algorithm="scram-sha-256")
                cursor.execute(f"ALTER ROLE {ROLE} PASSWORD %s", (verifier,))
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,))
            if not cursor.rowcount:
                cursor.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
    finally:
        connection.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
