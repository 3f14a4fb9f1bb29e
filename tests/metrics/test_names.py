"""Which scores a run computes, and what is refused."""

import pytest

from headstart.errors import RecipeError
from headstart.metrics import CLASSIFICATION_SCORES, default_scores, glue_scores, resolve_scores


@pytest.mark.parametrize("name", ["f1", "precision", "recall"])
def test_a_score_of_the_positive_class_is_refused_when_there_are_not_two_classes(name: str) -> None:
    assert resolve_scores([name], 2, None) == [name]
    with pytest.raises(RecipeError, match=f'"{name}" is defined for two classes, but there are 3. Use {name}_macro'):
        resolve_scores([name], 3, None)


def test_a_set_with_a_score_of_the_positive_class_is_refused_when_there_are_three_classes() -> None:
    with pytest.raises(RecipeError, match='"f1" is defined for two classes'):
        resolve_scores(["glue/mrpc"], 3, None)


def test_a_score_named_twice_is_computed_once_in_its_first_place() -> None:
    assert resolve_scores(["log_loss", "accuracy", "glue/mrpc", "log_loss"], 2, None) == ["log_loss", "accuracy", "f1"]


def test_an_empty_list_of_scores_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.scores is empty"):
        resolve_scores([], 2, None)


@pytest.mark.parametrize("num_labels", [2, 3, 150])
def test_every_default_score_is_defined_for_its_number_of_classes(num_labels: int) -> None:
    names = default_scores(num_labels)
    assert set(names) <= set(CLASSIFICATION_SCORES)
    assert resolve_scores(names, num_labels, None) == names == resolve_scores(None, num_labels, "reviews.csv")


@pytest.mark.parametrize(
    ("task", "num_labels", "names"),
    [
        ("cola", 2, ["matthews_correlation"]),
        ("mnli", 3, ["accuracy"]),
        ("mrpc", 2, ["accuracy", "f1"]),
        ("qnli", 2, ["accuracy"]),
        ("qqp", 2, ["accuracy", "f1"]),
        ("rte", 2, ["accuracy"]),
        ("sst2", 2, ["accuracy"]),
        ("wnli", 2, ["accuracy"]),
    ],
)
def test_glue_tasks_report_what_their_paper_reports(task: str, num_labels: int, names: list[str]) -> None:
    assert glue_scores(task) == names
    assert resolve_scores([f"glue/{task}"], num_labels, None) == names
    assert resolve_scores(None, num_labels, f"hub:glue/{task}:train[:5%]") == names


def test_glue_scores_give_way_to_the_defaults_when_there_are_other_classes() -> None:
    assert resolve_scores(None, 3, "hub:glue/mrpc") == default_scores(3)


@pytest.mark.parametrize("origin", [None, "glue/mrpc", "hub:glue", "hub:glue/stsb", "hub:mine/glue/mrpc", "mrpc.csv"])
def test_defaults_are_computed_when_the_source_is_no_task_of_glue(origin: str | None) -> None:
    assert resolve_scores(None, 2, origin) == default_scores(2)


def test_an_unknown_set_stands_beside_the_other_faults() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve_scores(["acuracy", "glue/mrpk", "f1"], 3, None)
    message = str(caught.value)
    assert all(part in message for part in ('"acuracy"', 'Did you mean "mrpc"?', '"f1" is defined for two classes'))


def test_a_set_given_as_a_result_is_the_callers_own() -> None:
    glue_scores("mrpc").append("log_loss")
    assert glue_scores("mrpc") == ["accuracy", "f1"]
