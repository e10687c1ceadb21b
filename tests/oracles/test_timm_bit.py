"""timm as the reference for the BiT ResNets."""

import numpy as np
import pytest
from helpers.torch_models import import_timm

from vitkeras.models.resnet import resnet

timm = import_timm()
torch = pytest.importorskip("torch")


def fill(parameters, seed):
    """Sets random parameters; scales are around 1."""
    rng = np.random.default_rng(seed)
    for name, value in parameters:
        numbers = rng.normal(size=tuple(value.shape))
        if value.ndim == 1:
            numbers = 0.2 * numbers + name.endswith("weight")
        value.data.copy_(value.new_tensor(numbers))


def timm_name(path):
    """Returns timm's name of a weight of this package."""
    layer, *rest = path.split("/")
    last = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}[rest[-1]]
    if not layer.startswith("stage"):
        return f"{({'root': 'stem.conv', 'norm': 'norm', 'head': 'head.fc'})[layer]}.{last}"
    stage, unit = (int(part) - 1 for part in layer.removeprefix("stage").split("_unit"))
    kind, _, letter = rest[0].partition("_")
    part = f"{kind}{'abc'.index(letter) + 1}" if letter else "downsample.conv"
    return f"stages.{stage}.blocks.{unit}.{part}.{last}"


@pytest.mark.parametrize("shape", [(224, 224), (97, 130)])
def test_logits_are_those_of_timm(shape):
    reference = timm.create_model("resnetv2_50x1_bit", pretrained=False, num_classes=7).eval()
    fill(reference.named_parameters(), seed=0)
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    model = resnet("R50x1", image_size=shape, num_classes=7)
    for weight in model.weights:
        value = state.pop(timm_name(weight.path))
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)  # (out, in, h, w) to (h, w, in, out)
        weight.assign(value.reshape(weight.shape))  # the head of timm is a 1x1 convolution
    assert not state
    pixels = np.random.default_rng(1).integers(0, 256, (2, *shape, 3))
    images = (pixels / 127.5 - 1).astype("float32")
    with torch.no_grad():
        expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    scale = expected.std()
    assert scale > 0.1
    np.testing.assert_allclose(model(pixels) / scale, expected / scale, atol=1e-4)
