"""Write the tables of the README and of docs/speed.md, and the plot, from the newest results in benchmarks/results.

    python benchmarks/draw.py            write them
    python benchmarks/draw.py --check    only say whether they are as they should be

A page has a place for a table between two comments, and what stands between them is written here:

    <!-- table: parts -->
    <!-- end of table -->

The word names results: `parts` those of files parts-DATE.json, `parts-bert-base` those of parts-bert-base-DATE.json, as
`--json FILE` has written them. `<!-- speed table -->` is short for `<!-- table: against_trainer -->`, and
`<!-- speed picture -->` is the plot of the same result; `<!-- scores -->` compares the scores of all files
against_trainer-scores-NAME-DATE.json, those of the same rows and epochs in one table: the last file, by name, with a
contestant counts. Results of the short and tiny forms are not drawn.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from defaults import draw_defaults
from measuring import RESULTS, draw_table, in_words, spread

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/speed.md", "docs/recipe.md")
PICTURE = "docs/pictures/speed.svg"
SCORES = "against_trainer-scores-"
DEFAULTS = "defaults-"
END = "<!-- end of table -->"
_PLACE = re.compile(
    r"<!-- (speed table|speed picture|scores|default numbers|table: [\w-]+) -->\n(.*?)" + END, re.DOTALL
)
_DATED = re.compile(r"(.+)-(\d{4}-\d{2}-\d{2})")

NAMES = {
    "Trainer": "transformers' `Trainer`, as its tutorials have it, batch 8",
    "Trainer, padded to 128": "the same, every row padded to 128 tokens",
    "Trainer, bf16": "`Trainer` with `bf16=True`",
    "Trainer, best options": "`Trainer` with the fastest of its options, batch 32",
    "Trainer, best, eager": 'the same, the model loaded with `attn_implementation="eager"`',
    "drop-in": "drop-in: the first script, its import changed",
    "drop-in, fast": 'drop-in with `headstart="fast"`, batch 8',
    "headstart, fp32": "headstart, batch 8, float32",
    "headstart, batch 8": "headstart, batch 8",
    "headstart": "**headstart with its defaults**, batch 32",
    "headstart, plain path": "headstart with its defaults, without the fast path, batch 32",
}
# Readable on white and on GitHub's dark ground alike.
TEXT, OTHERS, OURS, LINE = "#6e7781", "#8c959f", "#2f81f7", "#d4720b"


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the newest full result of each name.

    Args:
        folder: with files NAME-DATE.json.

    Returns:
        Name to what the file holds.
    """
    newest: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        found = _DATED.fullmatch(path.stem)
        if found is None:
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        name, date = found.groups()
        if result["form"] == "full" and date >= newest.get(name, ("", {}))[0]:
            newest[name] = (date, result)
    return {name: result for name, (_, result) in newest.items()}


def describe(result: Mapping[str, Any]) -> str:
    """Say where the numbers come from."""
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
    machine = in_words(result["machine"], result["versions"])
    return f"`{result['command']}`, {result['date']}, on {machine}. Holds for: {settings}. Median [lowest, highest]."


def comparison(result: Mapping[str, Any]) -> str:
    """Give the table of contestants that fine-tune the same model."""
    cells = [
        [
            NAMES.get(row["name"], row["name"]),
            spread(row["samples_per_second"]),
            spread(row["samples_per_second"]["ratio"], 2),
            f"{row['memory_mib']['median']:,.0f} MiB",
            spread(row["accuracy"], 3),
        ]
        for row in result["rows"]
    ]
    return draw_table(["", "samples/s", "ratio", "peak memory", "validation accuracy"], cells)


