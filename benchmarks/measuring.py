"""What the benchmarks share: forms of a run, a process a turn, medians with their spread, the table, the result file.

No benchmark itself. A claim's script says what its contestants do; this says how they are timed and told:

    form (full, short, tiny) -> rounds, in alternating order -> {contestant: values} -> table and result file

Imports the standard library only, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("headstart", "torch", "transformers", "numba", "lightning")
FORMS = ("full", "short", "tiny")
_MARK = "RESULT "


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Give a parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--short", action="store_true", help="a form of a minute or less")
    forms.add_argument("--tiny", action="store_true", help="seconds, to see that it runs; the numbers mean nothing")
    parser.add_argument(
        "--json",
        nargs="?",
        const="",
        metavar="FILE",
        help="write the result to FILE (default benchmarks/results/SCRIPT-DATE.json)",
    )
    return parser


def form_of(arguments: argparse.Namespace) -> str:
    return "tiny" if arguments.tiny else "short" if arguments.short else "full"


def fill_by_form(arguments: argparse.Namespace, **values: tuple[Any, Any, Any]) -> None:
    """Fill in the options that were not given, with the value of the full, the short or the tiny form."""
    place = FORMS.index(form_of(arguments))
    for name, by_form in values.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, by_form[place])


def alternate(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Give each name once a round, forwards and backwards in turn: a machine that slows down slows all of them."""
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            yield number, name


