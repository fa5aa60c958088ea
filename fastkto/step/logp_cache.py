"""The reference's log-probs on disk, by content."""

import contextlib
import json
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from fastkto.disk import check_writable, writing
from fastkto.errors import InputError

logger = logging.get_logger(__name__)

VERSION = 2
HIGHEST = 1e-2
"""Nats: a log-prob is at most 0, but for rounding."""
DISK_SAYS = ("disk is full", "disk I/O error", "readonly", "unable to open")
PATIENCE = 60.0
SET_UP = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "CREATE TABLE IF NOT EXISTS logps "
    "(model TEXT, pair BLOB, logp REAL, checksum INTEGER, PRIMARY KEY (model, pair)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS made_for (about TEXT PRIMARY KEY)",
    f"PRAGMA user_version={VERSION}",
)
COLUMNS = {"logps": ["model", "pair", "logp", "checksum"], "made_for": ["about"]}


class LogpCache:
    """(model, pair of prompt and completion) -> summed log-prob, in one SQLite file that outlives the run.

    Keyed by content alone: order, shuffling and the data set's name do not matter. SQLite makes it safe for several
    processes and for a crash in the middle of a write; a checksum shows an entry that was damaged since.
    `about`: digests of what the pairs and log-probs come from; a
    file that was made for another one is told so by its name, and what it holds is not used.
    Errors: `InputError` for a file that is no such cache, or cannot be read or written.
    """

    def __init__(self, path: Path, model: str, about: Mapping[str, str] | None = None) -> None:
        self.path, self.model = path, model
        self.hits = self.misses = self.damaged = 0
        if path.is_dir():
            raise self._unusable("a folder")
        check_writable("ref_cache_dir", path.parent)
        with writing("ref_cache_dir", path.parent, "the cache"):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._open()
        if about is not None:
            self._introduce(dict(about))

    def _open(self) -> None:
        with self._errors():
            self._database = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise self._unusable(f"a cache of version {version}, made by a newer fastkto (this one: {VERSION})")
            if version == 1:
                logger.warning(f"{self.path} is of an older fastkto, without checksums: its log-probs are not used.")
                self._patiently("DROP TABLE IF EXISTS logps")
            for table, expected in COLUMNS.items():
                found = [column[1] for column in self._database.execute(f"PRAGMA table_info({table})")]
                if found and found != expected:
                    raise self._unusable(f"a table {table!r} with the columns {found} instead of {expected}")
            for statement in SET_UP:
                self._patiently(statement)

    def _patiently(self, statement: str) -> None:
        """Again while another process sets the file up: SQLite's own patience ends where both want to write first."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._database.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _introduce(self, about: dict[str, str]) -> None:
        """Warn where the file was made for something else, and add this to what it is made for."""
        with self._errors():
            known = [json.loads(text) for (text,) in self._database.execute("SELECT about FROM made_for")]
            if known and about not in known:
                nearest = min(([k for k in about if other.get(k) != about[k]] for other in known), key=len)
                logger.warning(
                    f"{self.path} was made with another {' and another '.join(nearest)}: its log-probs are not used, "
                    "those of this run are added."
                )
            self._database.execute("INSERT OR IGNORE INTO made_for VALUES (?)", (json.dumps(about, sort_keys=True),))

    def get(self, pairs: Iterable[bytes]) -> list[float | None]:
        """The log-prob of each pair, None where it is not there yet, or is not what was stored."""
        query = "SELECT logp, checksum FROM logps WHERE model = ? AND pair = ?"
        with self._errors():
            rows = [(pair, self._database.execute(query, (self.model, pair)).fetchone()) for pair in pairs]
        found = [None if row is None or not self._sound(pair, *row) else row[0] for pair, row in rows]
        self.hits += sum(logp is not None for logp in found)
        self.misses += sum(logp is None for logp in found)
        damaged = sum(row is not None for _, row in rows) - sum(logp is not None for logp in found)
        if damaged:
            self.damaged += damaged
            logger.warning_once(f"{self.path} holds damaged log-probs: they are computed again.")
        return found

    def _sound(self, pair: bytes, logp: object, checksum: object) -> bool:
        return isinstance(logp, float) and logp <= HIGHEST and checksum == self._checksum(pair, logp)

    def _checksum(self, pair: bytes, logp: float) -> int:
        return zlib.crc32(self.model.encode() + pair + struct.pack("<d", logp + 0.0))  # SQLite knows no -0.0

    def put(self, pairs: Iterable[bytes], logps: Iterable[float]) -> None:
        """Store log-probs in one transaction."""
        found = zip(pairs, logps, strict=True)
        rows = [(self.model, pair, logp, self._checksum(pair, logp)) for pair, logp in found]
        with self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany("INSERT OR REPLACE INTO logps VALUES (?, ?, ?, ?)", rows)
                self._database.execute("COMMIT")
            except BaseException:  # Ctrl-C too, after which the file must not stay locked
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            with contextlib.suppress(sqlite3.Error):
                self._database.close()  # takes the files of its log along, and undoes what was begun
            if isinstance(error, InputError):
                raise
            if any(words in str(error) for words in DISK_SAYS):
                fix = f"SQLite says: {error}. Free space, or choose another ref_cache_dir; what it holds stays valid."
                raise InputError(
                    "ref_cache_dir", str(self.path.parent), "a place where the cache can be written", fix
                ) from error
            raise self._unusable(f"a file of which SQLite says: {error}") from error

    def _unusable(self, what: str) -> InputError:
        fix = "Delete the file (its log-probs are then computed again), or choose another ref_cache_dir."
        return InputError(f"reference cache {self.path}", what, "a cache of log-probs", fix)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_database"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
