"""Every kind of label, from a table to a scored model that transformers loads, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import headstart
from headstart.errors import DataError, HeadstartError, LabelError, RecipeError
from headstart.preparation import Plan, prepare_plan
from headstart.recipe import build_recipe
from headstart.results import write_results
from headstart.run import Run
from headstart.tasks import MultiLabelClassification, Regression, SequenceClassification, task_from_dict
from headstart.training_run import run_plan

WORDS = ("good", "great", "lovely", "fine", "bad", "dull", "awful", "weak")
THINGS = ("film", "plot", "cast", "story", "music")


def rows(num_rows: int = 120) -> list[dict[str, Any]]:
    """Rows whose labels of every kind follow from their words."""
    made = []
    for index in range(num_rows):
        word, thing = WORDS[index % 8], THINGS[index // 8 % 5]
        good = index % 8 < 4
        has_music, has_cast = thing == "music", thing == "cast"
        made.append(
            {
                "text": f"the {thing} {index} was {word}",
                "stars": 1 + (index % 8 < 6) + (index % 8 < 4) + (index % 8 < 2),
                "tags": [name for name, has in (("good", good), ("music", has_music), ("cast", has_cast)) if has],
                "good": int(good),
                "music": int(has_music),
                "price": 2015.5 + 10 * good + index % 4,
                "length": float(len(thing)),
                "p": [0.9, 0.1] if good else [0.2, 0.8],
                "w": 1.0 + good,
                "author": index // 6,
                "day": f"2024-01-{1 + index % 28:02d}",
            }
        )
    return made


def plan_for(source: Any, run_dir: Path, model: Path, **values: Any) -> Plan:
    given = {
        "output.run": str(run_dir),
        "model.checkpoint": str(model),
        "train.epochs": 2,
        "train.batch_size": 16,
        "optim.learning_rate": 3e-3,
        "train.precision": "fp32",
        "train.fast": False,
        **{name.replace("__", "."): value for name, value in values.items()},
    }
    return prepare_plan(source, values=given)


def train(source: Any, run_dir: Path, model: Path, **values: Any) -> Run:
    plan = plan_for(source, run_dir, model, **values)
    list(run_plan(plan))
    write_results(plan)
    return Run(run_dir)


def outputs_of(run: Run, texts: list[str]) -> torch.Tensor:
    """Give what transformers alone computes with the model of a run."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(run.run_dir / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.run_dir / "model")
    with torch.inference_mode():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits


TEXTS = ["the music 3 was lovely", "the cast 4 was awful", "a plot"]


