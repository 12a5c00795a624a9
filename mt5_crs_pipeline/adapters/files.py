"""The one way a file is committed: whole and durable, or not at all."""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

from mt5_crs_pipeline.core.errors import DamagedFileError, StateFolderError

TEMPORARY_PREFIX = ".partial-"


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def commit_bytes(target: Path, content: bytes) -> bool:
    """Put `content` at `target` atomically and durably; True when the file changed.

    As `commit_file`, and read back and compared before the rename. A target that already holds these bytes is left
    alone.
    """

    def compare(temporary: Path) -> None:
        if temporary.read_bytes() != content:
            raise DamagedFileError(f"{target}: the disk gave back other bytes than were written; nothing replaced")

    with _state_errors(target):
        if target.is_file() and target.stat().st_size == len(content) and target.read_bytes() == content:
            return False
    commit_file(target, lambda file: file.write(content), compare)
    return True


def commit_file(
    target: Path, write: Callable[[BinaryIO], object], check: Callable[[Path], None] = lambda _: None
) -> None:
    """Put what `write` writes into a file at `target` atomically and durably.

    Temp file beside the target, fsync, `check` of the temp file, rename, fsync of the folder. Raises StateFolderError
    when the folder cannot be written.
    """
    with _state_errors(target):
        make_folder(target.parent)
        handle, name = tempfile.mkstemp(prefix=temporary_prefix(), dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            check(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(target.parent)


def commit_folder(target: Path, files: dict[str, bytes]) -> bool:
    """Create an immutable folder holding `files` in one step; False when `target` already exists."""
    with _state_errors(target):
        if target.exists():
            return False
        make_folder(target.parent)
        temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=target.parent))
        try:
            for name, content in files.items():
                commit_bytes(temporary / name, content)
            temporary.rename(target)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST) and target.is_dir():
                return False  # another process has just committed it
            raise
        _sync_folder(target.parent)
        return True


def remove(target: Path) -> bool:
    """Delete a file durably; True when there was one."""
    with _state_errors(target):
        if not target.exists():
            return False
        target.unlink()
        _sync_folder(target.parent)
        return True


def make_folder(folder: Path) -> Path:
    """Create a folder with its parents, for the owner alone; return it."""
    with _state_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def remove_leftovers(root: Path) -> int:
    """Delete what killed writers left below `root`; return how many temp files and folders went.

    Those of processes that still run stay.
    """
    leftovers = [path for path in root.rglob(f"{TEMPORARY_PREFIX}*") if not _has_writer(path)] if root.is_dir() else []
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(leftovers)


def temporary_prefix() -> str:
    """Return how the names of this process's temp files and folders begin, by which `remove_leftovers` knows them."""
    return f"{TEMPORARY_PREFIX}{os.getpid()}-"


def _has_writer(path: Path) -> bool:
    """True when the process that made this temp file, or the temp folder around it, may still be writing."""
    writers = [part.split("-")[1] for part in path.parts if part.startswith(TEMPORARY_PREFIX)]
    return any(writer.isdigit() and psutil.pid_exists(int(writer)) for writer in writers)


@contextlib.contextmanager
def _state_errors(target: Path) -> Iterator[None]:
    """Turn an OSError about `target` into one line that names the path and the remedy."""
    remedies = {
        errno.ENOSPC: "the disk is full: free space, then run the command again",
        errno.EDQUOT: "the disk quota is used up: free space, then run the command again",
        errno.EACCES: "no permission: choose another folder with MT5_CRS_HOME or change its owner",
        errno.EPERM: "no permission: choose another folder with MT5_CRS_HOME or change its owner",
        errno.EROFS: "the file system is read-only: choose another folder with MT5_CRS_HOME",
        errno.ENOTDIR: "a file is in the way of a folder: remove it or choose another MT5_CRS_HOME",
        errno.EEXIST: "a file is in the way of a folder: remove it or choose another MT5_CRS_HOME",
        errno.EISDIR: "a folder is in the way of a file: remove it or choose another MT5_CRS_HOME",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in remedies:
            raise
        raise StateFolderError(f"cannot write {target}: {remedies[error.errno]}") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive power loss; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
