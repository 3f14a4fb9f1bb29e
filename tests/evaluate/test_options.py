"""Every option of every metric changes something; one that cannot says so."""

import logging
from typing import Any

import pytest

from headstart import evaluate
from headstart.errors import DataError, HeadstartError, HeadstartWarning, RecipeError
from headstart.evaluate.registry import all_metrics

CLASSES = {"predictions": [0, 1, 1, 0, 1], "references": [0, 1, 0, 1, 1]}
BITS = {
    "predictions": [[0, 1], [1, 1], [1, 0], [0, 1], [0, 0]],
    "references": [[0, 1], [1, 0], [1, 0], [1, 1], [1, 0]],
}
WEIGHTS = [1, 9, 3, 4, 5]
NEVER_PREDICTED = {"predictions": [0, 0, 0], "references": [0, 0, 0]}
NUMBERS = {"predictions": [2.5, 0.0, 2, 8], "references": [3, -0.5, 2, 7]}
OUTPUTS = {"predictions": [[0.5, 1], [-1, 1], [7, -6]], "references": [[0, 2], [-1, 2], [8, -5]]}
RANKED = {"prediction_scores": [0.5, 0.25, 1.0, 0.125, 0.3], "references": [1, 0, 0, 1, 0]}
SHARES = {
    "prediction_scores": [[0.5, 0.25, 0.25], [0.3, 0.2, 0.5], [0.125, 0.375, 0.5], [0, 0.75, 0.25], [0.4, 0.4, 0.2]],
    "references": [0, 1, 2, 1, 2],
}
TEXTS = {"predictions": ["The cats sat, on it 3", "general kenobi"], "references": ["the cat sat on it", "a general"]}
TAGS = {"predictions": [["O", "I-PER", "I-PER"]], "references": [["O", "B-PER", "I-PER"]]}
INSIDE = {"predictions": [["O", "I-PER"]], "references": [["O", "I-PER"]]}
NO_SPANS = {"predictions": [["O", "O"]], "references": [["O", "B-PER"]]}
SUFFIXED = {"predictions": [["PER-B", "LOC-B"]], "references": [["PER-B", "LOC-B"]]}
QUESTIONS = {
    "predictions": [{"id": "a", "prediction_text": "x", "no_answer_probability": 0.5}],
    "references": [{"id": "a", "answers": {"text": ["x"], "answer_start": [0]}}],
}
Case = tuple[str, str | None, dict[str, Any], str, Any, dict[str, Any]]

