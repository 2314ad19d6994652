"""Tables of bounds per entity, as CSV or Parquet files beside the policy."""

import csv as lines_of_csv
import hashlib
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast.core.checks import Table
from holdfast.core.policy import PolicyError

_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
COLUMNS = ("entity_id", "min", "max")


def load_table(path: Path) -> tuple[Table, str]:
    """Read a CSV or Parquet file with the columns entity_id, min, max; and the digest of its bytes.

    A missing `min` or `max` column, an empty cell of a CSV file and a null of a Parquet file leave that side open.
    Whatever else is not a finite number is refused: `NA` may stand for a bound that was lost on the way. Raises
    PolicyError.
    """
    # It takes longer to import than most policies, which have no table, to load.
    from pyarrow import ArrowException, BufferReader, csv, parquet, string

    content = b""
    try:
        content = path.read_bytes()
        if path.suffix == ".parquet":
            rows = parquet.read_table(BufferReader(content))
        else:
            # As texts: the reader's own conversion takes `NA`, `null` and a dozen others for empty cells.
            convert = csv.ConvertOptions(column_types=dict.fromkeys(COLUMNS, string()), strings_can_be_null=False)
            rows = csv.read_csv(BytesIO(content), convert_options=convert)
        return _Reading(path, content, rows).table(), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise PolicyError(f"table {path} cannot be read: {error.strerror or error}") from None
    except (ArrowException, ValueError) as error:  # ValueError: a path with a zero byte
        raise PolicyError(f"table {path}: {str(error).partition(chr(10))[0]}") from None


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
            raise PolicyError(
                f"table {path} has the columns {', '.join(rows.column_names)}; they must be entity_id, min, max, each "
                "once"
            )
        if not rows.num_rows:
            raise PolicyError(f"table {path} has no rows; write the bounds of at least one entity into it")
        entities = rows.column("entity_id").cast("string").to_pylist()
        index = {entity: row for row, entity in enumerate(entities) if entity}
        if len(index) != len(entities):
            raise PolicyError(f"table {path} lists an entity twice, or has a row without one; keep one row for each")
        low, high = self._side("min"), self._side("max")
        for row in np.flatnonzero(low > high)[:1].tolist():
            raise self._refused(row, f"min {low[row]:g} is above its max {high[row]:g}")
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
            raise PolicyError(f"table {self._path}: {side} is of type {column.type}; write numbers")
        column = column.cast("float64")
        self._refuse_first(side, compute.invert(compute.is_finite(column)))
        bounds: NDArray[np.float64] = column.to_numpy().astype(np.float64)
        return bounds

    def _refuse_first(self, side: str, wrong: Any) -> None:
        """Raise PolicyError for the first cell that is wrong; `wrong` is null where the cell is empty."""
        for row in np.flatnonzero(wrong.fill_null(False).to_numpy())[:1].tolist():
            seen = str(self._rows.column(side)[row].as_py())[:100]
            raise self._refused(
                row, f"{side} is {seen!r}, which is not a finite number; leave the cell empty where there is no bound"
            )

    def _refused(self, row: int, what: str) -> PolicyError:
        if self._path.suffix == ".parquet":
            return PolicyError(f"table {self._path}, row {row + 1}: {what}")
        lines = lines_of_csv.reader(StringIO(self._content.decode("utf-8", "replace"), newline=""))
        # Empty lines are no rows; the first one that is not is the header.
        numbers = [lines.line_num for cells in lines if cells]
        return PolicyError(f"table {self._path}, line {numbers[min(row + 1, len(numbers) - 1)]}: {what}")