def scores(results: Sequence[Mapping[str, Any]]) -> str:
    """Give the scores of contestants over seeds, beside the first one's, and the commands."""
    from scipy.stats import ttest_ind

    by_job: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        job = f"{result['settings']['rows']}; epochs {result['settings']['epochs']}"
        by_job.setdefault(job, []).append(result)
    told = []
    for job, group in by_job.items():
        rows = {row["name"]: row for result in group for row in result["rows"]}
        lines, first = [], next(iter(rows.values()))["accuracy"]["values"]
        for place, row in enumerate(rows.values()):
            values = row["accuracy"]["values"]
            mean = statistics.mean(values)
            beside = ""
            if place:
                low, high = ttest_ind(values, first, equal_var=False).confidence_interval()
                beside = f"{mean - statistics.mean(first):+.3f} [{low:+.3f}, {high:+.3f}]"
            lines.append([NAMES.get(row["name"], row["name"]), f"{mean:.3f}", _range(values), beside])
        titles = [job, "mean accuracy", "lowest to highest", "difference of means, 95 %"]
        told.append(draw_table(titles, lines))
        told += [_origin(result) for result in group]
    return "\n\n".join(told)


def default_numbers(results: Sequence[Mapping[str, Any]]) -> str:
    """Give one table of the default numbers on all data sets, and the commands."""
    tables = {name: table for result in results for name, table in result["tables"].items()}
    return "\n\n".join([draw_defaults({"tables": tables}), *map(_origin, results)])


def _origin(result: Mapping[str, Any]) -> str:
    return f"`{result['command']}`, {result['date']}, on {in_words(result['machine'], result['versions'])}."


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def parts(result: Mapping[str, Any]) -> str:
    """Give a table a batch size: whole forms, then the parts."""
    from parts import tabulate

    return "\n\n".join(f"{_batch(table)}:\n\n{tabulate(table['rows'])}" for table in result["tables"])


def limit(result: Mapping[str, Any]) -> str:
    """Give the shares of the limits, and where the time goes."""
    from limit import tabulate

    lines = [f"Memory is copied at {result['copy_gb_per_second']:.1f} GB/s, read and written."]
    for table in result["tables"]:
        found = {name: table[name] for name in ("before", "after")}
        rates = f"{table['gflop_in_a_step']:.1f} GFLOP; products at most {table['bf16_gflop_per_second']:,.0f} GFLOP/s"
        lines.append(f"{_batch(table)}, {rates}:\n\n{tabulate(found, table['products_ms'])}")
    return "\n\n".join(lines)


def scaling(result: Mapping[str, Any]) -> str:
    """Give a line for each number of rows."""
    from scaling import tabulate

    return tabulate(result["rows"])


def six_doors(result: Mapping[str, Any]) -> str:
    """Give a line a door."""
    from six_doors import tabulate

    return tabulate(result)


def breadth(result: Mapping[str, Any]) -> str:
    """Give a line a family, and below why parts are off."""
    rows: list[list[str]] = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for family, found in result["families"].items():
        on = [name for name, sides in found["parts"].items() if True in sides.values()]
        off = {name: sides for name, sides in found["parts"].items() if name not in on}
        numbers = [f"{found[name]:.0e}" for name in ("fp32", "bf16", "bf16_of_autocast")]
        rows.append([family, f"{len(on)} of {len(found['parts'])}", *numbers, spread(found["speed"], 2)])
        for name, sides in off.items():
            reasons.setdefault((name, sides["fp32" if name == "onednn_float32" else "bf16"]), []).append(family)
    titles = ["family", "parts", "fp32", "bf16", "autocast's own", "times as fast"]
    lines = [f"- `{name}`: {reason} ({', '.join(families)})" for (name, reason), families in sorted(reasons.items())]
    return "\n".join([draw_table(titles, rows), *(["", "Off:", "", *lines] if lines else [])])


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "against_trainer": comparison,
    "against_lightning": comparison,
    "six_doors": six_doors,
    "parts": parts,
    "limit": limit,
    "scaling": scaling,
    "breadth": breadth,
    "defaults": draw_defaults,
}


def _batch(table: Mapping[str, Any]) -> str:
    length = f" of {table['length']} tokens" if table.get("length") else ""
    return f"{table['batch_size']} rows{length} a step"


