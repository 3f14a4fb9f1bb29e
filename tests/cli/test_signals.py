"""Stopped or killed in the middle, and gone on with: the same bits as never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "headstart", "train", *words]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        log = run / "log.jsonl"
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.002)
    raise AssertionError(f"step {step} was not seen: {process.communicate()[0]}")


def options(csv: Path, model: Path) -> list[str]:
    return [
        str(csv), "--model", str(model), "--epochs", "12", "--batch-size", "8", "--quiet",
        "--set", "train.threads=1", "--set", "train.save_every=7", "--set", "evaluate.baselines=false",
    ]  # fmt: skip


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("whole")
    csv = folder / "rows.csv"
    lines = [f"the film was {'good' if index % 2 else 'bad'} {index},{index % 2}" for index in range(64)]
    csv.write_text("text,label\n" + "\n".join(lines) + "\n")
    finish(start(*options(csv, tiny_model_dir), "--run", str(folder / "run")))
    return csv, folder / "run"


def resume(run: Path) -> None:
    finish(start("--resume", "--run", str(run), "--quiet"))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 8, 20, 50])
def test_killed_at_any_moment_and_resumed(
    step: int, whole: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    csv, expected = whole
    process = start(*options(csv, tiny_model_dir), "--run", str(tmp_path / "run"))
    wait_for_step(tmp_path / "run", step, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    resume(tmp_path / "run")
    assert weights(tmp_path / "run") == weights(expected)
    scores = [json.loads((run / "scores.json").read_text()) for run in (tmp_path / "run", expected)]
    assert scores[0] == scores[1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_prints_the_command_that_goes_on(
    number: signal.Signals, whole: tuple[Path, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    csv, expected = whole
    run = tmp_path / "run"
    process = start(*options(csv, tiny_model_dir), "--run", str(run))
    wait_for_step(run, 3, process)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 128 + number
    assert f"headstart train --resume --run {run}" in output
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["reason"] == "requested" and log[-2]["record"] == "checkpoint"
    resume(run)
    assert weights(run) == weights(expected)
