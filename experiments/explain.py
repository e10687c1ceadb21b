"""Draws the paper's figures of a trained ViT on images of yours, as one page.

python -m experiments.explain --workdir=runs/photos --output=explained IMAGE...
python -m experiments.explain --weights=B_16.npz --output=explained IMAGE...
"""

from experiments import cli  # first: it sets TensorFlow's log level

# isort: split
import io
from functools import partial

import numpy as np
from absl import flags
from etils import epath

import vitkeras as vk
from experiments.images import decode, read_file
from experiments.page import render
from experiments.sections import SHOWN, Sections, plural
from vitkeras import analysis, data
from vitkeras.errors import InputError, nearest
from vitkeras.runs import RunDirectory
from vitkeras.storage import write_folder

WORKDIR = flags.DEFINE_string("workdir", None, "The run directory; its best model is looked into.")
WEIGHTS = flags.DEFINE_string("weights", None, "A weight file of any known format, or .keras.")
OUTPUT = flags.DEFINE_string("output", None, "The folder to write: new, or empty.")
IMAGE_SIZE = flags.DEFINE_list(
    "image_size", None, "Side, or height,width, of a weight file's model; that of the file else."
)
BLOCK = flags.DEFINE_integer(
    "block", -1, "Block whose heads are drawn: from 1, or -1 for the last."
)
CLASS = flags.DEFINE_string(
    "class", None, "Name or number (from 0) of the class to find evidence for; the predicted else."
)


def open_model():
    """Returns the model, its name, class names (None for none), `Preprocessing`, and a sentence."""
    if (WORKDIR.value is None) == (WEIGHTS.value is None):
        raise InputError("Give either --workdir=DIR or --weights=FILE.")
    if WORKDIR.value:
        if IMAGE_SIZE.value:
            raise InputError("`image_size` is for --weights; a run has a size of its own.")
        run = RunDirectory(WORKDIR.value)
        model, names = run.load_model(), run.class_names
        preprocessing = data.Preprocessing.from_json(run.preprocessing)
        name, how = run.path.name, "as the run recorded it"
    else:
        size = image_size(IMAGE_SIZE.value)
        model, names = vk.from_pretrained(WEIGHTS.value, image_size=size), None
        preprocessing = data.Preprocessing(model.input_shape[1:3])
        name = epath.Path(WEIGHTS.value).name
        how = (
            "as is assumed, for a weight file does not say; other means and deviations that its "
            "origin used are in the patch projection"
        )
    analysis.layout(model)  # a ResNet is refused before anything is computed
    height, width = preprocessing.image_size
    smooth = "with" if preprocessing.antialias else "without"
    text = (
        f"Images are resized straight to {height}x{width} pixels (height x width), bilinear, "
        f"{smooth} antialias, and scaled to [-1, 1], {how}."
    )
    return model, f"{name} ({model.name})", names, preprocessing, text


def image_size(words):
    """Returns what a flag says: None, or `(height, width)`."""
    if words is None:
        return None
    if len(words) not in (1, 2) or not all(word.isdecimal() for word in words):
        raise InputError(
            "`image_size` must be a side in pixels, or height,width. "
            f"Received: image_size={','.join(words)}."
        )
    return (int(words[0]), int(words[-1]))


def block_index(number, layout):
    """Returns the index of a block from what the flag says, which counts from 1."""
    if not (1 <= number <= layout.num_layers or number == -1):
        raise InputError(
            f"`block` must be a number from 1 to {layout.num_layers}, or -1 for the last. "
            f"Received: block={number}."
        )
    return number - 1 if number > 0 else layout.num_layers - 1


def class_index(word, names, model):
    """Returns the number of a class, given by name or number; None for None.

    Raises:
        InputError: If there is no such class.
    """
    if word is None:
        return None
    if all(layer.name != "head" for layer in model.layers):
        raise InputError(f"This model has no head and so no classes. Received: class={word}.")
    count = model.output_shape[-1]
    if names is not None and word in names:
        return names.index(word)
    if word.isdecimal() and int(word) < count:
        return int(word)
    kinds, near = ("a class name or ", nearest(word, names)) if names is not None else ("", "")
    raise InputError(
        f"`class` must be {kinds}a number from 0 to {count - 1}. Received: class={word}.{near}"
    )


def main(paths):
    """Looks, draws, writes."""
    if not paths:
        raise InputError("Give at least one image file after the flags.")
    output = epath.Path(OUTPUT.value)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(
            f"`output` must be a folder that is empty or not there yet. Received: {output}."
        )
    contents, photos = [], []
    for path in paths:
        contents.append(read_file(path))
        pixels = decode(path, contents[-1])
        photos += [pixels] if len(photos) < SHOWN else []
    files = [epath.Path(path).name for path in paths]
    model, name, names, preprocessing, how = open_model()
    layout = analysis.layout(model)
    block = block_index(BLOCK.value, layout)
    asked = class_index(CLASS.value, names, model)
    images = np.stack([preprocessing.evaluation_image(c).numpy() for c in contents])

    sections = Sections(name, files, photos)
    sections.filters(model)
    sections.positions(model)
    sections.distances(model, images, layout)
    sections.rollout(model, images, layout)
    sections.heads(model, images, layout, block)
    sections.evidence(model, images, names, asked)
    sections.norms(model, images, layout)

    tokens = ["class token"] if layout.class_token else []
    tokens += [plural(layout.num_registers, "register")] if layout.num_registers else []
    introduction = [
        f"{model.count_params():,} parameters, {plural(layout.num_layers, 'block')} of "
        f"{plural(layout.num_heads, 'head')}; tokens: "
        + ", ".join([*tokens, f"{layout.grid[0]}x{layout.grid[1]} patches (rows x columns)"])
        + f", {layout.stride} pixels apart.",
        f"Looked at on {plural(len(paths), 'image')}: {', '.join(files)}. {how}",
    ]
    if len(files) > SHOWN:
        introduction.append(f"The first {SHOWN} have pictures of their own; arrays.npz has all.")
    text = render(f"Inside {name}", introduction, sections.made)
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **sections.arrays)
    made = {**sections.files, "arrays.npz": arrays.getvalue(), "index.html": text.encode()}
    try:
        write_folder(output, {file: partial(_write, content) for file, content in made.items()})
    except OSError as error:
        raise InputError(
            f"`output` must be a place where a folder can be made. Received: {output} "
            f"({error.strerror})."
        ) from error
    return {"output": str(output), "page": str(output / "index.html"), "images": len(paths)}


def _write(content, file):
    file.write(content)


if __name__ == "__main__":
    flags.mark_flags_as_required(["output"])
    cli.run(main, takes_arguments=True)
