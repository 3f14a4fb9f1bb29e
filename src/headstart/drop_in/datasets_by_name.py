"""`load_dataset` by name: a folder here, else the library's own.

    load_dataset("glue", "mrpc")
        ./glue/mrpc               a folder of this configuration
        ./glue                    a folder whose card (README.md) lists the configuration
        else                      datasets.load_dataset: its cache, the hub
                                  SourceError in one line where neither has it

A folder is read by the library, so that splits, slices, streaming and features are as it makes them. Decided here is
which file is which split where all file names say so, what `save_to_disk` wrote, and what an error says.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.data.data_file import file_format
from headstart.data.folders import SPLITS, split_name
from headstart.drop_in.hub import is_connection_error, looks_like_path, missing_folder, why_out_of_reach
from headstart.errors import SourceError, suggest

if TYPE_CHECKING:
    import datasets

__all__ = ["load_dataset"]

_CARD = "README.md"
_SAVED_DICT, _SAVED = "dataset_dict.json", "state.json"


def load_dataset(
    path: str,
    name: str | None = None,
    data_dir: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    split: Any = None,
    cache_dir: str | None = None,
    features: datasets.Features | None = None,
    download_config: datasets.DownloadConfig | None = None,
    download_mode: datasets.DownloadMode | str | None = None,
    verification_mode: datasets.VerificationMode | str | None = None,
    keep_in_memory: bool | None = None,
    save_infos: bool = False,
    revision: str | datasets.Version | None = None,
    token: bool | str | None = None,
    streaming: bool = False,
    num_proc: int | None = None,
    storage_options: dict[str, Any] | None = None,
    **config_kwargs: Any,
) -> Any:
    r"""Load a data set by the path of a folder or by its name on the Hugging Face hub.

    A folder of that name comes first, with its configurations as subfolders (`glue/mrpc`) or as its card lists them;
    then the cache of `datasets`, then the hub. A builder such as "csv" with `data_files` is the library's, untouched.

    Args:
        path: a folder, a name on the hub, or a builder ("csv", "json", "text", "parquet", ...).
        name: the configuration.
        data_dir: as in `datasets.load_dataset`.
        data_files: as in `datasets.load_dataset`.
        split: one split, a slice or sum of splits ("train[:10%]+test"), or a list of them; None gives all.
        cache_dir: as in `datasets.load_dataset`; so are all that follow.
        features: the columns' types.
        download_config: for the client of the hub.
        download_mode: whether what is there is used again.
        verification_mode: which checks are made.
        keep_in_memory: whether the table is copied into memory.
        save_infos: kept for the library's sake.
        revision: branch, tag or commit on the hub.
        token: for data sets that are not public.
        streaming: whether rows are read only as they are used.
        num_proc: processes that read.
        storage_options: for the file system.
        **config_kwargs: for the builder.

    Returns:
        A `datasets.DatasetDict`, a `datasets.Dataset` where `split` names one, or their streamed kin.

    Raises:
        SourceError: there is no such folder or configuration here, and neither cache nor hub has the data set.

    Example:
        >>> folder = Path("glue/tiny")
        >>> folder.mkdir(parents=True)
        >>> _ = (folder / "train.csv").write_text("sentence,label\nfine,1\ndull,0\n")
        >>> load_dataset("glue", "tiny", split="train", cache_dir="cache")["label"][:]
        [1, 0]
    """
    options: dict[str, Any] = {
        "split": split, "cache_dir": cache_dir, "features": features, "download_config": download_config,
        "download_mode": download_mode, "verification_mode": verification_mode, "keep_in_memory": keep_in_memory,
        "save_infos": save_infos, "revision": revision, "token": token, "streaming": streaming, "num_proc": num_proc,
        "storage_options": storage_options, **config_kwargs,
    }  # fmt: skip
    path = os.fspath(path)
    if data_dir is not None or data_files is not None or _is_builder(path):
        return _from_library(path, name, data_dir=data_dir, data_files=data_files, **options)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _from_folder(folder, name, options)
    if folder.is_file():
        raise _is_a_file(folder)
    if looks_like_path(path) and "://" not in path:
        raise SourceError(
            f"{path}: there is no such folder.", "a folder, or a name on the Hugging Face hub.", missing_folder(path)
        )
    cache = _cache_folder(path, cache_dir)
    reason = None if cache.is_dir() else why_out_of_reach()
    if reason is not None:
        raise _cannot_be_had(path, name, cache, reason)
    return _from_library(path, name, **options)


def _from_library(path: str, name: str | None, **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, name, **options)
    except Exception as error:
        # The library's own errors, and what its client raises: only an answer that did not come is put otherwise.
        if not is_connection_error(error) or _is_builder(path) or Path(path).is_dir():
            raise
        explained = _cannot_be_had(path, name, _cache_folder(path, options.get("cache_dir")), "no answer")
    raise explained


def _is_builder(path: str) -> bool:
    return path.isidentifier() and importlib.util.find_spec(f"datasets.packaged_modules.{path}") is not None


def _from_folder(folder: Path, name: str | None, options: dict[str, Any]) -> Any:
    configs = _subfolders(folder)
    if name is not None and not _lists_configs(folder):
        inner = [config for config in configs if _key(config.name) == _key(name)]
        if len(inner) > 1:
            inner = [config for config in inner if config.name == name]
        if inner:
            folder, name = inner[0], None
        elif name != "default":
            names = [config.name for config in configs]
            raise SourceError(
                f'{folder}: it has no configuration "{name}", neither as a subfolder nor in a card ({_CARD}).',
                f"a subfolder {folder / name}.",
                suggest(name, names) if names else "Leave the configuration out.",
            )
    elif name is None and _holds_configs(folder, configs):
        names = [config.name for config in configs]
        raise SourceError(
            f"{folder}: its data lie in subfolders ({', '.join(names)}), and none is named.",
            "the name of one of them.",
            f'load_dataset("{folder}", "{names[0]}").',
        )
    if (folder / _SAVED_DICT).is_file() or (folder / _SAVED).is_file():
        return _from_saved(folder, name, options)
    files = None if (folder / _CARD).is_file() and _lists_configs(folder) else _split_files(folder)
    return _from_library(str(folder), name, **({"data_files": files} if files else {}), **options)


def _key(name: str) -> str:
    """Make "SST-2" and "sst2" one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _lists_configs(folder: Path) -> bool:
    """Say whether the folder's card begins with the block that lists configurations or columns."""
    card = folder / _CARD
    if not card.is_file():
        return False
    with card.open(encoding="utf-8", errors="replace") as file:
        if file.readline().strip() != "---":
            return False
        for line in file:
            if line.strip() == "---":
                return False
            if line.startswith(("configs:", "dataset_info:")):
                return True
    return False


