"""The training state on disk: written atomically, with a checksum; the newest two are kept.

state/step-000001240/arrays.npz      every variable of the model, the optimizer and the metrics
state/step-000001240/state.json      step, epoch, best score, rows of metrics.csv, and a SHA-256 of
                                     these and of arrays.npz
"""

import copy
import hashlib
import io
import json
import re
import threading
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from absl import logging
from etils import epath

from vitkeras.errors import RunError
from vitkeras.io import atomic

KEPT = 2
MARKER = "state.json"


def save_state(
    folder: epath.PathLike, step: int, arrays: Mapping[str, np.ndarray], record: dict[str, Any]
) -> None:
    """Writes one state, then removes all but the newest two.

    Args:
        folder: Directory with one subdirectory per saved state.
        step: Number of steps that were trained.
        arrays: Arrays by name.
        record: Further values, as JSON can hold them.
    """
    folder = epath.Path(folder)
    path = folder / _name(step)
    if atomic.is_complete(path, MARKER):
        return
    digest = hashlib.sha256()

    def write_arrays(file):
        np.savez(_HashingWriter(file, digest), **arrays)

    def write_marker(file):
        content = {"step": step, **record}
        content["sha256"] = _checksum(content, digest)
        file.write(json.dumps(content).encode())

    atomic.write_directory(path, {"arrays.npz": write_arrays, MARKER: write_marker})
    kept = _states(folder)[:KEPT]
    for old in _folders(folder):
        if old not in kept:  # older, or incomplete
            atomic.remove_directory(old, MARKER)


def _name(step):
    return f"step-{step:09d}" if isinstance(step, int) else None


def _checksum(record, digest):
    """Returns the SHA-256 of a record, in the form that JSON returns it, and of the arrays."""
    digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()


class _HashingWriter(io.RawIOBase):
    """Passes writes on to a file and updates a digest with them. It cannot seek."""

    def __init__(self, file, digest):
        super().__init__()
        self.file, self.digest = file, digest

    def write(self, content):
        self.digest.update(content)
        self.file.write(content)
        return len(content)


def _folders(folder):
    folder = epath.Path(folder)
    paths = folder.iterdir() if folder.exists() else ()
    return [path for path in paths if re.fullmatch(r"step-\d+", path.name)]


def _states(folder):
    """Returns the directories of complete states, newest first."""
    complete = [path for path in _folders(folder) if atomic.is_complete(path, MARKER)]
    return sorted(complete, key=lambda path: path.name, reverse=True)


def has_state(folder: epath.PathLike) -> bool:
    """Returns whether a complete state was saved in a directory."""
    return bool(_states(folder))


def latest_state(folder: epath.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Returns arrays and record of the newest undamaged state; None if no state was saved.

    A damaged state is logged as a warning, and the previous one is used.

    Raises:
        RunError: If there are states and all of them are damaged.
    """
    states = _states(folder)
    for path in states:
        try:
            record = dict(json.loads((path / MARKER).read_text()))
            content = (path / "arrays.npz").read_bytes()
        except (OSError, ValueError, TypeError) as error:
            logging.warning("%s cannot be read (%s); trying the previous state.", path, error)
            continue
        checksum = record.pop("sha256", None)
        is_here = path.name == _name(record.get("step"))
        if not is_here or _checksum(record, hashlib.sha256(content)) != checksum:
            logging.warning("%s is damaged (its SHA-256 differs); trying the previous state.", path)
            continue
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return dict(file), record
    if states:
        raise RunError(
            f"A run is resumed from a saved state. Received: {folder}, where no state can be read "
            "any more. Remove that directory to start again, or choose another run directory."
        )
    return None


def remove_newer(folder: epath.PathLike, step: int) -> None:
    """Removes the states after `step`: they are damaged and would count among the kept ones."""
    for path in _folders(folder):
        if int(path.name.removeprefix("step-")) > step:
            atomic.remove_directory(path, MARKER)


class StateWriter:
    """Writes states in a background thread, one at a time, in order.

    Args:
        folder: Directory of the states, see `save_state`.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = folder
        self._thread: threading.Thread | None = None
        self._error: tuple[int, Exception] | None = None

    def save(self, step: int, arrays: Mapping[str, np.ndarray], record: dict[str, Any]) -> None:
        """Waits for the previous state, then starts to write. `arrays` must not change meanwhile.

        Raises:
            RunError: If the previous state could not be written.
        """
        self.wait()
        record = copy.deepcopy(record)  # the caller goes on to change it
        self._thread = threading.Thread(target=self._write, args=(step, arrays, record))
        self._thread.start()

    def _write(self, step, arrays, record):
        try:
            save_state(self.folder, step, arrays, record)
        except Exception as error:  # raised in the training loop, by `wait`
            self._error = (step, error)

    def wait(self) -> None:
        """Blocks until everything is on disk.

        Raises:
            RunError: If it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            (step, error), self._error = self._error, None
            kept = (
                "The previous states are intact, and the same command resumes from the newest one."
                if has_state(self.folder)
                else "No state is left there."
            )
            raise RunError(
                f"The state of step {step} could not be saved in {self.folder} ({error}). {kept}"
            ) from error


def get_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns every variable that training changes, by a name that is the same in every process.

    They include seed generators, so that a resumed run draws the same masks, and metrics, for a
    run that stops within an epoch.
    """
    groups = {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    return {
        # Keras numbers the seed generators of the whole process.
        f"{group}/{i:04d}/{re.sub(r'seed_generator_[0-9]+', 'seed_generator', v.path)}": v
        for group, variables in groups.items()
        for i, v in enumerate(variables)
    }


def get_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns copies of the values of `get_variables(model)`; bfloat16 becomes float32."""
    return {
        name: np.array(v, dtype="float32" if v.dtype == "bfloat16" else None)
        for name, v in get_variables(model).items()
    }


def restore(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Assigns the arrays of `get_arrays` to the variables of a model.

    Raises:
        RunError: If names or shapes differ; nothing is assigned then.
    """
    variables = get_variables(model)
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    saved = {name: array.shape for name, array in arrays.items()}
    if shapes != saved:
        differing = sorted(set(shapes.items()) ^ set(saved.items()))[:4]
        raise RunError(
            "A saved state must be that of the same model and optimizer. "
            f"Received: variables that differ, such as {differing}."
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])
