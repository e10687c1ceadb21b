"""Computes data-parallel step times on 8 to 1,024 chips from compiled steps; runs nothing.

  python -m experiments.tables.scaling --tpu=v5e docs/tpu_table.md

TABLE is a page of experiments.tables.tpu_table for that chip.
"""

import math
import sys
from pathlib import Path

from absl import flags as absl_flags

from vitkeras.cli import runner
from vitkeras.errors import InputError
from vitkeras.io.atomic import write_file
from vitkeras.preflight.tpu_slices import CHIPS, GIB, step_seconds

REQUIRED = ()
ARGUMENTS = "TABLE"
MODELS = ("B/16", "L/16", "H/14")
NUM_CHIPS = (8, 16, 32, 64, 128, 256, 512, 1024)

TEXT = """# Data-parallel scaling, computed

Nothing on this page was run on a TPU. The command

    python -m experiments.tables.scaling --tpu={tpu} --batch_size={batch_size} {table}

combines the compiler's figures of each model's training step ([table]({name}), mixed_bfloat16) with
the published peaks of a {tpu} chip: {tflops:.0f} TFLOP/s in bfloat16, {bandwidth:.0f} GB/s of HBM
bandwidth, {interconnect:.0f} GB/s over all links of a chip. A step with a global batch of
{batch_size} takes

- for the images of a chip, the larger of compute time and memory time at these peaks;
- once per step, the traffic of weights, gradients and AdamW's two moments (28 bytes per parameter);
- the all-reduce of the float32 gradients: 2 (n - 1) / n times 4 bytes per parameter over the links,
  without overlap with compute and without latency.

`accumulation_steps` is the number of microbatches with which the images of a chip fit into its
{memory:.0f} GiB, if all memory of the compiled step except weights and moments grows with them.

These are lower bounds of the step time, not measurements. Efficiency is relative to 8 chips. A
{tpu} slice has at most {max_replicas} chips; rows with more assume the same links.
"""

HEAD = "\n## {model}, {parameters:.0f} million parameters\n\n| chips | images per chip | " \
    "accumulation_steps | without all-reduce (ms) | all-reduce (ms) | step (ms) | " \
    "images/s | efficiency |\n|---|---|---|---|---|---|---|---|"  # fmt: skip

ADVICE = """
## Improving the efficiency

Efficiency falls when a chip has too few images for the time of the update and of the all-reduce,
which does not depend on the batch. In this order, consider

- a larger global batch, with its learning rate, if the recipe allows it;
- `steps_per_execution` of 50 or more, which removes the host from the loop (not in these figures);
- a slice no larger than the last row whose efficiency is acceptable.

If the images of a chip do not fit (few chips, large models), microbatches cost little: all-reduce
and update still take place once per step.
"""


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the script."""
    absl_flags.DEFINE_enum("tpu", "v5e", sorted(CHIPS), "The chip of TABLE.", flag_values=flags)
    absl_flags.DEFINE_string("output", "docs/scaling.md", "The page to write.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "batch_size", 4096, "Global batch size.", lower_bound=1, flag_values=flags
    )


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Writes the page."""
    if len(arguments) != 1:
        raise InputError(
            f"TABLE must be one page of experiments.tables.tpu_table. Received: {arguments}."
        )
    (table,) = arguments
    chip, batch_size = CHIPS[flags.tpu], flags.batch_size
    lines = [
        TEXT.format(
            tpu=flags.tpu, batch_size=batch_size, table=table, name=Path(table).name,
            tflops=chip.flops / 1e12, bandwidth=chip.bandwidth / 1e9,
            interconnect=chip.interconnect / 1e9, max_replicas=chip.max_replicas,
            memory=chip.memory / GIB,
        )
    ]  # fmt: skip
    half_efficient = {}
    for model, (images, tflop, hbm_gb, argument_gib, temporary_gib) in read_table(table).items():
        # Arguments are weights and two moments in float32; the images are small.
        num_parameters = argument_gib * GIB / 12
        lines.append(HEAD.format(model=model, parameters=num_parameters / 1e6))
        max_images = images * (chip.memory / GIB - argument_gib) / temporary_gib
        reference = None  # images per second and chip in the first row
        for num_chips in NUM_CHIPS:
            compute, all_reduce = step_seconds(
                chip, num_chips, batch_size, images, tflop, hbm_gb, num_parameters
            )
            rate = batch_size / (compute + all_reduce)
            reference = reference or rate / num_chips
            efficiency = rate / num_chips / reference
            if efficiency >= 0.5:
                half_efficient[model] = num_chips
            per_chip = batch_size / num_chips
            lines.append(
                f"| {num_chips} | {per_chip:g} | {num_microbatches(per_chip, max_images)} | "
                f"{1e3 * compute:.1f} | {1e3 * all_reduce:.1f} | "
                f"{1e3 * (compute + all_reduce):.1f} | {rate:,.0f} | {efficiency:.0%} |"
            )
    largest = ", ".join(f"{chips} chips ({model})" for model, chips in half_efficient.items())
    lines.append(f"\nEfficiency is at least 50% up to {largest}.")
    write_file(Path(flags.output).absolute(), "\n".join([*lines, ADVICE]).encode())
    return {"page": flags.output, "batch_size": batch_size, "half_efficient": half_efficient}


def read_table(path):
    """Returns images, TFLOP, HBM GB, argument GiB and temporary GiB of each model.

    Reads the rows of `paper_pretrain` without changed fields.

    Raises:
        InputError: If the row of a model is missing or was not compiled.
    """
    rows = {}
    for line in Path(path).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name, _, model = cells[0].partition(":")
        model = model.partition(",")[0]
        if name == "paper_pretrain" and "=" not in cells[0] and model in MODELS:
            try:
                rows[model] = int(cells[1]), *(float(cells[i]) for i in (5, 6, 2, 3))
            except (IndexError, ValueError):
                continue  # the row holds an error message
    if set(rows) != set(MODELS):
        raise InputError(
            f"TABLE must have compiled rows of {', '.join(MODELS)} (paper_pretrain). "
            f"Received: {path} with {', '.join(rows) or 'none'}."
        )
    return rows


def num_microbatches(images, max_images):
    """Returns the least number of equal microbatches with at most `max_images` each."""
    number = max(1, math.ceil(images / max_images))
    while images % number and number < images:
        number += 1
    return number


if __name__ == "__main__":
    runner.run_script(sys.modules[__name__], "python -m experiments.tables.scaling")
