"""Lowers training and evaluation steps of a model to StableHLO, in their form for a TPU.

The training step is the model's own `train_step`, as `TPUStrategy` runs it on each replica, without
the gradient all-reduce.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from vitkeras.errors import InputError
from vitkeras.keras_internals import all_operations, skip_gradient_all_reduce
from vitkeras.layers.tpu_attention import as_target

FAILURE = "The step cannot be compiled for a TPU"
#: Parts of the lines in an XLA error that state its reason.
REASONS = "unsupported|must be|not supported|dynamic|constant|compatible"


def lower(step: Callable, *arguments: tf.Tensor) -> str:
    """Returns the StableHLO module of a function.

    Args:
        step: Function of `arguments` made of TensorFlow operations.
        *arguments: Tensors with the shapes and dtypes of the step.
    Raises:
        InputError: If an operation cannot be compiled. The message names the operation and its
            source line.
    """
    # Specs, not tensors: XLA would treat the values as constants and take shapes from them.
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in arguments]
    function = tf.function(step, jit_compile=True, autograph=False)
    with as_target():
        try:
            text = function.experimental_get_compiler_ir(*specs)(stage="stablehlo")
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise InputError(_compiler_error(error, function, specs)) from error
        if re.search(r"tensor<(\d+x)*\?", text):
            graph = function.get_concrete_function(*specs).graph
            found = next(filter(_creates_dynamic_shape, all_operations(graph)), None)
            if found is None:
                raise InputError(f"{FAILURE}: shapes depend on values.")
            raise InputError(
                f"{FAILURE}{_location(found.traceback)}, operation {found.name}: the shape of the "
                f"output of {found.type} depends on values."
            )
    return text


def train_module(model, images: int, soft_labels: bool = False) -> str:
    """Returns the StableHLO module of a training step.

    Args:
        model: Compiled, with a built optimizer.
        images: Images per replica.
        soft_labels: Whether labels are probabilities of the classes, as with mixup.
    """
    batch = _batch(model, images, soft_labels)
    model._symbolic_build(data_batch=batch)
    with skip_gradient_all_reduce(model.optimizer):
        return lower(lambda x, y: model.train_step((x, y)), *batch)


def evaluation_module(model, images: int) -> str:
    """Returns the StableHLO module of a forward pass with the loss and the metrics."""
    batch = _batch(model, images)
    model._symbolic_build(data_batch=batch)
    return lower(lambda x, y: model.test_step((x, y)), *batch)


def _batch(model, images, soft_labels=False):
    shape = (images, *model.output_shape[1:]) if soft_labels else (images,)
    labels = tf.zeros(shape, tf.float32 if soft_labels else tf.int32)
    return tf.zeros((images, *model.input_shape[1:]), tf.uint8), labels


def _creates_dynamic_shape(operation):
    """Returns whether an operation has an output of unknown shape though its inputs are static."""
    # Gradients read shapes that are static; the inputs of a function are created elsewhere.
    if operation.type in ("BroadcastGradientArgs", "Placeholder"):
        return False
    static = all(tensor.shape.is_fully_defined() for tensor in operation.inputs)
    outputs = [t for t in operation.outputs if t.dtype not in (tf.resource, tf.variant)]
    return static and not all(tensor.shape.is_fully_defined() for tensor in outputs)


def _location(frames):
    """Returns " at FILE:LINE" of the innermost frame outside of installed packages."""
    user = [(f.filename, f.lineno) for f in frames if "site-packages" not in f.filename]
    user = [frame for frame in user if Path(frame[0]).is_file() and frame[0] != __file__]
    return f" at {user[-1][0]}:{user[-1][1]}" if user else ""


class _Frame(NamedTuple):
    filename: str
    lineno: int


def _compiler_error(error, function, specs):
    """Returns an XLA error as one line with the operation, its source line and the reason."""
    text = str(error)
    missing = re.search(r"\b(\w+) \(No registered", text)
    if missing:  # this error has no source line
        operations = all_operations(function.get_concrete_function(*specs).graph)
        frames = next((o.traceback for o in operations if o.type == missing[1]), ())
        return f"{FAILURE}{_location(frames)}: no TPU implements {missing[1]}."
    operation = re.search(r"\{\{node ([^}]+)\}\}", text)
    lines = [line.strip() for line in text.splitlines() if re.search(REASONS, line, re.I)]
    frames = [_Frame(*found) for found in re.findall(r'File "([^"]+)", line (\d+)', text)]
    reason = (lines or text.strip().splitlines() or ["unknown"])[0][:300]
    name = f", operation {operation[1]}" if operation else ""
    return f"{FAILURE}{_location(frames)}{name}: {reason}"
