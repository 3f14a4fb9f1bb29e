"""Trackers get the numbers of a run, and a tracker that fails or hangs costs nothing else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headstart.errors import HeadstartWarning, RecipeError
from headstart.records import EvaluationRecord, StepRecord, StopRecord, WarningRecord
from headstart.runlog import read_log
from headstart.training import trackers as module
from headstart.training.trackers import Trackers, check_trackers, flatten_settings
from small_training import Settings, finish, start, train_to


class FakeAccelerator:
    """Stands in for accelerate: keeps what it is given, and fails or hangs where a test says so."""

    def __init__(self, fails: Callable[[str], object]) -> None:
        self.fails = fails
        self.trackers = [self]
        self.config: dict[str, Any] | None = None
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended = False

    def init_trackers(self, project: str, config: dict[str, Any] | None, init_kwargs: dict[str, Any]) -> None:
        self.fails("open")
        self.config = config

    def get_tracker(self, name: str, unwrap: bool) -> Any:
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.fails("log")
        self.logged.append((step, values))

    def end_training(self) -> None:
        self.fails("end")
        self.ended = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[FakeAccelerator]]:
    def install(fails: Callable[[str], object] = lambda call: None) -> list[FakeAccelerator]:
        made: list[FakeAccelerator] = []

        def make(name: str, folder: Path) -> FakeAccelerator:
            made.append(FakeAccelerator(fails))
            return made[-1]

        monkeypatch.setattr(module, "make_tracker", make)
        return made

    return install


@pytest.fixture
def settings(tiny_csv: Path, tiny_model_dir: Path) -> Settings:
    return {
        "data.train": str(tiny_csv), "model.checkpoint": str(tiny_model_dir), "train.max_steps": 3,
        "train.batch_size": 8, "train.evaluate_every": 2, "train.save_every": 2, "train.fast": False,
        "train.threads": 1, "evaluate.baselines": True, "output.log_to": ["tensorboard"],
    }  # fmt: skip


def failing(at: str, error: BaseException, after: int = 0) -> Callable[[str], None]:
    calls: list[str] = []

    def fail(call: str) -> None:
        calls.append(call)
        if call == at and calls.count(at) > after:
            raise error

    return fail


def test_every_number_and_the_final_scores_arrive(settings: Settings, tmp_path: Path, fake: Any) -> None:
    made = fake()
    preparation = start(settings, tmp_path / "run")
    records = list(preparation.train())
    run = preparation.finish()
    (tracker,) = made
    steps = [record for record in records if isinstance(record, StepRecord)]
    losses = [(step, values["train/loss"]) for step, values in tracker.logged if "train/loss" in values]
    assert losses == [(record.step, record.loss) for record in steps]
    names = {"loss", "learning_rate", "grad_norm", "epoch", "rows_per_second", "tokens_per_second"}
    assert {f"train/{name}" for name in names} == set(tracker.logged[0][1])
    evaluation = next(record for record in records if isinstance(record, EvaluationRecord))
    expected = {f"validation/{name}": value for name, value in evaluation.scores.items()}
    assert (evaluation.step, expected) in tracker.logged
    step, final = tracker.logged[-1]
    accuracy = run.scores["validation"]["accuracy"]
    assert step == 3 and final["final/validation/accuracy"] == accuracy["value"]
    assert [final[f"final/validation/accuracy/{end}"] for end in ("low", "high")] == [accuracy["low"], accuracy["high"]]
    majority = run.scores["baselines"]["majority"]["validation"]["accuracy"]["value"]
    assert final["final/baselines/majority/validation/accuracy"] == majority
    assert tracker.ended and tracker.config is not None
    assert tracker.config["train.max_steps"] == 3 and tracker.config["data.columns.text"] == "text"
    assert "optim.momentum" not in tracker.config  # null: it does not apply
    assert not [record for record in records if isinstance(record, WarningRecord)]


@pytest.mark.parametrize(("at", "after"), [("open", 0), ("log", 0), ("log", 2)])
def test_a_tracker_that_fails_is_said_once_and_costs_nothing(
    settings: Settings, tmp_path: Path, fake: Any, at: str, after: int
) -> None:
    made = fake(failing(at, ConnectionError("the server is away\nand more"), after))
    preparation = start(settings, tmp_path / "run")
    records = list(preparation.train())
    warnings = [record for record in records if isinstance(record, WarningRecord)]
    assert [(record.kind, record.message) for record in warnings] == [
        ("tracker", "tensorboard gets no more numbers, training goes on: ConnectionError: the server is away")
    ]
    assert isinstance(records[-1], StopRecord) and records[-1].reason == "done"
    assert list(read_log(tmp_path / "run")) == records
    assert preparation.finish().scores["validation"]
    assert len(made[0].logged) == after and made[0].ended


def test_a_tracker_that_fails_at_the_end_is_a_warning(settings: Settings, tmp_path: Path, fake: Any) -> None:
    fake(failing("end", SystemExit("out")))
    preparation = start(settings, tmp_path / "run")
    records = list(preparation.train())
    with pytest.warns(HeadstartWarning, match="SystemExit: out"):
        run = preparation.finish()
    assert run.scores["validation"] and list(read_log(tmp_path / "run")) == records


def test_a_tracker_that_hangs_holds_nothing_up(
    settings: Settings, tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.1)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.1)
    answer = threading.Event()
    fake(lambda call: answer.wait(60))
    try:
        preparation = start(settings, tmp_path / "run")
        assert isinstance(list(preparation.train())[-1], StopRecord)
        with pytest.warns(HeadstartWarning, match=r"finished nothing in 0\.1 seconds"):
            assert preparation.finish().scores["validation"]
    finally:
        answer.set()


def test_a_tracker_that_does_not_keep_up_is_left_out(
    tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    answer = threading.Event()
    made = fake(lambda call: answer.wait(60))
    trackers = Trackers(["tensorboard"], tmp_path, {})
    for step in range(20):
        trackers.log({"loss": 1.0}, step)
    (news,) = trackers.news()
    assert "does not answer" in news and trackers.news() == []
    answer.set()
    trackers.close()
    assert len(made[0].logged) <= 6  # what waited, at most


def test_an_error_of_the_training_closes_the_trackers(settings: Settings, tmp_path: Path, fake: Any) -> None:
    made = fake()
    records = start(settings, tmp_path / "run").train()
    next(records)
    records.close()
    assert made[0].ended


def test_a_stopped_run_goes_on_in_its_trackers(settings: Settings, tmp_path: Path, fake: Any) -> None:
    made = fake()
    first = start(settings, tmp_path / "run")
    list(train_to(first, 2))
    assert made[0].ended
    assert json.loads((tmp_path / "run" / "trackers" / "runs.json").read_text(encoding="utf-8")) == {"tensorboard": {}}
    finish(settings, tmp_path / "run", resume=True)
    steps = [[step for step, values in tracker.logged if "train/loss" in values] for tracker in made]
    assert steps == [[1, 2], [3]]
    assert made[1].config is None  # the values stand there already
    assert "final/validation/accuracy" in made[1].logged[-1][1]


def test_the_bits_do_not_depend_on_trackers(settings: Settings, tmp_path: Path, fake: Any) -> None:
    fake(failing("log", OSError("away"), 1))
    finish(settings, tmp_path / "with")
    finish({**settings, "output.log_to": []}, tmp_path / "without")
    model = Path("model") / "model.safetensors"
    assert (tmp_path / "with" / model).read_bytes() == (tmp_path / "without" / model).read_bytes()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio", "comet_ml"])
def test_a_missing_library_names_its_install_line(
    name: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(RecipeError) as caught:
        check_trackers([name])
    assert f"pip install 'headstart[{name}]'" in str(caught.value)


def test_a_missing_library_stops_before_anything_is_started(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.PACKAGES, "wandb", ("no_such_package_of_a_tracker",))
    with pytest.raises(RecipeError, match="no_such_package_of_a_tracker"):
        start({**settings, "output.log_to": ["wandb"]}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_become_flat() -> None:
    values = {"a": {"b": 1, "c": None, "d": {"e": "x"}}, "f": {"g": [1, 2], "h": True, "i": 0.5}}
    assert flatten_settings(values) == {"a.b": 1, "a.d.e": "x", "f.g": "[1, 2]", "f.h": True, "f.i": 0.5}
