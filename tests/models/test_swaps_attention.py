"""Attention through transformers' interfaces: which masks the kernels take, and what is left to `sdpa`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn
from transformers.masking_utils import bidirectional_mask_function

from headstart.models.speed import speed_up
from headstart.models.swaps import attention
from headstart.models.swaps.swap import watch
from small_families import answers, build, copies_of, distance, make_batch

Calls = list[tuple[torch.Size, torch.Size]]


def pair(family: str = "bert", **changes: Any) -> tuple[nn.Module, nn.Module]:
    """Give a model in its own way, and an equal one whose attention alone is ours."""
    plain, fast = copies_of(lambda: build(family, **changes))
    others = ("onednn_float32", "norms", "gelu", "dropout")
    assert speed_up(fast, precision="fp32", parts=dict.fromkeys(others, False))["attention"].on
    return plain, fast


def compare(plain: nn.Module, fast: nn.Module, batch: dict[str, Any], left: str | None) -> None:
    """Check that both answer the same, and whether the kernels were used, or why not."""
    with watch() as usage:
        found = answers(fast, batch)
    assert distance(found, answers(plain, batch)) < 1e-5
    if left is None:
        assert usage.used.get("attention") and not usage.left.get("attention")
    else:
        assert left in usage.why_left("attention")


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda mask: mask, None),
        (lambda mask: mask.bool(), None),
        (lambda mask: mask.float(), None),
        (lambda mask: mask.flip(1), None),
        (lambda mask: None, None),
        (lambda mask: torch.ones_like(mask), None),
        (lambda mask: mask.bool()[:, None, None, :], "not made by"),
        (lambda mask: mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1), "not made by"),
        (lambda mask: (1.0 - mask.float())[:, None, None, :] * -1e4, "not made by"),
        (lambda mask: torch.ones_like(mask).bool()[:, None, :, None].expand(-1, 1, -1, 20).tril(), "not made by"),
    ],
)
def test_every_kind_of_mask_is_understood(change: Any, left: str | None) -> None:
    plain, fast = pair()
    batch = make_batch("bert")
    compare(plain, fast, {**batch, "attention_mask": change(batch["attention_mask"])}, left)


@pytest.mark.parametrize("inference", [False, True])
def test_a_mask_that_changes_in_place_is_read_again(inference: bool) -> None:
    plain, fast = pair()
    numbers = np.ones((2, 20), dtype=bool)
    with torch.inference_mode(inference):
        batch = {**make_batch("bert", 2, 20), "attention_mask": torch.from_numpy(numbers)}
        for seen in (20, 7, 13):
            numbers[1] = np.arange(20) < seen  # unseen by the tensor's version
            with torch.no_grad():
                assert float((fast(**batch)[0] - plain(**batch)[0]).abs().max()) < 1e-5
            batch["attention_mask"][0, 3:5] = seen == 7
            with torch.no_grad():
                assert float((fast(**batch)[0] - plain(**batch)[0]).abs().max()) < 1e-5


@pytest.mark.parametrize("padding", ["right", "left", "none"])
@pytest.mark.parametrize("length", [7, 9, 20, 40])
def test_a_window_is_kept_to(padding: str, length: int) -> None:
    plain, fast = pair("modernbert", local_attention=16)
    compare(plain, fast, make_batch("modernbert", 3, length, padding), None)


@pytest.mark.parametrize("padding", ["right", "left", "none"])
def test_later_tokens_are_not_seen(padding: str) -> None:
    plain, fast = pair("gpt2")
    compare(plain, fast, make_batch("gpt2", 3, 20, padding), None)
    base = fast.base_model
    first = make_batch("gpt2", 1, 20, "none")["input_ids"]
    second = first.clone()
    second[:, 12:] = 9
    with torch.no_grad():
        a, b = (base(input_ids=ids)[0] for ids in (first, second))  # type: ignore[operator]
    assert torch.equal(a[:, :12], b[:, :12]) and not torch.equal(a[:, 12:], b[:, 12:])


def test_rows_that_share_a_line_do_not_see_each_other() -> None:
    plain, fast = pair("gpt2")
    batch = {"input_ids": make_batch("gpt2", 1, 20, "none")["input_ids"]}
    batch["position_ids"] = torch.cat([torch.arange(12), torch.arange(8)])[None]
    base, fast_base = plain.base_model, fast.base_model
    with torch.no_grad():
        wanted, found = (model(**batch, use_cache=False)[0] for model in (base, fast_base))  # type: ignore[operator]
    assert float((found - wanted).abs().max()) < 1e-5


def test_text_that_continues_a_cache_is_left_to_sdpa() -> None:
    plain, fast = pair("gpt2")
    batch = make_batch("gpt2", 2, 20, "left")
    results = []
    for model in (plain, fast):
        base = model.base_model
        with torch.no_grad():
            first = {name: value[:, :12] for name, value in batch.items()}
            held = base(**first, use_cache=True).past_key_values  # type: ignore[operator]
            rest = {"input_ids": batch["input_ids"][:, 12:], "attention_mask": batch["attention_mask"]}
            with watch() as usage:
                results.append(base(**rest, past_key_values=held)[0])  # type: ignore[operator]
    assert float((results[0] - results[1]).abs().max()) < 1e-5
    assert "differ in number" in usage.why_left("attention")


def test_another_text_is_attended_to() -> None:
    plain, fast = pair("bart")
    batch = make_batch("bart", 2, 20)
    for length in (20, 9):
        batch["decoder_input_ids"] = batch["input_ids"][:, -length:].clone()
        batch["decoder_input_ids"][:, -1] = 2
        batch["decoder_input_ids"][:, :-1].clamp_(min=5)
        with torch.no_grad():
            wanted, found = (model.base_model(**batch)[0] for model in (plain, fast))  # type: ignore[operator]
        assert float((found - wanted).abs().max()) < 1e-5


def test_hidden_states_weights_and_embeddings_of_the_users_own() -> None:
    plain, fast = pair()
    batch = make_batch("bert")
    with torch.no_grad():
        wanted, found = (model(**batch, output_hidden_states=True) for model in (plain, fast))
        for a, b in zip(found.hidden_states, wanted.hidden_states, strict=True):
            assert float((a - b)[batch["attention_mask"].bool()].abs().max()) < 1e-5
        embedded = plain.get_input_embeddings()(batch["input_ids"])  # type: ignore[operator]
        inputs = {"inputs_embeds": embedded, "attention_mask": batch["attention_mask"]}
        assert float((fast(**inputs)[0] - plain(**inputs)[0]).abs().max()) < 1e-5


def test_a_mask_that_has_lost_what_it_carried_is_still_right() -> None:
    query, key, value = (torch.randn(2, 3, 20, 16) for _ in range(3))
    padding = make_batch("bert", 2, 20)["attention_mask"]
    module = nn.Module()
    for causal in (False, True):
        function = attention.causal_mask_function if causal else attention.bidirectional_mask_function
        mask = attention.attention_mask(2, 20, 20, mask_function=function, attention_mask=padding.bool(),
                                        allow_is_bidirectional_skip=True)  # fmt: skip
        assert mask is not None and hasattr(mask, "headstart_seen")
        with watch() as usage:
            found, _ = attention.attention_forward(module, query, key, value, mask)
            wanted, _ = attention.attention_forward(module, query, key, value, mask.clone())
        assert usage.used["attention"] and usage.left["attention"]
        assert float((found - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize("is_causal", [None, False, True])
@pytest.mark.parametrize("of_module", [None, False, True])
def test_without_a_mask_the_same_is_causal_as_in_sdpa(is_causal: bool | None, of_module: bool | None) -> None:
    query, key, value = (torch.randn(2, 3, 20, 16) for _ in range(3))
    module = nn.Module()
    if of_module is not None:
        module.is_causal = of_module  # type: ignore[assignment]
    found, _ = attention.attention_forward(module, query, key, value, None, is_causal=is_causal, scaling=0.4)
    wanted, _ = attention.sdpa_attention_forward(module, query, key, value, None, is_causal=is_causal, scaling=0.4)
    assert float((found - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["position_bias", "softcap", "s_aux", "cache"])
def test_what_the_kernels_do_not_know_is_left_to_sdpa(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def sdpa(*arguments: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        asked.append(kwargs)
        return arguments[1], None

    monkeypatch.setattr(attention, "sdpa_attention_forward", sdpa)
    query = torch.randn(1, 2, 4, 16)
    attention.attention_forward(nn.Module(), query, query, query, None, **{name: torch.zeros(1)})
    attention.attention_forward(nn.Module(), query, query, query, None, **{name: None})
    assert len(asked) == 1 and name in asked[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_mask_for_other_keys_is_not_read_behind_its_end(precision: Literal["fp32", "bf16"]) -> None:
    model: Any = build("bert")
    handle = speed_up(model, precision=precision)
    if handle.copies is not None:
        handle.copies.kept_by_optimizer = True
    mask = attention.attention_mask(
        3, 20, 20, mask_function=bidirectional_mask_function, attention_mask=make_batch("bert")["attention_mask"],
        allow_is_bidirectional_skip=True,
    )  # fmt: skip
    for x in (torch.randn(3, 5, 64), torch.randn(2, 20, 64)):
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
            pytest.raises(RuntimeError, match="size"),
        ):
            model.bert.encoder.layer[0](x, mask)
