"""The one way a file is committed: whole and durable, or not at all."""

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mt5_crs_pipeline.adapters import files
from mt5_crs_pipeline.adapters.files import (
    TEMPORARY_PREFIX,
    commit_bytes,
    commit_folder,
    make_folder,
    remove,
    remove_leftovers,
    sha256,
)
from mt5_crs_pipeline.core.errors import DamagedFileError, StateFolderError

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="SKIPPED LOUDLY: no strace to kill at a call")
as_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED LOUDLY: only root can mount and change user")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(error: pytest.ExceptionInfo[StateFolderError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text
    return text


# --- Files -----------------------------------------------------------------------------------------------------------


def test_content_is_put_whole_and_nothing_else_stays(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.bin"
    assert commit_bytes(target, b"first") is True
    assert commit_bytes(target, b"second!") is True
    assert target.read_bytes() == b"second!"
    assert names(target.parent) == ["a.bin"]
    assert (tmp_path / "new" / "folder").stat().st_mode & 0o777 == 0o700
    assert target.stat().st_mode & 0o777 == 0o600
    assert sha256(target) == hashlib.sha256(b"second!").hexdigest()


def test_equal_content_leaves_the_file_untouched(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    commit_bytes(target, b"same")
    os.utime(target, ns=(1, 1))
    before = target.stat()
    assert commit_bytes(target, b"same") is False
    after = target.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino) == (1, before.st_ino)
    assert commit_bytes(target, b"sama") is True
    assert target.read_bytes() == b"sama"


def test_a_reader_sees_the_old_bytes_or_the_new_ones(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    commit_bytes(target, b"old" * 1000)
    with target.open("rb") as open_before:
        commit_bytes(target, b"new" * 1000)
        assert open_before.read() == b"old" * 1000
    assert target.read_bytes() == b"new" * 1000


def test_bytes_that_read_back_differently_replace_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.bin"
    commit_bytes(target, b"old")
    real = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: real(path)[:-1] if TEMPORARY_PREFIX in path.name else real(path)
    )
    with pytest.raises(DamagedFileError, match="other bytes than were written"):
        commit_bytes(target, b"new content")
    monkeypatch.undo()
    assert target.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_file_rename_and_folder_reach_the_disk_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real_fsync(handle)

    def replace(path: Path, target: Path) -> Path:
        calls.append("rename")
        return real_replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    commit_bytes(tmp_path / "a.bin", b"x")
    assert calls == ["file", "rename", "folder"]


@needs_strace
@pytest.mark.parametrize(
    ("call", "contents"),
    [
        ("write:signal=KILL:when=1", [b"old"]),
        ("fsync:signal=KILL:when=1", [b"old"]),
        ("?rename,?renameat,?renameat2:signal=KILL:when=1", [b"old", b"new" * 100]),
        ("fsync:signal=KILL:when=2", [b"new" * 100]),
    ],
)
def test_a_process_killed_in_a_system_call_leaves_old_or_new_and_never_half(
    tmp_path: Path, call: str, contents: list[bytes]
) -> None:
    target = tmp_path / "a.bin"
    commit_bytes(target, b"old")
    code = (
        "import sys; from pathlib import Path; from mt5_crs_pipeline.adapters.files import commit_bytes;"
        "commit_bytes(Path(sys.argv[1]), b'new' * 100)"
    )
    done = subprocess.run(
        [
            "strace",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            f"inject={call}",
            sys.executable,
            "-B",
            "-c",
            code,
            str(target),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if "ptrace" in done.stderr.lower() or "not permitted" in done.stderr:
        pytest.skip(f"SKIPPED LOUDLY: strace may not trace here: {done.stderr.strip()}")
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
    assert target.read_bytes() in contents
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["a.bin"]


DIE_AT = """
import os, signal, sys
from pathlib import Path
from mt5_crs_pipeline.adapters import files
where, target = sys.argv[1], Path(sys.argv[2])
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if where == "half written":
    class Half:
        def __init__(self, handle): self.handle = handle
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def write(self, content): os.write(self.handle, content[:50]); die()
    os.fdopen = lambda handle, mode: Half(handle)
elif where == "fsync": os.fsync = die
elif where == "rename": Path.replace = die
elif where == "folder rename": Path.rename = die
if target.suffix: files.commit_bytes(target, b"new" * 100)
else: files.commit_folder(target, {"a": b"new" * 100, "b": b"x"})
"""


@pytest.mark.parametrize("where", ["half written", "fsync", "rename"])
def test_a_killed_writer_leaves_the_old_file_and_a_leftover_that_goes(tmp_path: Path, where: str) -> None:
    target = tmp_path / "deep" / "a.bin"
    commit_bytes(target, b"old")
    done = subprocess.run([sys.executable, "-B", "-c", DIE_AT, where, str(target)], cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert len(names(target.parent)) == 2
    assert remove_leftovers(tmp_path) == 1
    assert names(target.parent) == ["a.bin"] and target.read_bytes() == b"old"
    assert remove_leftovers(tmp_path) == 0


@pytest.mark.parametrize("where", ["half written", "folder rename"])
def test_a_killed_writer_of_a_folder_leaves_none(tmp_path: Path, where: str) -> None:
    target = tmp_path / "bundle"
    done = subprocess.run([sys.executable, "-B", "-c", DIE_AT, where, str(target)], cwd=REPOSITORY)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists() and len(names(tmp_path)) == 1
    assert remove_leftovers(tmp_path) >= 1
    assert names(tmp_path) == []


def test_there_are_no_leftovers_where_there_is_no_folder(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path / "absent") == 0


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupt_leaves_the_old_file_and_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    target = tmp_path / "a.bin"
    commit_bytes(target, b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), interrupt)
    with pytest.raises(KeyboardInterrupt):
        commit_bytes(target, b"new")
    assert target.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


# --- A disk that says no ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"SKIPPED LOUDLY: no small disk to fill: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@as_root_only
def test_a_full_disk_is_said_in_one_line_and_the_old_file_stays(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        target = disk / "a.bin"
        commit_bytes(target, b"old" * 1000)
        with pytest.raises(StateFolderError) as error:
            commit_bytes(target, bytes(200_000))
        assert "the disk is full" in one_line(error) and str(target) in str(error.value)
        assert target.read_bytes() == b"old" * 1000 and names(disk) == ["a.bin"]
        with pytest.raises(StateFolderError, match="the disk is full"):
            commit_folder(disk / "bundle", {"a": b"x", "b": bytes(200_000)})
        assert names(disk) == ["a.bin"]


@as_root_only
def test_a_folder_nobody_may_write_is_said_in_one_line(tmp_path: Path) -> None:
    folder = Path(f"/tmp/files-{os.getpid()}")
    folder.mkdir(mode=0o755)
    (folder / "a.bin").write_bytes(b"old")
    (folder / "a.bin").chmod(0o644)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = []
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            for work in (
                lambda: commit_bytes(folder / "a.bin", b"new"),
                lambda: commit_bytes(folder / "deep" / "a.bin", b"new"),
                lambda: commit_folder(folder / "bundle", {"a": b"x"}),
                lambda: remove(folder / "a.bin"),
                lambda: make_folder(folder / "new"),
            ):
                try:
                    work()
                    said.append("nothing")
                except StateFolderError as error:
                    said.append(str(error))
        finally:
            os.write(writing, "\n".join(said).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read().splitlines()
    os.waitpid(child, 0)
    try:
        assert len(said) == 5 and all("no permission" in line and str(folder) in line for line in said), said
        assert (folder / "a.bin").read_bytes() == b"old" and names(folder) == ["a.bin"]
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
    ],
)
def test_each_refusal_of_the_system_has_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    target = tmp_path / "a.bin"
    commit_bytes(target, b"old")

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StateFolderError, match=words) as error:
        commit_bytes(target, b"new")
    assert str(target) in one_line(error)
    assert target.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_an_error_without_a_remedy_is_not_dressed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="input/output error"):
        commit_bytes(tmp_path / "a.bin", b"new")


def test_a_file_in_the_way_of_a_folder_and_the_reverse_are_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    for work in (
        lambda: commit_bytes(tmp_path / "file" / "a.bin", b"x"),
        lambda: make_folder(tmp_path / "file"),
        lambda: make_folder(tmp_path / "file" / "deep"),
        lambda: commit_bytes(tmp_path / "folder", b"x"),
    ):
        with pytest.raises(StateFolderError, match="in the way") as error:
            work()
        one_line(error)
    assert (tmp_path / "file").read_bytes() == b"mine" and names(tmp_path) == ["file", "folder"]


# --- Folders and removal ---------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_and_is_never_changed(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle"
    assert commit_folder(target, {"a": b"1", "b": b"2"}) is True
    assert commit_folder(target, {"a": b"other"}) is False
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"a": b"1", "b": b"2"}
    assert names(tmp_path / "deep") == ["bundle"]


def test_a_folder_another_process_commits_meanwhile_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    real = files.commit_bytes

    def commit_and_be_overtaken(path: Path, content: bytes) -> bool:
        if not target.exists():
            target.mkdir()
            (target / "theirs").write_bytes(b"theirs")
        return real(path, content)

    monkeypatch.setattr(files, "commit_bytes", commit_and_be_overtaken)
    assert commit_folder(target, {"ours": b"ours"}) is False
    assert names(target) == ["theirs"] and names(tmp_path) == ["bundle"]


def test_removal_says_whether_there_was_a_file(tmp_path: Path) -> None:
    commit_bytes(tmp_path / "a.bin", b"x")
    assert remove(tmp_path / "a.bin") is True
    assert remove(tmp_path / "a.bin") is False
    assert names(tmp_path) == []
