"""A client of TF Serving servers: gRPC (with tensorflow-serving-api) or REST.

A request is repeated, with exponential backoff, if the server cannot be reached, does not answer in
time or is overloaded. A request that the server refuses is not repeated.
"""

import base64
import logging
import time
from collections.abc import Callable

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import MaxRetryError
from urllib3.util import Retry

from vitkeras.errors import InputError, RunError

FIELDS = ("classes", "scores", "valid")
#: Unit of the waiting time between attempts, in seconds. It doubles with each attempt.
BACKOFF = 0.25
#: HTTP status codes of a server that is overloaded or not ready.
RETRY_STATUSES = (429, 502, 503, 504)
MAX_ERROR_LENGTH = 500

#: Class names and their scores, best first, or None if the server does not accept the image.
Prediction = tuple[list[str], list[float]] | None


def make_client(
    server: str, model_name: str, timeout: float, retries: int, batch_size: int
) -> Callable[[list[bytes]], list[Prediction]]:
    """Returns a function from image files, as bytes, to their predictions.

    The function raises an `InputError` if the server refuses a request or its model is not one of
    `export_saved_model`, and a `RunError` if it answers no attempt.

    Args:
        server: HOST:PORT for gRPC; http://HOST:PORT or https://HOST:PORT for REST.
        model_name: Name of the model on the server.
        timeout: Timeout of an attempt, in seconds.
        retries: How often a request is repeated.
        batch_size: Maximum number of images per request.
    Raises:
        InputError: If gRPC is requested and tensorflow-serving-api is not installed.
    """
    make_request_fn = _rest if server.startswith(("http://", "https://")) else _grpc
    request_fn = make_request_fn(server, model_name, timeout, retries)

    def predict(contents):
        predictions = []
        for i in range(0, len(contents), batch_size):
            batch = contents[i : i + batch_size]
            predictions += _parse(request_fn(batch), len(batch), model_name)
        return predictions

    return predict


def _rest(server, model_name, timeout, retries):
    """Returns a function from image files to what the server returns for each, by REST."""
    retry = Retry(
        retries, allowed_methods=None, status_forcelist=RETRY_STATUSES, backoff_factor=BACKOFF,
        raise_on_status=False, respect_retry_after_header=False,
    )  # fmt: skip
    # Its warning for each retry shows internals; the error after the last one has the cause.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    url = f"{server.rstrip('/')}/v1/models/{model_name}:predict"

    def request(contents):
        encoded = ({"b64": base64.b64encode(content).decode()} for content in contents)
        instances = [{"image_bytes": value} for value in encoded]
        body = {"signature_name": "serving_default", "instances": instances}
        try:
            response = session.post(url, json=body, timeout=timeout)
        except ValueError as error:
            raise InputError(
                f"`server` must be a valid URL. Received: server={server} ({error})."
            ) from error
        except requests.RequestException as error:
            cause = error.args[0] if error.args else None
            if isinstance(cause, MaxRetryError):
                raise _no_answer(server, timeout, retries, cause.reason) from error
            raise RunError(
                f"The answer of the server at {server} is incomplete: {error}."
            ) from error
        cause = f"HTTP {response.status_code}, {response.text.strip()[:MAX_ERROR_LENGTH]}"
        if response.status_code in RETRY_STATUSES:
            raise _no_answer(server, timeout, retries, cause)
        if not response.ok:
            raise _refusal(cause)
        try:
            answer = response.json()
        except ValueError:
            answer = response.text
        return answer.get("predictions", answer) if isinstance(answer, dict) else answer

    return request


def _grpc(server, model_name, timeout, retries):
    """Returns a function from image files to what the server returns for each, by gRPC."""
    try:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    except ImportError as error:
        raise InputError(
            "gRPC needs tensorflow-serving-api: pip install --no-deps tensorflow-serving-api "
            "(its dependencies would install a second TensorFlow). For REST use "
            f"--server=http://HOST:8501. Received: server={server}."
        ) from error
    retry_codes = (
        grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )  # fmt: skip
    limits = ("grpc.max_send_message_length", "grpc.max_receive_message_length")
    channel = grpc.insecure_channel(server.rstrip("/"), [(limit, -1) for limit in limits])
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def column(tensor):
        array = np.atleast_1d(tf.make_ndarray(tensor))
        if array.dtype == object:
            array = np.vectorize(lambda x: x.decode(errors="replace"), otypes=[object])(array)
        return array.tolist()

    def request(contents):
        message = predict_pb2.PredictRequest(output_filter=FIELDS)
        message.model_spec.name = model_name
        message.model_spec.signature_name = "serving_default"
        message.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(contents, tf.string))
        # gRPC's own retries stop after five attempts and share one deadline.
        for attempt in range(retries + 1):
            try:
                outputs = stub.Predict(message, timeout).outputs
                break
            except grpc.RpcError as error:
                cause = f"{error.code().name}, {str(error.details())[:MAX_ERROR_LENGTH]}"
                if error.code() not in retry_codes:
                    raise _refusal(cause) from error
                if attempt == retries:
                    raise _no_answer(server, timeout, retries, cause) from error
                time.sleep(BACKOFF * 2**attempt)
        columns = {field: column(outputs[field]) for field in FIELDS if field in outputs}
        rows = zip(*columns.values(), strict=False)  # `_parse` checks their number
        return [dict(zip(columns, row, strict=True)) for row in rows]

    return request


def _parse(predictions, num_images, model_name):
    """Returns the `Prediction` of each image, after a check of what the server returned."""
    try:
        rows = [tuple(prediction[field] for field in FIELDS) for prediction in predictions]
    except (KeyError, TypeError):
        rows = []
    if len(rows) != num_images or not all(_is_valid(*row) for row in rows):
        raise InputError(
            f"The server must return {', '.join(FIELDS)} for each image, as models of "
            f"`vitkeras export` do. Received: {str(predictions)[:MAX_ERROR_LENGTH]} for "
            f"{num_images} images, from model_name={model_name}."
        )
    return [(classes, scores) if valid else None for classes, scores, valid in rows]


def _is_valid(classes, scores, valid):
    return (
        isinstance(classes, list)
        and isinstance(scores, list)
        and len(classes) == len(scores)
        and all(isinstance(name, str) for name in classes)
        and all(isinstance(score, (int, float)) for score in scores)
        and isinstance(valid, bool)
    )


def _no_answer(server, timeout, retries, cause):
    return RunError(
        f"The server at {server} did not answer in {retries + 1} attempts with a timeout of "
        f"{timeout} s each: {cause}."
    )


def _refusal(cause):
    return InputError(f"The server refused the request. Received: {cause}.")
