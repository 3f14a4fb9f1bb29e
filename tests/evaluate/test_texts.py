"""The scores of texts, tags and answers: seqeval's, sacrebleu's and rouge-score's own, and the published rules."""

import math
import string
from typing import Any

import numpy as np
import pytest
import sacrebleu
import seqeval.metrics
import seqeval.scheme
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from headstart import evaluate
from headstart.errors import DataError, HeadstartWarning
from headstart.evaluate.generation import corpus_bleu
from headstart.evaluate.question_answering import Judged, best_threshold, normalize_answer, word_f1
from headstart.evaluate.text_match import strip_text

WORDS = ("the", "a", "An", "cat", "cats", "sat.", "mat,", "Dog's", "3.5", "x-y", "&amp;", "!", "running", "über")
words = st.sampled_from(WORDS)
texts = st.lists(words, max_size=9).map(" ".join)
pairs = st.lists(st.tuples(texts, st.lists(texts, min_size=2, max_size=2)), min_size=1, max_size=5)


@given(pairs)
@settings(max_examples=30)
def test_sacrebleu(rows: list[tuple[str, list[str]]]) -> None:
    ours = evaluate.load("sacrebleu").compute(predictions=[r[0] for r in rows], references=[r[1] for r in rows])
    theirs = sacrebleu.corpus_bleu([r[0] for r in rows], [[r[1][i] for r in rows] for i in range(2)])
    assert ours is not None
    assert (ours["score"], ours["counts"], ours["totals"]) == (theirs.score, theirs.counts, theirs.totals)
    assert (ours["precisions"], ours["bp"]) == (theirs.precisions, theirs.bp)
    assert (ours["sys_len"], ours["ref_len"]) == (theirs.sys_len, theirs.ref_len)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
@settings(max_examples=30)
def test_bleu_is_sacrebleus_without_smoothing(rows: list[tuple[str, str]]) -> None:
    # With one reference each, the two differ in nothing but the scale.
    given_, right = [row[0] for row in rows], [row[1] for row in rows]
    theirs = sacrebleu.corpus_bleu(given_, [right], smooth_method="none", tokenize="13a")
    if theirs.ref_len == 0:
        with pytest.raises(DataError, match="no token"):
            evaluate.load("bleu").compute(predictions=given_, references=right)
        return
    ours = evaluate.load("bleu").compute(predictions=given_, references=right)
    assert ours is not None
    assert 100 * ours["bleu"] == pytest.approx(theirs.score)
    assert [100 * value for value in ours["precisions"]] == pytest.approx(theirs.precisions)
    assert ours["brevity_penalty"] == pytest.approx(theirs.bp)
    assert (ours["translation_length"], ours["reference_length"]) == (theirs.sys_len, theirs.ref_len)


def test_bleu_by_hand() -> None:
    # Papineni et al. 2002, section 2.1: "the" counts twice at most, as in the reference.
    scores = corpus_bleu([["the"] * 7], [[["the", "cat", "is", "on", "the", "mat"]]], max_order=1)
    assert scores["precisions"] == [2 / 7] and scores["brevity_penalty"] == 1
    # Two references with a word once each allow it once.
    assert corpus_bleu([["a", "a"]], [[["a", "b"], ["a", "c"]]], max_order=1)["precisions"] == [1 / 2]
    # The shortest of several references is the length to compare with.
    short = corpus_bleu([["a"]], [[["a", "b", "c"], ["a", "b"]]], max_order=1)
    assert short["reference_length"] == 2 and short["brevity_penalty"] == pytest.approx(math.exp(-1))
    smooth = corpus_bleu([["a", "b"]], [[["a", "c"]]], max_order=2, smooth=True)
    assert smooth["precisions"] == [2 / 3, 1 / 2]
    nothing = corpus_bleu([[]], [[["a"]]])
    assert nothing["bleu"] == 0 and nothing["brevity_penalty"] == 0 and nothing["length_ratio"] == 0