def _holds_configs(folder: Path, subfolders: list[Path]) -> bool:
    """Say whether the data lie one folder deeper, one data set a subfolder."""
    saved = (folder / _SAVED_DICT).exists() or (folder / _SAVED).exists()
    if saved or _lists_configs(folder) or any(_is_data(path) for path in folder.iterdir()):
        return False
    if not subfolders or any(split_name(path.name) or path.name == "data" for path in subfolders):
        return False
    return all(_split_files(path) or (path / _SAVED_DICT).is_file() for path in subfolders)


def _is_data(path: Path) -> bool:
    # The library's builders read more; a text file beside tables tells about them here.
    return path.is_file() and file_format(path) in ("csv", "tsv", "json", "jsonl", "parquet")


def _split_files(folder: Path) -> dict[str, str] | None:
    """Give the file of each split where every data file is named after one: "dev", "validation_matched".

    The library would put files that begin with the same split together, and read a text file that lies beside.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if not _is_data(path):
            continue
        if path.name == "dataset_info.json":
            return None
        first, _, rest = path.name.split(".")[0].partition("_")
        split = split_name(first)
        if split is None:
            return None
        full = f"{split}_{rest}" if rest else split
        if full in found or not re.fullmatch(r"\w*", rest) or re.search(r"\d", rest):
            return None
        found[full] = path.name
    formats = {file_format(Path(path)) for path in found.values()}
    if len(formats) != 1:
        return None
    return {name: found[name] for name in sorted(found, key=lambda name: SPLITS.index(name.partition("_")[0]))}


def _from_saved(folder: Path, name: str | None, options: dict[str, Any]) -> Any:
    """Load what Dataset.save_to_disk or DatasetDict.save_to_disk wrote, and take the splits asked for."""
    import datasets

    fetching = {
        "split", "streaming", "keep_in_memory", "storage_options", "cache_dir", "download_config", "download_mode",
        "verification_mode", "save_infos", "token", "num_proc",
    }  # fmt: skip
    ignored = [option for option, value in options.items() if option not in fetching and value is not None]
    if name is not None or ignored:
        raise SourceError(
            f"{folder} was written by save_to_disk, where {', '.join(ignored) or 'a configuration'} has no effect.",
            "a folder of files.",
            "Leave it out.",
        )
    saved = datasets.load_from_disk(
        str(folder), keep_in_memory=options["keep_in_memory"], storage_options=options["storage_options"]
    )
    tables = (
        saved if isinstance(saved, datasets.DatasetDict) else datasets.DatasetDict({str(saved.split or "train"): saved})
    )
    if options["split"] is None:
        taken: Any = tables
    elif isinstance(options["split"], (list, tuple)):
        taken = [_take(tables, split, folder) for split in options["split"]]
    else:
        taken = _take(tables, options["split"], folder)
    if not options["streaming"]:
        return taken
    if isinstance(taken, list):
        return [table.to_iterable_dataset() for table in taken]
    if isinstance(taken, datasets.DatasetDict):
        return datasets.IterableDatasetDict({split: table.to_iterable_dataset() for split, table in taken.items()})
    return taken.to_iterable_dataset()


def _take(tables: Any, split: Any, folder: Path) -> Any:
    """Take a split, a slice or a sum of them, with the meaning that they have in the library."""
    import datasets

    text = "+".join(tables) if str(split) == "all" else split
    instruction = text if isinstance(text, datasets.ReadInstruction) else datasets.ReadInstruction.from_spec(str(text))
    try:
        parts = instruction.to_absolute({name: table.num_rows for name, table in tables.items()})
    except ValueError as error:
        raise SourceError(
            f'{folder}: the split "{split}" cannot be taken ({error}).',
            f"one of {', '.join(tables)}, or a slice such as train[:10%].",
            "Name it so.",
        ) from None
    taken = []
    for part in parts:
        table = tables[part.splitname]
        start = part.from_ or 0
        stop = table.num_rows if part.to is None else part.to
        taken.append(table if (start, stop) == (0, table.num_rows) else table.select(range(start, max(start, stop))))
    return taken[0] if len(taken) == 1 else datasets.concatenate_datasets(taken)


def _cache_folder(path: str, cache_dir: str | None) -> Path:
    """Name the folder in which the library keeps a data set of the hub."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    *owner, last = path.split("/")
    return Path(cache_dir or config.HF_DATASETS_CACHE).expanduser() / "___".join([*owner, camelcase_to_snakecase(last)])


def _is_a_file(path: Path) -> SourceError:
    builder = {"tsv": "csv", "jsonl": "json", "txt": "text"}.get(path.suffix[1:], path.suffix[1:] or "text")
    tab = ', sep="\\t"' if path.suffix == ".tsv" else ""
    return SourceError(
        f"{path} is a file; give it as data_files.",
        "a folder, a name on the Hugging Face hub, or a builder and its files.",
        f'load_dataset("{builder}", data_files="{path}"{tab}).',
    )


def _cannot_be_had(path: str, name: str | None, cache: Path, reason: str) -> SourceError:
    place = f"./{path}/{name}" if name else f"./{path}"
    config = f', "{name}"' if name else ""
    return SourceError(
        f'load_dataset("{path}"{config}): it cannot be had: there is no folder {place} here, nothing in the cache '
        f"({cache}), and the hub was not reached ({reason}); give the path of a folder.",
        f"a folder {place} with files such as train.csv, validation.csv and test.csv (or .tsv, .jsonl, .parquet), "
        "or a connection to the Hugging Face hub.",
        f'Put the files there, or load_dataset("path/to/folder"{config}).',
    )
