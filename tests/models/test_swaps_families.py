"""Models of many families compute the same with the fast path as without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from headstart.models.dropout import RandomKey, keyed_randomness
from headstart.models.speed import SpeedUp, speed_up
from small_families import FAMILIES, PACKS, answers, build, copies_of, distance, make_batch

CPU = torch.device("cpu")
# Families without a place for a part, and a word of the reason.
ASIDE = {
    "joined_qkv": {"modernbert": "no three linear layers", "gpt2": "no three linear layers"},
    "attention": {
        "deberta-v2": "interface",
        "mpnet": "interface",
        "t5": "position bias",
        "t5 encoder": "position bias",
        "t5 tokens": "position bias",
    },
    "norms": {"t5": "layer norm", "t5 encoder": "layer norm", "t5 tokens": "layer norm"},
    "gelu": {"t5": "GELU", "t5 encoder": "GELU", "t5 tokens": "GELU"},
    "packed_weights": {} if PACKS else dict.fromkeys(FAMILIES, "oneDNN lays"),
    "whole_layers": dict.fromkeys(set(FAMILIES) - {"bert", "roberta", "xlm-roberta", "electra"}, "BERT's kind"),
    "first_token": {
        **dict.fromkeys(("t5 encoder", "t5 tokens", "xlm-roberta"), "ForSequenceClassification"),
        **dict.fromkeys(("albert", "modernbert", "t5", "bart", "gpt2"), "no place in the last layer"),
    },
    "padding_free": dict.fromkeys(set(FAMILIES) - {"bert", "roberta", "electra"}, "needs"),
}


def pair(family: str, precision: str, **changes: Any) -> tuple[nn.Module, nn.Module, SpeedUp]:
    """Give a model in its own way, an equal one that is sped up, and what was done to it."""
    plain, fast = copies_of(lambda: build(family, **changes))
    handle = speed_up(fast, precision=precision)  # type: ignore[arg-type]
    if handle.copies is not None:
        handle.copies.kept_by_optimizer = True
    return plain, fast, handle


def train_answers(model: nn.Module, batch: dict[str, Any], precision: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """Answer with dropout on, drawn by row."""
    model.train()
    with keyed_randomness(RandomKey(0, 3, list(range(10, 10 + len(batch["input_ids"])))), CPU, model):
        found = answers(model, batch, precision)
    model.eval()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_the_same_up_to_rounding(family: str) -> None:
    plain, fast, handle = pair(family, "fp32")
    for part in handle.parts:
        assert part.on == (
            part.name not in ("bf16_weights", "packed_weights", "joined_qkv", "whole_layers", "padding_free")
            and family not in ASIDE.get(part.name, {})
        )
    for padding, rows, length in (("right", 3, 20), ("left", 2, 21), ("none", 2, 16), ("none", 1, 1), ("right", 1, 70)):
        batch = make_batch(family, rows, length, padding)
        assert distance(answers(fast, batch), answers(plain, batch)) < 1e-5, (padding, rows, length)
        # Dropout is on: the masks are the same ones.
        assert distance(train_answers(fast, batch, "fp32"), train_answers(plain, batch, "fp32")) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_near_to_float32_as_autocast_is(family: str) -> None:
    plain, fast, handle = pair(family, "bf16")
    for part in handle.parts:
        aside = ASIDE.get(part.name, {}).get(family)
        assert part.on == (part.name != "onednn_float32" and aside is None), part
        assert part.on or (aside or "products are in bfloat16") in part.reason
    batch = make_batch(family, 3, 20)
    for answer in (answers, train_answers):
        wanted, own, ours = (
            answer(model, batch, precision) for model, precision in ((plain, "fp32"), (plain, "bf16"), (fast, "bf16"))
        )
        assert distance(ours, wanted) < 3 * distance(own, wanted) + 2e-3
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(**batch)[0].dtype == plain(**batch)[0].dtype
        base, fast_base = plain.base_model, fast.base_model
        inputs = {**batch, "decoder_input_ids": batch["input_ids"]} if family in ("t5", "bart") else batch
        assert fast_base(**inputs)[0].dtype == base(**inputs)[0].dtype  # type: ignore[operator]


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "bart", "gpt2"])
def test_a_long_row_is_the_same(family: str) -> None:
    longest = {"n_positions": 300} if family == "gpt2" else {"max_position_embeddings": 300}
    plain, fast, _ = pair(family, "fp32", **longest)
    batch = make_batch(family, 1, 280, "none")
    assert distance(answers(fast, batch), answers(plain, batch)) < 1e-5


@pytest.mark.parametrize("family", ["bert", "modernbert", "bart", "gpt2"])
def test_checkpointed_activations_draw_and_compute_the_same(family: str) -> None:
    from headstart.models.dropout import recompute_contexts

    plain, fast, _ = pair(family, "fp32")
    batch = make_batch(family)
    wanted = train_answers(plain, batch, "fp32")
    arguments = {"use_reentrant": False, "context_fn": recompute_contexts}
    fast.activation_checkpointing_enable(activation_checkpointing_kwargs=arguments)  # type: ignore[operator]
    assert distance(train_answers(fast, batch, "fp32"), wanted) < 1e-5


@pytest.mark.parametrize("family", ["bart", "gpt2", "t5"])
def test_generation_with_a_cache_is_the_same(family: str) -> None:
    import copy

    import transformers

    name, numbers = FAMILIES[family]
    kind = {"bart": "BartForConditionalGeneration", "gpt2": "GPT2LMHeadModel", "t5": "T5ForConditionalGeneration"}
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "decoder_start_token_id": 0, "forced_eos_token_id": None}
    config = getattr(transformers, name).config_class(vocab_size=200, **{**numbers, **special})
    plain = getattr(transformers, kind[family])(config).eval()
    fast = copy.deepcopy(plain)
    speed_up(fast, precision="fp32")
    batch = make_batch(family, 2, 12, "left")
    for settings in ({"num_beams": 1}, {"num_beams": 2}):
        wanted, found = (
            model.generate(**batch, max_new_tokens=6, do_sample=False, **settings) for model in (plain, fast)
        )
        assert torch.equal(found, wanted)