def run_worker(script: str, *more: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run the script again in a process of its own, with the same options and more, and read its result.

    Raises:
        SystemExit: the process gave none; with what it printed.
    """
    command = [sys.executable, str(Path(script).resolve()), *sys.argv[1:], *more]
    finished = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    for line in finished.stdout.splitlines():
        if line.startswith(_MARK):
            result: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return result
    raise SystemExit(f"{' '.join(more)} failed:\n{finished.stdout}\n{finished.stderr}")


def give_result(result: Mapping[str, Any]) -> None:
    """Hand a worker's result to the process that started it."""
    print(_MARK + json.dumps(result), flush=True)


def peak_memory_mib() -> float:
    """Give the highest resident size of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def summarise(values: Iterable[float], reference: Iterable[float] | None = None) -> dict[str, Any]:
    """Give median, lowest and highest, and how many times the reference's they are.

    Args:
        values: one a round.
        reference: that of the same rounds. The ratio is that of the medians; its lowest and highest are those of
            single rounds.

    Example:
        >>> found = summarise([2.0, 3.0, 5.0], [1.0, 2.0, 2.0])
        >>> found["median"], found["lowest"], found["highest"], found["ratio"]
        (3.0, 2.0, 5.0, {'median': 1.5, 'lowest': 1.5, 'highest': 2.5})
    """
    values = [float(value) for value in values]
    summary: dict[str, Any] = {
        "median": statistics.median(values),
        "lowest": min(values),
        "highest": max(values),
        "values": values,
    }
    if reference is not None:
        others = [float(value) for value in reference]
        ratios = [value / other for value, other in zip(values, others, strict=True)]
        summary["ratio"] = {
            "median": summary["median"] / statistics.median(others),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
    return summary


def describe_machine() -> dict[str, Any]:
    """Give the processor's name, the cores that this process may use, its memory, and what it can multiply itself."""
    information = _read(Path("/proc/cpuinfo"))
    name = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", information, re.MULTILINE)
    has = set(flags[1].split()) if flags else set()
    kinds = {"avx512_bf16": "AVX-512 BF16", "amx_bf16": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
    can_ask = hasattr(os, "sched_getaffinity")
    return {
        "processor": name[1].strip() if name else platform.processor() or platform.machine(),
        "instructions": next((word for flag, word in kinds.items() if flag in has), None),
        "cores": len(os.sched_getaffinity(0)) if can_ask else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }


def describe_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def in_words(machine: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Give machine and versions as a line of prose.

    Example:
        >>> in_words({"processor": "CPU X", "instructions": "AVX2", "cores": 2, "memory_gib": 8}, {"torch": "2.13.0"})
        '2 cores of a CPU X (AVX2), 8 GiB; torch 2.13.0'
    """
    name = machine["processor"]
    article = "an" if name[:1].lower() in "aeiou" else "a"
    kind = f" ({machine['instructions']})" if machine.get("instructions") else ""
    numbers = ", ".join(f"{name} {number}" for name, number in versions.items())
    cores = f"{machine['cores']} core{'s' if machine['cores'] != 1 else ''}"
    return f"{cores} of {article} {name}{kind}, {machine['memory_gib']} GiB; {numbers}"


def spread(summary: Mapping[str, float] | None, digits: int = 1) -> str:
    """Give a summary as "median [lowest, highest]"; only the median where nothing is spread.

    Example:
        >>> spread({"median": 1234.56, "lowest": 1200.0, "highest": 1300.0}), spread(None)
        ('1,234.6 [1,200.0, 1,300.0]', '')
    """
    if summary is None:
        return ""
    median, lowest, highest = (f"{summary[key]:,.{digits}f}" for key in ("median", "lowest", "highest"))
    return median if lowest == median == highest else f"{median} [{lowest}, {highest}]"


def draw_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give a Markdown table, aligned for the terminal too; the first column to the left, the others to the right.

    Example:
        >>> print(draw_table(["", "x"], [["one", "1.0"]]))
        |     |   x |
        |:----|----:|
        | one | 1.0 |
    """
    body = [list(row) for row in rows]
    widths = [max(len(row[place]) for row in [list(titles), *body]) for place in range(len(titles))]

    def line(cells: Sequence[str]) -> str:
        texts = [
            cells[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(texts)} |"

    rule = [":" + "-" * (widths[0] + 1), *("-" * (width + 1) + ":" for width in widths[1:])]
    return "\n".join([line(titles), f"|{'|'.join(rule)}|", *map(line, body)])


def shorten_path(argument: str) -> str:
    """Give the last folder and the name of a file, which say more to others than where it lies on this machine.

    Example:
        >>> shorten_path("/data/mrpc/train.jsonl"), shorten_path("--rounds"), shorten_path("mrpc/train.jsonl")
        ('mrpc/train.jsonl', '--rounds', 'mrpc/train.jsonl')
    """
    return "/".join(Path(argument).parts[-2:]) if Path(argument).is_absolute() else argument


def tell(
    arguments: argparse.Namespace, script: str, settings: Mapping[str, Any], tables: Mapping[str, Any], told: str
) -> None:
    """Print what was found, and write it to the file that `--json` names.

    Args:
        arguments: of the command.
        script: its `__file__`.
        settings: what the numbers hold for: rows, lengths, rounds.
        tables: what was measured, as JSON takes it.
        told: the same for a person.
    """
    machine, versions = describe_machine(), describe_versions()
    date = datetime.date.today().isoformat()
    named = ", ".join(f"{name} {value}" for name, value in settings.items())
    print(f"\n{in_words(machine, versions)}; {date}; {named}; median [lowest, highest]\n\n{told}", flush=True)
    if arguments.json is None:
        return
    name = Path(script).stem
    path = Path(arguments.json) if arguments.json else RESULTS / f"{name}-{date}.json"
    result = {
        "benchmark": name,
        "form": form_of(arguments),
        "date": date,
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *map(shorten_path, sys.argv[1:])]),
        "machine": machine,
        "versions": versions,
        "settings": dict(settings),
        **tables,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")


def measure_rounds(
    names: Sequence[str], rounds: int, measure: Callable[[str, int], dict[str, Any]], shown: str, unit: str
) -> dict[str, list[dict[str, Any]]]:
    """Measure each contestant once a round, saying each value of `shown` as it comes.

    Returns:
        For each name what was measured, in the order of the rounds.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    width = max(map(len, names))
    for number, name in alternate(names, rounds):
        results[name].append(measure(name, number))
        print(f"round {number + 1}: {name:{width}} {results[name][-1][shown]:9.2f} {unit}", flush=True)
    return results


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
