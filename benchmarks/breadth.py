"""For models of many families: which parts of the fast path are on, how equal they compute, and how fast.

    python benchmarks/breadth.py
    python benchmarks/breadth.py --families BERT GPT-2 --rounds 9

Random weights in a small shape (hidden size 256, 4 layers, 8 heads of 32); encoders have a head that classifies, the
others none. "fp32" is how far outputs and gradients are from the model's own way, relative to their norm, with dropout
on and the same elements dropped; "bf16" the same in bfloat16, against float32, beside how far plain autocast is.
"speed" is forward and backward pass in bfloat16, plain autocast against the fast path with its optimizer's copies,
dropout on in both ways as each draws it: rounds in turn in one process, the optimizer's own step left out.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from measuring import draw_table, fill_by_form, make_parser, summarise, tell

HIDDEN, LAYERS, HEADS, INNER, VOCABULARY = 256, 4, 8, 1024, 5000
_BERT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
}
_T5 = {"d_model": HIDDEN, "d_kv": 32, "d_ff": INNER, "num_layers": LAYERS, "num_heads": HEADS}
_BART = {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "BERT": ("BertForSequenceClassification", _BERT),
    "DistilBERT": (
        "DistilBertForSequenceClassification",
        {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": INNER},
    ),
    "RoBERTa": ("RobertaForSequenceClassification", _BERT),
    "XLM-RoBERTa": ("XLMRobertaForSequenceClassification", _BERT),
    "ELECTRA": ("ElectraForSequenceClassification", {**_BERT, "embedding_size": 128}),
    "ALBERT": ("AlbertForSequenceClassification", {**_BERT, "embedding_size": 128}),
    "ModernBERT": (
        "ModernBertForSequenceClassification",
        {**_BERT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    "DeBERTa-v2": (
        "DebertaV2ForSequenceClassification",
        {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 64},
    ),
    "MPNet": ("MPNetForSequenceClassification", _BERT),
    "T5 encoder": ("T5EncoderModel", _T5),
    "T5": ("T5Model", _T5),
    "BART": ("BartModel", _BART),
    "GPT-2": ("GPT2Model", {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}),
}


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES))
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args()
    fill_by_form(arguments, rounds=(15, 5, 1), families=(list(FAMILIES), list(FAMILIES), ["BERT"]))
    return arguments


def build(family: str) -> Any:
    import torch
    import transformers

    name, numbers = FAMILIES[family]
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    model = kind(kind.config_class(vocab_size=VOCABULARY, **numbers))
    for parameter in model.parameters():  # zeros, as biases begin, would hide what is left out
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_batch(model: Any, rows: int, tokens: int) -> dict[str, Any]:
    """Draw token ids; a third of the rows is padded."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, VOCABULARY, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(0, rows, 3):
        mask[row, tokens * 2 // 3 :] = 0
    ids = torch.where(mask.bool(), ids, model.config.pad_token_id or 0)
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        batch.update(decoder_input_ids=ids, decoder_attention_mask=mask)
    return batch


def compute(model: Any, batch: dict[str, Any], precision: str) -> tuple[Any, Any]:
    """Give the answers, or the hidden states of the tokens that are there, and all gradients as one vector."""
    import torch

    from headstart.models.dropout import RandomKey, keyed_randomness

    model.zero_grad(set_to_none=True)
    key = RandomKey(seed=0, step=0, row_ids=list(range(len(batch["input_ids"]))))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with keyed_randomness(key, torch.device("cpu"), model), autocast:
        output = model(**batch)[0].float()
    if output.ndim > 2:
        output = output[batch["attention_mask"].bool()]
    (output * torch.cos(torch.arange(output.numel()).float()).view_as(output)).sum().backward()
    gradients = [p.grad.float().flatten() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return output.detach(), torch.cat(gradients)


def distance(found: tuple[Any, Any], wanted: tuple[Any, Any]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))


@contextmanager
def sped_up(model: Any, precision: Any) -> Iterator[Any]:
    from headstart.models.speed import speed_up

    handle = speed_up(model, precision=precision)
    if handle.copies is not None:
        handle.copies.kept_by_optimizer = True
    yield handle
    handle.undo()


def time_pass(model: Any, batch: dict[str, Any], *, is_keyed: bool) -> Callable[[], float]:
    """Give a function that makes a training's forward and backward pass, and tells its seconds."""
    import contextlib

    import torch

    from headstart.models.dropout import RandomKey, keyed_randomness

    key = RandomKey(seed=0, step=0, row_ids=list(range(len(batch["input_ids"]))))

    def run() -> float:
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        drawn = keyed_randomness(key, torch.device("cpu"), model) if is_keyed else contextlib.nullcontext()
        with drawn, torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch)[0].float().square().mean()
        loss.backward()
        return time.perf_counter() - start

    return run


