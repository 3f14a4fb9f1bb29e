"""Several runs of one plan: what differs between them, what they say together, and the way back after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from safetensors.torch import load_file

import headstart
from headstart.cli.main import main
from headstart.display.studies import format_spread
from headstart.errors import CheckpointError, HeadstartError, RecipeError
from headstart.recipe import build_recipe
from headstart.records import StepRecord
from headstart.study import Study, describe_spread, is_study, plan_study
from headstart.study_training import StudyTraining, prepare_study
from small_training import write_reviews

FAST = {
    "train.epochs": 1,
    "train.batch_size": 16,
    "optim.learning_rate": 3e-3,
    "train.precision": "fp32",
    "train.fast": False,
    "evaluate.baselines": False,
}


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return write_reviews(tmp_path / "reviews.csv", 90)


def prepare(source: Any, study_dir: Path, model: Path, **options: Any) -> StudyTraining:
    numbers = {name: options.pop(name) for name in ("seeds", "folds", "keep_models", "resume") if name in options}
    own = {"output.run": str(study_dir)}
    if not numbers.get("resume"):
        own |= {"model.checkpoint": str(model), **FAST}
    values = {**own, **{name.replace("__", "."): value for name, value in options.items()}}
    return prepare_study(source, values=values, **numbers)


def train(training: StudyTraining) -> Study:
    for _, _, preparation in training.preparations():
        if preparation is not None:
            list(preparation.train())
            preparation.finish()
    return training.finish()


def test_seeds_share_their_rows_and_differ_in_all_else(reviews: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    study = train(prepare(reviews, tmp_path / "study", tiny_model_dir, seeds=3, train__seed=4))
    assert [run.run_dir.name for run in study.runs] == ["seed-4", "seed-5", "seed-6"]
    rows = [pq.read_table(run.run_dir / "predictions.parquet")["row"].to_pylist() for run in study.runs]
    assert rows[0] == rows[1] == rows[2]
    weights = [load_file(run.run_dir / "model" / "model.safetensors")["classifier.weight"] for run in study.runs]
    assert not (weights[0] == weights[1]).all() and not (weights[1] == weights[2]).all()

    scores = study.scores["validation"]["accuracy"]
    values = [run.scores["validation"]["accuracy"]["value"] for run in study.runs]
    assert scores["values"] == values
    assert scores["mean"] == pytest.approx(np.mean(values)) and scores["sd"] == pytest.approx(np.std(values, ddof=1))
    assert study.best.scores["validation"]["accuracy"]["value"] == max(values)
    # Each of them is an ordinary run, whose recipe repeats it.
    assert study.runs[1].recipe.train.seed == 5 and study.runs[1].recipe.data.seed == 4
    assert [entry.name for entry in headstart.list_runs(tmp_path)] != []
    assert {entry.name for entry in headstart.list_runs(tmp_path)} == {f"study/seed-{seed}" for seed in (4, 5, 6)}


def test_the_first_run_of_a_study_is_the_run_of_its_seed(reviews: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    study = train(prepare(reviews, tmp_path / "study", tiny_model_dir, seeds=2))
    run = headstart.finetune(
        reviews, run=tmp_path / "alone", model=str(tiny_model_dir), progress=False,
        settings=[f"{key}={json.dumps(value)}" for key, value in FAST.items()],
    )  # fmt: skip
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (run.run_dir, study.runs[0].run_dir))
    assert all((one[name] == other[name]).all() for name in one)


def test_each_row_is_held_out_once(reviews: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    study = train(prepare(reviews, tmp_path / "study", tiny_model_dir, folds=3))
    table = pq.read_table(study.study_dir / "predictions.parquet").to_pandas()
    assert sorted(table["row"]) == list(range(90))
    held_out = study.scores["held_out"]["accuracy"]
    assert held_out["value"] == pytest.approx((table["label"] == table["prediction"]).mean())
    assert held_out["low"] <= held_out["value"] <= held_out["high"]
    assert [run.recipe.data.fold for run in study.runs] == ["1/3", "2/3", "3/3"]
    assert all(run.recipe.train.best == "last" for run in study.runs)
    assert study.scores["kind"] == "folds"


def test_folds_of_numbers_and_groups(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [{"text": f"the film {i} was good", "price": i / 7, "author": f"a{i // 6}"} for i in range(60)]
    study = train(
        prepare(rows, tmp_path / "study", tiny_model_dir, folds=2, data__columns__label="price", data__group="author")
    )
    assert study.scores["held_out"]["mae"]["low"] is not None
    table = pq.read_table(study.study_dir / "predictions.parquet").to_pandas()
    assert set(table["group"]) == {f"a{i}" for i in range(10)}
    tables = [pq.read_table(run.run_dir / "predictions.parquet").to_pandas() for run in study.runs]
    assert not set(tables[0]["group"]) & set(tables[1]["group"])


def test_a_killed_study_goes_on_where_it_was(reviews: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    whole = train(prepare(reviews, tmp_path / "whole", tiny_model_dir, seeds=2))
    broken = prepare(reviews, tmp_path / "broken", tiny_model_dir, seeds=2, train__save_every=1)
    runs = broken.preparations()
    _, _, first = next(runs)
    assert first is not None
    list(first.train())
    first.finish()
    _, _, second = next(runs)
    assert second is not None
    for record in second.train():
        if isinstance(record, StepRecord) and record.step == 2:
            break  # left without saving, as a kill leaves it
    assert len(Study(tmp_path / "broken").runs) == 1 and not Study(tmp_path / "broken").is_finished
    again = prepare(None, tmp_path / "broken", tiny_model_dir, resume=True)
    states = [preparation is None for _, _, preparation in _trained(again)]
    assert states == [True, False]
    study = again.finish()
    for one, other in zip(study.runs, whole.runs, strict=True):
        weights = [load_file(run.run_dir / "model" / "model.safetensors") for run in (one, other)]
        assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
    assert study.scores["validation"] == whole.scores["validation"]


def _trained(training: StudyTraining) -> Any:
    for number, run, preparation in training.preparations():
        if preparation is not None:
            list(preparation.train())
            preparation.finish()
        yield number, run, preparation


def test_the_average_is_the_mean_of_weights_that_began_alike(
    reviews: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    study = train(prepare(reviews, tmp_path / "study", tiny_model_dir, seeds=2, keep_models="average"))
    assert study.average is not None
    assert study.scores["average"]["validation"] == study.average.scores["validation"]
    assert not (study.study_dir / "seed-0" / "model").exists()
    assert study.average.predict(["the film was lovely"])[0].prediction in ("good", "bad")
    kept = train(prepare(reviews, tmp_path / "kept", tiny_model_dir, seeds=2, model__seed=0))
    parts = [load_file(run.run_dir / "model" / "model.safetensors") for run in kept.runs]
    mean = load_file(study.average.run_dir / "model" / "model.safetensors")
    for name, value in mean.items():
        if value.is_floating_point():
            expected = (parts[0][name].double() + parts[1][name].double()) / 2
            assert (value - expected).abs().max() < 1e-6


def test_only_the_best_model_is_kept_on_request(reviews: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    study = train(prepare(reviews, tmp_path / "study", tiny_model_dir, seeds=2, keep_models="best"))
    models = [(study.study_dir / run.name / "model").exists() for run in study.plan]
    assert sorted(models) == [False, True]
    assert study.best.predict(["a film"])
    assert all((study.study_dir / run.name / "scores.json").exists() for run in study.plan)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({}, "several seeds or several folds"),
        ({"seeds": 2, "folds": 2}, "several seeds or several folds"),
        ({"seeds": 1}, "--seeds is 1"),
        ({"folds": 200}, "200 folds cannot be made of 90 rows"),
        ({"folds": 2, "data__validation_fraction": 0.2}, "validation_fraction has no effect with --folds"),
        ({"folds": 2, "keep_models": "average"}, "not averaged"),
        ({"seeds": 2, "keep_models": "bset"}, 'Did you mean "best"'),
    ],
)
def test_what_makes_no_study_is_an_error(
    options: dict[str, Any], part: str, reviews: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(HeadstartError, match=part):
        prepare(reviews, tmp_path / "study", tiny_model_dir, **options)
    assert not (tmp_path / "study").exists()


def test_a_study_is_no_run_and_is_not_overwritten(reviews: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    training = prepare(reviews, tmp_path / "study", tiny_model_dir, seeds=2)
    assert not (tmp_path / "study").exists()
    training.start()
    assert is_study(tmp_path / "study")
    with pytest.raises(CheckpointError, match="study of several runs"):
        headstart.load(tmp_path / "study")
    with pytest.raises(CheckpointError, match="is not empty"):
        prepare(reviews, tmp_path / "study", tiny_model_dir, seeds=2)
    with pytest.raises(RecipeError, match=r"settings of its own; given now: train\.epochs"):
        prepare(None, tmp_path / "study", tiny_model_dir, resume=True, train__epochs=5)
    with pytest.raises(RecipeError, match="--seeds 3"):
        prepare(None, tmp_path / "study", tiny_model_dir, resume=True, seeds=3)
    with pytest.raises(CheckpointError, match="no study"):
        headstart.Study(tmp_path)


def test_folds_leave_the_choice_of_a_checkpoint_to_the_user() -> None:
    assert plan_study(build_recipe(), folds=2)[0].values["train.best"] == "last"
    chosen = build_recipe(values={"train.best": "accuracy"})
    assert "train.best" not in plan_study(chosen, folds=2)[0].values


def test_the_spread_is_that_of_students_t() -> None:
    values = [0.80, 0.82, 0.79, 0.84]
    found = describe_spread([{"value": value, "low": value - 0.03, "high": value + 0.05} for value in values])
    expected = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx(expected)
    assert found["rows"] == pytest.approx(0.04)
    assert describe_spread([{"value": None, "low": None, "high": None}] * 2)["mean"] is None


@pytest.mark.parametrize(
    ("mean", "sd", "shown"),
    [
        (0.80392, 0.0123, "0.80 ± 0.01"),
        (0.80392, 0.0096, "0.80 ± 0.01"),
        (0.80392, 0.00456, "0.804 ± 0.005"),
        (12.345, 1.4, "12 ± 1"),
        (412.8, 31.2, "410 ± 30"),
        (None, None, "not defined"),
    ],
)
def test_digits_end_where_the_spread_decides_them(mean: float | None, sd: float | None, shown: str) -> None:
    assert format_spread(mean, sd) == shown


def test_the_command(
    reviews: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [text for key, value in FAST.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    given = [str(reviews), "--model", str(tiny_model_dir), "--yes", *settings]
    assert main(["train", *given, "--seeds", "2", "--run", "two"]) == 0
    said = capsys.readouterr().out
    assert "2 runs of this plan, one after the other: seed-0 to seed-1" in said
    assert " seed-1   2 of 2" in said and "validation accuracy: seed-0" in said
    assert main(["show", "two"]) == 0
    assert "all runs" in capsys.readouterr().out
    assert main(["train", "--resume", "--run", "two", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["runs"] == ["seed-0", "seed-1"]
    assert main(["train", *given, "--keep-models", "best"]) == 2
    assert "--keep-models has no effect" in capsys.readouterr().err
    assert main(["train", *given, "--folds", "2"]) == 0  # a name is found: runs/reviews-1
    assert (tmp_path / "runs" / "reviews-1" / "fold-2" / "scores.json").exists()


def test_in_python(reviews: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = [f"{key}={json.dumps(value)}" for key, value in FAST.items()]
    study = headstart.cross_validate(
        reviews, folds=2, run=tmp_path / "cv", model=str(tiny_model_dir), settings=settings, progress=False
    )
    assert study.scores["held_out"]["accuracy"]["value"] is not None
    again = headstart.cross_validate(run=tmp_path / "cv", resume=True, progress=False)
    assert again.scores == study.scores
    with pytest.raises(TypeError, match=r"no argument epoch\. Did you mean"):
        headstart.finetune_seeds(reviews, epoch=3, progress=False)
