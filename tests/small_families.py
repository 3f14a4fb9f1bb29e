"""Random models of many families, small enough to compare two ways of computing in a moment."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from headstart.models.hardware import has_fast_bfloat16

PACKS = has_fast_bfloat16("cpu") and not torch.cpu._is_amx_tile_supported()
"""Whether the layout in which oneDNN multiplies here is surely the one that the kernels know."""

HIDDEN, HEADS, LAYERS, VOCABULARY = 64, 2, 2, 200
_BERT = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 128}
_T5 = {"d_model": HIDDEN, "d_kv": 32, "d_ff": 128, "num_layers": LAYERS, "num_heads": HEADS}
_BART = {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}

# family: (class, what its configuration says)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForSequenceClassification", _BERT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 128},
    ),
    "roberta": ("RobertaForSequenceClassification", {**_BERT, "pad_token_id": 1}),
    "xlm-roberta": ("XLMRobertaForTokenClassification", {**_BERT, "pad_token_id": 1}),
    "electra": ("ElectraForSequenceClassification", {**_BERT, "embedding_size": 32}),
    "albert": ("AlbertForSequenceClassification", {**_BERT, "embedding_size": 32}),
    "modernbert": (
        "ModernBertForSequenceClassification",
        {
            **_BERT,
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
            "attention_dropout": 0.1,
            "mlp_dropout": 0.1,
            "embedding_dropout": 0.1,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
    "deberta-v2": (
        "DebertaV2ForSequenceClassification",
        {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    ),
    "mpnet": ("MPNetForSequenceClassification", {**_BERT, "pad_token_id": 1}),
    "t5 encoder": ("T5EncoderModel", _T5),
    "t5": ("T5ForSequenceClassification", {**_T5, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0}),
    "t5 tokens": ("T5ForTokenClassification", _T5),
    "bart": ("BartForSequenceClassification", {**_BART, "eos_token_id": 2, "pad_token_id": 1}),
    "gpt2": (
        "GPT2ForSequenceClassification",
        {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
}


def build(family: str, **changes: Any) -> nn.Module:
    """Build a model with random weights, the same each time, in eval mode."""
    name, numbers = FAMILIES[family]
    kind = getattr(transformers, name)
    config = kind.config_class(vocab_size=VOCABULARY, **{**numbers, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = kind(config)
        for parameter in model.parameters():  # zeros, as biases begin, would hide what is left out
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def make_batch(family: str, num_rows: int = 3, length: int = 20, padding: str = "right") -> dict[str, torch.Tensor]:
    """Make token ids and their mask; every row but the first is shorter, where there is padding."""
    places = torch.arange(num_rows * length).view(num_rows, length)
    ids = 5 + places * 37 % (VOCABULARY - 5)
    mask = torch.ones((num_rows, length), dtype=torch.int64)
    if padding != "none":
        for row in range(1, num_rows):
            mask[row, max(1, length - 1 - 2 * row) :] = 0
    if padding == "left":
        ids, mask = ids.flip(1), mask.flip(1)
    ids = torch.where(mask.bool(), ids, FAMILIES[family][1].get("pad_token_id", 0))
    if family in ("t5", "bart"):  # pooled where the text ends: one such token a row
        for row in range(num_rows):
            ids[row, int(mask[row].nonzero().max())] = 2
    return {"input_ids": ids, "attention_mask": mask}


def answers(model: nn.Module, batch: dict[str, Any], precision: str = "fp32") -> tuple[torch.Tensor, dict[str, Any]]:
    """Give the first output at the places that are seen, as float32, and the gradients of all parameters."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = model(**batch)[0]
    mask = batch.get("attention_mask")
    if output.ndim == 3 and mask is not None and mask.ndim == 2:
        output = output[mask.bool()]
    values = output.float()
    (values * torch.cos(torch.arange(values.numel(), dtype=torch.float32)).view_as(values)).sum().backward()
    gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return values.detach(), gradients


def distance(found: tuple[torch.Tensor, dict[str, Any]], wanted: tuple[torch.Tensor, dict[str, Any]]) -> float:
    """Give how far outputs or gradients are apart, relative to their norm: the larger of the two."""
    assert found[1].keys() == wanted[1].keys()
    gradients = [torch.cat([side[1][name].flatten() for name in wanted[1]]) for side in (found, wanted)]
    pairs = [(found[0], wanted[0]), (gradients[0], gradients[1])]
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)


def copies_of(build_one: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Give two equal models that share nothing, their configuration neither."""
    model = build_one()
    return model, copy.deepcopy(model)


def read_adapters(model: nn.Module, folder: Path) -> nn.Module:
    """Read adapters as peft's users do; peft asks transformers by a name that will go, and transformers says so."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing")
        adapted: nn.Module = PeftModel.from_pretrained(model, folder)
    return adapted.eval()
