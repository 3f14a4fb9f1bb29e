"""The run folder: records, log, lock and name."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart import runlog
from headstart.errors import CheckpointError
from headstart.runlog import (
    DISCARDED_LOG_FILE,
    LOG_FILE,
    CheckpointRecord,
    EvaluationRecord,
    Record,
    RunLock,
    RunLog,
    StepRecord,
    StopRecord,
    WarningRecord,
    from_json,
    new_run_dir,
    read_log,
    to_json,
)

numbers = st.floats()
steps = st.integers(min_value=0, max_value=10**12)
text = st.text()
records = st.one_of(
    st.builds(
        StepRecord,
        step=steps,
        epoch=numbers,
        loss=numbers,
        learning_rate=numbers,
        grad_norm=numbers,
        rows=steps,
        tokens=steps,
        seconds=numbers,
    ),
    st.builds(
        EvaluationRecord,
        step=steps,
        epoch=numbers,
        split=text,
        scores=st.dictionaries(text, numbers),
        seconds=numbers,
        best=st.booleans(),
    ),
    st.builds(CheckpointRecord, step=steps, path=text, best=st.booleans()),
    st.builds(WarningRecord, step=steps, kind=text, message=text, rows=st.lists(steps)),
    st.builds(
        StopRecord,
        step=steps,
        reason=st.sampled_from(["done", "requested", "early_stopping", "time_limit", "non_finite"]),
        message=text,
        seconds=numbers,
    ),
)


def step(number: int) -> StepRecord:
    return StepRecord(number, number / 10, 0.5, 1e-5, 1.0, 8, 400, 0.1)


def steps_in(run_dir: Path) -> list[int]:
    return [record.step for record in read_log(run_dir)]


def write_steps(run_dir: Path, *numbers: int) -> int:
    log = RunLog(run_dir)
    for number in numbers:
        log.append(step(number))
    length = log.sync()
    log.close()
    return length


# Records


@given(records)
def test_record_comes_back_from_strict_json(record: Record) -> None:
    line = json.dumps(to_json(record), allow_nan=False)
    assert repr(from_json(json.loads(line))) == repr(record)  # repr: NaN is not equal to itself


def test_numbers_that_json_does_not_know_are_strings() -> None:
    values = to_json(EvaluationRecord(1, 0.0, "test", {"r2": math.nan, "rmse": math.inf}, 1.0, False))
    assert next(iter(values)) == "record"
    assert values["scores"] == {"r2": "nan", "rmse": "inf"}


def test_fields_of_a_later_version_are_left_out() -> None:
    assert from_json({**to_json(step(3)), "later": 1}) == step(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"record": "dance"}, "dance"),
        ({"record": None}, "None"),
        ({"step": "3"}, "step is '3'"),
        ({"step": True}, "step is True"),
        ({"loss": "0.5"}, "loss is '0.5'"),
        ({"loss": None}, "loss is None"),
        ({"loss": True}, "loss is True"),
    ],
)
def test_record_of_another_type_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_json({**to_json(step(3)), **change})


@pytest.mark.parametrize(
    ("record", "name", "value"),
    [
        (CheckpointRecord(1, "a", True), "best", 1),
        (CheckpointRecord(1, "a", True), "path", 1),
        (WarningRecord(1, "a", "b", []), "rows", "12"),
        (EvaluationRecord(1, 0.1, "test", {}, 1.0, True), "scores", []),
        (StopRecord(1, "done", "", 1.0), "reason", "tired"),
    ],
)
def test_each_kind_of_field_is_checked(record: Record, name: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=name):
        from_json({**to_json(record), name: value})


def test_missing_field_is_named() -> None:
    with pytest.raises(CheckpointError, match="path is missing"):
        from_json({"record": "checkpoint", "step": 1, "best": True})


def test_numbers_of_numpy_become_plain_ones() -> None:
    np = pytest.importorskip("numpy")
    record = EvaluationRecord(
        np.int64(1),
        np.float32(0.5),
        "test",
        {"f1": np.float32(0.25)},
        np.float64(1),
        np.bool_(True),
    )
    assert from_json(json.loads(json.dumps(to_json(record)))) == EvaluationRecord(
        1, 0.5, "test", {"f1": 0.25}, 1.0, True
    )


# Log


def test_log_is_read_in_order(tmp_path: Path) -> None:
    everything: list[Record] = [step(1), WarningRecord(1, "a", "größer \u2028 \n x", [4, 2]), step(2)]
    log = RunLog(tmp_path)
    for record in everything:
        log.append(record)
    assert list(read_log(tmp_path)) == everything  # before sync, while it is open
    assert log.sync() == (tmp_path / LOG_FILE).stat().st_size
    log.close()
    log.close()
    write_steps(tmp_path, 3)
    assert list(read_log(tmp_path)) == [*everything, step(3)]


def test_folder_without_log_has_no_records(tmp_path: Path) -> None:
    assert steps_in(tmp_path) == []


def test_name_that_is_not_utf_8_can_be_logged(tmp_path: Path) -> None:
    record = CheckpointRecord(1, os.fsdecode(b"caf\xe9"), best=False)
    log = RunLog(tmp_path)
    log.append(record)
    log.close()
    assert list(read_log(tmp_path)) == [record]


def test_torn_last_line_is_passed_over_at_every_length(tmp_path: Path) -> None:
    whole = write_steps(tmp_path, 1, 2)
    content = (tmp_path / LOG_FILE).read_bytes()
    for length in range(whole):
        (tmp_path / LOG_FILE).write_bytes(content[:length])
        assert steps_in(tmp_path) == [1][: content[:length].count(b"\n")]


@pytest.mark.parametrize("torn", [b"\0\0\0", b"\0\0\n", b'{"record": "st', b"\n"])
def test_broken_last_line_is_passed_over(tmp_path: Path, torn: bytes) -> None:
    write_steps(tmp_path, 1)
    with (tmp_path / LOG_FILE).open("ab") as file:
        file.write(torn)
    assert steps_in(tmp_path) == [1]


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b"{\n", b"\xff\n", b'{"record": "dance"}\n'])
def test_broken_line_in_the_middle_is_named(tmp_path: Path, line: bytes) -> None:
    write_steps(tmp_path, 1)
    with (tmp_path / LOG_FILE).open("ab") as file:
        file.write(line)
    content = (tmp_path / LOG_FILE).read_bytes()
    (tmp_path / LOG_FILE).write_bytes(content + content[: content.index(b"\n") + 1])
    with pytest.raises(CheckpointError, match="line 2"):
        steps_in(tmp_path)


def test_opening_moves_a_torn_line_away(tmp_path: Path) -> None:
    write_steps(tmp_path, 1)
    with (tmp_path / LOG_FILE).open("ab") as file:
        file.write(b'{"record": ' + b" " * 100_000)
    write_steps(tmp_path, 2)
    assert steps_in(tmp_path) == [1, 2]
    assert (tmp_path / DISCARDED_LOG_FILE).read_bytes().startswith(b'{"record": ')


def test_opening_a_log_that_is_one_torn_line_empties_it(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).write_bytes(b"{")
    write_steps(tmp_path, 1)
    assert steps_in(tmp_path) == [1]


def test_truncate_moves_the_tail(tmp_path: Path) -> None:
    length = write_steps(tmp_path, 1, 2)
    write_steps(tmp_path, 3, 4)
    log = RunLog(tmp_path)
    log.truncate(length)
    log.append(step(30))
    log.truncate(length)
    log.append(step(300))
    log.close()
    assert steps_in(tmp_path) == [1, 2, 300]
    discarded = (tmp_path / DISCARDED_LOG_FILE).read_text().splitlines()
    assert [json.loads(line)["step"] for line in discarded] == [3, 4, 30]


def test_truncate_to_nothing_and_to_the_end(tmp_path: Path) -> None:
    length = write_steps(tmp_path, 1)
    log = RunLog(tmp_path)
    log.truncate(length)
    assert steps_in(tmp_path) == [1]
    assert not (tmp_path / DISCARDED_LOG_FILE).exists()
    log.truncate(0)
    assert steps_in(tmp_path) == []
    log.close()


def test_truncate_can_drop_the_tail(tmp_path: Path) -> None:
    length = write_steps(tmp_path, 1)
    log = RunLog(tmp_path)
    log.append(step(2))
    log.truncate(length, keep_tail=False)
    log.close()
    assert steps_in(tmp_path) == [1]
    assert not (tmp_path / DISCARDED_LOG_FILE).exists()


@pytest.mark.parametrize("keep_tail", [True, False])
def test_records_that_wait_for_room_are_cut_off_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_tail: bool
) -> None:
    length = write_steps(tmp_path, 1)
    log = RunLog(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail(errno.ENOSPC))
        log.append(step(2))
    log.truncate(length, keep_tail=keep_tail)
    log.append(step(3))
    log.close()
    assert steps_in(tmp_path) == [1, 3]
    assert (tmp_path / DISCARDED_LOG_FILE).exists() == keep_tail
    if keep_tail:
        assert json.loads((tmp_path / DISCARDED_LOG_FILE).read_text())["step"] == 2


@pytest.mark.parametrize("change", [1, -1])
def test_truncate_refuses_a_length_of_another_log(tmp_path: Path, change: int) -> None:
    length = write_steps(tmp_path, 1)
    log = RunLog(tmp_path)
    with pytest.raises(CheckpointError, match=LOG_FILE):
        log.truncate(length + change)
    log.close()
    assert steps_in(tmp_path) == [1]


def test_tail_is_kept_once_when_the_cut_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    length = write_steps(tmp_path, 1)
    write_steps(tmp_path, 2)
    log = RunLog(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fail(errno.EIO))
        with pytest.raises(OSError):
            log.truncate(length)
    assert steps_in(tmp_path) == [1, 2]
    log.truncate(length)
    log.close()
    assert steps_in(tmp_path) == [1]
    assert (tmp_path / DISCARDED_LOG_FILE).read_text().count("\n") == 1


def test_discarded_lines_stay_lines_after_a_torn_one(tmp_path: Path) -> None:
    (tmp_path / DISCARDED_LOG_FILE).write_bytes(b'{"torn')
    write_steps(tmp_path, 1)
    log = RunLog(tmp_path)
    log.truncate(0)
    log.close()
    lines = (tmp_path / DISCARDED_LOG_FILE).read_text().splitlines()
    assert lines[0] == '{"torn'
    assert json.loads(lines[1])["step"] == 1


def fail(number: int, after_bytes: int = 0):  # type: ignore[no-untyped-def]
    """Stand for a call of os that fails; a write first writes some bytes."""
    write = os.write

    def call(descriptor: int, data: object = b"", *rest: object) -> int:
        nonlocal after_bytes
        if after_bytes and isinstance(data, bytes):
            written = write(descriptor, data[:after_bytes])
            after_bytes -= written
            return written
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("after_bytes", [0, 1, 20])
def test_records_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_bytes: int) -> None:
    write_steps(tmp_path, 1)
    log = RunLog(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail(errno.ENOSPC, after_bytes))
        log.append(step(2))
        log.append(step(3))
        assert steps_in(tmp_path) == [1]
        with pytest.raises(CheckpointError, match="No space left"):
            log.sync()
    log.append(step(4))
    log.close()
    assert steps_in(tmp_path) == [1, 2, 3, 4]


def test_records_lost_on_a_full_disk_are_not_lost_unsaid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path)
    monkeypatch.setattr(os, "write", fail(errno.ENOSPC))
    log.append(step(1))
    with pytest.raises(CheckpointError, match="No space left"):
        log.close()


def test_another_fault_of_the_disk_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail(errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            log.append(step(1))
    log.close()


def test_truncate_leaves_the_log_when_the_tail_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    length = write_steps(tmp_path, 1)
    write_steps(tmp_path, 2)
    (tmp_path / DISCARDED_LOG_FILE).write_bytes(b"{}\n")
    log = RunLog(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail(errno.ENOSPC, after_bytes=5))
        with pytest.raises(OSError, match="No space left"):
            log.truncate(length)
    assert steps_in(tmp_path) == [1, 2]
    assert (tmp_path / DISCARDED_LOG_FILE).read_bytes() == b"{}\n"
    log.truncate(length)
    log.close()
    assert steps_in(tmp_path) == [1]


def test_file_system_that_cannot_sync_folders_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))
    runlog.sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        runlog.sync_folder(tmp_path)


# Lock

HOLD = """
import os, sys, time
from pathlib import Path
from headstart.runlog import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.__enter__()
if "fork" in sys.argv:
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    print(child, flush=True)
print("held", flush=True)
sys.stdin.read()
"""


def hold(run_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(runlog.__file__).parents[1])},
    )


def test_second_process_is_refused_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    with hold(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"process {process.pid} on "), RunLock(tmp_path):
            pass
        process.kill()
        process.wait()
        with RunLock(tmp_path):
            pass


def test_forked_worker_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    with hold(tmp_path, "fork") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert process.stdout.readline() == "held\n"
            process.kill()
            process.wait()
            with RunLock(tmp_path):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


FORKED_CHILD = """
import os, sys
from pathlib import Path
from headstart.errors import CheckpointError
from headstart.runlog import RunLock
run_dir = Path(sys.argv[1])
lock = RunLock(run_dir)

