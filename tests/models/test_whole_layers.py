"""A whole layer as one function gives the bits of its parts, and leaves to them what only they can give."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from headstart.models.dropout import RandomKey, keyed_randomness
from headstart.models.speed import speed_up
from headstart.models.swaps import whole_layers
from headstart.models.swaps.whole_layers import PART, _WholeLayer
from small_families import build, copies_of, make_batch

FAMILIES = ("bert", "roberta", "xlm-roberta", "electra")
CPU = torch.device("cpu")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the layers that are computed as one."""
    seen: list[int] = []
    forward = _WholeLayer.forward
    monkeypatch.setattr(_WholeLayer, "forward", staticmethod(lambda *given: (seen.append(1), forward(*given))[1]))
    return seen


def speed(model: nn.Module, *, whole: bool, **switches: bool) -> nn.Module:
    handle = speed_up(model, precision="bf16", parts={PART: whole, "first_token": False, **switches})
    assert handle[PART].on == whole and handle[PART].places == (2 if whole else 0), handle
    assert handle.copies is not None
    handle.copies.kept_by_optimizer = True
    return model


def pair(family: str = "bert", **changes: Any) -> tuple[nn.Module, nn.Module]:
    """Give a model computed module by module, and the same with whole layers."""
    parts, whole = copies_of(lambda: build(family, **changes))
    return speed(parts, whole=False), speed(whole, whole=True)


def step(model: nn.Module, batch: dict[str, Any], *, train: bool = True) -> dict[str, torch.Tensor]:
    """Give the output and all gradients of a forward and a backward pass."""
    model.train(train)
    model.zero_grad()
    rows = list(range(10, 10 + len(batch["input_ids"])))
    with keyed_randomness(RandomKey(0, 3, rows), CPU, model), torch.autocast("cpu", torch.bfloat16):
        out: torch.Tensor = model(**batch)[0]
    if out.requires_grad:
        (out.float() * torch.cos(torch.arange(out.numel()).view(out.shape))).sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {"output": out.detach(), **gradients}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_are_those_of_the_parts(family: str, calls: list[int]) -> None:
    parts, whole = pair(family)
    calls.clear()
    for padding, rows, length in (("right", 3, 20), ("left", 2, 21), ("none", 2, 16), ("none", 1, 1), ("right", 1, 70)):
        batch = make_batch(family, rows, length, padding)
        for train in (True, False):
            calls.clear()
            wanted = step(parts, batch, train=train)
            assert not calls
            assert_same(step(whole, batch, train=train), wanted)
            assert len(calls) == 2
        with torch.no_grad():
            assert_same(step(whole, batch, train=False), step(parts, batch, train=False))


def test_bits_are_the_same_without_a_mask(calls: list[int]) -> None:
    parts, whole = pair()
    calls.clear()
    batch = {"input_ids": make_batch("bert")["input_ids"]}
    assert_same(step(whole, batch), step(parts, batch))
    assert len(calls) == 2


@pytest.mark.parametrize(
    "frozen", ["embeddings", "layer.0", "bias", "query.weight", "dense.weight", "LayerNorm", "bert."]
)
def test_parameters_that_are_frozen_get_no_gradient(frozen: str, calls: list[int]) -> None:
    models = pair()
    calls.clear()
    for model in models:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen not in name)
    parts, whole = (step(model, make_batch("bert")) for model in models)
    assert_same(whole, parts)
    assert len(calls) == 2 and not any(frozen in name for name in whole)


def test_a_layer_that_gives_one_token_is_left_to_its_parts(calls: list[int]) -> None:
    parts, whole = pair()
    calls.clear()
    for model in (parts, whole):
        handle = speed_up(model, precision="bf16", parts={PART: model is whole, "padding_free": False})
        assert handle["first_token"].on and handle.copies is not None
        handle.copies.kept_by_optimizer = True
    calls.clear()
    assert_same(step(whole, make_batch("bert")), step(parts, make_batch("bert")))
    assert len(calls) == 1


# What only the modules in a layer can give


def with_a_hook(model: Any) -> None:
    model.bert.encoder.layer[0].output.dense.register_forward_hook(lambda module, args, out: out * 2)


def with_a_backward_hook(model: Any) -> None:
    model.bert.encoder.layer[0].attention.self.register_full_backward_hook(lambda module, grad_in, grad_out: None)


def with_an_adapter(model: Any) -> None:
    attention = model.bert.encoder.layer[0].attention.self
    attention.query = nn.Sequential(attention.query, nn.Identity())


def with_a_forward_of_its_own(model: Any) -> None:
    dense = model.bert.encoder.layer[0].intermediate.dense
    before = dense.forward
    dense.forward = lambda x: before(x) * 2


def with_other_attention(model: Any) -> None:
    model.set_attn_implementation("eager")


def with_pieces(model: Any) -> None:
    model.bert.encoder.layer[0].chunk_size_feed_forward = 4


def with_recomputing(model: Any) -> None:
    model.activation_checkpointing_enable({"use_reentrant": False})


