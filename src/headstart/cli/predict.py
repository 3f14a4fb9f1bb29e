"""`headstart predict`: texts, a pipe or a file in; a table or a file out.

Layer 6.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.cli.look import find_run, read_settings
from headstart.errors import DataError, RecipeError, format_rows, suggest

if TYPE_CHECKING:
    import pyarrow as pa

    from headstart.api import Prediction, Run

__all__ = ["run_predict"]

ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def run_predict(arguments: argparse.Namespace) -> int:
    """Predict, keeping the rows' order and columns."""
    from rich.console import Console

    from headstart.api import load
    from headstart.display.status import Status

    ending = _ending(arguments.output) if arguments.output is not None else None
    reading = read_settings(arguments.set)
    if reading and arguments.file is None:
        raise RecipeError("--set says how a source is read, but no --file is given.", "a source.", "Add --file SOURCE.")
    for option in ("text", "pair"):
        if arguments.file is None and getattr(arguments, option) is not None:
            raise RecipeError(
                f"--{option} names a column, but no --file is given.", "a source with columns.", "Add --file SOURCE."
            )
    if arguments.file is not None and arguments.texts:
        raise RecipeError("Texts and --file are both given.", "one of them.", "Predict them with two commands.")
    if arguments.file is not None and arguments.output is not None and _is_same(arguments.file, arguments.output):
        raise RecipeError(
            f"--output {arguments.output} is the file that is read.", "another file.", "Choose another name."
        )
    run = load(find_run(arguments.run))
    if arguments.file is not None:
        with Status(Console(stderr=True, quiet=not sys.stderr.isatty())) as status:
            predicted = run.predict_source(
                arguments.file,
                text=arguments.text,
                pair=arguments.pair,
                batch_size=arguments.batch_size,
                progress=status.say,
                reading=reading,
            )
        table, predictions, notes = predicted.table, predicted.predictions, predicted.notes
    else:
        table, predictions, notes = _predict_texts(run, arguments.texts, arguments.batch_size)
    table, added, renamed = _with_predictions(
        table, predictions, run, wants_probabilities=arguments.probabilities or False
    )
    if ending in (None, ".csv", ".tsv"):
        table = _with_texts(table, getattr(run.task, "delimiter", None) or "|")
    for note in [*notes, *renamed]:
        print(note, file=sys.stderr)
    if ending is not None:
        _write(table, Path(arguments.output), ending)
        print(f"{table.num_rows:,} rows written to {arguments.output}", file=sys.stderr)
    elif sys.stdout.isatty():
        _show(table, run, arguments, added)
    else:
        _write_rows(table, sys.stdout, "\t")
    return 0


def _is_same(source: str, output: str) -> bool:
    path = re.sub(r"\[[^\]]*\]$", "", source)
    return os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output)


def _ending(output: str) -> str:
    """Find the format by the ending, before anything is computed."""
    ending = Path(output.removesuffix(".gz")).suffix.lower()
    if ending not in ENDINGS:
        raise RecipeError(
            f'--output {output}: the ending "{ending}" is unknown.',
            f"one of {', '.join(ENDINGS)} (each also with .gz).",
            suggest(ending, ENDINGS),
        )
    parent = Path(output).parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RecipeError(f"--output {output}: {parent} is no folder that can be written to.", fix="Make the folder.")
    return ending


def _predict_texts(
    run: Run, words: Sequence[str], batch_size: int | None
) -> tuple[pa.Table, list[Prediction | None], list[str]]:
    import pyarrow as pa

    is_pair = run.task.pair is not None
    if words and not is_pair:
        texts: list[Any] = list(words)
    elif words:
        if len(words) % 2:
            raise DataError(
                f"{len(words)} texts are given, but this run learned from pairs.",
                "texts in twos: the text and its pair.",
                'Write: headstart predict RUN "a text" "its pair"',
            )
        texts = list(zip(words[::2], words[1::2], strict=True))
    else:
        texts = _read_lines(is_pair)
    notes: list[str] = []
    predictions: list[Prediction | None] = list(run.predict(texts, batch_size=batch_size, tell=notes.append))
    if not is_pair:
        return pa.table({run.task.text: pa.array(texts, pa.string())}), predictions, notes
    columns = {run.task.text: [first for first, _ in texts], str(run.task.pair): [second for _, second in texts]}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), predictions, notes


