import csv
import json
import os

import pytest
from helpers.processes import python

from vitkeras.errors import InputError
from vitkeras.io.rows import RowFile

NAMES = ['a,"b"', "line\nbreak", "", "cafe\udce9", "日本"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_rows_are_on_disk_after_each_write(suffix, tmp_path):
    path, written = tmp_path / f"rows{suffix}", []

    def read():
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            if suffix == ".jsonl":
                return [json.loads(line)["name"] for line in file]
            return [row["name"] for row in csv.DictReader(file)]

    with RowFile(str(path), ["name", "value"]) as rows:
        for name in NAMES:
            rows.write([{"name": name, "value": None}, {"name": name}])
            written += [name, name]
            assert read() == written
    assert path.read_bytes().endswith(b"\n")
    with pytest.raises(InputError, match="must be a new file .*File exists"):
        RowFile(str(path), ["name"])
    assert read() == written


def test_a_full_disk_leaves_whole_rows(tmp_path):
    code = (
        "import resource, signal, sys\n"
        "from vitkeras.io.rows import RowFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "rows = RowFile(sys.argv[1], ['name'])\n"
        "for i in range(100): rows.write([{'name': f'{i:03d}' * 7}] * 2)"
    )
    process = python("-c", code, tmp_path / "rows.csv")
    assert "RunError" in process.stderr and "could not be written: File too large" in process.stderr
    lines = (tmp_path / "rows.csv").read_text().splitlines(keepends=True)
    assert len(lines) % 2 == 1 and all(len(line) == 22 for line in lines[1:]), lines
    assert 900 < os.path.getsize(tmp_path / "rows.csv") <= 1000
