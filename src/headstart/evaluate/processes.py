"""Several processes score together: each writes its rows into a shared folder, and the first one reads them all.

Imports the standard library and layer 0; `data.table_cache` inside a function.

    process 1, 2, ...   rows -> part-1-round-0-TOKEN.json (temporary file, then one rename)  -> None
    process 0           waits for the parts of this round, at most `timeout` seconds -> rows of all, in process order

The round counts the calls of `compute` with one name, so the processes may call it again and again, or load the metric
anew each time. What a job that was killed left behind is not taken for a part of this one: a process removes its own
leftovers when it loads the metric, and process 0 leaves aside what is much older than itself.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from headstart.errors import DataError, ProcessLostError, RecipeError, SourceError

__all__ = ["DEFAULT_TIMEOUT", "ProcessGroup"]

DEFAULT_TIMEOUT: Final = 100.0
"""Seconds, as in evaluate."""

# Processes of one job start at about the same time; their clocks may differ a little.
_SLACK_SECONDS: Final = 60.0
_LONGEST_PAUSE: Final = 0.2
_PART: Final = re.compile(r"part-(\d+)-round-(\d+)-([0-9a-f]+)\.json")

_began = time.time()
# The same in all objects of a process, so that a metric loaded anew for each evaluation goes on counting. After a fork
# the process number differs.
_tokens: dict[int, str] = {}
_rounds: dict[tuple[int, Path, int], int] = {}


@dataclass(frozen=True)
class _Part:
    path: Path
    process_id: int
    round: int
    token: str


class ProcessGroup:
    """The processes that score together.

    Args:
        name: of the metric and its configuration.
        num_process: how many processes.
        process_id: number of this one, from 0.
        experiment_id: the same in all of them, and in no other job that runs at the same time.
        cache_dir: a folder that all see; None for `evaluate` in $HEADSTART_CACHE or ~/.cache/headstart.
        timeout: seconds that process 0 waits for the others.

    Raises:
        RecipeError: a number is out of range.
        SourceError: the folder cannot be written.
    """

    def __init__(
        self,
        name: str,
        *,
        num_process: int,
        process_id: int,
        experiment_id: str,
        cache_dir: str | os.PathLike[str] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        check_numbers(num_process, process_id, timeout)
        self.name = name
        self.num_process = num_process
        self.process_id = process_id
        self.timeout = timeout
        folder = quote(f"{name} {experiment_id} {num_process}", safe=" ").replace(" ", "-")
        self._folder = _root(cache_dir) / folder
        self._make_folder()
        for part in self._parts():
            if part.process_id == process_id and part.token != _token():
                part.path.unlink(missing_ok=True)

    def gather(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]] | None:
        """Put the rows of all processes together.

        Args:
            rows: of this process, by column; may be empty.

        Returns:
            On process 0 the rows of all in process order; None elsewhere.

        Raises:
            ProcessLostError: a process has not given its part in time; its number is in `ranks`.
            DataError: rows cannot be written as JSON, or the processes score different things.
        """
        key = (os.getpid(), self._folder, self.process_id)
        number = _rounds.get(key, 0)
        _rounds[key] = number + 1
        if self.process_id != 0:
            self._write(number, rows)
            return None
        parts = self._wait(number)
        gathered = {column: list(values) for column, values in rows.items()}
        for part in parts:
            theirs = json.loads(part.path.read_text(encoding="utf-8"))
            if set(theirs) != set(gathered):
                raise DataError(
                    f"{self.name}: process {part.process_id} has the columns {', '.join(sorted(theirs))}.",
                    f"those of process 0: {', '.join(sorted(gathered))}.",
                    "Load the same metric on all processes.",
                )
            for column, values in theirs.items():
                gathered[column].extend(values)
        self._clean_up(number)
        return gathered

    def _write(self, number: int, rows: dict[str, list[Any]]) -> None:
        try:
            text = json.dumps(rows)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{self.name}: rows cannot be given to process 0 ({error}).",
                "numbers, texts, and lists and dicts of them.",
                "Turn each row into plain values before adding it.",
            ) from error
        name = f"part-{self.process_id}-round-{number}-{_token()}.json"
        # Process 0 removes the folder when it is empty, perhaps just now.
        for attempt in range(5):
            self._make_folder()
            try:
                handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self._folder)
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                os.replace(temporary, self._folder / name)
                return
            except FileNotFoundError:
                if attempt == 4:
                    raise

    def _wait(self, number: int) -> list[_Part]:
        deadline, pause = time.monotonic() + self.timeout, 0.005
        while True:
            here: dict[int, _Part] = {}
            for part in self._parts():
                if part.round != number or not 0 < part.process_id < self.num_process or _is_old(part.path):
                    continue
                if part.process_id in here:
                    raise self._two_jobs(part.process_id)
                here[part.process_id] = part
            missing = [rank for rank in range(1, self.num_process) if rank not in here]
            if not missing:
                return [here[rank] for rank in range(1, self.num_process)]
            if time.monotonic() > deadline:
                raise self._lost(missing)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _clean_up(self, number: int) -> None:
        for part in self._parts():
            if part.round <= number and not _is_old(part.path):
                part.path.unlink(missing_ok=True)
        try:
            self._folder.rmdir()
        except OSError:
            return  # a process is ahead, and its part of the next round lies there

    def _parts(self) -> Iterator[_Part]:
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return
        for name in names:
            if found := _PART.fullmatch(name):
                yield _Part(self._folder / name, int(found[1]), int(found[2]), found[3])

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SourceError(
                f"{self._folder}: the folder cannot be made ({error.strerror}).",
                "a folder that all processes can write to.",
                "Name another one with cache_dir.",
            ) from error

    def _lost(self, missing: list[int]) -> ProcessLostError:
        ranks = ", ".join(map(str, missing))
        return ProcessLostError(
            f"{self.name}: process {ranks} of {self.num_process} has given no part after {self.timeout:g} s, "
            f"in {self._folder}.",
            "a call of compute() in every process, and one folder that all of them see.",
            "Look into the output of that process. On several machines give cache_dir a shared folder; where processes "
            "are slow, give load(...) a longer timeout.",
            ranks=missing,
        )

    def _two_jobs(self, rank: int) -> DataError:
        return DataError(
            f"{self.name}: {self._folder} has parts of two processes {rank}.",
            "one job with this experiment_id at a time.",
            "Give each job its own experiment_id, the same in all its processes.",
        )


def check_numbers(num_process: int, process_id: int, timeout: float) -> None:
    """Refuse a number that is out of range.

    Raises:
        RecipeError: it is.
    """
    if not isinstance(num_process, int) or num_process < 1:
        raise RecipeError(f"num_process is {num_process!r}.", "a whole number from 1.", "Give the number of processes.")
    if not isinstance(process_id, int) or not 0 <= process_id < num_process:
        raise RecipeError(
            f"process_id is {process_id!r} of {num_process}.",
            f"a whole number from 0 to {num_process - 1}.",
            "Give the number of this process, and num_process=... the number of all.",
        )
    if not timeout > 0:
        raise RecipeError(f"timeout is {timeout!r}.", "seconds, more than 0.", "Give another number.")


def _root(cache_dir: str | os.PathLike[str] | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    from headstart.data.table_cache import cache_dir as own_cache_dir

    return own_cache_dir("evaluate")


def _token() -> str:
    return _tokens.setdefault(os.getpid(), uuid.uuid4().hex)


def _is_old(path: Path) -> bool:
    try:
        return path.stat().st_mtime < _began - _SLACK_SECONDS
    except FileNotFoundError:
        return True
