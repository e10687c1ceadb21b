import concurrent.futures
import io
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Nothing is remembered from one session of tests to another.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from PIL import Image  # noqa: E402

ROOT = Path(__file__).parent.parent
TINY = {"hidden_dim": 24, "mlp_dim": 48, "num_heads": 3, "num_layers": 2}


@pytest.fixture(autouse=True)
def float32_and_seeded():
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where TensorFlow Datasets writes, once for all tests."""
    return str(tmp_path_factory.mktemp("tfds"))


def photo(height, width, mode="RGB", seed=0):
    """A smooth picture whose colours depend on the seed, in any of PIL's modes."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    image = small.resize((width, height), Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of 3 classes x 12 photos of several formats, modes and sizes; one is cut short."""
    root = tmp_path_factory.mktemp("photos")
    kinds = [("png", "RGB"), ("jpg", "RGB"), ("png", "L"), ("png", "RGBA"), ("jpeg", "L"),
             ("JPG", "CMYK"), ("png", "P"), ("png", "I;16"), ("jpg", "RGB"), ("png", "1"),
             ("jpg", "RGB"), ("PNG", "RGB")]  # fmt: skip
    for label, name in enumerate(("ant", "bee", "cow")):
        (root / name).mkdir()
        for i, (suffix, mode) in enumerate(kinds):
            image = photo(40 + 7 * i, 90 - 5 * i, mode, seed=100 * label + i)
            kind = "PNG" if suffix.lower() == "png" else "JPEG"
            image.save(root / name / f"{i:02d}.{suffix}", kind)
    cut = root / "bee" / "01.jpg"
    cut.write_bytes(cut.read_bytes()[:200])
    return root


def giant(kind):
    """A small file whose header declares 50,000 x 50,000 pixels."""
    buffer = io.BytesIO()
    photo(20, 30).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    if kind == "PNG":
        content[16:24] = struct.pack(">II", 50_000, 50_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    elif kind == "GIF":
        content[6:10] = struct.pack("<HH", 50_000, 50_000)
    elif kind == "BMP":
        content[18:26] = struct.pack("<ii", 50_000, -50_000)
    else:
        frame = content.index(b"\xff\xc0")
        content[frame + 5 : frame + 9] = struct.pack(">HH", 50_000, 50_000)
    return bytes(content)


def odd_files(whole):
    """Contents of files as they are found among photos; the names of the broken ones tell."""
    buffers = {name: io.BytesIO() for name in ("animated.png", "cmyk.jpg", "deep.png")}
    frames = [photo(30, 40, seed=i) for i in range(3)]
    frames[0].save(buffers["animated.png"], "GIF", save_all=True, append_images=frames[1:])
    photo(30, 40, "CMYK").save(buffers["cmyk.jpg"], "JPEG")
    photo(30, 40, "I;16").save(buffers["deep.png"], "PNG")
    return {name: buffer.getvalue() for name, buffer in buffers.items()} | {
        "png.jpg": whole, "bad_cut.png": whole[: len(whole) // 2], "bad_empty.jpg": b"",
        "bad_text.png": b"hello", "bad_giant.png": giant("PNG"), "bad_giant.jpg": giant("JPEG"),
    }  # fmt: skip


def import_timm():
    """Returns timm, where it can be imported; skips the test file elsewhere."""
    reason = "timm and torch have an environment of their own, see .ci/run"
    torch = pytest.importorskip("torch", reason=reason)
    # Torchvision's Python part names two operators that a build without its C++ part lacks.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    timm = pytest.importorskip("timm", reason=reason)
    timm.torchvision_operators = library  # they live as long as it does
    return timm


def python(*arguments, timeout=300, **environment):
    """Runs Python in a fresh process and returns it, finished."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        timeout=timeout, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )  # fmt: skip


def start_hosts(count, *arguments, **environment):
    """Starts a Python process for each of several hosts on 127.0.0.1, with their TF_CONFIG."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index in range(count):
        task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        variables = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_CONFIG": json.dumps(task), **environment}
        processes.append(
            subprocess.Popen(
                [sys.executable, *(str(a).replace("{host}", str(index)) for a in arguments)],
                cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, **variables},
            )
        )  # fmt: skip
    return processes


def finish_hosts(processes, timeout):
    """Returns (exit code, standard output, standard error) of each; leaves no process behind."""
    try:
        with concurrent.futures.ThreadPoolExecutor() as threads:
            waits = [threads.submit(p.communicate, timeout=timeout) for p in processes]
            outputs = [wait.result() for wait in waits]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(p.returncode, *out) for p, out in zip(processes, outputs, strict=True)]


def check_layer(make, input_shape, tmp_path, prepare=lambda layer: None):
    """Config round trip, save and load, symbolic = eager shape, mixed precision, a fit step.

    `prepare` changes a built layer so that a step changes every weight.
    """
    x = np.random.default_rng(0).normal(size=input_shape).astype("float32")
    layer = make()
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()

    inputs = keras.Input(input_shape[1:])
    outputs = layer(inputs)
    model = keras.Model(inputs, outputs)
    y = model(x)
    assert y.shape[1:] == outputs.shape[1:] and y.shape[0] == input_shape[0]
    assert tuple(layer.compute_output_shape(input_shape)) == tuple(y.shape)

    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras")
    np.testing.assert_array_equal(loaded(x), y)

    keras.config.set_dtype_policy("mixed_bfloat16")
    mixed = make()
    out = mixed(x)
    assert keras.backend.standardize_dtype(out.dtype) == "bfloat16"
    assert all(v.dtype == "float32" for v in mixed.weights)
    keras.config.set_dtype_policy("float32")

    head = keras.layers.Dense(2)(keras.layers.Flatten()(outputs))
    model = keras.Model(inputs, head)
    prepare(layer)
    model.compile("sgd", "mse")
    before = [v.numpy().copy() for v in model.trainable_variables]
    model.fit(x, np.ones((len(x), 2)), verbose=0)
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert np.isfinite(new.numpy()).all() and not np.array_equal(old, new), new.path
