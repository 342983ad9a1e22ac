"""The file of latency tables: one SQLite database, which several processes may use at once.

Beside the latencies of small graphs it holds what else a plan measures: whole networks that were timed in turn, and losses of candidates.

Every measurement is a row that is committed by itself, so that a killed process loses none. A second database beside the file
serves as a lock of the hardware: the process that measures holds a transaction on it, which ends with the process.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...ir import UsageError
from ...ir.errors import check_readable

VERSION = 2
_APPLICATION = 0x67734C54
"""SQLite's application ID of our files ("gsLT")."""
BUSY_SECONDS = 30.0
"""How long a process waits while another one writes."""
EXCLUSIVE_SECONDS = 600.0
"""How long a process waits while another one measures on the same hardware."""
_POLL = 0.05

_SCHEMA = """
CREATE TABLE IF NOT EXISTS measurements (
    signature TEXT PRIMARY KEY, device TEXT NOT NULL, text TEXT NOT NULL, milliseconds REAL NOT NULL,
    spread REAL NOT NULL, rounds INTEGER NOT NULL, measured_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS calibrations (
    identity TEXT PRIMARY KEY, device TEXT NOT NULL, milliseconds REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS networks (
    signature TEXT PRIMARY KEY, device TEXT NOT NULL, milliseconds TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS scores (
    plan TEXT NOT NULL, candidates TEXT NOT NULL, loss REAL NOT NULL, PRIMARY KEY (plan, candidates)
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Row:
    """A stored measurement.

    Attributes:
        signature: The signature of the graph on the device.
        device: The name of the device.
        text: The canonical text; the signature is its hash.
        milliseconds: The latency.
        spread: The interquartile range of the rounds, in milliseconds.
        rounds: The number of rounds.
        measured_at: The time of the measurement, in UTC.
    """

    signature: str
    device: str
    text: str
    milliseconds: float
    spread: float
    rounds: int
    measured_at: str = ""


class Store:
    """A file of latency tables.

    Args:
        path: The file; it is created with its folder when it is first used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def find(self, signatures: Sequence[str]) -> dict[str, Row]:
        """The stored measurements of some signatures.

        Raises:
            UsageError: If the file cannot be used.
        """
        found = {}
        with self._open() as database:
            for name in dict.fromkeys(signatures):
                row = database.execute(f"{_SELECT} WHERE signature = ?", (name,)).fetchone()
                if row is not None:
                    found[name] = Row(*row)
        return found

    def rows(self) -> list[Row]:
        """All measurements, by device and then by latency.

        Raises:
            UsageError: If the file cannot be used.
        """
        with self._open() as database:
            order = "ORDER BY device, milliseconds DESC, signature"
            return [Row(*row) for row in database.execute(f"{_SELECT} {order}")]

    def add(self, row: Row) -> None:
        """Store a measurement; it replaces an older one with the same signature.

        Raises:
            UsageError: If the file cannot be used.
        """
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        values = (row.signature, row.device, row.text, row.milliseconds, row.spread, row.rounds)
        with self._open() as database:
            database.execute(
                "INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?)", (*values, now)
            )

    def networks(self, signature: str) -> list[float] | None:
        """The milliseconds of whole networks that were timed in turn, if they are stored.

        Raises:
            UsageError: If the file cannot be used.
        """
        query = "SELECT milliseconds FROM networks WHERE signature = ?"
        with self._open() as database:
            row = database.execute(query, (signature,)).fetchone()
        return None if row is None else [float.fromhex(word) for word in row[0].split()]

    def add_networks(self, signature: str, device: str, milliseconds: Sequence[float]) -> None:
        """Store the milliseconds of whole networks.

        Raises:
            UsageError: If the file cannot be used.
        """
        text = " ".join(value.hex() for value in milliseconds)
        with self._open() as database:
            database.execute(
                "INSERT OR REPLACE INTO networks VALUES (?, ?, ?)", (signature, device, text)
            )

    def scores(self, plan: str) -> dict[str, float]:
        """The losses of sets of candidates that are stored for a plan.

        Raises:
            UsageError: If the file cannot be used.
        """
        query = "SELECT candidates, loss FROM scores WHERE plan = ?"
        with self._open() as database:
            return dict(database.execute(query, (plan,)).fetchall())

    def add_score(self, plan: str, candidates: str, loss: float) -> None:
        """Store the loss of a set of candidates.

        Raises:
            UsageError: If the file cannot be used.
        """
        with self._open() as database:
            database.execute(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", (plan, candidates, loss)
            )

    def clear(self, device: str | None = None) -> int:
        """Remove the measurements of a device, or all and the scores too; returns how many measurements there were.

        Raises:
            UsageError: If the file cannot be used.
        """
        where, values = ("", ()) if device is None else (" WHERE device = ?", (device,))
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            count = database.execute(f"DELETE FROM measurements{where}", values).rowcount
            database.execute(f"DELETE FROM calibrations{where}", values)
            database.execute(f"DELETE FROM networks{where}", values)
            if device is None:
                database.execute("DELETE FROM scores")
            database.execute("COMMIT")
        return int(count)

    def calibration(self, identity: str) -> float | None:
        """The milliseconds of the reference graph on a device, if they are stored.

        Raises:
            UsageError: If the file cannot be used.
        """
        query = "SELECT milliseconds FROM calibrations WHERE identity = ?"
        with self._open() as database:
            row = database.execute(query, (identity,)).fetchone()
        return None if row is None else float(row[0])

    def calibrate(self, identity: str, device: str, milliseconds: float) -> None:
        """Store the milliseconds of the reference graph on a device.

        Raises:
            UsageError: If the file cannot be used.
        """
        with self._open() as database:
            database.execute(
                "INSERT OR REPLACE INTO calibrations VALUES (?, ?, ?)",
                (identity, device, milliseconds),
            )

    @contextmanager
    def exclusive(self, hardware: str) -> Iterator[None]:
        """Hold the lock of some hardware; it is released if the process dies.

        Raises:
            UsageError: If another process holds it for too long, or it cannot be created.
        """
        path = self.path.with_name(f"{self.path.name}.{hardware}.lock")
        end = time.monotonic() + EXCLUSIVE_SECONDS
        with _explained(path), _connection(path, 0.0) as lock:
            while True:
                try:
                    lock.execute("BEGIN EXCLUSIVE")
                    break
                except sqlite3.OperationalError as error:
                    if not _is_busy(error):
                        raise
                    if time.monotonic() > end:
                        raise UsageError(
                            f"{path} is held by another process that times on this {hardware} since "
                            f"{EXCLUSIVE_SECONDS:.0f} s: wait for it or end it, then run again"
                        ) from error
                # Poll, because Ctrl-C would not interrupt SQLite's own wait.
                time.sleep(_POLL)
            try:
                yield
            finally:
                lock.execute("ROLLBACK")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with _explained(self.path), _connection(self.path, BUSY_SECONDS) as database:
            _prepare(database, self.path)
            yield database


