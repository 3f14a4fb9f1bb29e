"""Keys and numbers are those of evaluate 0.4.6: what its own scripts gave, run once outside the project."""

import json
from pathlib import Path
from typing import Any

import pytest

from headstart import evaluate

# [name, configuration, columns, options, scores], the seed of all is 1.
CASES = json.loads(Path(__file__).with_name("scores_of_evaluate.json").read_text(encoding="utf-8"))


def plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize(
    "case", CASES, ids=["-".join(map(str, [case[0], case[1], *case[3]])) + f"-{i}" for i, case in enumerate(CASES)]
)
def test_scores_are_those_of_evaluate(case: list[Any]) -> None:
    name, config, columns, options, expected = case
    if options.get("tokenizer") == "str.split":
        options = {**options, "tokenizer": str.split}
    scores = evaluate.load(name, config, seed=1).compute(**columns, **options)
    assert scores is not None
    assert list(scores) == list(expected)
    for key, value in expected.items():
        if name == "seqeval" and isinstance(value, dict):
            assert scores[key] == pytest.approx(value, rel=1e-12)
        else:
            # evaluate works in float32 where it takes numbers.
            assert plain(scores[key]) == pytest.approx(
                value, rel=1e-6 if name in ("glue", "pearsonr", "mse") else 1e-12
            )


def test_every_metric_and_configuration_has_a_case() -> None:
    seen = {(name, config or "default") for name, config, *_ in CASES}
    listed = evaluate.list_evaluation_modules(with_details=True)
    known = {(module["name"], config) for module in listed for config in module["configs"]}
    without = {("precision", "multilabel"), ("recall", "multilabel"), ("roc_auc", "multilabel"), ("mae", "default")}
    # Perplexity needs a model: test_language_model.py.
    assert known - seen <= without | {("perplexity", "default")}
