"""Tables in memory as a Parquet file: data frames, data sets, and lists of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.hub import class_label, class_names
from trainer.errors import DataError, format_error
from trainer.files.atomic_io import create_folder, replaced_file

if TYPE_CHECKING:
    import pyarrow

_KINDS = "a data frame of pandas or polars, a data set of datasets, an Arrow table, a list of dicts or a dict of lists"

_REMEDIES = {
    ("pandas", "Series"): "Pass a data frame, such as the result of to_frame()",
    ("numpy", "ndarray"): "Name its columns: pass pandas.DataFrame(data, columns=[...])",
    ("polars", "LazyFrame"): "Pass the result of collect()",
    ("polars", "Series"): "Pass a data frame, such as the result of to_frame()",
    ("datasets", "DatasetDict"): "Pass its splits one by one, such as data=splits['train'] and test=splits['test']",
    ("datasets", "IterableDataset"): "Pass a data set that is not streamed",
}
"""The remedy for an object that is almost a table, by its package and type."""


def to_table(key: str, data: object) -> pyarrow.Table:
    """Return a table in memory as an Arrow table of its columns; the index of a data frame is not a column.

    Categories become their values, classes of the datasets library their names, and a number that is NaN is missing.

    Args:
        key: The argument that contains the table, for messages.
        data: The table.

    Raises:
        DataError: The object is no table, has no rows, or a column cannot be read.
    """
    import pyarrow

    kind = type(data).__name__
    if remedy := _REMEDIES.get((type(data).__module__.partition(".")[0], kind)):
        raise DataError(format_error(key, "is not one table", remedy, value=kind))
    if isinstance(data, Mapping) and data and not any(map(_is_column, data.values())):
        raise DataError(format_error(key, "is one row and not a table", "Pass a list of rows: [{...}]", value=kind))
    names = _column_names(data)
    if invalid := [name for name in names if not isinstance(name, str) or not name]:
        raise DataError(format_error(key, "the name of a column must be a text", _rename(key), value=invalid[0]))
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(format_error(key, f"has several columns {repeated[0]!r}", _rename(key)))
    try:
        table = _read(data)
        if table is not None:
            for position, field in enumerate(table.schema):
                table = table.set_column(position, field.name, _plain(table.column(position)))
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(" ".join(map(str, error.args)).split())  # pyarrow gives several arguments
        problem = f"a column cannot be read ({reason})"
        raise DataError(format_error(key, problem, "Give all values of a column the same type")) from error
    if table is None:
        raise DataError(format_error(key, f"must be {_KINDS}", value=kind))
    if not table.num_columns or not table.num_rows:
        raise DataError(format_error(key, "has no rows", "Pass at least one row"))
    return table.replace_schema_metadata(None)


def to_rows(key: str, data: object) -> list[dict[str, Any]]:
    """Return a table in memory as rows: one dict for each.

    Raises:
        DataError: As in `to_table`.
    """
    rows: list[dict[str, Any]] = to_table(key, data).to_pylist()
    return rows


def write_table(file: Path, table: pyarrow.Table) -> None:
    """Write a table to a Parquet file whose bytes depend only on the table and the version of pyarrow.

    Raises:
        DataError: The file cannot be written.
    """
    from pyarrow import parquet

    create_folder(file.parent)
    with replaced_file(file, DataError) as stream:
        parquet.write_table(table, stream)


def _rename(key: str) -> str:
    return f"Rename the columns of {key}"


def _column_names(data: object) -> Sequence[object]:
    """Return the names of the columns as far as they may be no texts, or several the same."""
    if isinstance(data, Mapping):
        return list(data)
    if isinstance(data, list | tuple):
        return list(dict.fromkeys(name for row in data if isinstance(row, Mapping) for name in row))
    names: Any = getattr(data, "columns", ())
    return list(names) if all(hasattr(data, each) for each in ("columns", "dtypes")) else []


def _read(data: Any) -> pyarrow.Table | None:
    """Return the columns of a table, or None if this project does not know the kind of the object."""
    import pyarrow

    if isinstance(data, pyarrow.Table):
        return data
    if isinstance(data, Mapping):
        return pyarrow.table({name: _list(values) for name, values in data.items()})
    if isinstance(data, list | tuple):
        if not all(isinstance(row, Mapping) for row in data):
            return None
        names = _column_names(data)
        return pyarrow.table({name: [row.get(name) for row in data] for name in names})
    module = type(data).__module__.partition(".")[0]
    if module == "pandas" and hasattr(data, "dtypes") and hasattr(data, "columns"):
        return pyarrow.Table.from_pandas(data, preserve_index=False)
    if module == "datasets":
        return _read_dataset(data)
    if module == "polars" and (objects := [name for name, dtype in data.schema.items() if str(dtype) == "Object"]):
        raise ValueError(f"{objects[0]!r} contains Python objects")  # Arrow would get their addresses
    if hasattr(data, "__arrow_c_stream__"):  # polars and others
        return pyarrow.table(data)
    return None


def _is_column(values: object) -> bool:
    return hasattr(values, "__iter__") and not isinstance(values, str)


def _list(values: object) -> object:
    if not _is_column(values):
        raise ValueError(f"a column must be a list, got {type(values).__name__}")
    return values if hasattr(values, "__array__") else list(values)  # type: ignore[call-overload]


def _read_dataset(data: Any) -> pyarrow.Table | None:
    """Return the rows of a data set in its own order, with the names of its classes in the place of their numbers."""
    import pyarrow
    from datasets import Dataset

    if not isinstance(data, Dataset):  # a stream has no end that is known
        return None
    table = data.with_format("arrow")[:]
    for position, (name, feature) in enumerate(data.features.items()):
        if class_label(feature) is not None:
            texts = [class_names(feature, value) for value in table.column(name).to_pylist()]
            table = table.set_column(position, name, pyarrow.array(texts))
    return table


def _plain(column: pyarrow.ChunkedArray) -> pyarrow.Array:
    """Return a column in one piece: the values of its categories, no NaN, and one type of texts."""
    import pyarrow
    from pyarrow import compute

    array = column.combine_chunks()
    if isinstance(array, pyarrow.ChunkedArray):
        array = pyarrow.concat_arrays(array.chunks)
    if pyarrow.types.is_dictionary(array.type):
        values = array.dictionary
        if pyarrow.types.is_string_view(values.type):  # the categories of polars, which Arrow cannot decode
            values = values.cast(pyarrow.large_string())
        array = pyarrow.DictionaryArray.from_arrays(array.indices, values).dictionary_decode()
    if pyarrow.types.is_floating(array.type):
        missing = pyarrow.scalar(None, array.type)
        array = compute.if_else(compute.is_nan(array), missing, array)
    if pyarrow.types.is_string(array.type) or pyarrow.types.is_string_view(array.type):
        array = array.cast(pyarrow.large_string())  # the type of pandas; the same rows have the same file
    return array
