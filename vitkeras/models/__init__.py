"""Model builders and the descriptions that they build from."""

import keras  # noqa: F401 (before any submodule: see `_register_classes` in vitkeras/__init__.py)
