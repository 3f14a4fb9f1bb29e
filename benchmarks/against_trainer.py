"""Fine-tune the same model on the same rows with transformers' Trainer and with headstart, side by side in one run.

    python benchmarks/against_trainer.py                                    (the demo's rows)
    python benchmarks/against_trainer.py --train train.jsonl --validation validation.jsonl --columns text=s1,pair=s2

Same checkpoint, rows, optimizer, learning rate, schedule, epochs and batch size. The Trainer is set up as its tutorials
have it: `map` with truncation, `DataCollatorWithPadding` (dynamic padding), its defaults otherwise. The drop-in is that
script with headstart's Trainer; "fast" has headstart's batch order and precision. Each contestant runs in a process of
its own; rounds alternate, and their order turns from round to round, so that a machine that slows down slows all of
them. Samples a second cover the training steps alone (data loading included; loading the model, evaluating and saving
apart), memory is the highest resident size of the whole process.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

CONTESTANTS = {
    "Trainer": {"library": "transformers", "precision": "fp32"},
    "Trainer, bf16": {"library": "transformers", "precision": "bf16"},
    "drop-in": {"library": "drop-in", "precision": "fp32"},
    "drop-in, bf16": {"library": "drop-in", "precision": "bf16"},
    "drop-in, fast": {"library": "drop-in", "precision": "fast"},
    "headstart, fp32": {"library": "headstart", "precision": "fp32"},
    "headstart": {"library": "headstart", "precision": "auto"},
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", help="training source; default: the demo's rows")
    parser.add_argument("--validation", help="validation source, to score both on")
    parser.add_argument(
        "--columns", default="", help='columns, for example "text=sentence1,pair=sentence2,label=label"'
    )
    parser.add_argument("--limit", type=int, default=2000, help="training rows (default 2000; 0: all)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def read_rows(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Read both splits, with the training rows limited in the same way for all contestants."""
    from headstart.data.columns import find_columns
    from headstart.data.demo import demo_tables
    from headstart.data.sources import read_source

    if arguments.train is None:
        tables = demo_tables()
        tables = {"train": tables["train"], "validation": tables["validation"]}
    else:
        tables = {"train": read_source(arguments.train).splits["train"]}
        tables["validation"] = next(iter(read_source(arguments.validation, split_hint="validation").splits.values()))
    if arguments.limit:
        count = min(arguments.limit, len(tables["train"]))
        tables["train"] = tables["train"].shuffle(seed=0).select(range(count))
    requested = dict(part.split("=") for part in arguments.columns.split(",") if part)
    found = find_columns(tables["train"], requested)
    columns = {"text": found.text, "pair": found.pair, "label": str(found.label)}
    return tables, {role: name for role, name in columns.items() if name is not None}


def run_trainer(arguments: argparse.Namespace, library: str, precision: str, folder: str) -> dict[str, float]:
    import numpy as np
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        set_seed,
    )

    if library == "drop-in":
        from headstart import Trainer, TrainingArguments
    else:
        from transformers import Trainer, TrainingArguments

    from headstart.models.load import resolve_checkpoint

    tables, columns = read_rows(arguments)
    set_seed(arguments.seed)
    checkpoint = resolve_checkpoint(None)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    labels = sorted(set(tables["train"][columns["label"]]))
    names = [columns["text"], *([columns["pair"]] if "pair" in columns else [])]

    def encode(rows: dict[str, Any]) -> Any:
        encoded = tokenizer(*(rows[name] for name in names), truncation=True, max_length=512)
        encoded["labels"] = [labels.index(label) for label in rows[columns["label"]]]
        return encoded

    encoded = {
        name: table.map(encode, batched=True, remove_columns=table.column_names) for name, table in tables.items()
    }
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=len(labels))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            folder,
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            bf16=precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=arguments.seed,
            **({"headstart": "fast"} if precision == "fast" else {}),
        ),
        train_dataset=encoded["train"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    predicted = trainer.predict(encoded["validation"])
    accuracy = float(np.mean(np.argmax(predicted.predictions, axis=1) == predicted.label_ids))
    rows = len(encoded["train"]) * arguments.epochs
    tokens = sum(map(len, encoded["train"]["input_ids"])) * arguments.epochs
    return {"samples": rows / seconds, "tokens": tokens / seconds, "accuracy": accuracy}


def run_headstart(arguments: argparse.Namespace, precision: str, folder: str) -> dict[str, float]:
    from headstart.api import prepare
    from headstart.runlog import StepRecord

    tables, columns = read_rows(arguments)
    preparation = prepare(
        tables,
        values={
            **{f"data.columns.{role}": name for role, name in columns.items()},
            "output.run": f"{folder}/run",
            "train.epochs": arguments.epochs,
            "train.batch_size": arguments.batch_size,
            "train.precision": precision,
            "train.evaluate_every": "100%",
            "train.save_every": "100%",
            "train.seed": arguments.seed,
            "optim.learning_rate": arguments.learning_rate,
            "optim.weight_decay": 0.0,
            "optim.warmup": 0,
            "evaluate.baselines": False,
        },
    )
    steps = [record for record in preparation.train() if isinstance(record, StepRecord)]
    seconds = sum(step.seconds for step in steps)
    accuracy = preparation.finish().scores["validation"]["accuracy"]["value"]
    return {
        "samples": sum(step.rows for step in steps) / seconds,
        "tokens": sum(step.tokens for step in steps) / seconds,
        "accuracy": accuracy,
    }


def run_worker(arguments: argparse.Namespace) -> None:
    contestant = CONTESTANTS[arguments.worker]
    library, precision = contestant["library"], contestant["precision"]
    with tempfile.TemporaryDirectory() as folder:
        if library == "headstart":
            result = run_headstart(arguments, precision, folder)
        else:
            result = run_trainer(arguments, library, precision, folder)
    result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps(result))


def run_one(name: str, seed: int) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--worker", name, "--seed", str(seed)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in finished.stdout.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
            return result
    raise SystemExit(f"{name} failed:\n{finished.stdout}\n{finished.stderr}")


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        run_worker(arguments)
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.only}
    for round_number in range(arguments.rounds):
        order = arguments.only if round_number % 2 == 0 else arguments.only[::-1]
        for name in order:
            results[name].append(run_one(name, round_number))
            last = results[name][-1]
            print(f"round {round_number + 1}: {name:16} {last['samples']:7.1f} samples/s", flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "headstart"))
    print(f"\n{platform.processor() or platform.machine()}, {packages}; batch size {arguments.batch_size}, "
          f"{arguments.epochs} epoch(s), median of {arguments.rounds} rounds [lowest, highest]\n")  # fmt: skip
    print(f"{'':16} {'samples/s':>22} {'ratio':>6} {'tokens/s':>9} {'memory MiB':>11} {'accuracy':>22}")
    first = statistics.median(result["samples"] for result in results[arguments.only[0]])
    for name, rounds in results.items():
        speeds = [result["samples"] for result in rounds]
        accuracies = [result["accuracy"] for result in rounds]
        median = statistics.median(speeds)
        print(
            f"{name:16} {f'{median:.1f} [{min(speeds):.1f}, {max(speeds):.1f}]':>22} {median / first:>6.2f}"
            f" {statistics.median(result['tokens'] for result in rounds):>9.0f}"
            f" {statistics.median(result['memory'] for result in rounds):>11.0f}"
            f" {f'{statistics.median(accuracies):.3f} [{min(accuracies):.3f}, {max(accuracies):.3f}]':>22}"
        )


if __name__ == "__main__":
    main()
