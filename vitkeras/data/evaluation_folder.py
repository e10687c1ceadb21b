"""A folder of images that a model is evaluated on with the classes of its run."""

from collections.abc import Sequence

import numpy as np

from vitkeras.data.folder import FolderSource
from vitkeras.data.folder_listing import find_splits

#: The split with all images.
ALL = "all"


class EvaluationFolder(FolderSource):
    """A folder of images with one sub-folder per class, for evaluation only.

    The labels are those of given class names, not of the sub-folders in alphabetical order, and a
    class may be missing or empty. The splits are "all" and, if the sub-folders are splits, these.

    Args:
        path: The folder, on a local disk or in an object store (gs://...).
        class_names: Class names of the run, in the order of the labels.
    Raises:
        InputError: If the folder is missing or empty, or has a class that is not in `class_names`.
    """

    _allow_empty_classes = True

    def __init__(self, path: str, class_names: Sequence[str]):
        self.class_names = list(class_names)
        super().__init__(path)

    def _find_files(self, fraction):
        folders = find_splits(self.path, required=())
        rule = "Every class of the folder must be a class of the run."
        listed = {
            split: self._list_known(folder, rule)
            for split, folder in (folders or {ALL: ""}).items()
        }
        files = [file for split_files, _ in listed.values() for file in split_files]
        labels = np.concatenate([split_labels for _, split_labels in listed.values()])
        self.files = listed | {ALL: (files, labels)}
