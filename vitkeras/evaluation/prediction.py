"""Predictions for any number of image files, in batches, in the order of the files."""

import collections
import concurrent.futures
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from vitkeras.arguments import check_choice
from vitkeras.data.images import file_error
from vitkeras.data.preprocessing import Preprocessing
from vitkeras.io.atomic import is_remote

#: Requests that a server gets at the same time.
REQUESTS = 4
#: Class names and their probabilities, best first; None if the file is not a valid image.
Answer = tuple[list[str], list[float]] | None


class Prediction(NamedTuple):
    """The prediction for a file.

    Attributes:
        path: The file.
        classes: Names of the best classes, best first; none for an invalid file.
        probabilities: Their probabilities.
        reason: Why the file is not a valid image; None for a valid one.
    """

    path: str
    classes: list[str]
    probabilities: list[float]
    reason: str | None


class Predictor(NamedTuple):
    """A model that classifies files.

    Attributes:
        load: From the content of a file, a scalar string, to an input of `predict`. An error makes
            the file invalid.
        predict: From a batch of inputs to their answers.
        num_parallel: Number of batches that are predicted at the same time, each in a thread.
    """

    load: Callable[[tf.Tensor], tf.Tensor]
    predict: Callable[[tf.Tensor], Sequence[Answer]]
    num_parallel: int = 1


def predict_files(
    paths: Iterable[str], predictor: Predictor, batch_size: int
) -> Iterator[list[Prediction]]:
    """Yields the predictions of each batch.

    Files are read ahead, while a batch is predicted. Memory does not grow with their number.

    Args:
        paths: Files, local or in an object store.
        predictor: The model.
        batch_size: Number of valid files per batch.
    """
    pending: dict[int, str] = {}
    errors = []

    def entries():
        try:
            for index, path in enumerate(paths):
                pending[index] = path
                if is_remote(path) or _is_regular(path):
                    yield index, os.fsencode(path)
        except Exception as error:  # TensorFlow would end the dataset without it; raised below
            errors.append(error)

    def load(index, path):
        return index, predictor.load(tf.io.read_file(path))

    # `ignore_errors` drops invalid files; the indices of the others show which.
    specs = tf.TensorSpec((), tf.int64), tf.TensorSpec((), tf.string)
    batches = (
        tf.data.Dataset.from_generator(entries, output_signature=specs)
        .map(load, num_parallel_calls=tf.data.AUTOTUNE)
        .ignore_errors()
        .batch(batch_size)
        .prefetch(2)
    )
    done = 0
    for indices, answers in _answers(batches, predictor):
        predictions = []
        for index, answer in zip(indices.numpy().tolist(), answers, strict=True):
            predictions += [_invalid(pending.pop(i)) for i in range(done, index)]
            path, done = pending.pop(index), index + 1
            predictions.append(Prediction(path, *answer, None) if answer else _invalid(path))
        yield predictions
    if errors:
        raise errors[0]
    if pending:
        yield [_invalid(pending[i]) for i in sorted(pending)]


def _answers(batches, predictor) -> Iterator[tuple[Any, Sequence[Answer]]]:
    """Yields indices and answers of each batch, in order."""
    if predictor.num_parallel == 1:
        yield from ((indices, predictor.predict(inputs)) for indices, inputs in batches)
        return
    pool = concurrent.futures.ThreadPoolExecutor(predictor.num_parallel)
    running: collections.deque = collections.deque()
    try:
        for indices, inputs in batches:
            running.append((indices, pool.submit(predictor.predict, inputs)))
            if len(running) == predictor.num_parallel:
                indices, future = running.popleft()
                yield indices, future.result()
        yield from ((indices, future.result()) for indices, future in running)
    finally:  # after an error, answers of other batches are not waited for
        pool.shutdown(wait=False, cancel_futures=True)


def _is_regular(path):
    """Returns whether a path is a file; reading a named pipe would wait for a writer."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _invalid(path):
    return Prediction(path, [], [], file_error(path) or "the model does not accept the image")


def model_predictor(
    model: Any,
    class_names: Sequence[str],
    preprocessing: Preprocessing,
    top: int,
    activation: str = "softmax",
) -> Predictor:
    """Returns the predictor of a Keras model.

    Args:
        model: A model that returns logits `(b, classes)`.
        class_names: Class names in the order of the logits.
        preprocessing: Preprocessing of the run.
        top: Number of classes in an answer.
        activation: From logits to probabilities: "softmax", or "sigmoid", whose probabilities of
            the classes do not sum to 1.
    """
    check_choice("activation", activation, ("softmax", "sigmoid"))
    images_spec = tf.TensorSpec((None, *preprocessing.image_size, 3), tf.uint8)

    @tf.function(input_signature=[images_spec])
    def best(images):
        logits = tf.cast(model(images, training=False), tf.float32)
        return tf.math.top_k(getattr(tf.nn, activation)(logits), min(top, len(class_names)))

    def predict(images):
        probabilities, labels = (tensor.numpy().tolist() for tensor in best(images))
        names = [[class_names[label] for label in row] for row in labels]
        return list(zip(names, probabilities, strict=True))

    return Predictor(preprocessing.evaluation_image, predict)


def saved_model_predictor(loaded: Any, top: int) -> Predictor:
    """Returns the predictor of an exported SavedModel.

    Args:
        loaded: The result of `tf.saved_model.load`.
        top: Maximum number of classes in an answer; an export has a maximum of its own.
    """

    def predict(contents):
        # `loaded` keeps the variables alive; a signature alone does not.
        outputs = loaded.signatures["serving_default"](image_bytes=contents)
        names = [[name.decode() for name in row] for row in outputs["classes"].numpy()[:, :top]]
        scores = outputs["scores"].numpy()[:, :top].tolist()
        rows = zip(outputs["valid"].numpy(), names, scores, strict=True)
        return [answer if valid else None for valid, *answer in rows]

    return Predictor(tf.identity, predict)


def client_predictor(client: Callable[[list[bytes]], list[Answer]], top: int) -> Predictor:
    """Returns the predictor of a server, which gets `REQUESTS` requests at the same time.

    Args:
        client: Result of `vitkeras.serving.client.make_client`.
        top: Maximum number of classes in an answer.
    """

    def predict(contents):
        answers = client(contents.numpy().tolist())
        return [answer and tuple(part[:top] for part in answer) for answer in answers]

    return Predictor(tf.identity, predict, REQUESTS)
