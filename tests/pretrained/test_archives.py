"""Damaged, hostile and unknown weight files: one sentence each, and no memory taken."""

import json
import pickle
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers.models import TINY
from helpers.weight_files import FILES, random_arrays, spec, write
from safetensors.numpy import save_file

import vitkeras as vk
from vitkeras.errors import InputError
from vitkeras.pretrained.archives import open_npz
from vitkeras.pretrained.files import open_weights
from vitkeras.pretrained.formats import google, timm
from vitkeras.pretrained.loading import _open_source


def npz_member(shape, descr="<f4", data=b"", version=1):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(header)) + header + data


def damaged_files(folder):
    """Yields a description, the path, and a part of the message."""
    arrays = random_arrays(google, spec())
    good = write(google, arrays, folder).read_bytes()
    torch = random_arrays(*FILES["timm"])
    complete = write(timm, torch, folder).read_bytes()

    def put(name, content):
        (folder / name).write_bytes(content)
        return folder / name

    def archive(name, members, compression=zipfile.ZIP_STORED):
        with zipfile.ZipFile(folder / name, "w", compression) as file:
            for member, content in members:
                file.writestr(member, content)
        return folder / name

    terabyte = (10**6, 250_000)
    for fraction in (0.1, 0.5, 0.99):
        yield "npz cut", put(f"cut{fraction}.npz", good[: int(fraction * len(good))]), "truncated"
        cut = put(f"cut{fraction}.safetensors", complete[: int(fraction * len(complete))])
        yield "safetensors cut", cut, "truncated"
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    yield "npz with a flipped bit", put("flipped.npz", bytes(flipped)), "damaged"
    np.savez(folder / "pickle.npz", **{**arrays, "cls": np.array([{}], dtype=object)})
    yield "npz with a pickle", folder / "pickle.npz", "cls: it is a pickle"
    member = npz_member(terabyte)
    declared = "declares 1,000,000,000,000 bytes, but it has 0"
    yield "a terabyte", archive("tera.npz", [("embedding/kernel.npy", member)]), declared
    negative = npz_member((-1, 4))
    yield "a negative side", archive("minus.npz", [("a.npy", negative)]), r"shape is \(-1, 4\)"
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = archive("twice.npz", [("a.npy", npz_member((0,)))] * 2)
    yield "twice", twice, "occurs twice"
    zeros = npz_member((2**26,), data=bytes(2**28))
    bomb = archive("bomb.npz", [("a.npy", zeros)], zipfile.ZIP_DEFLATED)
    yield "a bomb", bomb, "would expand to"
    lie = bytearray(bomb.read_bytes())
    at = lie.rindex(b"PK\x01\x02") + 24  # the size, in the directory at the end
    lie[at : at + 4] = struct.pack("<I", 2**32 - 2)
    yield "a lying directory", put("lie.npz", bytes(lie)), "impossible"
    yield "no NumPy", archive("text.npz", [("a.npy", b"hello")]), "a: .*magic"
    torch_zip = archive("model.bin", [("model/data.pkl", b"x")])
    yield "torch zip", torch_zip, "PyTorch pickle"
    yield "pickle", put("old.bin", pickle.dumps(arrays, 4)), "PyTorch pickle"

    def safetensors(name, header, data=b"", length=None):
        text = json.dumps(header).encode()
        size = struct.pack("<Q", len(text) if length is None else length)
        return put(name, size + text + data)

    tensor = {"dtype": "F32", "shape": list(terabyte), "data_offsets": [0, 10**12]}
    yield "a terabyte too", safetensors("tera.safetensors", {"a": tensor}), "truncated"
    huge = safetensors("header.safetensors", {}, length=2**40)
    yield "a huge header", huge, "damaged"
    wrong = {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}
    yield "sizes that differ", safetensors("size.safetensors", {"a": wrong}, bytes(8)), "damaged"
    yield "empty", put("empty.npz", b""), "starts with the bytes"
    yield "text", put("text.txt", b"not weights at all"), "starts with the bytes"
    yield "hdf5", put("old.h5", b"\x89HDF\r\n\x1a\n0000"), r"weights\.h5 file with"
    yield "missing", folder / "nothing.npz", "does not exist"
    (folder / "empty").mkdir()
    yield "a folder", folder / "empty", "has no model.safetensors but no files"
    np.savez(folder / "other.npz", a=np.zeros(3))
    yield "other names", folder / "other.npz", "no supported format: a"
    save_file({"a": np.zeros(3)}, folder / "other.safetensors")
    yield "other names too", folder / "other.safetensors", "no supported format: a"


