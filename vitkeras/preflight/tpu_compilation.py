"""Ahead-of-time compilation of steps for a TPU slice, on a machine without a TPU.

Nothing here has run on a TPU: all figures are those of the compiler, or follow from them.
"""

import json
import math
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from vitkeras.errors import InputError
from vitkeras.preflight.hlo_statistics import (
    dtype_fraction,
    hbm_traffic,
    matrix_products,
    sum_by_operation,
)
from vitkeras.preflight.report import CheckResult
from vitkeras.preflight.tpu_slices import CHIPS, GIB, Slice

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # status code in the compiler's errors
#: Number of operations in the list of HBM traffic.
NUM_OPERATIONS = 25
NOTES = (
    "The steps were compiled for the slice, not run. Arguments (weights, moments, images), "
    "temporaries and code are in HBM; memory fraction is their part of it. Compute ms and memory "
    "ms are the times that the published peaks of the chip allow for the operations of the step "
    "and for its HBM traffic, read from the compiled module. Images per second follow from the "
    "larger of the two and are an upper bound. Accessed gb is the compiler's own count, which "
    "includes on-chip memory. The gradient all-reduce is not included. Microbatches are "
    "accumulation_steps; train_remat is the training step with remat=True."
)


class CompiledStep(NamedTuple):
    """A step that was compiled for a slice.

    Args:
        statistics: Memory, operations, traffic and the times that follow from them, by name.
        hlo: Text of the compiled module.
    """

    statistics: dict[str, Any]
    hlo: str


class Step(NamedTuple):
    """A step to compile.

    Args:
        lower: Function from the images per replica to the StableHLO module.
        microbatches: Number of microbatches per step.
        required: Whether the run cannot start if it does not compile or does not fit.
    """

    lower: Callable[[int], str]
    microbatches: int = 1
    required: bool = True


