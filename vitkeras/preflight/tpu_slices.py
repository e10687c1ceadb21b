"""TPU slices: published peaks of the chips, and names of slices. Does not import TensorFlow."""

import math
import re
from typing import NamedTuple

from vitkeras.errors import InputError


class Chip(NamedTuple):
    """Published peaks of a core that runs one replica.

    Args:
        memory: Bytes of HBM.
        flops: Operations per second in bfloat16.
        bandwidth: Bytes per second to and from HBM.
        interconnect: Bytes per second over all links to other chips together.
        max_replicas: Replicas of the largest slice.
        dimensions: Number of dimensions of a slice.
    """

    memory: int
    flops: float
    bandwidth: float
    interconnect: float
    max_replicas: int
    dimensions: int


GIB = 2**30
#: Source: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and its pages per version.
#: A v4 chip has two cores with one replica each: the figures of v4 are halved.
CHIPS = {
    "v4": Chip(16 * GIB, 275e12 / 2, 1228e9 / 2, 300e9 / 2, 2 * 4096, 3),
    "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9, 256, 2),
    "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9, 6144, 3),
    "v6e": Chip(32 * GIB, 918e12, 1640e9, 448e9, 256, 2),
}
SHAPES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


class Slice(NamedTuple):
    """A TPU slice.

    Args:
        chip: Key of `CHIPS`.
        topology: Name that libtpu takes, such as v5e:2x4.
        replicas: Number of replicas.
    """

    chip: str
    topology: str
    replicas: int


def parse_slice(name: str) -> Slice:
    """Returns the slice of a name such as v5e:2x4.

    Raises:
        InputError: If there is no such slice.
    """
    version, _, shape = name.lower().partition(":")
    sides = [int(side) for side in shape.split("x") if side.isdecimal()]
    chip = CHIPS.get(version)
    replicas = math.prod(sides) * (2 if version == "v4" else 1)
    if chip is None:
        valid = False
    elif chip.dimensions == 2:
        valid = shape in SHAPES_2D
    else:  # a host has 2x2x1 chips
        valid = bool(re.fullmatch(r"\d+x\d+x\d+", shape)) and 0 < replicas <= chip.max_replicas
        valid = valid and not any(side % 2 for side in sides[:2])
    if chip is None or not valid:
        raise InputError(
            f"`tpu` must be v5e or v6e with one of the shapes {', '.join(SHAPES_2D)}, or v4 or v5p "
            "with three sides of which the first two are even, such as v5p:2x2x1. "
            f"Received: tpu={name}."
        )
    return Slice(version, f"{version}:{shape}", replicas)


def step_seconds(
    chip: Chip,
    num_chips: int,
    batch_size: int,
    compiled_images: int,
    tflop: float,
    hbm_gb: float,
    num_parameters: float,
) -> tuple[float, float]:
    """Computes the shortest time of a data-parallel step at the chip's peaks.

    Args:
        chip: The chip.
        num_chips: Number of chips.
        batch_size: Global batch size.
        compiled_images: Images per chip in the compiled step that `tflop` and `hbm_gb` describe.
        tflop: Operations of the compiled step, in 10**12.
        hbm_gb: HBM traffic of the compiled step, in 10**9 bytes.
        num_parameters: Number of parameters.
    Returns:
        Seconds of the step without the gradient all-reduce, and seconds of the all-reduce.
    """
    # AdamW in float32 reads weights, gradients and two moments, and writes all but the gradients.
    update_bytes = 28 * num_parameters
    scale = batch_size / num_chips / compiled_images
    traffic = max(1e9 * hbm_gb - update_bytes, 0) * scale
    arithmetic = 1e12 * tflop * scale / chip.flops
    compute = max(arithmetic, traffic / chip.bandwidth) + update_bytes / chip.bandwidth
    return compute, 2 * (num_chips - 1) / num_chips * 4 * num_parameters / chip.interconnect
