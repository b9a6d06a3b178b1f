"""The prediction log: what was asked, what was answered, as JSON lines for monitoring.

A request never waits for it: one writer thread takes batches from a bounded queue; when the queue is full or the disk
refuses, predictions are dropped and counted. What is in the queue when the process is killed is lost. Old files are
not deleted here.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

FILE_BYTES = 64 * 2**20
QUEUE_ROWS = 50_000
FLUSH_SECONDS = 1.0

_log = logging.getLogger(__name__)

Record = dict[str, Any]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class PredictionLog:
    """Appends predictions to ``<folder>/<day>-<pid>-<number>.jsonl``, files of mode 0600.

    A file holds predictions of one UTC day and of one process, so that two servers of a roll-out share the folder.

    :param folder: where the files go; made with mode 0700 when it is not there.
    :param file_bytes: a file that has reached this size is followed by the next.
    :param queue_rows: predictions that may wait for the writer.
    :param clock: the current time in UTC.
    """

    def __init__(
        self,
        folder: Path,
        *,
        file_bytes: int = FILE_BYTES,
        queue_rows: int = QUEUE_ROWS,
        clock: Callable[[], dt.datetime] = _now,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self.written = 0
        self.dropped = 0
        #: Off while a candidate is tried out: what its callers send then are no predictions.
        self.enabled = True
        self._file_bytes, self._queue_rows, self._clock = file_bytes, queue_rows, clock
        self._queue: deque[tuple[dt.datetime, list[Record]]] = deque()
        self._waiting = 0
        self._closed = False
        self._changed = threading.Condition()
        self._file: BinaryIO | None = None
        self._day = ""
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def append(self, records: Sequence[Record]) -> None:
        """Queue the predictions of one request; returns at once.

        :param records: each with ``id``, ``model``, ``version``, ``features`` and ``score``; ``time`` is added.
        """
        if not self.enabled or not records:
            return
        with self._changed:
            # A batch that finds the queue empty is always taken, however large.
            full = self._waiting and self._waiting + len(records) > self._queue_rows
            if self._closed or full:
                self.dropped += len(records)
                return
            self._queue.append((self._clock(), list(records)))
            self._waiting += len(records)
            self._changed.notify()

    def close(self, timeout: float = 5.0) -> None:
        """Write what is queued and end the writer.

        :param timeout: seconds to wait for it.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                batches, closing = list(self._queue), self._closed
                self._queue.clear()
            for moment, records in batches:
                self._write(moment, records)
                with self._changed:
                    self._waiting -= len(records)
            self._guarded(self._flush)
            if closing:  # append takes nothing any more, so nothing came in between
                self._guarded(self._end_file)
                return

    def _write(self, moment: dt.datetime, records: list[Record]) -> None:
        time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # Only the order of the keys and ASCII matter: half a surrogate pair, which JSON can carry, has no UTF-8.
        lines = [
            json.dumps({"id": r["id"], "time": time, **r}, separators=(",", ":")).encode() + b"\n" for r in records
        ]
        done = 0

        def write() -> None:
            nonlocal done
            for line in lines:
                self._file_for(moment).write(line)
                done += 1

        self._guarded(write)
        with self._changed:
            self.written += done
            self.dropped += len(lines) - done

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run an action on the disk; a disk that refuses costs predictions, not the writer."""
        try:
            action()
        except OSError as error:
            _log.error("the prediction log in %s cannot be written: %s", self.folder, error)
            self._file = None  # the next batch tries a fresh one

    def _flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def _end_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _file_for(self, moment: dt.datetime) -> BinaryIO:
        day = f"{moment:%Y-%m-%d}"
        if self._file is not None and (day != self._day or self._file.tell() >= self._file_bytes):
            self._end_file()
        if self._file is None:
            self._file, self._day = self._open(day), day
        return self._file

    def _open(self, day: str) -> BinaryIO:
        number = 0
        while True:
            path = self.folder / f"{day}-{os.getpid()}-{number:04d}.jsonl"
            try:
                return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600), "wb")
            except FileExistsError:
                number += 1
