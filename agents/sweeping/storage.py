"""Storage of a sweep's study, and the drivers that share it.

By default a study is in study.db (SQLite) in the folder of the sweep, and one process, the driver, holds the lock of
this folder. With --storage several drivers on several machines run trials of one study. They share the folder of the
sweep: trials have their run folders there, and locks of files there tell which drivers are alive.

    runs/<name>/drivers/lock    held while a driver chooses its next trial, so that they do not choose the same one
    runs/<name>/drivers/<n>/    folder of driver n, locked while it is alive

Each running trial carries the number of its driver. If that driver is dead, another one locks its folder, and the trial
resumes there. Thus nothing is run twice, and nothing is lost.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import optuna
import sqlalchemy.engine
import sqlalchemy.exc
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from zerokara.agents.sweeping.config import KIND, Config, check_same_command
from zerokara.core.config import UserError, error_summary
from zerokara.core.file_lock import lock
from zerokara.core.report import write_json
from zerokara.core.run import Run
from zerokara.core.run_folder import check_name, first_config, read_config

SUFFIXES = (".journal", ".log")  # of journal files
# Client libraries of databases whose connections take this argument.
WITH_TIMEOUT = frozenset({"psycopg", "psycopg2", "pymysql", "mysqldb"})
CONNECT_SECONDS = 10
CREATE_ATTEMPTS = 5  # to create tables, while other drivers do the same
CREATE_SECONDS = 0.2  # before the second attempt; then longer
DRIVER = "driver"  # attribute of a trial: number of its driver
SWEEP = "sweep"  # attribute of a study, and key in the sweep's config.json: identifies the folder of the sweep
# What a driver leaves behind that was killed before it wrote config.json.
UNFINISHED = frozenset({"drivers", ".config.json.tmp"})
STORAGE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)


def open_storage(storage: str, folder: Path) -> BaseStorage:
    """Open the storage that --storage names.

    Args:
        storage: "": SQLite in the folder of the sweep; "journal": a journal file there; the path of a journal file, or
            the URL of a database.
        folder: of the sweep. It must exist for the first two.

    Raises:
        UserError: the storage cannot be opened.
    """
    try:
        if "://" in storage:
            driver = sqlalchemy.engine.make_url(storage).get_driver_name()
            timeout = {"connect_args": {"connect_timeout": CONNECT_SECONDS}} if driver in WITH_TIMEOUT else {}
            return _open_database(storage, {"pool_pre_ping": True, **timeout})
        if storage:
            # Absolute: otherwise Optuna does not find the journal through its lock, a link, and waits forever for the
            # lock of a killed process.
            return JournalStorage(JournalFileBackend(str(journal_file(storage, folder).absolute())))
        return _open_database(f"sqlite:///{folder / 'study.db'}", {})
    except ImportError as error:
        raise UserError(
            f"--storage {storage} needs a database driver that is not installed ({error.__cause__ or error}): install "
            f"it, for PostgreSQL with: pip install 'zerokara[cluster]'."
        ) from None
    except (*STORAGE_ERRORS, OSError, RuntimeError, ValueError, KeyError) as error:
        raise storage_error(storage, folder, error) from None


def _open_database(url: str, engine_kwargs: dict[str, Any]) -> RDBStorage:
    """Open a database, with Optuna's tables.

    Optuna looks which tables are missing, and creates them. If another driver creates them in between, the database
    refuses to, and Optuna must look again; likewise with the rows that hold the version.
    """
    for attempt in range(1, CREATE_ATTEMPTS):
        try:
            return RDBStorage(url, engine_kwargs=engine_kwargs)
        except sqlalchemy.exc.DBAPIError as error:
            # PostgreSQL raises these two errors, perhaps with a text in another language.
            by_another = isinstance(error, sqlalchemy.exc.ProgrammingError | sqlalchemy.exc.IntegrityError)
            if not (by_another or "already exists" in str(error.orig)):
                raise
            time.sleep(CREATE_SECONDS * attempt)
    return RDBStorage(url, engine_kwargs=engine_kwargs)


def close_storage(storage: BaseStorage) -> None:
    """Close the connections to a database."""
    if isinstance(storage, RDBStorage):
        storage.remove_session()
        storage.engine.dispose()


def journal_file(storage: str, folder: Path) -> Path:
    """Return the journal file that --storage names."""
    return folder / "study.journal" if storage == "journal" else Path(storage)


def storage_error(storage: str, folder: Path, error: Exception) -> UserError:
    """Return the message for a storage that cannot be opened, read or written."""
    if "://" in storage:
        return UserError(
            f"The database {storage} cannot be used ({error_summary(error)}): check the URL and that the server runs, "
            f"then repeat the same command."
        )
    path = journal_file(storage, folder) if storage else folder / "study.db"
    return UserError(
        f"{path} cannot be read or written ({error_summary(error)}): free disk space if the disk is full; if the file "
        f"is damaged, start a new sweep with another --name."
    )


def check_option(storage: str) -> None:
    """Check the form of --storage.

    Raises:
        UserError: it is neither a journal file nor a URL, its folder does not exist, or the URL has a password.
    """
    if "://" in storage:
        try:
            url = sqlalchemy.engine.make_url(storage)
        except (sqlalchemy.exc.ArgumentError, ValueError):
            raise _not_a_storage(storage) from None
        if url.password is not None or any(word in key for key in url.query for word in ("password", "passwd")):
            hidden = url.set(query={}).render_as_string(hide_password=True)
            raise UserError(
                f"--storage {hidden} has a password, which config.json and the list of processes would show: leave it "
                f"out, and put it into the environment variable PGPASSWORD or the file ~/.pgpass (MySQL: an option "
                f"file, with ?read_default_file=~/.my.cnf)."
            )
    elif storage and storage != "journal":
        if not storage.endswith(SUFFIXES):
            raise _not_a_storage(storage)
        if not Path(storage).parent.is_dir():
            raise UserError(f"There is no folder {Path(storage).parent} for --storage {storage}: create it.")


def _not_a_storage(storage: str) -> UserError:
    return UserError(
        f"--storage cannot be {storage!r}: it must be journal, a file name ending in {' or '.join(SUFFIXES)}, "
        f"or the URL of a database, such as postgresql://user@host/database."
    )


class SingleDriver:
    """The only driver of a sweep, which holds the lock of its folder."""

    @contextlib.contextmanager
    def choosing(self) -> Iterator[None]:
        """Inside the block, no other driver chooses a trial."""
        yield

    def claim(self, trial: optuna.Trial) -> None:
        """Record that this driver runs a trial."""

    def may_resume(self, trial: FrozenTrial) -> bool:
        """Return True if this driver may resume a running trial that it does not run; called inside `choosing`."""
        return True

    def close(self) -> None:
        """Unlock what is locked."""


class SharedDriver(SingleDriver):
    """One of several drivers of a sweep.

    Args:
        folder: of the sweep.
        number: of this driver, whose folder `Run` has locked.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self._taken: dict[int, IO[str]] = {}  # number of a dead driver -> the lock of its folder

    @contextlib.contextmanager
    def choosing(self) -> Iterator[None]:
        """Inside the block, no other driver chooses a trial."""
        with _drivers_lock(self.folder):
            yield

    def claim(self, trial: optuna.Trial) -> None:
        """Record that this driver runs a trial."""
        trial.set_user_attr(DRIVER, self.number)

    def may_resume(self, trial: FrozenTrial) -> bool:
        """Return True if the driver of a running trial is dead. It is this driver's from now on.

        A trial without a driver was killed before it was claimed, since no other driver is choosing one.
        """
        number = trial.user_attrs.get(DRIVER)
        if number is None or number == self.number or number in self._taken:
            return True
        path = self.folder / "drivers" / str(number) / "lock"
        path.parent.mkdir(exist_ok=True)
        file = path.open("a")
        if not lock(file):
            file.close()
            return False
        self._taken[number] = file
        return True

    def close(self) -> None:
        """Unlock the folders of dead drivers."""
        for file in self._taken.values():
            file.close()


