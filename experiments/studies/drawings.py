"""Writes a folder of small drawings in nine classes, for measurements without a download.

  python -m experiments.studies.drawings --output=drawings --images=1900

A drawing is a shape of random color, size, position, angle and outline on a noisy background of
another color, with three lines across it: 160x160 pixels, JPEG.
"""

import math
import sys

from absl import flags as absl_flags

from vitkeras.cli import runner
from vitkeras.errors import InputError

REQUIRED = ("output",)
ARGUMENTS = None
SIDE = 160
CLASSES = (
    "circle", "cross", "heart", "hexagon", "moon", "ring", "square", "star", "triangle",
)  # fmt: skip


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the script."""
    absl_flags.DEFINE_string("output", None, "The folder to write.", flag_values=flags)
    absl_flags.DEFINE_integer("images", 1900, "Number of images.", flag_values=flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Writes the folder."""
    import numpy as np
    from etils import epath

    folder = epath.Path(flags.output)
    if folder.exists():
        raise InputError(f"`output` must be a new folder. Received: output={flags.output}.")
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(flags.images):
        name = CLASSES[i % len(CLASSES)]
        draw(name, rng).save(folder / name / f"{i:05d}.jpg", quality=90)
    return {"output": str(folder), "images": flags.images}


def draw(name, rng):
    """Returns a drawing of a class."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFilter

    background, color, line = rng.integers(0, 256, (3, 3))
    noise = rng.normal(0, 25, (SIDE, SIDE, 3))
    image = Image.fromarray(np.clip(background + noise, 0, 255).astype(np.uint8))
    radius, angle = rng.uniform(18, 60), rng.uniform(0, 2 * math.pi)
    center = rng.uniform(radius, SIDE - radius, 2)
    outline = np.array(outline_of(name)) @ np.array(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    )
    points = [tuple(point) for point in center + radius * outline]
    pen = ImageDraw.Draw(image)
    if rng.random() < 0.5:
        pen.polygon(points, fill=tuple(color))
    else:
        pen.line([*points, points[0]], fill=tuple(color), width=int(rng.integers(2, 6)))
    for ends in rng.uniform(0, SIDE, (3, 4)):
        pen.line(list(ends), fill=tuple(line), width=2)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))


def outline_of(name):
    """Returns the points of a shape, within the unit circle."""

    def arc(radius, begin=0.0, end=2 * math.pi, x=0.0, count=40):
        angles = (begin + (end - begin) * i / count for i in range(count + 1))
        return [(x + radius * math.cos(a), radius * math.sin(a)) for a in angles]

    def polygon(sides):
        return arc(1, count=sides)[:-1]

    if name in ("triangle", "square", "hexagon"):
        return polygon({"triangle": 3, "square": 4, "hexagon": 6}[name])
    if name == "star":
        return [
            (x * (1, 0.45)[i % 2], y * (1, 0.45)[i % 2]) for i, (x, y) in enumerate(polygon(10))
        ]
    if name == "cross":
        a, b = 0.28, 0.95
        return [(a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a), (-a, -b), (a, -b), (a, -a),
                (b, -a), (b, a), (a, a)]  # fmt: skip
    if name == "heart":
        angles = [2 * math.pi * i / 60 for i in range(60)]
        return [
            (
                math.sin(a) ** 3,
                (13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a))
                / 17,
            )
            for a in angles
        ]
    if name == "moon":
        return arc(1, 0.7, 2 * math.pi - 0.7) + arc(0.72, 2 * math.pi - 1.1, 1.1, x=0.44)
    if name == "ring":
        return arc(1) + arc(0.5, 2 * math.pi, 0)
    return arc(1)


if __name__ == "__main__":
    runner.run_script(sys.modules[__name__], "python -m experiments.studies.drawings")
