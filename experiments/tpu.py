"""What a TPU would need for the step of a config: compiled for it, where there is none.

The step is the model's own `train_step`, as TPUStrategy runs it on each replica, without the sum
over replicas. Nothing here has run on a TPU: the figures are the compiler's.
"""

import json
import math
import multiprocessing
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from experiments import tpu_module
from vitkeras.errors import InputError
from vitkeras.private import operations, sum_is_taken
from vitkeras.tpu import as_target


class Chip(NamedTuple):
    """Of a core that runs a replica: published peaks, per second."""

    memory: int  # bytes
    flops: float  # in bfloat16
    bandwidth: float  # bytes, of the large memory
    links: float  # bytes, of all links to other chips together
    most: int  # in one slice
    sides: int  # of a slice


GIB = 2**30
#: As https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and the pages of each version
#: have them (read about). A v4 chip has two cores, with a replica each: halved here.
CHIPS = {
    "v4": Chip(16 * GIB, 275e12 / 2, 1228e9 / 2, 300e9 / 2, 2 * 4096, 3),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9, 256, 2),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9, 6144, 3),
    "v6e": Chip(32 * GIB, 918e12, 1640e9, 448e9, 256, 2),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # slices of two sides


class Slice(NamedTuple):
    """A TPU slice: its chip's name, libtpu's name for it, and its number of replicas."""

    kind: str
    topology: str
    replicas: int


def parse_slice(name):
    """Returns the `Slice` of a name such as v5e:2x4.

    Raises:
        InputError: If it is none.
    """
    kind, _, shape = name.lower().partition(":")
    sides = [int(side) for side in shape.split("x") if side.isdecimal()]
    chip = CHIPS.get(kind)
    replicas = math.prod(sides) * (2 if kind == "v4" else 1)
    if chip and chip.sides == 2:
        right = shape in FLAT
    else:  # a host has 2x2x1
        right = chip and re.fullmatch(r"\d+x\d+x\d+", shape) and 0 < replicas <= chip.most
        right = right and not any(side % 2 for side in sides[:2])
    if not right:
        raise InputError(
            f"`tpu` must be a chip and a slice that there is of it: v5e or v6e of {', '.join(FLAT)}"
            "; v4 or v5p of three sides, the first two even, such as v5p:2x2x1. "
            f"Received: tpu={name}."
        )
    return Slice(kind, f"{kind}:{shape}", replicas)


FAULT = "The step cannot be compiled for a TPU"


def lower(step, *arguments):
    """Returns the StableHLO of a step of a model.

    Args:
        step: Function of the arguments, made of TensorFlow operations.
        *arguments: Tensors of the step's shapes and types.
    Raises:
        InputError: If an operation in it cannot be compiled; the sentence names it and its line.
    """
    # Of tensors the compiler would know the values, and take them for shapes.
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in arguments]
    function = tf.function(step, jit_compile=True, autograph=False)
    with as_target():
        try:
            text = function.experimental_get_compiler_ir(*specs)(stage="stablehlo")
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise InputError(_fault(error, function, specs)) from error
        if re.search(r"tensor<(\d+x)*\?", text):
            graph = function.get_concrete_function(*specs).graph
            found = next(filter(_is_dynamic, operations(graph)), None)
            if found is None:
                raise InputError(f"{FAULT}: shapes in it depend on values.")
            raise InputError(
                f"{FAULT}{_line(found.traceback)}, operation {found.name}: the shape of what "
                f"{found.type} returns depends on values."
            )
    return text


def _is_dynamic(operation):
    """Whether it makes a shape that is not known out of those that are."""
    # Gradients ask for shapes, which are known; what a function is given was made elsewhere.
    if operation.type in ("BroadcastGradientArgs", "Placeholder"):
        return False
    known = all(tensor.shape.is_fully_defined() for tensor in operation.inputs)
    numbers = [t for t in operation.outputs if t.dtype not in (tf.resource, tf.variant)]
    return known and not all(tensor.shape.is_fully_defined() for tensor in numbers)


def _line(frames):
    """Returns " at FILE:LINE" of the innermost call that stands in nobody's package."""
    own = [(f.filename, f.lineno) for f in frames if "site-packages" not in f.filename]
    own = [place for place in own if Path(place[0]).is_file() and place[0] != __file__]
    return f" at {own[-1][0]}:{own[-1][1]}" if own else ""


class _Frame(NamedTuple):
    filename: str
    lineno: int


def _fault(error, function, specs):
    text = str(error)
    missing = re.search(r"\b(\w+) \(No registered", text)
    if missing:  # then there is no line in it
        every = operations(function.get_concrete_function(*specs).graph)
        frames = next((o.traceback for o in every if o.type == missing[1]), ())
        return f"{FAULT}{_line(frames)}: none can do {missing[1]}."
    operation = re.search(r"\{\{node ([^}]+)\}\}", text)
    reasons = [
        line.strip()
        for line in text.splitlines()
        if re.search(r"unsupported|must be|not supported|dynamic|constant|compatible", line, re.I)
    ]
    frames = [_Frame(*found) for found in re.findall(r'File "([^"]+)", line (\d+)', text)]
    reason = (reasons or text.strip().splitlines() or ["unknown"])[0][:300]
    named = f", operation {operation[1]}" if operation else ""
    return f"{FAULT}{_line(frames)}{named}: {reason}"


def train_module(model, images, mixes=False):
    """Returns the StableHLO of a training step of a compiled model.

    Args:
        model: Compiled, with its optimizer built.
        images: Number of images on a replica.
        mixes: Whether labels are shares of classes.
    """
    batch = _batch(model, images, mixes)
    model._symbolic_build(data_batch=batch)
    with sum_is_taken(model.optimizer):
        return lower(lambda x, y: model.train_step((x, y)), *batch)


