"""Killed with SIGKILL, anywhere and again and again, and resumed: the same bits as never killed.

A kill takes nothing that the system has: what a power cut takes besides is what the syncs of a save are for.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from forked import Forked, side_by_side
from headstart.api import RunIsFinished
from headstart.runlog import CHECKPOINTS_DIR, DISCARDED_LOG_FILE, LOG_FILE, RECIPE_FILE, StepRecord, read_log
from small_training import Settings, bits_of, finish, start


def train_and_finish(settings: Settings, run_dir: Path, *, resume: bool) -> None:
    """Train and score, printing the word for what is done now, for the process that looks on."""
    print("preparing")
    try:
        preparation = start(settings, run_dir, resume=resume)
    except RunIsFinished:
        print("done")  # it was killed after the last thing that it wrote
        return
    print("training")
    for _ in preparation.train():
        pass
    print("scoring")
    preparation.finish()
    print("done")


def everything_of(run_dir: Path) -> dict[str, Any]:
    """Give the bits of a run, its log, the names of all its files, and the bits of its checkpoints.

    A kill moves no save: the log is the same but for a warning where there was nothing to resume yet.
    """
    log = [json.loads(line) for line in (run_dir / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    return {
        **bits_of(run_dir),
        "whole log": [
            {name: value for name, value in record.items() if name != "seconds"}
            for record in log
            if record["record"] != "warning"
        ],
        "files": sorted(
            path.relative_to(run_dir).as_posix()
            for path in run_dir.rglob("*")
            if path.is_file() and path.name != DISCARDED_LOG_FILE
        ),
        "checkpoints": {
            path.relative_to(run_dir).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (run_dir / CHECKPOINTS_DIR).glob("*/*.safetensors")
        },
    }


def half_saved(run_dir: Path) -> set[str]:
    """Name the folders that only a save that was cut off leaves."""
    names = [path.name for path in (run_dir / CHECKPOINTS_DIR).glob("*")]
    return {name for name in names if name.startswith(".") or name.endswith(".replaced")}


# At random moments


@dataclass
class Moments:
    """Kills trainings at random moments, each again and again until it comes to its end in spite of that.

    Args:
        settings: of the training.
        expected: everything that it leaves when it is not killed.
        folder: for the runs.
        seed: of the moments.
    """

    settings: Settings
    expected: dict[str, Any]
    folder: Path
    seed: int

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.counts: Counter[str] = Counter()
        self.number_of_runs = 0
        marks = [time.monotonic()]
        with self._start(resume=False) as process:
            for has_come in (self._is_saved, self._is_scoring, process.has_ended):
                process.wait_until(has_come)
                marks.append(time.monotonic())
        assert process.code == 0, process.printed()
        self._compare()
        self.seconds = {
            begin: marks[-1] - mark
            for begin, mark in zip((self._is_started, self._is_saved, self._is_scoring), marks, strict=False)
        }

    @property
    def run_dir(self) -> Path:
        return self.folder / f"run-{self.seed}-{self.number_of_runs}"

    @property
    def output(self) -> Path:
        return self.run_dir.with_suffix(".txt")

    def kill(self, number: int) -> Counter[str]:
        """Count the kills, by what was done at the moment; a training that has ended before is none."""
        while self.counts.total() < number:
            self.number_of_runs += 1
            kills = self.random.choice([1, 1, 2, 3])
            code = self._kill_once(resume=False)
            while code != 0 and kills > 1:
                kills -= 1
                code = self._kill_once(resume=True)
            if code != 0:
                with self._start(resume=True) as process:
                    assert process.wait() == 0, process.printed()
            self._compare()
            shutil.rmtree(self.run_dir)
        return self.counts

    def _kill_once(self, *, resume: bool) -> int:
        """Start the run or go on with it, kill it, and say how it has ended."""
        before = half_saved(self.run_dir)
        # The last part is short, and a kill in it would be rare. A resumed one has its checkpoint from the start.
        begin = self._is_scoring if self.random.random() < 0.1 else self._is_started if resume else self._is_saved
        with self._start(resume=resume) as process:
            process.wait_until(begin)
            began = time.monotonic()
            moment = began + self.random.random() * self.seconds[begin]
            while time.monotonic() < moment and not process.has_ended():
                time.sleep(0.001)
            process.send(signal.SIGKILL)
            code = process.wait()
        # How long it takes from there to the end changes: other work comes and goes on a machine.
        seconds = self.seconds[begin]
        self.seconds[begin] = 1.02 * seconds if code != 0 else max(0.7 * seconds, time.monotonic() - began)
        if code != 0:
            assert code == -signal.SIGKILL, process.printed()
            doing = process.printed().split()[-1]
            if doing != "done":
                self.counts["saving" if half_saved(self.run_dir) - before else doing] += 1
        return code

    def _start(self, *, resume: bool) -> Forked:
        self.output.unlink(missing_ok=True)
        return Forked(lambda: train_and_finish(self.settings, self.run_dir, resume=resume), self.output)

    def _is_started(self) -> bool:
        return self.output.exists() and bool(self.output.stat().st_size)

    def _is_saved(self) -> bool:
        return any((self.run_dir / CHECKPOINTS_DIR).glob("step-*"))

    def _is_scoring(self) -> bool:
        # Where the kill before came after everything was written, there is nothing left to do.
        return self.output.exists() and any(word in self.output.read_bytes() for word in (b"scoring", b"done"))

    def _compare(self) -> None:
        assert everything_of(self.run_dir) == self.expected


@pytest.fixture(scope="module")
def short(settings: Settings) -> Settings:
    """Give a training of 8 steps, with 4 saves and 2 evaluations."""
    return {**settings, "train.epochs": 1, "train.save_every": 2, "train.evaluate_every": 6}


@pytest.fixture(scope="module")
def short_expected(short: Settings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give everything that it leaves when it is not killed; what it imports, forked processes have imported."""
    return finish_and_give_everything(short, tmp_path_factory.mktemp("unbroken") / "run")


