"""A table or a query of a database to a table.

Holds one reader a database; all stream rows into the cache. Imports the standard library and pyarrow; duckdb (extra
`duckdb`) and adbc-driver-postgresql (extra `postgres`) inside functions.

    sqlite:///reviews.db::reviews            a table or view; four slashes begin an absolute path
    duckdb:///reviews.duckdb::SELECT ...     a query
    postgresql://user@host/db                the only table, or the query of data.query

Databases are opened for reading. Their rows can change without a trace, so they are read anew each time, and the
fingerprint is
that of the rows.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from headstart.addresses import mask, scheme_of, scrub
from headstart.data.arrow_values import TypeConflict, merge_types
from headstart.data.columnar import as_schema, plain_schema
from headstart.data.delimited import RowStream, column_names
from headstart.data.files import ReadFile
from headstart.data.json_rows import stream_rows
from headstart.data.table_cache import store_rows
from headstart.errors import HeadstartError, SourceError, nearest_name, suggest

__all__ = ["DatabaseAddress", "absolute_address", "read_database", "split_address"]

CHUNK_ROWS = 10_000
CONNECT_SECONDS = 15
_QUERY = re.compile(r"^\s*(?:\(\s*)*(select|with|values|from|table)\b", re.IGNORECASE)


@dataclass(frozen=True)
class DatabaseAddress:
    """Where rows of a database are.

    Args:
        base: the address of the database, secrets included.
        table: a table or view; None where a query or nothing is named.
        query: a statement that gives rows.
    """

    base: str
    table: str | None = None
    query: str | None = None

    @property
    def scheme(self) -> str:
        """sqlite, duckdb or postgresql."""
        return {"postgres": "postgresql"}.get(scheme_of(self.base) or "", scheme_of(self.base) or "")

    @property
    def shown(self) -> str:
        """The address for messages and files, without secrets."""
        what = self.table or self.query
        return mask(self.base) + (f"::{what}" if what else "")

    @property
    def path(self) -> Path:
        """The file of a database that is one."""
        return Path(self.base.partition("://")[2].partition("?")[0].removeprefix("/")).expanduser()

    @property
    def name(self) -> str:
        """A short name, for naming the run."""
        return self.table or (
            self.path.stem if self.scheme != "postgresql" else self.base.rpartition("/")[2].partition("?")[0]
        )


def split_address(address: str) -> DatabaseAddress:
    """Take the table or query off the end of a database's address.

    Example:
        >>> split_address("sqlite:///a.db::reviews").table
        'reviews'
        >>> split_address("sqlite:///a.db::SELECT text FROM reviews").query
        'SELECT text FROM reviews'
    """
    start = address.index("://") + 3
    host_end = address.find("]", start, address.find("/", start) if "/" in address[start:] else None)  # [::1] is a host
    cut = address.find("::", max(start, host_end))
    if cut < 0:
        return DatabaseAddress(address)
    base, what = address[:cut], address[cut + 2 :].strip()
    if not what:
        return DatabaseAddress(base)
    return DatabaseAddress(base, query=what) if _QUERY.match(what) else DatabaseAddress(base, table=what)


def absolute_address(address: str) -> str:
    """Make the path of a database that is a file absolute, so that a recipe means the same from every folder.

    Example:
        >>> absolute_address("sqlite:////data/a.db::reviews")
        'sqlite:////data/a.db::reviews'
    """
    if scheme_of(address) not in ("sqlite", "duckdb") or "${" in address:
        return address
    wanted = split_address(address)
    if not wanted.path.is_file():
        return address
    query = wanted.base.partition("?")[1:]
    return f"{scheme_of(address)}:///{wanted.path.resolve()}{''.join(query)}{address[len(wanted.base) :]}"


def read_database(address: str, query: str | None) -> tuple[DatabaseAddress, ReadFile]:
    """Read a table or the rows of a query.

    Args:
        address: of the database, with `::TABLE` or `::SELECT ...` at its end, variables filled in.
        query: of the recipe; used where the address names neither.

    Returns:
        What was read, and its table.

    Raises:
        SourceError: the database, the table or the extra that reads it is not there; or the query fails or gives no
            row.
    """
    wanted = split_address(address)
    applied: frozenset[str] = frozenset()
    if query is not None and wanted.table is None and wanted.query is None:
        wanted, applied = DatabaseAddress(wanted.base, query=query.strip().rstrip(";")), frozenset({"query"})
    opened: Any = {"sqlite": _Sqlite, "duckdb": _DuckDb, "postgresql": _Postgres}[wanted.scheme]
    notes: list[str] = []
    try:
        with contextlib.closing(opened(wanted)) as database:
            wanted, notes = _choose(database, wanted)
            statement = wanted.query or f"SELECT * FROM {_quoted(wanted.table or '')}"
            if wanted.scheme != "sqlite" and "order by" not in statement.lower():
                notes.append(f"{wanted.name}: rows come in the order of the database; ORDER BY in a query fixes one")
            table, read_notes = _store(lambda types: database.stream(statement, types))
    except HeadstartError:
        raise
    except Exception as error:  # each driver has errors of its own
        raise _query_error(wanted, error) from None
    if table.num_rows == 0:
        raise SourceError(f"{wanted.shown}: no row.", "At least one row.", "Check the table or the query.")
    return wanted, ReadFile(table, [*notes, *read_notes], applied)


def _store(stream: Callable[[Mapping[str, pa.DataType]], RowStream]) -> tuple[Any, list[str]]:
    types: dict[str, pa.DataType] = {}
    while True:
        try:
            rows = stream(types)
            return store_rows(rows.schema, rows.batches, rows.notes)
        except TypeConflict as conflict:
            types[conflict.column] = merge_types(types.get(conflict.column, pa.null()), conflict.type)


def _choose(database: Any, wanted: DatabaseAddress) -> tuple[DatabaseAddress, list[str]]:
    """Check the table that is named, or take the only one."""
    if wanted.query is not None:
        return wanted, []
    tables = database.tables()
    if wanted.table is not None:
        if wanted.table not in tables:
            raise SourceError(
                f'{mask(wanted.base)}: there is no table "{wanted.table}".',
                "A table or view of the database, or a query that begins with SELECT or WITH.",
                suggest(wanted.table, tables),
            )
        return wanted, []
    if len(tables) != 1:
        first = tables[0] if tables else "TABLE"
        raise SourceError(
            f"{mask(wanted.base)}: which rows are meant is not said; the database has {len(tables):,} tables: "
            f"{', '.join(tables[:8]) or 'none'}.",
            "A table or a query.",
            f'Write "{mask(wanted.base)}::{first}", or set data.query, for example to SELECT text, label FROM {first}.',
        )
    return DatabaseAddress(wanted.base, table=tables[0]), [f"{wanted.name}: the table {tables[0]}, the only one"]


def _quoted(table: str) -> str:
    return ".".join('"' + part.replace('"', '""') + '"' for part in table.split("."))


def _query_error(wanted: DatabaseAddress, error: Exception) -> SourceError:
    lines = [line.strip() for line in scrub(str(error), wanted.base).splitlines() if line.strip()]
    reason = " ".join(lines)[:300].rstrip(".")
    where = wanted.shown if wanted.query is None else f"{mask(wanted.base)}, {wanted.query[:200]}"
    return SourceError(
        f"{where}: the rows cannot be read ({reason or type(error).__name__}).",
        "A statement that only reads, on a database that can be reached.",
        "Check the statement, the address, and the rights of the user.",
    )


def _missing_package(package: str, extra: str, wanted: DatabaseAddress) -> SourceError:
    return SourceError(
        f"{wanted.shown}: needs the package {package}.",
        "The extra that reads this database.",
        f"Run: pip install 'headstart[{extra}]'",
    )


def _existing_file(wanted: DatabaseAddress) -> Path:
    path = wanted.path
    if path.is_file():
        return path
    names = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    near = nearest_name(path.name, names)
    raise SourceError(
        f"{wanted.shown}: there is no file {path}.",
        f"A file: {wanted.scheme}:///NAME here, {wanted.scheme}:////PATH from the root.",
        f'Did you mean "{wanted.scheme}:///{path.parent / near}"?' if near else "Check the path.",
    )


class _Sqlite:
    """SQLite, through the standard library."""

    def __init__(self, wanted: DatabaseAddress) -> None:
        path = _existing_file(wanted).resolve()
        self._connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)

    def close(self) -> None:
        self._connection.close()

    def tables(self) -> list[str]:
        rows = self._connection.execute(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY name"
        )
        return [name for (name,) in rows]

    def stream(self, statement: str, types: Mapping[str, pa.DataType]) -> RowStream:
        cursor = self._connection.execute(statement)
        if cursor.description is None:
            raise ValueError("the statement gives no rows")
        names, notes = column_names([column[0] for column in cursor.description], "the query")
        stream = stream_rows(_dicts(cursor, names), "the query", types)
        return RowStream(stream.schema, stream.batches, [*notes, *stream.notes])


def _dicts(cursor: Any, names: list[str]) -> Iterator[Mapping[str, Any]]:
    while rows := cursor.fetchmany(CHUNK_ROWS):
        yield from (dict(zip(names, row, strict=True)) for row in rows)


class _DuckDb:
    """DuckDB, through its own package, which gives Arrow batches."""

    def __init__(self, wanted: DatabaseAddress) -> None:
        try:
            import duckdb
        except ImportError as error:
            raise _missing_package("duckdb", "duckdb", wanted) from error
        self._connection = duckdb.connect(str(_existing_file(wanted)), read_only=True)

    def close(self) -> None:
        self._connection.close()

    def tables(self) -> list[str]:
        return _table_names(self._connection.execute(_LIST_TABLES).fetchall(), "main")

    def stream(self, statement: str, types: Mapping[str, pa.DataType]) -> RowStream:
        rows = self._connection.sql(statement)
        if rows is None:
            raise ValueError("the statement gives no rows")
        return _arrow_stream(rows.to_arrow_reader(CHUNK_ROWS), types)


class _Postgres:
    """PostgreSQL, through ADBC, which streams Arrow batches of a COPY."""

    def __init__(self, wanted: DatabaseAddress) -> None:
        try:
            from adbc_driver_postgresql import dbapi
        except ImportError as error:
            raise _missing_package("adbc-driver-postgresql", "postgres", wanted) from error
        has_timeout = "connect_timeout=" in wanted.base
        joint = "&" if "?" in wanted.base else "?"
        self._connection = dbapi.connect(
            wanted.base if has_timeout else f"{wanted.base}{joint}connect_timeout={CONNECT_SECONDS}"
        )
        self._cursor = self._connection.cursor()
        self._cursor.execute("SET TRANSACTION READ ONLY")

    def close(self) -> None:
        self._cursor.close()
        self._connection.close()

    def tables(self) -> list[str]:
        self._cursor.execute(_LIST_TABLES)
        return _table_names(self._cursor.fetchall(), "public")

    def stream(self, statement: str, types: Mapping[str, pa.DataType]) -> RowStream:
        self._cursor.execute(statement)
        return _arrow_stream(self._cursor.fetch_record_batch(), types)


_LIST_TABLES = (
    "SELECT table_schema, table_name FROM information_schema.tables "
    "WHERE table_schema NOT IN ('information_schema', 'pg_catalog') ORDER BY 1, 2"
)


def _table_names(rows: list[Any], usual: str) -> list[str]:
    return [name if schema == usual else f"{schema}.{name}" for schema, name in rows]


def _arrow_stream(reader: pa.RecordBatchReader, types: Mapping[str, pa.DataType]) -> RowStream:
    """Give batches of plain types: decimals are numbers, and what only the database knows is text."""
    names, notes = column_names(list(reader.schema.names), "the query")
    plain = pa.schema([pa.field(name, _plain(field.type)) for name, field in zip(names, reader.schema, strict=True)])
    schema = plain_schema(plain, types)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            columns = [
                (column.storage if isinstance(column, pa.ExtensionArray) else column).cast(field.type)
                for column, field in zip(batch.columns, plain, strict=True)
            ]
            yield from as_schema(pa.RecordBatch.from_arrays(columns, schema=plain), schema)

    return RowStream(schema, batches(), notes)


def _plain(type: pa.DataType) -> pa.DataType:
    if isinstance(type, pa.BaseExtensionType):
        is_number = getattr(type, "type_name", "") == "numeric"
        return pa.float64() if is_number else _plain(type.storage_type)
    return pa.float64() if pa.types.is_decimal(type) else type
