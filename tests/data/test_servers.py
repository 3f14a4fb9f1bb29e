"""Sources that a server gives: PostgreSQL, and files behind the interface of S3; each test starts its own."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest

import headstart
from headstart.cli.main import main
from headstart.data.sources import read_source
from headstart.errors import DataError

ROWS = [{"text": f"row {i}", "label": i % 2} for i in range(20)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
PASSWORD = "a/b@c:d e"
QUOTED = urllib.parse.quote(PASSWORD, safe="")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))


def fail(source: object, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_source(source, **options)
    return str(caught.value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_program(name: str) -> str | None:
    """Find a program of PostgreSQL, which Debian keeps off the path."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a PostgreSQL with a table, and give the address of its database."""
    initdb, pg_ctl, psql = (find_program(name) for name in ("initdb", "pg_ctl", "psql"))
    if initdb is None or pg_ctl is None or psql is None:
        pytest.skip("PostgreSQL's programs are not installed")
    folder = tmp_path_factory.mktemp("postgres")
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:  # its server refuses to be root
        as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody")
        for parent in [folder, *folder.parents][:3]:
            parent.chmod(0o755)
    secret, data, port = folder / "password", folder / "data", free_port()
    secret.write_text(PASSWORD, encoding="utf-8")

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **as_user)
        assert done.returncode == 0, done.stderr

    run(initdb, "-D", str(data), "-U", "ann", "--pwfile", str(secret), "-A", "scram-sha-256", "-N", "-E", "UTF8")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    run(pg_ctl, "-D", str(data), "-l", str(folder / "log"), "-o", options, "-w", "start")
    statements = """
        CREATE TABLE reviews (text text, label int, price numeric(8, 2), seen timestamptz, tags text[]);
        INSERT INTO reviews SELECT 'row ' || i, i % 2, i / 2.0, now(), ARRAY['a', 'b'] FROM generate_series(0, 19) i;
        CREATE SCHEMA other; CREATE TABLE other.empty (text text);
    """
    environment = {**os.environ, "PGPASSWORD": PASSWORD}
    login = [psql, "-h", "127.0.0.1", "-p", str(port), "-U", "ann", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-q"]
    try:
        subprocess.run(login, input=statements, text=True, check=True, env=environment, capture_output=True)
        yield f"postgresql://ann:{QUOTED}@127.0.0.1:{port}/postgres"
    finally:
        run(pg_ctl, "-D", str(data), "-m", "immediate", "stop")


def test_a_table_and_a_query_of_postgresql(postgres: str) -> None:
    table = read_source(f"{postgres}::reviews").splits["train"]
    assert table.select_columns(["text", "label"]).to_list() == ROWS
    assert table["price"][:3] == [0.0, 0.5, 1.0] and table["tags"][0] == ["a", "b"]
    query = "SELECT text, label FROM reviews WHERE label = 1 ORDER BY text"
    expected = sorted(row["text"] for row in ROWS if row["label"])
    for read in (read_source(postgres, query=query), read_source(f"{postgres}::{query}")):
        assert read.splits["train"]["text"][:] == expected
    assert read_source(f"{postgres}::reviews[:5]").splits["train"].num_rows == 5


def test_what_is_wrong_with_postgresql_is_said_without_its_password(postgres: str) -> None:
    said = [
        fail(f"{postgres}::review"),
        fail(f"{postgres}::other.empty"),
        fail(postgres),
        fail(f"{postgres}::SELECT nothing FROM reviews"),
        fail(postgres, query="DELETE FROM reviews"),
        fail(postgres.replace(QUOTED, "wrong-one")),
        fail(postgres.replace("/postgres", "/nowhere")),
        fail(f"postgresql://ann:{QUOTED}@127.0.0.1:{free_port()}/postgres"),
    ]
    for words, message in zip(
        ['Did you mean "reviews"?', "no row", "2 tables: other.empty, reviews", "nothing", "read-only", "password"],
        said,
        strict=False,
    ):
        assert words in message
    assert not any(secret in message for message in said for secret in (PASSWORD, QUOTED, "wrong-one"))
    assert read_source(f"{postgres}::reviews").splits["train"].num_rows == 20  # nothing was deleted


def test_a_training_from_postgresql_leaves_no_password(
    postgres: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REVIEWS_PASSWORD", PASSWORD)
    address = postgres.replace(QUOTED, "${REVIEWS_PASSWORD}")
    words = ["train", f"{address}::reviews", "--text", "text", "--label", "label", "--model", str(tiny_model_dir)]
    assert main([*words, "--run", str(tmp_path / "run"), "--debug", "--quiet", "--set", "train.fast=false"]) == 0
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert PASSWORD.encode() not in content and QUOTED.encode() not in content, path
    again = headstart.load(tmp_path / "run").recipe.data.train
    assert again is not None and "${REVIEWS_PASSWORD}" in again


class _Bucket(http.server.BaseHTTPRequestHandler):
    """What S3 answers to a listing, a look at an object, and a read of some of its bytes."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar = {
        "data/train-1.jsonl": JSONL,
        "data/train-2.jsonl": JSONL,
        "data/test.jsonl": JSONL,
        "other/a.csv": b"x",
    }

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def _answer(self, *, is_head: bool) -> None:
        path, _, query = self.path.partition("?")
        bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
        options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        body, status, headers = b"", 200, {"Content-Type": "application/octet-stream"}
        if bucket == "closed":
            status = 403
        elif "list-type" in options:
            body = self._listing(options.get("prefix", ""), options.get("delimiter", ""))
        elif key in self.objects:
            body = self.objects[key]
            headers |= {"ETag": f'"{hash(body) & 0xFFFF:x}"', "Last-Modified": "Mon, 23 Nov 2026 10:00:00 GMT"}
            asked = self.headers.get("Range", "")
            if asked.startswith("bytes="):
                first, last = asked.removeprefix("bytes=").split("-")
                end = min(int(last), len(body) - 1)
                headers["Content-Range"] = f"bytes {first}-{end}/{len(body)}"
                body, status = body[int(first) : end + 1], 206
        else:
            status = 404
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not is_head:
            self.wfile.write(body)

    def _listing(self, prefix: str, delimiter: str) -> bytes:
        found, folders = [], set()
        for key in sorted(self.objects):
            if key.startswith(prefix):
                rest = key.removeprefix(prefix)
                if delimiter and delimiter in rest:
                    folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                else:
                    found.append(key)
        contents = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(self.objects[key])}</Size>"
            "<LastModified>2026-11-23T10:00:00.000Z</LastModified></Contents>"
            for key in found
        )
        common = "".join(f"<CommonPrefixes><Prefix>{each}</Prefix></CommonPrefixes>" for each in sorted(folders))
        return (
            '<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated>'
            f"<KeyCount>{len(found) + len(folders)}</KeyCount>{contents}{common}</ListBucketResult>"
        ).encode()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("headstart.data.remote.FIRST_WAIT_SECONDS", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Bucket) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"?anonymous=true&endpoint=http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_bucket_is_read_as_a_file_a_folder_and_a_pattern(bucket: str) -> None:
    one = read_source(f"s3://reviews/data/train-1.jsonl{bucket}")
    assert one.splits["train"].to_list() == ROWS
    whole = read_source(f"s3://reviews/data{bucket}")
    assert {name: table.num_rows for name, table in whole.splits.items()} == {"train": 40, "test": 20}
    some = read_source(f"s3://reviews/data/train-*.jsonl{bucket}")
    assert some.splits["train"].num_rows == 40
    assert "no such file" in fail(f"s3://reviews/data/train-3.jsonl{bucket}")
    assert "access is refused (403)" in fail(f"s3://closed/data/train-1.jsonl{bucket}")
    assert 'the option "anonymus" is unknown' in fail("s3://reviews/a.csv?anonymus=true")


def test_a_file_system_of_fsspec_in_memory() -> None:
    system = fsspec.filesystem("memory")
    for name in ("train", "test"):
        system.pipe_file(f"/films/{name}.jsonl", JSONL)
    try:
        read = read_source("memory://films")
        assert set(read.splits) == {"train", "test"} and read.splits["test"].to_list() == ROWS
        assert read_source("memory://films/*.jsonl").splits["train"].num_rows == 20
        assert "no such file (404)" in fail("memory://films/nowhere.csv")
    finally:
        system.rm("/films", recursive=True)
