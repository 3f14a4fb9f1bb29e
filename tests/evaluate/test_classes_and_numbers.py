"""The scores are scikit-learn's and scipy's."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart import evaluate

seeds = st.integers(0, 2**32 - 1)


def classes(seed: int, count: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(4, 40))
    # Each class stands there once, so that no score warns about an absent one.
    labels, predictions = (np.r_[np.arange(count), rng.integers(0, count, num_rows)] for _ in range(2))
    return labels, predictions, rng.random(len(labels))


@given(seeds)
@settings(max_examples=20)
def test_classes(seed: int) -> None:
    labels, predictions, weights = classes(seed)
    rows: dict[str, Any] = {"predictions": predictions, "references": labels}
    for options in ({}, {"sample_weight": weights}):
        got = evaluate.load("accuracy").compute(**rows, **options)
        assert got == {"accuracy": sk.accuracy_score(labels, predictions, **options)}
        got = evaluate.load("matthews_correlation").compute(**rows, **options)
        assert got == {"matthews_correlation": sk.matthews_corrcoef(labels, predictions, **options)}
        for name in ("f1", "precision", "recall"):
            for average in ("macro", "micro", "weighted", None):
                ours = evaluate.load(name).compute(**rows, average=average, **options)
                theirs = getattr(sk, f"{name}_score")(labels, predictions, average=average, **options)
                assert ours is not None and np.array_equal(ours[name], theirs)


@given(seeds)
@settings(max_examples=20)
def test_scores_of_classes(seed: int) -> None:
    labels, _, weights = classes(seed)
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(3), len(labels))
    ours = evaluate.load("roc_auc", "multiclass").compute(
        prediction_scores=shares, references=labels, multi_class="ovr", sample_weight=weights
    )
    assert ours == {"roc_auc": sk.roc_auc_score(labels, shares, multi_class="ovr", sample_weight=weights)}
    ours = evaluate.load("roc_auc").compute(prediction_scores=shares[:, 0], references=labels == 0)
    assert ours == {"roc_auc": sk.roc_auc_score(labels == 0, shares[:, 0])}
    bits = np.eye(3, dtype=int)[labels]
    ours = evaluate.load("roc_auc", "multilabel").compute(prediction_scores=shares, references=bits, average="micro")
    assert ours == {"roc_auc": sk.roc_auc_score(bits, shares, average="micro")}


@given(seeds)
@settings(max_examples=20)
def test_numbers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(3, 30))
    given_, right, weights = (rng.normal(size=num_rows) for _ in range(3))
    weights = np.abs(weights) + 0.1
    rows: dict[str, Any] = {"predictions": given_, "references": right}
    correlation, p_value = scipy.stats.pearsonr(right, given_)
    assert evaluate.load("pearsonr").compute(**rows, return_pvalue=True) == {
        "pearsonr": correlation,
        "p-value": p_value,
    }
    rank, p_value = scipy.stats.spearmanr(right, given_)
    assert evaluate.load("spearmanr").compute(**rows, return_pvalue=True) == {
        "spearmanr": rank,
        "spearmanr_pvalue": p_value,
    }
    assert evaluate.load("glue", "stsb").compute(**rows) == {"pearson": correlation, "spearmanr": rank}
    assert evaluate.load("mse").compute(**rows, sample_weight=weights) == {
        "mse": sk.mean_squared_error(right, given_, sample_weight=weights)
    }
    assert evaluate.load("mse").compute(**rows, squared=False) == {"mse": sk.root_mean_squared_error(right, given_)}
    assert evaluate.load("mae").compute(**rows) == {"mae": sk.mean_absolute_error(right, given_)}


def test_the_precision_is_double() -> None:
    # Rounded to float32 first, as evaluate does, both would be 2**24.
    rows = {"predictions": [2.0**24 + 1], "references": [2.0**24]}
    assert evaluate.load("mse").compute(**rows) == {"mse": 1.0}


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_a_correlation_with_a_constant_is_nan() -> None:
    for task, key in (("pearsonr", "pearsonr"), ("spearmanr", "spearmanr")):
        scores = evaluate.load(task).compute(predictions=[1.0, 1.0, 1.0], references=[1.0, 2.0, 3.0])
        assert scores is not None and np.isnan(scores[key])


@given(seeds)
@settings(max_examples=10)
def test_glue(seed: int) -> None:
    labels, predictions, _ = classes(seed, 2)
    rows: dict[str, Any] = {"predictions": predictions, "references": labels}
    accuracy = {"accuracy": sk.accuracy_score(labels, predictions)}
    for task in ("mrpc", "qqp"):
        assert evaluate.load("glue", task).compute(**rows) == accuracy | {"f1": sk.f1_score(labels, predictions)}
    assert evaluate.load("glue", "cola").compute(**rows) == {
        "matthews_correlation": sk.matthews_corrcoef(labels, predictions)
    }
    for task in ("sst2", "mnli", "mnli_mismatched", "mnli_matched", "qnli", "rte", "wnli", "hans"):
        assert evaluate.load("glue", task).compute(**rows) == accuracy
