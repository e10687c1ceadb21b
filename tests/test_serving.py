"""Exports as far as they can be tried without the server: a C program that loads one as it does.

Not tried: the server's REST, batching and warm-up themselves (test_serving_client.py has a stub).
"""

import hashlib
import io
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, photo
from tensorflow.core.protobuf import saved_model_pb2
from test_data import giant
from test_experiments import script

import vitkeras as vk
from vitkeras import data, serving
from vitkeras.errors import InputError, RunError
from vitkeras.serving import exporting, replaying, verifying, warmup
from vitkeras.serving.server_files import server_files

NAMES = [f"class {i}" for i in range(7)]
SIZE = (32, 48)
PREPROCESSING = data.Preprocessing(SIZE)
OLD_PYTHON = os.environ.get("TF219_PYTHON")


def tiny_model():
    model = vk.vit("Ti/16", image_size=SIZE, num_classes=len(NAMES), **TINY)
    head = model.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(size=head.kernel.shape))
    return model


def encoded(kind="JPEG", mode="RGB", height=60, width=50, seed=0, **options):
    buffer = io.BytesIO()
    photo(height, width, mode, seed).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, content):
    crc = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + crc


def black_png(side, first=b""):
    """A gray PNG, its header behind the chunk `first`."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((side + 1) * side), 9))
    return b"\x89PNG\r\n\x1a\n" + first + header + pixels + chunk(b"IEND", b"")


def hidden_giant():
    """A PNG whose size does not stand where it stands in others."""
    return black_png(10_500, chunk(b"prVt", struct.pack(">II", 1, 1)))


def gif_with_a_giant_frame():
    content = bytearray(encoded("GIF", "P"))
    content[6:10] = struct.pack("<HH", 10, 10)
    frame = content.index(b"\x2c", 13 + 3 * 256)
    content[frame + 5 : frame + 9] = struct.pack("<HH", 50_000, 50_000)
    return bytes(content)


JPEG, PNG = encoded(), encoded("PNG", height=20, width=90, seed=3)
GOOD = {
    "JPEG": JPEG, "PNG": PNG, "CMYK": encoded(mode="CMYK"), "gray JPEG": encoded(mode="L"),
    "progressive JPEG": encoded(seed=5, progressive=True), "RGBA PNG": encoded("PNG", "RGBA"),
    "16 bit PNG": encoded("PNG", "I;16"), "palette PNG": encoded("PNG", "P"),
    "PNG of the model's size": encoded("PNG", height=SIZE[0], width=SIZE[1]),
}  # fmt: skip
BAD = {
    "empty": b"", "one byte": b"\xff", "garbage": b"this is no image, no image at all" * 9,
    "garbage behind a JPEG magic": JPEG[:3] + b"garbage" * 20,
    "garbage behind a PNG magic": PNG[:8] + b"garbage" * 20,
    "JPEG cut in the header": JPEG[:40], "JPEG cut short": JPEG[: len(JPEG) // 2],
    "PNG cut in the header": PNG[:20], "PNG cut short": PNG[: len(PNG) // 2],
    "BMP": encoded("BMP"), "GIF": encoded("GIF", "P"), "WebP": encoded("WEBP"),
    "giant JPEG": giant("JPEG"), "giant PNG": giant("PNG"), "giant GIF": giant("GIF"),
    "giant BMP": giant("BMP"), "GIF with a giant frame": gif_with_a_giant_frame(),
    "PNG that hides its size": hidden_giant(),
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """The folder of a version with all signatures."""
    said = []
    base = tmp_path_factory.mktemp("saved") / "tiny"
    folder = serving.export(model, PREPROCESSING, NAMES, base, xla=True, say=said.append)
    assert re.fullmatch(r"a fresh process .* probabilities \d\.\de-\d+, features \d\S+", *said)
    return folder


@pytest.fixture(scope="module")
def live(model):
    """A function from an image file to the live model's probabilities, as evaluation has them."""

    def probabilities(content):
        images = PREPROCESSING.evaluation_image(content)[None]
        return tf.nn.softmax(model(images, training=False))[0].numpy()

    return probabilities


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The C program, compiled against the headers and libraries of the installed TensorFlow."""
    path, wheel = tmp_path_factory.mktemp("c") / "serve", Path(tf.__file__).parent
    libraries = ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{wheel}/include", ROOT / "tests/serve.c",
         "-o", path, f"-L{wheel}", *libraries, f"-Wl,-rpath,{wheel}", "-pthread"],
        check=True,
    )  # fmt: skip
    return path


@pytest.fixture
def serve(program, tmp_path):
    """A function from an export, a signature and its inputs to answers, and the memory in kB."""

    def run(folder, signature, inputs, rounds=1, threads=1):
        proto = saved_model_pb2.SavedModel()
        proto.ParseFromString((folder / "saved_model.pb").read_bytes())
        signature = proto.meta_graphs[0].signature_def[signature]
        (field,) = (tensor.name for tensor in signature.inputs.values())
        names = {tensor.name: key for key, tensor in signature.outputs.items()}
        (tmp_path / "requests").write_bytes(b"".join(map(wire, inputs)))
        process = subprocess.run(
            [program, folder, field, ",".join(names), tmp_path / "requests", str(rounds),
             str(threads)],
            capture_output=True, text=True, timeout=600,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-2000:]
        return parsed(process.stdout, names)

    return run


def wire(values):
    """A request as serve.c reads it: a list of bytes, or an array."""
    array = np.array(values, object) if isinstance(values, list) else np.asarray(values)
    kind = 7 if array.dtype == object else tf.as_dtype(array.dtype).as_datatype_enum
    head = struct.pack(f"<ii{array.ndim}q", kind, array.ndim, *array.shape)
    if kind != 7:
        return head + array.tobytes()
    return head + b"".join(struct.pack("<Q", len(x)) + x for x in array.reshape(-1).tolist())


def parsed(text, names):
    answers, memory = [], []
    for line in text.splitlines():
        first, *rest = line.split("\t")
        word = first.split(" ")
        if word[0] == "request":
            answers.append({"code": int(word[2]), "message": " ".join(word[3:])})
        elif word[0] == "memory":
            memory.append(tuple(map(int, word[2:])))
        elif word[0] in names:
            kind = {1: np.float32, 3: np.int32, 7: str, 10: bool}[int(word[1])]
            shape = [int(size) for size in word[2].strip("[]").split(",")]
            rest = [bool(int(x)) for x in rest] if kind is bool else rest
            answers[-1][names[word[0]]] = np.array(rest, kind).reshape(shape)
    return answers, memory


def check_good(answer, place, expected):
    assert answer["valid"][place]
    probabilities = answer["probabilities"][place]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    best = np.argsort(-probabilities)[:5]
    assert answer["label_ids"][place].tolist() == best.tolist()
    assert answer["classes"][place].tolist() == [NAMES[i] for i in best]
    np.testing.assert_array_equal(answer["scores"][place], probabilities[best])


def check_bad(answer, place):
    assert not answer["valid"][place]
    assert not answer["probabilities"][place].any() and not answer["scores"][place].any()
    assert (answer["label_ids"][place] == -1).all() and (answer["classes"][place] == "").all()


@pytest.mark.parametrize("signature", ["serving_default", "xla"])
def test_the_fault_table_through_the_servers_loader(exported, serve, live, signature):
    alone = [[content] for content in (*GOOD.values(), *BAD.values())]
    among = [[JPEG, content, PNG] for content in BAD.values()]
    mixed = [x for pair in zip(BAD.values(), [*GOOD.values()] * 2, strict=True) for x in pair]
    answers, memory = serve(exported, signature, [*alone, *among, mixed, []])
    assert [answer["code"] for answer in answers] == [0] * len(answers)
    alone, among = answers[: len(alone)], answers[len(alone) : -2]
    mixed, empty = answers[-2:]
    for answer, content in zip(alone, GOOD.values(), strict=False):
        check_good(answer, 0, live(content))
    for answer in alone[len(GOOD) :]:
        check_bad(answer, 0)
    for answer in among:
        check_good(answer, 0, live(JPEG))
        check_bad(answer, 1)
        check_good(answer, 2, live(PNG))
    for i, content in enumerate([*GOOD.values()] * 2):
        check_bad(mixed, 2 * i)
        check_good(mixed, 2 * i + 1, live(content))
    shapes = {key: value.shape for key, value in empty.items() if key not in ("code", "message")}
    assert shapes == {
        "classes": (0, 5), "scores": (0, 5), "label_ids": (0, 5), "probabilities": (0, 7),
        "valid": (0,),
    }  # fmt: skip
    assert len({tuple(a["probabilities"][0].tolist()) for a in alone[: len(GOOD)]}) == len(GOOD)


def test_what_has_another_type_or_rank_gets_a_sentence(exported, serve):
    rule = "`image_bytes` must be strings of shape (images,), each a whole JPEG or PNG file."
    cases = [
        ("serving_default", np.zeros((2,), "f4"), "to be string but float is provided"),
        ("serving_default", np.array(JPEG, object), f"{rule} Received a shape of] []"),
        ("features", np.array([[JPEG, PNG]], object), f"{rule} Received a shape of] [1 2]"),
        ("xla", np.array([[JPEG], [PNG]], object), f"{rule} Received a shape of] [2 1]"),
        ("pixels", np.zeros((1, 4, 4, 3), "f4"), "to be uint8 but float is provided"),
        ("pixels", np.zeros((4, 4, 3), "u1"), "(images, height, width, 3), values 0 to 255. Rec"),
        ("pixels", np.zeros((1, 4, 4, 1), "u1"), "Received a shape of] [1 4 4 1]"),
        ("pixels_float", np.zeros((1, 4, 4, 3), "u1"), "to be float but uint8 is provided"),
        ("pixels_float", np.zeros((3,), "f4"), "Received a shape of] [3]"),
    ]
    for signature in ("serving_default", "features", "xla", "pixels", "pixels_float"):
        mine = [(value, text) for name, value, text in cases if name == signature]
        answers, _ = serve(exported, signature, [value for value, _ in mine])
        for answer, (_, text) in zip(answers, mine, strict=True):
            assert answer["code"] == 3 and text in answer["message"], answer  # INVALID_ARGUMENT


def test_pixels_and_features(exported, serve, model, live):
    pixels = np.asarray(photo(20, 90, seed=3))  # those of PNG
    same = PREPROCESSING.evaluation_image(PNG).numpy()  # of the model's size: left as they are
    for signature, dtype in (("pixels", "u1"), ("pixels_float", "f4")):
        requests = [np.stack([x, x]).astype(dtype) for x in (pixels, same)]
        answers, _ = serve(exported, signature, [*requests, np.zeros((0, 5, 5, 3), dtype)])
        for answer in answers[:2]:
            for place in range(2):
                check_good(answer, place, live(PNG))
        assert answers[2]["probabilities"].shape == (0, 7)
    broken = np.stack([pixels, pixels]).astype("f4")
    broken[0, 3, 4, 0] = np.nan
    (answer,), _ = serve(exported, "pixels_float", [broken])
    check_bad(answer, 0)
    check_good(answer, 1, live(PNG))

    (answer,), _ = serve(exported, "features", [[JPEG, b"no image"]])
    images = PREPROCESSING.evaluation_image(JPEG)[None]
    expected = type(model)(model.input, model.get_layer("head").input)(images)[0]
    np.testing.assert_allclose(answer["features"][0], expected, atol=1e-5)
    assert answer["valid"].tolist() == [True, False] and not answer["features"][1].any()


def test_large_images_are_decoded_one_by_one(exported, serve):
    side = 6_000  # 108 MB decoded, each
    assert side**2 > data.preprocessing.MAX_PIXELS // 8
    png = black_png(side)
    answers, memory = serve(exported, "serving_default", [[black_png(10)] * 8, [png] * 8])
    assert all(answer["valid"].all() for answer in answers)
    before, _ = serve(exported, "serving_default", [[black_png(10)] * 8])[1][-1]
    assert memory[-1][1] - before < 1.6 * 108_000  # kB; two at once already: 216,000


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_mixed_requests(exported, serve):
    contents = [*GOOD.values(), *BAD.values()]
    rng = random.Random(0)
    requests = [rng.choices(contents, k=size) for size in (1, 2, 8, 32, 1, 3, 8, 1)]
    requests += [np.zeros((2,), "f4"), [[JPEG]]]
    answers, memory = serve(exported, "serving_default", requests, rounds=250, threads=4)
    assert [answer["code"] for answer in answers] == [0] * 8 + [3, 3]
    now = [kilobytes for kilobytes, _ in memory]
    print("memory in kB after each tenth:", now)
    assert len(now) == 10 and now[-1] - now[1] < 20_000


def test_saved_model_cli_shows_and_runs_it(exported, live, tmp_path):
    cli = Path(sys.executable).parent / "saved_model_cli"
    shown = subprocess.run(
        [cli, "show", "--dir", exported, "--tag_set", "serve", "--signature_def",
         "serving_default"], capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert re.findall(r"puts\['(\w+)'\]", shown) == [
        "image_bytes", "classes", "label_ids", "probabilities", "scores", "valid"
    ]  # fmt: skip
    pixels = np.asarray(photo(20, 90, seed=3))[None]
    np.save(tmp_path / "pixels.npy", pixels)
    subprocess.run(
        [cli, "run", "--dir", exported, "--tag_set", "serve", "--signature_def", "pixels",
         "--inputs", f"pixels={tmp_path}/pixels.npy", "--outdir", tmp_path, "--overwrite"],
        capture_output=True, check=True,
    )  # fmt: skip
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy")[0], live(PNG), atol=1e-5)


def test_an_export_that_answers_otherwise_is_not_published(exported, model, tmp_path, monkeypatch):
    images = warmup.sample_images(SIZE)
    found = verifying.verify(exported, model, PREPROCESSING, images, "float32")
    assert 0 <= found["probabilities"] < 1e-5 and 0 <= found["features"] < 1e-4
    other = tiny_model()
    head = other.get_layer("head")
    head.kernel.assign(head.kernel + 1e-3 * np.eye(*head.kernel.shape))
    with pytest.raises(RunError, match=r"as the live model does, to 1e-05.*'probabilities': \d"):
        verifying.verify(exported, other, PREPROCESSING, images, "float32")
    monkeypatch.setattr(exporting, "write_warmup", lambda file, *_: os.remove(
        file.parent.parent / "variables/variables.index"))  # fmt: skip
    with pytest.raises(RunError, match="cannot be loaded or does not answer"):
        serving.export(model, PREPROCESSING, NAMES, tmp_path / "tiny")
    assert not list((tmp_path / "tiny").iterdir())


def test_choices_of_an_export(model, tmp_path):
    folder = serving.export(
        model, PREPROCESSING, ["å", "b|c", *NAMES[2:]], tmp_path / "half", top=9,
        compute_dtype="mixed_bfloat16", about={"data": "none"},
    )  # fmt: skip
    loaded = tf.saved_model.load(folder)
    assert set(loaded.signatures) == {"serving_default", "pixels", "pixels_float", "features"}
    answer = loaded.signatures["serving_default"](tf.constant([JPEG]))
    assert {key: value.dtype.name for key, value in answer.items()} == {
        "classes": "string", "scores": "float32", "label_ids": "int32",
        "probabilities": "float32", "valid": "bool",
    }  # fmt: skip
    assert loaded.signatures["features"](tf.constant([JPEG]))["features"].dtype == tf.float32
    assert answer["scores"].shape == (1, 7) and "å".encode() in answer["classes"][0].numpy()
    exact = tf.nn.softmax(model(PREPROCESSING.evaluation_image(JPEG)[None]))
    assert 1e-6 < np.abs(answer["probabilities"] - exact).max() < 2e-2
    card = (folder / "model_card.md").read_text()
    assert "| data | none |" in card and "bfloat16; what is answered is float32" in card
    assert "`xla`" not in card and "å, b|c, class 2" in card
    back = exporting.with_compute_dtype(exporting.with_compute_dtype(model, "mixed_bfloat16"),
                                        "float32")  # fmt: skip
    np.testing.assert_array_equal(back(np.ones((1, *SIZE, 3))), model(np.ones((1, *SIZE, 3))))

    refused = {
        "`top` must be at least 1": {"top": 0},
        "`compute_dtype` must be float32 or": {"compute_dtype": "float16"},
        "Received: version=0": {"version": 0},
        "version=1, .*half/1. Next free: 2": {"version": 1},
    }
    for message, arguments in refused.items():
        with pytest.raises(InputError, match=message):
            serving.export(model, PREPROCESSING, NAMES, tmp_path / "half", **arguments)
    with pytest.raises(InputError, match="an object store cannot rename"):
        serving.export(model, PREPROCESSING, NAMES, "gs://bucket/half")
    assert not list(tmp_path.glob("half/.*"))


def test_versions_and_what_a_killed_export_left(model, tmp_path, monkeypatch):
    base = tmp_path / "tiny"
    dead, alive = base / ".version-1", base / ".version-2"
    for folder in (dead, alive, base / "3"):
        (folder / "variables").mkdir(parents=True)
        (folder / "variables/x").write_text("")
    (base / "models.config").write_text("# mine\n")
    rename = os.rename

    def late(source, target):  # another export makes version 4 meanwhile
        if not (base / "4").exists():
            (base / "4").mkdir()
            (base / "4/saved_model.pb").write_text("")
        rename(source, target)

    with exporting._held(alive) as held:
        assert held
        monkeypatch.setattr(exporting.os, "rename", late)
        assert serving.export(model, PREPROCESSING, NAMES, base).name == "5"
    assert {path.name for path in base.iterdir()} == {
        ".version-2", "3", "4", "5", "models.config", "batching_parameters.txt",
        "monitoring.config",
    }  # fmt: skip
    assert (base / "4/saved_model.pb").read_text() == "" and serving.next_version(base) == 6
    assert (base / "models.config").read_text() == "# mine\n"
    assert (base / "5").stat().st_mode & 0o777 == base.stat().st_mode & 0o777


EXPORT = """
import sys, keras
from vitkeras import data, serving
model = keras.saving.load_model(sys.argv[1], compile=False)
print("ready", flush=True)
print(serving.export(model, data.Preprocessing((32, 48)), list("abcdefg"), sys.argv[2]), flush=True)
"""


def start_export(model_file, base):
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORT, str(model_file), str(base)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_no_version_that_does_not_load(model, tmp_path):
    model.save(tmp_path / "model.keras")
    base, whole, left = tmp_path / "tiny", {}, 0
    rng = random.Random(0)
    first = start_export(tmp_path / "model.keras", base)
    begin = time.monotonic()
    assert first.communicate()[0] == f"{base}/1\n"
    duration = time.monotonic() - begin
    for number in range(20):
        process = start_export(tmp_path / "model.keras", base)
        time.sleep((number + rng.random()) / 20 * 1.05 * duration)  # early ones, late ones
        if number % 2:  # with the process that verifies
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.communicate()
        left += bool(list(base.glob(".version-*")))
        for folder in (path for path in base.iterdir() if path.name.isdecimal()):
            if folder.name not in whole:
                answer = tf.saved_model.load(folder).signatures["serving_default"]
                assert answer(tf.constant([JPEG]))["valid"].numpy().all()
                whole[folder.name] = digest(folder)
            assert digest(folder) == whole[folder.name]
    print(f"20 kills: {len(whole) - 1} versions were whole before, {left} left something aside")
    assert left >= 5  # else it was never killed while it wrote
    last = start_export(tmp_path / "model.keras", base)
    assert last.communicate()[0] == f"{base}/{len(whole) + 1}\n"
    assert not list(base.glob(".version-*"))


def test_the_readme_of_saved_models_has_the_lines_that_serve():
    text = (ROOT / "saved_models/README.md").read_text()
    for file, content in server_files("digits").items():
        assert f"/models/digits/{file}" in text
        assert (ROOT / "saved_models/digits" / file).read_text() == content


def test_benchmark_times_exports():
    result, process = script(
        "benchmark", "serving", "--variant=Ti/16", "--image_size=32", "--rounds=1", "--nopeer"
    )
    for batch in (1, 8, 32):
        for name in ("vitkeras", "vitkeras_xla"):
            found = result[f"{batch}_{name}"]
            assert 0 < found["p50_ms"] <= found["p99_ms"] and found["images_s"] > 0
    assert result["1_vitkeras"]["requests"] == 8 and result["8_vitkeras"]["ratio"] == 1.0
    assert "batch 32 vitkeras_xla" in process.stderr


@pytest.mark.skipif(not OLD_PYTHON, reason="TF219_PYTHON names no Python, as .ci/run does")
def test_it_answers_the_same_under_tensorflow_2_19(exported, tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "samples")) as writer:
        for content in (*GOOD.values(), *BAD.values()):
            writer.write(content)
    found = {}
    for name, python in {"old": OLD_PYTHON, "new": sys.executable}.items():
        process = subprocess.run(
            [python, "-P", replaying.__file__, exported, tmp_path / "samples", tmp_path / name],
            capture_output=True, text=True,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-2000:]
        found[name] = np.load(tmp_path / f"{name}.npz")
    version = subprocess.check_output(
        [OLD_PYTHON, "-c", "import importlib.metadata as m; print(m.version('tensorflow_cpu'))"]
    )
    assert version.startswith(b"2.19.")
    assert set(found["old"]) == set(found["new"])
    for name in found["new"]:
        np.testing.assert_allclose(found["old"][name], found["new"][name], atol=1e-5, err_msg=name)
    expected = [True] * len(GOOD) + [False] * len(BAD)
    assert found["old"]["serving_default/valid"].tolist() == expected