def evaluation_module(model, images):
    """Returns the StableHLO of a forward pass with the loss and metrics."""
    batch = _batch(model, images)
    model._symbolic_build(data_batch=batch)
    return lower(lambda x, y: model.test_step((x, y)), *batch)


def _batch(model, images, mixes=False):
    labels = tf.zeros((images, *model.output_shape[1:] * mixes), tf.float32 if mixes else tf.int32)
    return tf.zeros((images, *model.input_shape[1:]), tf.uint8), labels


TOO_LARGE = "RESOURCE_EXHAUSTED"  # as the compiler says it


class Report(NamedTuple):
    """What was found out about a step, and the compiled module's text."""

    facts: dict
    compiled: str


def compile_module(stablehlo, place, images, pieces=1):
    """Compiles a step for a slice.

    Args:
        stablehlo: The module's text.
        place: A `Slice`.
        images: That it is for, on each replica.
        pieces: That the step takes them in, one after the other.
    Returns:
        A `Report`.
    Raises:
        InputError: If the compiler refuses it, or is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        module, output = Path(folder) / "step.mlir", Path(folder) / "compiled.txt"
        module.write_text(stablehlo)
        done = subprocess.run(
            [sys.executable, "-m", "experiments.tpu_compiler", module, place.topology, output],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise InputError(_refused(done.stderr, place))
        found = json.loads(done.stdout.splitlines()[-1])
        compiled = output.read_text()
    chip = CHIPS[place.kind]
    rows = tpu_module.moved(compiled, pieces)
    hbm = sum(row.size for row in rows)
    matrix = tpu_module.products(stablehlo, pieces)
    # The compiler counts the inside of a loop once.
    once = sum(product.flops for product in tpu_module.products(stablehlo))
    flops = found["flops"] + sum(product.flops for product in matrix) - once
    arithmetic, memory = flops / chip.flops, hbm / chip.bandwidth
    needed = sum(found[f"{k}_bytes"] for k in ("argument", "temporary", "output", "code"))
    floor = max(arithmetic, memory)
    facts = {
        "argument_gib": found["argument_bytes"] / GIB,
        "temporary_gib": found["temporary_bytes"] / GIB,
        "code_gib": found["code_bytes"] / GIB,
        "memory_share": needed / chip.memory,
        "tflop": flops / 1e12,
        "hbm_gb": hbm / 1e9,
        "accessed_gb": found["accessed_bytes"] / 1e9,
        "arithmetic_ms": 1e3 * arithmetic,
        "memory_ms": 1e3 * memory,
        "bfloat16_share": tpu_module.share_in("bf16", matrix),
        "images_per_second_per_replica": images / floor,
        "images_per_second": place.replicas * images / floor,
    }
    facts = {name: float(f"{value:.4g}") for name, value in facts.items()}
    facts = {"device": found["device"], "images": images, "pieces": pieces} | facts
    return Report(facts, compiled)


def _refused(error, place):
    if "No module named 'jax'" in error or "libtpu" in error and "ImportError" in error:
        return "Compiling for a TPU needs the extra `aot`: pip install -e '.[aot]'."
    lines = [line for line in error.splitlines() if re.match(r"\S*(Error|Exception)", line)]
    reason = (lines or error.strip().splitlines() or ["it ended without a word"])[-1][:400]
    return f"The compiler for {place.topology} refuses the step: {reason}"


def largest_batch(module_of, place, start, unit=1, tell=lambda text: None):
    """Returns the largest number of images on a replica that compiles and fits; 0 if none does.

    It is found by bisection, to an eighth of itself or to `unit`.

    Args:
        module_of: Function of a number of images that returns the StableHLO.
        place: A `Slice`.
        start: A number to begin with, a multiple of `unit`.
        unit: What numbers of images are multiples of.
        tell: Called with a line before each try.
    """

    def fits(images):
        tell(f"trying {images} images ...")
        try:
            report = compile_module(module_of(images), place, images)
        except InputError as error:
            if TOO_LARGE in str(error):
                return False
            raise
        return report.facts["memory_share"] <= 1

    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(unit, low // 8):
        middle = (low + high) // 2
        # A TPU's tiles have rows of 8.
        rounded = (middle // n * n for n in (math.lcm(8, unit), unit))
        images = next(number for number in rounded if low < number < high)
        low, high = (images, high) if fits(images) else (low, images)
    return low


def step_times(chip, chips, batch, images, tflop, gigabytes, parameters):
    """Returns (compute, sum of gradients) of a step, in seconds.

    Args:
        chip: A `Chip`.
        chips: How many.
        batch: Global batch.
        images, tflop, gigabytes: Of the compiled step.
        parameters: Of the model.
    """
    update = 28 * parameters  # bytes: weights, gradients and moments read, but gradients written
    share = batch / chips / images
    traffic = max(1e9 * gigabytes - update, 0) * share
    arithmetic = 1e12 * tflop * share / chip.flops
    compute = max(arithmetic, traffic / chip.bandwidth) + update / chip.bandwidth
    return compute, 2 * (chips - 1) / chips * 4 * parameters / chip.links


def in_a_process(function, *arguments):
    """Calls in a process of its own: what TensorFlow keeps of a large model is not given back.

    Raises:
        InputError: If that process ends before it answers.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise InputError(
                "The process that compiled it was killed: there is too little memory for it here."
            ) from None
