"""Parameters that are frozen: which they are, that nothing changes them, and that the fast path knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from headstart.errors import ModelError, RecipeError
from headstart.models.layers import find_layers
from headstart.models.lazy_embedding import MIN_ROWS
from headstart.recipe_sections import OptimSection
from headstart.training.averaged_weights import AveragedWeights
from headstart.training.device import Device
from headstart.training.fast_adamw import FastAdamW
from headstart.training.fast_path import FastPath, start_fast_path
from headstart.training.frozen import Unfreezing, freeze_parameters
from headstart.training.optimizer_state import optimizer_to_tensors, parameter_names
from small_families import build
from small_training import Settings, finish, start, write_reviews

HEAD = {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("freeze", "is_trained"),
    [
        ("embeddings", lambda name, depth: depth > 0),
        (1, lambda name, depth: depth > 1),
        (2, lambda name, depth: depth > 2),
        ("encoder", lambda name, depth: name in HEAD),
        (["*.bias"], lambda name, depth: not name.endswith(".bias")),
        (["bert.encoder.layer.0.*", "*.word_embeddings.weight"], lambda name, depth: depth != 1 and "word" not in name),
        (None, lambda name, depth: True),
    ],
)
def test_what_is_named_is_frozen_and_nothing_else(freeze: Any, is_trained: Callable[[str, int], bool]) -> None:
    model = build("bert")
    depths = find_layers(model).depths
    frozen = freeze_parameters(model, freeze)
    assert trained(model) == {name for name, depth in depths.items() if is_trained(name, depth)}
    assert set(frozen) == set(depths) - trained(model)


@pytest.mark.parametrize(
    ("freeze", "words"),
    [
        (3, "has 2 layers"),
        (["bert.embedings.*"], r'matches "bert.embedings.\*"(?s:.)*To do'),
        (["classifier.wieght"], 'Did you mean "classifier.weight"'),
        (["*"], "nothing is left to train"),
    ],
)
def test_what_cannot_be_frozen_is_said(freeze: Any, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        freeze_parameters(build("bert"), freeze)


def test_shared_layers_are_one_and_unknown_ones_an_error() -> None:
    with pytest.raises(RecipeError, match="has 1 layers, whose weights 2 layers share"):
        freeze_parameters(build("albert"), 2)
    with pytest.raises(ModelError, match="freeze by names"):
        freeze_parameters(build("bart"), "embeddings")
    model = build("bart")
    freeze_parameters(model, ["*.embed_positions.*"])
    assert not any("embed_positions" in name for name in trained(model))


def test_layers_are_unfrozen_from_the_top() -> None:
    model = build("bert")
    depths = find_layers(model).depths
    unfreezing = Unfreezing(model, 5)
    assert unfreezing.num_intervals == 3
    for step, lowest in ((0, 3), (4, 3), (5, 2), (9, 2), (10, 1), (14, 1), (15, 0), (99, 0), (7, 2)):
        unfreezing.apply(step)
        assert trained(model) == {name for name, depth in depths.items() if depth >= lowest}
        numbers = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert unfreezing.num_trained(step) == numbers
    unfreezing.undo()
    assert trained(model) == set(depths)


def test_what_is_frozen_for_good_is_never_unfrozen() -> None:
    model = build("bert")
    freeze_parameters(model, 1)
    unfreezing = Unfreezing(model, 2)
    assert unfreezing.num_intervals == 1
    unfreezing.apply(1_000)
    assert {find_layers(model).depths[name] for name in trained(model)} == {2, 3}
    unfreezing.undo()
    assert {find_layers(model).depths[name] for name in trained(model)} == {2, 3}
    freeze_parameters(model, ["classifier.*", "bert.pooler.*"])
    with pytest.raises(RecipeError, match=r"begins with the head, which model\.freeze freezes"):
        Unfreezing(model, 2)


# The fast path

WAYS: dict[str, tuple[Any, int | None]] = {
    "embeddings": ("embeddings", None),
    "1": (1, None),
    "encoder": ("encoder", None),
    "biases": (["*.bias", "*.LayerNorm.weight"], None),
    "queries": (["*.query.*", "*.output.dense.weight"], None),
    "unfrozen": (None, 2),
}


def make_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=MIN_ROWS + 10,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


def train_a_little(
    precision: Any, fast: bool, way: str, adds: bool = False
) -> tuple[dict[str, torch.Tensor], FastPath, set[str]]:
    """Make nine updates without dropout, and give the weights, the path and what has state in the optimizer."""
    freeze, every = WAYS[way]
    model = make_model()
    freeze_parameters(model, freeze)
    unfreezing = Unfreezing(model, every) if every else None
    device = Device(torch.device("cpu"), precision, 1)
    section = OptimSection(learning_rate=1e-3, weight_decay=0.1)
    path = start_fast_path(model, section, device, lambda name: fast, adds_gradients=adds)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for step in range(9):
        if unfreezing is not None:
            unfreezing.apply(step)
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(5, MIN_ROWS, (4, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 7:] = 0
        for row in (slice(0, 2), slice(2, 4)):
            with device.autocast():
                logits = model(input_ids=ids[row], attention_mask=mask[row]).logits.float()
            torch.nn.functional.cross_entropy(logits, ids[row, 0] % 3, reduction="sum").div(4).backward()
        assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} <= trained(model)
        path.optimizer.step()
        path.optimizer.zero_grad()
    names = parameter_names(model, path.optimizer)
    state = {key.rpartition("/")[0] for key in optimizer_to_tensors(path.optimizer, names) if "param_groups" not in key}
    path.undo()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, path, state


@pytest.mark.parametrize(
    ("way", "precision"),
    [
        *((way, "bf16") for way in WAYS),
        *(pytest.param(way, "fp32", marks=[] if way == "unfrozen" else pytest.mark.slow) for way in WAYS),
    ],
)
def test_the_fast_path_trains_what_is_not_frozen_as_the_plain_one(precision: str, way: str) -> None:
    fast, path, state = train_a_little(precision, True, way)
    plain, _, plain_state = train_a_little(precision, False, way)
    start_of_all = make_model().state_dict()
    model = make_model()
    freeze_parameters(model, WAYS[way][0])
    assert path.is_on("attention") and path.is_on("optimizer_pass") and path.is_on("norms")
    if precision == "bf16":
        assert path.is_on("whole_layers") and path.is_on("bf16_weights") and path.is_on("joined_qkv")
    is_lazy = "bert.embeddings.word_embeddings.weight" in trained(model)
    assert path.is_on("lazy_rows") == is_lazy
    assert state == plain_state == trained(model)
    change = {name: plain[name] - start_of_all[name] for name in plain if plain[name].is_floating_point()}
    for name, tensor in fast.items():
        if name not in trained(model):
            assert torch.equal(tensor, start_of_all[name]) and torch.equal(plain[name], start_of_all[name]), name
        elif not name.endswith("key.bias"):  # whose gradient is zero but for rounding, which Adam makes large
            scale = float(change[name].norm())
            tolerance = 1e-3 if precision == "fp32" else 0.35
            assert float((tensor - plain[name]).norm()) <= tolerance * scale, name


def test_what_is_frozen_keeps_no_moments() -> None:
    model = make_model()
    freeze_parameters(model, "encoder")
    device = Device(torch.device("cpu"), "fp32", 1)
    path = start_fast_path(model, OptimSection(), device, lambda name: True)
    assert isinstance(path.optimizer, FastAdamW)
    numbers = sum(parameter.numel() for group in path.optimizer.param_groups for parameter in group["params"])
    assert numbers == sum(parameter.numel() for name, parameter in model.named_parameters() if name in HEAD)
    assert next(part for part in path.parts if part.name == "lazy_rows").reason.endswith("it is not trained")
    assert set(AveragedWeights(model, 0.9).to_tensors()) == {*HEAD, "averaged_updates"}
    path.undo()


# A whole training


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> Settings:
    return {
        "data.train": str(write_reviews(tmp_path / "reviews.csv", 40)),
        "model.checkpoint": str(tiny_model_dir),
        "train.max_steps": 4,
        "train.batch_size": 8,
        "train.threads": 1,
        "evaluate.baselines": False,
        "optim.learning_rate": 1e-2,
    }


@pytest.mark.parametrize(
    ("freeze", "precision"), [("embeddings", "bf16"), (1, "fp32"), ("encoder", "bf16"), (["*.bias"], "fp32")]
)
def test_a_training_leaves_frozen_parameters_as_they_were(
    freeze: Any, precision: str, settings: Settings, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings |= {"model.freeze": freeze, "train.precision": precision}
    plan = start(settings, tmp_path / "plan")._plan
    before = {name: tensor.clone() for name, tensor in plan.loaded.model.state_dict().items()}
    names = trained(plan.loaded.model)
    numbers = sum(tensor.numel() for name, tensor in before.items() if name in names)
    assert plan.summary.trained_parameters == plan.derived["trained_parameters"] == numbers < plan.summary.parameters
    finish(settings, run)
    after = load_file(run / "model" / "model.safetensors")
    assert {name for name, tensor in after.items() if not torch.equal(tensor, before[name])} == names
    assert yaml.safe_load((run / "recipe.yaml").read_text())["model"]["freeze"] == freeze


def test_the_plan_says_what_is_unfrozen_when(settings: Settings, tmp_path: Path) -> None:
    plan = start({**settings, "model.unfreeze_every": "1 epoch", "train.max_steps": 8}, tmp_path / "run")._plan
    assert plan.derived["unfreeze_every_steps"] == 4 or plan.derived["steps_in_epoch"] == 5
    (note,) = (note for note in plan.summary.notes if "the head is trained first" in note)
    assert "not all before the training ends" in note
    frozen = start({**settings, "model.freeze": ["classifier.bias"]}, tmp_path / "other")._plan
    assert any("frozen though new, so that they stay random: classifier.bias" in note for note in frozen.summary.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.unfreeze_every": 4}, "the training ends after 4: nothing is unfrozen"),
        ({"model.unfreeze_every": 1, "model.freeze": 2}, "has no effect: model.freeze keeps all but the head frozen"),
        ({"model.unfreeze_every": 1, "model.freeze": "encoder"}, "unfreeze_every has no effect with freeze = encoder"),
        ({"model.unfreeze_every": "5 minutes"}, "not minutes"),
        ({"model.unfreeze_every": 0}, "0 is no interval"),
        ({"model.unfreeze_every": 1, "optim.name": "adan"}, "does not go with adan"),
        ({"model.freeze": "encoder", "optim.layer_decay": 0.9}, "optim.layer_decay has no effect"),
        ({"model.freeze": 9}, "has 2 layers"),
        ({"model.freeze": "encodre"}, 'Did you mean "encoder"'),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_the_training(
    changes: Settings, words: str, settings: Settings, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words):
        start({**settings, **changes}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
