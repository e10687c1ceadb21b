import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from helpers.images import encode, odd_files, photo
from helpers.models import make
from helpers.processes import ENVIRONMENT, ROOT

from vitkeras import data
from vitkeras.data.images import decode_error
from vitkeras.errors import InputError
from vitkeras.evaluation.prediction import Predictor, model_predictor, predict_files

SIZE = (16, 24)
PREPROCESSING = data.Preprocessing(SIZE)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of valid and of invalid files, mixed."""
    folder = tmp_path_factory.mktemp("files")
    contents = odd_files(encode(photo(30, 40)))
    contents |= {f"good{i}.png": encode(photo(20 + i, 30, seed=i)) for i in range(9)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "bad_pipe.jpg")
    (folder / "bad_link.png").symlink_to(folder / "nothing")
    return [*sorted(map(str, folder.iterdir())), str(folder / "bad_missing.png")]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_file_has_a_row_in_the_order_of_the_files(files, batch_size):
    model = make(image_size=SIZE)
    predictor = model_predictor(model, ["x", "y", "z"], PREPROCESSING, top=2)
    batches = list(predict_files(files, predictor, batch_size))
    rows = list(itertools.chain(*batches))
    assert [row.path for row in rows] == files
    for row in rows:
        is_bad = os.path.basename(row.path).startswith("bad")
        assert (row.reason is not None) == is_bad, row
        if is_bad:
            assert row.classes == row.probabilities == [] and "\n" not in row.reason
            continue
        content = tf.io.read_file(row.path)
        logits = model(PREPROCESSING.evaluation_image(content)[None])[0].numpy()
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = np.argsort(-probabilities)[:2]
        assert row.classes == ["xyz"[i] for i in best]
        np.testing.assert_allclose(row.probabilities, probabilities[best], atol=1e-5)
    assert len([row for row in rows if row.reason is None]) == 12


def test_invalid_files_alone_and_files_that_the_model_refuses(files):
    bad = [path for path in files if os.path.basename(path).startswith("bad")]
    unused = Predictor(PREPROCESSING.evaluation_image, lambda images: pytest.fail("called"))
    (rows,) = predict_files(bad, unused, 8)
    assert [row.path for row in rows] == bad and all(row.reason for row in rows)
    good = [path for path in files if path not in bad][:3]
    refusing = Predictor(tf.identity, lambda contents: [None] * len(contents))
    reasons = [row.reason for batch in predict_files(good, refusing, 2) for row in batch]
    assert reasons == ["the model does not accept the image"] * 3


def test_an_error_of_the_listing_is_not_lost(files):
    def listing():
        yield files[-2]
        raise PermissionError("a folder")

    predictor = Predictor(tf.identity, lambda contents: [(["x"], [1.0])] * len(contents))
    with pytest.raises(PermissionError):
        list(predict_files(listing(), predictor, 1))


def test_files_are_listed_while_they_are_predicted(tmp_path):
    photo(8, 8).save(tmp_path / "a.png")
    listed = []

    def endless():
        for i in itertools.count():
            listed.append(i)
            yield str(tmp_path / "a.png")

    predictor = Predictor(tf.identity, lambda contents: [(["x"], [1.0])] * len(contents))
    batches = predict_files(endless(), predictor, 4)
    assert all(len(next(batches)) == 4 for _ in range(5))
    assert len(listed) < 2000
    batches.close()


def test_requests_are_parallel_and_their_answers_in_order(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(str(i))
    paths = sorted(map(str, tmp_path.iterdir()))
    running, most = set(), []
    three = threading.Barrier(3)

    def predict(contents):
        contents = contents.numpy().tolist()
        running.update(contents)
        three.wait(60)  # with fewer threads it would never pass
        most.append(len(running))
        if contents[0] == b"6":
            raise InputError("refused")
        running.difference_update(contents)
        return [([content.decode()], [1.0]) for content in contents]

    batches = predict_files(paths[:6], Predictor(tf.identity, predict, 3), 1)
    assert [row.classes for batch in batches for row in batch] == [[str(i)] for i in range(6)]
    assert max(most) <= 3
    batches = predict_files(paths[6:], Predictor(tf.identity, predict, 3), 1)
    with pytest.raises(InputError, match="refused"):
        list(batches)


def test_every_decoder_error_is_a_reason(files):
    for path in files:
        if os.path.isfile(path) and os.path.basename(path).startswith("bad"):
            assert decode_error(tf.io.read_file(path))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_rows_are_whole_after_a_kill(suffix, tmp_path):
    folder, output = tmp_path / "photos", tmp_path / f"out.{suffix}"
    folder.mkdir()
    content = (ROOT / "docs/digit.png").read_bytes()
    for i in range(3000):
        (folder / f"{i:05d}.png").write_bytes(content)
    (folder / "00001.png").write_bytes(b"text")
    process = subprocess.Popen(
        [sys.executable, "-m", "vitkeras", "predict", "--saved_model=saved_models/digits",
         f"--output={output}", "--batch_size=16", str(folder)],
        cwd=ROOT, env={**os.environ, **ENVIRONMENT}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and (not output.exists() or output.stat().st_size < 5000):
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()[-2000:]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    text = output.read_text()
    assert text.endswith("\n")
    if suffix == "jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        assert rows[0]["top"][0].keys() == {"class", "probability"}
    else:
        rows = list(csv.DictReader(text.splitlines()))
        assert rows[0].keys() >= {"class_1", "probability_1", "class_5", "probability_5"}
        rows = [{**row, "valid": row["valid"] == "true"} for row in rows]
    assert 16 <= len(rows) < 3000
    for i, row in enumerate(rows):
        assert row["path"] == f"{folder}/{i:05d}.png" and row["valid"] == (i != 1)
    assert rows[1]["reason"] == "not a JPEG, PNG or WebP image"