def compile_module(
    stablehlo: str, tpu_slice: Slice, images: int, microbatches: int = 1
) -> CompiledStep:
    """Compiles a step for a slice.

    Args:
        stablehlo: Text of the module.
        tpu_slice: The slice.
        images: Images per replica and step.
        microbatches: Number of microbatches per step.
    Raises:
        InputError: If the compiler rejects the step or is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        module, output = Path(folder) / "step.mlir", Path(folder) / "compiled.txt"
        module.write_text(stablehlo)
        process = subprocess.run(
            [sys.executable, "-m", "vitkeras.preflight.tpu_compiler", module, tpu_slice.topology,
             output],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if process.returncode:
            raise InputError(_compiler_error(process.stderr, tpu_slice))
        found = json.loads(process.stdout.splitlines()[-1])
        hlo = output.read_text()
    chip = CHIPS[tpu_slice.chip]
    hbm_bytes = sum(row.num_bytes for row in hbm_traffic(hlo, microbatches))
    products = matrix_products(stablehlo, microbatches)
    # The compiler counts one iteration of the loop over microbatches.
    counted = sum(product.flops for product in matrix_products(stablehlo))
    flops = found["flops"] + sum(product.flops for product in products) - counted
    compute, memory = flops / chip.flops, hbm_bytes / chip.bandwidth
    needed = sum(found[f"{k}_bytes"] for k in ("argument", "temporary", "output", "code"))
    bound = max(compute, memory)
    numbers = {
        "argument_gib": found["argument_bytes"] / GIB,
        "temporary_gib": found["temporary_bytes"] / GIB,
        "code_gib": found["code_bytes"] / GIB,
        "memory_fraction": needed / chip.memory,
        "tflop": flops / 1e12,
        "hbm_gb": hbm_bytes / 1e9,
        "accessed_gb": found["accessed_bytes"] / 1e9,
        "compute_ms": 1e3 * compute,
        "memory_ms": 1e3 * memory,
        "bfloat16_fraction": dtype_fraction("bf16", products),
        "images_per_second_per_replica": images / bound,
        "images_per_second": tpu_slice.replicas * images / bound,
    }
    statistics = {name: float(f"{value:.4g}") for name, value in numbers.items()}
    size = {"images_per_replica": images, "microbatches": microbatches}
    return CompiledStep({"device": found["device"], **size, **statistics}, hlo)


def _compiler_error(stderr, tpu_slice):
    if "No module named 'jax'" in stderr or "libtpu" in stderr and "ImportError" in stderr:
        return "Compiling for a TPU needs jax and libtpu: install the extra `aot`."
    lines = [line for line in stderr.splitlines() if re.match(r"\S*(Error|Exception)", line)]
    reason = (lines or stderr.strip().splitlines() or ["it ended without a message"])[-1][:400]
    return f"The compiler for {tpu_slice.topology} rejects the step: {reason}"


def largest_batch(
    lower: Callable[[int], str], tpu_slice: Slice, start: int, multiple_of: int = 1
) -> int:
    """Finds the largest number of images per replica that compiles and fits, by bisection.

    Args:
        lower: Function from the images per replica to the StableHLO module.
        tpu_slice: The slice.
        start: First number, a multiple of `multiple_of`.
        multiple_of: Numbers must be divisible by it.
    Returns:
        The number, exact to an eighth of itself or to `multiple_of`; 0 if nothing fits.
    """

    def fits(images):
        logging.info("compiling for %d images per replica ...", images)
        try:
            compiled = compile_module(lower(images), tpu_slice, images)
        except InputError as error:
            if OUT_OF_MEMORY in str(error):
                return False
            raise
        return compiled.statistics["memory_fraction"] <= 1

    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(multiple_of, low // 8):
        middle = (low + high) // 2
        # Preferably a multiple of 8, the number of rows in a tile of a TPU.
        rounded = (middle // n * n for n in (math.lcm(8, multiple_of), multiple_of))
        images = next(number for number in rounded if low < number < high)
        low, high = (images, high) if fits(images) else (low, images)
    return low


def check_steps(
    steps: dict[str, Step], tpu_slice: Slice, images: int, find_largest_batch: bool = False
) -> CheckResult:
    """Compiles the steps of a run for a slice.

    Args:
        steps: By name: "train", "evaluate" and, optionally, "train_remat".
        tpu_slice: The slice.
        images: Images per replica and step.
        find_largest_batch: Whether to search for the largest batch of the training steps.
    Returns:
        The statistics of each step, the largest global batches and a summary.
    """
    result = CheckResult("TPU", {"slice": tpu_slice.topology, "replicas": tpu_slice.replicas})
    compiled, searchable = {}, []
    for name, step in steps.items():
        logging.info("compiling for %s: %s ...", tpu_slice.topology, name)
        try:
            compiled[name] = compile_module(
                step.lower(images), tpu_slice, images, step.microbatches
            )
        except InputError as error:
            if step.required:
                result.problems.append(str(error))
            if OUT_OF_MEMORY in str(error):
                searchable.append(name)
            continue
        searchable.append(name)
        result.values[name] = compiled[name].statistics
        fraction = compiled[name].statistics["memory_fraction"]
        if fraction > 1 and step.required:
            result.problems.append(f"The {name} step needs {fraction:.0%} of the memory.")
    for name, label in (("train", "largest_batch"), ("train_remat", "largest_batch_remat")):
        if find_largest_batch and name in searchable:
            logging.info("searching for the largest batch: %s ...", name)
            step = steps[name]
            found = largest_batch(step.lower, tpu_slice, images, step.microbatches)
            result.values[label] = found * tpu_slice.replicas
    result.notes = NOTES
    if "train" in compiled:
        statistics = compiled["train"].statistics
        if statistics["bfloat16_fraction"] < 0.99:
            result.warnings.append(
                "Some matrix products are not in bfloat16; dtype=mixed_bfloat16 is faster on a TPU."
            )
        result.values["summary"] = summarize(tpu_slice, statistics)
        logging.info("%s", result.values["summary"])
        traffic = hbm_traffic(compiled["train"].hlo, steps["train"].microbatches)
        rows = sum_by_operation(traffic)[:NUM_OPERATIONS]
        lines = (f"{size / 1e9:.2f} GB, {count} times: {name}" for name, count, size in rows)
        result.notes += "\nMost HBM traffic of the training step, by operation:\n" + "\n".join(
            lines
        )
    return result


def summarize(tpu_slice: Slice, statistics: dict[str, Any]) -> str:
    """Returns a sentence on a compiled training step."""
    bound = "compute" if statistics["compute_ms"] > statistics["memory_ms"] else "memory traffic"
    return (
        f"On {tpu_slice.topology} a training step uses {statistics['memory_fraction']:.0%} of the "
        f"memory and is bound by {bound}: at least "
        f"{max(statistics['compute_ms'], statistics['memory_ms']):.3g} ms, "
        f"at most {statistics['images_per_second']:,.0f} images/s."
    )


def run_in_process(function: Callable, *arguments: Any) -> Any:
    """Calls a function in a process of its own, since TensorFlow does not free large models.

    Raises:
        InputError: If the process is killed.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise InputError(
                "Compiling needs more memory than this machine has free: its process was killed."
            ) from None
