"""Adding rows and computing, whatever the rows come as, and what is refused before anything else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headstart import evaluate
from headstart.errors import DataError, HeadstartError, RecipeError
from headstart.evaluate.columns import plain

PREDICTIONS, REFERENCES = [0, 1, 1, 2], [0, 1, 2, 2]

CONTAINERS: list[Callable[[list[int]], Any]] = [
    list,
    tuple,
    np.array,
    lambda rows: np.array(rows, dtype=np.float32),
    lambda rows: np.array(rows, dtype=object),
    lambda rows: [np.int64(row) for row in rows],
    lambda rows: [torch.tensor(row) for row in rows],
    torch.tensor,
    lambda rows: torch.tensor(rows, dtype=torch.float32, requires_grad=True),
    lambda rows: torch.tensor(rows, dtype=torch.bfloat16),
    pd.Series,
    pa.array,
    iter,
]


@pytest.mark.parametrize("container", CONTAINERS)
def test_rows_come_as_anything(container: Callable[[list[int]], Any]) -> None:
    metric = evaluate.load("accuracy")
    assert metric.compute(predictions=container(PREDICTIONS), references=container(REFERENCES)) == {"accuracy": 0.75}


def test_adding_in_pieces_is_computing_at_once_and_leaves_nothing() -> None:
    metric = evaluate.load("f1")
    at_once = metric.compute(predictions=PREDICTIONS, references=REFERENCES, average="macro")
    for _ in range(2):
        metric.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2])
        metric.add(prediction=PREDICTIONS[2], reference=torch.tensor(REFERENCES[2]))
        metric.add_batch(predictions=[], references=[])
        assert len(metric) == 3
        assert metric.compute(predictions=PREDICTIONS[3:], references=REFERENCES[3:], average="macro") == at_once
        assert len(metric) == 0
    with pytest.raises(DataError, match="no rows"):
        metric.compute()


def test_a_column_of_another_name_is_added_by_its_name() -> None:
    metric = evaluate.load("roc_auc")
    metric.add(prediction_scores=0.9, reference=1)
    metric.add(prediction_scores=0.1, references=0)
    metric.add_batch(prediction_scores=np.array([0.8]), references=[0])
    assert metric.compute(prediction_scores=[0.7], references=[1]) == {"roc_auc": 0.75}


@pytest.mark.parametrize(
    ("predictions", "references", "words"),
    [
        ([0.3, 0.7], [0, 1], "Give classes, not scores"),
        (torch.rand(2, 3), [0, 1], "argmax"),
        (["a", "b"], [0, 1], "label_names.index"),
        ([[0, 1], [1, 0]], [0, 1], '"multilabel"'),
        ([0, None], [0, 1], "row 1 cannot be used; row 1 is None"),
        ([0, float("nan")], [0, 1], "row 1"),
        ([0, float("inf")], [0, 1], "row 1"),
        ([0], [0, 1], "1 predictions, 2 references"),
        ([], [], "no rows"),
        (None, None, "no rows"),
        ([0], None, "references missing"),
        (None, [0], "predictions missing"),
        (1, 1, "in every row|one entry a row"),
        ("1", "1", "one entry a row"),
        (torch.tensor(1), torch.tensor(1), "one entry a row"),
        ({"a": 1}, {"a": 1}, "one entry a row"),
    ],
)
def test_bad_rows_are_refused_and_what_was_added_stays(predictions: Any, references: Any, words: str) -> None:
    metric = evaluate.load("accuracy")
    with pytest.raises(DataError, match=words) as raised:
        metric.compute(predictions=predictions, references=references)
    assert raised.value.expected and raised.value.fix
    metric.add(prediction=1, reference=1)
    if words not in ("no rows",):
        with pytest.raises(DataError, match=words):
            metric.add_batch(predictions=predictions, references=references)
    assert len(metric) == 1
    assert metric.compute() == {"accuracy": 1.0}


def test_five_bad_rows_are_named_and_the_rest_counted() -> None:
    with pytest.raises(DataError, match="row 0, 1, 2, 3, 4 and 4 more"):
        evaluate.load("accuracy").compute(predictions=[0.5] * 9, references=[1] * 9)


@pytest.mark.parametrize(
    ("name", "config", "predictions", "references", "words"),
    [
        ("accuracy", "multilabel", [0, 1], [0, 1], "without"),
        ("f1", "multilabel", [[0.2, 0.9]], [[0, 1]], "0.5"),
        ("f1", "multilabel", [[0, 1], [1]], [[0, 1], [1, 1]], "another number of entries"),
        ("f1", "multilabel", [[0, 1]], [[0, 1, 1]], "another number of entries"),
        ("mse", None, [[0.5], [0.2]], [0.5, 0.2], "squeeze"),
        ("mse", None, ["a"], ["b"], "Give numbers"),
        ("mse", "multilist", [0.5], [0.5], "each output"),
        ("bleu", None, [["a", "b"]], [["a"]], "decode"),
        ("bleu", None, ["a"], [[]], "at least one text"),
        ("rouge", None, [1], ["a"], "decode"),
        ("seqeval", None, ["B-PER"], ["B-PER"], "label names"),
        ("seqeval", None, [[1, 2]], [[1, 2]], "label names"),
        ("seqeval", None, [["O"]], [["O", "O"]], "has 1 and 2 tags"),
        ("squad", None, ["cat"], ["cat"], "prediction_text"),
        ("squad", None, [{"id": "1", "prediction_text": "a"}], [{"id": "1"}], "answer_start"),
        ("squad", None, [{"id": 1, "prediction_text": "a"}], [{"id": "1", "answers": {"text": ["a"]}}], "dict"),
        ("squad", None, [{"id": "1", "prediction_text": "a"}], [{"id": "1", "answers": [{"x": "a"}]}], "answer_start"),
        ("squad_v2", None, [{"id": "1", "prediction_text": "a"}], [{"id": "1", "answers": []}], "no_answer_prob"),
        ("glue", "stsb", ["a"], [1.0], "Give numbers"),
        ("glue", "mrpc", [0.5], [1], "Give classes"),
        ("exact_match", None, [1], ["a"], "a text in every row"),
    ],
)
def test_each_metric_refuses_what_it_cannot_use(
    name: str, config: str | None, predictions: Any, references: Any, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        evaluate.load(name, config).compute(predictions=predictions, references=references)


def test_unknown_options_and_columns_offer_the_nearest() -> None:
    metric = evaluate.load("f1")
    metric.add(prediction=1, reference=1)
    with pytest.raises(RecipeError, match='"average"'):
        metric.compute(averag="macro")
    with pytest.raises(RecipeError, match='"predictions"'):
        metric.add_batch(prediction=[1], references=[1])
    with pytest.raises(RecipeError, match="takes no references"):
        evaluate.load("perplexity").compute(predictions=["a"], references=["a"], model_id="x")
    assert len(metric) == 1


def test_a_score_that_is_not_defined_says_so_and_leaves_no_rows() -> None:
    metric = evaluate.load("f1")
    metric.add_batch(predictions=PREDICTIONS, references=REFERENCES)
    with pytest.raises(DataError, match="Target is multiclass but average='binary'"):
        metric.compute()
    assert len(metric) == 0
    with pytest.raises(HeadstartError, match="pearsonr cannot be computed"):
        evaluate.load("pearsonr").compute(predictions=[1.0], references=[1.0])


def test_positional_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        evaluate.load("accuracy").compute([1], [1])  # type: ignore[misc]


def test_a_function_is_a_metric() -> None:
    def distance(predictions: list[float], references: list[float], power: int = 1) -> dict[str, float]:
        """Mean distance."""
        pairs = zip(predictions, references, strict=True)
        return {"distance": sum(abs(a - b) ** power for a, b in pairs) / len(predictions)}

    metric = evaluate.load(distance)
    assert metric.name == "distance" and metric.description == "Mean distance."
    metric.add(prediction=1, reference=3)
    assert metric.compute(predictions=torch.tensor([2.0]), references=np.array([2]), power=2) == {"distance": 2.0}
    with pytest.raises(RecipeError, match='"power"'):
        metric.compute(predictions=[1], references=[1], powr=2)
    assert evaluate.load(lambda predictions, **options: options).compute(predictions=[1], a=2) == {"a": 2}
    with pytest.raises(RecipeError, match="has returned float"):
        evaluate.load(lambda predictions, references: 0.5).compute(predictions=[1], references=[1])
    with pytest.raises(ZeroDivisionError):
        evaluate.load(lambda predictions, references: {"a": 1 / 0}).compute(predictions=[1], references=[1])


def test_the_seed_is_numpys_and_numpys_stream_stays() -> None:
    def draw(predictions: Any) -> dict[str, float]:
        return {"drawn": float(np.random.rand())}

    expected = np.random.RandomState(7).rand()
    assert evaluate.load(draw, seed=7).compute(predictions=[1]) == {"drawn": expected}
    np.random.seed(7)
    metric = evaluate.load(draw)
    assert metric.seed == 7
    for _ in range(2):
        assert metric.compute(predictions=[1]) == {"drawn": expected}
    assert np.random.rand() == expected
    assert evaluate.load(draw).seed != 7


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.floats(allow_nan=False) | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=6,
    )
)
def test_plain_values_stay_as_they_are(value: Any) -> None:
    assert plain(value) == value
    assert plain(plain(value)) == plain(value)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=5))
def test_float32_keeps_its_value(values: list[float]) -> None:
    assert plain(torch.tensor(values)) == values
    assert plain(np.array(values, dtype=np.float32)) == values
    assert plain([np.float32(value) for value in values]) == values