# (metric, configuration, rows, option, value, options that stay)
CASES: list[Case] = [
    ("accuracy", None, CLASSES, "normalize", False, {}),
    ("accuracy", None, CLASSES, "sample_weight", WEIGHTS, {}),
    ("accuracy", "multilabel", BITS, "normalize", False, {}),
    ("accuracy", "multilabel", BITS, "sample_weight", WEIGHTS, {}),
    *[
        case
        for name in ("f1", "precision", "recall")
        for case in [
            (name, None, CLASSES, "labels", [0], {"average": "macro"}),
            (name, None, CLASSES, "pos_label", 0, {}),
            (name, None, CLASSES, "average", None, {}),
            (name, None, CLASSES, "sample_weight", WEIGHTS, {}),
            (name, None, NEVER_PREDICTED, "zero_division", 1, {"average": "macro", "labels": [0, 1]}),
            (name, "multilabel", BITS, "average", "micro", {"average": "macro"}),
            (name, "multilabel", BITS, "labels", [1], {"average": "macro"}),
            (name, "multilabel", BITS, "sample_weight", WEIGHTS, {"average": "macro"}),
        ]
    ],
    ("matthews_correlation", None, CLASSES, "sample_weight", WEIGHTS, {}),
    ("matthews_correlation", "multilabel", BITS, "sample_weight", WEIGHTS, {}),
    ("matthews_correlation", "multilabel", BITS, "average", "macro", {}),
    ("roc_auc", None, RANKED, "sample_weight", WEIGHTS, {}),
    ("roc_auc", None, RANKED, "max_fpr", 0.5, {}),
    ("roc_auc", "multiclass", SHARES, "average", "weighted", {"multi_class": "ovr"}),
    ("roc_auc", "multiclass", SHARES, "multi_class", "ovo", {"multi_class": "ovr"}),
    ("pearsonr", None, NUMBERS, "return_pvalue", True, {}),
    ("spearmanr", None, NUMBERS, "return_pvalue", True, {}),
    ("mse", None, NUMBERS, "squared", False, {}),
    ("mse", None, NUMBERS, "sample_weight", [1, 2, 3, 4], {}),
    ("mse", "multilist", OUTPUTS, "multioutput", [0.2, 0.8], {}),
    ("mae", None, NUMBERS, "sample_weight", [1, 2, 3, 4], {}),
    ("mae", "multilist", OUTPUTS, "multioutput", [0.2, 0.8], {}),
    ("exact_match", None, {"predictions": ["the cat"], "references": ["cat"]}, "regexes_to_ignore", ["the "], {}),
    ("exact_match", None, {"predictions": ["Cat"], "references": ["cat"]}, "ignore_case", True, {}),
    ("exact_match", None, {"predictions": ["cat!"], "references": ["cat"]}, "ignore_punctuation", True, {}),
    ("exact_match", None, {"predictions": ["cat7"], "references": ["cat"]}, "ignore_numbers", True, {}),
    ("bleu", None, TEXTS, "tokenizer", str.split, {"max_order": 1}),
    ("bleu", None, TEXTS, "max_order", 1, {}),
    ("bleu", None, TEXTS, "smooth", True, {}),
    ("sacrebleu", None, TEXTS, "smooth_method", "floor", {}),
    ("sacrebleu", None, TEXTS, "smooth_value", 0.9, {"smooth_method": "floor"}),
    ("sacrebleu", None, TEXTS, "lowercase", True, {}),
    ("sacrebleu", None, TEXTS, "tokenize", "char", {}),
    ("sacrebleu", None, {"predictions": ["a b"], "references": ["a b"]}, "use_effective_order", True, {}),
    ("rouge", None, TEXTS, "rouge_types", ["rouge3"], {}),
    ("rouge", None, TEXTS, "use_aggregator", False, {}),
    ("rouge", None, TEXTS, "use_stemmer", True, {"use_aggregator": False}),
    ("rouge", None, TEXTS, "tokenizer", str.split, {"use_aggregator": False}),
    ("seqeval", None, SUFFIXED, "suffix", True, {}),
    ("seqeval", None, TAGS, "mode", "strict", {}),
    ("seqeval", None, INSIDE, "scheme", "IOB1", {"mode": "strict", "scheme": "IOB2"}),
    ("seqeval", None, NO_SPANS, "zero_division", 1, {"zero_division": 0}),
    ("squad_v2", None, QUESTIONS, "no_answer_threshold", 0.4, {}),
]
# Tried elsewhere: below, and perplexity's in test_language_model.py.
ELSEWHERE = {
    ("sacrebleu", "force"),
    ("seqeval", "sample_weight"),
    ("roc_auc", "labels"),
    ("matthews_correlation", "average"),
    *[("perplexity", name) for name in ("model_id", "batch_size", "add_start_token", "device", "max_length")],
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES, ids=[f"{case[0]}-{case[1]}-{case[3]}" for case in CASES])
def test_an_option_changes_the_scores(case: Case) -> None:
    name, config, rows, option, value, others = case
    metric = evaluate.load(name, config, seed=0)
    without = metric.compute(**rows, **others)
    assert repr(metric.compute(**rows, **{**others, option: value})) != repr(without)
    assert repr(metric.compute(**rows, **others)) == repr(without)


def test_every_option_has_a_case() -> None:
    tried = {(case[0], case[3]) for case in CASES} | ELSEWHERE
    known = {
        (name, option)
        for name, configs in all_metrics().items()
        for definition in configs.values()
        for option in definition.options or ()
    }
    assert known == tried


