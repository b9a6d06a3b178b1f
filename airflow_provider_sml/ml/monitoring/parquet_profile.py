"""Profiles of Parquet files in one pass over each column.

What the files hold as it is asked for, Arrow reads: it decodes ahead in threads of its own while this one counts, and
its values need no copy, so that it costs a fifth less than to have DuckDB hand over rows. In this process DuckDB
computes expressions, and groups stored columns of few values, whose dictionaries it looks at entry by entry. A Python
worker of Spark counts all stored columns itself (``file_profile``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.fs as pafs

from airflow_provider_sml.ml import storage
from airflow_provider_sml.ml.expressions import identifier
from airflow_provider_sml.ml.monitoring import profile_sql
from airflow_provider_sml.ml.monitoring.profile import CAP, Kind, Profile, beside, empty, of_batches
from airflow_provider_sml.ml.monitoring.profile_sql import Column

if TYPE_CHECKING:
    import duckdb

#: What DuckDB may hold.
MEMORY = "512MB"
#: Rows read at once.
BATCH = 65_536
#: Batches decoded ahead, and files opened.
_AHEAD = 1
#: A column has few values where the first dictionary that a file holds of it takes so many bytes at most: 512 numbers.
_FEW_BYTES = 4_500
#: Rows under which nothing is known of that.
_ENOUGH = 2_048
#: Name under which the segment is read beside the columns.
SEGMENT = "segment of the row"


class ParquetRows:
    """The rows of Parquet files; a column that some lack is NULL there. It is a context manager, which closes them.

    :param sources: paths or addresses of files, or the whole contents of files; at least one.
    :ivar names: the columns.
    """

    def __init__(self, sources: Sequence[str | pa.Buffer]) -> None:
        self._opened = contextlib.ExitStack()
        first, *others = [self._open(source) for source in sources]
        plain = pds.ParquetFileFormat().make_fragment(*first)
        texts = {field.name for field in plain.physical_schema if _is_text(field.type)}
        # Texts come as positions in a dictionary, as files mostly keep them; such are quicker to read and to count.
        form = pds.ParquetFileFormat(dictionary_columns=texts)
        self._fragments = [form.make_fragment(*file) for file in (first, *others)]
        fields: dict[str, list[pa.Field]] = {}
        for fragment in self._fragments:
            for field in fragment.physical_schema:
                fields.setdefault(field.name, []).append(field)
        self.names = list(fields)
        self._schema = pa.schema([field for found in fields.values() if (field := _common(found))])

    def __enter__(self) -> ParquetRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _open(self, source: str | pa.Buffer) -> tuple[Any, ...]:
        """What Arrow makes a fragment of."""
        if isinstance(source, pa.Buffer):
            return (source,)
        if not storage.is_remote(source):
            return storage.address(source), pafs.LocalFileSystem()
        # Arrow asks for the ranges that it needs, all at once: more ahead of each would be read in vain.
        return (self._opened.enter_context(storage.file_system(source).open(source, "rb", cache_type="none")),)

    def holds(self, name: str | None, kind: Kind) -> bool:
        """Whether the files hold a column so that it needs no computing.

        :param name: of a column.
        :param kind: what it is to be taken for.
        """
        if name is None or name not in self._schema.names:
            return False
        held = self._schema.field(name).type
        if pa.types.is_integer(held):
            return True
        if kind == "number":
            return bool(pa.types.is_floating(held) or pa.types.is_boolean(held))
        return bool(pa.types.is_dictionary(held) or _is_text(held))

    def has_few_values(self, name: str) -> bool:
        """Whether a column seems to have few different values, by the first of the files.

        :param name: of a column.
        """
        footer = self._fragments[0].metadata
        if footer.num_rows < _ENOUGH:
            return False
        group = footer.row_group(0)
        for at in range(group.num_columns):
            chunk = group.column(at)
            if chunk.path_in_schema == name:
                first = chunk.dictionary_page_offset
                return bool(first and chunk.data_page_offset - first <= _FEW_BYTES)
        return False

    def batches(self, names: Iterable[str], threads: bool = True) -> Iterator[pa.RecordBatch]:
        """The rows, ``BATCH`` at most at once.

        :param names: of columns that are there, of one type in all files.
        :param threads: whether Arrow may decode ahead in threads.
        """
        rows = pds.FileSystemDataset(self._fragments, self._schema, pds.ParquetFileFormat())
        yield from rows.to_batches(
            columns=list(names), batch_size=BATCH, batch_readahead=_AHEAD, fragment_readahead=_AHEAD,
            use_threads=threads,
        )  # fmt: skip

    def profile(self, columns: Sequence[Column], segment: str | None = None, cap: int = CAP) -> Profile:
        """The profile of stored columns.

        :param columns: those that the files hold as ``holds`` has it.
        :param segment: a stored column by whose values the rows are profiled apart as well.
        :param cap: categories counted each by itself.
        """
        stored = {column.name: str(column.stored) for column in columns}
        kinds: dict[str, Kind] = {column.name: column.kind for column in columns}
        names = stored | ({SEGMENT: segment} if segment else {})
        rows = (
            pa.record_batch({name: batch.column(column) for name, column in names.items()})
            for batch in self.batches(dict.fromkeys(names.values()))
        )
        return of_batches(rows, kinds, segment=SEGMENT if segment else None, cap=cap)


def of_parquet(
    files: Sequence[str],
    columns: Sequence[Column],
    segment: str | None = None,
    known: Iterable[str] | None = None,
    cap: int = CAP,
    connection: duckdb.DuckDBPyConnection | None = None,
) -> Profile:
    """Profile Parquet files; a few batches of rows are held at a time.

    :param files: paths, or addresses on an object store.
    :param columns: what to profile, in DuckDB's dialect.
    :param segment: a stored column by whose values the rows are profiled apart as well.
    :param known: the columns that expressions may name; one that no file holds is NULL. Those of the files when None.
    :param cap: categories counted each by itself.
    :param connection: of DuckDB, to which the files' store is known; one is opened when None.
    """
    from airflow_provider_sml.ml.lake.reading import rows_of

    if not files:
        return empty({column.name: column.kind for column in columns})
    with ParquetRows(files) as rows:
        straight = []
        if segment is None or rows.holds(segment, "category"):
            straight = [column for column in columns if rows.holds(column.stored, column.kind)]
        if segment is None:
            straight = [column for column in straight if not rows.has_few_values(str(column.stored))]
        asked = [column for column in columns if column not in straight]
        names = rows.names if known is None else known

        def by_duckdb() -> Profile:
            opened = connection.cursor() if connection else storage.connect_duckdb(files[:1], {"memory_limit": MEMORY})
            with opened as cursor:
                rows_of(cursor, files, names).create_view("rows_to_profile", replace=True)
                by = identifier(segment, "duckdb") if segment else None
                return profile_sql.of_duckdb(cursor, "rows_to_profile", asked, cap, by)

        if not asked:
            return rows.profile(straight, segment, cap)
        if not straight:
            return by_duckdb()
        with ThreadPoolExecutor(1) as pool:  # DuckDB and Arrow let others work while they do
            rest = pool.submit(by_duckdb)
            found = rows.profile(straight, segment, cap)
            return beside(found, rest.result(), [column.name for column in columns])


def _common(fields: Sequence[pa.Field]) -> pa.Field | None:
    """A column of files whose types differ at most in width; None for another."""
    try:
        return pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive").field(0)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def _is_text(held: pa.DataType) -> bool:
    return bool(pa.types.is_string(held) or pa.types.is_large_string(held))
