"""A client of TF Serving servers: gRPC (with tensorflow-serving-api) or REST.

A request is repeated, with exponential backoff, if the server cannot be reached, does not answer in
time or is overloaded. A request that the server refuses is not repeated.
"""

import base64
import json
import math
import queue
import threading
import time
from collections.abc import Callable

import numpy as np
import requests
import urllib3

from vitkeras.errors import InputError, RunError

FIELDS = ("classes", "scores", "valid")
#: Unit of the waiting time between attempts, in seconds. It doubles with each attempt.
BACKOFF = 0.25
#: HTTP status codes of a server that is overloaded or not ready.
RETRY_STATUSES = (429, 502, 503, 504)
MAX_ERROR_LENGTH = 500
MAX_REPLY_BYTES = 2**26
#: Of an output tensor.
MAX_VALUES = 10_000_000

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
        timeout: Timeout of an attempt from the request to the last byte of the answer, in seconds.
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
    session = requests.Session()
    # Not compressed: a small body could become a large one.
    session.headers["Accept-Encoding"] = "identity"
    url = f"{server.rstrip('/')}/v1/models/{model_name}:predict"

    def post(body):
        """Returns status and body, at most `MAX_REPLY_BYTES`."""
        with session.post(
            url, json=body, timeout=timeout, stream=True, allow_redirects=False
        ) as response:
            reply = bytearray()
            for chunk in response.raw.stream(2**16, decode_content=False):
                reply += chunk
                if len(reply) > MAX_REPLY_BYTES:
                    raise RunError(
                        f"The answer of a server must have at most {MAX_REPLY_BYTES:,} bytes. "
                        f"Received: more, from {server}."
                    )
            return response.status_code, bytes(reply)

    def request(contents):
        encoded = ({"b64": base64.b64encode(content).decode()} for content in contents)
        instances = [{"image_bytes": value} for value in encoded]
        body = {"signature_name": "serving_default", "instances": instances}
        for attempt in range(retries + 1):
            try:
                status, reply = _with_deadline(timeout, post, body)
            except (requests.ConnectionError, TimeoutError, requests.Timeout) as error:
                cause = str(error) or "no answer in time"
            except ValueError as error:
                raise InputError(
                    f"`server` must be a valid URL. Received: server={server} ({error})."
                ) from error
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                raise RunError(
                    f"The answer of the server at {server} is incomplete: {error}."
                ) from error
            else:
                text = reply.decode(errors="replace")
                cause = f"HTTP {status}, {text.strip()[:MAX_ERROR_LENGTH]}"
                if status not in RETRY_STATUSES:
                    break
            if attempt == retries:
                raise _no_answer(server, timeout, retries, cause)
            time.sleep(BACKOFF * 2**attempt)
        if status != 200:
            raise _refusal(cause)
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = text
        return answer.get("predictions", answer) if isinstance(answer, dict) else answer

    return request


def _with_deadline(timeout, function, *arguments):
    """Calls a function in a thread; raises a TimeoutError if it takes longer.

    The timeout of `requests` is one for each read: a server may send a byte at a time.
    """
    results = queue.SimpleQueue()

    def call():
        try:
            results.put((function(*arguments), None))
        except Exception as error:  # raised below
            results.put((None, error))

    threading.Thread(target=call, daemon=True).start()
    try:
        result, error = results.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError("no complete answer in time") from None
    if error is not None:
        raise error
    return result


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
    options = list(zip(limits, (-1, MAX_REPLY_BYTES), strict=True))
    channel = grpc.insecure_channel(server.rstrip("/"), options)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def column(tensor):
        size = math.prod(dim.size for dim in tensor.tensor_shape.dim)
        if not 0 <= size <= MAX_VALUES:  # a tensor of one repeated value is short
            raise ValueError(f"{size} values")
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
        try:
            columns = {field: column(outputs[field]) for field in FIELDS if field in outputs}
        except Exception as error:  # whatever a malformed tensor raises
            return f"a malformed tensor ({error})"
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
        try:
            received = str(predictions)[:MAX_ERROR_LENGTH]
        except (RecursionError, ValueError):  # deeply nested, or an integer of many digits
            received = type(predictions).__name__
        raise InputError(
            f"The server must return {', '.join(FIELDS)} for each image, as models of "
            f"`vitkeras export` do. Received: {received} for "
            f"{num_images} images, from model_name={model_name}."
        )
    return [(classes, scores) if valid else None for classes, scores, valid in rows]


def _is_valid(classes, scores, valid):
    return (
        isinstance(classes, list)
        and isinstance(scores, list)
        and len(classes) == len(scores)
        and all(isinstance(name, str) for name in classes)
        and all(isinstance(score, (int, float)) and 0 <= score <= 1.001 for score in scores)
        and isinstance(valid, bool)
    )


def _no_answer(server, timeout, retries, cause):
    return RunError(
        f"The server at {server} did not answer in {retries + 1} attempts with a timeout of "
        f"{timeout} s each: {cause}."
    )


def _refusal(cause):
    return InputError(f"The server refused the request. Received: {cause}.")
