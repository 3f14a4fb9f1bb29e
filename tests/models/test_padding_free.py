"""Tokens without the padding between them: the same answers and gradients, and padded rows wherever somebody looks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headstart.models.dropout import RandomKey, keyed_randomness
from headstart.models.kernels.attention import attend, attend_backward
from headstart.models.kernels.drawing import NO_DROPS, Drops
from headstart.models.kernels.elementwise import drop, drop_add_norm, drop_add_norm_backward
from headstart.models.kernels.key_mask import KeyMask
from headstart.models.speed import speed_up
from headstart.models.swaps import padding_free
from headstart.models.swaps.padding_free import PART, Lines
from headstart.models.swaps.whole_layers import _WholeLayer
from small_families import HIDDEN, answers, build, copies_of, distance, make_batch

FAMILIES = ("bert", "roberta", "electra")
CPU = torch.device("cpu")
# How far gradients of weights, which are sums over lines, may be off where lines lie in other places. No other bit is.
ROUNDING = 4e-3

num_keys = st.lists(st.integers(1, 40), min_size=1, max_size=9)


@pytest.fixture
def lines_of_layers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Note the shape of what each whole layer gets."""
    seen: list[tuple[int, ...]] = []
    forward = _WholeLayer.forward
    monkeypatch.setattr(
        _WholeLayer,
        "forward",
        staticmethod(lambda ctx, x, *rest: (seen.append(tuple(x.shape)), forward(ctx, x, *rest))[1]),
    )
    return seen


def speed(model: nn.Module, *, is_on: bool) -> nn.Module:
    handle = speed_up(model, precision="bf16", parts={PART: is_on})
    assert handle[PART].on == is_on and handle[PART].places == (len(layers_of(model)) if is_on else 0), handle
    assert handle.copies is not None
    handle.copies.kept_by_optimizer = True
    return model


def layers_of(model: Any) -> nn.ModuleList:
    return model.base_model.encoder.layer  # type: ignore[no-any-return]


def pair(family: str = "bert", **changes: Any) -> tuple[nn.Module, nn.Module]:
    """Give a model computed with padding, and the same without."""
    padded, free = copies_of(lambda: build(family, **changes))
    return speed(padded, is_on=False), speed(free, is_on=True)


def answer(model: nn.Module, batch: dict[str, Any], *, train: bool = True) -> tuple[torch.Tensor, dict[str, Any]]:
    model.train(train)
    rows = list(range(10, 10 + len(batch["input_ids"])))
    with keyed_randomness(RandomKey(0, 3, rows), CPU, model):
        return answers(model, batch, "bf16")


def assert_same(free: nn.Module, padded: nn.Module, batch: dict[str, Any], *, train: bool = True) -> None:
    found, wanted = answer(free, batch, train=train), answer(padded, batch, train=train)
    assert torch.equal(found[0], wanted[0])
    assert distance(found, wanted) < ROUNDING


