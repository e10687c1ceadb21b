"""Compiles the training steps of the recipes for a TPU slice and writes a table.

  python -m experiments.tables.tpu_table --tpu=v5e:2x4

Needs neither a TPU nor data, but the extra `aot`. Models have 1000 classes and use mixed_bfloat16.
Takes half an hour or more on two cores; the table is written after each row.
"""

import importlib
import sys
import time
from pathlib import Path

from absl import flags as absl_flags

from vitkeras import configs
from vitkeras.cli import runner
from vitkeras.errors import InputError
from vitkeras.io.atomic import write_file
from vitkeras.preflight.tpu_slices import parse_slice

REQUIRED = ()
ARGUMENTS = None
NUM_CLASSES = 1000
TOTAL_STEPS = 20_000

#: A recipe, its argument, images per replica, and changed fields.
ROWS = (
    ("digits", None, 64, {}),
    ("folder", None, 64, {}),
    ("augreg_pretrain", "Ti/16,imagenet,light1", 128, {}),
    ("augreg_pretrain", "S/16,imagenet,medium2", 128, {}),
    ("paper_pretrain", "B/16,imagenet", 64, {}),
    ("paper_pretrain", "B/16,imagenet", 64, {"ema_momentum": 0.999}),
    ("paper_pretrain", "B/16,imagenet", 256, {"accumulation_steps": 4}),
    ("paper_finetune", "B/16,cifar10", 16, {"init_from": None}),
    ("augreg_pretrain", "R26+S/32,imagenet,light1", 64, {}),
    ("paper_pretrain", "R50+B/16,jft", 32, {}),
    ("paper_pretrain", "R50x1,jft", 64, {}),
    ("paper_pretrain", "L/16,imagenet", 32, {}),
    ("paper_pretrain", "L/16,imagenet", 32, {"remat": True}),
    ("paper_pretrain", "H/14,jft", 8, {}),
)
COLUMNS = (
    "argument_gib", "temporary_gib", "code_gib", "tflop", "hbm_gb", "compute_ms", "memory_ms",
    "bfloat16_fraction", "images_per_second_per_replica",
)  # fmt: skip

INTRODUCTION = """# Training steps compiled for {tpu}

Written by `python -m experiments.tables.tpu_table --tpu={tpu}`. The steps were compiled, not run:
mixed_bfloat16, 1000 classes. Images are per chip and step, over all microbatches. HBM traffic (hbm)
is read from the compiled module. Compute and memory ms are the times that the published peaks of
the chip allow for the operations and for the traffic.
"""

OPERATIONS = """slice-start and copy-start are asynchronous copies between HBM and on-chip memory.
Names are those of the operations in the model, as far as the compiler keeps them."""


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the script."""
    absl_flags.DEFINE_string("tpu", "v5e:2x4", "The slice.", flag_values=flags)
    absl_flags.DEFINE_string("output", "docs/tpu_table.md", "The page to write.", flag_values=flags)
    absl_flags.DEFINE_list(
        "only", None, "Numbers of the rows to compile, from 0; all by default.", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "operations", 0, "Number of operations to list below the table, by HBM traffic.",
        lower_bound=0, flag_values=flags,
    )  # fmt: skip


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Writes the page."""
    from absl import logging

    from vitkeras.preflight.tpu_compilation import run_in_process

    tpu_slice, failed, lists = parse_slice(flags.tpu), [], []
    lines = [
        INTRODUCTION.format(tpu=flags.tpu),
        f"| config | images | {' | '.join(c.replace('_', ' ') for c in COLUMNS)} |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for number, row in enumerate(ROWS):
        if flags.only and str(number) not in flags.only:
            continue
        name, argument, images, fields = row
        label = f"{name}:{argument}" if argument else name
        label += "".join(f" {k}={v}" for k, v in fields.items() if v is not None)
        start = time.monotonic()
        try:
            step = run_in_process(compile_row, *row, tpu_slice)
            cells = " | ".join(f"{step.statistics[column]:g}" for column in COLUMNS)
            lists += list_operations(label, step, flags.operations)
        except InputError as error:
            failed.append(label)
            cells = f"{error} |" + " |" * (len(COLUMNS) - 2)
        lines.append(f"| {label} | {images} | {cells} |")
        write_file(Path(flags.output).absolute(), ("\n".join(lines + lists) + "\n").encode())
        logging.info("%s (%.0f s)", lines[-1], time.monotonic() - start)
    return {"table": flags.output, "slice": flags.tpu, "failed": failed}


def compile_row(name, argument, images, fields, tpu_slice):
    """Returns the `CompiledStep` of a row."""
    from vitkeras.cli import from_config
    from vitkeras.preflight.lowering import train_module
    from vitkeras.preflight.tpu_compilation import compile_module
    from vitkeras.training.freezing import freeze

    package = "vitkeras" if name in configs.recipes() else "experiments"
    recipe = importlib.import_module(f"{package}.configs.{name}")
    config = recipe.get_config(argument) if argument else recipe.get_config()
    config.dtype = "mixed_bfloat16"
    config.update(fields)
    model = from_config.build_model(config, NUM_CLASSES)
    freeze(model, config.freeze)
    from_config.compile_model(model, config, TOTAL_STEPS)
    stablehlo = train_module(model, images, from_config.augmentation(config).mixes)
    return compile_module(stablehlo, tpu_slice, images, config.accumulation_steps)


def list_operations(label, step, number):
    """Returns the lines of a table with the operations that have the most HBM traffic."""
    from vitkeras.preflight.hlo_statistics import hbm_traffic, sum_by_operation

    if not number:
        return []
    traffic = hbm_traffic(step.hlo, step.statistics["microbatches"])
    return [
        "", f"## HBM traffic by operation: {label}", "", OPERATIONS, "",
        "| GB | count | operation |", "|---|---|---|",
        *(
            f"| {num_bytes / 1e9:.3f} | {count} | {operation} |"
            for operation, count, num_bytes in sum_by_operation(traffic)[:number]
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    runner.run_script(sys.modules[__name__], "python -m experiments.tables.tpu_table")
