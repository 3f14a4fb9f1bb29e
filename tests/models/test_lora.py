"""Adapters in a model: what is trained, what they compute, and that they leave with an ordinary model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from headstart.errors import ModelError, RecipeError
from headstart.models.dropout import RandomKey, find_unkeyed_draws
from headstart.models.lora import add_adapters, merged, save_adapters
from headstart.recipe_sections import LoraSection
from small_families import FAMILIES, build, make_batch, read_adapters

CLASSIFIERS = [
    "bert",
    "distilbert",
    "roberta",
    "electra",
    "albert",
    "modernbert",
    "deberta-v2",
    "mpnet",
    "gpt2",
    "bart",
]


def trained(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


def stir(model: nn.Module) -> None:
    """Let the adapters and the head be what a training could have made of them."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def adapt(family: str, **settings: Any) -> tuple[nn.Module, Any]:
    model = build(family)
    return model, add_adapters(model, LoraSection(**settings), seed=0)


def logits(model: nn.Module, family: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**make_batch(family)).logits


def test_adapters_and_head_alone_are_trained_and_the_model_starts_as_it_was() -> None:
    before = logits(build("bert"), "bert")
    model, _ = adapt("bert")
    assert torch.equal(logits(model, "bert"), before)
    names = trained(model)
    assert names and all("lora_" in name or name.startswith("classifier.modules_to_save") for name in names)
    # Six linear layers in each of two layers, and the pooler: A and B each; weight and bias of the head.
    assert len(names) == 2 * (6 * 2 + 1) + 2


def test_each_number_of_the_recipe_is_that_of_the_adapters() -> None:
    model, adapted = adapt("bert", rank=4, alpha=8, dropout=0.25, targets=["query", "encoder.layer.0.output.dense"])
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert set(layers) == {
        "bert.encoder.layer.0.attention.self.query",
        "bert.encoder.layer.1.attention.self.query",
        "bert.encoder.layer.0.output.dense",
    }
    one: Any = layers["bert.encoder.layer.0.output.dense"]
    assert one.lora_A["default"].weight.shape == (4, 128)
    assert one.scaling["default"] == 2.0
    assert one.lora_dropout["default"].p == 0.25
    assert adapted.peft_config["default"].task_type == "SEQ_CLS"
    rslora: Any = adapt("bert", rank=4, alpha=8, targets=["query"], rslora=True)[0].get_submodule(
        "bert.encoder.layer.0.attention.self.query"
    )
    assert rslora.scaling["default"] == 4.0  # by the root of the rank
    assert any("lora_magnitude_vector" in name for name in trained(adapt("bert", dora=True)[0]))


@pytest.mark.parametrize(("bias", "count"), [("none", 0), ("lora_only", 2), ("all", 18)])
def test_biases_are_trained_as_the_recipe_says(bias: str, count: int) -> None:
    names = trained(adapt("bert", bias=bias, targets=["query"])[0])
    assert len([name for name in names if name.endswith("bias") and "modules_to_save" not in name]) == count
    assert not any("original_module" in name for name in names)


def test_the_seed_decides_where_adapters_start_and_no_global_stream_moves() -> None:
    state = torch.get_rng_state()
    first, again, other = (add_adapters(build("bert"), LoraSection(), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    name = "base_model.model.bert.pooler.dense.lora_A.default.weight"
    assert torch.equal(first.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_a_module_that_starts_at_random_is_trained_in_full() -> None:
    model = build("bert")
    add_adapters(model, LoraSection(), new_parameters=["bert.pooler.dense.weight", "bert.pooler.dense.bias"], seed=0)
    assert "bert.pooler.dense.modules_to_save.default.weight" in trained(model)
    assert not any("pooler" in name and "lora_" in name for name in trained(model))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_merged_model_is_an_ordinary_one_and_predicts_the_same(family: str, tmp_path: Path) -> None:
    model, adapted = adapt(family)
    stir(model)
    wanted = logits(model, family)
    assert (wanted - logits(build(family), family)).abs().max() > 1e-2
    plain = merged(adapted)
    assert set(plain.state_dict()) == set(build(family).state_dict())
    assert torch.allclose(logits(plain, family), wanted, atol=1e-5)
    assert torch.equal(logits(model, family), wanted)  # the adapted one stays
    save_adapters(adapted, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    again = read_adapters(build(family), tmp_path)
    assert torch.allclose(logits(again, family), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"dora": True}, {"rslora": True}, {"bias": "all"}, {"targets": ["word_embeddings"]}]
)
def test_variants_merge_and_load_again(settings: dict[str, Any], tmp_path: Path) -> None:
    model, adapted = adapt("bert", **settings)
    stir(model)
    wanted = logits(model, "bert")
    assert torch.allclose(logits(merged(adapted), "bert"), wanted, atol=1e-5)
    save_adapters(adapted, tmp_path)
    again = read_adapters(build("bert"), tmp_path)
    assert torch.allclose(logits(again, "bert"), wanted, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"dora": True}])
def test_its_dropout_is_keyed_by_row(settings: dict[str, Any]) -> None:
    model, _ = adapt("bert", dropout=0.5, **settings)
    stir(model)
    model.train()
    batch, key = make_batch("bert"), RandomKey(seed=0, step=0, row_ids=[4, 5, 6])
    seen: list[torch.Tensor] = []
    found = find_unkeyed_draws(lambda: seen.append(model(**batch).logits), key, torch.device("cpu"), model)
    assert found == []
    alone = {name: tensor[1:2] for name, tensor in batch.items()}
    key = RandomKey(seed=0, step=0, row_ids=[5])
    find_unkeyed_draws(lambda: seen.append(model(**alone).logits), key, torch.device("cpu"), model)
    assert torch.allclose(seen[0][1:2], seen[1], atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (["qury"], 'qury: no such module.*Did you mean "query"'),
        (["query", "vale", "qury"], r"(?s)vale: no such.*qury: no such"),
        (["classifier"], "classifier is trained in full already"),
        (["LayerNorm"], "LayerNorm: no such module that can be adapted"),
    ],
)
def test_a_target_that_is_none_is_said(targets: list[str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        adapt("bert", targets=targets)


def test_a_model_without_linear_layers_is_said() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(3, 3)

    with pytest.raises(ModelError, match="no linear layers below its head"):
        add_adapters(Own(), LoraSection(), seed=0)


def test_a_missing_package_names_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'headstart\[lora\]'"):
        add_adapters(build("bert"), LoraSection(), seed=0)


def test_every_family_with_a_class_of_its_own_is_tried() -> None:
    assert {name for name in CLASSIFIERS if hasattr(transformers, FAMILIES[name][0])} == set(CLASSIFIERS)
