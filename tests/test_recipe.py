import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.durations import Duration, parse_duration, parse_limit
from headstart.errors import RecipeError
from headstart.recipe import Recipe, build_recipe


def faults(*settings: str, **values: object) -> str:
    with pytest.raises(RecipeError) as caught:
        build_recipe(settings=settings, values=values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (500, Duration(500, "steps")),
        ("500 steps", Duration(500, "steps")),
        ("1 epoch", Duration(1, "epochs")),
        ("0.5 epochs", Duration(0.5, "epochs")),
        ("5%", Duration(5, "%")),
        ("10 minutes", Duration(10, "minutes")),
        ("2 hours", Duration(120, "minutes")),
    ],
)
def test_durations_are_read(text: int | str, expected: Duration) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "ten", "-1", "1.5", "1.5 steps", "120%", True, "1 week"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|whole|more than"):
        parse_duration(text)


def test_a_part_of_an_epoch_is_at_least_one_step_and_zero_is_none() -> None:
    assert Duration(0.001, "epochs").in_steps(total_steps=10, steps_per_epoch=5) == 1
    assert Duration(0, "%").in_steps(total_steps=10, steps_per_epoch=5) == 0
    assert Duration(6, "%").in_steps(total_steps=345, steps_per_epoch=115) == 21


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_limit_keeps_between_one_row_and_all(limit: int, num_rows: int) -> None:
    assert 1 <= parse_limit(limit, num_rows) <= num_rows
    assert 1 <= parse_limit("0.1%", num_rows) <= num_rows
    assert parse_limit("100%", num_rows) == num_rows


def test_a_saved_recipe_is_the_recipe(tmp_path: Path) -> None:
    recipe = build_recipe(values={"optim.name": "sgd", "train.max_steps": 7, "data.columns.text": "review"})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml({"total_steps": 7}), encoding="utf-8")
    assert build_recipe(path) == recipe


def test_every_default_is_filled_in() -> None:
    recipe = Recipe()
    assert recipe.train.epochs == 3 and recipe.train.batch_size == 32
    assert (recipe.optim.beta1, recipe.optim.beta2, recipe.optim.epsilon, recipe.optim.momentum) == (
        0.9,
        0.999,
        1e-8,
        None,
    )
    assert build_recipe(values={"train.max_steps": 3}).train.epochs is None
    assert build_recipe(values={"train.tokens_per_batch": 300}).train.batch_size is None


def test_all_faults_are_in_one_message_with_the_nearest_names() -> None:
    message = faults("train.epochs=-1", "optim.nmae=sgd", "trian.seed=3", "train.batch_size=0")
    assert "train.epochs: -1 is out of range. Expected more than 0" in message
    assert 'optim.nmae: no such key. Did you mean "name"?' in message
    assert 'trian: no such section. Did you mean "train"?' in message
    assert "train.batch_size: 0 is out of range. Expected at least 1" in message


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("optim.learning_rate=-1", "more than 0"),
        ("optim.learning_rate=.nan", "no usable number"),
        ("optim.name=adam", '"adamw"'),
        ("task.name=sequence_clasification", '"sequence_classification"'),
        ("train.learning_rate=1e-3", "It is in section optim"),
        ("train.precision=fp23", '"fp32"'),
        ("data.limit=0", "no limit"),
        ("data.limit=200%", "no limit"),
        ("data.columns.lable=x", 'Did you mean "label"?'),
        ("optim.warmup=3 minutes", "not minutes"),
        ("train.evaluate_every=0", "null switches it off"),
        ("train.time_limit=3 epochs", "is no time"),
        ("output.log_to=[wandbee]", "wandb"),
        ("train", "section.key=value"),
    ],
)
def test_a_wrong_value_says_what_is_expected(setting: str, part: str) -> None:
    assert part in faults(setting)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["optim.momentum=0.5"], "momentum has no effect with adamw"),
        (["optim.name=sgd", "optim.beta1=0.8"], "beta1 has no effect with sgd"),
        (["train.epochs=1", "train.max_steps=5"], "Set one of them"),
        (["train.batch_size=4", "train.tokens_per_batch=400"], "Set one of them"),
        (["train.evaluate_every=null", "train.patience=2"], "patience has no effect"),
        (["train.evaluate_every=null", "train.best=f1"], "best has no effect"),
        (["train.best=last", "train.patience=2"], "no score is watched"),
        (["data.validation=v.csv", "data.validation_fraction=0.2"], "data.validation_fraction has no effect"),
    ],
)
def test_an_option_without_effect_or_a_contradiction_is_an_error(settings: list[str], part: str) -> None:
    assert part in faults(*settings)


def test_one_key_set_to_two_values_is_an_error() -> None:
    with pytest.raises(RecipeError, match="Keep one"):
        build_recipe(settings=["train.epochs=2"], values={"train.epochs": 3})
    assert build_recipe(settings=["train.epochs=2"], values={"train.epochs": 2}).train.epochs == 2


def test_settings_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("train:\n  epochs: 9\n  seed: 4\n", encoding="utf-8")
    recipe = build_recipe(path, ["train.epochs=2"])
    assert (recipe.train.epochs, recipe.train.seed) == (2, 4)


@pytest.mark.parametrize("text", ["train: [1", "- a\n- b\n", "just words", "train: 3\n"])
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"broken\.yaml"):
        build_recipe(path)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.yaml"):
        build_recipe(tmp_path / "gone.yaml")


def test_every_field_and_its_default_stand_in_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "recipe.md").read_text(encoding="utf-8")
    sections = dict(zip(*[iter(re.split(r"^## (\w+)$", text, flags=re.MULTILINE)[1:])] * 2, strict=True))
    recipe = Recipe()
    for section in Recipe.model_fields:
        part = getattr(recipe, section)
        for name in type(part).model_fields:
            lines = [line for line in sections[section].splitlines() if line.startswith("| `")]
            rows = [line for line in lines if f"`{name}`" in line.split("|")[1]]
            assert rows, f"{section}.{name}"
            value = getattr(part, name)
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                shown = rows[0].split("|")[2].replace("`", "").replace('"', "")
                assert str(value).removesuffix(".0") in shown, (section, name, value, shown)
