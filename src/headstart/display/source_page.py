"""What a source holds, as one page of HTML.

Layer 4; imports layer 0 and rich. The page needs nothing from outside: no script, no font, no address. Everything that
comes from data is escaped, control characters and marks that turn the direction of writing are written out.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from headstart.display.description import (
    Histogram,
    LabelDescription,
    LengthDescription,
    RoleChoice,
    SourceDescription,
)
from headstart.display.layout import count, escape, shorten
from headstart.display.source import (
    describe_example,
    describe_limit,
    describe_number,
    name_numbers,
    next_command,
    shown_classes,
    shown_remarks,
)
from headstart.errors import DataError

__all__ = ["PAGE_MARK", "source_page", "write_source_page"]

PAGE_MARK: Final = '<meta name="generator" content="headstart show">'
_ENDINGS: Final = (".html", ".htm")
_MAX_CLASSES_SHOWN: Final = 20
_MAX_NAME: Final = 60
_HEIGHT: Final = 120

_STYLE: Final = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --line: #e3e6ea; --text: #1b2430; --faint: #65707e;
  --accent: #2f6fde; --soft: #dbe7fb; --warning: #b45309; --error: #c0262d; --good: #1f7a4d; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1a2029; --line: #2c3440; --text: #e6eaf0;
  --faint: #98a4b3; --accent: #79a9ff; --soft: #263a5c; --warning: #f0b45b; --error: #ff8086; --good: #6fd6a2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 28px 16px 48px; }
h1 { font-size: 1.7rem; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 1.02rem; margin: 0 0 10px; }
h3 { font-size: .82rem; margin: 18px 0 6px; color: var(--faint); font-weight: 600; }
p { margin: 0 0 8px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px;
  margin-top: 16px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(115px, 1fr)); gap: 10px; margin-top: 16px; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 10px 16px; }
.facts b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.faint, th { color: var(--faint); font-weight: 400; }
.scroll { overflow-x: auto; margin-bottom: 8px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 4px 14px 4px 0; vertical-align: top; }
tr + tr td { border-top: 1px solid var(--line); }
td.wide { min-width: 13rem; overflow-wrap: anywhere; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.name { overflow-wrap: anywhere; font-weight: 600; min-width: 7rem; }
.role { background: var(--soft); border-radius: 999px; padding: 1px 9px; font-size: .8rem; white-space: nowrap; }
.bar { min-width: 6rem; width: 30%; }
.bar svg { display: block; width: 100%; height: 12px; margin-top: 6px; }
.histogram { position: relative; margin-bottom: 4px; }
.histogram svg { display: block; width: 100%; height: 120px; border-bottom: 1px solid var(--line); }
.axis { display: flex; justify-content: space-between; color: var(--faint); font-size: .8rem;
  font-variant-numeric: tabular-nums; }
rect.bin { fill: var(--accent); } rect.track { fill: var(--soft); } line.limit { stroke: var(--warning); }
.warning { color: var(--warning); } .error { color: var(--error); } .info { color: var(--accent); }
.level { font-weight: 600; white-space: nowrap; }
blockquote { margin: 10px 0 0; padding: 8px 14px; border-left: 3px solid var(--soft); overflow-wrap: anywhere; }
blockquote p { margin: 2px 0 4px; }
code { background: var(--soft); border-radius: 6px; padding: 2px 8px; overflow-wrap: anywhere; }
footer { color: var(--faint); font-size: .82rem; margin-top: 18px; overflow-wrap: anywhere; }
"""


