from headstart.display.plan import PlanSummary
from headstart.model_card import write_model_card
from headstart.recipe import build_recipe

SUMMARY = PlanSummary(
    source="reviews <b>", task="sequence_classification", task_reason="",
    columns=[("text", "t", ""), ("label", "l", "")],
    splits=[("train", 1200, "a|b.csv"), ("test", 30, "t.csv")], labels=[("good", 700), ("<script>", 500)],
    lengths={"median": 5, "p95": 8, "longest": 9, "max_length": 16, "truncated_rows": 3, "lost_tokens": 40},
    model="tiny", parameters=10, new_parameters=["classifier.weight"], precision="fp32", device="cpu", threads=1,
    epochs=3.0, total_steps=114, rows_per_step="32 rows", padding_fraction=0.0, estimated_seconds=None,
    findings=[("warning", "test: 2 rows with a text of train")], run_dir="r", notes=[],
)  # fmt: skip
SCORES = {
    "test": {
        "accuracy": {"value": 0.8, "low": 0.7, "high": 0.9},
        "roc_auc": {"value": None, "low": None, "high": None},
    },
    "baselines": {"majority": {"test": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}}},
}


def card() -> str:
    recipe = build_recipe(values={"evaluate.scores": ["accuracy", "roc_auc"], "train.best": "accuracy"})
    return write_model_card(recipe, {"warmup_steps": 7, "max_length": 16}, SUMMARY, SCORES)


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
