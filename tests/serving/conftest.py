"""One model, its export, and a C program that loads exports as TF Serving does."""

import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.exports import CLASS_NAMES, PREPROCESSING, SIZE
from helpers.models import make
from helpers.processes import ROOT
from tensorflow.core.protobuf import saved_model_pb2

from vitkeras import serving


@pytest.fixture(scope="session")
def model():
    return make("Ti/16", SIZE, len(CLASS_NAMES))


@pytest.fixture(scope="session")
def exported(model, tmp_path_factory):
    """The folder of a version with all signatures."""
    base = tmp_path_factory.mktemp("saved") / "tiny"
    return serving.export_saved_model(model, PREPROCESSING, CLASS_NAMES, base, xla=True)


@pytest.fixture(scope="session")
def signatures(exported):
    return tf.saved_model.load(exported).signatures


@pytest.fixture(scope="session")
def live(model):
    """A function from an image file to the probabilities of the Keras model."""

    def probabilities(content):
        images = PREPROCESSING.evaluation_image(content)[None]
        return tf.nn.softmax(model(images, training=False))[0].numpy()

    return probabilities


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The C program, compiled against the headers and libraries of the installed TensorFlow."""
    path, wheel = tmp_path_factory.mktemp("c") / "serve", Path(tf.__file__).parent
    libraries = ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    linker = ["-fuse-ld=gold"] if shutil.which("ld.gold") else []  # five times faster here
    subprocess.run(
        ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{wheel}/include",
         ROOT / "tests/helpers/serve.c", "-o", path, f"-L{wheel}", *libraries, *linker,
         f"-Wl,-rpath,{wheel}", "-pthread"],
        check=True,
    )  # fmt: skip
    return path


@pytest.fixture
def serve(program, tmp_path):
    """A function from an export, a signature and its inputs to answers and memory in kB."""

    def run(folder, signature, inputs, rounds=1, threads=1):
        proto = saved_model_pb2.SavedModel()
        proto.ParseFromString((folder / "saved_model.pb").read_bytes())
        signature = proto.meta_graphs[0].signature_def[signature]
        (argument,) = (tensor.name for tensor in signature.inputs.values())
        outputs = {tensor.name: key for key, tensor in signature.outputs.items()}
        (tmp_path / "requests").write_bytes(b"".join(map(_pack, inputs)))
        process = subprocess.run(
            [program, folder, argument, ",".join(outputs), tmp_path / "requests", str(rounds),
             str(threads)],
            capture_output=True, text=True, timeout=600,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr[-2000:]
        return _parse(process.stdout, outputs)

    return run


def _pack(values):
    """Returns a request as serve.c reads it, from a list of bytes or an array."""
    array = np.array(values, object) if isinstance(values, list) else np.asarray(values)
    dtype = 7 if array.dtype == object else tf.as_dtype(array.dtype).as_datatype_enum
    head = struct.pack(f"<ii{array.ndim}q", dtype, array.ndim, *array.shape)
    if dtype != 7:  # DT_STRING
        return head + array.tobytes()
    return head + b"".join(struct.pack("<Q", len(x)) + x for x in array.reshape(-1).tolist())


def _parse(text, outputs):
    """Returns the answers and (current, peak) memory in kB from what serve.c prints."""
    answers, memory = [], []
    for line in text.splitlines():
        first, *values = line.split("\t")
        words = first.split(" ")
        if words[0] == "request":
            answers.append({"code": int(words[2]), "message": " ".join(words[3:])})
        elif words[0] == "memory":
            memory.append(tuple(map(int, words[2:])))
        elif words[0] in outputs:
            dtype = {1: np.float32, 3: np.int32, 7: str, 10: bool}[int(words[1])]
            shape = [int(size) for size in words[2].strip("[]").split(",")]
            values = [bool(int(x)) for x in values] if dtype is bool else values
            answers[-1][outputs[words[0]]] = np.array(values, dtype).reshape(shape)
    return answers, memory