def source_page(description: SourceDescription) -> str:
    """Write the page.

    Args:
        description: of the source.

    Returns:
        A whole document; the same description gives the same bytes.
    """
    sections = [
        _columns(description),
        _labels(description.labels) if description.labels is not None else "",
        _lengths(description),
        _examples(description),
        _remarks(description),
    ]
    command = next_command(description)
    going_on = f"<section><h2>Go on</h2><p><code>{_text(command)}</code></p></section>" if command else ""
    prints = "<br>".join(f"{_text(each.name)}: SHA-256 {_text(each.fingerprint)}" for each in description.splits)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
{PAGE_MARK}
<title>{_text(description.name)}: the data</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{_text(description.name)}</h1>
<p class="faint">The data, as a training would read it</p>
{_facts(description)}
{"".join(sections)}{going_on}
<footer>{prints}<br>Written by headstart show. Row numbers count from 0.</footer>
</main>
</body>
</html>
"""


def write_source_page(description: SourceDescription, path: Path) -> Path:
    """Write the page into a file; see `SourceDescription.write_html`."""
    check_page_path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(source_page(description), encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path}: the page cannot be written ({error.strerror or error}).",
            "A folder that is there and may be written to.",
            "Name another file with --html.",
        ) from error
    return path


def check_page_path(path: Path) -> None:
    """Raise where a page may not be written there: another kind of file, or somebody else's.

    Raises:
        DataError: with what to do.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise DataError(
            f"{path}: this is no name of a page.",
            "A file that ends in .html.",
            f"Write --html {path.with_suffix('.html')} (--html alone takes the name of the source).",
        )
    if path.is_dir() or (path.exists() and PAGE_MARK not in path.read_text(encoding="utf-8", errors="replace")[:2000]):
        raise DataError(
            f"{path}: it is there already, and not a page of headstart show.",
            "A new file, or an older page of headstart show.",
            "Name another file with --html.",
        )