def test_references_may_differ_in_number_where_the_metric_allows() -> None:
    rows: dict[str, Any] = {"predictions": ["a b", "c"], "references": [["a b"], ["d", "c"]]}
    for name in ("bleu", "rouge"):
        assert evaluate.load(name).compute(**rows) is not None
    with pytest.raises(DataError, match="from 1 to 2 references"):
        evaluate.load("sacrebleu").compute(**rows)
    one = evaluate.load("rouge").compute(predictions=["a b"], references=["a c"])
    assert one == evaluate.load("rouge").compute(predictions=["a b"], references=[["a c"]])


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.booleans())
@settings(max_examples=20)
def test_rouge(rows: list[tuple[str, str]], use_stemmer: bool) -> None:
    ours = evaluate.load("rouge").compute(
        predictions=[row[0] for row in rows],
        references=[row[1] for row in rows],
        use_aggregator=False,
        use_stemmer=use_stemmer,
    )
    types = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = rouge_scorer.RougeScorer(types, use_stemmer=use_stemmer)
    theirs = [scorer.score(right, given_) for given_, right in rows]
    assert ours == {name: [score[name].fmeasure for score in theirs] for name in types}


def test_rouge_over_rows_lies_between_them_and_follows_the_seed() -> None:
    rng = np.random.default_rng(0)
    rows: dict[str, Any] = {
        "predictions": [" ".join(rng.choice(list("abcdef"), 6)) for _ in range(20)],
        "references": [" ".join(rng.choice(list("abcdef"), 6)) for _ in range(20)],
    }
    single = evaluate.load("rouge").compute(**rows, use_aggregator=False)
    first, again, other = (evaluate.load("rouge", seed=seed).compute(**rows) for seed in (1, 1, 2))
    assert first == again != other
    assert first is not None and single is not None
    for name, value in first.items():
        assert value == pytest.approx(np.mean(single[name]), abs=0.02)


TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@given(st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1), min_size=1, max_size=4))
@settings(max_examples=40)
def test_seqeval(rows: list[list[tuple[str, str]]]) -> None:
    given_ = [["B-X", *[pair[0] for pair in row]] for row in rows]
    right = [["B-X", *[pair[1] for pair in row]] for row in rows]
    metric = evaluate.load("seqeval")
    for options, kwargs in (
        ({"zero_division": 0}, {}),
        ({"zero_division": 1, "mode": "strict", "scheme": "IOB2"}, {"scheme": seqeval.scheme.IOB2}),
    ):
        ours = metric.compute(predictions=given_, references=right, **options)
        theirs = {**options, **kwargs}
        assert ours is not None
        for key in ("precision", "recall", "f1"):
            score = getattr(seqeval.metrics, f"{key}_score")(right, given_, **theirs)
            assert ours[f"overall_{key}"] == pytest.approx(score)
        assert ours["overall_accuracy"] == seqeval.metrics.accuracy_score(right, given_)
        report = seqeval.metrics.classification_report(right, given_, output_dict=True, **theirs)
        for kind in set(report) - {"micro avg", "macro avg", "weighted avg"}:
            assert ours[kind]["f1"] == report[kind]["f1-score"] and ours[kind]["number"] == report[kind]["support"]


def test_seqeval_without_any_span_is_quiet() -> None:
    rows: dict[str, Any] = {"predictions": [["O", "O"]], "references": [["O", "O"]]}
    scores = evaluate.load("seqeval").compute(**rows, zero_division=0)
    assert scores == {"overall_precision": 0, "overall_recall": 0, "overall_f1": 0, "overall_accuracy": 1}
    with pytest.warns(UserWarning, match="ill-defined"):
        assert evaluate.load("seqeval").compute(**rows) == scores


@given(texts, texts)
def test_exact_match_takes_away_what_is_named(left: str, right: str) -> None:
    same = evaluate.load("exact_match").compute(predictions=[left], references=[right])
    assert same == {"exact_match": float(left == right)}
    bare = strip_text(left, ignore_case=True, ignore_punctuation=True, ignore_numbers=True)
    assert not set(bare) & {*string.punctuation, *string.digits} and bare == bare.lower()


