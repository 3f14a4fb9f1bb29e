"""What a run folder holds: its file names, its append-only log, and the lock of its one writer.

Layer 0: imports the standard library only. The records are in `records.py`, named here again.

    append -> log.jsonl -> read_log
                 | truncate (on resume)
                 v
              log.discarded.jsonl
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headstart.errors import CheckpointError
from headstart.records import (
    CheckpointRecord,
    EvaluationRecord,
    Record,
    StepRecord,
    StopReason,
    StopRecord,
    WarningRecord,
    from_json,
    to_json,
)

__all__ = [
    "ADAPTER_DIR",
    "CARD_FILE",
    "CHECKPOINTS_DIR",
    "DATA_FILE",
    "DISCARDED_LOG_FILE",
    "ENVIRONMENT_FILE",
    "LOCK_FILE",
    "LOG_FILE",
    "MODEL_DIR",
    "NON_FINITE_DIR",
    "PREDICTIONS_FILE",
    "RECIPE_FILE",
    "SCORES_FILE",
    "STUDY_FILE",
    "TASK_FILE",
    "TUNING_FILE",
    "CheckpointRecord",
    "EvaluationRecord",
    "Record",
    "RunLock",
    "RunLog",
    "StepRecord",
    "StopReason",
    "StopRecord",
    "WarningRecord",
    "from_json",
    "new_run_dir",
    "read_log",
    "sync_folder",
    "to_json",
]

RECIPE_FILE = "recipe.yaml"
TASK_FILE = "task.json"
ENVIRONMENT_FILE = "environment.json"
DATA_FILE = "data.json"
LOG_FILE = "log.jsonl"
DISCARDED_LOG_FILE = "log.discarded.jsonl"
SCORES_FILE = "scores.json"
PREDICTIONS_FILE = "predictions.parquet"
CARD_FILE = "README.md"
MODEL_DIR = "model"
ADAPTER_DIR = "adapter"
CHECKPOINTS_DIR = "checkpoints"
NON_FINITE_DIR = "non_finite"
LOCK_FILE = ".lock"
STUDY_FILE = "study.json"
TUNING_FILE = "tuning.json"

_TAIL_BLOCK_BYTES = 65536
_RESTORE_LOG = (
    "the log that belongs to the checkpoint.",
    "Restore the log from a copy, or move that checkpoint away to resume from an older one.",
)


def read_log(run_dir: Path) -> Iterator[Record]:
    """Read the records of a run, in order; a run may be writing meanwhile.

    A last line that a kill or a power cut left torn is passed over. No log: no records.

    Args:
        run_dir: the run folder.

    Raises:
        CheckpointError: a line before the last one is broken (the message names it).
    """
    path = run_dir / LOG_FILE
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = from_json(_parse_object(line))
            except ValueError as error:
                if next(file, None) is None:
                    return  # a power cut may leave zeros, with or without an end of line
                raise CheckpointError(
                    f"{path}, line {number}: not a record ({error}).",
                    "one JSON object a line.",
                    "Restore the file from a copy.",
                ) from error
            except CheckpointError as error:
                raise CheckpointError(f"{path}, line {number}: {error.found}", error.expected, error.fix) from error
            yield record


def _parse_object(line: bytes) -> dict[str, Any]:
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"a JSON object is expected, not {type(values).__name__}")
    return values


class RunLog:
    """The append-only log of a run folder; the caller holds the folder's lock.

    A record is in the file when `append` returns, and on the disk when `sync` returns. While the
    disk is full, records wait in memory, so that a full disk alone does not end a training.

    Args:
        run_dir: the run folder. A torn last line in its log moves to `log.discarded.jsonl`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = RunLog(Path(folder))
        ...     log.append(CheckpointRecord(500, "checkpoints/step-000500", best=True))
        ...     length = log.sync()
        ...     log.close()
        ...     [record.step for record in read_log(Path(folder))]
        [500]
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOG_FILE
        self._discarded_path = run_dir / DISCARDED_LOG_FILE
        self._pending = b""
        self._file = self.path.open("a+b", buffering=0)
        try:
            sync_folder(run_dir)
            end = _end_of_last_line(self._file.fileno())
            if end < os.fstat(self._file.fileno()).st_size:
                self.truncate(end)
        except BaseException:
            self._file.close()
            raise

    def append(self, record: Record) -> None:
        """Write a record; it waits in memory while the disk is full."""
        values = to_json(record)
        try:
            line = json.dumps(values, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            # A file name that is not UTF-8 has lone surrogates: no UTF-8 form, but an escape.
            line = json.dumps(values, allow_nan=False).encode()
        self._pending += line + b"\n"
        with contextlib.suppress(CheckpointError):
            self._write_pending()

    def sync(self) -> int:
        """Put everything on the disk.

        Returns:
            The length of the log in bytes, as `truncate` takes it.

        Raises:
            CheckpointError: the disk is full.
        """
        self._write_pending()
        with self._explain_full_disk():
            os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def truncate(self, length: int, *, keep_tail: bool = True) -> None:
        """Cut the log back, so that a resumed run has one record of each step.

        Args:
            length: what `sync` gave at the time to go back to, in bytes.
            keep_tail: move what is cut off to `log.discarded.jsonl`; else drop it.

        Raises:
            CheckpointError: the log is shorter, or no line ends there.
            OSError: the tail cannot be written; the log is as it was.
        """
        file_descriptor = self._file.fileno()
        size = os.fstat(file_descriptor).st_size
        if length > size:
            raise CheckpointError(
                f"{self.path} has {size:,} bytes; the checkpoint was written at {length:,}.",
                *_RESTORE_LOG,
            )
        if length and os.pread(file_descriptor, 1, length - 1) != b"\n":
            raise CheckpointError(
                f"{self.path}: no line ends at byte {length:,}, where the checkpoint was written.",
                *_RESTORE_LOG,
            )
        if keep_tail and (size > length or self._pending):
            self._file.seek(length)
            self._keep(self._file.read() + self._pending)
        self._pending = b""
        os.ftruncate(file_descriptor, length)
        os.fsync(file_descriptor)

    def close(self) -> None:
        """Close the file; what still waits for room on the disk is tried once more.

        Raises:
            CheckpointError: the disk is still full, and the records that waited are lost.
        """
        if self._file.closed:
            return
        try:
            self._write_pending()
        finally:
            self._file.close()

    def _write_pending(self) -> None:
        with self._explain_full_disk():
            while self._pending:
                written = os.write(self._file.fileno(), self._pending)
                self._pending = self._pending[written:]

    @contextlib.contextmanager
    def _explain_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise CheckpointError(
                f"{self.path} could not be written: {error.strerror}.",
                f"room for {len(self._pending):,} more bytes.",
                "Free some space.",
            ) from error

    def _keep(self, tail: bytes) -> None:
        """Add a tail to the discarded lines, once: a kill before the cut comes here again."""
        if not tail.endswith(b"\n"):
            tail += b"\n"
        with self._discarded_path.open("a+b", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size >= len(tail) and os.pread(file.fileno(), len(tail), size - len(tail)) == tail:
                return
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                tail = b"\n" + tail
            try:
                while tail:
                    tail = tail[os.write(file.fileno(), tail) :]
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise


def _end_of_last_line(file_descriptor: int) -> int:
    end = os.fstat(file_descriptor).st_size
    while end > 0:
        start = max(0, end - _TAIL_BLOCK_BYTES)
        newline = os.pread(file_descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


# Folders locked by this process: (device, inode) -> (process id, lock). A forked child inherits its
# parent's, which the process id tells apart.
_LOCKED: dict[tuple[int, int], tuple[int, object]] = {}


class RunLock:
    """The lock of a run folder: one writer at a time, in all processes that see the folder.

    The system frees it when the process ends, however it ends; forked workers do not hold it. The
    lock is on the hidden file `.lock`, which stays: removing it would let two processes lock two
    files of one name.

    Args:
        run_dir: an existing folder.

    Raises:
        CheckpointError: on entering, when this or another process writes to the folder, or the
            folder cannot be locked.

    Source: POSIX record locks, `fcntl(2)`; they are lost when the process closes any handle of the
        file, so this process never opens it twice.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._key: tuple[int, int] | None = None
        self._file_descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Take the lock, or fail at once."""
        try:
            status = os.stat(self.run_dir)
        except OSError as error:
            raise self._cannot_lock(error) from error
        key, entry = (status.st_dev, status.st_ino), (os.getpid(), self)
        holder = _LOCKED.setdefault(key, entry)
        if holder is not entry and holder[0] == os.getpid():
            raise self._busy("this process")
        _LOCKED[key] = entry
        try:
            self._file_descriptor = self._lock_file()
        except BaseException:
            del _LOCKED[key]
            raise
        self._key = key
        return self

    def __exit__(self, *exception: object) -> None:
        """Free the lock. In a forked child this frees nothing, for the child holds nothing."""
        if self._file_descriptor is not None:
            os.close(self._file_descriptor)
            self._file_descriptor = None
        if self._key is not None:
            _LOCKED.pop(self._key, None)
            self._key = None

    def _lock_file(self) -> int:
        import fcntl  # not on every system; a finished run can be read without it

        try:
            file_descriptor = os.open(self.run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._cannot_lock(error) from error
        try:
            fcntl.lockf(file_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk must not cost the lock
                os.ftruncate(file_descriptor, 0)
                os.pwrite(
                    file_descriptor,
                    f"process {os.getpid()} on {socket.gethostname()}\n".encode(),
                    0,
                )
        except OSError as error:
            holder = os.pread(file_descriptor, 200, 0).decode(errors="replace").strip()
            os.close(file_descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise self._busy(holder or "another process") from error
            raise self._cannot_lock(error) from error
        except BaseException:
            os.close(file_descriptor)
            raise
        return file_descriptor

    def _busy(self, holder: str) -> CheckpointError:
        return CheckpointError(
            f"{self.run_dir} is in use: {holder} writes to it.",
            "one training a run folder.",
            "Wait for it, stop it, or choose another folder.",
        )

    def _cannot_lock(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.run_dir} cannot be locked: {error.strerror or error}.",
            "a folder that you may write to, on a file system with locks.",
            "Choose another folder.",
        )


def new_run_dir(root: Path, name: str) -> Path:
    """Make a new run folder, `root/NAME-N`, with the first number that is free.

    Two processes that ask at the same time get two folders: the system makes each only once.

    Args:
        root: where runs go; made if it is not there.
        name: without a number, such as "reviews".

    Raises:
        CheckpointError: the folder cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [new_run_dir(Path(folder), "reviews").name for _ in range(2)]
        ['reviews-1', 'reviews-2']
    """
    number = 1
    while True:
        run_dir = root / f"{name}-{number}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            run_dir.mkdir()
        except FileExistsError as error:
            if not root.is_dir():
                raise CheckpointError(f"{root} is a file.", "a folder for runs.", "Choose another folder.") from error
            number += 1
        except OSError as error:
            raise CheckpointError(
                f"{run_dir} cannot be made: {error.strerror or error}.",
                "a folder that you may write to.",
                "Choose another folder.",
            ) from error
        else:
            return run_dir


def sync_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk, after a file in it was made or renamed.

    File systems that cannot do this (some network ones) are passed over: names are theirs to keep.
    """
    file_descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file_descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(file_descriptor)
