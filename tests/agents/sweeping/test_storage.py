"""Test storages of a study and drivers that share it: messages, dead drivers, several processes, PostgreSQL."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy.event
import sqlalchemy.exc
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages._rdb.models import BaseModel
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from tests.programs import Process, start, wait_until
from zerokara.agents.sweeping import storage as sweep_storage
from zerokara.agents.sweeping.config import Config
from zerokara.agents.sweeping.storage import SharedDriver, check_option, close_storage, open_shared_folder, open_storage
from zerokara.core.config import EXIT_STOPPED, UserError
from zerokara.core.file_lock import is_locked, lock

SEARCH = ("learning_rate=log:1e-5..1e-3", "--name", "s", "--pruner", "none")
SHORT = ("--", "--total-steps", "1000", "--eval-every-steps", "100")
JOURNAL = Path("runs/s/study.journal")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def driver(storage: str, trials: int, *words: str, waits_for: str = "") -> Process:
    """Start a driver as a process; with `waits_for`, its runs wait in their middle until this file exists."""
    waits = {"FAKE_WAITS_FOR": str(Path.cwd() / waits_for)} if waits_for else {}
    arguments = (*SEARCH, "--storage", storage, "--trials", str(trials), *words, *SHORT)
    return start(Path.cwd(), "-m", "tests.agents.sweep_driver", *arguments, **waits)


def trials(storage: BaseStorage | str = "") -> list[optuna.trial.FrozenTrial]:
    """Read the trials from the study."""
    return optuna.load_study(
        study_name="s", storage=storage or JournalStorage(JournalFileBackend(str(JOURNAL.absolute())))
    ).get_trials()


def evaluations(number: int) -> list[str]:
    """Return the lines that the run of a trial logged: ten, if it was not run twice."""
    path = Path(f"runs/s/runs/{number}-seed-1/metrics.jsonl")
    return path.read_text().splitlines() if path.exists() else []


def ended(process: Process) -> str:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def check_study(found: list[optuna.trial.FrozenTrial], number: int) -> None:
    """Check that the study has this number of trials, all complete, and that each was run once."""
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * number
    assert [len(evaluations(trial.number)) for trial in found] == [10] * number
    assert len({trial.params["learning_rate"] for trial in found}) == number
    assert len(list(Path("runs/s/runs").iterdir())) == number


def test_drivers_share_a_journal() -> None:
    """Three drivers that start at the same time run no trial twice and no more than are asked for."""
    outputs = [ended(process) for process in [driver("journal", 9) for _ in range(3)]]
    check_study(trials(), 9)
    assert any("trial" in out.splitlines()[-1] and "is best with" in out.splitlines()[-1] for out in outputs)
    assert len(Path("runs/s/trials.csv").read_text().splitlines()) == 10
    assert " starts: " not in ended(driver("journal", 9)), "a repeated command has nothing left to do"
    ended(driver("journal", 11, "--jobs", "2"))
    check_study(trials(), 11)


def half_done(process: Process, number: int = 0) -> None:
    """Wait until the run of a trial waits in its middle."""
    wait_until(process, lambda: len(evaluations(number)) == 5)
    assert len(evaluations(number)) == 5


def test_trial_of_a_killed_driver_is_resumed_and_its_run_is_waited_for() -> None:
    killed = driver("journal", 3, waits_for="go")
    half_done(killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    second = driver("journal", 3, "--jobs", "3")
    wait_until(second, lambda: len(evaluations(2)) == 10)
    assert len(evaluations(0)) == 5, "the run of the killed driver still waits, and holds its folder"
    Path("go").touch()
    out = ended(second)
    assert "trial 0 resumes" in out
    check_study(trials(), 3)


def test_the_lock_of_a_killed_writer_of_a_journal_is_released(tmp_path: Path) -> None:
    """Optuna waits 30 seconds for a lock whose journal does not change, and must find the journal through the link."""
    storage = open_storage("journal", Path())
    optuna.create_study(study_name="s", storage=storage)
    lock_file = storage._backend._lock  # type: ignore[attr-defined]
    lock_file.acquire()
    assert Path("study.journal.lock").resolve(strict=True) == (tmp_path / "study.journal").resolve()
    lock_file.release()


def test_trial_of_a_live_driver_is_not_taken() -> None:
    waiting = driver("journal", 3, waits_for="go")
    half_done(waiting)
    closing = ended(driver("journal", 3)).strip().splitlines()[-1]
    assert "2 of 3 trials are finished; other drivers run the last 1." in closing
    assert [trial.state for trial in trials()] == [TrialState.RUNNING, TrialState.COMPLETE, TrialState.COMPLETE]
    Path("go").touch()
    assert "is best with" in ended(waiting).strip().splitlines()[-1]
    check_study(trials(), 3)
    assert {trial.user_attrs["driver"] for trial in trials()} == {1, 2}


def test_stopped_driver_lets_its_runs_save_and_another_one_continues() -> None:
    stopped = driver("journal", 2, waits_for="go")
    half_done(stopped)
    stopped.send_signal(signal.SIGTERM)
    out, _ = stopped.communicate()
    assert stopped.returncode == EXIT_STOPPED
    assert "0 of 2 trials are finished; resume with:" in out
    assert Path("runs/s/runs/0-seed-1/saved").exists()
    assert "trial 0 resumes" in ended(driver("journal", 2))
    check_study(trials(), 2)


def test_a_dead_driver_is_replaced_by_one_driver_only(tmp_path: Path) -> None:
    (tmp_path / "drivers" / "1").mkdir(parents=True)
    study = optuna.create_study()
    trial = study.ask()
    first, second, third = (SharedDriver(tmp_path, number) for number in (1, 2, 3))
    with first.choosing():
        first.claim(trial)
    with (tmp_path / "drivers" / "1" / "lock").open("a") as file:
        assert lock(file)
        assert not second.may_resume(study.trials[0])
        assert first.may_resume(study.trials[0]), "its own trial, of a process that had this number before"
    assert second.may_resume(study.trials[0])
    assert second.may_resume(study.trials[0])
    assert not third.may_resume(study.trials[0])
    second.close()
    assert third.may_resume(study.trials[0])
    third.close()
    assert third.may_resume(study.ask().study.trials[1]), "killed before it was claimed"


def test_numbers_of_drivers_are_those_of_free_folders(tmp_path: Path) -> None:
    config = Config(name="s", storage="journal", search=("n_step=1..2",))
    opened = [open_shared_folder(config, [], Path("runs/s")) for _ in range(3)]
    assert [driver.number for _, driver, _ in opened] == [1, 2, 3]
    assert len({identity for _, _, identity in opened}) == 1
    opened[1][0].close()
    run, again, _ = open_shared_folder(config, [], Path("runs/s"))
    assert again.number == 2
    for one in (run, opened[0][0], opened[2][0]):
        one.close()
    assert not any(is_locked(path) for path in Path("runs/s/drivers").glob("*/lock"))


def test_a_study_of_another_folder_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared.journal"
    ended(driver(str(shared), 1))
    Path("runs/s").rename("runs/other")
    process = driver(str(shared), 1)
    _, err = process.communicate()
    assert process.returncode == 2
    assert f"The study s in {shared} belongs to another folder than {tmp_path / 'runs/s'}" in err
    assert not Path("runs/s").exists()
    storage = JournalStorage(JournalFileBackend(str(shared)))
    optuna.delete_study(study_name="s", storage=storage)
    optuna.create_study(study_name="s", storage=storage).ask()  # by another program
    Path("runs/other").rename("runs/s")
    assert "belongs to another folder" in driver(str(shared), 1).communicate()[1]
    Path("runs/s").rename("runs/other")
    process = driver("journal", 1, "--seeds", "2")
    assert process.communicate()[1] == ""
    process = driver("journal", 1)
    assert "runs/s was started with --seeds 2 and cannot resume with 1" in process.communicate()[1]


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("postgres", r"--storage cannot be 'postgres': it must be journal, a file name ending in \.journal or \.log"),
        ("missing/s.journal", "no folder missing for --storage missing/s.journal: create it"),
        ("postgresql://me:secret@host/db", r"postgresql://me:\*\*\*@host/db has a password, which config\.json"),
        ("postgresql://host/db?user=me&password=secret", r"--storage postgresql://host/db has a password, which"),
        ("://", "--storage cannot be '://'"),
    ],
)
def test_options_are_checked(storage: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check_option(storage)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("nosuch://host/db", "The database nosuch://host/db cannot be used"),
        ("sqlite:///missing/study.db", r"The database sqlite:///missing/study\.db cannot be used .*check the URL"),
        ("damaged.journal", r"damaged\.journal cannot be read or written"),
    ],
)
def test_a_storage_that_cannot_be_opened_leaves_nothing_behind(storage: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "damaged.journal").write_text("no journal\nat all\n")
    with pytest.raises(UserError, match=message):
        open_storage(storage, tmp_path)
    process = driver(storage, 1)
    _, err = process.communicate()
    assert process.returncode == 2
    assert re.search(message, err)
    assert len(err.strip().splitlines()) == 1
    assert not Path("runs").exists()


def test_a_missing_driver_of_a_database_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: Any, **keywords: Any) -> None:
        raise ImportError("Failed to import DB access module.") from ModuleNotFoundError("No module named 'psycopg'")

    monkeypatch.setattr(sweep_storage, "RDBStorage", fail)
    with pytest.raises(UserError, match=r"needs a database driver .*'psycopg'\).*pip install 'zerokara\[cluster\]'"):
        open_storage("postgresql://host/db", tmp_path)


def test_tables_that_another_driver_creates_at_the_same_time(tmp_path: Path) -> None:
    """Another driver creates them after this one has found that they are missing."""
    url, calls, others = f"sqlite:///{tmp_path / 'study.db'}", list[int](), list[RDBStorage]()

    def before_create(*arguments: Any, **keywords: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            others.append(RDBStorage(url))

    sqlalchemy.event.listen(BaseModel.metadata, "before_create", before_create)
    try:
        storage = open_storage(url, tmp_path)
    finally:
        sqlalchemy.event.remove(BaseModel.metadata, "before_create", before_create)
    for one in (*others, storage):
        optuna.create_study(study_name="s", storage=one, load_if_exists=True).ask()
    assert len(trials(storage)) == 2
    for one in (*others, storage):
        close_storage(one)


@pytest.mark.parametrize(
    ("kind", "text", "attempts"),
    [
        (sqlalchemy.exc.ProgrammingError, "Relation »studies« existiert bereits", 2),
        (sqlalchemy.exc.IntegrityError, "duplicate key value violates unique constraint", 2),
        (sqlalchemy.exc.OperationalError, "Table 'studies' already exists", 2),
        (sqlalchemy.exc.OperationalError, "connection refused", 1),
    ],
)
def test_a_database_is_opened_again_only_if_another_driver_created_its_tables(
    kind: type[sqlalchemy.exc.DBAPIError], text: str, attempts: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = list[str]()

    class FailsOnce(RDBStorage):
        def __init__(self, url: str, **keywords: Any) -> None:
            calls.append(url)
            if len(calls) == 1:
                raise kind("CREATE TABLE studies", None, Exception(text))
            super().__init__("sqlite:///study.db")

    monkeypatch.setattr(sweep_storage, "RDBStorage", FailsOnce)
    monkeypatch.setattr(sweep_storage, "CREATE_SECONDS", 0.0)
    expected = contextlib.nullcontext() if attempts > 1 else pytest.raises(UserError, match=text)
    with expected:
        close_storage(open_storage("postgresql://host/db", tmp_path))
    assert len(calls) == attempts


@pytest.fixture
def postgres() -> Iterator[tuple[str, Path]]:
    """Start a PostgreSQL server that listens on a Unix socket only. Yields its URL and its folder."""
    pytest.importorskip("psycopg")
    candidates = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")]
    search = os.pathsep.join([*candidates, os.environ.get("PATH", "")])
    initdb, server = (shutil.which(name, path=search) for name in ("initdb", "postgres"))
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="zk-pg-"))  # a short path, because that of a socket is limited
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data = folder / "data"
    command = [initdb, "-D", str(data), "-U", "sweep", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    log = (folder / "server.log").open("wb")
    process = subprocess.Popen([server, "-D", str(data), *options], stdout=log, stderr=log, cwd=folder, **user)
    try:
        url = f"postgresql+psycopg://sweep@/postgres?host={folder}"
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text())
            with contextlib.suppress(UserError):
                close_storage(open_storage(url, folder))
                break
        yield url, folder
    finally:
        process.send_signal(signal.SIGINT)  # fast shutdown: connections are closed
        process.wait(60)
        log.close()
        shutil.rmtree(folder)


def test_drivers_share_a_postgresql_database(postgres: tuple[str, Path]) -> None:
    url, folder = postgres
    killed = driver(url, 6, waits_for="go")
    half_done(killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    Path("go").touch()
    processes = [driver(url, 6) for _ in range(2)]
    outputs = [ended(process) for process in processes]
    assert any("trial 0 resumes" in out for out in outputs)
    storage = RDBStorage(url)
    check_study(trials(storage), 6)
    close_storage(storage)
    assert not Path("runs/s/study.db").exists()
    process = driver(url.replace(str(folder), "/missing"), 6)
    _, err = process.communicate()
    assert process.returncode == 2
    assert "The database postgresql+psycopg://sweep@/postgres?host=/missing cannot be used" in err
    assert len(err.strip().splitlines()) == 1
