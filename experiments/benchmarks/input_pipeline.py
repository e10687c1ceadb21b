"""Times the input pipeline alone, in turn with other implementations of the same augmentation.

  python -m experiments.benchmarks.input_pipeline --rounds=9

Images per second from one JPEG of 640x427 pixels: random crops; crops with RandAugment (2 layers,
magnitude 15) of this package, of Keras's layer, and of Pillow and NumPy in two processes.
"""

import functools
import sys

from absl import flags as absl_flags

from vitkeras.cli import runner

REQUIRED = ()
ARGUMENTS = None
#: Images per call; fewer for the slow Keras layer.
IMAGES, KERAS_IMAGES = 1200, 20


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    absl_flags.DEFINE_integer(
        "rounds", 6, "Timed rounds, after one for warm-up.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_integer("image_size", 224, "Side of an image in pixels.", flag_values=flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Returns images per second, by pipeline."""
    from experiments.benchmarks import pil_pipeline, tf_pipelines
    from experiments.benchmarks.timing import time_in_turn

    side, image_bytes = flags.image_size, tf_pipelines.photo()
    tensorflow = functools.partial(tf_pipelines.tensorflow_pipeline, image_bytes, side)
    with pil_pipeline.PilPipeline(image_bytes, side) as pil:
        pipelines = {
            "crop": (IMAGES, tensorflow()),
            "randaug": (IMAGES, tensorflow("vitkeras")),
            "keras_randaug": (KERAS_IMAGES, tensorflow("keras")),
            "pil_randaug": (IMAGES, pil),
        }
        functions = {k: functools.partial(run, n) for k, (n, run) in pipelines.items()}
        seconds = time_in_turn(functions, flags.rounds)
    rates = {name: pipelines[name][0] / each for name, each in seconds.items()}
    for name, rate in rates.items():
        ratio = rates["randaug"] / rate
        print(f"{name:14s} {rate:7.1f} images/s, randaug / it {ratio:.2f}", file=sys.stderr)
    return {"image_size": side} | {name: round(rate, 1) for name, rate in rates.items()}


if __name__ == "__main__":
    runner.run_script(sys.modules[__name__], "python -m experiments.benchmarks.input_pipeline")
