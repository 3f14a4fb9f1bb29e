"""Which layer a parameter belongs to, in many families."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import transformers
from torch import nn

from headstart.errors import ModelError
from headstart.models.layers import find_layers, layer_factors
from small_families import FAMILIES, build

ONE_STACK = [
    name for name in FAMILIES if name not in ("t5", "t5 tokens", "bart")
]  # these have a decoder, or two lists of layers


@pytest.mark.parametrize("family", ONE_STACK)
def test_layers_lie_between_embeddings_and_head(family: str) -> None:
    model = build(family)
    layers = find_layers(model)
    depths = {name: depth for name, depth in layers.depths.items()}
    assert set(depths) == {name for name, _ in model.named_parameters()}
    assert layers.count == (1 if family == "albert" else 2)
    assert layers.num_passes == 2
    counts = Counter(depths.values())
    assert set(counts) >= set(range(layers.count + 1))
    if family != "albert":
        assert counts[1] == counts[2] or family in ("modernbert", "t5 encoder")  # whose first layer is another
    for name, depth in depths.items():
        if "embeddings" in name or ".wte" in name or ".wpe" in name or "shared" in name:
            assert depth == 0, name
        if name.startswith(("classifier", "score", "head", "pre_classifier")) or "final_norm" in name or "ln_f" in name:
            assert depth == layers.head, name


@pytest.mark.parametrize(
    ("family", "name", "depth"),
    [
        ("bert", "bert.pooler.dense.weight", 3),
        ("bert", "bert.encoder.layer.0.attention.self.query.weight", 1),
        ("electra", "electra.embeddings_project.weight", 0),
        ("deberta-v2", "deberta.encoder.rel_embeddings.weight", 0),
        ("mpnet", "mpnet.encoder.relative_attention_bias.weight", 0),
        ("albert", "albert.encoder.embedding_hidden_mapping_in.weight", 0),
        ("albert", "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", 1),
        ("albert", "albert.pooler.weight", 2),
        ("gpt2", "transformer.h.1.mlp.c_fc.weight", 2),
        ("gpt2", "transformer.ln_f.weight", 3),
        ("distilbert", "distilbert.transformer.layer.1.ffn.lin1.weight", 2),
        ("t5 encoder", "encoder.final_layer_norm.weight", 3),
    ],
)
def test_each_family_has_its_own_places(family: str, name: str, depth: int) -> None:
    assert find_layers(build(family)).depths[name] == depth


def test_factors_fall_from_the_head_to_the_embeddings() -> None:
    model = build("roberta")
    factors = layer_factors(model, 0.5)
    assert factors["classifier.dense.weight"] == 1.0
    assert factors["roberta.encoder.layer.1.output.dense.bias"] == 0.5
    assert factors["roberta.encoder.layer.0.output.dense.bias"] == 0.25
    assert factors["roberta.embeddings.LayerNorm.weight"] == 0.125
    assert set(layer_factors(model, 1.0).values()) == {1.0}


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_two_stacks_are_an_error(family: str) -> None:
    with pytest.raises(ModelError, match=r"not known which parameters belong to which layer(?s:.)*model\.freeze"):
        find_layers(build(family))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])})])
def test_a_model_without_known_layers_is_an_error(model: Any) -> None:
    with pytest.raises(ModelError, match="has no stack of layers"):
        find_layers(model)


def test_a_stack_of_another_length_is_no_stack_of_layers() -> None:
    model = build("bert")
    assert isinstance(model, transformers.PreTrainedModel)
    model.config.num_hidden_layers = 5
    with pytest.raises(ModelError, match="has no stack of layers"):
        find_layers(model)
