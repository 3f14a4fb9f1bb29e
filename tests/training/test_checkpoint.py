"""Checkpoints: whole or not there, whatever happens."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from headstart.errors import CheckpointError, HeadstartWarning
from headstart.training import checkpoint
from headstart.training.checkpoint import (
    load_checkpoint,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def save(run_dir: Path, step: int, value: float | None = None, state: Any = None) -> Path:
    value = float(step) if value is None else value
    return save_checkpoint(
        run_dir,
        step,
        model={"weight": torch.full((3, 2), value), "bias": torch.tensor(value)},
        optimizer={"weight/exp_avg": torch.full((3, 2), -value), "empty": torch.zeros(0, 2)},
        state={"value": value} if state is None else state,
    )


def newest_value(run_dir: Path) -> float | None:
    """Load the newest whole checkpoint, and see that all of it is of one save."""
    loaded, _ = newest_checkpoint(run_dir)
    if loaded is None:
        return None
    value = loaded.state["value"]
    assert torch.equal(loaded.model["weight"], torch.full((3, 2), value))
    assert torch.equal(loaded.optimizer["weight/exp_avg"], torch.full((3, 2), -value))
    return float(value)


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


# Saving and loading


def test_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = {
        "float32": torch.tensor([0.1, math.nan, -0.0, math.inf]),
        "bfloat16": torch.randn(5, 3, dtype=torch.bfloat16),
        "float16": torch.randn(2, dtype=torch.float16),
        "int64": torch.tensor(2**62),
        "bool": torch.tensor([True, False]),
        "transposed": torch.randn(4, 3).t(),
        "expanded": torch.ones(1).expand(6),
        "empty": torch.zeros(0, 3),
        "ümlaut.weight": torch.ones(1),
    }
    path = save_checkpoint(tmp_path, 7, model=model, optimizer={}, state={})
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.path, loaded.optimizer, loaded.state) == (7, path, {}, {})
    assert path == tmp_path / "checkpoints" / "step-000007"
    assert set(loaded.model) == set(model)
    for name, tensor in model.items():
        found = loaded.model[name]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert (
            found.numpy(force=True).tobytes() == tensor.numpy(force=True).tobytes()
            if (tensor.dtype != torch.bfloat16)
            else torch.equal(found, tensor)
        )


def test_folder_holds_what_it_says(tmp_path: Path) -> None:
    path = save(tmp_path, 500)
    assert sorted(file.name for file in path.iterdir()) == sorted(FILES)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["version"], manifest["step"]) == ("checkpoint.v1", 500)
    assert {name: file["bytes"] for name, file in manifest["files"].items()} == {
        name: (path / name).stat().st_size for name in FILES[:3]
    }
    assert load_file(path / "model.safetensors")["bias"] == 500


def test_path_may_be_text_and_the_run_folder_new(tmp_path: Path) -> None:
    path = save_checkpoint(str(tmp_path / "new"), 1, model={}, optimizer={}, state={})
    assert load_checkpoint(str(path)).step == 1


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=values)
@settings(max_examples=100)
def test_state_comes_back(value: Any) -> None:
    text = json.dumps(checkpoint.to_json(value), allow_nan=False)
    assert repr(checkpoint.from_json(json.loads(text))) == repr(value)


def test_infinite_numbers_in_the_state_come_back(tmp_path: Path) -> None:
    path = save(tmp_path, 1, state={"best": -math.inf, "pair": (1, math.nan)})
    state = load_checkpoint(path).state
    assert state["best"] == -math.inf
    assert repr(state["pair"]) == "[1, nan]"


@pytest.mark.parametrize("value", [torch.ones(1), {1: 2}, {1, 2}, object(), b"x", {"$float": "abc"}])
def test_state_that_json_cannot_hold_is_refused_before_writing(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match="JSON"):
        save(tmp_path, 1, state={"deep": [value]})
    assert list(tmp_path.iterdir()) == []


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = torch.nn.Embedding(50, 4)
            self.decoder = torch.nn.Linear(4, 50)
            self.decoder.weight = self.embeddings.weight

    model = Tied()
    path = save_checkpoint(tmp_path, 1, model=model.state_dict(), optimizer={}, state={})
    assert set(load_file(path / "model.safetensors")) == {"embeddings.weight", "decoder.bias"}
    loaded = load_checkpoint(path)
    assert loaded.model["decoder.weight"] is loaded.model["embeddings.weight"]
    other = Tied()
    other.load_state_dict(loaded.model, strict=True)
    assert torch.equal(other.decoder.weight, model.decoder.weight)


def test_views_of_one_buffer_are_stored_apart(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    model = {
        "a": flat[:6].view(2, 3),
        "b": flat[6:],
        "overlapping": flat[3:9],
        "other_shape": flat[:6].view(3, 2),
        "column": flat.view(6, 2)[:, 0],
    }
    path = save_checkpoint(tmp_path, 1, model=model, optimizer={}, state={})
    loaded = load_checkpoint(path).model
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.items())


def test_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1, 10.0)
    save(tmp_path, 1, 20.0)
    assert names(tmp_path) == ["step-000001"]
    assert newest_value(tmp_path) == 20.0


def test_files_are_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def spy_rename(*paths: Any, **options: Any) -> None:
        events.append("rename")
        rename(*paths, **options)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    save(tmp_path, 1)
    assert events == [tmp_path.name, *FILES, ".step-000001.tmp", "rename", "checkpoints"]


# Damage


def damage(path: Path, how: str, name: str) -> None:
    file = path / name
    content = file.read_bytes()
    match how:
        case "missing":
            file.unlink()
        case "truncated":
            file.write_bytes(content[:-1])
        case "empty":
            file.write_bytes(b"")
        case "longer":
            file.write_bytes(content + b"x")
        case "flipped":
            middle = len(content) // 2
            flipped = bytes([content[middle] ^ 1])
            file.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        case "folder":
            file.unlink()
            file.mkdir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "longer", "flipped", "folder"])
def test_damaged_checkpoint_is_passed_over_with_a_message(tmp_path: Path, how: str, name: str) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2), how, name)
    loaded, messages = newest_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 1
    assert len(messages) == 1
    assert "step-000002" in messages[0]
    assert name in messages[0]
    assert "passed over" in messages[0]


def test_every_flipped_byte_of_the_manifest_is_harmless_or_found(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    content = (path / "manifest.json").read_bytes()
    for position in range(len(content)):
        for bit in (1, 4, 0x20, 0x80):
            changed = bytearray(content)
            changed[position] ^= bit
            (path / "manifest.json").write_bytes(changed)
            assert newest_value(tmp_path) in (None, 2.0)


def test_every_flipped_byte_of_the_others_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    for name in FILES[:3]:
        content = (path / name).read_bytes()
        for position in range(len(content)):
            changed = bytearray(content)
            changed[position] ^= 1
            (path / name).write_bytes(changed)
            with pytest.raises(CheckpointError, match=name):
                load_checkpoint(path)
        (path / name).write_bytes(content)
    assert load_checkpoint(path).step == 2


def test_all_broken_gives_none_and_a_message_each(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        damage(save(tmp_path, step), "missing", "manifest.json")
    loaded, messages = newest_checkpoint(tmp_path)
    assert loaded is None
    assert [message.count("manifest.json is missing") for message in messages] == [1, 1, 1]
    assert "step-000003" in messages[0]


def test_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) == (None, [])
    assert prune_checkpoints(tmp_path, 1) == []
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "notes.txt").touch()
    (tmp_path / "checkpoints" / "step-1").mkdir()
    assert newest_value(tmp_path) == 1.0


def test_newest_is_by_number_not_by_name(tmp_path: Path) -> None:
    save(tmp_path, 999_999)
    save(tmp_path, 1_000_000)
    assert newest_value(tmp_path) == 1_000_000


def test_folder_under_the_name_of_another_step_is_broken(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "checkpoints" / "step-000009")
    with pytest.raises(CheckpointError, match="step 1"):
        load_checkpoint(tmp_path / "checkpoints" / "step-000009")
    (tmp_path / "checkpoints" / "step-000009").rename(tmp_path / "mine")
    assert load_checkpoint(tmp_path / "mine").step == 1


def test_missing_folder_and_later_version_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint is there"):
        load_checkpoint(tmp_path / "step-000001")
    path = save(tmp_path, 1)
    manifest = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(manifest.replace("checkpoint.v1", "checkpoint.v9"))
    with pytest.raises(CheckpointError, match=r"checkpoint\.v9"):
        load_checkpoint(path)


def test_manifest_cannot_name_other_files(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../secret"] = manifest["files"].pop("state.json")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_checkpoint(path)


# Full disk, and every other fault while saving


def test_no_room_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="free on the disk"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step-000001"]
    assert newest_value(tmp_path) == 1.0


def test_leftover_of_a_killed_process_makes_room_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = tmp_path / "checkpoints" / ".step-000002.tmp"
    leftover.mkdir(parents=True)
    usage = shutil.disk_usage(tmp_path)

    def free_when_gone(path: Path) -> Any:
        return usage._replace(free=0 if leftover.exists() else 10**9)

    monkeypatch.setattr(shutil, "disk_usage", free_when_gone)
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-000002"]


def test_folder_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file"):
        save(tmp_path / "file", 1)


# A kill before one of these meets the same disk as a kill before the next call that changes it.
READS = ("stat", "lstat", "fstat", "read", "readinto", "tell", "seek", "scandir", "listdir", "fileno")


class Fault:
    """Acts at the n-th call of a C function that touches files: what a kill or an error meets."""

    def __init__(self, at: int, act: Callable[[], None], ignore: Sequence[str] = ()) -> None:
        self.at, self.act, self.ignore, self.count = at, act, ignore, 0

    def __call__(self, frame: Any, event: str, call: Any) -> None:
        if event == "c_call" and touches_files(call) and call.__name__ not in self.ignore:
            self.count += 1
            if self.count == self.at:
                self.act()


def touches_files(call: Any) -> bool:
    owner = getattr(call, "__module__", None) or type(getattr(call, "__self__", None)).__module__
    if call.__name__ in ("fspath", "getpid"):
        return False
    return owner in ("posix", "io", "_io") or call.__name__ == "serialize_file"


def run_with_fault(fault: Fault, call: Callable[[], object]) -> bool:
    """Say whether the call got far enough to meet the fault."""
    sys.setprofile(fault)
    try:
        call()
    finally:
        sys.setprofile(None)
    return fault.count >= fault.at


def raise_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raise_interrupt() -> None:
    raise KeyboardInterrupt


def fault_at_each_call(
    run_dir: Path,
    start: Callable[[Path], object],
    act: Callable[[], None],
    call: Callable[[Path], object],
    check: Callable[[Path, BaseException | None], None],
) -> int:
    """Meet the fault at the first call, the second, and so on, each time from the same start."""
    at = 0
    while True:
        at += 1
        attempt = run_dir / str(at)
        attempt.mkdir()
        start(attempt)
        caught: BaseException | None = None
        met = True
        try:
            met = run_with_fault(Fault(at, act), functools.partial(call, attempt))
        except (CheckpointError, KeyboardInterrupt) as error:
            caught = error
        check(attempt, caught)
        if not met:
            return at


# A fault in place of closing a file leaves that to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("act", [raise_full, raise_interrupt])
@pytest.mark.parametrize("new_step", [2, 1])
def test_error_at_any_call_leaves_the_older_or_the_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], new_step: int
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # of no use here, and slow

    def check(run_dir: Path, caught: BaseException | None) -> None:
        value = newest_value(run_dir)
        if caught is None:
            assert value == 20.0
        elif isinstance(caught, CheckpointError):
            assert value == 10.0
            assert "No space left" in caught.found
        assert value in (10.0, 20.0)
        assert not list(run_dir.glob("checkpoints/.step-*.tmp"))
        save(run_dir, 3, 30.0)
        prune_checkpoints(run_dir, 1)
        assert (names(run_dir), newest_value(run_dir)) == (["step-000003"], 30.0)

    num_calls = fault_at_each_call(
        tmp_path,
        lambda run_dir: save(run_dir, 1, 10.0),
        act,
        lambda run_dir: save(run_dir, new_step, 20.0),
        check,
    )
    assert num_calls > 20


@pytest.mark.parametrize("at", range(1, 8))
def test_disk_that_fails_at_the_end_leaves_the_older_or_the_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    save(tmp_path, 1)
    calls = iter(range(1, 100))

    def fsync(descriptor: int) -> None:
        if next(calls) == at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    if at <= 5:
        with pytest.raises(CheckpointError, match="Input/output"):
            save(tmp_path, 2)
        assert names(tmp_path) == ["step-000001"]
    else:  # after the rename the new one counts, and saving must not say that it is not there
        save(tmp_path, 2)
        assert newest_value(tmp_path) == 2.0


KILL = """
import os, signal, sys
from pathlib import Path
import test_checkpoint as t

