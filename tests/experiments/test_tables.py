import importlib.util
import json
import re

import pytest
from helpers.processes import ROOT

from experiments.tables import scaling, tpu_table


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the extra `aot` is not installed"
)
@pytest.mark.slow
def test_tpu_table(run_module, tmp_path):
    page = tmp_path / "table.md"
    code, out, err = run_module(tpu_table, "--only=0", "--operations=3", f"--output={page}")
    assert code == 0, err
    assert json.loads(out)["failed"] == []
    text = page.read_text()
    assert re.search(r"\n\| digits \| 64 (\| [\d.e+]+ ){9}\|\n", text)
    assert "by operation: digits" in text and len(re.findall(r"\n\| \d\.\d{3} \|", text)) == 3


def test_scaling(run_module, tmp_path):
    rows = {
        "paper_pretrain:B/16,imagenet": "64 | 1 | 4 | 0.1 | 6.8 | 26 | 34 | 32 | 0.99 | 1800",
        "paper_pretrain:B/16,imagenet ema_momentum=0.9": "64 | 9 | 9 | 9 | 9 | 9 | 9 | 9 | 9 | 9",
        "paper_pretrain:L/16,imagenet": "32 | 3.4 | 4 | 0.1 | 12 | 60 | 60 | 70 | 0.99 | 450",
        "paper_pretrain:H/14,jft": "8 | The compiler rejects | | | | | | | |",
    }
    table, page = tmp_path / "table.md", tmp_path / "scaling.md"
    table.write_text("".join(f"| {name} | {row} |\n" for name, row in rows.items()))
    code, _, err = run_module(scaling, table, f"--output={page}")
    assert code == 2 and "with B/16, L/16." in err
    table.write_text(table.read_text() + "| paper_pretrain:H/14,jft | 8 | 7 | 4 | 1 | 8 | 60 |\n")
    code, _, err = run_module(scaling, table, f"--output={page}")
    assert code == 0, err
    text = page.read_text()
    assert text.count("\n| 1024 | 4 | 1 |") == 3 and "\n| 8 | 512 | 8 |" in text
    assert "89 million" in text and "256 chips" in text


def test_the_pages_in_docs_are_those_of_the_commands(run_module, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    page = tmp_path / "scaling.md"
    code, _, err = run_module(scaling, "docs/tpu_table.md", f"--output={page}")
    assert code == 0, err
    assert page.read_text() == (ROOT / "docs/scaling.md").read_text()
    for name in ("tpu_table.md", "tpu_bytes.md"):
        text = (ROOT / "docs" / name).read_text()
        assert text.startswith(tpu_table.INTRODUCTION.format(tpu="v5e:2x4"))
        columns = " | ".join(column.replace("_", " ") for column in tpu_table.COLUMNS)
        assert f"\n| config | images | {columns} |\n" in text
    assert tpu_table.OPERATIONS in text
