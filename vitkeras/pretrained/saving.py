"""`save_weights`: writes a model as a weight file that other libraries load."""

import keras
import numpy as np
from etils import epath
from safetensors.numpy import save

from vitkeras.errors import InputError
from vitkeras.io.atomic import atomic_file, write_file
from vitkeras.models.config import ViTConfig, model_config
from vitkeras.pretrained.formats import google, hugging_face


def save_weights(
    model: keras.Model, path: epath.PathLike, class_names: list[str] | None = None
) -> None:
    """Writes a model as a Google .npz file or as a folder for Hugging Face transformers.

    Args:
        model: A model made by `vit` that the format supports. A model with LayerScale is written as
            DINOv2.
        path: A file name that ends in .npz; otherwise a folder, which gets model.safetensors,
            config.json and preprocessor_config.json. On a local disk or in an object store; each
            file is written atomically.
        class_names: Class names in the order of the logits, for config.json.
    Raises:
        InputError: (a ValueError) If the format does not support the model, or the number of class
            names differs from the number of classes.
    """
    config = model_config(model)
    if not isinstance(config, ViTConfig):
        raise InputError(
            "`model` must be made by `vit`; the formats do not support others. "
            f"Received: {model.name}. Save it with `model.save`."
        )
    given, path = str(path), epath.Path(path)
    is_other_file = path.suffix in (".safetensors", ".h5", ".keras")
    if not given or is_other_file or (path.is_file() and path.suffix != ".npz"):
        raise InputError(
            "`path` must end in .npz, or be a folder for the files of Hugging Face. "
            f"Received: path={given!r}."
        )
    if class_names is not None and len(class_names) != config.num_classes:
        raise InputError(
            "`class_names` must have one name per class of the head. "
            f"Received: {len(class_names)} names, {config.num_classes} classes."
        )
    format = google if path.suffix == ".npz" else hugging_face
    format.check_writable(config)
    spec = format.writable_spec(config)
    weights = {weight.path: weight for weight in model.weights}
    arrays = {}
    for mapping in format.weight_map(spec):
        arrays.update(mapping.write(np.asarray(weights[mapping.path], "float32")))
    if format is google:
        with atomic_file(path) as temporary:
            np.savez(temporary, **arrays)
        return
    path.mkdir(parents=True, exist_ok=True)
    for name, text in hugging_face.config_files(config, class_names).items():
        write_file(path / name, text.encode())
    content = save(hugging_face.add_missing_arrays(spec, arrays), metadata={"format": "pt"})
    write_file(path / "model.safetensors", content)