def test_labels_let_a_class_be_absent_from_roc_auc() -> None:
    rows = {"prediction_scores": SHARES["prediction_scores"][:2], "references": [0, 1]}
    metric = evaluate.load("roc_auc", "multiclass")
    with pytest.raises(DataError, match="not equal to the number of columns"):
        metric.compute(**rows, multi_class="ovo", average="macro")
    with pytest.warns(UserWarning, match="Only one class"):
        metric.compute(**rows, multi_class="ovr", average=None, labels=[0, 1, 2])


def test_force_silences_the_word_about_tokenized_texts(caplog: pytest.LogCaptureFixture) -> None:
    rows = {"predictions": ["a cat ."] * 120, "references": ["a cat ."] * 120}
    logging.getLogger("sacrebleu").addHandler(caplog.handler)
    try:
        evaluate.load("sacrebleu").compute(**rows, force=True)
        assert "tokenized" not in caplog.text
        evaluate.load("sacrebleu").compute(**rows)
        assert "tokenized" in caplog.text
    finally:
        logging.getLogger("sacrebleu").removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("name", "rows", "options", "words"),
    [
        ("seqeval", TAGS, {"sample_weight": [1]}, "sample_weight has no effect"),
        ("seqeval", TAGS, {"scheme": "IOB2"}, "scheme=.* has no effect"),
        ("sacrebleu", TEXTS, {"smooth_value": 0.5}, "smooth_value has no effect"),
        ("rouge", TEXTS, {"tokenizer": str.split, "use_stemmer": True}, "use_stemmer has no effect"),
    ],
)
def test_an_option_without_effect_says_so(name: str, rows: Any, options: dict[str, Any], words: str) -> None:
    with pytest.warns(HeadstartWarning, match=words):
        evaluate.load(name, seed=0).compute(**rows, **options)


@pytest.mark.parametrize(
    ("name", "config", "rows", "options", "words"),
    [
        ("f1", None, CLASSES, {"average": "mean"}, "average"),
        ("accuracy", None, CLASSES, {"sample_weight": [1, 2]}, "sample_weight|inconsistent"),
        ("matthews_correlation", None, CLASSES, {"average": "macro"}, "multilabel"),
        ("matthews_correlation", "multilabel", BITS, {"average": "micro"}, "macro"),
        ("exact_match", None, TEXTS, {"regexes_to_ignore": "the"}, "a list of regular"),
        ("exact_match", None, TEXTS, {"regexes_to_ignore": ["("]}, "no regular expression"),
        ("bleu", None, TEXTS, {"max_order": 0}, "max_order"),
        ("sacrebleu", None, TEXTS, {"smooth_method": "flor"}, '"floor"'),
        ("sacrebleu", None, TEXTS, {"tokenize": "13b"}, '"13a"'),
        ("sacrebleu", None, TEXTS, {"tokenize": "flores200"}, "not on this machine"),
        ("rouge", None, TEXTS, {"rouge_types": ["rougel"]}, '"rougeL"'),
        ("rouge", None, TEXTS, {"rouge_types": []}, "empty"),
        ("seqeval", None, TAGS, {"scheme": "IOB3"}, '"IOB1"|"IOB2"'),
        ("seqeval", None, TAGS, {"mode": "lenient"}, "strict"),
        ("perplexity", None, {"predictions": ["a"]}, {}, "model_id"),
        ("perplexity", None, {"predictions": ["a"]}, {"model_id": "x", "device": "tpu"}, "Available: cpu"),
        ("perplexity", None, {"predictions": ["a"]}, {"model_id": "x", "batch_size": 0}, "batch_size"),
        ("perplexity", None, {"predictions": ["a"]}, {"model_id": "x", "max_length": 1}, "max_length"),
        ("perplexity", None, {"predictions": ["a"]}, {"model_id": "/no/such/model"}, "no such model folder"),
    ],
)
def test_a_bad_value_is_refused(
    name: str, config: str | None, rows: Any, options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_spm.SACREBLEU_DIR", "/nowhere")
    with pytest.raises(HeadstartError, match=words) as raised:
        evaluate.load(name, config).compute(**rows, **options)
    assert raised.value.fix
    if name != "perplexity":
        assert isinstance(raised.value, RecipeError | DataError)
