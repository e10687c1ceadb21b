"""Times inference and training of a ViT in turn with keras_hub's ViT of the same size.

  python -m experiments.benchmarks.model --rounds=12

Measures a forward pass and an AdamW step, with and without XLA, in one process: machines drift,
ratios hold. Prints the median images per second of both and their ratio.
"""

import sys

from absl import flags as absl_flags

from experiments.benchmarks import timing
from vitkeras.cli import runner

REQUIRED = ()
ARGUMENTS = None


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    timing.define_flags(flags)
    timing.define_batch_size(flags)
    timing.define_baseline(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Returns images per second, by measurement and model."""
    import keras

    from experiments.benchmarks import model_functions

    size = {"variant": flags.variant, "image_size": flags.image_size}
    names = ("vitkeras", "keras_hub") if flags.baseline else ("vitkeras",)
    result = {**size, "batch_size": flags.batch_size}

    def prepare(name, training, jit_compile):
        model = model_functions.MODELS[name](**size)
        images, labels = model_functions.random_batch(name, flags.batch_size, flags.image_size)
        if training:
            return model_functions.training_step(model, images, labels, jit_compile)
        return model_functions.forward_pass(model, images, jit_compile)

    for training in (False, True):
        for jit_compile in (False, True):
            functions = {name: prepare(name, training, jit_compile) for name in names}
            seconds = timing.time_in_turn(functions, flags.rounds)
            rates = {name: flags.batch_size / each for name, each in seconds.items()}
            line = ", ".join(f"{name} {rate:.2f} images/s" for name, rate in rates.items())
            if flags.baseline:
                rates["ratio"] = rates["vitkeras"] / rates["keras_hub"]
                line += f", ratio {rates['ratio']:.2f}"
            label = ("train" if training else "infer") + ("_xla" if jit_compile else "")
            print(f"{label:10s} {line}", file=sys.stderr, flush=True)
            result[label] = {name: round(rate, 3) for name, rate in rates.items()}
            keras.backend.clear_session()
    return result


if __name__ == "__main__":
    runner.run_script(sys.modules[__name__], "python -m experiments.benchmarks.model")
