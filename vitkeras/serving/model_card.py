"""The model card of an export: origin, preprocessing, verification, signatures and classes."""

import html
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence

import keras
import tensorflow as tf

from vitkeras.data.decoding import MAX_PIXELS, MAX_SCANNED_PIXELS, MAX_TEXT_CHUNKS
from vitkeras.data.folder_listing import printable
from vitkeras.data.preprocessing import Preprocessing
from vitkeras.models.features import features


def format_model_card(
    model: keras.Model,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    top: int,
    compute_dtype: str,
    differences: Mapping[str, float],
    xla: bool,
    feature_layers: Sequence[int],
    rows: Mapping[str, str],
    activation: str = "softmax",
) -> str:
    """Returns the model card as Markdown.

    Args:
        model: The exported model.
        preprocessing: Its preprocessing.
        class_names: Class names in the order of the logits.
        top: Number of classes in an answer.
        compute_dtype: "float32" or "bfloat16".
        differences: Result of `verify_export`.
        xla: Whether the export has the signature `xla`.
        feature_layers: Blocks of its signature `feature_maps`.
        rows: Additional rows, from title to text: data, accuracy, weights, license, command.
        activation: "softmax" or "sigmoid".
    """
    num_classes = len(class_names)
    versions = {
        "vitkeras": importlib.metadata.version("vitkeras"),
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
    }
    largest = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    table = {
        "model": f"{model.name}, {model.count_params():,} parameters, {num_classes} classes",
        **rows,
        "preprocessing": f"in the graph: {preprocessing.describe()}, rescale to [-1, 1]",
        "compute dtype": f"{compute_dtype}; outputs are float32",
        "verification": "in a fresh process, against the Keras model; largest differences: "
        f"{largest} (features relative to the largest one)",
        "created with": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    if activation == "sigmoid":
        table["scores"] = (
            "sigmoid of each logit: those of the classes are independent and do not sum to 1"
        )
    outputs = (
        f"`classes`, `scores`, `label_ids` `(b, {top})`, best first; "
        f"`probabilities` `(b, {num_classes})`; `valid` `(b,)`"
    )
    feature_dim = model.get_layer("head").input.shape[-1]
    signatures = {
        "serving_default": ("`image_bytes`: string `(b,)`, JPEG, PNG or WebP files", outputs),
        "pixels": ("`pixels`: uint8 `(b, h, w, 3)`, any h and w", "as `serving_default`"),
        "pixels_float": ("`pixels`: float32 `(b, h, w, 3)`, 0 to 255", "as `serving_default`"),
        "features": (
            "`image_bytes`", f"`features` `(b, {feature_dim})`, the input of the head; `valid`"
        ),
    }  # fmt: skip
    if xla:
        text = "as `serving_default`, compiled by XLA; stock servers do not run it"
        signatures["xla"] = ("`image_bytes`", text)
    if feature_layers:
        maps = features(model, feature_layers).output
        text = ", ".join(f"`{name}` {_format_shape(x.shape)}" for name, x in maps.items())
        signatures["feature_maps"] = ("`image_bytes`", f"{text}; `valid`")
    signature_rows = ((f"`{name}`", *cells) for name, cells in signatures.items())
    return f"""\
# Model card

{_format_table(("", ""), table.items())}

## Signatures

{_format_table(("Signature", "Input", "Outputs"), signature_rows)}

An image that is not a complete JPEG, PNG or WebP file, that declares more than {MAX_PIXELS:,}
pixels, a JPEG with more than {MAX_SCANNED_PIXELS:,} pixels times scans, or a PNG with more than
{MAX_TEXT_CHUNKS} compressed text chunks gets `valid` false, scores and features 0, label ids -1 and
empty class names. The other images of the request are not affected. Animations are refused, and
servers with a TensorFlow before 2.20 refuse all WebP files.

## Classes

{", ".join(map(_escape, class_names))}
"""


def _format_shape(shape):
    return f"`(b, {', '.join(map(str, shape[1:]))})`"


def _escape(text: str) -> str:
    """Returns text in one line, without HTML, and with Markdown as it is."""
    return html.escape(printable(text), quote=False)


def _format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *rows]
    cells = ([_escape(str(cell)).replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
