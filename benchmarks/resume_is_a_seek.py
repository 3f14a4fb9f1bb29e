"""Resume a planned run of a million steps near its start and near its end, side by side: both must take as long.

    python benchmarks/resume_is_a_seek.py                        (the demo's rows and the embedded model)
    python benchmarks/resume_is_a_seek.py --step 10000000 --rounds 9

A run of the demo's rows is trained for ten steps and stopped. Its copy becomes the same run much later: the checkpoint
gets the number of the later step and its place in the batch plan, and the log gets a line for each step up to it. Both
are resumed in turn, each time in a process of its own, once with batches of rows and once with a budget of tokens, of
which every epoch has another number of steps. Measured is the time from `prepare` to the record of the first step:
rows, model, checkpoint and log are read, and one update is made. The process does so twice and the second time counts,
because importing the libraries takes longer than all of it. A run is left without saving: it is the same in each round.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

NEAR = 10
BATCHES = {
    "train.batch_size = 8": {"train.batch_size": 8},
    "train.tokens_per_batch = 512": {"train.tokens_per_batch": 512, "data.max_length": 128},
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, default=1_000_000, help="the later step (default 1,000,000)")
    parser.add_argument("--limit", type=int, default=2000, help="rows (default 2000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="seconds, to see that it runs; the numbers mean nothing")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.step, arguments.limit, arguments.rounds = 1000, 200, 1
        del BATCHES["train.batch_size = 8"]
    return arguments


def write_rows(limit: int, path: Path) -> Path:
    """Write the demo's rows to a file: a resumed run reads its rows again."""
    from headstart.data.demo import demo_tables

    table = demo_tables()["train"]
    rows = table.select(range(min(limit, len(table))))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def train_a_few_steps(rows: Path, batches: dict[str, Any], num_steps: int, run_dir: Path) -> None:
    from headstart.api import prepare
    from headstart.records import StepRecord

    preparation = prepare(
        rows,
        values={
            **batches,
            "output.run": str(run_dir),
            "train.max_steps": num_steps,
            "train.evaluate_every": "100%",
            "train.save_every": "100%",
            "evaluate.baselines": False,
        },
    )
    for record in preparation.train():
        if isinstance(record, StepRecord) and record.step == NEAR:
            preparation.requests.add("stop")


def move_to_step(run_dir: Path, step: int) -> None:
    """Let the checkpoint of a run be one of a much later step, with the log that belongs to it."""
    from headstart.recipe import read_recipe_file
    from headstart.training.checkpoint import load_checkpoint, save_checkpoint

    recipe, derived = read_recipe_file(run_dir / "recipe.yaml")
    old = load_checkpoint(run_dir / "checkpoints" / f"step-{NEAR:06d}")
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    line = next(line for line in lines if line["record"] == "step")
    with (run_dir / "log.jsonl").open("w", encoding="utf-8") as file:
        for number in range(1, step + 1):
            file.write(json.dumps({**line, "step": number}) + "\n")
        length = file.tell()
    epoch, index = divmod(step, derived["steps_in_epoch"])
    if recipe["train"]["batch_size"] is None:
        index = NEAR  # with a token budget, an epoch may begin at any step that leaves one for each before it
    state = {
        **old.state,
        "log_length": length,
        "train": {**old.state["train"], "step": step},
        "place": {"epoch": epoch, "first_step": step - index},
    }
    shutil.rmtree(old.path)
    save_checkpoint(run_dir, step, model=old.model, optimizer=old.optimizer, state=state)


def run_worker(run_dir: str) -> None:
    """Resume a run up to the record of its first step and leave it, twice."""
    from headstart.api import prepare
    from headstart.records import StepRecord

    for _ in range(2):
        started = time.perf_counter()
        records = prepare(values={"output.run": run_dir}, resume=True).train()
        record = next(record for record in records if isinstance(record, StepRecord))
        seconds = time.perf_counter() - started
        records.close()
    print("RESULT " + json.dumps({"seconds": seconds, "step": record.step}))


def resume(run_dir: Path, step: int) -> float:
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(run_dir)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in finished.stdout.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
            if result["step"] != step + 1:
                raise SystemExit(f"{run_dir} went on with step {result['step']}, not {step + 1}")
            return result["seconds"]
    raise SystemExit(f"{run_dir} could not be resumed:\n{finished.stdout}\n{finished.stderr}")


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        run_worker(arguments.worker)
        return
    seconds: dict[str, dict[int, list[float]]] = {name: {NEAR: [], arguments.step: []} for name in BATCHES}
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(arguments.limit, Path(folder) / "rows.jsonl")
        for number, batches in enumerate(BATCHES.values()):
            train_a_few_steps(rows, batches, arguments.step + 10, Path(folder) / f"{number}-{NEAR}")
            far = shutil.copytree(Path(folder) / f"{number}-{NEAR}", Path(folder) / f"{number}-{arguments.step}")
            move_to_step(far, arguments.step)
        for round_number in range(arguments.rounds):
            for number, (name, measured) in enumerate(seconds.items()):
                for step in (NEAR, arguments.step)[:: 1 if round_number % 2 == 0 else -1]:
                    measured[step].append(resume(Path(folder) / f"{number}-{step}", step))
                    print(f"round {round_number + 1}: {name}, step {step:,}: {measured[step][-1]:.2f} s", flush=True)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "headstart"))
    print(f"\n{platform.processor() or platform.machine()}, {packages}; {arguments.limit} rows, seconds from prepare "
          f"to the first step, median of {arguments.rounds} rounds [lowest, highest]\n")  # fmt: skip
    print(f"{'':30} {f'after step {NEAR}':>22} {f'after step {arguments.step:,}':>24} {'ratio':>6}")
    for name, measured in seconds.items():
        near, far = (statistics.median(measured[step]) for step in (NEAR, arguments.step))
        texts = [f"{statistics.median(times):.2f} [{min(times):.2f}, {max(times):.2f}]" for times in measured.values()]
        print(f"{name:30} {texts[0]:>22} {texts[1]:>24} {far / near:>6.2f}")


if __name__ == "__main__":
    main()
