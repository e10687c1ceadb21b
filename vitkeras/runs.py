"""The run directory: everything that evaluating, predicting, exporting and fine-tuning need.

config.json         every field of the run's config, and the version that trained it
class_names.json    names in the order of the logits
preprocessing.json  what happens to an image before the model sees it
dataset.json        what tells the data set from another: sizes of the splits, version or hash
best.keras          the model of the best epoch on the validation split
last.keras          the model after the last epoch
state/              what it takes to go on with training: one folder per saved step
metrics.csv, curves.png, tensorboard/
"""

import json

import keras
from etils import epath

import vitkeras.models  # noqa: F401 (registers the classes that a saved model holds)
from vitkeras.errors import InputError
from vitkeras.storage import local_file, new_file, write_file

FILES = {
    "config": "config.json",
    "class_names": "class_names.json",
    "preprocessing": "preprocessing.json",
    "dataset": "dataset.json",
}
#: Fields of a config that a run may go on with another value of: they change no result.
FREE = (
    "data_dir", "max_bad_percent", "pictures_every", "remat", "save_minutes", "save_steps",
    "strategy",
)  # fmt: skip


class RunDirectory:
    """One run on disk.

    Args:
        path: The directory, on a disk or in an object store (gs://...); it need not exist before
            `create`.
    """

    def __init__(self, path):
        self.path = epath.Path(path)

    def exists(self):
        """Whether a run was begun here."""
        return (self.path / FILES["config"]).exists()

    def create(self, config: dict, class_names: list, preprocessing: dict, dataset: dict):
        """Begins a run, or goes on with one that has the same config and data set.

        Raises:
            InputError: If the directory holds a run with another of these, or other files.
        """
        contents = {
            "class_names": list(class_names),
            "preprocessing": preprocessing,
            "dataset": dataset,
            "config": config,  # last: `exists` looks for it
        }
        if self.exists():
            for name, new in reversed(contents.items()):
                old, new = self._read(name), json.loads(json.dumps(new))
                if name == "config":
                    old, new = ({k: v for k, v in c.items() if k not in FREE} for c in (old, new))
                if old != new:
                    raise InputError(
                        f"A run directory holds one run. Received: {self.path}, which holds a run "
                        f"with another {name}: {_difference(old, new)}. Choose another directory, "
                        "or give the same values."
                    )
            return
        if self.path.exists() and (not self.path.is_dir() or self._strangers()):
            raise InputError(
                "A new run needs a directory that is empty or does not exist. "
                f"Received: {self.path}, which holds other files."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                "A new run needs a place where a directory can be made. "
                f"Received: {self.path} ({error.strerror})."
            ) from error
        for name, content in contents.items():
            text = json.dumps(content, indent=1, sort_keys=name == "config") + "\n"
            write_file(self.path / FILES[name], text.encode())

    def _strangers(self):
        """Whether there is more than what an earlier `create` may have left when it was killed."""
        names = (path.name for path in self.path.iterdir())
        return any(name not in FILES.values() and not name.startswith(".") for name in names)

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
        with new_file(self.path / f"{which}.keras") as path:
            model.save(path)

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
        with local_file(path) as place:
            return keras.saving.load_model(place, compile=False)


def _difference(old, new):
    """Returns a short text on the first differing fields."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{str(old)[:60]} there, {str(new)[:60]} now"
    fields = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return "; ".join(f"{key}={old.get(key)!r} there, {new.get(key)!r} now" for key in fields[:5])
