"""What an embedded server finds in its folder before it starts: its data, who may log in, and a private socket."""

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from mt5_crs_pipeline.adapters import files
from mt5_crs_pipeline.adapters.embedded_postgres_site import MAJOR_VERSION, Site, run
from mt5_crs_pipeline.core.errors import ConfigurationError, StateFolderError

ROLE = DATABASE = "mt5_crs"
SUPERUSER = "postgres"
SOCKET_PATH_BYTES = 100


def create_data(site: Site) -> None:
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
            arguments[-1:] = ["--auth=scram-sha-256", f"--pwfile={password_file(site, SUPERUSER)}"]
        code, cause = run(site, "initdb", *arguments)
        if code:
            raise StateFolderError(f"cannot create the database in {site.folder}: {cause} (more in {site.log})")
        temporary.rename(site.data)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if os.name != "nt":
        handle = os.open(site.folder, os.O_RDONLY)
        os.fsync(handle)  # the rename, too, survives a power loss
        os.close(handle)


def write_access_rules(site: Site) -> None:
    """Say who may log in: by password over TCP, else only this OS user, told by the kernel."""
    name = site.client_user.replace('"', '""')
    users = "".join(f'{ROLE} "{name}" {role}\n' for role in (ROLE, SUPERUSER))
    rule = "host all all 127.0.0.1/32 scram-sha-256" if site.over_tcp else f"local all all peer map={ROLE}"
    for path, text in ((site.folder / "pg_hba.conf", rule + "\n"), (site.folder / "pg_ident.conf", users)):
        files.commit_bytes(path, text.encode())
        _let_server_read(site, path)


def password_file(site: Site, role: str) -> Path:
    """Return the file with the random password of `role`, made at first use."""
    path = site.folder / ("password" if role == ROLE else f"password-{role}")
    if not path.exists():
        files.commit_bytes(path, secrets.token_urlsafe(32).encode())
        _let_server_read(site, path)
    return path


def _let_server_read(site: Site, path: Path) -> None:
    if site.ids:
        os.chown(path, 0, site.ids[1])
        path.chmod(0o640)


def repair_owner(site: Site) -> None:
    """Hand the data to the server's user; a rebuilt container may have given it another number."""
    for top in (site.data, site.folder / "run"):
        if site.ids and top.is_dir() and top.stat().st_uid != site.ids[0]:
            for path in (*top.rglob("*"), top):  # top last: a killed hand-over starts again
                os.chown(path, *site.ids, follow_symlinks=False)


def make_socket_folder(site: Site) -> Path:
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
    refuse_foreign(site, folder)
    for name in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
        (folder / name).unlink(missing_ok=True)
    return folder


def refuse_foreign(site: Site, socket_folder: Path) -> None:
    """Raise StateFolderError unless the socket folder is a real one that only the server's user may enter."""
    status = socket_folder.lstat()
    owner = site.ids[0] if site.ids else os.geteuid()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
        raise StateFolderError(f"{socket_folder} is no private folder of user {site.server_user}: remove it")