_SELECT = (
    "SELECT signature, device, text, milliseconds, spread, rounds, measured_at FROM measurements"
)


@contextmanager
def _connection(path: Path, busy: float) -> Iterator[sqlite3.Connection]:
    """Open a connection in which every statement is committed by itself."""
    check_readable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {path.parent}: {error.strerror or error}; {_ELSEWHERE}"
        ) from error
    with closing(sqlite3.connect(path, timeout=busy, isolation_level=None)) as database:
        yield database


_ELSEWHERE = "give another file by GRAPHSHRINK_LATENCY_DB, or by --table of 'graphshrink bench'"


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    """Create the tables of a new file, and those that a file of an older version lacks; check the version of an existing one.

    Raises:
        UsageError: If the file is of a newer version or another program.
    """
    if _is_ready(database, path):
        return
    end = time.monotonic() + BUSY_SECONDS
    while True:  # SQLite does not wait for other processes when it changes to WAL.
        try:
            database.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > end:
                raise
            time.sleep(_POLL)
    database.execute("BEGIN IMMEDIATE")
    if not _is_ready(database, path):  # Another process may have been first.
        for statement in _SCHEMA.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {_APPLICATION}")
        database.execute(f"PRAGMA user_version = {VERSION}")
    database.execute("COMMIT")


def _is_ready(database: sqlite3.Connection, path: Path) -> bool:
    """Whether all tables exist; false for an empty file, or one of an older version.

    Raises:
        UsageError: If the file is of a newer version or another program.
    """
    if not database.in_transaction:
        # All questions are asked of one state of the file: another process may be making its tables.
        database.execute("BEGIN")
        try:
            return _is_ready(database, path)
        finally:
            database.execute("ROLLBACK")
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if application == _APPLICATION:
        if version > VERSION:
            raise UsageError(
                f"{path} has version {version} of the latency tables, this graphshrink reads {VERSION}: "
                f"upgrade graphshrink, or {_ELSEWHERE}"
            )
        return bool(version == VERSION)
    if version or database.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise UsageError(f"{path} is a database of another program: {_ELSEWHERE}")
    return False


def _is_busy(error: sqlite3.Error) -> bool:
    text = str(error)
    return "locked" in text or "busy" in text


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one line that names the file and the remedy."""
    try:
        yield
    except sqlite3.Error as error:
        text = str(error)
        if _is_busy(error):
            why = "is locked by another process: wait for it or end it, then run again"
        elif "unable to open" in text or "readonly" in text:
            why = f"cannot be opened for writing: {_ELSEWHERE}"
        elif "not a database" in text or "malformed" in text:
            why = f"is damaged or not a database: delete it to measure again, or {_ELSEWHERE}"
        else:
            why = f"cannot be used ({text}): {_ELSEWHERE}"
        raise UsageError(f"{path} {why}") from error