root = Path(sys.argv[1])
os.fsync = lambda descriptor: None  # a kill takes nothing that the system has; a power cut would

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def attempts(name, start, call, check):
    at = 0
    status = signal.SIGKILL
    while status == signal.SIGKILL:
        at += 1
        run_dir = root / f"{name}-{at}"
        run_dir.mkdir()
        start(run_dir)
        child = os.fork()
        if child == 0:
            t.run_with_fault(t.Fault(at, kill, t.READS), lambda: call(run_dir))
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        check(run_dir)
    print(name, at)

def check_all_whole(run_dir):
    # What counts by its name is never half removed; what is half removed is hidden.
    for path in (run_dir / "checkpoints").glob("step-*"):
        t.load_checkpoint(path)

def check_saved(run_dir):
    check_all_whole(run_dir)
    assert t.newest_value(run_dir) in (10.0, 20.0)
    t.save(run_dir, 2, 30.0)
    assert t.newest_value(run_dir) == 30.0
    t.prune_checkpoints(run_dir, 1)
    assert t.names(run_dir) == ["step-000002"], t.names(run_dir)
    assert t.newest_value(run_dir) == 30.0

def check_pruned(run_dir):
    check_all_whole(run_dir)
    loaded, messages = t.newest_checkpoint(run_dir)
    assert loaded.step == 4 and not messages, messages
    assert t.load_checkpoint(run_dir / "checkpoints" / "step-000002").step == 2
    t.prune_checkpoints(run_dir, 1, best_step=2)
    assert t.names(run_dir) == ["step-000002", "step-000004"], t.names(run_dir)

