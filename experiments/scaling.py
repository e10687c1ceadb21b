"""From compiled steps to data-parallel step times on 8 to 1,024 chips; computed, not run.

python -m experiments.scaling --tpu=v5e docs/tpu_table.md

The table is that of experiments.tpu_table; the page is docs/scaling.md.
"""

import math
from pathlib import Path

from experiments import cli  # first: it sets TensorFlow's log level

# isort: split
from absl import flags

from experiments import tpu
from vitkeras.errors import InputError
from vitkeras.storage import write_file

TPU = flags.DEFINE_enum("tpu", "v5e", sorted(tpu.CHIPS), "The chip that the table is of.")
OUTPUT = flags.DEFINE_string("output", "docs/scaling.md", "The page to write.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4096, "Global batch.", lower_bound=1)
MODELS = ("B/16", "L/16", "H/14")
CHIPS = (8, 16, 32, 64, 128, 256, 512, 1024)

TEXT = """# Data-parallel scaling, computed

Nothing on this page was run on a TPU. The command

    python -m experiments.scaling --tpu={tpu} --batch_size={batch} {table}

takes what the compiler says of each model's training step ([the table]({name}), mixed_bfloat16) and
what the maker of the {tpu} chip publishes: {tflops:.0f} TFLOP/s in bfloat16, {bandwidth:.0f} GB/s
of memory, {links:.0f} GB/s over all links of a chip. A step of a global batch of {batch} takes

- for each image of a chip, the larger of its arithmetic and its memory traffic at those peaks;
- once a step, the traffic of weights, gradients and AdamW's two moments (28 bytes a parameter);
- the sum of the float32 gradients over chips, 2 (n - 1) / n times 4 bytes a parameter over the
  links, none of it hidden behind arithmetic, no latency.

A chip takes its images in as many pieces (`accumulation_steps`) as its {memory:.0f} GiB need, if
what the compiled step holds beside weights and moments grows with its images.

So these are the fastest steps that the hardware allows, not what will be measured; efficiency is
against 8 chips. One slice of {tpu} has at most {most} chips: what is said of more is as if it had.
"""

HEAD = "\n## {model}, {parameters:.0f} million parameters\n\n| chips | images a chip | " \
    "accumulation_steps | compute (ms) | sum of gradients (ms) | step (ms) | images/s | " \
    "efficiency |\n|---|---|---|---|---|---|---|---|"  # fmt: skip

ADVICE = """
## What to change where it stops

Where efficiency falls, a chip has too few images for the time that weights and gradients take,
which does not depend on the batch. What helps, in this order:

- a larger global batch, with its learning rate, if the recipe bears it;
- `steps_per_execution` of 50 or more, which takes the host out of the loop (not in these figures);
- a slice no larger than the last row with the efficiency that you want to pay for.

Where a chip's images do not fit (few chips, large models), pieces cost little: the sum of gradients
still comes once a step, and so does the update.
"""


def read_table(path):
    """Returns for each model (images, TFLOP, GB, GiB of arguments and of temporaries).

    Of a plain pretraining row.
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
                continue  # a row that could not be compiled
    if set(rows) != set(MODELS):
        raise InputError(
            f"The table must have compiled rows of {', '.join(MODELS)} (paper_pretrain). "
            f"Received: {path} with {', '.join(rows) or 'none'}."
        )
    return rows


def pieces(images, most):
    """Returns into how many equal pieces images are cut, so that none has more than `most`."""
    number = max(1, math.ceil(images / most))
    while images % number and number < images:
        number += 1
    return number


def main(paths):
    """Writes the page."""
    if len(paths) != 1:
        raise InputError(f"Give the table of experiments.tpu_table. Received: {paths}.")
    chip, batch = tpu.CHIPS[TPU.value], BATCH_SIZE.value
    lines = [
        TEXT.format(
            tpu=TPU.value, batch=batch, table=paths[0], name=Path(paths[0]).name,
            tflops=chip.flops / 1e12, bandwidth=chip.bandwidth / 1e9, links=chip.links / 1e9,
            most=chip.most, memory=chip.memory / tpu.GIB,
        )
    ]  # fmt: skip
    stops = {}
    for model, (images, tflop, gigabytes, gib, temporary) in read_table(paths[0]).items():
        parameters = gib * tpu.GIB / 12  # weights and two moments in float32, images beside them
        lines.append(HEAD.format(model=model, parameters=parameters / 1e6))
        first, most = None, images * (chip.memory / tpu.GIB - gib) / temporary
        for chips in CHIPS:
            compute, links = tpu.step_times(
                chip, chips, batch, images, tflop, gigabytes, parameters
            )
            rate = batch / (compute + links)
            first = first or rate / chips
            efficiency = rate / chips / first
            if efficiency >= 0.5:
                stops[model] = chips
            lines.append(
                f"| {chips} | {batch / chips:g} | {pieces(batch / chips, most)} | "
                f"{1e3 * compute:.1f} | {1e3 * links:.1f} | "
                f"{1e3 * (compute + links):.1f} | {rate:,.0f} | {efficiency:.0%} |"
            )
    lines.append("\nHalf of the chips' time or more goes into images up to " + ", ".join(
        f"{chips} chips ({model})" for model, chips in stops.items()
    ) + ".")  # fmt: skip
    write_file(Path(OUTPUT.value).absolute(), ("\n".join([*lines, ADVICE])).encode())
    return {"page": OUTPUT.value, "batch_size": batch, "half_efficient": stops}


if __name__ == "__main__":
    cli.run(main, takes_arguments=True)
