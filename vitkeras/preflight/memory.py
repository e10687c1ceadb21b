"""Estimates the memory of a training step from its graph, before there is an accelerator."""

import collections
import math

import tensorflow as tf

from vitkeras.keras_internals import skip_gradient_all_reduce
from vitkeras.preflight.report import CheckResult

#: Operations whose output shares the buffer of their input, and operations without a buffer.
ALIASES = {"Identity", "Reshape", "ExpandDims", "Squeeze", "StopGradient", "PreventGradient"}
WITHOUT_BUFFER = {"Placeholder", "Const", "ReadVariableOp"}
#: Fraction of the device's memory that a step can use; the allocator and the program need some.
USABLE_FRACTION = 0.9
NOTES = (
    "Memory is estimated from the graph of the training step, one buffer per operation: a compiler "
    "that fuses operations needs less. Batches are global, over all devices and microbatches."
)


def state_bytes(model) -> int:
    """Returns the bytes of all variables of a compiled model and its optimizer."""
    variables = [*model.variables, *model.optimizer.variables]
    return sum(math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables)


def step_bytes(model, images: int) -> int:
    """Returns the peak memory of a training step on one device, without the state, in bytes.

    Operations run in the order in which they were traced, each with its own output buffer. A
    compiler that fuses them needs less, an allocator somewhat more.

    Args:
        model: Compiled without accumulation, with a built optimizer.
        images: Number of images in the step.
    """
    specs = (
        tf.TensorSpec((images, *model.input_shape[1:]), tf.uint8),
        tf.TensorSpec((images,), tf.int32),
    )

    @tf.function(autograph=False)
    def step(x, y):
        return model.train_step((x, y))

    with skip_gradient_all_reduce(model.optimizer):
        graph = step.get_concrete_function(*specs).graph
    return _peak_bytes(graph.get_operations())


def _peak_bytes(operations):
    buffers, last_use = {}, {}  # of tensors: the tensor that owns the buffer, the last reader of it
    for index, operation in enumerate(operations):
        for tensor in operation.inputs:
            last_use[buffers.get(tensor.ref(), tensor.ref())] = index
        if operation.type in ALIASES:
            source = operation.inputs[0].ref()
            buffers[operation.outputs[0].ref()] = buffers.get(source, source)
    freed, current, peak = collections.Counter(), 0, 0
    for index, operation in enumerate(operations):
        if operation.type not in ALIASES | WITHOUT_BUFFER:
            for tensor in operation.outputs:
                size = _tensor_bytes(tensor)
                current += size
                freed[last_use.get(tensor.ref(), index)] += size
        peak = max(peak, current)
        current -= freed[index]
    return peak


def _tensor_bytes(tensor):
    if tensor.dtype in (tf.resource, tf.variant, tf.string) or not tensor.shape.is_fully_defined():
        return 0
    return tensor.shape.num_elements() * tensor.dtype.size


def check_memory(
    model, images: int, replicas: int, accumulation_steps: int, memory_gib: float
) -> CheckResult:
    """Checks that a training step fits into the memory of a device.

    Args:
        model: Compiled without accumulation, with a built optimizer.
        images: Images per replica and microbatch.
        replicas: Number of devices.
        accumulation_steps: Number of microbatches per step.
        memory_gib: Memory of each device, in GiB.
    Returns:
        The estimate, and the largest global batch that fits with this accumulation.
    """
    state = state_bytes(model)
    if accumulation_steps > 1:  # the accumulated gradients
        state += sum(4 * math.prod(v.shape) for v in model.trainable_variables)
    # Two batches that are large enough for activations, not the optimizer, to set the peak.
    small, large = (step_bytes(model, count) for count in (64, 128))
    per_image, fixed = (large - small) / 64, state + 2 * small - large
    needed_gib = (fixed + per_image * images) / 2**30
    usable_gib = USABLE_FRACTION * memory_gib
    largest = int(max(usable_gib * 2**30 - fixed, 0) / per_image)
    largest_batch = largest * replicas * accumulation_steps
    values = {
        "gib_per_replica": round(needed_gib, 2),
        "state_gib": round(state / 2**30, 2),
        "largest_batch": largest_batch,
    }
    result = CheckResult("Memory", values, notes=NOTES)
    if largest < images:
        advice = "Use a device with more memory."
        if largest:
            microbatches = -(-images * accumulation_steps // largest)
            advice = (
                f"Set accumulation_steps={microbatches}, or batch_size={largest_batch} or less."
            )
        result.problems.append(
            f"A step of {images} images needs about {needed_gib:.3g} GiB on each device, of which "
            f"{usable_gib:.3g} GiB are usable. {advice}"
        )
    return result