def test_several_labels_a_row(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = train(rows(), tmp_path / "run", tiny_model_dir, data__columns__label="tags", train__epochs=10)
    assert isinstance(run.task, MultiLabelClassification)
    assert run.task.label_names == ("cast", "good", "music")
    assert run.task.thresholds is not None and len(run.task.thresholds) == 3
    assert list(run.scores["validation"])[:2] == ["f1_micro", "f1_macro"]
    assert run.scores["validation"]["f1_micro"]["value"] > 0.6
    assert set(run.scores["baselines"]) == {"frequencies", "tfidf_logistic"}

    said = run.predict(TEXTS)
    logits = outputs_of(run, TEXTS)
    for prediction, row in zip(said, torch.sigmoid(logits).numpy(), strict=True):
        assert prediction.probability is None
        np.testing.assert_allclose(prediction.probabilities, row, atol=1e-5)
        expected = [name for name, p, t in zip(run.task.label_names, row, run.task.thresholds, strict=True) if p >= t]
        assert prediction.prediction == expected
    config = json.loads((run.run_dir / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "multi_label_classification"
    table = pq.read_table(run.run_dir / "predictions.parquet").to_pylist()
    assert all(set(row["label"]) <= {"cast", "good", "music"} for row in table)
    # Other rows may write their labels otherwise.
    others = [{"text": row["text"], "tags": ";".join(row["tags"])} for row in rows(40)]
    assert run.evaluate([{**row, "tags": row["tags"].split(";") if row["tags"] else []} for row in others])["f1_micro"]
    with pytest.raises(HeadstartError, match="red"):
        run.evaluate([{"text": "a film", "tags": ["red"]}])


@pytest.mark.parametrize("label", ["good,music", ["good", "music"]])
def test_columns_of_zeros_and_ones(label: Any, tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = plan_for(rows(), tmp_path / "run", tiny_model_dir, data__columns__label=label)
    assert plan.data.task.label_names == ("good", "music")
    assert plan.recipe.data.columns["label"] == ["good", "music"]
    assert "0 or 1 for each of 2 labels" in plan.summary.task_reason


def test_columns_of_zeros_and_ones_are_found(tiny_model_dir: Path, tmp_path: Path) -> None:
    few = [{name: row[name] for name in ("text", "good", "music", "length")} for row in rows()]
    plan = plan_for(few, tmp_path / "run", tiny_model_dir)
    assert plan.data.task.name == "multi_label_classification"
    assert ("label", "good, music", "2 columns hold 0 and 1") in plan.summary.columns


def test_a_threshold_of_ones_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = train(rows(), tmp_path / "run", tiny_model_dir, data__columns__label="tags", task__threshold=0.25)
    assert run.task.thresholds == (0.25, 0.25, 0.25)
    assert run.predict(TEXTS)[0].prediction == [
        name for name, p in zip(run.task.label_names, run.predict(TEXTS)[0].probabilities, strict=True) if p >= 0.25
    ]


def test_a_number(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = train(
        rows(),
        tmp_path / "run",
        tiny_model_dir,
        data__columns__label="price",
        train__epochs=8,
        train__precision="bf16",
        train__fast=True,
    )
    assert isinstance(run.task, Regression)
    scores = run.scores["validation"]
    assert list(scores) == ["rmse", "mae", "r2", "pearson", "spearman"]
    assert scores["mae"]["value"] < 3.5  # in the units of the data; the mean alone misses by 5
    assert set(run.scores["baselines"]) == {"mean", "tfidf_ridge"}
    said = run.predict(TEXTS)
    assert all(2005 < prediction.prediction < 2040 for prediction in said)
    assert said[0].probability is None and said[0].probabilities is None
    # The model answers in the units of the data by itself, and in bfloat16, too, to a part of the deviation.
    expected = outputs_of(run, TEXTS)[:, 0].numpy()
    np.testing.assert_allclose([prediction.prediction for prediction in said], expected, atol=0.15)
    assert (run.task.center, run.task.scale) == ((0.0,), (1.0,))
    table = pq.read_table(run.run_dir / "predictions.parquet").to_pylist()
    assert all(2010 < row["label"] < 2035 for row in table)
    assert run.evaluate(rows(40))["mae"]["value"] < 5


def test_several_numbers_some_of_them_missing(tiny_model_dir: Path, tmp_path: Path) -> None:
    made = [{**row, "length": None if index % 5 == 0 else row["length"]} for index, row in enumerate(rows())]
    run = train(made, tmp_path / "run", tiny_model_dir, data__columns__label=["price", "length"])
    assert run.task.label_names == ("price", "length")
    assert set(run.predict(TEXTS)[0].prediction) == {"price", "length"}
    labels = [row["label"] for row in pq.read_table(run.run_dir / "predictions.parquet").to_pylist()]
    assert any(label["length"] is None for label in labels) and all(label["price"] for label in labels)
    assert "missing in" in dict(prepare_numbers(run))["length"]


def prepare_numbers(run: Run) -> list[tuple[str, str]]:
    return list(json.loads((run.run_dir / "data.json").read_text(encoding="utf-8"))["numbers"].items())


def test_whole_numbers_are_numbers_where_the_user_says_so(tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = plan_for(rows(), tmp_path / "a", tiny_model_dir, data__columns__label="stars", task__name="regression")
    assert plan.data.task.name == "regression" and len(plan.data.task.label_names) == 1
    plan = plan_for(rows(), tmp_path / "b", tiny_model_dir, data__columns__label="stars")
    assert plan.data.task.label_names == ("1", "2", "3", "4")


def test_classes_with_an_order(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = train(rows(), tmp_path / "run", tiny_model_dir, data__columns__label="stars", task__ordinal=True)
    assert run.task.score_kind == "ordinal"
    assert "quadratic_weighted_kappa" in run.scores["validation"] and "mae" in run.scores["validation"]
    texts = [{**row, "label": ("bad", "middling", "good", "great")[row["stars"] - 1]} for row in rows()]
    with pytest.raises(RecipeError, match="the order of the texts"):
        plan_for(texts, tmp_path / "b", tiny_model_dir, data__columns__label="label", task__ordinal=True)
    order = ["bad", "middling", "good", "great"]
    plan = plan_for(
        texts, tmp_path / "c", tiny_model_dir, data__columns__label="label", task__ordinal=True, task__labels=order
    )
    assert plan.data.task.label_names == tuple(order)
    with pytest.raises(LabelError, match="does not name great"):
        plan_for(texts, tmp_path / "d", tiny_model_dir, data__columns__label="label", task__labels=order[:3])


def test_an_order_changes_what_is_learned(tiny_model_dir: Path, tmp_path: Path) -> None:
    losses = []
    for ordinal in (None, True):
        plan = plan_for(
            rows(), tmp_path / str(ordinal), tiny_model_dir, data__columns__label="stars", task__ordinal=ordinal
        )
        losses.append(_first_loss(plan))
    assert losses[0] != losses[1]


def _first_loss(plan: Plan) -> float:
    """Give the loss of the first update."""
    from headstart.records import StepRecord

    records = run_plan(plan)
    try:
        return next(record.loss for record in records if isinstance(record, StepRecord))
    finally:
        records.close()  # type: ignore[attr-defined]


def test_probabilities_are_learned_from(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = train(
        rows(), tmp_path / "run", tiny_model_dir, data__columns__label="p", task__labels=["yes", "no"], train__epochs=8
    )
    assert run.task.label_names == ("yes", "no")
    assert run.scores["validation"]["accuracy"]["value"] > 0.7
    # It has learned how sure to be, which classes alone would not say.
    good = run.predict(["the film 7 was lovely"])[0].probabilities
    assert good is not None and 0.5 < good[0] < 0.97
    # Rows with a class each can be scored, too.
    found = run.evaluate([{"text": row["text"], "p": "yes" if row["good"] else "no"} for row in rows(40)])
    assert found["accuracy"]["value"] is not None


def test_what_a_row_counts(tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = plan_for(rows(), tmp_path / "a", tiny_model_dir, data__columns__label="good", data__weight="w")
    weights = plan.data.splits["train"].weights
    assert weights is not None and weights.mean() == pytest.approx(1)
    assert plan.data.splits["validation"].weights is None
    plain = plan_for(rows(), tmp_path / "b", tiny_model_dir, data__columns__label="good")
    assert _first_loss(plan) != _first_loss(plain)
    # A row that counts nothing teaches nothing: its label may be anything.
    losses = []
    for flipped in (0, 1):
        made = [
            {**row, "w": index % 3 and 1, "good": row["good"] if index % 3 else flipped}
            for index, row in enumerate(rows())
        ]
        validation = [{name: row[name] for name in ("text", "good")} for row in rows(40)]
        source = {"train": made, "validation": validation}
        losses.append(
            _first_loss(
                plan_for(
                    source, tmp_path / f"c{flipped}", tiny_model_dir, data__columns__label="good", data__weight="w"
                )
            )
        )
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("class_weights", "balanced"),
        ("class_weights", {"1": 3.0}),
        ("label_smoothing", 0.2),
        ("focal_gamma", 2.0),
    ],
)
@pytest.mark.parametrize("label", ["music", "tags"])
def test_each_setting_of_the_loss_changes_it(
    setting: str, value: Any, label: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    if label == "tags" and isinstance(value, dict):
        value = {"cast": 3.0}
    losses = []
    for given in ({}, {f"optim.{setting}": value}):
        values = {"data.columns.label": label, **given}
        losses.append(_first_loss(plan_for(rows(), tmp_path / f"run-{len(given)}", tiny_model_dir, **values)))
    assert losses[0] != losses[1]


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    targets = np.array([0, 0, 0, 0, 1, 2, 2, -1])
    task = SequenceClassification(("a", "b", "c"), "text", None, "label")
    optim = build_recipe(values={"optim.class_weights": "balanced"}).optim
    found = task.with_objective(optim, targets).objective.class_weights
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets[:-1])
    np.testing.assert_allclose(found, expected)
    labels = MultiLabelClassification(("a", "b"), "text", None, "label")
    found = labels.with_objective(optim, np.array([[1, 0], [0, 0], [0, 1], [0, 1], [-1, 1]])).objective.class_weights
    np.testing.assert_allclose(found, [3.0, 2 / 3])


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"data.columns.label": "price", "optim.class_weights": "balanced"}, "class_weights has no effect"),
        ({"data.columns.label": "price", "optim.label_smoothing": 0.1}, "label_smoothing has no effect"),
        ({"data.columns.label": "price", "optim.focal_gamma": 2}, "focal_gamma has no effect"),
        ({"data.columns.label": "price", "task.ordinal": True}, "task.ordinal has no effect with regression"),
        ({"data.columns.label": "good", "task.threshold": 0.3}, "task.threshold has no effect"),
        ({"data.columns.label": "good", "task.delimiter": ";"}, "task.delimiter has no effect"),
        ({"data.columns.label": "stars", "optim.class_weights": {"6": 2}}, 'names "6", which is no label'),
        ({"data.columns.label": "tags", "task.labels": ["x"]}, "task.labels has no effect"),
        ({"data.columns.label": "p", "task.labels": ["x"]}, "names 1 classes"),
        ({"data.columns.label": "stars", "task.ordinal": True, "optim.label_smoothing": 0.1}, "spreads targets"),
        ({"data.columns.label": "price", "evaluate.scores": ["accuracy"]}, "is a score of classes, not of numbers"),
        ({"data.columns.label": "tags", "evaluate.scores": ["rmse"]}, "is a score of numbers, not of several labels"),
        ({"data.columns.label": "good", "data.weight": "text"}, "holds text"),
        ({"data.columns.label": "good", "data.weight": "wight"}, "There is no column"),
        ({"data.columns.label": "good", "data.group": "author", "data.time": "day"}, "group and time both"),
        ({"data.columns.label": ["good", "nothing"]}, 'column "nothing" is named in data.columns.label'),
    ],
)
def test_what_has_no_effect_or_does_not_fit_is_an_error(
    values: dict[str, Any], part: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(HeadstartError, match=part):
        plan_for(rows(), tmp_path / "run", tiny_model_dir, **values)


def test_groups_stay_together_and_widen_intervals(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = train(
        rows(), tmp_path / "run", tiny_model_dir, data__columns__label="good", data__group="author",
        data__validation_fraction=0.3,
    )  # fmt: skip
    plan = plan_for(rows(), tmp_path / "other", tiny_model_dir, data__columns__label="good", data__group="author")
    train_split, validation = plan.data.splits["train"], plan.data.splits["validation"]
    assert not set(train_split.groups) & set(validation.groups)
    assert "whole groups by author" in validation.origin
    by_rows = run.scores["validation"]["accuracy"]
    assert by_rows["low"] <= by_rows["value"] <= by_rows["high"]
    shared = {"train": rows(), "validation": rows(30)}
    plan = plan_for(shared, tmp_path / "c", tiny_model_dir, data__columns__label="good", data__group="author")
    assert any(finding.kind == "leakage_group" and finding.count == 30 for finding in plan.data.findings)
    without = {"train": rows(), "validation": [{"text": "a", "good": 1}, {"text": "b", "good": 0}]}
    with pytest.raises(RecipeError, match=r"data\.group has no effect"):
        plan_for(without, tmp_path / "d", tiny_model_dir, data__columns__label="good", data__group="author")


def test_the_latest_rows_validate(tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = plan_for(rows(), tmp_path / "run", tiny_model_dir, data__columns__label="good", data__time="day")
    days = {name: [row["day"] for row in split.table] for name, split in plan.data.splits.items()}
    assert max(days["train"]) < min(days["validation"])
    assert "the latest" in plan.data.splits["validation"].origin
    early = {"train": rows(), "validation": rows(30)}
    plan = plan_for(early, tmp_path / "b", tiny_model_dir, data__columns__label="good", data__time="day")
    assert any(finding.kind == "leakage_time" for finding in plan.data.findings)


def test_the_seed_of_the_rows_is_apart_from_that_of_the_training(tiny_model_dir: Path, tmp_path: Path) -> None:
    def rows_of(**seeds: Any) -> list[int]:
        plan = plan_for(rows(), tmp_path / "run", tiny_model_dir, data__columns__label="good", **seeds)
        return plan.data.splits["validation"].rows.tolist()

    assert rows_of(train__seed=1) != rows_of(train__seed=2)
    assert rows_of(train__seed=1, data__seed=5) == rows_of(train__seed=2, data__seed=5)


@pytest.mark.parametrize(
    "task",
    [
        SequenceClassification((1, 5), "text", None, "label"),
        SequenceClassification(("a", "b"), "text", "other", ("a", "b"), ordinal=True),
        MultiLabelClassification(("a", "b"), "text", None, "tags", ";", (0.3, 0.7)),
        MultiLabelClassification((0, 1), "text", None, ("x", "y")),
        Regression(("x",), "text", None, "x", (2.0,), (0.5,)),
        Regression(("x", "y"), "text", "other", ("x", "y"), (2.0, 1.0), (0.5, 1.0)),
    ],
)
def test_a_task_is_written_and_read(task: Any) -> None:
    assert task_from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_infinite_and_constant_numbers_are_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    wrong = [{**row, "price": float("inf") if index == 7 else row["price"]} for index, row in enumerate(rows())]
    with pytest.raises(LabelError, match=r"not finite \(rows 7"):
        plan_for(wrong, tmp_path / "a", tiny_model_dir, data__columns__label="price")
    alike = [{**row, "price": 1.5} for row in rows()]
    with pytest.raises(LabelError, match="one number in all rows"):
        plan_for(alike, tmp_path / "b", tiny_model_dir, data__columns__label="price")
    same = [{**row, "tags": ["a"]} for row in rows()]
    with pytest.raises(LabelError, match="every row has the same labels"):
        plan_for(same, tmp_path / "c", tiny_model_dir, data__columns__label="tags")


def test_rows_with_no_label_of_their_own_are_said(tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = plan_for(rows(), tmp_path / "a", tiny_model_dir, data__columns__label="tags")
    assert any(finding.kind == "no_label" for finding in plan.data.findings)
    partly = [{**row, "music": None if index == 3 else row["music"]} for index, row in enumerate(rows())]
    plan = plan_for(partly, tmp_path / "b", tiny_model_dir, data__columns__label=["good", "music"])
    assert any(finding.kind == "unknown_entries" and finding.rows == [3] for finding in plan.data.findings)


def test_own_loops_and_finetune_take_every_kind(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = headstart.finetune(
        rows(), label=["good", "music"], model=str(tiny_model_dir), run=tmp_path / "run", progress=False,
        settings=["train.max_steps=2", "evaluate.baselines=false"],
    )  # fmt: skip
    assert isinstance(run.task, MultiLabelClassification)
    with pytest.raises(DataError, match="no label in any row"):
        run.evaluate([{"text": "a", "good": None, "music": None}])
