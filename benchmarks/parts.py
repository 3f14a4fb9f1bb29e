"""What each part of the fast path gains: alone, and missing from the whole, beside a plain PyTorch loop.

    python benchmarks/parts.py
    python benchmarks/parts.py --model-shape bert-base
    python benchmarks/parts.py --length 32 128 512

A step is forward pass, backward pass, clipping and update, in bfloat16, of made-up rows as long as MRPC's pairs. All
settings train the same rows twice, and the second time counts; they take turns in one process, each with a fresh copy
of the model, and their order turns from round to round. "PyTorch" is a loop as one writes it: autocast, fused AdamW,
rows in random order; "no parts" is headstart's loop with everything switched off (its dropout is keyed by row). "alone"
is to be read beside "no parts", "all but it" beside "the whole".

A part that needs another is measured with it, and left out with those that need it: bf16_weights, packed_weights,
joined_qkv and lazy_rows need optimizer_pass; packed_weights and joined_qkv need bf16_weights; whole_layers needs
joined_qkv, attention, norms and gelu; padding_free needs whole_layers and first_token, and where it is left out, rows
of like length share a batch. Such batches alone, and memory that is kept while computing, are parts of the training and
not of the model, and stand in the same table. What memory costs depends on what the process did before, so kept_memory,
and what stands beside it, are measured in processes of their own.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from measuring import (
    alternate,
    draw_table,
    fill_by_form,
    give_result,
    make_parser,
    run_worker,
    spread,
    summarise,
    tell,
)

if TYPE_CHECKING:
    from torch import nn
    from training_steps import Rows, Setting

_OF_A_LAYER = ("bf16_weights", "joined_qkv", "attention", "norms", "gelu", "optimizer_pass")
NEEDS = {
    "bf16_weights": ("optimizer_pass",),
    "packed_weights": ("bf16_weights", "optimizer_pass"),
    "joined_qkv": ("bf16_weights", "optimizer_pass"),
    "lazy_rows": ("optimizer_pass",),
    "whole_layers": _OF_A_LAYER,
    "padding_free": (*_OF_A_LAYER, "whole_layers", "first_token"),
}
WARM_UP_BATCHES = 3
REFERENCES = {"alone": "no parts", "all but": "the whole"}


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--model-shape", choices=["embedded", "bert-base", "tiny"], default=None)
    parser.add_argument("--batch-size", type=int, nargs="+", help="default 8 32")
    parser.add_argument("--length", type=int, nargs="+", help="tokens of each row; default: as long as MRPC's pairs")
    parser.add_argument("--batches", type=int, help="timed in a turn (default: 192 rows' worth, at least 12)")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of the parts, as the table names them")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    fill_by_form(
        arguments,
        rounds=(5, 1, 1),
        batches=(None, 3, 1),
        batch_size=([8, 32], [32], [4]),
        model_shape=("embedded", "embedded", "tiny"),
        only=(None, None, ["gelu", "lazy_rows", "length_order", "kept_memory"]),
    )
    return arguments


def list_settings(arguments: argparse.Namespace, batch_size: int, mean_length: float) -> dict[str, Setting]:
    """Give what is measured, by name: "alone: PART", "all but: PART", and the whole forms."""
    from training_steps import NO_PARTS, PLAIN, fast_setting

    from headstart.recipe_sections import FAST_PARTS

    of_bfloat16 = ("bf16_weights", "packed_weights", "joined_qkv", "whole_layers", "padding_free")
    other = {"bf16": ("onednn_float32",), "fp32": of_bfloat16}[arguments.precision]
    parts = [name for name in FAST_PARTS if name not in other]
    whole = fast_setting(parts)
    settings = {"PyTorch": PLAIN, "no parts": NO_PARTS}
    names = [*parts, "length_order", "kept_memory"]
    for name in arguments.only or []:
        if name not in names:
            raise SystemExit(f"--only {name}: with {arguments.precision} there are {', '.join(names)}")
    chosen = [name for name in names if name in (arguments.only or [name])]
    for name in chosen if not arguments.short else []:
        if name in parts:
            settings[f"alone: {name}"] = replace(NO_PARTS, parts=frozenset([name, *NEEDS.get(name, ())]))
    if not arguments.short and "length_order" in chosen:
        settings["alone: length_order"] = replace(NO_PARTS, order="length")
    if not arguments.short and "kept_memory" in chosen:
        settings["alone: kept_memory"] = replace(NO_PARTS, keeps_memory=True)
    settings["the whole"] = whole
    for name in chosen:
        if name in parts:
            left = whole.parts - {name, *(other for other, needs in NEEDS.items() if name in needs)}
            settings[f"all but: {name}"] = fast_setting(left)
    if "kept_memory" in chosen:
        settings["all but: kept_memory"] = replace(whole, keeps_memory=False)
    settings["the whole, a budget of tokens"] = replace(
        whole, order="length", tokens_per_batch=round(batch_size * mean_length)
    )
    settings["the whole, one thread"] = replace(whole, threads=1)
    settings["PyTorch, one thread"] = replace(PLAIN, threads=1)
    return {name: replace(setting, precision=arguments.precision) for name, setting in settings.items()}


def measure(arguments: argparse.Namespace, batch_size: int, length: int | None) -> list[dict[str, Any]]:
    """Measure all settings at one batch size and length."""
    from training_steps import open_training, seconds_of

    model, rows, settings = _prepare(arguments, batch_size, length)
    rates: dict[str, list[float]] = {name: [] for name in settings}
    beside: dict[str, list[float]] = {}
    for name in ("PyTorch", "the whole"):  # what a process does once, such as reading kernels from their cache
        with open_training(model, rows, settings[name]) as training:
            seconds_of(training, rows.batches(batch_size, settings[name])[:WARM_UP_BATCHES])
    for number, name in alternate(list(settings), arguments.rounds):
        if name.endswith(": kept_memory"):
            of_a_process = [
                run_worker(__file__, "--worker", one, "--batch-size", str(batch_size), *_length(length))
                for one in (name, REFERENCES[name.split(":")[0]])
            ]
            rate, other = (found["samples_per_second"] for found in of_a_process)
            beside.setdefault(name, []).append(other)
        else:
            rate = _rate(model, rows, settings[name], batch_size)
        rates[name].append(rate)
        print(f"round {number + 1}: batch {batch_size}: {name:34} {rate:8.1f} samples/s", flush=True)
    found = []
    for name, values in rates.items():
        reference = REFERENCES.get(name.split(":")[0], "PyTorch")
        summary = summarise(values, beside.get(name, rates[reference]))
        found.append({"name": name, "samples_per_second": summary, "beside": reference})
    return found


def _prepare(
    arguments: argparse.Namespace, batch_size: int, length: int | None
) -> tuple[nn.Module, Rows, dict[str, Setting]]:
    from training_steps import make_model, make_rows

    model = make_model(arguments.model_shape)
    num_batches = arguments.batches or max(12, 192 // batch_size)
    rows = make_rows(num_batches * batch_size, model.config.vocab_size, length=length)
    return model, rows, list_settings(arguments, batch_size, float(rows.lengths.mean()))


def _rate(model: nn.Module, rows: Rows, setting: Setting, batch_size: int) -> float:
    from training_steps import open_training, seconds_of

    with open_training(model, rows, setting) as training:
        batches = rows.batches(batch_size, setting)
        # First all of them, the longest before the others: memory is laid out in the first steps of a training.
        seconds_of(training, sorted(batches, key=lambda batch: -rows.lengths[batch].max()))
        return len(rows.lengths) / seconds_of(training, batches)


def _length(length: int | None) -> list[str]:
    return [] if length is None else ["--length", str(length)]


def tabulate(rows: list[dict[str, Any]]) -> str:
    """Give the table: whole forms first, then a line a part."""
    by_name = {row["name"]: row for row in rows}

    def cells(name: str) -> list[str]:
        row = by_name.get(name)
        if row is None:
            return ["", ""]
        return [spread(row["samples_per_second"]), spread(row["samples_per_second"]["ratio"], 2)]

    whole = [[name, *cells(name)] for name in by_name if ":" not in name]
    parts = dict.fromkeys(name.split(": ")[1] for name in by_name if ":" in name)
    table = draw_table(["", "samples/s", "ratio to PyTorch"], whole)
    titles = ["part", "alone, samples/s", "ratio to no parts", "all but it, samples/s", "ratio to the whole"]
    return f"{table}\n\n{draw_table(titles, ([p, *cells(f'alone: {p}'), *cells(f'all but: {p}')] for p in parts))}"


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        length = arguments.length[0] if arguments.length else None
        model, rows, settings = _prepare(arguments, *arguments.batch_size, length)
        rate = _rate(model, rows, settings[arguments.worker], *arguments.batch_size)
        give_result({"samples_per_second": rate})
        return
    tables, told = [], []
    for length in arguments.length or [None]:
        for batch_size in arguments.batch_size:
            rows = measure(arguments, batch_size, length)
            tables.append({"batch_size": batch_size, "length": length, "rows": rows})
            told.append(f"{batch_size} rows, {length or 'about 53'} tokens each\n\n{tabulate(rows)}")
    settings = {
        "model": arguments.model_shape,
        "precision": arguments.precision,
        "rounds": arguments.rounds,
    }
    tell(arguments, __file__, settings, {"tables": tables}, "\n\n".join(told))


if __name__ == "__main__":
    main()
