"""Which scores a run computes, and what is refused."""

import pytest

from headstart.errors import RecipeError
from headstart.metrics import CLASSIFICATION_SCORES, default_scores, resolve_scores


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