def measure(family: str, arguments: argparse.Namespace) -> dict[str, Any]:
    plain = build(family).train()
    fast = copy.deepcopy(plain)
    batch = make_batch(plain, arguments.rows, arguments.tokens)
    wanted = compute(plain, batch, "fp32")
    with sped_up(fast, "fp32") as handle:
        in_float32 = distance(compute(fast, batch, "fp32"), wanted)
        parts = {part.name: {"fp32": part.on or part.reason} for part in handle.parts}
    own = distance(compute(plain, batch, "bf16"), wanted)
    with sped_up(fast, "bf16") as handle:
        in_bfloat16 = distance(compute(fast, batch, "bf16"), wanted)
        for part in handle.parts:
            parts[part.name]["bf16"] = part.on or part.reason
        runs = {"plain": time_pass(plain, batch, is_keyed=False), "fast": time_pass(fast, batch, is_keyed=True)}
        seconds: dict[str, list[float]] = {"plain": [], "fast": []}
        for number in range(arguments.rounds + 2):
            for name in runs if number % 2 else reversed(runs):
                took = runs[name]()
                if number >= 2:  # the first passes fill memory and caches
                    seconds[name].append(took)
    speed = {name: summarise(values) for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["plain"], seconds["fast"], strict=True)]
    return {
        "parts": parts,
        "fp32": in_float32,
        "bf16": in_bfloat16,
        "bf16_of_autocast": own,
        "milliseconds": {name: summary["median"] * 1e3 for name, summary in speed.items()},
        "speed": {"median": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)},
    }


def main() -> None:
    arguments = parse_arguments()
    import torch
    import transformers

    from headstart.models.speed import PARTS

    transformers.logging.set_verbosity_error()
    found = {}
    for family in arguments.families:
        found[family] = measure(family, arguments)
        print(f"{family}: {found[family]['speed']['median']:.2f} times as fast", flush=True)
    titles = [
        "family",
        *(name.replace("_", " ") for name in PARTS),
        "fp32",
        "bf16",
        "autocast",
        "ms plain",
        "ms",
        "speed",
    ]
    rows = []
    for family, result in found.items():
        sides = [result["parts"][name] for name in PARTS]
        marks = ["yes" if True in side.values() else "no" for side in sides]
        speed = result["speed"]
        numbers = [f"{result[name]:.0e}" for name in ("fp32", "bf16", "bf16_of_autocast")]
        times = [f"{result['milliseconds'][name]:.1f}" for name in ("plain", "fast")]
        rows.append(
            [family, *marks, *numbers, *times, f"{speed['median']:.2f} [{speed['lowest']:.2f}, {speed['highest']:.2f}]"]
        )
    reasons = []
    for family, result in found.items():
        for name in PARTS:
            sides = result["parts"][name]
            if True not in sides.values():
                reason = sides["fp32"] if sides["bf16"] == "products are in bfloat16" else sides["bf16"]
                reasons.append(f"{family}, {name}: {reason}")
    settings = {"rows": arguments.rows, "tokens": arguments.tokens, "threads": torch.get_num_threads()}
    told = "\n".join([draw_table(titles, rows), "", "off:", *reasons])
    tell(arguments, __file__, {**settings, "rounds": arguments.rounds}, {"families": found}, told)


if __name__ == "__main__":
    main()
