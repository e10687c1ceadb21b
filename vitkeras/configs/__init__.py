"""Training recipes by name, and the fields that every config has.

A recipe is a module of this package with a function `get_config()`: `--config=digits`. A file with
such a function works too: `--config=path/to/recipe.py`.
"""

import pkgutil
import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent


class Field(NamedTuple):
    """A config field: its name, its default as source text, and its description."""

    name: str
    default: str
    description: str


def recipes() -> list[str]:
    """Returns the names of the recipes in this package."""
    modules = (module.name for module in pkgutil.iter_modules([str(FOLDER)]))
    return [name for name in modules if name not in ("base", "of_run")]


def recipe_path(name: str) -> Path:
    """Returns the file of a recipe."""
    return FOLDER / f"{name}.py"


def base_config():
    """Returns the base config."""
    from vitkeras.configs import base

    return base.get_config()


def fields() -> list[Field]:
    """Returns the fields of `base.py` with the comments above them."""
    found: list[Field] = []
    comment: list[str] = []
    ended = True
    for line in (FOLDER / "base.py").read_text(encoding="utf-8").splitlines():
        line = line.strip()
        match = re.match(r"config\.(\w+) = (.*)", line)
        if line.startswith("#"):
            comment = [*comment, line.lstrip("# ")] if not ended else [line.lstrip("# ")]
            ended = False
        elif match:
            default = re.sub(r"placeholder\(\w+\)", "not set", match[2])
            found.append(Field(match[1], default, " ".join(comment)))
            ended = True
        else:
            comment, ended = [], True
    return found
