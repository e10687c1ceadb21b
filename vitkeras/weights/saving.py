"""From a model to a file that others can load: `save_weights`."""

import numpy as np
from etils import epath
from safetensors.numpy import save

from vitkeras.errors import InputError
from vitkeras.storage import new_file, write_file
from vitkeras.weights import google, hugging_face
from vitkeras.weights.rules import encoder_facts, is_vit


def save_weights(model, path, class_names=None):
    """Writes a model for others: a Google .npz, or a folder for Hugging Face transformers.

    Args:
        model: A model made by `vit`, of a kind that the format has; LayerScale makes it a DINOv2.
        path: Ending in .npz, a file; otherwise a folder, which gets model.safetensors, config.json
            and preprocessor_config.json. On a disk or in an object store; each file appears whole
            or not at all.
        class_names: Names in the order of the logits, for config.json.
    Raises:
        InputError: (a ValueError) If the format has no such model, or the names are not one for
            each class.
    """
    if not str(path) or epath.Path(path).is_file() and not str(path).endswith(".npz"):
        raise InputError(
            f"`path` must end in .npz, or name a folder that can be made. Received: {str(path)!r}."
        )
    path = epath.Path(path)
    if not is_vit(model):
        raise InputError(
            "Only a model made by `vit` can be written for others. "
            f"Received: {model.name}. Save it with `model.save`."
        )
    facts = encoder_facts(model)
    if class_names is not None and len(class_names) != facts.num_classes:
        raise InputError(
            "`class_names` must be one for each class of the head. "
            f"Received: {len(class_names)} names, {facts.num_classes} classes."
        )
    if path.suffix in (".safetensors", ".h5", ".keras"):
        raise InputError(
            "`path` must end in .npz, or name a folder for Hugging Face's three files. "
            f"Received: {path}."
        )
    format = google if path.suffix == ".npz" else hugging_face
    format.check_writable(facts)
    facts = format.named(facts)
    weights = {weight.path: weight for weight in model.weights}
    arrays = {}
    for rule in format.rules(facts):
        arrays.update(rule.write(np.asarray(weights[rule.path], "float32")))
    if format is google:
        with new_file(path) as place:
            np.savez(place, **arrays)
        return
    path.mkdir(parents=True, exist_ok=True)
    texts = hugging_face.config_files(facts, model.input_shape[1:3], class_names)
    for name, text in texts.items():
        write_file(path / name, text.encode())
    content = save(hugging_face.finish(facts, arrays), metadata={"format": "pt"})
    write_file(path / "model.safetensors", content)
