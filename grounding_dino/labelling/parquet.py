"""Pictures in parquet files: a column of encoded pictures or of paths, perhaps with names, categories and captions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PICTURE_COLUMNS = ("image", "jpg", "png", "webp", "bytes", "image_bytes")  # first of these that is there
NAME_COLUMNS = ("file_name", "filename", "image_path", "path")
WORDS_COLUMNS = ("categories", "caption")
_ROWS_AT_ONCE = 16


def open_parquet(path: str) -> Any:
    """
    Raises:
        ValueError: pyarrow is missing, or the file is no parquet file.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("parquet files are read by pyarrow, which is not installed: pip install pyarrow") from error
    try:
        return parquet.ParquetFile(path, memory_map=True)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path!r} is no parquet file: {error}") from error


def picture_column(file: Any, path: str) -> tuple[str | None, str | None]:
    """The column of encoded pictures (perhaps inside of a struct, "image.bytes"), and the one of names or paths.

    Raises:
        ValueError: there is neither.
    """
    from pyarrow import types

    schema = file.schema_arrow
    encoded = name = None
    for column in PICTURE_COLUMNS:
        kind = schema.field(column).type if column in schema.names else None
        if kind is None:
            continue
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:  # as Hugging Face's data sets have it
            encoded = f"{column}.bytes"
            name = f"{column}.path" if kind.get_field_index("path") >= 0 else None
        elif types.is_binary(kind) or types.is_large_binary(kind):
            encoded = column
        elif types.is_string(kind) or types.is_large_string(kind):
            name = column
        if encoded or name:
            break
    name = next((column for column in NAME_COLUMNS if column in schema.names), name)
    if encoded is None and name is None:
        raise ValueError(
            f"{path!r} has the columns {', '.join(schema.names)}, but neither pictures "
            f"({', '.join(PICTURE_COLUMNS)}) nor paths ({', '.join(NAME_COLUMNS)})"
        )
    return encoded, name


def list_rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of each row, with `encoded` (whether it has a picture in it), `file_name`, `categories`, `caption`.

    Raises:
        ValueError: see above.
    """
    import pyarrow

    file = open_parquet(path)
    encoded, name = picture_column(file, path)
    columns = [column for column in WORDS_COLUMNS if column in file.schema_arrow.names]
    number = 0
    try:
        batches = file.iter_batches(1024, columns=columns + ([name] if name else []))
        for batch in batches if columns or name else _empty_batches(file):
            for row in batch if isinstance(batch, list) else batch.to_pylist():
                given = _inside(row, name) if name else None
                yield number, {**row, "encoded": encoded is not None, "file_name": given}
                number += 1
    except pyarrow.ArrowException as error:
        raise ValueError(f"row {number} cannot be read: {error}") from error


def _empty_batches(file: Any) -> Iterator[list[dict[str, Any]]]:
    """Rows of which nothing has to be read."""
    return ([{}] for _ in range(file.metadata.num_rows))


def _inside(row: dict[str, Any], column: str) -> Any:
    """The value of a column, which may lie in a struct."""
    value: Any = row
    for part in column.split("."):
        value = None if value is None else value[part]
    return value


class EncodedRows:
    """The encoded pictures of a parquet file, read from front to back; a row before the last ones starts anew."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = open_parquet(path)
        column, _ = picture_column(self._file, path)
        if column is None:
            raise ValueError(f"{path!r} has no column of pictures any more")
        self._column = column
        self._rewind()

    def _rewind(self) -> None:
        self._batches = self._file.iter_batches(_ROWS_AT_ONCE, columns=[self._column])
        self._next, self._kept = 0, dict[int, Any]()

    def close(self) -> None:
        """Let the file go."""
        self._file.close()

    def __getitem__(self, row: int) -> bytes:
        """
        Raises:
            ValueError: there is no such row, or no picture in it.
        """
        if row < self._next and row not in self._kept:
            self._rewind()
        while row >= self._next:
            batch = next(self._batches, None)
            if batch is None:
                raise ValueError(f"{self._path!r} has no row {row} any more; was it changed during the run?")
            column = batch.column(0)
            rows = {self._next + place: column[place] for place in range(len(column))}
            newest = {place: kept for place, kept in self._kept.items() if place >= self._next - _ROWS_AT_ONCE}
            self._kept, self._next = {**newest, **rows}, self._next + len(column)
        value = self._kept[row].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if not value:
            raise ValueError(f"row {row} of {self._path!r} has no picture")
        return bytes(value)