def start_with_both(run_dir):
    t.save(run_dir, 2, 5.0).rename(run_dir / "checkpoints" / "step-000002.replaced")
    t.save(run_dir, 1, 1.0)
    os.rename(run_dir / "checkpoints" / "step-000001", run_dir / "one")
    t.save(run_dir / "other", 2, 10.0).rename(run_dir / "checkpoints" / "step-000002")

def start_pruning(run_dir):
    for step in (1, 2, 3, 4):
        t.save(run_dir, step)

def prune(run_dir):
    t.prune_checkpoints(run_dir, 1, best_step=2)

scenes = {
    "newer": (lambda d: t.save(d, 1, 10.0), lambda d: t.save(d, 2, 20.0), check_saved),
    "same": (lambda d: t.save(d, 2, 10.0), lambda d: t.save(d, 2, 20.0), check_saved),
    "both": (start_with_both, lambda d: t.save(d, 2, 20.0), check_saved),
    "prune": (start_pruning, prune, check_pruned),
}
for name in sys.argv[2:]:
    attempts(name, *scenes[name])
"""


@pytest.mark.parametrize(
    "scenes", [["newer"], pytest.param(["same", "both", "prune"], marks=pytest.mark.slow)], ids="-".join
)
def test_kill_at_any_call_leaves_the_older_or_the_newer(tmp_path: Path, scenes: list[str]) -> None:
    paths = [str(Path(__file__).parent), str(Path(checkpoint.__file__).parents[2])]
    result = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path), *scenes],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert result.returncode == 0, result.stderr
    calls = dict(line.split() for line in result.stdout.splitlines())
    assert list(calls) == scenes
    assert all(int(number) > 10 for number in calls.values())


# Pruning


def test_newest_and_best_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / ".step-000006.tmp").mkdir()
    (tmp_path / "checkpoints" / "notes").mkdir()
    assert prune_checkpoints(tmp_path, 2, best_step=1) == []
    assert names(tmp_path) == ["notes", "step-000001", "step-000004", "step-000005"]
    prune_checkpoints(tmp_path, 2, best_step=4)
    assert names(tmp_path) == ["notes", "step-000004", "step-000005"]


def test_broken_one_does_not_count_as_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    damage(tmp_path / "checkpoints" / "step-000003", "flipped", "model.safetensors")
    prune_checkpoints(tmp_path, 1)
    assert names(tmp_path) == ["step-000002"]


def test_nothing_is_removed_where_nothing_is_whole(tmp_path: Path) -> None:
    for step in (1, 2):
        damage(save(tmp_path, step), "flipped", "model.safetensors")
    prune_checkpoints(tmp_path, 1)
    assert names(tmp_path) == ["step-000001", "step-000002"]


def test_what_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    messages = prune_checkpoints(tmp_path, 1)
    assert len(messages) == 1
    assert "step-000001" in messages[0]
    assert newest_value(tmp_path) == 2.0


def test_what_was_saved_last_is_kept_beside_later_steps_and_said(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save_checkpoint(tmp_path, 5, model=model, optimizer=optimizer, state={}, keep=1)
    with pytest.warns(HeadstartWarning, match=r"later steps \(5\)"):
        path = save_checkpoint(tmp_path, 1, model=model, optimizer=optimizer, state={}, keep=1)
    assert path.exists()
    with pytest.raises(ValueError, match="step is -1"):
        save_checkpoint(tmp_path, -1, model=model, optimizer=optimizer, state={})
    with pytest.raises(ValueError, match="keep is 0"):
        save_checkpoint(tmp_path, 6, model=model, optimizer=optimizer, state={}, keep=0)