def take():
    try:
        with RunLock(run_dir):
            return 0
    except CheckpointError:
        return 1

def in_child(call):
    child = os.fork()
    if child == 0:
        os._exit(call())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def leave_then_take():
    lock.__exit__()     # what a worker does that unwinds its copy of the parent's stack
    return take()

with lock:
    print(in_child(take), in_child(leave_then_take), in_child(take), take())
print(in_child(take), take())
"""


def test_forked_child_neither_holds_nor_frees(tmp_path: Path) -> None:
    output = subprocess.run(
        [sys.executable, "-c", FORKED_CHILD, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(runlog.__file__).parents[1])},
    ).stdout
    assert output == "1 1 1 1\n0 0\n"


FREED_FOR_CHILD = """
import os, sys
from pathlib import Path
from headstart.runlog import RunLock
run_dir = Path(sys.argv[1])
freed, free = os.pipe()
with RunLock(run_dir):
    child = os.fork()
    if child == 0:
        os.read(freed, 1)
        with RunLock(run_dir):
            os._exit(0)
os.write(free, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_forked_child_takes_the_lock_when_its_parent_has_freed_it(tmp_path: Path) -> None:
    output = subprocess.run(
        [sys.executable, "-c", FREED_FOR_CHILD, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(runlog.__file__).parents[1])},
    ).stdout
    assert output == "0\n"