ASIDE: dict[Callable[[Any], None], int] = {
    with_a_hook: 1,
    with_a_backward_hook: 1,
    with_an_adapter: 1,
    with_a_forward_of_its_own: 1,
    with_other_attention: 0,
    with_pieces: 1,
    with_recomputing: 0,
}


@pytest.mark.parametrize(("change", "left"), ASIDE.items(), ids=[change.__name__ for change in ASIDE])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_changed_layers_are_left_to_their_parts(change: Callable[[Any], None], left: int, calls: list[int]) -> None:
    # Recomputing draws again, outside of the rows' keys.
    models = pair(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    calls.clear()
    for model in models:
        change(model)
    parts, whole = (step(model, make_batch("bert")) for model in models)
    assert_same(whole, parts)
    assert len(calls) == left


def test_global_hooks_see_every_module(calls: list[int]) -> None:
    parts, whole = pair()
    calls.clear()
    seen: list[str] = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    try:
        found = step(whole, make_batch("bert"))
    finally:
        hook.remove()
    assert seen.count("BertSelfOutput") == 2 and not calls
    assert_same(found, step(parts, make_batch("bert")))


# PyTorch says what it cannot watch: embeddings, whose inputs have no gradient, and outputs that are no tensors.
@pytest.mark.filterwarnings("ignore:For backward hooks to be called", "ignore:Full backward hook is firing")
def test_global_hooks_see_every_gradient(calls: list[int]) -> None:
    _, whole = pair()
    calls.clear()
    seen: list[str] = []
    hook = nn.modules.module.register_module_full_backward_hook(
        lambda module, grad_in, grad_out: seen.append(type(module).__name__)
    )
    try:
        step(whole, make_batch("bert"))
    finally:
        hook.remove()
    assert seen.count("BertSelfOutput") == 2 and not calls


def test_masks_of_the_users_own_and_weights_of_attention(calls: list[int]) -> None:
    parts, whole = pair(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    calls.clear()
    batch = make_batch("bert")
    own = batch["attention_mask"].bool()[:, None, None, :].expand(-1, 1, 20, -1)
    assert_same(step(whole, {**batch, "attention_mask": own}), step(parts, {**batch, "attention_mask": own}))
    assert not calls
    for model in (parts, whole):
        model.set_attn_implementation("eager")  # type: ignore[operator]
    wanted, found = (model(**batch, output_attentions=True).attentions for model in (parts, whole))
    assert len(found) == 2 and all(map(torch.equal, found, wanted))


def test_outside_autocast_pytorch_multiplies(calls: list[int]) -> None:
    parts, whole = pair()
    calls.clear()
    batch = make_batch("bert")
    assert torch.equal(whole(**batch).logits, parts(**batch).logits)
    assert not calls


def test_layers_with_other_hidden_states_to_look_at(calls: list[int]) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        is_decoder=True, add_cross_attention=True, use_cache=False,
    )  # fmt: skip
    parts, whole = copies_of(lambda: BertModel(config).eval())
    speed(parts, whole=False)
    speed(whole, whole=True)
    batch: dict[str, Any] = make_batch("bert")
    calls.clear()
    assert_same(step(whole, batch), step(parts, batch))
    assert len(calls) == 2
    calls.clear()
    batch["encoder_hidden_states"] = torch.randn(3, 7, 64)
    assert_same(step(whole, batch), step(parts, batch))
    with torch.autocast("cpu", torch.bfloat16):
        cached = whole(**{**batch, "use_cache": True})
    assert cached.past_key_values is not None and not calls


# Where it is put in


def test_a_class_with_other_words_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_layers, "_KNOWN", "0" * 64)
    part = speed_up(build("bert"), precision="bf16")[PART]
    assert not part.on and part.reason == "the model has no layers of BERT's kind"


def test_children_of_another_class_are_left_alone() -> None:
    model: Any = build("bert")
    kind = type(model.bert.encoder.layer[0].attention.self)
    for layer in model.bert.encoder.layer:
        layer.attention.self.__class__ = type("OwnSelfAttention", (kind,), {})
    assert not speed_up(model, precision="bf16")[PART].on


def test_layers_without_a_bias_are_left_alone() -> None:
    model: Any = build("bert")
    for layer in model.bert.encoder.layer:
        layer.output.LayerNorm = nn.LayerNorm(64, bias=False)
    assert speed_up(model, precision="bf16")[PART].reason == "a module of its layers has no bias"


@pytest.mark.parametrize("needed", ["bf16_weights", "joined_qkv", "attention", "norms", "gelu"])
def test_the_part_that_is_missing_is_named(needed: str) -> None:
    assert speed_up(build("bert"), precision="bf16", parts={needed: False})[PART].reason == f"needs {needed}"


@pytest.mark.parametrize("make", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_computes_with_modules_of_its_own(make: Callable[[nn.Module], nn.Module], calls: list[int]) -> None:
    parts, whole = pair()
    calls.clear()
    other = make(whole)
    wanted = step(parts, make_batch("bert"))
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.zero_()
    calls.clear()
    speed(other, whole=True)
    assert_same(step(other, make_batch("bert")), wanted)
