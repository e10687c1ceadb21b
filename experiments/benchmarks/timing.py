"""Flags and timing of the benchmarks. Does not import TensorFlow."""

import statistics
import time
from collections.abc import Callable

from absl import flags as absl_flags

NUM_CLASSES = 1000


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of all benchmarks of a model."""
    absl_flags.DEFINE_integer(
        "rounds", 6, "Timed rounds, after one for warm-up.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_string("variant", "S/16", "Variant of the models.", flag_values=flags)
    absl_flags.DEFINE_integer("image_size", 224, "Side of an image in pixels.", flag_values=flags)


def define_batch_size(flags: absl_flags.FlagValues) -> None:
    """Defines --batch_size."""
    absl_flags.DEFINE_integer(
        "batch_size", 8, "Images per batch.", lower_bound=1, flag_values=flags
    )


def define_baseline(flags: absl_flags.FlagValues) -> None:
    """Defines --baseline."""
    absl_flags.DEFINE_bool(
        "baseline", True, "Measure keras_hub too (extra `benchmark`).", flag_values=flags
    )


def time_in_turn(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Times functions in turn, since the speed of a machine drifts.

    Args:
        functions: Functions by name.
        rounds: Timed calls of each function, after one that is not timed.
    Returns:
        Median seconds of each function.
    """
    times = {name: [] for name in functions}
    for round_number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if round_number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}
