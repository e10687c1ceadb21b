"""The run directory: everything that evaluation, prediction, export and fine-tuning need.

config.json         every field of the config
class_names.json    class names in the order of the logits
preprocessing.json  what happens to an image before the model
dataset.json        fingerprint of the data set: sizes of the splits, version or hash
versions.json       versions of vitkeras, Keras and the backend that started the run
extensions.json     if the run was extended: numbers of epochs before and after, each time
best.keras          the model with the best validation accuracy
last.keras          the model after the last epoch
state/              training state, one folder per saved step
metrics.csv, curves.png, tensorboard/, bad_images.txt
evaluation/         reports of `vitkeras evaluate`, one folder per split and weights

`vitkeras probe` writes best.keras, but no last.keras and state, and in addition:

probe.json          accuracies of the classifiers, and which one is the head of the model
features/           features of the images, a cache
"""

import json
from typing import Any

import keras
from absl import logging
from etils import epath

import vitkeras
from vitkeras.errors import InputError
from vitkeras.io.atomic import atomic_file, local_copy, write_file
from vitkeras.io.keras_files import load_keras_file

FILES = {
    "config": "config.json",
    "class_names": "class_names.json",
    "preprocessing": "preprocessing.json",
    "dataset": "dataset.json",
    "versions": "versions.json",
}
#: What `vitkeras probe` writes last.
PROBE_RESULTS = "probe.json"
#: Fields of a config that may change when a run is resumed: they change no result beyond rounding,
#: except that a strategy with another number of replicas draws other dropout masks.
RESUME_OVERRIDABLE_FIELDS = (
    "cache", "data_dir", "max_bad_percent", "pictures_every", "remat", "save_minutes",
    "save_steps", "strategy",
)  # fmt: skip


def installed_versions() -> dict[str, str]:
    """Returns the versions of vitkeras, Keras and the backend."""
    backend = keras.backend.backend()
    versions = {"vitkeras": vitkeras.__version__, "keras": keras.__version__}
    return versions | {backend: __import__(backend).__version__}


EXTENSIONS = "extensions.json"


