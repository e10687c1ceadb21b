"""The state of a training run on disk: written aside, hashed, renamed, two kept.

state/step-000001240/arrays.npz      every variable of the model and the optimizer
state/step-000001240/state.json      the step, whatever else was given, and a SHA-256
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np

KEPT = 2


def save_state(folder, step, arrays, extra):
    """Writes one state, then removes all but the newest two.

    Args:
        folder: Holds one folder per saved step.
        step: Number of updates applied.
        arrays: Dict from name to NumPy array.
        extra: JSON-able dict.
    """
    folder = Path(folder)
    final = folder / f"step-{step:09d}"
    if final.exists():
        return
    aside = folder / f".step-{step:09d}.{os.getpid()}"
    aside.mkdir(parents=True)
    with open(aside / "arrays.npz", "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    digest = hashlib.sha256((aside / "arrays.npz").read_bytes()).hexdigest()
    with open(aside / "state.json", "w") as file:
        json.dump({"step": step, "sha256": digest, **extra}, file)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(final)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def latest_state(folder, warn=print):
    """Returns `(arrays, extra)` of the newest whole state, or None.

    A damaged state is named through `warn`, and the one before it is taken.
    """
    for path in sorted(Path(folder).glob("step-*"), reverse=True):
        try:
            extra = json.loads((path / "state.json").read_text())
            content = (path / "arrays.npz").read_bytes()
        except (OSError, ValueError) as error:
            warn(f"{path} cannot be read ({error}); trying the one before.")
            continue
        if hashlib.sha256(content).hexdigest() != extra.get("sha256"):
            warn(f"{path} is damaged (its SHA-256 differs); trying the one before.")
            continue
        with np.load(path / "arrays.npz", allow_pickle=False) as file:
            return dict(file), extra
    return None


def variables_of(model):
    """Returns every variable that training changes, by a name that is the same in every process.

    Seed generators are among them: a resumed run draws the masks that it would have drawn.
    """
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {
        # Keras numbers seed generators through the whole process.
        f"{group}/{i:04d}/{re.sub(r'seed_generator_[0-9]+', 'seed_generator', v.path)}": v
        for group, variables in groups.items()
        for i, v in enumerate(variables)
    }


def arrays_of(model):
    """Returns the values of `variables_of(model)` as NumPy arrays (bfloat16 as float32)."""
    return {
        name: np.asarray(v, dtype="float32" if v.dtype == "bfloat16" else None)
        for name, v in variables_of(model).items()
    }


def restore(model, arrays):
    """Assigns what `arrays_of` returned.

    Raises:
        ValueError: If the names or shapes differ; nothing is assigned then.
    """
    variables = variables_of(model)
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    saved = {name: array.shape for name, array in arrays.items()}
    if shapes != saved:
        differing = sorted(set(shapes.items()) ^ set(saved.items()))[:4]
        raise ValueError(f"The saved state is that of another model or optimizer: {differing}.")
    for name, variable in variables.items():
        variable.assign(arrays[name])
