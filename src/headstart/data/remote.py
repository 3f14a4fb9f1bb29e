"""Files behind an address: `https://`, `s3://`, `gs://`, `hf://`, `memory://`.

Holds the listing and the download into the cache. Imports the standard library; fsspec, pyarrow's file systems and
huggingface_hub inside functions.

    address -> a file, a folder or a pattern -> size, ETag and time of each file -> in the cache? -> else download ->
    DataFile

S3 and Google Cloud Storage are read by the file systems inside pyarrow, which take the usual variables and files for
credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS).
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from headstart.addresses import mask, scheme_of, scrub
from headstart.data.data_file import DataFile, file_format
from headstart.data.folders import is_data_name, no_data
from headstart.data.listings import common_folder_removed, list_archive
from headstart.data.table_cache import cache_dir
from headstart.errors import HeadstartError, SourceError, suggest

__all__ = ["REMOTE", "list_remote"]

T = TypeVar("T")
REMOTE = ("http", "https", "s3", "s3a", "gs", "gcs", "hf", "memory")
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5  # doubled after each attempt
CONNECT_SECONDS = 20
SILENCE_SECONDS = 60  # a transfer that gives no byte for so long is broken; a long one that does is not
MARKS = ("ETag", "etag", "Content-MD5", "Last-Modified", "mtime", "created", "blob_id")  # that tell versions apart
MAX_DEPTH = 3  # of a folder: split, label, file


def list_remote(address: str) -> tuple[list[DataFile], bool]:
    """List the data files of an address.

    Args:
        address: of a file, a folder (ends with / where it is a web address) or a pattern; variables filled in.

    Returns:
        The files, downloaded when they are first opened; and whether the address names one file.

    Raises:
        SourceError: there is no such file system or file, it has no data file, or it cannot be reached.
    """
    shown = mask(address)
    system, path = _open_system(address)
    is_web = scheme_of(address) in ("http", "https")
    has_pattern = "*" in path if is_web else glob.has_magic(path)
    if has_pattern:
        paths = _try(lambda: list(system.glob(path)), address)
        first = min(path.index(wildcard) for wildcard in ("*" if is_web else "*?[") if wildcard in path)
        root = path[:first].rpartition("/")[0]
        return _files(system, paths, root, address, shown), False
    if is_web and not path.partition("?")[0].endswith("/"):
        return [_data_file(system, path, _web_name(path), address)], True
    entry = {"type": "directory"} if is_web else _try(lambda: system.info(path), address)
    if entry["type"] == "file":
        return [_data_file(system, path, PurePosixPath(path).name, address)], True
    paths = _try(lambda: list(system.find(path, maxdepth=MAX_DEPTH)), address)
    return _files(system, paths, path.rstrip("/"), address, shown), False


def _web_name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name or "index"


def _files(system: Any, paths: list[str], root: str, address: str, shown: str) -> list[DataFile]:
    found: list[DataFile] = []
    for path in sorted(paths):
        inside = PurePosixPath(unquote(urlsplit(path).path if "://" in path else path))
        base = PurePosixPath(unquote(urlsplit(root).path if "://" in root else root))
        if inside.is_relative_to(base):
            inside = inside.relative_to(base)
        if any(part.startswith(".") for part in inside.parts) or not is_data_name(inside.name):
            continue
        file = _data_file(system, path, inside.as_posix(), address)
        if inside.suffix.lower() == ".zip":
            found += list_archive(file.locate(), file.shown, inside)
        elif file_format(inside) is not None:
            found.append(file)
    if not found:
        raise no_data(shown, [PurePosixPath(path).name for path in paths])
    tables = [file for file in found if file.format != "text"]
    return tables or common_folder_removed(found)


def _data_file(system: Any, path: str, inside: str, address: str) -> DataFile:
    scheme = scheme_of(address)
    shown = mask(path if scheme in ("http", "https") else f"{scheme}://{path.lstrip('/')}")
    return DataFile(PurePosixPath(inside), shown, functools.cache(lambda: _download(system, path, address, shown)))


def _download(system: Any, path: str, address: str, shown: str) -> Path:
    """Give a copy of a file; one that lies in the cache is taken where size, ETag or time say that it is the same."""
    folder = cache_dir("downloads")
    info = _try(lambda: system.info(path), address)
    marks = {name: str(info[name]) for name in MARKS if info.get(name) is not None}
    size = info.get("size")
    where = hashlib.sha256(shown.encode()).hexdigest()[:32]
    state = hashlib.sha256(json.dumps([marks, size]).encode()).hexdigest()[:16] if marks else "unmarked"
    copy = folder / f"{where}-{state}"
    if marks and copy.is_file() and (size is None or copy.stat().st_size == size):
        return copy

    def fetch() -> Path:
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
        os.close(handle)
        try:
            system.get_file(path, temporary)
            got = os.path.getsize(temporary)
            if size is not None and got != size:
                raise OSError(f"{got:,} of {size:,} bytes came")
            os.replace(temporary, copy)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return copy

    copy = _try(fetch, address)
    for older in folder.glob(f"{where}-*"):
        if older != copy:
            with contextlib.suppress(OSError):
                older.unlink()
    return copy


def _try(call: Callable[[], T], address: str) -> T:
    """Ask, and ask again a few times where the network or the server may recover."""
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except HeadstartError:
            raise
        except Exception as error:  # fsspec, aiohttp, pyarrow and huggingface_hub raise errors of their own
            status, reason, is_final = _diagnose(error)
            if is_final or attempt == ATTEMPTS - 1:
                raise _remote_error(address, status, reason, attempt + 1) from None
        time.sleep(FIRST_WAIT_SECONDS * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def _diagnose(error: BaseException) -> tuple[int | None, str, bool]:
    """Give the status of an answer, what was said, and whether asking again is of no use."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error
    response = getattr(cause, "response", None)
    status = getattr(cause, "status", None) or getattr(response, "status_code", None)
    status = status if isinstance(status, int) else None
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200] or type(cause).__name__
    if status is None and "ACCESS_DENIED" in str(cause).upper():
        status = 403
    if status is not None:
        return status, reason, status not in (408, 425, 429) and status < 500
    if isinstance(cause, FileNotFoundError):
        return 404, reason, True
    return None, reason, isinstance(cause, (PermissionError, NotADirectoryError, ValueError, TypeError))


