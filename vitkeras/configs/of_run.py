"""The config of a run directory, with which `vitkeras train --workdir=RUN` resumes it."""

import json

import ml_collections
from etils import epath

from vitkeras.configs import base
from vitkeras.errors import InputError


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """Returns the base config with the values in config.json of a run directory.

    Raises:
        InputError: If that file is damaged, or of another version.
    """
    path = epath.Path(workdir) / "config.json"
    config = base.get_config()
    try:
        values = json.loads(path.read_text())
        for name, value in values.items():
            if name not in config:
                raise KeyError(f"an unknown field {name}")
            config[name] = tuple(value) if isinstance(value, list) else value
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise InputError(
            "config.json of a run must have the fields of this version of vitkeras. "
            f"Received: {path} ({text}). Name the recipe with --config."
        ) from error
    return config
