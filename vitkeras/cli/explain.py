"""Writes figures of a trained ViT on images, such as its attention, as an HTML page.

vitkeras explain --workdir=runs/photos --output=explained IMAGE...
vitkeras explain --weights=B_16.npz --output=explained IMAGE...
"""

from absl import flags as absl_flags

from vitkeras.arguments import check_range, did_you_mean, parse_image_size
from vitkeras.errors import InputError

REQUIRED = ("output",)
ARGUMENTS = "IMAGE..."


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the command."""
    absl_flags.DEFINE_string(
        "workdir", None, "A run directory, for its best model.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "weights", None, "A weight file of any supported format, or a .keras file.",
        flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_string(
        "output", None, "The folder to write, new or empty.", flag_values=flags
    )
    absl_flags.DEFINE_list(
        "image_size", None, "Side in pixels, or height,width, of the model of --weights; that of "
        "the file by default.", flag_values=flags,
    )  # fmt: skip
    absl_flags.DEFINE_integer(
        "block", -1, "Block whose heads are plotted, from 1; -1 for the last.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "class", None, "Name or index (from 0) of the class to find evidence for; the predicted "
        "class of each image by default.", flag_values=flags,
    )  # fmt: skip


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Writes index.html, the figures as PNG files, and arrays.npz."""
    if not arguments:
        raise InputError("At least one image file must follow the flags. Received: none.")
    if (flags.workdir is None) == (flags.weights is None):
        raise InputError(
            "Either --workdir=DIR or --weights=FILE must be given. "
            f"Received: {'none' if flags.workdir is None else 'both'} of them."
        )
    if flags.workdir is not None and flags.image_size is not None:
        raise InputError(
            "`image_size` must not be given with --workdir, as the run has an image size. "
            f"Received: image_size={','.join(flags.image_size)}."
        )
    image_size = None if flags.image_size is None else _parse_sides(flags.image_size)

    import io

    import numpy as np
    from etils import epath

    from vitkeras import interpret
    from vitkeras.data.folder_listing import printable
    from vitkeras.data.images import decode_file, read_file
    from vitkeras.interpret.report import MAX_SHOWN, Report, plural
    from vitkeras.io.atomic import write_directory
    from vitkeras.io.html_page import render

    output = epath.Path(flags.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"`output` must be a new or empty folder. Received: output={output}.")
    contents: list[bytes] = []
    for path in arguments:
        contents.append(read_file(path))
        decode_file(path, contents[-1])
    if flags.workdir is not None:
        model, class_names, preprocessing, name, origin = _open_run(flags.workdir)
    else:
        model, class_names, preprocessing, name, origin = _open_weights(flags.weights, image_size)
    layout = interpret.token_layout(model)
    block, class_index = flags.block, flags["class"].value
    valid = 1 <= block <= layout.num_layers or block == -1
    check_range("block", block, valid, f"an integer from 1 to {layout.num_layers}, or -1")
    if class_index is not None:
        class_index = _find_class(class_index, class_names, model)
    decoded = [preprocessing.decode(each).numpy() for each in contents[:MAX_SHOWN]]
    originals = [preprocessing.visible_part(each) for each in decoded]
    images = np.stack([preprocessing.evaluation_image(each).numpy() for each in contents])

    model_name = printable(f"{name} ({model.name})")
    file_names = [printable(epath.Path(path).name) for path in arguments]
    class_names = None if class_names is None else list(map(printable, class_names))
    report = Report(model, model_name, file_names, originals, images)
    report.add_filters()
    report.add_positions()
    report.add_attention_distances()
    report.add_rollout()
    report.add_head_maps(block - 1 if block > 0 else layout.num_layers - 1)
    report.add_class_evidence(class_names, class_index)
    report.add_token_norms()

    tokens = ["class token"] if layout.class_token else []
    tokens += [plural(layout.num_registers, "register")] if layout.num_registers else []
    tokens.append(f"{layout.grid[0]}x{layout.grid[1]} patches (rows x columns)")
    introduction = [
        f"{model.count_params():,} parameters; {plural(layout.num_layers, 'block')} with "
        f"{plural(layout.num_heads, 'head')} each; tokens: {', '.join(tokens)} with a stride of "
        f"{layout.stride} pixels.",
        f"{plural(len(images), 'image')}: {', '.join(file_names)}. Preprocessing: "
        f"{preprocessing.describe()}. {origin}",
    ]
    if len(images) > MAX_SHOWN:
        introduction.append(
            f"Figures of single images show the first {MAX_SHOWN}; arrays.npz has all."
        )
    page = render(f"Figures of {model_name}", introduction, report.sections)
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **report.arrays)
    files: dict = {**report.files, "arrays.npz": arrays.getvalue(), "index.html": page.encode()}
    try:
        write_directory(output, files)
    except OSError as error:
        raise InputError(
            "`output` must be a path where a folder can be created. "
            f"Received: output={output} ({error.strerror})."
        ) from error
    return {"output": str(output), "page": str(output / "index.html"), "images": len(images)}


def _parse_sides(words):
    """Returns `(height, width)` of the value of --image_size."""
    sides = [int(word) if word.isdecimal() else word for word in words]
    return parse_image_size(sides[0] if len(sides) == 1 else sides)


def _open_run(path):
    """Returns model, class names, preprocessing, name, and a sentence on the preprocessing."""
    from vitkeras import data
    from vitkeras.io.run_directory import RunDirectory

    run = RunDirectory(path)
    preprocessing = data.Preprocessing.from_json(run.preprocessing)
    origin = "This is the preprocessing of the run."
    return run.load_model(), run.class_names, preprocessing, run.path.name, origin


def _open_weights(path, image_size):
    """As `_open_run`, for a weight file; the class names are None."""
    from etils import epath

    import vitkeras as vk
    from vitkeras import data

    model = vk.from_pretrained(path, image_size=image_size)
    if all(layer.name != "rescaling" for layer in model.layers):  # images are pixels here
        model = vk.from_pretrained(path, image_size=image_size, include_rescaling=True)
    if model.input_shape[-1] != 3:
        raise InputError(
            "`weights` must be of a model for RGB images. "
            f"Received: weights={path} with {model.input_shape[-1]} channels."
        )
    origin = (
        "This preprocessing is assumed: a weight file does not record it. The patch projection "
        "absorbs the normalization that the weights were trained with."
    )
    preprocessing = data.Preprocessing(model.input_shape[1:3])
    return model, None, preprocessing, epath.Path(path).name, origin


def _find_class(word, class_names, model):
    """Returns the index of a class, given by name or index.

    Raises:
        InputError: If there is no such class.
    """
    if all(layer.name != "head" for layer in model.layers):
        raise InputError(
            f"`class` must not be given, as the model has no head. Received: class={word}."
        )
    num_classes = model.output_shape[-1]
    if class_names is not None and word in class_names:
        return class_names.index(word)
    if word.isdecimal() and int(word) < num_classes:
        return int(word)
    rule = "" if class_names is None else "a class name or "
    raise InputError(
        f"`class` must be {rule}an integer from 0 to {num_classes - 1}. "
        f"Received: class={word}.{did_you_mean(word, class_names or ())}"
    )
