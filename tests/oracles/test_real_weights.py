"""A pretrained DINOv2 ViT-S/14 compared with its original ONNX graph and with transformers."""

import keras
import numpy as np
import pytest
from helpers.processes import python

import vitkeras as vk
from vitkeras.pretrained import IMAGENET_MEAN_STD, INCEPTION_MEAN_STD

REASON = "the extra `transformers` is not installed; it needs its own environment, see .ci/run"
onnx = pytest.importorskip("onnx", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
from experiments.studies.real_weights import read_onnx  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "dinov2_small"
    process = python("-m", "experiments.studies.real_weights", f"--output={folder}")
    assert process.returncode == 0, process.stderr
    return folder


def tokens(model, images):
    """Returns all tokens after the last norm."""
    return np.asarray(keras.Model(model.input, model.get_layer("norm").output)(images))


def test_features_are_those_of_the_original_graph(folder):
    graph = read_onnx()
    last = [n for n in graph.graph.node if n.name.startswith("/backbone/layernorm/")][-1]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], 1, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype("float32")
    (expected,) = session.run([last.output[0]], {"input_image": images.transpose(0, 3, 1, 2)})
    assert np.abs(expected).mean() > 1
    options = {"image_size": 224, "include_rescaling": False}
    out = tokens(vk.from_pretrained(folder, mean_std=INCEPTION_MEAN_STD, **options), images)
    print(f"largest difference of a feature: {np.abs(out - expected).max():.1e}")
    np.testing.assert_allclose(out, expected, atol=1e-3)
    # By default the normalization of the file is folded into the patch projection.
    mean, std = np.array(IMAGENET_MEAN_STD, "float32")
    pixels = 255 * (images * std + mean)
    out = tokens(vk.from_pretrained(folder, image_size=224), pixels)
    np.testing.assert_allclose(out, expected, atol=1e-3)


def test_features_are_those_of_transformers_at_another_image_size(folder):
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    images = np.random.default_rng(0).normal(size=(1, 140, 98, 3)).astype("float32")
    mean, std = np.array(IMAGENET_MEAN_STD, "float32")
    with torch.no_grad():
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    pixels = 255 * (images * std + mean)
    out = tokens(vk.from_pretrained(folder, image_size=(140, 98)), pixels)
    np.testing.assert_allclose(out, expected, atol=1e-3)