def _remote_error(address: str, status: int | None, reason: str, attempts: int) -> SourceError:
    shown, reason = mask(address), scrub(reason, address).rstrip(".")
    tried = f", asked {attempts} times" if attempts > 1 else ""
    if status in (404, 410):
        return SourceError(
            f"{shown}: there is no such file ({status}).", "An address that exists.", "Check the address."
        )
    if status in (401, 403):
        fix = "Check the credentials and rights."
        if scheme_of(address) in ("s3", "s3a"):
            fix = (
                "Check AWS_ACCESS_KEY_ID, AWS_PROFILE and the rights; a public bucket needs ?anonymous=true at the end."
            )
        elif scheme_of(address) in ("gs", "gcs"):
            fix = (
                "Check GOOGLE_APPLICATION_CREDENTIALS and the rights; a public bucket needs ?anonymous=true at the end."
            )
        return SourceError(f"{shown}: access is refused ({status}).", "An address that you may read.", fix)
    if status is not None:
        return SourceError(
            f"{shown}: the server answers {status} ({reason}){tried}.", "An answer with the file.", "Try again later."
        )
    return SourceError(
        f"{shown}: cannot be read ({reason}){tried}.",
        "An address that can be reached from here.",
        "Check the address and the network connection, or download the file and name it.",
    )


def _open_system(address: str) -> tuple[Any, str]:
    """Give the file system of an address, and the path in it."""
    scheme = scheme_of(address) or ""
    if scheme in ("s3", "s3a", "gs", "gcs"):
        from fsspec.implementations.arrow import ArrowFSWrapper

        rest, _, query = address.partition("://")[2].partition("?")
        options = dict(parse_qsl(query))
        place = rest.rpartition("@")[2] if "@" in rest.partition("/")[0] else rest
        keys = rest.partition("/")[0].rpartition("@")[0]
        make = _s3 if scheme.startswith("s3") else _gcs
        return ArrowFSWrapper(
            _try(lambda: make(place.partition("/")[0], options, keys, address), address)
        ), place.rstrip("/")
    import fsspec

    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        system = fsspec.filesystem(
            "http", client_kwargs={"timeout": timeout}, skip_instance_cache=True, use_listings_cache=False
        )
        return system, address
    if scheme == "hf":
        from huggingface_hub import HfFileSystem

        return HfFileSystem(skip_instance_cache=True, use_listings_cache=False), address.partition("://")[2].rstrip("/")
    return fsspec.filesystem("memory"), "/" + address.partition("://")[2].strip("/")


def _refuse_others(options: dict[str, str], known: list[str], address: str) -> None:
    for name in options:
        if name not in known:
            raise SourceError(
                f'{mask(address)}: the option "{name}" is unknown.', "An option of docs/data.md.", suggest(name, known)
            )


def _s3(bucket: str, options: dict[str, str], keys: str, address: str) -> Any:
    from pyarrow import fs

    _refuse_others(options, ["anonymous", "endpoint", "region"], address)
    endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)
    given: dict[str, Any] = {"region": region or "us-east-1"}
    if endpoint:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        given |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    if options.get("anonymous", "").lower() == "true":
        given["anonymous"] = True
    if keys:
        given["access_key"], _, given["secret_key"] = (unquote(part) for part in keys.partition(":"))
    return fs.S3FileSystem(connect_timeout=CONNECT_SECONDS, request_timeout=SILENCE_SECONDS, **given)


def _gcs(bucket: str, options: dict[str, str], keys: str, address: str) -> Any:
    import datetime

    from pyarrow import fs

    _refuse_others(options, ["anonymous", "endpoint"], address)
    endpoint = options.get("endpoint") or os.environ.get("STORAGE_EMULATOR_HOST")
    given: dict[str, Any] = {}
    if endpoint:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        given |= {"endpoint_override": parts.netloc, "scheme": parts.scheme}
    if options.get("anonymous", "").lower() == "true":
        given["anonymous"] = True
    return fs.GcsFileSystem(retry_time_limit=datetime.timedelta(seconds=SILENCE_SECONDS), **given)