def finish_and_give_everything(settings: Settings, run_dir: Path) -> dict[str, Any]:
    finish(settings, run_dir)
    return everything_of(run_dir)


def test_killed_at_random_moments(short: Settings, short_expected: dict[str, Any], tmp_path: Path) -> None:
    assert Moments(short, short_expected, tmp_path, seed=0).kill(6).total() >= 6


@pytest.mark.exactness
def test_killed_at_200_random_moments(settings: Settings, tmp_path: Path) -> None:
    often_saved = {**settings, "train.epochs": 2, "train.save_every": 1}
    expected = finish_and_give_everything(often_saved, tmp_path / "unbroken")

    def kill(index: int) -> Counter[str]:
        return Moments(often_saved, expected, tmp_path, seed=1 + index).kill(100)

    counts = sum((Counter(part) for part in side_by_side(kill, 2, tmp_path)), Counter[str]())
    assert counts.total() >= 200
    # None of these is rare: moments that never meet one of them are not what they should be.
    assert all(counts[doing] >= 5 for doing in ("preparing", "training", "saving", "scoring")), counts


# At every change that is made to files


class Watch:
    """Counts how often this process changes the files of a run, and kills it when the time has come.

    Args:
        run_dir: of the run.
        is_time: asked after each change, with its number.
    """

    def __init__(self, run_dir: Path, is_time: Callable[[int], bool]) -> None:
        self.run_dir, self.is_time = run_dir, is_time
        self.count = 0
        self._files: dict[str, int] = {}

    def start(self) -> None:
        self._files = self._look()
        sys.setprofile(self._meet)

    def stop(self) -> None:
        sys.setprofile(None)

    def _meet(self, frame: FrameType, event: str, call: Any) -> None:
        """Look at the files before each call of a function that may change them, and after it."""
        if event not in ("c_call", "c_return"):
            return
        owner = getattr(call, "__module__", None) or type(getattr(call, "__self__", None)).__module__
        if owner in ("posix", "io", "_io") or call.__name__ == "serialize_file":
            files = self._look()
            if files != self._files:
                self._files = files
                self.count += 1
                if self.is_time(self.count):
                    os.kill(os.getpid(), signal.SIGKILL)

    def _look(self) -> dict[str, int]:
        """Give the size of each file and folder."""
        sizes = {}
        folders = [str(self.run_dir)]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir():
                            folders.append(entry.path)
                        sizes[entry.path] = entry.stat().st_size
            except FileNotFoundError:
                continue
        return sizes


@dataclass(frozen=True)
class Part:
    """A part of a run, from one step to another.

    Args:
        first: it begins when this step has been made; None is the start, before the folder is opened.
        last: it ends when this step has been made; None is the end, after the scores.
        resumes: it is a part of a run that goes on from another one, killed in a save.
    """

    first: int | None
    last: int | None
    resumes: bool = False


