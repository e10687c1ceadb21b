"""Train and test steps that do not depend on the number of replicas, one module per backend."""

import keras  # noqa: F401 (before any submodule: see `_register_classes` in vitkeras/__init__.py)