@given(texts, texts)
def test_word_f1_is_even_and_normal(left: str, right: str) -> None:
    assert word_f1(left, right) == pytest.approx(word_f1(right, left))
    assert 0 <= word_f1(left, right) <= 1
    assert normalize_answer(normalize_answer(left)) == normalize_answer(left)
    assert word_f1(left, left) == float(bool(normalize_answer(left)))


Questions = list[tuple[bool, bool, float, float]]


@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])),
        min_size=1,
        max_size=8,
        unique_by=lambda row: row[2],
    )
)
def test_the_best_threshold_is_the_best_of_all(rows: Questions) -> None:
    questions = [
        Judged(has, answered, p, score if has else float(not answered), score if has else float(not answered))
        for has, answered, p, score in rows
    ]

    def mean_at(threshold: float | None) -> float:
        total = 0.0
        for question in questions:
            answered = threshold is not None and question.no_answer <= threshold
            total += question.f1 if answered else float(not question.has_answer)
        return 100 * total / len(questions)

    best, threshold = best_threshold(questions, lambda question: question.f1)
    assert best == pytest.approx(max(mean_at(value) for value in [None, *[q.no_answer for q in questions]]))
    assert best in (pytest.approx(mean_at(threshold)), pytest.approx(mean_at(None)))


def answer(id: str, *texts: str) -> dict[str, Any]:
    return {"id": id, "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}


def test_squad_takes_the_best_reference_and_counts_what_is_missing() -> None:
    given_ = [{"id": "a", "prediction_text": "The Cat!"}, {"id": "x", "prediction_text": "dog"}]
    right = [answer("a", "dog", "cat"), answer("b", "dog")]
    with pytest.warns(HeadstartWarning, match="1 questions have no prediction and score 0, the first with id 'b'"):
        assert evaluate.load("squad").compute(predictions=given_, references=right) == {"exact_match": 50, "f1": 50}
    with pytest.raises(DataError, match="squad_v2"):
        evaluate.load("squad").compute(predictions=given_[:1], references=[answer("a")])


def test_squad_takes_answers_as_a_list_too() -> None:
    right = [{"id": "a", "answers": [{"text": "cat", "answer_start": 0}]}]
    scores = evaluate.load("squad").compute(predictions=[{"id": "a", "prediction_text": "cat"}], references=right)
    assert scores == {"exact_match": 100, "f1": 100}


def test_two_predictions_for_one_question_must_agree() -> None:
    given_ = [{"id": "a", "prediction_text": "x"}, {"id": "a", "prediction_text": "x"}]
    right = [answer("a", "x"), answer("a", "x")]
    assert evaluate.load("squad").compute(predictions=given_, references=right) == {"exact_match": 100, "f1": 100}
    given_[1]["prediction_text"] = "y"
    with pytest.raises(DataError, match="twice"):
        evaluate.load("squad").compute(predictions=given_, references=right)


def test_squad_v2_gives_an_empty_answer_its_due() -> None:
    given_ = [
        {"id": "a", "prediction_text": "", "no_answer_probability": 0.0},
        {"id": "b", "prediction_text": "", "no_answer_probability": 0.0},
    ]
    right = [answer("a"), answer("b", "x")]
    scores = evaluate.load("squad_v2").compute(predictions=given_, references=right)
    assert scores is not None
    assert (scores["NoAns_exact"], scores["HasAns_exact"], scores["exact"], scores["total"]) == (100, 0, 50, 2)
    with pytest.raises(DataError, match="no prediction, the first with id 'c'"):
        evaluate.load("squad_v2").compute(predictions=given_, references=[answer("a"), answer("c")])
    # An answer is taken away above the threshold, not at it.
    unsure = [{"id": "b", "prediction_text": "x", "no_answer_probability": 0.5}]
    for threshold, expected in ((0.5, 100), (0.49, 0)):
        scores = evaluate.load("squad_v2").compute(
            predictions=unsure, references=right[1:], no_answer_threshold=threshold
        )
        assert scores is not None and scores["exact"] == scores["f1"] == expected
    only = evaluate.load("squad_v2").compute(predictions=given_[:1], references=right[:1])
    assert only is not None and "HasAns_exact" not in only and only["NoAns_total"] == 1