def _read_lines(is_pair: bool) -> list[Any]:
    """Read a text a line from the pipe; a pair is separated by a tab."""
    if sys.stdin.isatty():
        raise DataError(
            "There is nothing to predict.", "texts, a pipe, or --file SOURCE.", "See: headstart predict --help"
        )
    try:
        content = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"The standard input is not UTF-8 ({error}).", "text in UTF-8.", "Convert it with iconv."
        ) from error
    if not content:
        raise DataError("The standard input is empty.", "a text a line.", "Check the command before the pipe.")
    # str.splitlines would also cut a text at a form feed or at Unicode's separators.
    lines = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
    if not is_pair:
        return lines
    pairs = [tuple(line.split("\t")) for line in lines]
    wrong = [number for number, pair in enumerate(pairs, start=1) if len(pair) != 2]
    if wrong:
        raise DataError(
            f"Lines without exactly one tab: {format_rows(wrong)}.",
            "a pair a line, separated by a tab: this run learned from pairs.",
            "Or give a file with two columns: --file SOURCE.",
        )
    return list(pairs)


def _with_predictions(
    table: pa.Table, predictions: Sequence[Prediction | None], run: Run, *, wants_probabilities: bool
) -> tuple[pa.Table, list[str], list[str]]:
    """Add the columns that say what is predicted.

    Returns:
        The table, the names of the new columns, and a note where a name was taken.
    """
    added, notes = [], []
    for name, values in _new_columns(predictions, run, wants_probabilities=wants_probabilities).items():
        free = name
        while free in table.column_names:
            free = f"model_{free}"
        if free != name:
            notes.append(f'the input has a column "{name}"; the new one is called "{free}"')
        table = table.append_column(free, values)
        added.append(free)
    return table, added, notes


def _new_columns(
    predictions: Sequence[Prediction | None], run: Run, *, wants_probabilities: bool
) -> dict[str, pa.Array]:
    import pyarrow as pa

    task = run.task
    names = task.label_names

    def cells(give: Any, kind: pa.DataType | None = None) -> pa.Array:
        return pa.array([give(one) if one is not None else None for one in predictions], kind)

    if task.score_kind == "number":
        if wants_probabilities:
            raise RecipeError(
                "--probabilities has no effect: this run predicts numbers.", "a run with classes.", "Leave it out."
            )
        if len(names) > 1:
            return {
                f"prediction_{name}": cells(lambda one, name=name: one.prediction[name], pa.float64()) for name in names
            }
        return {"prediction": cells(lambda one: one.prediction, pa.float64())}
    columns = {"prediction": cells(lambda one: one.prediction)}
    if task.score_kind != "classes":
        columns["probability"] = cells(lambda one: one.probability, pa.float64())
    if wants_probabilities:
        for index, name in enumerate(names):
            columns[name] = cells(lambda one, index=index: one.probabilities[index], pa.float64())
    return columns


def _write(table: pa.Table, path: Path, ending: str) -> None:
    """Write through a temporary file, so that an older one stays until the new one is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if ending == ".parquet":
            import pyarrow.parquet as pq

            with _open(temporary, path.name.endswith(".gz"), "wb") as file:
                pq.write_table(table, file)
        else:
            with _open(temporary, path.name.endswith(".gz"), "wt") as file:
                if ending in (".csv", ".tsv"):
                    _write_rows(table, file, "," if ending == ".csv" else "\t")
                elif ending == ".jsonl":
                    file.writelines(
                        json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in _json_rows(table)
                    )
                else:
                    json.dump(list(_json_rows(table)), file, ensure_ascii=False, indent=1, default=str)
        temporary.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error}).", "a place with room.", "Choose another --output."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _open(path: Path, is_gzip: bool, mode: str) -> Any:
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    opener: Any = gzip.open if is_gzip else open
    return opener(path, mode, **text)


def _with_texts(table: pa.Table, delimiter: str) -> pa.Table:
    """Write lists of labels as texts, for formats that have no lists."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        if pa.types.is_list(field.type) or pa.types.is_large_list(field.type):
            texts = [
                None if labels is None else delimiter.join(map(str, labels))
                for labels in table.column(index).to_pylist()
            ]
            table = table.set_column(index, field.name, pa.array(texts, pa.string()))
    return table


def _write_rows(table: pa.Table, file: Any, delimiter: str) -> None:
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(table.column_names)
    for batch in table.to_batches():
        writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _json_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Give the rows as JSON can hold them: it has no number that is not finite."""
    for batch in table.to_batches():
        for row in batch.to_pylist():
            yield {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in row.items()
            }


def _show(table: pa.Table, run: Run, arguments: argparse.Namespace, added: Sequence[str]) -> None:
    from headstart.display.predictions import show_predictions

    read = [arguments.text or run.task.text, arguments.pair or run.task.pair]
    show_predictions(
        {name: table.column(name).to_pylist() for name in table.column_names},
        texts=[name for name in read if name is not None and name in table.column_names],
        added=added,
    )
