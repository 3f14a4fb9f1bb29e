"""What each tracker has written, read back with its own means; each works below the run folder, without an account."""

from __future__ import annotations

import json
import sqlite3
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headstart.records import Record, StepRecord, WarningRecord
from small_training import Settings, start, train_to

Curve = list[tuple[int, float]]


@pytest.fixture
def settings(tiny_csv: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TRACKIO_DIR", "COMET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tiny_csv.parent))  # no account of whoever runs the tests
    monkeypatch.setenv("NETRC", str(tiny_csv.parent / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return {
        "data.train": str(tiny_csv), "model.checkpoint": str(tiny_model_dir), "train.max_steps": 4,
        "train.batch_size": 8, "train.evaluate_every": 2, "train.save_every": 2, "train.fast": False,
        "train.threads": 1, "evaluate.baselines": False,
    }  # fmt: skip


def train_in_two_parts(settings: Settings, run_dir: Path, name: str) -> tuple[Curve, float, list[str]]:
    """Stop after two of four steps and go on; give the losses, the final accuracy and what was warned of."""
    settings = {**settings, "output.log_to": [name]}
    records: list[Record] = list(train_to(start(settings, run_dir), 2))
    resumed = start(settings, run_dir, resume=True)
    records += resumed.train()
    scores = resumed.finish().scores
    losses = [(record.step, record.loss) for record in records if isinstance(record, StepRecord)]
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    warned = [record.message for record in records if isinstance(record, WarningRecord)]
    return losses, scores["validation"]["accuracy"]["value"], warned


def close_to(curve: Curve) -> Any:
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in curve]


def wandb_records(path: Path) -> Iterator[Any]:
    """Read a .wandb file: blocks of 32 KiB with records, cut into parts, each part with checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


@pytest.mark.slow
def test_wandb_offline(settings: Settings, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    losses, accuracy, warned = train_in_two_parts(settings, tmp_path / "run", "wandb")
    assert warned and all("no account is set up here" in message for message in warned)
    files = sorted((tmp_path / "run" / "trackers" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2  # an offline start leaves a folder of its own; wandb sync puts them together by the id
    assert len({file.name for file in files}) == 1
    history: list[dict[str, float]] = []
    config: dict[str, Any] = {}
    for record in (record for file in files for record in wandb_records(file)):
        if record.WhichOneof("record_type") == "history":
            items = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            history.append(items)
        for item in [*record.run.config.update, *record.config.update]:
            config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    assert [(row["step"], row["train/loss"]) for row in history if "train/loss" in row] == close_to(losses)
    (final,) = [row for row in history if "final/validation/accuracy" in row]
    assert final["final/validation/accuracy"] == pytest.approx(accuracy)
    assert final["final/validation/accuracy/low"] <= accuracy
    assert config["train.max_steps"] == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of SQLAlchemy 2.1, about what mlflow asks of it
def test_mlflow(settings: Settings, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    before = mlflow.get_tracking_uri()
    losses, accuracy, warned = train_in_two_parts(settings, tmp_path / "run", "mlflow")
    assert warned == [] and mlflow.get_tracking_uri() == before
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run' / 'trackers' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("headstart")
    (run,) = client.search_runs([experiment.experiment_id])  # one, though it was started twice
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    written = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(written) == close_to(losses)
    assert run.data.metrics["final/validation/accuracy"] == pytest.approx(accuracy)
    assert run.data.metrics["final/validation/accuracy/low"] <= accuracy
    assert run.data.params["train.max_steps"] == "4" and run.data.params["data.columns.text"] == "text"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_where_its_own_variable_says(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    address = f"sqlite:///{tmp_path / 'mine.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "films")
    train_in_two_parts(settings, tmp_path / "run", "mlflow")
    assert mlflow.MlflowClient(address).get_experiment_by_name("films") is not None
    assert not (tmp_path / "run" / "trackers" / "mlflow").exists()


def test_trackio(settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trackio")
    for name in ("run", "other"):  # its modules read their folder once a process: each run has its own all the same
        losses, accuracy, warned = train_in_two_parts(settings, tmp_path / name, "trackio")
        assert warned == []
        with sqlite3.connect(tmp_path / name / "trackers" / "trackio" / "headstart.db") as database:
            rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
            ((config,),) = database.execute("select config from configs").fetchall()
        assert {run for run, _, _ in rows} == {name}
        values = [(step, json.loads(metrics)) for _, step, metrics in rows]
        assert [(step, row["train/loss"]) for step, row in values if "train/loss" in row] == close_to(losses)
        assert values[-1][1]["final/validation/accuracy"] == pytest.approx(accuracy)
        assert json.loads(config)["train.max_steps"] == 4
    assert capsys.readouterr().out == ""  # standard output may be JSON


def test_comet_offline(settings: Settings, tmp_path: Path) -> None:
    pytest.importorskip("comet_ml")
    losses, accuracy, warned = train_in_two_parts(settings, tmp_path / "run", "comet_ml")
    assert warned and all("no account is set up here" in message for message in warned)
    archives = sorted(
        (tmp_path / "run" / "trackers" / "comet_ml").glob("*.zip"), key=lambda path: path.stat().st_mtime_ns
    )
    messages: list[dict[str, Any]] = []
    keys = set()
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            keys.add(json.loads(archive.read("experiment.json"))["offline_id"])
            messages += [json.loads(line) for line in archive.read("messages.json").splitlines()]
    assert len(archives) == 2 and len(keys) == 1  # comet upload puts them together by the key
    metrics = [message["payload"]["metric"] for message in messages if message["type"] == "metric_msg"]
    written = [(each["step"], each["metricValue"]) for each in metrics if each["metricName"] == "train/loss"]
    assert written == close_to(losses)
    assert [m["metricValue"] for m in metrics if m["metricName"] == "final/validation/accuracy"] == [accuracy]
    parameters = [m["payload"]["param"] for m in messages if m["type"] == "parameter_msg"]
    assert {"train.max_steps": 4}.items() <= {p["paramName"]: p["paramValue"] for p in parameters}.items()


@pytest.mark.slow
def test_of_several_processes_one_logs(settings: Settings, tmp_path: Path, tiny_csv: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = [f"--set={key}={value}" for key, value in settings.items() if not key.startswith(("data.", "model."))]
    command = [sys.executable, "-m", "headstart", "train", str(tiny_csv), *words, "--processes", "2", "--quiet"]
    command += ["--model", settings["model.checkpoint"], "--set=output.log_to=[tensorboard]", "--run"]
    done = subprocess.run([*command, str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "run" / "trackers").glob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(file))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in accumulator.Scalars("final/validation/accuracy/low")] == [4]
