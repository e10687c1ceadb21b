"""Compiles the training step of the shipped configs for a TPU slice and writes a table.

python -m experiments.tpu_table --tpu=v5e:2x4

Without a TPU, and without data: models of 1000 classes, in mixed_bfloat16. It takes half an hour or
more on two cores (extra `aot`); a row is written when it is done.
"""

import importlib
import time
from pathlib import Path

from experiments import cli  # first: it sets TensorFlow's log level

# isort: split
import keras
from absl import flags

from experiments import tpu, tpu_module
from experiments.plan import build_model, compile_model, say
from vitkeras.errors import InputError
from vitkeras.finetuning import freeze
from vitkeras.storage import write_file

TPU = flags.DEFINE_string("tpu", "v5e:2x4", "The slice.")
OUTPUT = flags.DEFINE_string("output", "docs/tpu_table.md", "The table to write.")
ONLY = flags.DEFINE_list("only", None, "Numbers of the rows to compile, from 0; all by default.")
OPERATIONS = flags.DEFINE_integer(
    "operations", 0, "How many operations to list under the table, those that move most.", 0
)
STEPS = 20_000

#: A config, its argument, images on a replica, and fields to set.
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
    "argument_gib", "temporary_gib", "code_gib", "tflop", "hbm_gb", "arithmetic_ms", "memory_ms",
    "bfloat16_share", "images_per_second_per_replica",
)  # fmt: skip

INTRODUCTION = """# Training steps compiled for {tpu}

Compiled by `python -m experiments.tpu_table --tpu={tpu}`, never run: mixed_bfloat16, 1000 classes,
images on each chip (in the pieces of `accumulation_steps`, where there are any). hbm is what moves
to and from the chip's large memory, read off the compiled module; the two times are what the chip's
published peaks take for the arithmetic and for that.
"""

NAMES = """slice-start and copy-start bring operands into the fast memory ahead of their use, or
results out of it. A name is that of the operation in the model, as far as the compiler kept it."""


def row(name, argument, images, fields, place):
    """Returns the `tpu.Report` of a row."""
    module = importlib.import_module(f"experiments.configs.{name}")
    config = module.get_config(argument) if argument else module.get_config()
    config.dtype = "mixed_bfloat16"
    config.update(fields)
    keras.backend.clear_session()
    model = build_model(config, 1000, lambda text: None)
    freeze(model, config.freeze)
    compile_model(model, config, STEPS)
    mixes = config.mixup_alpha > 0 or config.cutmix_alpha > 0
    text = tpu.train_module(model, images, mixes)
    return tpu.compile_module(text, place, images, config.accumulation_steps)


def listed(label, report):
    """Returns lines with the operations of a report that move most to and from the memory."""
    if not OPERATIONS.value:
        return []
    rows = tpu_module.by_operation(tpu_module.moved(report.compiled, report.facts["pieces"]))[
        : OPERATIONS.value
    ]
    head = ["", f"## What moves most: {label}", "", NAMES, "", "| GB | times | operation |"]
    head.append("|---|---|---|")
    return head + [f"| {size / 1e9:.3f} | {times} | {what} |" for what, times, size in rows]


def main(_):
    """Compiles."""
    place, failed, lists = tpu.parse_slice(TPU.value), [], []
    lines = [
        INTRODUCTION.format(tpu=TPU.value),
        f"| config | images | {' | '.join(c.replace('_', ' ') for c in COLUMNS)} |",
        "|---" * (2 + len(COLUMNS)) + "|",
    ]
    for number, (name, argument, images, fields) in enumerate(ROWS):
        if ONLY.value and str(number) not in ONLY.value:
            continue
        label = f"{name}{':' + argument if argument else ''}" + "".join(
            f" {k}={v}" for k, v in fields.items() if v is not None
        )
        start = time.monotonic()
        try:
            report = tpu.in_a_process(row, name, argument, images, fields, place)
            text = " | ".join(f"{report.facts[column]:g}" for column in COLUMNS)
            lists += listed(label, report)
        except InputError as error:
            failed.append(label)
            text = f"{error} |" + " |" * (len(COLUMNS) - 2)
        lines.append(f"| {label} | {images} | {text} |")
        write_file(Path(OUTPUT.value).absolute(), ("\n".join(lines + lists) + "\n").encode())
        say(f"{lines[-1]} ({time.monotonic() - start:.0f} s)")
    return {"table": OUTPUT.value, "slice": TPU.value, "failed": failed}


if __name__ == "__main__":
    cli.run(main)
