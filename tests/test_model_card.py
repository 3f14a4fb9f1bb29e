import ast
from dataclasses import replace
from typing import Any

import pytest
import yaml

from headstart.display.plan import PlanSummary
from headstart.model_card import write_model_card
from headstart.recipe import build_recipe
from headstart.tasks import MultiLabelClassification, Regression, SequenceClassification, Task

SUMMARY = PlanSummary(
    source="reviews <b>", task="sequence_classification", task_reason="",
    columns=[("text", "t", ""), ("label", "l", "")],
    splits=[("train", 1200, "a|b.csv"), ("test", 30, "t.csv")], labels=[("good", 700), ("<script>", 500)],
    lengths={"median": 5, "p95": 8, "longest": 9, "max_length": 16, "truncated_rows": 3, "lost_tokens": 40},
    model="tiny", parameters=10, new_parameters=["classifier.weight"], precision="fp32", device="cpu", threads=1,
    epochs=3.0, total_steps=114, rows_per_step="32 rows", padding_fraction=0.0, order="random", learning_rate=1e-4,
    estimated_seconds=None, findings=[("warning", "test: 2 rows with a text of train")], run_dir="r", notes=[],
)  # fmt: skip
SCORES = {
    "test": {
        "accuracy": {"value": 0.8, "low": 0.7, "high": 0.9},
        "roc_auc": {"value": None, "low": None, "high": None},
    },
    "baselines": {"majority": {"test": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}}},
}


TASK = SequenceClassification(("good", "<script>"), "t", None, "l")


def card(summary: PlanSummary = SUMMARY, scores: dict[str, Any] = SCORES, task: Task = TASK, **values: object) -> str:
    settings = {"evaluate.scores": ["accuracy", "roc_auc"], "train.best": "accuracy"}
    recipe = build_recipe(values=settings | {name.replace("__", "."): value for name, value in values.items()})
    return write_model_card(recipe, {"warmup_steps": 7, "max_length": 16}, summary, scores, task)


def test_scores_stand_with_their_intervals_beside_the_baselines() -> None:
    assert "| accuracy | 0.800 [0.700, 0.900] | 0.500 [0.400, 0.600] |" in card()
    assert "| roc_auc | not defined | not defined |" in card()


def test_what_was_found_and_cut_is_said() -> None:
    assert "test: 2 rows with a text of train" in card()
    assert "longer than 16 tokens were cut (3 in train)" in card()
    assert "chosen on the validation split" in card()


def test_names_from_the_data_are_no_markup() -> None:
    assert "<script>" not in card() and "<b>" not in card()
    assert "a\\|b.csv" in card()


@pytest.mark.parametrize("checkpoint", [None, "org/model: a #1"])
def test_front_matter_is_yaml_that_a_hub_reads(checkpoint: str | None) -> None:
    before, front, _ = card(model__checkpoint=checkpoint).split("---\n", 2)
    assert before == ""
    found = yaml.safe_load(front)
    assert found.get("base_model") == checkpoint
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "text-classification")
    assert found["metrics"] == ["accuracy", "roc_auc"]


def test_the_checkpoint_is_not_said_to_be_chosen_when_it_is_the_last() -> None:
    assert "flattering" in card()
    assert "flattering" not in card(train__best="last")


def test_splits_without_scores_and_baselines_have_no_table() -> None:
    text = card(scores={"validation": SCORES["test"]})
    assert "On the validation split" in text and "On the test split" not in text
    assert "| score | this model |" in text
    assert "## Scores" in card(scores={})


def test_a_score_without_an_interval_stands_alone() -> None:
    assert "| f1 | 0.500 |" in card(scores={"test": {"f1": {"value": 0.5, "low": None, "high": None}}})


def test_a_score_that_a_baseline_lacks_is_not_defined() -> None:
    scores = {"test": {"f1": {"value": 0.5, "low": 0.4, "high": 0.6}}, "baselines": {"majority": {"test": {}}}}
    assert "| f1 | 0.500 [0.400, 0.600] | not defined |" in card(scores=scores)


def test_classes_past_twenty_are_not_listed() -> None:
    text = card(task=replace(TASK, values=tuple(f"class-{number}" for number in range(25))))
    assert "25 classes" in text and "class-19 and more" in text and "class-20" not in text


def test_it_says_from_which_probability_a_label_is_given() -> None:
    task = MultiLabelClassification(("a", "b|c"), "t", None, "l", thresholds=(0.25, 0.75))
    text = card(task=task)
    assert "any of 2 labels" in text and "| a | 0.250 |" in text and "| b\\|c | 0.750 |" in text


def test_it_says_in_which_units_numbers_are() -> None:
    task = Regression(("price",), "t", None, "price", center=(100.0,), scale=(7.0,))
    assert "standardised" in card(task=task) and "text regression" in card(task=task)
    assert "in the units of the data" in card(task=task.as_outputs())


def test_it_says_that_groups_were_drawn() -> None:
    assert "Whole groups of rows (author) were drawn" in card(data__group="author")
    assert "Whole groups" not in card()


@pytest.mark.parametrize(("pair", "argument"), [(False, "a text"), (True, ("a text", "its pair"))])
def test_the_example_passes_what_the_model_reads(pair: bool, argument: object) -> None:
    columns = [*SUMMARY.columns, ("pair", "p", "")] if pair else SUMMARY.columns
    code = card(replace(SUMMARY, columns=columns)).split("```python\n")[1].split("```")[0]
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    predict = next(call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "predict")
    assert ast.literal_eval(predict.args[0]) == [argument]


def test_nothing_remarkable_is_said_when_nothing_was_found() -> None:
    assert "Nothing remarkable" in card(replace(SUMMARY, findings=[]))
    assert "Nothing remarkable" not in card()
