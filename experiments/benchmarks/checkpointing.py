"""Times training steps with and without saving the training state.

python -m experiments.benchmarks.checkpointing --rounds=3
"""

import itertools
import sys
import tempfile
from pathlib import Path

from absl import flags as absl_flags

from experiments.benchmarks import timing
from vitkeras.cli import runner

REQUIRED = ()
ARGUMENTS = None


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    timing.define_flags(flags)
    timing.define_batch_size(flags)
    absl_flags.DEFINE_integer(
        "save_steps", 20, "Steps between two saves.", lower_bound=1, flag_values=flags
    )


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Returns the relative cost of saving, and the size of a saved state."""
    from experiments.benchmarks import model_functions
    from vitkeras.training import checkpoints

    model = model_functions.vitkeras_model(flags.variant, flags.image_size)
    images, labels = model_functions.random_batch("vitkeras", flags.batch_size, flags.image_size)
    step = model_functions.training_step(model, images, labels, jit_compile=False)
    numbers = itertools.count()

    def train(writer=None):
        if writer is not None:
            writer.save(next(numbers), checkpoints.get_arrays(model), {})
        for _ in range(flags.save_steps):
            step()

    with tempfile.TemporaryDirectory() as folder:
        writer = checkpoints.StateWriter(folder)
        functions = {"without": train, "with": lambda: train(writer)}
        seconds = timing.time_in_turn(functions, flags.rounds)
        writer.wait()
        # The newest two states are kept.
        size = sum(path.stat().st_size for path in Path(folder).glob("step-*/*")) // 2
    cost = seconds["with"] / seconds["without"] - 1
    print(
        f"saving {size / 1e6:.0f} MB every {flags.save_steps} steps costs {cost:.1%}",
        file=sys.stderr,
    )
    return {
        "variant": flags.variant, "image_size": flags.image_size, "batch_size": flags.batch_size,
        "save_steps": flags.save_steps, "bytes": size, "cost": round(cost, 4),
    }  # fmt: skip


if __name__ == "__main__":
    runner.run_script(sys.modules[__name__], "python -m experiments.benchmarks.checkpointing")
