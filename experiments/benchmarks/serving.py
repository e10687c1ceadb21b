"""Times exports of a model in turn with exports of other libraries.

  python -m experiments.benchmarks.serving --rounds=10

A request has 1, 8 or 32 JPEG files, an answer the five best classes of each. Our export, with and
without XLA, against an export of keras_hub's ViT of the same size and, if they are installed,
transformers and torch.
"""

import sys
import tempfile
import time
from pathlib import Path

from absl import flags as absl_flags

from experiments.benchmarks import timing
from vitkeras.cli import runner

REQUIRED = ()
ARGUMENTS = None
BATCH_SIZES = (1, 8, 32)
WARMUP_REQUESTS = 2


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the benchmark."""
    timing.define_flags(flags)
    timing.define_baseline(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Returns latencies in ms, images per second and ratios, by batch size and export."""
    from experiments.benchmarks import exports, tf_pipelines

    size = {"variant": flags.variant, "image_size": flags.image_size}
    content, result = tf_pipelines.photo(), dict(size)
    with tempfile.TemporaryDirectory() as folder:
        exported = exports.export_vitkeras(**size, folder=Path(folder) / "vitkeras")
        if flags.baseline:
            exported |= exports.export_baselines(**size, folder=Path(folder) / "keras_hub")
        for batch_size in BATCH_SIZES:
            contents = [content] * batch_size
            rounds = flags.rounds * max(1, 8 // batch_size)  # at least 8 images per round
            seconds = _time_requests(exported, contents, rounds)
            for name, row in _summarize(seconds, batch_size).items():
                text = ", ".join(f"{key} {value}" for key, value in row.items())
                print(f"batch {batch_size:2d} {name:13s} {text}", file=sys.stderr, flush=True)
                result[f"{batch_size}_{name}"] = row
    return result


def _time_requests(exported, contents, rounds):
    """Returns the seconds of every request, by export."""
    from experiments.benchmarks.exports import TOP

    seconds = {name: [] for name in exported}
    for number in range(WARMUP_REQUESTS + rounds):
        # The order rotates, since threads of torch spin a while after its request.
        first = number % len(exported)
        for name in [*exported, *exported][first : first + len(exported)]:
            start = time.perf_counter()
            if exported[name](contents).shape != (len(contents), TOP):
                raise RuntimeError(f"{name} did not answer for every image.")
            if number >= WARMUP_REQUESTS:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _summarize(seconds, batch_size):
    """Returns statistics of each export; `ratio` is its median latency over that of vitkeras."""
    import numpy as np

    median = {name: np.median(times) for name, times in seconds.items()}
    return {
        name: {
            "requests": len(times),
            "p50_ms": round(float(median[name]) * 1e3, 1),
            "p99_ms": round(float(np.percentile(times, 99)) * 1e3, 1),
            "images_s": round(float(batch_size / median[name]), 2),
            "ratio": round(float(median[name] / median["vitkeras"]), 3),
        }
        for name, times in seconds.items()
    }


if __name__ == "__main__":
    runner.run_script(sys.modules[__name__], "python -m experiments.benchmarks.serving")
