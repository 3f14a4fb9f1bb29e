"""Whatever a kill, a full disk or a bad sector leaves of a run: it is found, said, and costs no bit of the result."""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from headstart.errors import CheckpointError
from headstart.records import CheckpointRecord, Record, StepRecord, WarningRecord
from headstart.runlog import read_log
from headstart.training.checkpoint import load_checkpoint
from small_training import Settings, bits_of, finish, start, train_to

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")

Bits = dict[str, Any]


@pytest.fixture(scope="module")
def saving(settings: Settings) -> Settings:
    """Save every third step, keep two checkpoints, and no best one beside them."""
    return {**settings, "train.keep": 2, "train.best": "last"}


@pytest.fixture(scope="module")
def unbroken(whole_run: Callable[..., Bits]) -> Bits:
    return whole_run(train__keep=2, train__best="last")


@pytest.fixture(scope="module")
def stopped(saving: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run left after step 14: checkpoints of 9 and 12, and a log that goes on."""
    return left_after(14, saving, tmp_path_factory.mktemp("stopped") / "run")


@pytest.fixture(scope="module")
def of_another_seed(saving: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return left_after(14, {**saving, "train.seed": 7}, tmp_path_factory.mktemp("other") / "run")


@pytest.fixture
def run_dir(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def left_after(step: int, settings: Settings, run_dir: Path) -> Path:
    records = start(settings, run_dir).train()
    for record in records:
        if isinstance(record, StepRecord) and record.step == step:
            break
    records.close()
    return run_dir


def checkpoints_of(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def content_of(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


# A broken checkpoint


def damage(file: Path, how: str, other: Path) -> None:
    content = bytearray(file.read_bytes())
    match how:
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "one bit":
            content[0 if file.suffix == ".json" else len(content) // 2] ^= 1
            file.write_bytes(content)
        case "emptied":
            file.write_bytes(b"")
        case "removed":
            file.unlink()
        case "of another run":
            shutil.copy(other, file)


IN_SHORT = {
    ("model.safetensors", "one bit"),
    ("optimizer.safetensors", "of another run"),
    ("state.json", "truncated"),
    ("manifest.json", "removed"),
}


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(name, how, marks=[] if (name, how) in IN_SHORT else pytest.mark.exactness)
        for name in FILES
        for how in ("truncated", "one bit", "emptied", "removed", "of another run")
    ],
)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(
    name: str, how: str, run_dir: Path, of_another_seed: Path, unbroken: Bits
) -> None:
    newest = Path("checkpoints") / "step-000012"
    damage(run_dir / newest / name, how, of_another_seed / newest / name)
    preparation = start({}, run_dir, resume=True)
    records = list(preparation.train())
    preparation.finish()
    said = [record for record in records if isinstance(record, WarningRecord)]
    assert [record.kind for record in said] == ["checkpoint"]
    assert str(newest) in said[0].message
    # A manifest of another run is a good manifest: it is the files that do not agree with it.
    assert any(file in said[0].message for file in (FILES if name == "manifest.json" else [name]))
    assert next(record.step for record in records if isinstance(record, StepRecord)) == 10
    assert bits_of(run_dir) == unbroken
    assert said[0] in read_log(run_dir)


def test_where_no_checkpoint_is_whole_nothing_is_begun_anew(run_dir: Path, unbroken: Bits) -> None:
    """Each fault is named, nothing is changed, and one file from a copy is enough to go on."""
    checkpoints = run_dir / "checkpoints"
    lost = (checkpoints / "step-000009" / "state.json").read_bytes()
    (checkpoints / "step-000009" / "state.json").unlink()
    (checkpoints / "step-000012" / "optimizer.safetensors").write_bytes(b"")
    before = content_of(run_dir)
    with pytest.raises(CheckpointError) as error:
        list(start({}, run_dir, resume=True).train())
    message = str(error.value)
    assert "step-000009" in message and "state.json is missing" in message
    assert "step-000012" in message and "optimizer.safetensors has 0 bytes" in message
    assert content_of(run_dir) == before
    (checkpoints / "step-000009" / "state.json").write_bytes(lost)
    assert finish({}, run_dir, resume=True) == unbroken


def test_a_damaged_best_checkpoint_is_not_taken_for_the_model(
    settings: Settings, whole_run: Callable[..., Bits], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    preparation = start({**settings, "train.evaluate_every": 2, "train.best": "accuracy"}, run_dir)
    list(preparation.train())
    best, newest = (run_dir / "checkpoints" / name for name in checkpoints_of(run_dir))
    assert newest.name == "step-000024"
    content = (best / "model.safetensors").read_bytes()
    damage(best / "model.safetensors", "one bit", best)
    with pytest.raises(CheckpointError, match=rf"{best.name}.*model\.safetensors"):
        preparation.finish()
    assert not (run_dir / "scores.json").exists()
    (best / "model.safetensors").write_bytes(content)
    whole = whole_run(train__evaluate_every=2, train__best="accuracy")
    assert finish({}, run_dir, resume=True) == whole


# A checkpoint that is whole, but not of this run


@pytest.mark.parametrize("place", ["step-000012", pytest.param("step-000015", marks=pytest.mark.exactness)])
def test_a_checkpoint_of_another_seed_is_refused(
    place: str, run_dir: Path, of_another_seed: Path, saving: Settings, unbroken: Bits, tmp_path: Path
) -> None:
    checkpoints = run_dir / "checkpoints"
    if place == "step-000012":
        (checkpoints / place).rename(tmp_path / place)
        shutil.copytree(of_another_seed / "checkpoints" / place, checkpoints / place)
    else:
        other = left_after(16, {**saving, "train.seed": 7}, tmp_path / "longer")
        shutil.copytree(other / "checkpoints" / place, checkpoints / place)
    before = content_of(run_dir)
    with pytest.raises(CheckpointError, match=r"train\.seed was 7, is 0"):
        list(start({}, run_dir, resume=True).train())
    assert content_of(run_dir) == before
    shutil.rmtree(checkpoints / place)
    assert finish({}, run_dir, resume=True) == unbroken


def test_a_checkpoint_of_other_rows_is_refused(run_dir: Path, saving: Settings, tmp_path: Path) -> None:
    rows = Path(saving["data.train"]).read_text(encoding="utf-8").replace("music", "apple", 1)
    (tmp_path / "reviews.csv").write_text(rows, encoding="utf-8")
    other = left_after(14, {**saving, "data.train": str(tmp_path / "reviews.csv")}, tmp_path / "other")
    shutil.rmtree(run_dir / "checkpoints")
    shutil.copytree(other / "checkpoints", run_dir / "checkpoints")
    with pytest.raises(CheckpointError, match="data: train was "):
        list(start({}, run_dir, resume=True).train())


def test_a_best_checkpoint_of_another_run_does_not_become_the_model(settings: Settings, tmp_path: Path) -> None:
    """It is whole, and its step is that of the best one: only what it was trained with is another."""
    settings = {**settings, "train.evaluate_every": 2, "train.best": "accuracy", "train.save_every": 1}
    preparation = start(settings, tmp_path / "run")
    list(preparation.train())
    best = checkpoints_of(tmp_path / "run")[0]
    other = left_after(12, {**settings, "train.seed": 7, "train.keep": 24}, tmp_path / "other")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / best)
    shutil.copytree(other / "checkpoints" / best, tmp_path / "run" / "checkpoints" / best)
    with pytest.raises(CheckpointError, match=best):
        preparation.finish()


# A torn log


@pytest.mark.parametrize(
    "cut",
    [
        40,
        "all after the checkpoint",
        *(pytest.param(cut, marks=pytest.mark.exactness) for cut in (1, 2, "a line", "a line and 1")),
    ],
)
def test_a_torn_line_of_the_log_is_mended(cut: int | str, run_dir: Path, unbroken: Bits) -> None:
    log = run_dir / "log.jsonl"
    content = log.read_bytes()
    last_line = len(content) - content.rstrip(b"\n").rfind(b"\n") - 1
    saved = json.loads((run_dir / "checkpoints" / "step-000012" / "state.json").read_text())["state"]["log_length"]
    lost = {"a line": last_line, "a line and 1": last_line + 1, "all after the checkpoint": len(content) - saved}
    assert saved < len(content) - last_line
    log.write_bytes(content[: -lost.get(str(cut), cut)])
    assert finish({}, run_dir, resume=True) == unbroken
    assert log.read_bytes().startswith(content[:saved])


@pytest.mark.exactness
def test_zeros_of_a_power_cut_at_the_end_of_the_log_are_mended(run_dir: Path, unbroken: Bits) -> None:
    with (run_dir / "log.jsonl").open("ab") as file:
        file.write(b"\0" * 100)
    assert finish({}, run_dir, resume=True) == unbroken


def test_a_log_without_lines_that_the_checkpoint_was_sure_of_is_refused(run_dir: Path) -> None:
    content = (run_dir / "log.jsonl").read_bytes()
    (run_dir / "log.jsonl").write_bytes(content[:1000])
    with pytest.raises(CheckpointError, match=r"log\.jsonl has .* bytes; the checkpoint was written at"):
        list(start({}, run_dir, resume=True).train())
    (run_dir / "log.jsonl").write_bytes(content)
    start({}, run_dir, resume=True)


# A full disk

WRITES = {"fsync", "ftruncate", "mkdir", "pwrite", "rename", "replace", "rmdir", "serialize_file", "unlink", "write"}


class FullDisk:
    """Lets one call that needs the disk fail, the n-th after it was switched on; a text written in pieces is one."""

    on: FullDisk | None = None

    def __init__(self, at: int) -> None:
        self.at, self.count, self.last, self.failed = at, 0, "", ""

    def switch(self, on: bool) -> None:
        _listen_to_openings()
        FullDisk.on = self if on else None
        sys.setprofile(self._hear_call if on else None)

    def watch(self, records: Iterator[Record], step: int) -> Iterator[Record]:
        """Be on from the record of a step to the one of the next: while the step is saved."""
        for record in records:
            if isinstance(record, StepRecord):
                self.switch(record.step == step)
            yield record

    def _hear_call(self, frame: Any, event: str, call: Any) -> None:
        owner = getattr(call, "__module__", None) or type(getattr(call, "__self__", None)).__module__
        if event == "c_call" and call.__name__ in WRITES and owner not in ("builtins", "sys"):
            self.need(f"{call.__name__} in {frame.f_code.co_name}")

    def need(self, what: str) -> None:
        self.count += what != self.last or not what.startswith("write ")
        self.last = what
        if self.count == self.at and not self.failed:
            self.failed = what
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@functools.cache
def _listen_to_openings() -> None:
    """Tell the disk that is on of each file opened for writing; a full disk can be read. A listener stays for good."""

    def hear(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and FullDisk.on is not None and args[2] & (os.O_WRONLY | os.O_RDWR):
            FullDisk.on.need(f"open in {sys._getframe(1).f_code.co_name}")

    sys.addaudithook(hear)


# A fault in place of closing a file leaves that to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "points", [[6, 16, 18], pytest.param(range(1, 60), marks=pytest.mark.exactness)], ids=["some", "all"]
)
def test_a_disk_that_is_full_at_any_write_of_a_save_ends_nothing(
    points: Sequence[int], saving: Settings, unbroken: Bits, tmp_path: Path
) -> None:
    failed = []
    for at in points:
        run_dir = tmp_path / str(at)
        disk = FullDisk(at)
        preparation = start(saving, run_dir)
        said: list[str] = []
        try:
            for record in disk.watch(preparation.train(), step=6):
                if isinstance(record, WarningRecord):
                    assert (record.kind, record.step) == ("checkpoint", 6)
                    said.append(record.message)
                if isinstance(record, StepRecord) and record.step == 7:
                    load_checkpoint(run_dir / "checkpoints" / "step-000003")
                    if not said:
                        load_checkpoint(run_dir / "checkpoints" / "step-000006")
                    elif "was not written" in said[0]:
                        assert checkpoints_of(run_dir) == ["step-000003"]
        finally:
            disk.switch(False)
        if not disk.failed:
            break
        failed.append((disk.failed, said))
        preparation.finish()
        assert bits_of(run_dir) == unbroken, disk.failed
        assert [record.message for record in read_log(run_dir) if isinstance(record, WarningRecord)] == said
        # The log never tells of a checkpoint that was not written.
        saved = {record.step for record in read_log(run_dir) if isinstance(record, CheckpointRecord)}
        assert (6 in saved) == (not any("was not written" in message for message in said)), disk.failed
        assert checkpoints_of(run_dir) == ["step-000021", "step-000024"]
    assert sum(bool(said) for _, said in failed) >= 2, failed
    if len(points) > 10:
        assert not disk.failed, "there are more writes in a save than this test tries"
        kinds = {what.split()[0] for what, said in failed if said}
        assert {"write", "serialize_file", "open", "fsync", "mkdir", "rename"} <= kinds, failed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "points", [[4], pytest.param(range(1, 100, 4), marks=pytest.mark.exactness)], ids=["some", "all"]
)
def test_an_end_that_finds_no_room_is_explained_and_made_again(
    points: Sequence[int], saving: Settings, unbroken: Bits, tmp_path: Path
) -> None:
    """The model, the predictions or the scores cannot be written: that is no fault of the program."""
    run_dir = tmp_path / "run"
    last_file = run_dir / "README.md"  # while it is not there, the end is still to come
    list(start(saving, run_dir).train())
    for at in points:
        last_file.unlink(missing_ok=True)
        disk = FullDisk(at)
        preparation = start({}, run_dir, resume=True)
        list(preparation.train())
        disk.switch(True)
        try:
            preparation.finish()
        except CheckpointError as error:
            assert "No space left" in str(error), disk.failed
        finally:
            disk.switch(False)
        if not disk.failed:
            break
        if not last_file.exists():
            finish({}, run_dir, resume=True)
        assert bits_of(run_dir) == unbroken, disk.failed
    assert bool(disk.failed) == (len(points) == 1), "there are more writes than this test tries"
    assert not [path.name for path in run_dir.iterdir() if path.name.endswith(".tmp") or path.name.startswith(".model")]


def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_not_taken_for_broken(
    saving: Settings, unbroken: Bits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files, or a network that is slow to answer, say nothing about what is on the disk."""
    run_dir = tmp_path / "run"
    open_file = Path.open
    newest = ""

    def refuse(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if path.parent.name == newest and mode.startswith("r"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return open_file(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", refuse)
    preparation = start(saving, run_dir)
    for record in preparation.train():
        if isinstance(record, StepRecord):
            newest = "step-000006" if record.step == 6 else ""
            if record.step == 7:
                assert checkpoints_of(run_dir) == ["step-000003", "step-000006"]
    preparation.finish()
    assert bits_of(run_dir) == unbroken


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let the system refuse files that are longer, as a disk does that has no more room."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("name", FILES[:2])
def test_a_file_that_the_system_refuses_costs_one_checkpoint(
    name: str, saving: Settings, unbroken: Bits, tmp_path: Path
) -> None:
    """The system itself refuses to write: in the first file of a checkpoint, or in a later one."""
    run_dir = tmp_path / "run"
    preparation = start(saving, run_dir)
    records = preparation.train()
    for record in records:
        if isinstance(record, StepRecord) and record.step == 4:
            break
    sizes = {path.name: path.stat().st_size for path in (run_dir / "checkpoints" / "step-000003").iterdir()}
    limits = {
        "model.safetensors": sizes["model.safetensors"] - 1,
        "optimizer.safetensors": sizes["optimizer.safetensors"] - 1,
    }
    assert sizes["model.safetensors"] < sizes["optimizer.safetensors"]
    warnings = []
    with largest_file(limits[name]):
        for record in records:
            if isinstance(record, WarningRecord):
                warnings.append(record)
            if isinstance(record, StepRecord) and record.step == 10:
                break
    assert [(record.kind, record.step) for record in warnings] == [("checkpoint", 6), ("checkpoint", 9)]
    assert all("was not written" in record.message for record in warnings)
    assert checkpoints_of(run_dir) == ["step-000003"]
    assert [record.step for record in records if isinstance(record, StepRecord)] == list(range(11, 25))
    preparation.finish()
    assert bits_of(run_dir) == unbroken
    assert [record for record in read_log(run_dir) if isinstance(record, WarningRecord)] == warnings


SMALL_DISK = """
import json, shutil, sys
from pathlib import Path

from headstart.records import WarningRecord
from small_training import start

usage = shutil.disk_usage
# What was free when a save began may be gone in its middle: somebody else writes too.
shutil.disk_usage = lambda path: usage(path)._replace(free=10**9)
settings, disk, copy = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
for record in start(settings, disk / "run").train():
    if isinstance(record, WarningRecord):
        print(json.dumps([record.step, record.message]))
    if record.step == int(sys.argv[4]):
        break
shutil.copytree(disk / "run", copy)
"""


@pytest.mark.exactness
@pytest.mark.parametrize("kilobytes", [300, 760])
def test_a_small_disk_that_is_full_for_the_whole_training(
    kilobytes: int, saving: Settings, unbroken: Bits, tmp_path: Path
) -> None:
    """A file system of this size: the run goes on to its end, and what it left can be gone on with elsewhere."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    words = [sys.executable, "-c", SMALL_DISK, json.dumps(saving), str(disk), str(copy), "24"]
    mount = f"mount -t tmpfs -o size={kilobytes}k tmpfs {disk}"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*inside, mount], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no one mount a small disk")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [*inside, mount + ' && exec "$@"', "sh", *words], capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    warnings = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(warnings) >= 5
    assert all("No space left on device" in message for _, message in warnings), warnings
    assert finish({}, copy, resume=True) == unbroken


def test_no_room_for_any_checkpoint_still_gives_the_model(
    saving: Settings, unbroken: Bits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is too full for a checkpoint all the time, as the system says before a byte is written."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    preparation = start(saving, tmp_path / "run")
    records = list(preparation.train())
    warned = [record for record in records if isinstance(record, WarningRecord)]
    assert [record.step for record in warned] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert all("free on the disk" in record.message for record in warned)
    preparation.finish()
    assert bits_of(tmp_path / "run") == unbroken


def test_a_log_that_finds_no_room_for_a_while_has_every_record_in_the_end(
    saving: Settings, unbroken: Bits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    is_full = False
    write = os.write

    def refuse(descriptor: int, content: bytes) -> int:
        if is_full and Path(os.readlink(f"/proc/self/fd/{descriptor}")).name == "log.jsonl":
            # Half a line may still fit.
            return write(descriptor, content[:7]) if len(content) > 500 else refuse_all()
        return write(descriptor, content)

    def refuse_all() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", refuse)
    preparation = start(saving, run_dir)
    warned = []
    for record in preparation.train():
        if isinstance(record, StepRecord):
            is_full = 5 <= record.step < 13
        if isinstance(record, WarningRecord):
            warned.append(record.step)
    assert warned == [6, 9, 12]  # a checkpoint is not written where its log is not on the disk
    preparation.finish()
    assert bits_of(run_dir) == unbroken
    assert [record.step for record in read_log(run_dir) if isinstance(record, WarningRecord)] == warned


def test_stopped_while_the_disk_was_full_goes_on_from_the_older_checkpoint(
    saving: Settings, unbroken: Bits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop cannot be saved: that is said, and the resumed run makes the lost steps again."""
    run_dir = tmp_path / "run"
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        preparation = start(saving, run_dir)
        records = train_to(preparation, 7)
        for record in records:
            if isinstance(record, StepRecord) and record.step == 4:
                patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    assert checkpoints_of(run_dir) == ["step-000003"]
    assert finish({}, run_dir, resume=True) == unbroken
