"""Train the same job by each of the six doors, and see whether they agree.

    python benchmarks/six_doors.py
    python benchmarks/six_doors.py --rows FOLDER --seeds 42 0 1

Runs the scripts of examples/ as they are, but for the seed: the command, finetune(), the drop-in, a plain PyTorch
loop, a loop of Accelerate, and Lightning. All train the embedded model for three epochs in batches of 32 rows in
random order, with a learning rate of 2e-4. Seconds are those of the whole script: starting, tokenising, training,
scoring, saving.

FOLDER has train and validation as JSON lines with the columns of MRPC: sentence1, sentence2, label. Without it the
demo's rows are taken, each review with the next one, and the label says whether theirs are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import alternate, draw_table, fill_by_form, make_parser, spread, summarise, tell

EXAMPLES = Path(__file__).parents[1] / "examples"
DOORS = {
    "finetune()": "mrpc_finetune.py",
    "command": "mrpc_command.sh",
    "drop-in": "mrpc_drop_in.py",
    "plain PyTorch loop": "plain_loop.py",
    "Accelerate": "accelerate_loop.py",
    "Lightning": "lightning_loop.py",
}
_PRINTED = re.compile(r"accuracy'?\W+([01]\.\d+)")


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", metavar="FOLDER", type=Path)
    parser.add_argument("--limit", type=int, help="rows of each split (default all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="default 42 0 1")
    parser.add_argument("--only", nargs="+", choices=DOORS, metavar="NAME", help="some of the doors")
    arguments = parser.parse_args()
    fill_by_form(
        arguments, seeds=([42, 0, 1], [42], [42]), limit=(0, 320, 32), only=(list(DOORS), list(DOORS), list(DOORS)[::3])
    )
    return arguments


def read_tables(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Read both splits, with the columns of MRPC."""
    from headstart.data.demo import demo_tables
    from headstart.data.sources import read_source

    if arguments.rows is not None:
        splits = read_source(arguments.rows).splits
        tables = {name: splits[name].to_list() for name in ("train", "validation")}
    else:
        tables = {name: _pairs(demo_tables()[name].to_list()) for name in ("train", "validation")}
    return {name: rows[: arguments.limit or None] for name, rows in tables.items()}


def _pairs(reviews: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give each review with the next: 1 where both are of one label."""
    following = [*reviews[1:], reviews[0]]
    return [
        {"sentence1": one["text"], "sentence2": two["text"], "label": int(one["label"] == two["label"])}
        for one, two in zip(reviews, following, strict=True)
    ]


def make_folder(folder: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Put rows and model where the examples look for them."""
    from headstart.models.load import resolve_checkpoint

    (folder / "glue" / "mrpc").mkdir(parents=True)
    for name, rows in tables.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "glue" / "mrpc" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    shutil.copytree(resolve_checkpoint(None), folder / "bert-base-uncased")


def train(door: str, seed: int, folder: Path) -> dict[str, float]:
    """Run the example of a door with a seed, in the folder.

    Returns:
        Accuracy on the validation rows, and seconds.

    Raises:
        SystemExit: the example failed; with what it printed.
    """
    text = (EXAMPLES / DOORS[door]).read_text(encoding="utf-8")
    text, num_replaced = re.subn(r"(?<=[ -])42(?=[,}])", str(seed), text)
    assert num_replaced == 1, f"{DOORS[door]} names its seed {num_replaced} times"
    script = folder / DOORS[door]
    script.write_text(text, encoding="utf-8")
    for left in ("runs", "checkpoints", "logs"):
        shutil.rmtree(folder / left, ignore_errors=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable if script.suffix == ".py" else "sh", script.name],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])},
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{door} failed:\n{done.stdout}\n{done.stderr}")
    saved = list(folder.glob("runs/*/scores.json"))
    if saved:
        accuracy = json.loads(saved[0].read_text(encoding="utf-8"))["validation"]["accuracy"]["value"]
    else:
        accuracy = float(_PRINTED.findall(done.stdout)[-1])
    return {"accuracy": accuracy, "seconds": seconds}


def interval(accuracy: float, num_rows: int) -> list[float]:
    """Give the 95 % interval of an accuracy, after Wilson.

    Example:
        >>> [round(end, 3) for end in interval(0.75, 408)]
        [0.706, 0.79]
    """
    from scipy.stats import binomtest

    found = binomtest(round(accuracy * num_rows), num_rows).proportion_ci(method="wilson")
    return [float(found.low), float(found.high)]


def tabulate(result: Mapping[str, Any]) -> str:
    """Give a line a door, and how many pairs of scores lie in each other's intervals."""
    seeds, num_rows = result["settings"]["seeds"], result["settings"]["rows scored"]
    columns, lines = [], []
    for row in result["rows"]:
        values = row["accuracy"]["values"]
        scores = [*values, sum(values) / len(values)]
        columns.append([(score, *interval(score, num_rows)) for score in scores])
        cells = [f"{score:.3f} [{low:.3f}, {high:.3f}]" for score, low, high in columns[-1]]
        lines.append([row["name"], *cells, spread(row["seconds"], 0)])
    inside = [
        [
            low <= other[place][0] <= high
            for own in columns
            for other in columns
            if own is not other
            for _, low, high in [own[place]]
        ]
        for place in range(len(seeds) + 1)
    ]
    singles, means = [is_in for seed in inside[:-1] for is_in in seed], inside[-1]
    table = draw_table(["", *(f"seed {seed}" for seed in seeds), "mean", "seconds"], lines)
    return (
        f"{table}\n\nIn the interval of another door lie {sum(singles)} of {len(singles)} scores of the same seed, and "
        f"{sum(means)} of {len(means)} means."
    )


def main() -> None:
    arguments = parse_arguments()
    tables = read_tables(arguments)
    num_rows = len(tables["validation"])
    found: dict[str, list[dict[str, float]]] = {door: [] for door in arguments.only}
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), tables)
        for number, door in alternate(arguments.only, len(arguments.seeds)):
            found[door].append(train(door, arguments.seeds[number], Path(folder)))
            last = found[door][-1]
            print(
                f"seed {arguments.seeds[number]}: {door:18} {last['accuracy']:.3f} in {last['seconds']:.0f} s",
                flush=True,
            )
    rows = [
        {
            "name": door,
            "accuracy": summarise(result["accuracy"] for result in results),
            "seconds": summarise(result["seconds"] for result in results),
        }
        for door, results in found.items()
    ]
    source = arguments.rows.resolve().name if arguments.rows is not None else "demo"
    settings = {
        "rows": f"{source}, {len(tables['train']):,}",
        "rows scored": num_rows,
        "seeds": arguments.seeds,
    }
    tell(arguments, __file__, settings, {"rows": rows}, tabulate({"settings": settings, "rows": rows}))


if __name__ == "__main__":
    main()
