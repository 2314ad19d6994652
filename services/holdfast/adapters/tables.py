"""Tables of bounds per entity, as CSV or Parquet files beside the policy."""

import csv as lines_of_csv
import hashlib
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.core.memory import Table
from holdfast.core.policy import PolicyError

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
COLUMNS = ("entity_id", "min", "max")
MAX_ROWS = 5_000_000
UNPACKED_BYTES = 1024 * 2**20
NEWLINE = b"\n"


def load_table(path: Path, content: bytes) -> tuple[Table, str]:
    """Read the content of a CSV or Parquet file with the columns entity_id, min, max; and its digest.

    A missing `min` or `max` column, an empty cell of a CSV file and a null of a Parquet file leave that side open.
    Whatever else is not a finite number is refused: `NA` may stand for a bound that was lost on the way. Raises
    PolicyError, which begins with the path, names the line, and quotes nothing of the file.
    """
    # It takes longer to import than most policies, which have no table, to load.
    from pyarrow import ArrowException, csv, string

    try:
        if path.suffix == ".parquet":
            rows = _parquet(path, content)
        else:
            # As texts: the reader's own conversion takes `NA`, `null` and a dozen others for empty cells.
            convert = csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, string()), strings_can_be_null=False)
            rows = csv.read_csv(BytesIO(content), convert_options=convert)
        return _Reading(path, content, rows).table(), hashlib.sha256(content).hexdigest()
    except (ArrowException, ValueError, OSError):
        # What Arrow says quotes the line.
        raise PolicyError(f"{path}{_what_is_wrong(path, content)}; write the whole table") from None


def _what_is_wrong(path: Path, content: bytes) -> str:
    """Why a table cannot be read, and where, as far as that can be told."""
    if not content:
        return " is empty"
    if path.suffix == ".parquet":
        return " is not Parquet"
    try:
        lines = lines_of_csv.reader(StringIO(content.decode("utf-8-sig"), newline=""))
        cells = 0
        for line in lines:
            if cells and line and len(line) != cells:
                return f", line {lines.line_num}: it has not as many cells as the first line"
            cells = cells or len(line)
    except UnicodeDecodeError as error:
        return f", line {content.count(NEWLINE, 0, error.start) + 1}: it is not UTF8 text"
    except lines_of_csv.Error:
        pass
    return " is not CSV"


def _parquet(path: Path, content: bytes) -> Any:
    """The rows, which may have less bytes in the file than in memory: a few bytes can stand for millions of rows."""
    from pyarrow import BufferReader, parquet

    # A text that repeats is not unpacked before it is known that no entity does.
    file = parquet.ParquetFile(BufferReader(content), read_dictionary=["entity_id"])
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    if file.metadata.num_rows > MAX_ROWS or sum(group.total_byte_size for group in groups) > UNPACKED_BYTES:
        raise PolicyError(
            f"{path} has more than {MAX_ROWS:,} rows, or unpacks to more than {UNPACKED_BYTES // 2**20} MiB; "
            "make it smaller"
        )
    return file.read()


class _Reading:
    def __init__(self, path: Path, content: bytes, rows: Any) -> None:
        self._path, self._content, self._rows = path, content, rows

    def table(self) -> Table:
        path, rows = self._path, self._rows
        if (
            "entity_id" not in rows.column_names
            or set(rows.column_names) - set(COLUMNS)
            or len(set(rows.column_names)) < rows.num_columns
        ):
            raise PolicyError(f"{path} must have the columns entity_id, min, max, each once, and no others")
        if not rows.num_rows:
            raise PolicyError(f"{path} has no rows; write the bounds of at least one entity into it")
        twice = PolicyError(f"{path} lists an entity twice, or has a row without one; keep one row for each")
        if rows.num_rows > MAX_ROWS:
            raise PolicyError(f"{path} has more than {MAX_ROWS:,} rows; make it smaller")
        if _repeats(rows.column("entity_id")):
            raise twice
        entities = rows.column("entity_id").cast("string").to_pylist()
        index = {entity: row for row, entity in enumerate(entities) if entity}
        if len(index) != len(entities):
            raise twice
        low, high = self._side("min"), self._side("max")
        for row in np.flatnonzero(low > high)[:1].tolist():
            raise self._refused(row, "min is above its max")
        return Table(index, low, high)

    def _side(self, side: str) -> NDArray[np.float64]:
        """(n,) the bounds of one side; NaN where it is open."""
        import pyarrow.compute
        from pyarrow import types

        compute: Any = pyarrow.compute
        if side not in self._rows.column_names:
            return np.full(self._rows.num_rows, np.nan)
        column = self._rows.column(side)
        if types.is_string(column.type) or types.is_large_string(column.type):
            column = compute.utf8_trim_whitespace(column)
            column = compute.if_else(compute.equal(column, ""), None, column)
            self._refuse_first(side, compute.invert(compute.match_substring_regex(column, _NUMBER)))
        elif types.is_boolean(column.type) or types.is_temporal(column.type):
            raise PolicyError(f"{self._path}: {side} is of type {column.type}; write numbers")
        column = column.cast("float64")
        self._refuse_first(side, compute.invert(compute.is_finite(column)))
        bounds: NDArray[np.float64] = column.to_numpy().astype(np.float64)
        return bounds

    def _refuse_first(self, side: str, wrong: Any) -> None:
        """Raise PolicyError for the first cell that is wrong; `wrong` is null where the cell is empty."""
        for row in np.flatnonzero(wrong.fill_null(False).to_numpy())[:1].tolist():
            raise self._refused(row, f"{side} is not a finite number; leave the cell empty where there is no bound")

    def _refused(self, row: int, what: str) -> PolicyError:
        if self._path.suffix == ".parquet":
            return PolicyError(f"{self._path}, row {row + 1}: {what}")
        lines = lines_of_csv.reader(StringIO(self._content.decode("utf-8", "replace"), newline=""))
        # Empty lines are no rows; the first one that is not is the header.
        numbers = [lines.line_num for cells in lines if cells]
        return PolicyError(f"{self._path}, line {numbers[min(row + 1, len(numbers) - 1)]}: {what}")


def _repeats(column: Any) -> bool:
    """Whether a column that is kept as a dictionary has a text twice in one piece."""
    from pyarrow import types

    return types.is_dictionary(column.type) and any(
        len(chunk.indices.unique()) < len(chunk.indices) for chunk in column.chunks
    )