# Of 8 steps with checkpoints of 2, 4, 6 and 8 and evaluations after 6 and 8: the save of 6 removes the one of 4.
PARTS = {
    "the first step": Part(None, 1),
    "a save": Part(6, 7),
    "the end": Part(8, None),
    "a resume": Part(None, 7, resumes=True),
}


@dataclass(frozen=True)
class Changes:
    """Kills a training at the changes that a part of it makes to files.

    Args:
        part: of the training.
        settings: of the training.
        expected: everything that it leaves when it is not killed.
        killed: a run to go on from.
        folder: for the runs.
    """

    part: Part
    settings: Settings
    expected: dict[str, Any]
    killed: Path
    folder: Path

    def count(self) -> int:
        """Count the changes, with the files looked at but nothing killed."""
        with self._start("counted", lambda number: False) as process:
            assert process.wait() == 0, process.printed()
        assert everything_of(self.folder / "counted") == self.expected
        return int(process.printed())

    def kill_after(self, number: int) -> None:
        """Kill it after one of the changes, and compare what it comes to when it goes on."""
        name = f"run-{number}"
        with self._start(name, lambda count: count == number) as process:
            assert process.wait() == -signal.SIGKILL, process.printed()
        run_dir = self.folder / name
        # Killed before its recipe was there, a run is started again; from then on it is resumed.
        resume = (run_dir / RECIPE_FILE).exists()
        with Forked(lambda: train_and_finish(self.settings, run_dir, resume=resume), process.output) as process:
            assert process.wait() == 0, process.printed()
        assert everything_of(run_dir) == self.expected, f"killed after change {number} of {self.part}"
        shutil.rmtree(run_dir)

    def _start(self, name: str, is_time: Callable[[int], bool]) -> Forked:
        run_dir = self.folder / name
        if self.part.resumes:
            shutil.copytree(self.killed, run_dir)
        return Forked(lambda: train_watched(self.settings, run_dir, self.part, is_time), run_dir.with_suffix(".txt"))


def train_watched(settings: Settings, run_dir: Path, part: Part, is_time: Callable[[int], bool]) -> None:
    """Train and score, killed in a part of it; print how many changes that part makes, if it is not."""
    watch = Watch(run_dir, is_time)
    preparation = start(settings, run_dir, resume=part.resumes)
    if part.first is None:
        watch.start()
    for record in preparation.train():
        if isinstance(record, StepRecord):
            if record.step == part.first:
                watch.start()
            if record.step == part.last:
                watch.stop()
    preparation.finish()
    watch.stop()
    print(watch.count)


@pytest.fixture(scope="module")
def killed_in_a_save(short: Settings, short_expected: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run that was killed in the save of step 8, so that the log goes back to step 6."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    half = run_dir / CHECKPOINTS_DIR / ".step-000008.tmp"

    def is_half_saved(number: int) -> bool:
        return (half / "optimizer.safetensors").exists()

    work = functools.partial(train_watched, short, run_dir, PARTS["the end"], is_half_saved)
    with Forked(work, run_dir.with_suffix(".txt")) as process:
        assert process.wait() == -signal.SIGKILL, process.printed()
    assert half_saved(run_dir) == {half.name}
    assert [record.step for record in read_log(run_dir) if isinstance(record, StepRecord)][-1] == 8
    return run_dir


@pytest.fixture
def changes(
    request: pytest.FixtureRequest,
    short: Settings,
    short_expected: dict[str, Any],
    killed_in_a_save: Path,
    tmp_path: Path,
) -> Changes:
    return Changes(PARTS[request.param], short, short_expected, killed_in_a_save, tmp_path)


@pytest.mark.parametrize("changes", PARTS, indirect=True)
def test_killed_at_a_change_of_files(changes: Changes) -> None:
    number = changes.count()
    changes.kill_after(random.Random(number).randint(1, number))


@pytest.mark.exactness
@pytest.mark.parametrize("changes", PARTS, indirect=True)
def test_killed_at_every_change_of_files(changes: Changes, tmp_path: Path) -> None:
    number = changes.count()
    assert number >= 5

    def kill(index: int) -> None:
        for at in range(1 + index, number + 1, 2):
            changes.kill_after(at)

    side_by_side(kill, 2, tmp_path)
