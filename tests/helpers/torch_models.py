"""timm with a torchvision that lacks its C++ extension, and random torch models."""

import pytest


def import_timm():
    """Returns timm; skips the test module if it is not installed."""
    reason = "the extra `timm` is not installed; it needs its own environment, see .ci/run"
    torch = pytest.importorskip("torch", reason=reason)
    # torchvision registers fake kernels for two operators of the extension on import.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    timm = pytest.importorskip("timm", reason=reason)
    timm.torchvision_operators = library  # the operators exist as long as this object
    return timm


def randomize(model):
    """Sets random weights in a torch model and returns it."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3, generator=generator)
    return model.eval()