def fill_page(text: str, results: Mapping[str, Mapping[str, Any]], to_root: str = "") -> str:
    """Write into every place of a page what the results say.

    Args:
        text: of the page.
        results: as `read_results` gives them.
        to_root: from the page's folder to the repository's, such as "../".

    Returns:
        The page; a place whose result is not there says so.
    """

    def fill(place: re.Match[str]) -> str:
        kind = place[1]
        if kind == "scores":
            having = [results[name] for name in sorted(results) if name.startswith(SCORES)]
            body = f"{scores(having)}\n" if having else "Not measured yet.\n"
            return f"<!-- {kind} -->\n{body}{END}"
        if kind == "default numbers":
            having = [results[name] for name in sorted(results) if name.startswith(DEFAULTS)]
            body = f"{default_numbers(having)}\n" if having else "Not measured yet.\n"
            return f"<!-- {kind} -->\n{body}{END}"
        name = kind.removeprefix("table: ") if kind.startswith("table: ") else "against_trainer"
        result = results.get(name)
        if result is None:
            body = "" if kind == "speed picture" else "Not measured yet.\n"
        elif kind == "speed picture":
            body = f"![Samples a second of each contestant]({to_root}{PICTURE})\n"
        else:
            body = f"{describe(result)}\n\n{TABLES[result['benchmark']](result)}\n"
        return f"<!-- {kind} -->\n{body}{END}"

    return _PLACE.sub(fill, text)


def draw_plot(result: Mapping[str, Any]) -> str:
    """Draw the speeds of a comparison as bars, with a line from the lowest to the highest, as SVG."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    left, width, height, top = 190, 430, 30, 34
    longest = max(row["samples_per_second"]["highest"] for row in rows)
    machine = result["machine"]
    title = f"fine-tuning, samples a second ({machine['processor']}, {machine['cores']} cores, {result['date']})"
    total = top + height * len(rows) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {total}" width="760" height="{total}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="14" fill="{TEXT}">',
        f"<title>{escape(title)}</title>",
        f'<text x="{left}" y="18" font-size="13">{escape(title)}</text>',
    ]
    for place, row in enumerate(rows):
        speed = row["samples_per_second"]
        y = top + height * place
        length, low, high = (width * speed[key] / longest for key in ("median", "lowest", "highest"))
        is_ours = row["name"].startswith(("headstart", "drop-in"))
        weight, colour = (' font-weight="bold"', OURS) if is_ours else ("", OTHERS)
        low, high = left + low, left + high
        lines += [
            f'<text x="{left - 8}" y="{y + 17}" text-anchor="end"{weight}>{escape(row["name"])}</text>',
            f'<rect x="{left}" y="{y + 3}" width="{length:.1f}" height="20" rx="2" fill="{colour}"/>',
            f'<path d="M{low:.1f} {y + 13}H{high:.1f}M{low:.1f} {y + 9}v8M{high:.1f} {y + 9}v8"'
            f' stroke="{LINE}" stroke-width="1.5"/>',
            f'<text x="{max(left + length, high) + 8:.1f}" y="{y + 17}"{weight}>{speed["median"]:.1f}'
            f" ({speed['ratio']['median']:.2f} x)</text>",
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def draw_all(root: Path) -> dict[str, str]:
    """Give each file that results decide, as it should be, by its path from the root."""
    results = read_results(root / RESULTS.relative_to(ROOT))
    files = {}
    for page in PAGES:
        if (root / page).exists():
            files[page] = fill_page((root / page).read_text(encoding="utf-8"), results, "../" * page.count("/"))
    if "against_trainer" in results:
        files[PICTURE] = draw_plot(results["against_trainer"])
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where something is to be written")
    arguments = parser.parse_args()
    stale = []
    for name, text in draw_all(ROOT).items():
        path = ROOT / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
    print("\n".join(f"{'to be written' if arguments.check else 'written'}: {name}" for name in stale) or "all as it is")
    raise SystemExit(1 if arguments.check and stale else 0)


if __name__ == "__main__":
    main()
