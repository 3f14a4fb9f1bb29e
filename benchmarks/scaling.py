"""What a thousand times as many rows cost: reading, tokenising, planning, a step, memory.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --rows 1000 10000000

Rows are made up from a list of words, with a seed: a text about as long as MRPC's pairs, and one of two labels, in a
CSV file. Each number of rows is measured in a process of its own, each time with other rows, so that no tokens lie in
the cache: all that a training does before its first step, of it the reading (checking and cutting off the validation
rows included) and the tokenising, which grow with the rows; the plan of an epoch; and the first steps, after which the
run is left. Memory is the highest resident size of that process, and its own share: pages of mapped files (rows
and tokens) count in the first, but the system takes them back when it needs room. The last column does not grow from
line to line where cost is linear.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from measuring import (
    alternate,
    draw_table,
    fill_by_form,
    give_result,
    make_parser,
    peak_memory_mib,
    run_worker,
    spread,
    summarise,
    tell,
)

SYLLABLES = ("ba", "co", "de", "fi", "gu", "la", "me", "no", "pi", "ru", "sa", "tu", "vo", "zi")
STAGES = ("read_data", "tokenise_splits")
NUM_WORDS = 5_000
MEAN_WORDS, SPREAD_WORDS = 20, 5
"""A made-up word has two or three pieces: about 53 tokens a row."""


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", help="default 1000 10000 100000 1000000")
    parser.add_argument("--steps", type=int, help="how many are timed (default 30)")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    fill_by_form(
        arguments,
        rows=([10**3, 10**4, 10**5, 10**6], [10**3, 10**4, 10**5], [100, 200]),
        steps=(30, 5, 2),
        rounds=(3, 1, 1),
    )
    return arguments


def write_rows(count: int, path: Path, seed: int = 0) -> None:
    """Write made-up rows as CSV, a line at a time."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(2, 3))) for _ in range(NUM_WORDS)]
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for row in range(count):
            num_words = max(4, round(draw.gauss(MEAN_WORDS, SPREAD_WORDS)))
            file.write(f"{' '.join(draw.choices(words, k=num_words))} {row},{'good' if row % 2 else 'bad'}\n")


class OwnMemory(threading.Thread):
    """Watches the resident memory of this process that is no page of a file."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mib = 0.0

    def run(self) -> None:
        """Look at it twenty times a second."""
        page = os.sysconf("SC_PAGE_SIZE")
        while True:
            _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
            self.peak_mib = max(self.peak_mib, (int(resident) - int(shared)) * page / 2**20)
            time.sleep(0.05)


def run_turn(arguments: argparse.Namespace) -> dict[str, float]:
    """Prepare a training and make its first steps."""
    import headstart.preparation
    from headstart.api import prepare
    from headstart.data.batches import plan_batches
    from headstart.runlog import StepRecord

    stages: dict[str, float] = {}

    def timed(name: str) -> Callable[..., Any]:
        function = getattr(headstart.preparation, name)

        def work(*given: Any, **more: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*given, **more)
            finally:
                stages[name] = time.perf_counter() - started

        return work

    watch = OwnMemory()
    watch.start()
    folder = Path(arguments.worker)
    started = time.perf_counter()
    with mock.patch.multiple(headstart.preparation, **{name: timed(name) for name in STAGES}):
        preparation = prepare(
            folder / "rows.csv",
            settings=["train.evaluate_every=null", f"train.max_steps={arguments.steps}", "train.best=null"],
            values={"output.run": str(folder / "run"), "evaluate.baselines": False, "train.save_every": "100%"},
        )
    prepared = time.perf_counter() - started
    lengths = preparation._plan.batches.lengths
    started = time.perf_counter()
    plan_batches(lengths, batch_size=32, seed=0, epoch=1)
    planned = time.perf_counter() - started
    steps = []
    records = preparation.train()
    for record in records:
        if isinstance(record, StepRecord):
            steps.append(record.seconds)
            if len(steps) == arguments.steps:
                break
    records.close()
    timed = steps[len(steps) // 2 :]
    return {
        "prepare_seconds": prepared,
        "read_seconds": stages["read_data"],
        "tokenise_seconds": stages["tokenise_splits"],
        "plan_seconds": planned,
        "first_step_seconds": steps[0],
        "step_ms": 1000 * sum(timed) / len(timed),
        "memory_mib": peak_memory_mib(),
        "own_memory_mib": watch.peak_mib,
        "tokens_a_row": float(lengths.mean()),
    }


def measure_one(count: int, seed: int, cache: str) -> dict[str, float]:
    """Measure that many rows, those of this seed."""
    with tempfile.TemporaryDirectory() as folder:
        write_rows(count, Path(folder) / "rows.csv", seed)
        return run_worker(__file__, "--worker", folder, environment={"HEADSTART_CACHE": cache})


def measure(arguments: argparse.Namespace) -> dict[int, list[dict[str, float]]]:
    """Measure each number of rows once a round, after a turn that compiles the kernels."""
    results: dict[int, list[dict[str, float]]] = {count: [] for count in arguments.rows}
    with tempfile.TemporaryDirectory() as empty:
        # What is tiny need not compile anew.
        cache = os.environ.get("HEADSTART_CACHE", empty) if arguments.tiny else empty
        if not arguments.tiny:
            measure_one(100, arguments.rounds, cache)
        for number, name in alternate([str(count) for count in arguments.rows], arguments.rounds):
            results[int(name)].append(measure_one(int(name), number, cache))
            last = results[int(name)][-1]
            told = f"{last['prepare_seconds']:.1f} s before the first step, {last['memory_mib']:,.0f} MiB"
            print(f"round {number + 1}: {int(name):,} rows: {told}", flush=True)
    return results


def tabulate(rows: list[dict[str, Any]]) -> str:
    """Give a line for each number of rows."""
    titles = ["rows", "before the first step, s", "of it reading", "of it tokenising", "plan of an epoch, ms"]
    titles += ["a step, ms", "peak memory, MiB", "its own, MiB", "reading and tokenising a million rows, s"]
    cells = [
        [
            f"{row['rows']:,}",
            spread(row["prepare_seconds"], 2),
            spread(row["read_seconds"], 2),
            spread(row["tokenise_seconds"], 2),
            f"{1000 * row['plan_seconds']['median']:,.1f}",
            spread(row["step_ms"]),
            spread(row["memory_mib"], 0),
            spread(row["own_memory_mib"], 0),
            f"{(row['read_seconds']['median'] + row['tokenise_seconds']['median']) / row['rows'] * 1e6:,.1f}",
        ]
        for row in rows
    ]
    return draw_table(titles, cells)


def main() -> None:
    arguments = parse_arguments()
    if arguments.worker:
        give_result(run_turn(arguments))
        return
    results = measure(arguments)
    rows: list[dict[str, Any]] = []
    for count, rounds in results.items():
        keys = [key for key in rounds[0] if key != "tokens_a_row"]
        rows.append({"rows": count, **{key: summarise(one[key] for one in rounds) for key in keys}})
    tokens = next(iter(results.values()))[0]["tokens_a_row"]
    settings = {"tokens a row": round(tokens, 1), "batch size": 32, "rounds": arguments.rounds}
    tell(arguments, __file__, settings, {"rows": rows}, tabulate(rows))


if __name__ == "__main__":
    main()
