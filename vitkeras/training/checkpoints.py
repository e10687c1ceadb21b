"""The state of a training run on disk: whole, hashed, the newest two kept.

state/step-000001240/arrays.npz      every variable of the model, the optimizer and the metrics
state/step-000001240/state.json      the step, whatever else was given, and a SHA-256
"""

import copy
import hashlib
import io
import json
import re
import threading

import numpy as np
from etils import epath

from vitkeras import storage
from vitkeras.errors import RunError

KEPT = 2
MARKER = "state.json"


def save_state(folder, step, arrays, extra):
    """Writes one state, then removes all but the newest two.

    Args:
        folder: Holds one folder per saved step.
        step: Number of batches trained on.
        arrays: Dict from name to NumPy array.
        extra: JSON-able dict.
    """
    folder = epath.Path(folder)
    final = folder / f"step-{step:09d}"
    if storage.is_whole(final, MARKER):
        return
    digest = hashlib.sha256()

    def write_arrays(file):
        np.savez(_Hashed(file, digest), **arrays)

    def write_marker(file):
        record = {"step": step, "sha256": digest.hexdigest(), **extra}
        file.write(json.dumps(record).encode())

    storage.write_folder(final, {"arrays.npz": write_arrays, MARKER: write_marker})
    kept = _states(folder)[:KEPT]
    for old in _folders(folder):
        if old not in kept:  # an older one, or what is left of one
            storage.remove_folder(old, MARKER)


class _Hashed(io.RawIOBase):
    """A file to write to, once through, that hashes what it writes."""

    def __init__(self, file, digest):
        super().__init__()
        self.file, self.digest = file, digest

    def write(self, content):
        self.digest.update(content)
        self.file.write(content)
        return len(content)


def _folders(folder):
    folder = epath.Path(folder)
    found = folder.iterdir() if folder.exists() else ()
    return [path for path in found if re.fullmatch(r"step-\d+", path.name)]


def _states(folder):
    """Returns the folders of whole states, the newest first."""
    whole = [path for path in _folders(folder) if storage.is_whole(path, MARKER)]
    return sorted(whole, key=lambda path: path.name, reverse=True)


def has_state(folder):
    """Whether a state was saved there, so that a run goes on from it or not at all."""
    return bool(_states(folder))


def latest_state(folder, warn=print):
    """Returns `(arrays, extra)` of the newest undamaged state, or None where none was saved.

    A damaged state is named through `warn`, and the one before it is taken.

    Raises:
        RunError: If there are states, and all are damaged.
    """
    states = _states(folder)
    for path in states:
        try:
            extra = json.loads((path / MARKER).read_text())
            content = (path / "arrays.npz").read_bytes()
        except (OSError, ValueError) as error:
            warn(f"{path} cannot be read ({error}); trying the one before.")
            continue
        if hashlib.sha256(content).hexdigest() != extra.get("sha256"):
            warn(f"{path} is damaged (its SHA-256 differs); trying the one before.")
            continue
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return dict(file), extra
    if states:
        raise RunError(
            f"No saved state in {folder} can be read any more. Remove that folder to begin anew, "
            "or choose another run directory."
        )
    return None


def remove_newer(folder, step):
    """Removes the states after `step`: damaged ones, which would else count among those kept."""
    for path in _folders(folder):
        if int(path.name.removeprefix("step-")) > step:
            storage.remove_folder(path, MARKER)


class StateWriter:
    """Writes states behind the training loop's back, one at a time, in order.

    Args:
        folder: For `save_state`.
    """

    def __init__(self, folder):
        self.folder = folder
        self._thread = self._error = None

    def save(self, step, arrays, extra):
        """Begins to write, after the state before it. The arrays must not change meanwhile.

        Raises:
            RunError: If the state before could not be written.
        """
        self.wait()
        extra = copy.deepcopy(extra)  # training goes on to change it
        self._thread = threading.Thread(target=self._write, args=(step, arrays, extra))
        self._thread.start()

    def _write(self, step, arrays, extra):
        try:
            save_state(self.folder, step, arrays, extra)
        except Exception as error:  # it is raised in the training loop, by `wait`
            self._error = (step, error)

    def wait(self):
        """Returns when everything is on disk.

        Raises:
            RunError: If it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            (step, error), self._error = self._error, None
            raise RunError(
                f"The state of step {step} could not be saved in {self.folder} ({error}); the "
                "states before it are whole, and the same command goes on from there."
            ) from error


def variables_of(model):
    """Returns every variable that training changes, by a name that is the same in every process.

    Seed generators are among them: a resumed run draws the masks that it would have drawn. So are
    the metrics, for a run that stops inside an epoch.
    """
    groups = {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    return {
        # Keras numbers seed generators through the whole process.
        f"{group}/{i:04d}/{re.sub(r'seed_generator_[0-9]+', 'seed_generator', v.path)}": v
        for group, variables in groups.items()
        for i, v in enumerate(variables)
    }


def arrays_of(model):
    """Returns copies of the values of `variables_of(model)` (bfloat16 as float32)."""
    return {
        name: np.array(v, dtype="float32" if v.dtype == "bfloat16" else None)
        for name, v in variables_of(model).items()
    }


def restore(model, arrays):
    """Assigns what `arrays_of` returned.

    Raises:
        RunError: If the names or shapes differ; nothing is assigned then.
    """
    variables = variables_of(model)
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    saved = {name: array.shape for name, array in arrays.items()}
    if shapes != saved:
        differing = sorted(set(shapes.items()) ^ set(saved.items()))[:4]
        raise RunError(f"The saved state is that of another model or optimizer: {differing}.")
    for name, variable in variables.items():
        variable.assign(arrays[name])
