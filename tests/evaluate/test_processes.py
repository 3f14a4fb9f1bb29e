"""Several real processes score together through a shared folder, and what they leave is nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headstart import evaluate
from headstart.errors import DataError, ProcessLostError, SourceError
from headstart.evaluate import processes

WORKER = """
import json, sys
from headstart import evaluate

rank, count, folder, rounds = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def joined(predictions, references, end=""):
    return {"joined": "".join(predictions) + end, "rows": len(references)}

metric = evaluate.load(joined, num_process=count, process_id=rank, experiment_id="job/1", cache_dir=folder)
for number in range(rounds):
    if number:
        metric.add(prediction=f"{rank}", reference=number)
    metric.add_batch(predictions=[f"{rank}"], references=[rank])
    print(json.dumps(metric.compute(end=f"!{number}")))
    if number == 1:
        # Loaded anew, it goes on counting.
        metric = evaluate.load(joined, num_process=count, process_id=rank, experiment_id="job/1", cache_dir=folder)
assert "torch" not in sys.modules
"""


def start(rank: int, count: int, folder: Path, rounds: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(rank), str(count), str(folder), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answers(process: subprocess.Popen[str]) -> list[Any]:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in out.splitlines()]


def pair(folder: Path, **options: Any) -> list[evaluate.Metric]:
    shared = {"num_process": 2, "cache_dir": folder, "timeout": 0.05}
    return [evaluate.load("accuracy", process_id=rank, **{**shared, **options}) for rank in (0, 1)]


def part_of(folder: Path) -> Path:
    (path,) = folder.rglob("part-*.json")
    return path


def test_three_processes_and_three_rounds(tmp_path: Path) -> None:
    started = [start(rank, 3, tmp_path, rounds=3) for rank in (2, 1, 0)]
    third, second, first = (answers(process) for process in started)
    assert second == third == [None] * 3
    assert first == [
        {"joined": "012!0", "rows": 3},
        {"joined": "001122!1", "rows": 6},
        {"joined": "001122!2", "rows": 6},
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_never_comes_is_named(tmp_path: Path) -> None:
    metric = evaluate.load("accuracy", num_process=3, process_id=0, cache_dir=tmp_path, timeout=0.05)
    assert metric.num_process == 3
    metric.add(prediction=1, reference=1)
    other = evaluate.load("accuracy", num_process=3, process_id=2, cache_dir=tmp_path)
    assert other.compute(predictions=[1], references=[1]) is None
    with pytest.raises(ProcessLostError, match=r"process 1 of 3 has given no part after 0.05 s") as raised:
        metric.compute()
    assert raised.value.ranks == [1] and str(tmp_path) in str(raised.value) and raised.value.fix


def test_the_next_round_after_a_lost_one_is_whole(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    with pytest.raises(ProcessLostError):
        first.compute(predictions=[1], references=[0])
    # Its part of the lost round comes late, and counts in no other.
    second.compute(predictions=[1], references=[0])
    second.compute(predictions=[1], references=[1])
    assert first.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}
    assert list(tmp_path.iterdir()) == []


def test_a_process_may_have_no_rows(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    assert second.compute() is None
    assert first.compute(predictions=[1, 0], references=[1, 1]) == {"accuracy": 0.5}
    assert second.compute(predictions=[1], references=[1]) is None
    assert first.compute() == {"accuracy": 1.0}
    second.compute()
    with pytest.raises(DataError, match="no rows"):
        first.compute()


def test_a_process_that_is_ahead_waits_for_nobody(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    for value in (0, 1):
        second.compute(predictions=[value], references=[1])
    for value in (0, 1):
        assert first.compute(predictions=[1], references=[1]) == {"accuracy": (1 + value) / 2}


def test_what_a_killed_job_left_is_no_part_of_this_one(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    second.compute(predictions=[0], references=[1])
    path = part_of(tmp_path)
    left = path.with_name(path.name.rpartition("-")[0] + "-" + "0" * 32 + ".json")
    path.rename(left)
    # Its successor takes it away when it loads the metric.
    again = evaluate.load("accuracy", num_process=2, process_id=1, cache_dir=tmp_path)
    assert not left.exists()
    # And process 0 does not take what is much older than itself.
    again.compute(predictions=[0], references=[1])
    (path,) = tmp_path.rglob("part-*.json")
    old = path.with_name(path.name.replace("round-1", "round-0"))
    path.rename(old)
    hour_ago = time.time() - 3600
    os.utime(old, (hour_ago, hour_ago))
    with pytest.raises(ProcessLostError):
        first.compute(predictions=[1], references=[1])


def test_two_jobs_of_one_name_are_told(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    second.compute(predictions=[0], references=[1])
    path = part_of(tmp_path)
    path.with_name(path.name.rpartition("-")[0] + "-" + "0" * 32 + ".json").write_text(path.read_text())
    with pytest.raises(DataError, match="experiment_id"):
        first.compute(predictions=[1], references=[1])


def test_experiments_and_configurations_do_not_meet(tmp_path: Path) -> None:
    one, other = pair(tmp_path, experiment_id="a/b"), pair(tmp_path, experiment_id="../b")
    one[1].compute(predictions=[1], references=[1])
    other[1].compute(predictions=[0], references=[1])
    assert one[0].compute(predictions=[1], references=[1]) == {"accuracy": 1.0}
    assert other[0].compute(predictions=[1], references=[1]) == {"accuracy": 0.5}
    assert one[0].experiment_id == "a/b" and (one[1].process_id, one[1].num_process) == (1, 2)
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    metric = evaluate.load("accuracy", num_process=2, process_id=1)
    metric.compute(predictions=[1], references=[1])
    assert part_of(tmp_path).is_relative_to(tmp_path / "evaluate")


def test_rows_keep_their_values_on_the_way(tmp_path: Path) -> None:
    def all_rows(predictions: list[Any], references: list[Any]) -> dict[str, Any]:
        return {"rows": predictions}

    values = [0.1, float("inf"), "ü\n", None, [1, {"a": True}], 2**60]
    first, second = (
        evaluate.load(all_rows, num_process=2, process_id=rank, cache_dir=tmp_path, timeout=0.05) for rank in (0, 1)
    )
    second.compute(predictions=values, references=values)
    assert first.compute() == {"rows": values}
    with pytest.raises(DataError, match="cannot be given to process 0"):
        second.compute(predictions=[object()], references=[1])


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot be made"):
        evaluate.load("accuracy", num_process=2, process_id=0, cache_dir=tmp_path / "file")


def test_a_folder_that_is_taken_away_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, second = pair(tmp_path)
    real, taken = processes.tempfile.mkstemp, []

    def mkstemp(*args: Any, **kwargs: Any) -> Any:
        if not taken:
            taken.append(kwargs["dir"])
            Path(kwargs["dir"]).rmdir()
        return real(*args, **kwargs)

    monkeypatch.setattr(processes.tempfile, "mkstemp", mkstemp)
    second.compute(predictions=[1], references=[1])
    assert taken and part_of(tmp_path).exists()
