"""Several metrics over the same rows."""

from pathlib import Path

import pytest

from headstart import evaluate
from headstart.errors import DataError, RecipeError

PREDICTIONS, REFERENCES = [0, 1, 1, 0], [0, 1, 0, 1]


def same(predictions: list[int], references: list[int], bonus: float = 0) -> dict[str, float]:
    return {"accuracy": sum(a == b for a, b in zip(predictions, references, strict=True)) + bonus}


def test_rows_go_to_all_and_none_are_left() -> None:
    both = evaluate.combine(["accuracy", "f1"])
    assert both.compute(PREDICTIONS, REFERENCES) == {"accuracy": 0.5, "f1": 0.5}
    both.add(0, 0)
    both.add_batch(predictions=[1], references=[1])
    assert both.compute(predictions=[1, 0], references=[0, 1]) == {"accuracy": 0.5, "f1": 0.5}
    with pytest.raises(DataError, match="no rows"):
        both.compute()


def test_a_name_given_twice_gets_the_metric_before_it() -> None:
    twice = evaluate.combine(["accuracy", same, "f1"])
    assert twice.compute(PREDICTIONS, REFERENCES) == {"accuracy_accuracy": 0.5, "same_accuracy": 2, "f1": 0.5}
    thrice = evaluate.combine(["f1", evaluate.load("f1")])
    assert thrice.compute(PREDICTIONS, REFERENCES) == {"f1_0_f1": 0.5, "f1_1_f1": 0.5}
    named = evaluate.combine({"a": "f1", "b": "f1"})
    assert named.compute(PREDICTIONS, REFERENCES) == {"a_f1": 0.5, "b_f1": 0.5}


def test_a_prefix_can_be_asked_for() -> None:
    both = evaluate.combine(["accuracy", "recall"], force_prefix=True)
    assert both.compute(PREDICTIONS, REFERENCES) == {"accuracy_accuracy": 0.5, "recall_recall": 0.5}
    both = evaluate.combine({"a": evaluate.load("glue", "mrpc")}, force_prefix=True)
    assert both.compute(PREDICTIONS, REFERENCES) == {"a_accuracy": 0.5, "a_f1": 0.5}
    assert "a" in repr(both)


def test_an_option_goes_to_those_that_know_it() -> None:
    both = evaluate.combine(["accuracy", "f1", same])
    scores = both.compute([0, 1, 2, 1], [0, 1, 2, 2], average="micro", bonus=10)
    assert scores == {"accuracy_accuracy": 0.75, "f1": 0.75, "same_accuracy": 13}
    both.add(1, 1)
    with pytest.raises(RecipeError, match='"average"'):
        both.compute(averag="micro")
    assert [len(metric) for metric in both.evaluation_modules] == [1, 1, 1]


def test_a_column_goes_to_those_that_have_it() -> None:
    both = evaluate.combine(["roc_auc", "accuracy"])
    both.add(prediction=1, reference=1, prediction_scores=0.9)
    both.add_batch(predictions=[0], references=[0], prediction_scores=[0.2])
    scores = both.compute(predictions=[1], references=[0], prediction_scores=[0.95])
    assert scores == {"roc_auc": 0.5, "accuracy": 2 / 3}
    with pytest.raises(RecipeError, match='"prediction_scores"'):
        both.add_batch(predictions=[0], references=[0], prediction_score=[0.2])


def test_a_row_that_one_refuses_is_added_to_none() -> None:
    both = evaluate.combine([same, "accuracy"])
    for refused in (both.add, lambda a, b: both.add_batch([a], [b]), lambda a, b: both.compute([a], [b])):
        with pytest.raises(DataError, match="Give classes"):
            refused(0.5, 1)
    assert [len(metric) for metric in both.evaluation_modules] == [0, 0]


def test_other_processes_get_none(tmp_path: Path) -> None:
    both = [
        evaluate.combine(
            [evaluate.load(name, num_process=2, process_id=rank, cache_dir=tmp_path) for name in ("accuracy", "f1")]
        )
        for rank in (0, 1)
    ]
    for rank, combined in enumerate(both):
        combined.add(prediction=1, reference=rank)
    assert both[1].compute() is None
    assert both[0].compute() == {"accuracy": 0.5, "f1": 2 / 3}


@pytest.mark.parametrize("wrong", [[], {}, "accuracy", evaluate.load("f1")])
def test_what_cannot_be_combined(wrong: object) -> None:
    with pytest.raises(RecipeError, match="combine"):
        evaluate.combine(wrong)  # type: ignore[arg-type]
