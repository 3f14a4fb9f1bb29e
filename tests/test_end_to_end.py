"""The whole way of the data, from a file to a scored model and back, with a tiny model."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

import headstart
from headstart import training_run
from headstart.errors import (
    CheckpointError,
    DataError,
    HeadstartError,
    HeadstartWarning,
    LabelError,
    RecipeError,
)
from headstart.preparation import Plan, prepare_plan
from headstart.results import write_results
from headstart.run import Run
from headstart.runlog import (
    CheckpointRecord,
    EvaluationRecord,
    Record,
    StepRecord,
    StopRecord,
    WarningRecord,
    read_log,
)
from headstart.training_run import run_plan
from small_training import write_reviews

FAST = {
    "train.epochs": 2,
    "train.batch_size": 16,
    "optim.learning_rate": 3e-3,
    "train.precision": "fp32",
    "evaluate.baselines": False,
}


@pytest.fixture
def tiny_csv(tmp_path: Path) -> Path:
    """120 rows of several lengths whose label follows from one word, every text its own."""
    return write_reviews(tmp_path / "reviews.csv", 120)


def plan_for(source: Any, run_dir: Path, model: Path, *, resume: bool = False, **values: Any) -> Plan:
    settings = {name.replace("__", "."): value for name, value in values.items()}
    given = {"output.run": str(run_dir), **({} if resume else {"model.checkpoint": str(model), **FAST}), **settings}
    return prepare_plan(source, values={key: value for key, value in given.items() if value != "unset"}, resume=resume)


def train_whole(source: Any, run_dir: Path, model: Path, **values: Any) -> tuple[Run, list[Record]]:
    plan = plan_for(source, run_dir, model, **values)
    records = list(run_plan(plan))
    write_results(plan)
    return Run(run_dir), records


def test_a_file_becomes_a_scored_model_that_predicts(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    run, records = train_whole(tiny_csv, tmp_path / "run", tiny_model_dir, train__epochs=6, evaluate__baselines=True)
    score = run.scores["validation"]["accuracy"]
    assert score["low"] <= score["value"] <= score["high"]
    assert score["value"] > 0.7
    assert set(run.scores["baselines"]) == {"majority", "tfidf_logistic"}
    assert run.predict(["the film was lovely", "a dull story"])[0].prediction == "good"
    assert [type(record) for record in records[-2:]] == [CheckpointRecord, StopRecord]
    names = {path.name for path in run.run_dir.iterdir() if not path.name.startswith(".")}
    assert names == {
        "recipe.yaml", "task.json", "environment.json", "data.json", "log.jsonl", "scores.json",
        "predictions.parquet", "model", "checkpoints", "README.md",
    }  # fmt: skip


def test_every_record_is_in_the_log_once(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    run, records = train_whole(tiny_csv, tmp_path / "run", tiny_model_dir)
    assert list(read_log(run.run_dir)) == records
    steps = [record.step for record in records if isinstance(record, StepRecord)]
    assert steps == list(range(1, len(steps) + 1))


def test_the_saved_model_is_an_ordinary_transformers_model(
    tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run, _ = train_whole(tiny_csv, tmp_path / "run", tiny_model_dir)
    model = AutoModelForSequenceClassification.from_pretrained(run.run_dir / "model")
    tokenizer = AutoTokenizer.from_pretrained(run.run_dir / "model")
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.dtype == torch.float32
    assert "attn" not in json.dumps(json.loads((run.run_dir / "model" / "config.json").read_text()))
    texts = ["the film was lovely", "a dull story and a very slow ending"]
    with torch.inference_mode():
        expected = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1)
    found = torch.tensor([prediction.probabilities for prediction in run.predict(texts)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_final_scores_are_those_of_the_stored_predictions(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    run, _ = train_whole(tiny_csv, tmp_path / "run", tiny_model_dir)
    rows = pq.read_table(run.run_dir / "predictions.parquet").to_pylist()
    right = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
    assert run.scores["validation"]["accuracy"]["value"] == pytest.approx(right)
    texts = [line.split(",")[0] for line in tiny_csv.read_text().splitlines()[1:]]
    again = run.predict([texts[row["row"]] for row in rows])
    assert [one.prediction for one in again] == [row["prediction"] for row in rows]


def test_a_run_does_not_depend_on_the_order_or_format_of_labels(tiny_model_dir: Path, tmp_path: Path) -> None:
    values: list[Any] = [3, 1]
    table = {"text": ["a lovely film", "a dull film"] * 20, "stars": values * 20}
    run, _ = train_whole(table, tmp_path / "run", tiny_model_dir, data__columns__label="stars")
    assert run.task.values == (1, 3)
    assert run.predict(["a lovely film"])[0].prediction in (1, 3)
    kinds = pq.read_table(run.run_dir / "predictions.parquet").schema
    assert str(kinds.field("prediction").type) == "int64"


def test_pairs_are_learned_predicted_and_evaluated(tiny_pair_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    run, _ = train_whole(tiny_pair_csv, tmp_path / "run", tiny_model_dir, evaluate__baselines=True)
    assert run.task.pair == "sentence2"
    assert run.predict([("the film", "the story")])[0].prediction in (0, 1)
    assert 0 <= run.evaluate(tiny_pair_csv)["accuracy"]["value"] <= 1  # type: ignore[operator]
    with pytest.raises(DataError, match="pairs"):
        run.predict(["one text"])


def test_killed_and_resumed_equals_not_stopped(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Leave the iteration after each number of records, resume, and compare bit for bit."""
    settings = {"train__save_every": 2, "train__evaluate_every": 3, "train__accumulation": 2}
    whole, records = train_whole(tiny_csv, tmp_path / "whole", tiny_model_dir, **settings)
    expected = (whole.run_dir / "model" / "model.safetensors").read_bytes()
    for stop_after in range(1, len(records) + 1, 2):
        run_dir = tmp_path / f"stopped-{stop_after}"
        for count, _ in enumerate(run_plan(plan_for(tiny_csv, run_dir, tiny_model_dir, **settings)), start=1):
            if count == stop_after:
                break
        plan = plan_for(None, run_dir, tiny_model_dir, resume=True)
        list(run_plan(plan))
        write_results(plan)
        assert (run_dir / "model" / "model.safetensors").read_bytes() == expected, stop_after
        # Where nothing was saved yet, the log says first that the training began anew.
        found = [strip(record) for record in read_log(run_dir) if not isinstance(record, WarningRecord)]
        assert found == [strip(record) for record in records], stop_after
        assert Run(run_dir).scores == whole.scores