# A model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("train", [True, False])
def test_answers_have_the_same_bits_and_gradients_are_the_same(
    family: str, train: bool, lines_of_layers: list[tuple[int, ...]]
) -> None:
    padded, free = pair(family)
    for padding, rows, length in (
        ("right", 3, 20),
        ("right", 7, 33),
        ("none", 2, 16),
        ("none", 1, 1),
        ("right", 1, 70),
    ):
        batch = make_batch(family, rows, length, padding)
        lines_of_layers.clear()
        answer(free, batch, train=train)
        tokens = int(batch["attention_mask"].sum())
        assert lines_of_layers == [(1, -(-tokens // 16) * 16, HIDDEN)] * 2
        assert_same(free, padded, batch, train=train)


def test_rows_of_very_different_length_are_the_same() -> None:
    padded, free = pair(max_position_embeddings=600)
    batch = make_batch("bert", 5, 520)
    batch["attention_mask"] = (torch.arange(520) < torch.tensor([520, 1, 2, 300, 33])[:, None]).long()
    assert_same(free, padded, batch)


def test_a_model_of_one_layer_and_one_without_a_mask(lines_of_layers: list[tuple[int, ...]]) -> None:
    padded, free = pair(num_hidden_layers=1)
    lines_of_layers.clear()
    assert_same(free, padded, make_batch("bert"))
    assert lines_of_layers == [(1, 64, HIDDEN)]  # the padded way leaves a last layer to its modules
    padded, free = pair()
    lines_of_layers.clear()
    assert_same(free, padded, {"input_ids": make_batch("bert")["input_ids"]})
    assert lines_of_layers[0] == (1, 64, HIDDEN)


def test_prediction_has_the_same_bits() -> None:
    padded, free = (model.eval() for model in pair())
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found, wanted = (model(**make_batch("bert", 6, 30)).logits for model in (free, padded))
    assert torch.equal(found, wanted)


def test_a_row_has_the_same_bits_beside_any_others() -> None:
    _, free = pair()
    batch = make_batch("bert", 6, 30)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        together = free.eval()(**batch).logits
        for row in range(6):
            length = int(batch["attention_mask"][row].sum())
            alone = free(**{name: tensor[row : row + 1, :length] for name, tensor in batch.items()}).logits
            assert torch.equal(alone[0], together[row])


def test_parameters_that_are_frozen_get_no_gradient() -> None:
    for frozen in ("embeddings", "layer.0", "layer.1", "query", "dense", "bert."):
        models = pair()
        for model in models:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(frozen not in name)
        padded, free = models
        assert_same(free, padded, make_batch("bert"))


# Padded rows wherever somebody looks, or lines cannot go on


def hidden_by_argument(model: Any) -> torch.Tensor:
    return model(**make_batch("bert"), output_hidden_states=True).hidden_states[1]  # type: ignore[no-any-return]


def of_the_model_below(model: Any) -> torch.Tensor:
    return model.bert(**make_batch("bert")).last_hidden_state  # type: ignore[no-any-return]


def by_a_hook(model: Any) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    with model.bert.encoder.layer[0].register_forward_hook(lambda module, args, out: seen.append(out)):
        model(**make_batch("bert"))
    return seen[0]


@pytest.mark.parametrize("look", [hidden_by_argument, of_the_model_below, by_a_hook])
def test_whoever_looks_sees_padded_rows(look: Callable[[nn.Module], torch.Tensor]) -> None:
    padded, free = pair()
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = look(free), look(padded)
    assert torch.equal(found, wanted) and found.shape[:2] == (3, 20)


def with_an_adapter(model: Any) -> None:
    layers_of(model)[1].output.dense = nn.Sequential(layers_of(model)[1].output.dense)


def with_an_adapter_in_the_first(model: Any) -> None:
    layers_of(model)[0].output.dense = nn.Sequential(layers_of(model)[0].output.dense)


def with_an_adapter_in_the_last(model: Any) -> None:
    layers_of(model)[2].attention.self.value = nn.Sequential(layers_of(model)[2].attention.self.value)


def with_a_forward_of_its_own(model: Any) -> None:
    layer = layers_of(model)[1]
    before = layer.forward
    layer.forward = lambda x, *rest, **named: before(x * 1.0, *rest, **named)


def with_the_last_attention_wrapped(model: Any) -> None:
    class Wrapped(nn.Module):
        def __init__(self, wrapped: nn.Module) -> None:
            super().__init__()
            self.wrapped = wrapped

        def forward(self, *given: Any, **named: Any) -> Any:
            return self.wrapped(*given, **named)

    layers_of(model)[2].attention = Wrapped(layers_of(model)[2].attention)


def with_pieces(model: Any) -> None:
    layers_of(model)[1].chunk_size_feed_forward = 4


@pytest.mark.parametrize(
    ("change", "shapes"),
    [
        (with_an_adapter, [(1, 64, HIDDEN)]),  # the third gets padded rows: its modules give the first token
        (with_an_adapter_in_the_first, [(3, 20, HIDDEN)]),
        (with_an_adapter_in_the_last, [(1, 64, HIDDEN)] * 2),
        (with_a_forward_of_its_own, [(3, 20, HIDDEN)] * 2),
        (with_the_last_attention_wrapped, [(1, 64, HIDDEN)] * 2),
        (with_pieces, [(1, 64, HIDDEN)]),
    ],
)
def test_a_layer_that_cannot_take_lines_gets_padded_rows(
    change: Callable[[nn.Module], None], shapes: list[tuple[int, ...]], lines_of_layers: list[tuple[int, ...]]
) -> None:
    padded, free = pair(num_hidden_layers=3)
    change(padded)
    change(free)
    assert_same(free, padded, make_batch("bert"))
    lines_of_layers.clear()
    answer(free, make_batch("bert"))
    assert lines_of_layers == shapes


def test_layers_that_were_taken_out_or_exchanged(lines_of_layers: list[tuple[int, ...]]) -> None:
    for keep in ([0, 1], [1, 2], [0, 2, 1], [0, 1, 1, 2]):
        models = pair(num_hidden_layers=3)
        for model in models:
            encoder: Any = model.base_model.encoder  # type: ignore[union-attr]
            encoder.layer = nn.ModuleList([encoder.layer[number] for number in keep])
        padded, free = models
        lines_of_layers.clear()
        if keep[-1] == 2:  # where another one is the last, it is not known that the first token is enough
            assert_same(free, padded, make_batch("bert"))
        else:
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(*(model.eval()(**make_batch("bert")).logits for model in (free, padded)))
        assert {shape[:2] for shape in lines_of_layers} == {(3, 20)}


def test_without_a_mask_nobody_sees_rows_that_lie_in_one_line() -> None:
    padded, free = pair(num_hidden_layers=3)
    for model in (padded, free):
        with_a_forward_of_its_own(model)
    assert_same(free, padded, {"input_ids": make_batch("bert")["input_ids"]})


def test_an_encoder_that_is_wrapped_gets_padded_rows(lines_of_layers: list[tuple[int, ...]]) -> None:
    models = pair()
    for model in models:
        base: Any = model.base_model
        base.encoder = nn.DataParallel(base.encoder)
    padded, free = models
    lines_of_layers.clear()
    assert_same(free, padded, make_batch("bert"))
    assert {shape[:2] for shape in lines_of_layers} == {(3, 20)}


def test_no_lines_are_made_where_pytorch_multiplies_or_there_are_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    padded, free = (model.eval() for model in pair())
    made: list[int] = []
    monkeypatch.setattr(Lines, "take", lambda self, x: made.append(1))
    assert torch.equal(free(**make_batch("bert")).logits, padded(**make_batch("bert")).logits)
    layer: Any = layers_of(free)[0]
    assert padding_free.begin_lines(layer, torch.zeros(0, 20, HIDDEN), None) is None and not made


def test_padding_on_the_left_stays(lines_of_layers: list[tuple[int, ...]]) -> None:
    padded, free = pair()
    lines_of_layers.clear()
    assert_same(free, padded, make_batch("bert", 3, 20, "left"))
    assert {shape[:2] for shape in lines_of_layers} == {(3, 20)}


# Where it is put in


@pytest.mark.parametrize("needed", ["first_token", "whole_layers"])
def test_the_part_that_is_missing_is_named(needed: str) -> None:
    assert speed_up(build("bert"), precision="bf16", parts={needed: False})[PART].reason == f"needs {needed}"


def test_an_encoder_with_other_words_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding_free, "_KNOWN", "0" * 64)
    part = speed_up(build("bert"), precision="bf16")[PART]
    assert not part.on and "calls layers in another way" in part.reason


def test_undo_gives_padded_rows_back(lines_of_layers: list[tuple[int, ...]]) -> None:
    _, free = pair()
    batch = make_batch("bert")
    answer(free, batch)
    assert lines_of_layers
    handle = speed_up(free, precision="bf16")
    handle.undo()
    lines_of_layers.clear()
    answer(free, batch)
    assert not lines_of_layers and not any("_headstart_stack" in module.__dict__ for module in free.modules())


def test_a_copy_takes_lines_of_its_own(lines_of_layers: list[tuple[int, ...]]) -> None:
    padded, free = pair()
    other = copy.deepcopy(free)
    with torch.no_grad():
        for parameter in free.parameters():
            parameter.zero_()
    speed(other, is_on=True)
    assert_same(other, padded, make_batch("bert"))


# Lines


@given(num_keys, st.integers(0, 5))
def test_lines_are_the_tokens_row_after_row(lengths: list[int], more: int) -> None:
    length = max(lengths) + more
    lines = Lines(torch.tensor(lengths), length)
    x = torch.randn(len(lengths), length, 3)
    taken = lines.take(x)
    assert torch.equal(
        taken[0, : sum(lengths)], torch.cat([row[:count] for row, count in zip(x, lengths, strict=True)])
    )
    seen = torch.arange(length) < torch.tensor(lengths)[:, None]
    assert torch.equal(lines.pad(taken), torch.where(seen[:, :, None], x, 0.0))
    assert lines.starts.tolist() == [sum(lengths[:row]) for row in range(len(lengths))]


@given(num_keys)
def test_gradients_of_lines_go_where_they_came_from(lengths: list[int]) -> None:
    lines = Lines(torch.tensor(lengths), max(lengths))
    x = torch.randn(len(lengths), max(lengths), 3, requires_grad=True)
    taken = lines.take(x)
    direction = torch.randn_like(taken)
    (grad,) = torch.autograd.grad(taken, x, direction)
    direction[0, lines.num_tokens :] = 0.0
    assert torch.equal(grad, lines.pad(direction))
    leaf = direction.detach().requires_grad_()
    (back,) = torch.autograd.grad(lines.pad(leaf), leaf, grad)
    assert torch.equal(back, direction)


@given(st.integers(1, 1_000_000))
def test_few_sizes_little_more(number: int) -> None:
    rounded = padding_free._round_up(number)
    assert number <= rounded and rounded % 16 == 0 and rounded - number < max(16, number / 16)
    assert padding_free._round_up(rounded) == rounded
    sizes = {padding_free._round_up(other) for other in range(number, min(2 * number, number + 3000))}
    assert len(sizes) <= 66


# Kernels


@settings(deadline=None, max_examples=30)
@given(
    lengths=num_keys,
    asked=st.sampled_from([None, 1]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    dim=st.sampled_from([16, 32]),
    causal=st.booleans(),
    window=st.sampled_from([None, 3]),
)
def test_attention_over_lines_has_the_bits_of_padded_rows(
    lengths: list[int], asked: int | None, dtype: torch.dtype, dim: int, causal: bool, window: int | None
) -> None:
    heads, rows, length = 2, len(lengths), max(lengths)
    lines = Lines(torch.tensor(lengths), length)
    drops = Drops(torch.arange(rows), 0.2)
    how: dict[str, Any] = {"scale": 0.3, "drops": drops, "causal": causal, "window": window, "num_queries": asked}
    joined = torch.randn(rows, length, 3 * heads * dim).to(dtype)
    grad_out = torch.randn(rows, length, heads * dim).to(dtype)

    def compute(joined: torch.Tensor, grad_out: torch.Tensor, keys: KeyMask) -> tuple[torch.Tensor, torch.Tensor]:
        def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
            whole = tensor.view(len(tensor), -1, 3, heads, dim)
            return [whole[:, :, number].transpose(1, 2) for number in range(3)]

        out, statistics = attend(*parts(joined), keys, **how)
        grads = torch.full_like(joined, torch.nan)
        places = parts(grads)
        grad = grad_out.view(len(grad_out), -1, heads, dim).transpose(1, 2)
        attend_backward(grad, *parts(joined), statistics, keys, (places[0], places[1], places[2]), **how)
        return out.transpose(1, 2).flatten(2), grads

    # Queries that are padding have no gradient, as in a model.
    grad_out = lines.pad(lines.take(grad_out))
    wanted = compute(joined, grad_out, KeyMask(torch.tensor(lengths)))
    found = compute(lines.take(joined), lines.take(grad_out), lines.keys)
    count = lines.num_tokens
    assert torch.equal(found[0][0, :count], lines.take(wanted[0])[0, :count])
    assert torch.equal(found[1][0, :count], lines.take(wanted[1])[0, :count])
    assert found[1][0, count:].isnan().all()  # nobody wrote there


@settings(deadline=None, max_examples=30)
@given(lengths=num_keys, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_what_is_dropped_from_a_line_is_what_is_dropped_from_its_token(lengths: list[int], dtype: torch.dtype) -> None:
    rows, length, width = len(lengths), max(lengths), 32
    lines, keys = Lines(torch.tensor(lengths), length), torch.arange(7, 7 + rows)
    of_rows, of_lines = Drops(keys, 0.3), Drops(keys, 0.3, lines.places)
    x, rest, grad = (torch.randn(rows, length, width).to(dtype) for _ in range(3))
    weight, bias = torch.randn(width), torch.randn(width)

    def take(tensor: torch.Tensor) -> torch.Tensor:
        """Give lines of padded rows, (B * T, H), those that are tokens."""
        return lines.take(tensor.view(rows, length, width))[0, : lines.num_tokens]

    def flat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(-1, width).clone()

    assert torch.equal(drop(flat(lines.take(x)), 1, of_lines)[: lines.num_tokens], take(drop(flat(x), length, of_rows)))
    sums, wanted_sums = flat(lines.take(x)), flat(x)
    found, statistics = drop_add_norm(sums, flat(lines.take(rest)), weight, bias, 1e-5, 1, of_lines)
    wanted, wanted_statistics = drop_add_norm(wanted_sums, flat(rest), weight, bias, 1e-5, length, of_rows)
    assert torch.equal(found[: lines.num_tokens], take(wanted))
    back = drop_add_norm_backward(flat(lines.take(grad)), sums, weight, statistics, 1, of_lines)
    wanted_back = drop_add_norm_backward(flat(grad), wanted_sums, weight, wanted_statistics, length, of_rows)
    for one, other in zip(back[:2], wanted_back[:2], strict=True):
        assert torch.equal(one[: lines.num_tokens], take(other))
    assert NO_DROPS.place_numbers[0] == 0