class RunDirectory:
    """A training run on disk.

    Args:
        path: The directory, on a local disk or in an object store (gs://...). It need not exist
            before `create`.
    """

    def __init__(self, path: epath.PathLike):
        self.path = epath.Path(path)

    def exists(self) -> bool:
        """Returns whether a run was started here."""
        return (self.path / FILES["config"]).exists()

    def create(
        self,
        config: dict[str, Any],
        class_names: list[str],
        preprocessing: dict[str, Any],
        dataset: dict[str, Any],
        defaults: dict[str, Any] | None = None,
    ) -> None:
        """Starts a run, or checks that the run in the directory has the same config and data.

        Logs a warning if another version started the run, or if its strategy changes.

        Args:
            config: The config.
            class_names: Class names in the order of the logits.
            preprocessing: Result of `Preprocessing.to_json`.
            dataset: Fingerprint of the data set.
            defaults: Values of config fields that an older version may not have recorded.
        Raises:
            InputError: If the directory holds another run or other files, or cannot be created.
        """
        contents = {
            "class_names": list(class_names),
            "preprocessing": preprocessing,
            "dataset": dataset,
            "versions": installed_versions(),
            "config": config,  # last: `exists` looks for it
        }
        if self.exists():
            self._check_same(contents, defaults or {})
            return
        if self.path.exists() and (not self.path.is_dir() or self._has_other_files()):
            raise InputError(
                "A new run needs an empty or new directory. "
                f"Received: {self.path}, which holds other files."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                text = json.dumps(content, indent=1, sort_keys=name == "config") + "\n"
                write_file(self.path / FILES[name], text.encode())
        except OSError as error:
            raise InputError(
                "A new run needs a directory that can be created and written. "
                f"Received: {self.path} ({error.strerror})."
            ) from error

    def extend(self, epochs: int) -> None:
        """Records a larger number of epochs for a finished run."""
        config = self.config
        path = self.path / EXTENSIONS
        extensions = json.loads(path.read_text()) if path.exists() else []
        extensions.append({"from": config["epochs"], "to": epochs})
        write_file(path, (json.dumps(extensions, indent=1) + "\n").encode())
        text = json.dumps(config | {"epochs": epochs}, indent=1, sort_keys=True) + "\n"
        write_file(self.path / FILES["config"], text.encode())

    def _check_same(self, contents, defaults):
        for name, new in reversed(contents.items()):
            new = json.loads(json.dumps(new))
            if name == "versions":
                self._warn_of_versions(new)
                continue
            old = self._read(name)
            if name == "config":
                old = json.loads(json.dumps(defaults)) | old
                if old.get("strategy") != new.get("strategy"):
                    logging.warning(
                        "The run used strategy=%s so far and continues with strategy=%s. Another "
                        "number of replicas draws other masks in dropout and stochastic depth.",
                        old.get("strategy"), new.get("strategy"),
                    )  # fmt: skip
                if all(str(each.get("dataset")).startswith("folder:") for each in (old, new)):
                    # A folder may be moved: its fingerprint is compared.
                    old["dataset"] = new["dataset"]
                old, new = (
                    {k: v for k, v in each.items() if k not in RESUME_OVERRIDABLE_FIELDS}
                    for each in (old, new)
                )
            if old != new:
                raise InputError(
                    f"A run must be resumed with the same {name}. Received: {self.path}, where "
                    f"{_difference(old, new)}. Use the same values, or another directory."
                )

    def _warn_of_versions(self, new):
        old = self._read("versions") if (self.path / FILES["versions"]).exists() else {}
        if old != new:
            logging.warning(
                "The run was started with %s and continues with %s: results may differ.",
                *(
                    ", ".join(f"{k} {v}" for k, v in each.items()) or "unknown"
                    for each in (old, new)
                ),
            )

    def _has_other_files(self):
        """Returns whether there are files that an interrupted `create` does not leave."""
        names = (path.name for path in self.path.iterdir())
        return any(name not in FILES.values() and not name.startswith(".") for name in names)

    def _read(self, name):
        path = self.path / FILES[name]
        if not path.exists():
            raise InputError(
                "`workdir` must be a run directory, as `vitkeras train` makes it. "
                f"Received: {self.path}, which has no {FILES[name]}."
            )
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(path, error) from error
        expected = list if name == "class_names" else dict
        if not isinstance(content, expected):
            raise self._damaged(path, f"{type(content).__name__} instead of {expected.__name__}")
        if name == "class_names" and not all(isinstance(each, str) for each in content):
            raise self._damaged(path, "names that are not strings")
        return content

    def _damaged(self, path, reason):
        return InputError(
            f"{path.name} of a run must be as `vitkeras train` wrote it. "
            f"Received: {path}, which cannot be read ({reason}). Restore it, or train a new run."
        )

    @property
    def config(self) -> dict[str, Any]:
        """The config of the run."""
        return self._read("config")

    @property
    def loss(self) -> str:
        """The loss of the run, softmax or sigmoid: also the activation of predictions."""
        return self.config.get("loss", "softmax")  # older versions did not record it

    @property
    def class_names(self) -> list[str]:
        """Class names in the order of the logits."""
        return self._read("class_names")

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The argument of `Preprocessing.from_json`."""
        return self._read("preprocessing")

    @property
    def dataset(self) -> dict[str, Any]:
        """Fingerprint of the data set."""
        return self._read("dataset")

    @property
    def probe_results(self) -> dict[str, Any] | None:
        """What `vitkeras probe` measured; None for a run of `vitkeras train`."""
        path = self.path / PROBE_RESULTS
        try:
            return json.loads(path.read_text()) if path.exists() else None
        except ValueError as error:
            raise self._damaged(path, error) from error

    def check_data(self, class_names: list[str], dataset: dict[str, Any]) -> None:
        """Checks that data are those of the run: otherwise training images may be in another split.

        Args:
            class_names: Class names of the data source.
            dataset: Fingerprint of the data source.
        Raises:
            InputError: If they differ.
        """
        for name, new in {"class_names": list(class_names), "dataset": dataset}.items():
            old, new = self._read(name), json.loads(json.dumps(new))
            if old != new:
                raise InputError(
                    f"The {name} must be that of the run, whose splits it has. "
                    f"Received: {self.path}, where {_difference(old, new)}. Restore the data, or "
                    "train a new run."
                )

    def save_model(self, model: keras.Model, which: str) -> None:
        """Writes `best.keras` or `last.keras` atomically."""
        with atomic_file(self.path / f"{which}.keras") as path:
            model.save(path)

    def load_model(self, which: str = "best") -> keras.Model:
        """Returns the model, without an optimizer.

        Raises:
            InputError: If this is no run directory, or the model has not been saved yet or cannot
                be read.
        """
        self._read("config")
        path = self.path / f"{which}.keras"
        if not path.exists():
            raise InputError(
                f"The run has not saved this model yet. Received: {path}. Train at least one epoch."
            )
        with local_copy(path) as local:
            return load_keras_file(local)


def _difference(old, new):
    """Returns a short description of the first differing fields."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"it was {str(old)[:60]} and is now {str(new)[:60]}"
    fields = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return "; ".join(
        f"{key} was {old.get(key)!r} and is now {new.get(key)!r}" for key in fields[:5]
    )