def test_damaged_files_are_refused_without_reading_them_into_memory(tmp_path):
    model = vk.vit("Ti/4", image_size=16, num_classes=5, **TINY)
    before = model.get_weights()
    count = 0
    for name, path, message in damaged_files(tmp_path):
        for use in (lambda path: vk.load_weights(model, path), vk.from_pretrained):
            tracemalloc.start()
            with pytest.raises(InputError, match=message) as raised:
                use(path)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2**24, (name, peak)
            assert str(path) in str(raised.value), name
            count += 1
    assert count == 2 * 26
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda a: a.update({"head/bias": np.zeros((5, 1), "f4")}),
            r"head/bias: \(5, 1\), expected",
        ),
        (
            lambda a: a.update({"cls": np.zeros((1, 24, 1), "f4")}),
            r"cls: \(1, 24, 1\), expected \(1,",
        ),
        (lambda a: a.pop("Transformer/encoder_norm/bias"), r"encoder_norm/bias \(24,\): missing"),
        (lambda a: a.update({"Transformer/encoderblock_7/x": np.zeros(3)}), r"x \(3,\): unknown"),
        (lambda a: a.update({"head/bias": np.full(5, np.nan, "f4")}), "finite.*head/bias"),
        (lambda a: a.update({"head/bias": np.zeros(5, "i4")}), "of type float16.*int32"),
        (lambda a: a.update({"embedding/kernel": np.zeros((4, 4), "f4")}), "with 4 axes"),
        (lambda a: a.pop("Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"), "is missing"),
    ],
)
def test_wrong_missing_and_unknown_arrays_are_named(change, message, tmp_path):
    arrays = random_arrays(google, spec())
    change(arrays)
    path = write(google, arrays, tmp_path)
    for use in (
        vk.from_pretrained,
        lambda path: vk.load_weights(vk.vit("Ti/4", image_size=16, num_classes=5, **TINY), path),
    ):
        with pytest.raises(InputError, match=message):
            use(path)


def test_folders_of_other_kinds_are_refused(tmp_path):
    arrays = random_arrays(*FILES["timm"])
    write(timm, arrays | {"dist_token": np.zeros((1, 1, 24), "f4")}, tmp_path)
    with pytest.raises(InputError, match="no distillation token"):
        vk.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pytorch_model.bin, a PyTorch pickle"):
        vk.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="in one file.*max_shard_size"):
        vk.from_pretrained(tmp_path)


def test_arrays_in_fortran_order_are_read_as_numpy_reads_them(tmp_path):
    value = np.asfortranarray(np.random.default_rng(0).normal(size=(3, 1, 4)).astype("f4"))
    np.savez(tmp_path / "a.npz", a=value)
    with open_npz(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays.read("a"), value)


METADATA = {
    "architecture": "vit_tiny", "global_pool": "token", "hidden_act": "gelu", "image_size": 16,
    "layer_norm_eps": 1e-6, "model_args": {"img_size": 16, "num_heads": 3, "act_layer": "gelu"},
    "num_attention_heads": 3, "rescale_factor": 0.1, "do_rescale": True, "do_normalize": True,
    "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": [3, 16, 16]},
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "offset": False,
}  # fmt: skip


def test_mutated_files_are_read_or_refused_with_one_sentence(tmp_path):
    rng = random.Random(0)
    values = [None, -1, 0, 1e300, "x", [], {}, [None] * 3, {"x": 1}, True, 10**30, [[1, 2]] * 3]
    refused = 0
    for name in ("google", "big_vision, map", "hugging face, DINOv2 classifier", "timm, registers"):
        format, described = FILES[name]
        path = write(format, random_arrays(format, described), tmp_path)
        good = path.read_bytes()
        for _ in range(40):
            content = bytearray(good)
            # Headers, of members too, are at the start and the end.
            for _ in range(rng.randint(1, 4)):
                span = min(len(content), 2000)
                place = rng.choice([rng.randrange(span), -rng.randrange(1, span)])
                content[place] = rng.randrange(256)
            path.write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
            refused += is_refused(path)
        path.write_bytes(good)
        for key in METADATA:
            for value in rng.sample(values, 3):
                nested = key in ("model_args", "pretrained_cfg") and rng.random() < 0.7
                changed = {**METADATA[key], rng.choice(list(METADATA[key])): value} if nested else (
                    value
                )  # fmt: skip
                text = json.dumps({**METADATA, key: changed})
                (tmp_path / "config.json").write_text(text)
                refused += is_refused(path)
        for text in ("[" * 10**5, "[]", "3", "", '{"image_processor": 3}', "\0"):
            (tmp_path / "config.json").write_text(text)
            refused += is_refused(path) or path.suffix == ".npz"
        (tmp_path / "config.json").unlink()
    assert refused > 100


def is_refused(path):
    """Returns whether a file is refused; other exceptions than `InputError` fail the test."""
    try:
        with open_weights(path) as (format, arrays, metadata):
            _open_source(format, arrays, metadata, {}, None)
            for name in arrays.shapes:
                arrays.read(name)
    except InputError as error:
        assert "\n" not in str(error) and path.parent.name in str(error)
        return True
    return False
