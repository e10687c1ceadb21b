"""CSV and JSON Lines files that are written row by row."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from vitkeras.errors import InputError, RunError

SUFFIXES = (".csv", ".jsonl")


class RowFile:
    """A new file of rows. Rows are complete also if the process is killed, or the disk is full.

    Args:
        path: A local file that does not exist, .csv or .jsonl.
        columns: Names of the columns of a .csv file.
    Raises:
        InputError: If there is such a file, or none can be made.
    """

    def __init__(self, path: str, columns: Sequence[str]):
        check_path(path)
        self.path, self.columns = path, list(columns)
        self._is_csv = path.endswith(".csv")
        try:
            # Not buffered: the kernel gets whole rows only.
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise InputError(
                f"`output` must be a new file in a writable folder. Received: output={path} "
                f"({error.strerror})."
            ) from error
        if self._is_csv:
            self._write(csv_text([self.columns]))

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Appends records. A .csv file has the values of its columns, and nothing for None.

        Raises:
            RunError: If they cannot be written. The file then ends with the rows before them.
        """
        if self._is_csv:
            text = csv_text([record.get(name) for name in self.columns] for record in records)
        else:
            text = "".join(f"{json.dumps(record)}\n" for record in records)
        self._write(text)

    def _write(self, text):
        content = text.encode("utf-8", "surrogateescape")  # paths may be any bytes
        end = self._file.tell()
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            os.ftruncate(self._file.fileno(), end)
            raise RunError(f"{self.path} could not be written: {error.strerror}.") from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def check_path(path: str) -> None:
    """Raises an `InputError` unless the path has a suffix that `RowFile` writes."""
    if not path.endswith(SUFFIXES) or "://" in path:
        raise InputError(
            f"`output` must be a local file, {' or '.join(SUFFIXES)}. Received: output={path}."
        )


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Returns rows as CSV, each ending in a line feed; None is an empty cell."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
