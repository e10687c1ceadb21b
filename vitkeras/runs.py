"""The run directory: everything that evaluating, predicting, exporting and fine-tuning need.

config.json         every field of the run's config, and the version that trained it
class_names.json    names in the order of the logits
preprocessing.json  what happens to an image before the model sees it
best.keras          the model of the best epoch on the validation split
last.keras          the model after the last epoch
state/              what it takes to go on with training: one folder per saved step
metrics.csv, curves.png, tensorboard/
"""

import json
import os
from pathlib import Path

import keras

import vitkeras.layers  # noqa: F401 (registers the layers that a saved model holds)
from vitkeras.errors import InputError

FILES = {
    "config": "config.json",
    "class_names": "class_names.json",
    "preprocessing": "preprocessing.json",
}


def write_file(path, content: bytes):
    """Writes a file so that it is there whole or not at all, whatever is killed when."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


class RunDirectory:
    """One run on disk.

    Args:
        path: The directory; it need not exist before `create`.
    """

    def __init__(self, path):
        self.path = Path(path)

    def exists(self):
        """Whether a run was begun here."""
        return (self.path / FILES["config"]).exists()

    def create(self, config: dict, class_names: list, preprocessing: dict):
        """Begins a run, or goes on with one that has the same config.

        Raises:
            InputError: If the directory holds a run with another config, or other files.
        """
        contents = {
            "class_names": list(class_names),
            "preprocessing": preprocessing,
            "config": config,  # last: `exists` looks for it
        }
        if self.exists():
            for name, new in contents.items():
                old = self._read(name)
                if old != json.loads(json.dumps(new)):
                    raise InputError(
                        f"A run directory holds one run. Received: {self.path}, which holds a run "
                        f"with another {name}: {_difference(old, new)}. Choose another directory, "
                        "or give the same values."
                    )
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(
                "A new run needs a directory that is empty or does not exist. "
                f"Received: {self.path}, which holds other files."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            text = json.dumps(content, indent=1, sort_keys=name == "config") + "\n"
            write_file(self.path / FILES[name], text.encode())

    def _read(self, name):
        path = self.path / FILES[name]
        if not path.exists():
            raise InputError(
                f"`workdir` must be a run directory made by experiments.train. Received: "
                f"{self.path}, which has no {FILES[name]}."
            )
        return json.loads(path.read_text())

    @property
    def config(self) -> dict:
        """The run's config."""
        return self._read("config")

    @property
    def class_names(self) -> list:
        """Names in the order of the logits."""
        return self._read("class_names")

    @property
    def preprocessing(self) -> dict:
        """What `Preprocessing.from_json` takes."""
        return self._read("preprocessing")

    def save_model(self, model, which):
        """Writes `best.keras` or `last.keras`, whole or not at all."""
        aside = self.path / f".{which}.{os.getpid()}.keras"
        model.save(aside)
        with open(aside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, self.path / f"{which}.keras")

    def load_model(self, which="best"):
        """Returns the model, without an optimizer.

        Raises:
            InputError: If this is no run directory, or no such model was saved yet.
        """
        self._read("config")
        path = self.path / f"{which}.keras"
        if not path.exists():
            raise InputError(
                f"The run has not saved this model yet. Received: {path}. Train at least one epoch."
            )
        return keras.saving.load_model(path, compile=False)


def _difference(old, new):
    """Returns a short text on the first differing fields."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{str(old)[:60]} there, {str(new)[:60]} now"
    fields = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return "; ".join(f"{key}={old.get(key)!r} there, {new.get(key)!r} now" for key in fields[:5])
