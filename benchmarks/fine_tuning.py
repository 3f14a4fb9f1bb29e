"""The job that the contestants of several benchmarks do: fine-tune the embedded model on the same rows, and score it.

No benchmark itself. Rows are read and drawn in the same way for all; the first steps of each training are a warm-up
that is not timed. headstart's own part stands here, because every comparison has it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from measuring import peak_memory_mib

WARM_UP_STEPS = 5
MAX_LENGTH = 512
AS_ITS_OWN_DEFAULTS: dict[str, Any] = {}
"""Of headstart: whatever the recipe says where nothing is set."""


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which rows are trained on, and for how long."""
    parser.add_argument("--train", metavar="SOURCE", help="training source; default: the demo's rows")
    parser.add_argument("--validation", metavar="SOURCE", help="validation source, to score all on")
    parser.add_argument("--columns", default="", help='such as "text=sentence1,pair=sentence2,label=label"')
    parser.add_argument("--limit", type=int, help="training rows (default 2000; 0: all)")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8, help="where tutorials have 8 (default 8)")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="at that batch size (default 5e-5)")
    rounds = parser.add_mutually_exclusive_group()
    rounds.add_argument("--rounds", type=int, help="how often each trains, with the round's number as seed (default 5)")
    rounds.add_argument("--seeds", type=int, dest="rounds", help="the same")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)


def check_job(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse a training source without rows to score on."""
    if (arguments.train is None) != (arguments.validation is None):
        parser.error("--train and --validation go together")


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
    if arguments.tiny or arguments.short:
        tables["validation"] = tables["validation"].select(range(min(200, len(tables["validation"]))))
    requested = dict(part.split("=") for part in arguments.columns.split(",") if part)
    found = find_columns(tables["train"], requested)
    columns = {"text": found.text, "pair": found.pair, "label": str(found.label)}
    return tables, {role: name for role, name in columns.items() if name is not None}


def tokenise(
    tables: Mapping[str, Any], columns: Mapping[str, str], tokenizer: Any, *, pad_to: int | None = None
) -> tuple[dict[str, Any], int]:
    """Tokenise with `map`, as tutorials do.

    Args:
        tables: split to table.
        columns: role to name.
        tokenizer: that of the checkpoint.
        pad_to: pads and cuts every row to that many tokens; None pads the batches later.

    Returns:
        Split to table of token ids, and the number of labels.
    """
    labels = sorted(set(tables["train"][columns["label"]]))
    names = [columns["text"], *([columns["pair"]] if "pair" in columns else [])]
    padding = {"padding": "max_length", "max_length": pad_to} if pad_to else {"max_length": MAX_LENGTH}

    def encode(rows: dict[str, Any]) -> Any:
        encoded = tokenizer(*(rows[name] for name in names), truncation=True, **padding)
        encoded["labels"] = [labels.index(label) for label in rows[columns["label"]]]
        return encoded

    encoded = {
        name: table.map(encode, batched=True, remove_columns=table.column_names) for name, table in tables.items()
    }
    return encoded, len(labels)


class StepTimes:
    """Notes when each step of a training ends, to tell how long those after the warm-up took."""

    def __init__(self) -> None:
        self._ends: list[float] = []

    def step_ends(self) -> None:
        """Take the time."""
        self._ends.append(time.perf_counter())

    def rates(self, num_rows: int, num_tokens: int, batch_size: int) -> dict[str, float]:
        """Give samples and tokens a second over the steps after the warm-up.

        Args:
            num_rows: of the whole training, each counted as often as it is trained on.
            num_tokens: of these rows, without padding.
            batch_size: rows of a step; the last one of an epoch may have fewer.
        """
        num_warm = warm_up_steps(len(self._ends))
        seconds = self._ends[-1] - self._ends[num_warm - 1]
        samples = (num_rows - num_warm * batch_size) / seconds
        return {"samples": samples, "tokens": samples * num_tokens / num_rows, "memory": peak_memory_mib()}


def warm_up_steps(num_steps: int) -> int:
    """Give how many steps are not timed."""
    return max(1, min(WARM_UP_STEPS, num_steps // 2))


def as_tutorials(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give the settings by which headstart trains as the tutorials of the others do."""
    return {
        "train.batch_size": arguments.batch_size,
        "optim.learning_rate": arguments.learning_rate,
        "optim.weight_decay": 0.0,
        "optim.warmup": 0,
    }


def train_with_headstart(arguments: argparse.Namespace, values: Mapping[str, Any], folder: str) -> dict[str, float]:
    """Fine-tune with `headstart.api.prepare`, which is what the command does.

    Returns:
        Samples and tokens a second, peak memory in MiB at the end of the training, and the score.
    """
    from headstart.api import prepare
    from headstart.runlog import StepRecord

    tables, columns = read_rows(arguments)
    preparation = prepare(
        tables,
        values={
            **{f"data.columns.{role}": name for role, name in columns.items()},
            "output.run": f"{folder}/run",
            "train.epochs": arguments.epochs,
            "train.evaluate_every": "100%",
            "train.save_every": "100%",
            "train.seed": arguments.seed,
            "evaluate.baselines": False,
            **values,
        },
    )
    steps = [record for record in preparation.train() if isinstance(record, StepRecord)]
    memory = peak_memory_mib()
    timed = steps[warm_up_steps(len(steps)) :]
    tokens = sum(step.tokens for step in timed) / sum(step.seconds for step in timed)
    # Batches of like length: those that are timed may be of shorter rows than the rest.
    tokens_a_row = sum(step.tokens for step in steps) / sum(step.rows for step in steps)
    return {
        "samples": tokens / tokens_a_row,
        "tokens": tokens,
        "memory": memory,
        "accuracy": preparation.finish().scores["validation"]["accuracy"]["value"],
    }


def describe_job(arguments: argparse.Namespace) -> dict[str, Any]:
    """Give what the numbers hold for."""
    from pathlib import Path

    source = f"{Path(arguments.train).parent.name}/{Path(arguments.train).name}" if arguments.train else "demo"
    return {
        "rows": f"{source}, {arguments.limit or 'all'}",
        "epochs": arguments.epochs,
        "batch size": arguments.batch_size,
        "rounds": arguments.rounds,
    }


def tabulate(results: Mapping[str, Sequence[Mapping[str, float]]]) -> tuple[list[dict[str, Any]], str]:
    """Give the rows of the result file, and the table; ratios are to the first contestant."""
    from measuring import draw_table, spread, summarise

    first = [result["samples"] for result in next(iter(results.values()))]
    rows = []
    for name, rounds in results.items():
        rows.append(
            {
                "name": name,
                "samples_per_second": summarise([result["samples"] for result in rounds], first),
                "tokens_per_second": summarise(result["tokens"] for result in rounds),
                "memory_mib": summarise(result["memory"] for result in rounds),
                "accuracy": summarise(result["accuracy"] for result in rounds),
            }
        )
    titles = ["", "samples/s", "ratio", "tokens/s", "peak memory, MiB", "accuracy"]
    cells = [
        [
            row["name"],
            spread(row["samples_per_second"]),
            spread(row["samples_per_second"]["ratio"], 2),
            f"{row['tokens_per_second']['median']:,.0f}",
            f"{row['memory_mib']['median']:,.0f}",
            spread(row["accuracy"], 3),
        ]
        for row in rows
    ]
    return rows, draw_table(titles, cells)
