"""How much memory a training step takes, read off its graph, before there is an accelerator."""

import collections
import math

import tensorflow as tf

from vitkeras.private import sum_is_taken

#: Operations whose output is their input's memory, and those that hold none of a step's own.
SAME = {"Identity", "Reshape", "ExpandDims", "Squeeze", "StopGradient", "PreventGradient"}
NONE = {"Placeholder", "Const", "ReadVariableOp"}


def state_bytes(model):
    """Returns the bytes of all variables of a compiled model and its optimizer."""
    variables = [*model.variables, *model.optimizer.variables]
    return sum(
        math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables
    )


def step_bytes(model, images):
    """Returns the most bytes that a training step on one device holds at once, besides the state.

    The operations are taken in the order in which they were traced, each on its own; a compiler
    that fuses them needs less, an allocator somewhat more.

    Args:
        model: Compiled, its optimizer built, and without accumulation.
        images: Number of images in the step.
    """
    shape = model.input_shape[1:]
    specs = (
        tf.TensorSpec((images, *shape), tf.uint8),
        tf.TensorSpec((images,), tf.int32),
    )

    @tf.function(autograph=False)
    def step(x, y):
        return model.train_step((x, y))

    with sum_is_taken(model.optimizer):
        graph = step.get_concrete_function(*specs).graph
    return _most_at_once(graph.get_operations())


def _most_at_once(operations):
    held, last_use = {}, {}  # of each tensor: the one whose memory it is, and its last reader
    for place, operation in enumerate(operations):
        for tensor in operation.inputs:
            last_use[held.get(tensor.ref(), tensor.ref())] = place
        if operation.type in SAME:
            source = operation.inputs[0].ref()
            held[operation.outputs[0].ref()] = held.get(source, source)
    freed, now, most = collections.Counter(), 0, 0
    for place, operation in enumerate(operations):
        if operation.type not in SAME | NONE:
            for tensor in operation.outputs:
                size = _bytes(tensor)
                now += size
                freed[last_use.get(tensor.ref(), place)] += size
        most = max(most, now)
        now -= freed[place]
    return most


def _bytes(tensor):
    if tensor.dtype in (tf.resource, tf.variant, tf.string) or not tensor.shape.is_fully_defined():
        return 0
    return tensor.shape.num_elements() * tensor.dtype.size