@contextlib.contextmanager
def _drivers_lock(folder: Path) -> Iterator[None]:
    with (folder / "drivers" / "lock").open("a") as file:
        lock(file, wait=True)
        yield


def check_study(storage: BaseStorage, config: Config) -> None:
    """Check that a study of this name, if there is one, belongs to the folder of the sweep.

    Raises:
        UserError: it belongs to another folder, or was not created by a sweep.
    """
    summaries = optuna.get_all_study_summaries(storage, include_best_trial=False)
    study = next((summary for summary in summaries if summary.study_name == config.name), None)
    if study is None:
        return
    folder = Path("runs") / config.name
    # A driver that has just started wrote this file before it created the study.
    saved = read_config(folder, KIND)["extra"].get(SWEEP) if (folder / "config.json").exists() else None
    # A driver that was killed after it had created the study left it without trials.
    identity = study.user_attrs.get(SWEEP, None if study.n_trials else saved)
    if saved is None or identity != saved:
        raise UserError(
            f"The study {config.name} in {config.storage} belongs to another folder than {folder.absolute()}: all "
            f"drivers must share one folder runs/; for another sweep, choose another --name."
        )


class OpenedSweep(NamedTuple):
    """Folder, driver and storage of a sweep."""

    run: Run  # of this driver
    folder: Path  # of the sweep; that of `run`, unless drivers share the sweep
    driver: SingleDriver
    storage: BaseStorage
    identity: str  # of the folder, if drivers share the sweep; else ""

    def close(self) -> None:
        """Close the connections to the storage, and unlock what this driver has taken over."""
        close_storage(self.storage)
        self.driver.close()


