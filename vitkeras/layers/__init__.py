"""Keras layers of Vision Transformers, hybrids and BiT ResNets.

Tensor letters in shapes, in the entire package: b batch, h w height and width, c channels,
p patch side, n patches, t tokens (patches, class token, registers), d width, k heads, f MLP width.
"""

import keras  # noqa: F401 (before any submodule: see `_register_classes` in vitkeras/__init__.py)