def strip(record: Record) -> Any:
    return {name: value for name, value in vars(record).items() if name != "seconds"}


def test_a_request_to_stop_saves_and_resume_goes_on(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny_csv, tmp_path / "run", tiny_model_dir)
    records = []
    for record in run_plan(plan):
        records.append(record)
        plan.requests.add("stop")
    assert isinstance(records[-1], StopRecord) and records[-1].reason == "requested"
    assert [type(record) for record in records] == [StepRecord, CheckpointRecord, StopRecord]
    with pytest.raises(CheckpointError, match="has not ended"):
        headstart.load(tmp_path / "run")


def test_a_run_that_was_moved_goes_on_where_it_lies(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    whole, _ = train_whole(tiny_csv, tmp_path / "whole", tiny_model_dir)
    for _ in run_plan(plan_for(tiny_csv, tmp_path / "here", tiny_model_dir)):
        break
    (tmp_path / "here").rename(tmp_path / "there")
    plan = plan_for(None, tmp_path / "there", tiny_model_dir, resume=True)
    list(run_plan(plan))
    write_results(plan)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole.run_dir, tmp_path / "there")]
    assert weights[0] == weights[1]


def test_resume_refuses_other_settings_and_other_data(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for record in run_plan(plan_for(tiny_csv, run_dir, tiny_model_dir)):
        if isinstance(record, CheckpointRecord):
            break
    with pytest.raises(RecipeError, match=r"train\.seed: 0 in the run, 5 given now"):
        plan_for(None, run_dir, tiny_model_dir, resume=True, train__seed=5)
    with pytest.raises(RecipeError, match=r"train\.order: 'length' in the run, 'random' given now"):
        plan_for(None, run_dir, tiny_model_dir, resume=True, train__order="random")
    plan = plan_for(None, run_dir, tiny_model_dir, resume=True, train__order="auto")  # which is what it was
    assert plan.recipe.train.order == "length"
    with tiny_csv.open("a") as file:
        file.write("a lovely night,good\n")
    with pytest.raises(CheckpointError, match="data: train was"):
        list(run_plan(plan_for(None, run_dir, tiny_model_dir, resume=True)))


def test_an_existing_run_is_not_overwritten(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    train_whole(tiny_csv, tmp_path / "run", tiny_model_dir)
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        plan_for(tiny_csv, tmp_path / "run", tiny_model_dir)


def test_the_saved_recipe_repeats_the_run(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    first, _ = train_whole(tiny_csv, tmp_path / "first", tiny_model_dir)
    plan = prepare_plan(recipe_file=first.run_dir / "recipe.yaml", values={"output.run": str(tmp_path / "second")})
    list(run_plan(plan))
    write_results(plan)
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


def test_model_and_batch_decide_a_learning_rate_that_is_not_set(
    tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    unset = {"optim__learning_rate": "unset", "train__batch_size": 32, "train__epochs": 1}
    plan = plan_for(tiny_csv, tmp_path / "run", tiny_model_dir, **unset)
    rates = [record.learning_rate for record in run_plan(plan) if isinstance(record, StepRecord)]
    assert rates == pytest.approx([3e-4, 2.25e-4, 1.5e-4, 0.75e-4])  # no warm-up, linear to 0
    assert plan.summary.learning_rate == 3e-4
    recipe = yaml.safe_load((plan.run_dir / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["optim"]["learning_rate"] == 3e-4
    for name, batch in (
        ("small", {"train__batch_size": 8}),
        ("added", {"train__batch_size": 4, "train__accumulation": 2}),
        ("tokens", {"train__batch_size": "unset", "train__tokens_per_batch": 85}),
    ):
        plan = plan_for(tiny_csv, tmp_path / name, tiny_model_dir, **{**unset, **batch})
        assert plan.recipe.optim.learning_rate == plan.summary.learning_rate
        assert plan.recipe.optim.learning_rate == pytest.approx(1.5e-4, rel=0.0 if name != "tokens" else 0.2)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("optim__name", "sgd"),
        ("optim__learning_rate", 1e-4),
        ("optim__weight_decay", 0.5),
        ("optim__beta1", 0.5),
        ("optim__beta2", 0.9),
        ("optim__epsilon", 1e-2),
        ("optim__schedule", "cosine"),
        ("optim__schedule", "constant"),
        ("optim__warmup", 4),
        ("optim__max_grad_norm", 0.01),
        ("model__dropout", 0.4),
        ("train__epochs", 1),
        ("train__batch_size", 8),
        ("train__accumulation", 3),
        ("train__order", "random"),
        ("train__order", "sequential"),
        ("train__precision", "bf16"),
        ("train__seed", 3),
        ("data__limit", 50),
        ("data__max_length", 6),
        ("data__validation_fraction", 0.3),
    ],
)
def test_an_option_that_is_set_changes_the_model(
    setting: str, value: Any, tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    weights = []
    for name, settings in (("without", {}), ("with", {setting: value})):
        plan = plan_for(tiny_csv, tmp_path / name, tiny_model_dir, train__best="last", **settings)
        list(run_plan(plan))
        weights.append(torch.cat([parameter.flatten() for parameter in plan.loaded.model.parameters()]))
    assert not torch.equal(*weights)


def test_momentum_changes_the_model(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    weights = []
    for momentum in (0.0, 0.9):
        plan = plan_for(tiny_csv, tmp_path / str(momentum), tiny_model_dir, optim__name="sgd", optim__momentum=momentum)
        list(run_plan(plan))
        weights.append(plan.loaded.model.classifier.weight.detach().clone())
    assert not torch.equal(*weights)


def test_a_token_budget_bounds_every_batch(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny_csv, tmp_path / "run", tiny_model_dir, train__batch_size="unset", train__tokens_per_batch=60)
    records = [record for record in run_plan(plan) if isinstance(record, StepRecord)]
    assert len(records) == plan.total_steps
    for update in plan.batches.updates(0):
        assert all(len(rows) * int(plan.batches.lengths[rows].max()) <= 60 for rows in update)


def test_evaluations_checkpoints_and_the_best_follow_the_recipe(
    tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    _, records = train_whole(
        tiny_csv, tmp_path / "run", tiny_model_dir,
        train__evaluate_every=3, train__save_every=5, train__best="log_loss", train__keep=2,
    )  # fmt: skip
    total = max(record.step for record in records)
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    assert [record.step for record in evaluations] == sorted({*range(3, total + 1, 3), total})
    lowest = float("inf")
    for record in evaluations:
        assert record.best == (record.scores["log_loss"] < lowest)
        lowest = min(lowest, record.scores["log_loss"])
    saved = {record.step for record in records if isinstance(record, CheckpointRecord)}
    assert saved == {*range(5, total + 1, 5), total, *(record.step for record in evaluations if record.best)}
    best = max(record.step for record in evaluations if record.best)
    left = {int(path.name.split("-")[1]) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert left == {*sorted(saved)[-2:], best}


def test_the_best_checkpoint_becomes_the_model(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    """A learning rate that destroys the model late: the last weights are worse than the best ones."""
    run, records = train_whole(
        tiny_csv, tmp_path / "run", tiny_model_dir,
        train__epochs=6, optim__learning_rate=0.02, optim__schedule="constant", train__evaluate_every=2,
    )  # fmt: skip
    evaluations = [record for record in records if isinstance(record, EvaluationRecord)]
    best = max(record.scores["accuracy"] for record in evaluations)
    assert run.scores["validation"]["accuracy"]["value"] == pytest.approx(best)


def test_patience_stops_early(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    _, records = train_whole(
        tiny_csv, tmp_path / "run", tiny_model_dir,
        train__epochs=50, optim__learning_rate=1e-9, train__patience=2, train__best="accuracy",
    )  # fmt: skip
    last = records[-1]
    assert isinstance(last, StopRecord) and last.reason == "early_stopping"
    assert sum(isinstance(record, EvaluationRecord) for record in records) == 3


def test_a_time_limit_stops_and_the_run_is_scored(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    run, records = train_whole(tiny_csv, tmp_path / "run", tiny_model_dir, train__time_limit="0.0001 minutes")
    last = records[-1]
    assert isinstance(last, StopRecord) and last.reason == "time_limit"
    assert run.scores["validation"]


def test_a_loss_that_is_not_finite_stops_without_an_update(
    tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    plan = plan_for(tiny_csv, tmp_path / "run", tiny_model_dir)
    with torch.no_grad():
        plan.loaded.model.classifier.bias[0] = float("nan")
    before = plan.loaded.model.classifier.weight.detach().clone()
    with pytest.raises(headstart.TrainingError, match="finite"):
        list(run_plan(plan))
    assert torch.equal(plan.loaded.model.classifier.weight, before)
    warning, stop = list(read_log(tmp_path / "run"))
    assert warning.kind == "non_finite" and len(warning.rows) == 16  # type: ignore[union-attr]
    assert stop.reason == "non_finite"  # type: ignore[union-attr]


def test_an_update_that_is_not_finite_can_be_skipped(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = plan_for(
        tiny_csv,
        tmp_path / "run",
        tiny_model_dir,
        train__on_non_finite="skip",
        train__max_steps=2,
        train__epochs="unset",
    )
    with torch.no_grad():
        plan.loaded.model.classifier.bias[0] = float("nan")
    kinds = [type(record).__name__ for record in run_plan(plan)]
    assert kinds.count("StepRecord") == 2 and kinds.count("WarningRecord") == 2


def test_tensorboard_gets_the_numbers(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, records = train_whole(tiny_csv, tmp_path / "run", tiny_model_dir, output__log_to=["tensorboard"])
    # accelerate writes the recipe's values into a file of their own beside the numbers.
    (folder,) = {path.parent for path in (tmp_path / "run" / "trackers").glob("events.out.tfevents.*")}
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    losses = [(event.step, event.value) for event in accumulator.Scalars("train/loss")]
    expected = [(record.step, record.loss) for record in records if isinstance(record, StepRecord)]
    assert [step for step, _ in losses] == [step for step, _ in expected]
    assert [value for _, value in losses] == pytest.approx([value for _, value in expected])
    assert "validation/accuracy" in accumulator.Tags()["scalars"]


def test_a_debug_run_takes_a_handful_of_rows(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = prepare_plan(
        tiny_csv, values={"output.run": str(tmp_path / "run"), "model.checkpoint": str(tiny_model_dir)}, debug=True
    )
    assert len(plan.data.splits["train"].rows) <= 64 and plan.total_steps == 4
    list(run_plan(plan))
    resumed = prepare_plan(values={"output.run": str(tmp_path / "run")}, resume=True)
    assert resumed.debug and resumed.total_steps == 4


def test_training_keeps_freed_memory_to_its_end(
    tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[bool] = []

    @contextlib.contextmanager
    def keep() -> Iterator[None]:
        inside.append(True)
        yield
        inside.clear()

    monkeypatch.setattr(training_run, "keep_freed_memory", keep)
    for _ in run_plan(plan_for(tiny_csv, tmp_path / "run", tiny_model_dir, train__epochs=1)):
        assert inside
    assert not inside


def test_the_test_split_is_not_touched_by_training(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    weights = []
    for name, content in (
        ("a", "the film was warm,good\nthe film was cold,bad\n"),
        ("b", "slow music,bad\nwarm music,good\n"),
    ):
        test = tmp_path / f"test-{name}.csv"
        test.write_text(f"text,label\n{content}")
        run, _ = train_whole(tiny_csv, tmp_path / name, tiny_model_dir, data__test=str(test))
        assert set(run.scores) >= {"validation", "test"}
        weights.append((run.run_dir / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_evaluate_refuses_labels_that_were_not_in_training(
    tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    run, _ = train_whole(tiny_csv, tmp_path / "run", tiny_model_dir)
    with pytest.raises(LabelError, match="middling"):
        run.evaluate([{"text": "a film", "label": "good"}, {"text": "a song", "label": "middling"}])


def test_predict_and_evaluate_say_what_they_cut_and_leave_out(
    tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    run, _ = train_whole(tiny_csv, tmp_path / "run", tiny_model_dir)
    long = "the film " * 100
    cut = "1 of {} rows are longer than the limit of 128 tokens and are cut, losing 74 tokens"
    with pytest.warns(HeadstartWarning, match=cut.format(2)) as caught:
        run.predict(["a film", long])
    assert caught[0].filename == __file__
    told: list[str] = []
    run.predict(["a film", long], tell=told.append)
    assert told == [cut.format(2)]
    told.clear()
    rows = [{"text": f"a film {index}", "label": "good" if index % 2 else "bad"} for index in range(150)]
    rows[3]["text"] = ""
    run.evaluate([*rows, {"text": long, "label": "bad"}, {"text": None, "label": "bad"}], tell=told.append)
    assert told[0].startswith("1 row without text skipped") and "151" in told[0]
    assert told[1].startswith("1 row with empty text kept")
    assert told[2] == cut.format(151)
    news: list[tuple[str, int, int]] = []
    run.evaluate(rows, tell=told.append, progress=lambda text, done, total: news.append((text, done, total)))
    run.predict_source(rows, progress=lambda text, done, total: news.append((text, done, total)))
    assert news == [("predicting", done, 150) for done in (64, 128, 150)] * 2


def test_cut_rows_are_findings_and_strict_refuses_them(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    with tiny_csv.open("a", encoding="utf-8") as file:
        file.write("the film was good".ljust(20) + "and the music " * 60 + ",good\n")
        file.write("the film was bad".ljust(20) + "and the music " * 60 + ",bad\n")
    validation = tmp_path / "validation.csv"
    lines = [f"a good scene {index},good" for index in range(8)]
    lines += [f"{word} music {'and this house ' * 60},{word}" for word in ("good", "bad")]
    validation.write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    values = {"data__validation": str(validation), "data__max_length": 40}
    plan = plan_for(tiny_csv, tmp_path / "run", tiny_model_dir, **values)
    found = {finding.split: finding for finding in plan.data.findings if finding.kind == "truncated"}
    assert found["train"].rows == [120, 121] and found["validation"].rows == [8, 9]
    assert "train: 2 of 122 rows are longer than the limit of 40 tokens and lose 292 tokens" in found["train"].message
    assert not any("train: 2 of 122" in message for _, message in plan.summary.findings)
    assert any("validation: 2 of 10 rows" in message for _, message in plan.summary.findings)
    with pytest.raises(DataError, match=r"(?s)Too many rows are cut.*train: 2 of 122.*validation: 2 of 10"):
        plan_for(tiny_csv, tmp_path / "run", tiny_model_dir, **values, data__strict=True)


def test_finish_says_how_far_it_is(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    plan = plan_for(tiny_csv, tmp_path / "run", tiny_model_dir, evaluate__baselines=True)
    list(run_plan(plan))
    news: list[tuple[str, int, int]] = []
    write_results(plan, lambda text, done, total: news.append((text, done, total)))
    assert news == [
        ("saving the model", 0, 0),
        ("scoring the saved model on validation", 12, 12),
        ("scoring the baselines", 0, 0),
    ]


def test_predictions_keep_row_order_and_say_what_has_no_text(
    tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    run, _ = train_whole(tiny_csv, tmp_path / "run", tiny_model_dir)
    rows = [{"text": "a film"}, {"text": None}, {"text": ""}, {"text": "the " * 10_000}]
    predicted = run.predict_source(rows)
    assert [one is None for one in predicted.predictions] == [False, True, False, False]
    assert predicted.notes == [
        "1 of 3 rows are longer than the limit of 128 tokens and are cut, losing 9,874 tokens",
        "rows without text, which get no prediction: 1 (row 1, from 0)",
    ]
    alone = run.predict(["a film"])[0]
    assert predicted.predictions[0] is not None
    assert predicted.predictions[0].probabilities == pytest.approx(alone.probabilities, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"data__max_length": 500}, "reads at most 128"),
        ({"model__checkpoint": "./nowhere"}, "no such model folder"),
        ({"evaluate__scores": ["acuracy"]}, '"accuracy"'),
        ({"train__best": "f2"}, "f2"),
        ({"train__device": "cuda:7"}, "not available|unknown"),
        ({"model__revision": "main"}, "is a folder"),
    ],
)
def test_a_mistake_is_said_before_anything_is_written(
    values: dict[str, Any], part: str, tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(HeadstartError, match=part):
        plan_for(tiny_csv, tmp_path / "run", tiny_model_dir, **values)
    assert not (tmp_path / "run").exists()


def test_finetune_takes_splits_from_paths_memory_and_recipe(
    tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    short: dict[str, Any] = {"model": str(tiny_model_dir), "progress": False}
    steps = ["train.max_steps=1", "train.epochs=null", "evaluate.baselines=false"]
    rows = [{"text": f"a {label} film", "label": label} for label in ("good", "bad")]
    run = headstart.finetune(tiny_csv, validation=tiny_csv, run=tmp_path / "paths", settings=steps, **short)
    assert set(run.scores) == {"validation"}
    named = [*steps, f"data.train={tiny_csv}"]
    run = headstart.finetune(validation=rows, run=tmp_path / "both", settings=named, **short)
    assert pq.read_table(run.run_dir / "predictions.parquet").num_rows == len(rows)
    with pytest.raises(RecipeError, match="No training source"):
        headstart.finetune(validation=rows, run=tmp_path / "none", settings=steps, **short)


def test_finetune_gives_a_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    rows = [{"text": f"a {word} film {index}", "label": word} for index in range(20) for word in ("lovely", "dull")]
    run = headstart.finetune(
        rows, test=rows[:6], model=str(tiny_model_dir), run=tmp_path / "run", epochs=1, progress=False
    )
    assert set(run.scores) == {"validation", "test", "baselines"}
    assert headstart.load(run.run_dir).predict(["a dull film"])[0].probability <= 1


def test_one_broken_run_does_not_hide_the_others(tiny_csv: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        train_whole(tiny_csv, tmp_path / "runs" / name, tiny_model_dir, train__epochs=1)
    (tmp_path / "runs" / "broken" / "scores.json").write_text("{")
    entries = headstart.list_runs(tmp_path / "runs")
    assert [(entry.name, entry.status) for entry in entries] == [("whole", "done"), ("broken", "broken")]