def open_sweep(config: Config, agent_arguments: Sequence[str]) -> OpenedSweep:
    """Create the folder of a sweep, open that of an existing one or, with --storage, join the drivers that share it.

    Raises:
        UserError: the folder holds something else or a sweep with another command, it is in use, or the storage cannot
            be opened or belongs to another folder.
    """
    check_name(config.name)
    folder = Path("runs") / config.name
    with contextlib.ExitStack() as on_error:
        if not config.storage:
            resume = (folder / "config.json").exists()
            if resume:
                check_same_command(config, agent_arguments, folder)
            extra = {"given": list(agent_arguments)}
            run = Run(config, kind=KIND, name=config.name, resume=resume, quiet=config.quiet, extra=extra)
            on_error.callback(run.close)
            storage, driver, identity = open_storage("", folder), SingleDriver(), ""
        elif config.storage == "journal":  # in the folder, which must exist first
            run, driver, identity = open_shared_folder(config, agent_arguments, folder)
            on_error.callback(run.close)
            storage = open_storage(config.storage, folder)
        else:
            storage = open_storage(config.storage, folder)
            on_error.callback(close_storage, storage)
            check_study(storage, config)
            run, driver, identity = open_shared_folder(config, agent_arguments, folder)
        on_error.pop_all()
    return OpenedSweep(run, folder, driver, storage, identity)


def open_shared_folder(config: Config, agent_arguments: Sequence[str], folder: Path) -> tuple[Run, SharedDriver, str]:
    """Create the folder of a sweep that drivers share, or join it, and open a folder for this driver.

    Returns:
        The run of this driver, the driver, and what identifies the folder of the sweep.

    Raises:
        UserError: the folder holds something else, or a sweep with another command.
    """
    if (
        not (folder / "config.json").exists()
        and folder.exists()
        and {path.name for path in folder.iterdir()} - UNFINISHED
    ):
        raise UserError(f"{folder} already holds something else: choose another --name.")
    if (folder / "config.json").exists():
        check_same_command(config, agent_arguments, folder)
    (folder / "drivers").mkdir(parents=True, exist_ok=True)
    with _drivers_lock(folder):
        if not (folder / "config.json").exists():
            extra = {"given": list(agent_arguments), SWEEP: uuid.uuid4().hex}
            write_json(folder / "config.json", first_config(config, KIND, extra))
        check_same_command(config, agent_arguments, folder)
        identity = str(read_config(folder, KIND)["extra"][SWEEP])
        number = 1
        while not _is_free(folder / "drivers" / str(number)):
            number += 1
        own = folder / "drivers" / str(number)
        run = Run(
            config,
            kind=KIND,
            name=own.name,
            resume=(own / "config.json").exists(),
            quiet=config.quiet,
            root=own.parent,
            extra={"given": list(agent_arguments)},
        )
    return run, SharedDriver(folder, number), identity


def _is_free(folder: Path) -> bool:
    """Return True if there is no live driver in a folder of drivers."""
    if not (folder / "lock").exists():
        return True
    with (folder / "lock").open("a") as file:
        return lock(file)