def test_same_process_is_refused_and_does_not_lose_the_lock(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with RunLock(tmp_path / "a") as lock:
        for again in (RunLock(tmp_path / "a"), RunLock(tmp_path / "b"), lock):
            with pytest.raises(CheckpointError, match="this process"):
                again.__enter__()
        with hold(tmp_path / "a") as process:
            process.communicate()
            assert process.returncode == 1
    with RunLock(tmp_path / "a"):
        pass


def test_lock_is_free_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    with RunLock(tmp_path):
        pass


def test_threads_are_refused_too(tmp_path: Path) -> None:
    outcomes = []

    def take() -> None:
        try:
            with RunLock(tmp_path):
                outcomes.append("held")
        except CheckpointError:
            outcomes.append("refused")

    with RunLock(tmp_path):
        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
    assert outcomes == ["refused"]


def test_folder_that_cannot_be_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="gone"), RunLock(tmp_path / "gone"):
        pass
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.lockf", fail(errno.ENOLCK))
        with pytest.raises(CheckpointError, match="No locks"), RunLock(tmp_path):
            pass
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail(errno.EACCES))
        with pytest.raises(CheckpointError, match="Permission"), RunLock(tmp_path):
            pass
    with RunLock(tmp_path):
        pass


# Name

MANY = """
import sys
from pathlib import Path
from headstart.runlog import new_run_dir
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    print(new_run_dir(Path(sys.argv[1]), "reviews").name)
"""


def test_two_processes_get_different_folders(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(runlog.__file__).parents[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MANY, str(tmp_path / "runs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    names = [name for process in processes for name in process.communicate()[0].split()]
    assert sorted(names) == sorted(f"reviews-{number}" for number in range(1, 201))


def test_new_run_takes_the_first_free_number(tmp_path: Path) -> None:
    (tmp_path / "reviews-1").mkdir()
    (tmp_path / "reviews-2").touch()
    (tmp_path / "reviews-4").mkdir()
    assert new_run_dir(tmp_path, "reviews") == tmp_path / "reviews-3"
    assert new_run_dir(tmp_path, "other") == tmp_path / "other-1"


def test_new_run_names_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        new_run_dir(tmp_path / "file", "reviews")
    with pytest.raises(CheckpointError, match="cannot be made"):
        new_run_dir(tmp_path / "file" / "runs", "reviews")
    with pytest.raises(CheckpointError, match="cannot be made"):
        new_run_dir(tmp_path, "no/such/folder")
