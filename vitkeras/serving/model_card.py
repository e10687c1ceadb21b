"""The page that goes with an export: what it is, what it was made from, and how it is asked."""

import importlib.metadata

import keras
import tensorflow as tf

from vitkeras.data.preprocessing import MAX_PIXELS


def model_card(model, preprocessing, class_names, top, compute, differences, xla, about):
    """Returns Markdown.

    Args:
        model: The model that was exported.
        preprocessing: Its `Preprocessing`.
        class_names: Names in the order of the logits.
        top: How many classes an answer names.
        compute: "float32" or "bfloat16".
        differences: From name to how far the export was from the live model.
        xla: Whether there is the signature `xla`.
        about: More rows, from title to text: data, accuracy, weights, licence, command.
    """
    (height, width), classes = preprocessing.image_size, len(class_names)
    smooth = "with antialias" if preprocessing.antialias else "without antialias"
    versions = {"vitkeras": importlib.metadata.version("vitkeras")}
    versions |= {"TensorFlow": tf.__version__, "Keras": keras.__version__}
    off = (f"{name} off by at most {value:.1e}" for name, value in differences.items())
    rows = {
        "model": f"{model.name}, {model.count_params():,} parameters, {classes} classes",
        **about,
        "preprocessing": f"in the graph: RGB, bilinear resize to {height}x{width} {smooth} and "
        "without a crop, rounded to 8 bits, scaled to [-1, 1]; EXIF orientation is ignored, as in "
        "training",
        "compute": f"{compute}; what is answered is float32",
        "verified": f"in a fresh process, against the live model: {', '.join(off)}",
        "made with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    answer = f"`classes`, `scores`, `label_ids` `(b, {top})`, best first"
    answer += f"; `probabilities` `(b, {classes})`; `valid` `(b,)`"
    features = f"`(b, {model.get_layer('head').input.shape[-1]})`, what the head sees"
    served = {
        "serving_default": ("`image_bytes`: strings `(b,)`, each a JPEG or PNG file", answer),
        "pixels": ("`pixels`: uint8 `(b, h, w, 3)` of any size", "the same"),
        "pixels_float": ("`pixels`: float32 `(b, h, w, 3)`, 0 to 255", "the same"),
        "features": ("`image_bytes`", f"`features` {features}; `valid`"),
    }
    if xla:
        text = "the same, compiled by XLA, which stock servers do not run"
        served["xla"] = ("`image_bytes`", text)
    names = ", ".join(class_names)
    return f"""\
# Model card

{_table(("", ""), rows.items())}

## Signatures

{_table(("", "takes", "answers with"), ((f"`{k}`", *v) for k, v in served.items()))}

What is no whole JPEG or PNG file, or declares more than {MAX_PIXELS:,} pixels, gets `valid`
false, scores and features 0, label ids -1 and empty names; no other image of the request changes.

## Classes

{names}
"""


def _table(head, rows):
    rows = [head, ["---"] * len(head), *rows]
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