def _text(value: object) -> str:
    """Escape what comes from data, for text and for attributes."""
    return html.escape(escape(str(value)))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table of cells that are HTML already."""
    head = f"<tr>{''.join(heads)}</tr>" if heads else ""
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{head}{body}</table></div>'


def _cell(value: object, kind: str = "") -> str:
    return f'<td class="{kind}">{_text(value)}</td>' if kind else f"<td>{_text(value)}</td>"


def _head(value: object, kind: str = "") -> str:
    return f'<th class="{kind}">{_text(value)}</th>' if kind else f"<th>{_text(value)}</th>"


def _facts(description: SourceDescription) -> str:
    facts = [(f"{split.rows:,}", f"{split.name} rows") for split in description.splits]
    facts.append((f"{len(description.columns):,}", "column" if len(description.columns) == 1 else "columns"))
    if description.labels is not None and description.labels.num_classes:
        facts.append((f"{description.labels.num_classes:,}", "classes"))
    if description.lengths:
        first = description.lengths[0]
        facts.append((f"{first.median:,}", f"{first.unit} in the median row"))
    problems = sum(remark.level != "info" for remark in description.remarks)
    facts.append((f"{problems:,}", "finding" if problems == 1 else "findings"))
    return f'<div class="facts">{"".join(f"<div><b>{_text(a)}</b>{_text(b)}</div>" for a, b in facts)}</div>'


def _columns(description: SourceDescription) -> str:
    roles = {choice.column: choice.role for choice in description.roles}
    rows = []
    for column in description.columns:
        role = f'<span class="role">{_text(roles[column.name])}</span>' if column.name in roles else ""
        words = _text(column.description + (" (of 10,000 rows drawn)" if column.is_sampled else ""))
        missing = f', <span class="warning">{column.missing:,} missing</span>' if column.missing else ""
        name = f'<td class="name">{_text(shorten(column.name, _MAX_NAME))}</td>'
        rows.append((name, f"<td>{role}</td>", f'<td class="wide">{words}{missing}</td>'))
    known = description.task is not None
    task = (
        f"<p><b>{_text(description.task)}</b>: {_text(description.task_reason)}</p>"
        if known
        else f'<p><b class="warning">not known</b>: {_text(description.task_reason)}</p>'
    )
    origins = [
        (_cell(split.name), _cell(f"{split.rows:,}", "number"), _cell(split.origin, "wide faint"))
        for split in description.splits
    ]
    return (
        f"<section><h2>Where it was read</h2>{_table((), origins)}</section>"
        f"<section><h2>Columns</h2>{_table((), rows)}"
        f"<h3>Taken as</h3>{_table((), (row for choice in description.roles for row in _choice(choice)))}"
        f"<h3>Task</h3>{task}</section>"
    )


def _choice(choice: RoleChoice) -> list[tuple[str, ...]]:
    role = f'<td><span class="role">{_text(choice.role)}</span></td>'
    if choice.column is not None:
        name = f'<td class="name">{_text(shorten(choice.column, _MAX_NAME))}</td>'
        return [(role, name, _cell(choice.reason, "wide faint"))]
    rows: list[tuple[str, ...]] = [(role, '<td class="warning">not known</td>', _cell(choice.reason, "wide faint"))]
    for name, reason in choice.candidates:
        rows.append((_cell("or", "faint"), _cell(shorten(name, _MAX_NAME), "name"), _cell(reason, "wide faint")))
    return rows


def _labels(labels: LabelDescription) -> str:
    parts = []
    if labels.numbers:
        heads = [_head("split"), *(_head(name, "number") for name in ("lowest", "mean", "median", "highest"))]
        rows = [
            (_cell(name), *(_cell(describe_number(value), "number") for value in (n.low, n.mean, n.median, n.high)))
            for name, n in name_numbers(labels)
        ]
        parts.append(_table(heads, rows))
        for name, numbers in name_numbers(labels):
            parts.append(f"<h3>{_text(name)}</h3>{_histogram(numbers.histogram)}")
    elif labels.classes:
        parts.append(_class_table(labels))
    if labels.per_row is not None:
        parts.append(f'<p class="faint">{labels.per_row:.3g} labels a row on average, each counted</p>')
    if labels.remark:
        parts.append(f'<p class="faint">{_text(labels.remark)}</p>')
    for split, missing in zip(labels.splits, labels.missing, strict=True):
        if missing:
            parts.append(f'<p class="warning">{_text(split)}: {count(missing, "row")} without label</p>')
    return f"<section><h2>Labels: {_text(shorten(labels.column, _MAX_NAME))}</h2>{''.join(parts)}</section>"


def _class_table(labels: LabelDescription) -> str:
    classes, others = shown_classes(labels, _MAX_CLASSES_SHOWN)
    heads = [_head("")]
    for split in labels.splits:
        heads += [_head(split, "number"), _head(""), _head("")]
    totals = [sum(each.rows[i] for each in labels.classes) + labels.other_rows[i] for i in range(len(labels.splits))]
    largest = [max((each.rows[i] for each in classes), default=0) for i in range(len(labels.splits))]
    rows = []
    for each in classes:
        cells = [_cell(shorten(each.name, _MAX_NAME), "name")]
        for number, total, most in zip(each.rows, totals, largest, strict=True):
            cells += [_cell(f"{number:,}", "number"), _cell(_share(number, total), "number faint"), _bar(number, most)]
        rows.append(cells)
    if labels.num_classes > len(classes):
        cells = [_cell(f"{labels.num_classes - len(classes):,} more", "faint")]
        for number, total in zip(others, totals, strict=True):
            cells += [_cell(f"{number:,}", "number"), _cell(_share(number, total), "number faint"), "<td></td>"]
        rows.append(cells)
    return _table(heads, rows)


def _share(number: int, total: int) -> str:
    return f"{number / total:.1%}" if total else ""


def _bar(number: int, largest: int) -> str:
    width = 100 * number / largest if largest else 0
    return (
        '<td class="bar"><svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="12" rx="2"/>'
        f'<rect class="bin" width="{width:.2f}" height="12" rx="2"/></svg></td>'
    )


def _histogram(histogram: Histogram, limits: Sequence[int] = ()) -> str:
    """Draw a histogram; its bins are equally wide on the page, also the last one that holds the tail."""
    counts, names, edges = histogram.counts, histogram.names(), histogram.edges
    largest, number = max(counts), len(counts)
    bins = []
    for index, (rows, name) in enumerate(zip(counts, names, strict=True)):
        height = max(1.5, _HEIGHT * rows / largest) if rows else 0
        bins.append(
            f'<rect class="bin" x="{index + 0.06:.2f}" y="{_HEIGHT - height:.2f}" width="0.88" height="{height:.2f}">'
            f"<title>{_text(name)}: {count(rows, 'row')}</title></rect>"
        )
    for limit in limits:
        place = next((i for i in range(number) if edges[i] <= limit < edges[i + 1]), None)
        if place is not None:
            x = place + (limit - edges[place]) / (edges[place + 1] - edges[place])
            bins.append(
                f'<line class="limit" x1="{x:.3f}" x2="{x:.3f}" y1="0" y2="{_HEIGHT}" stroke-dasharray="4 3" '
                f'vector-effect="non-scaling-stroke"><title>limit of {limit:,} tokens</title></line>'
            )
    marks = [names[0], *([names[number // 2]] if number > 4 else []), *([names[-1]] if number > 1 else [])]
    return (
        f'<div class="histogram" style="max-width: {80 * number}px">'
        f'<svg viewBox="0 0 {number} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="histogram">{"".join(bins)}</svg>'
        f'<div class="axis">{"".join(f"<span>{_text(mark)}</span>" for mark in marks)}</div></div>'
    )


def _lengths(description: SourceDescription) -> str:
    if not description.lengths:
        return ""
    names = ("shortest", "median", "90%", "95%", "99%", "longest")
    rows = [
        (
            _cell(each.unit),
            _cell(each.split),
            *(
                _cell(f"{value:,}", "number")
                for value in (each.shortest, each.median, each.p90, each.p95, each.p99, each.longest)
            ),
        )
        for each in description.lengths
    ]
    heads = [_head(""), _head("split"), *(_head(name, "number") for name in names)]
    parts = [_table(heads, rows)]
    if description.model is not None:
        parts.append(f'<p class="faint">Tokens of {_text(description.model)}, special tokens included.</p>')
    for each in (each for each in description.lengths if each.split == description.lengths[0].split):
        limits = [cut.limit for cut in each.cuts]
        parts.append(f"<h3>{_text(each.unit)} of a row, {_text(each.split)}</h3>{_histogram(each.histogram, limits)}")
        if limits and max(limits) > each.longest:
            limits = [limit for limit in limits if limit <= each.longest]
        if limits:
            shown = ", ".join(f"{limit:,}" for limit in limits)
            parts.append(f'<p class="faint">The dashed lines are the limits {shown}.</p>')
    counted = [each for each in description.lengths if each.cuts]
    if counted:
        parts.append(f"<h3>Rows that a limit cuts</h3>{_cuts(counted)}")
    return f"<section><h2>Lengths</h2>{''.join(parts)}</section>"


def _cuts(counted: Sequence[LengthDescription]) -> str:
    rows = []
    for index, cut in enumerate(counted[0].cuts):
        cells = [_cell(describe_limit(cut.limit, cut.is_model_limit))]
        for each in counted:
            own = each.cuts[index]
            words = (
                f"{count(own.rows, 'row')} ({own.rows / each.rows:.1%}), {own.lost_tokens / each.total:.1%} of tokens"
            )
            cells.append(_cell(words if own.rows else "none", "warning" if own.rows else "faint"))
        rows.append(cells)
    return _table([_head("limit"), *(_head(each.split) for each in counted)], rows)


def _examples(description: SourceDescription) -> str:
    parts = []
    for example in description.examples:
        label = f' <span class="role">{_text(shorten(example.label, _MAX_NAME))}</span>' if example.label else ""
        texts = []
        for text, characters in zip(example.texts, example.characters, strict=True):
            more = f' <span class="faint">... ({characters:,} characters)</span>' if characters > len(text) else ""
            texts.append(f"<p>{_text(text)}{more}</p>")
        parts.append(
            f'<blockquote><span class="faint">{_text(describe_example(example))}</span>{label}{"".join(texts)}'
            "</blockquote>"
        )
    return f"<section><h2>Examples</h2>{''.join(parts)}</section>" if parts else ""


def _remarks(description: SourceDescription) -> str:
    lines = [*shown_remarks(description.remarks), *(("note", note) for note in description.notes)]
    rows = [
        (f'<td class="level {"info" if level == "note" else _text(level)}">{_text(level)}</td>', _cell(message, "wide"))
        for level, message in lines
    ]
    return f"<section><h2>Findings</h2>{_table((), rows)}</section>" if rows else ""
