"""Asks a TF Serving server for classes: by gRPC (tensorflow-serving-api) or by REST.

A request that met no server, or one that was too busy, is sent again after a pause; one that was
refused is not.
"""

import base64
import http.client
import json
import time
import urllib.error
import urllib.request

from vitkeras.errors import InputError, RunError

FIELDS = ("classes", "scores", "valid")
ANOTHER_MODEL = "another model", f"it does not answer with {', '.join(FIELDS)}"
PAUSE = 0.25  # seconds before the second attempt, twice as long before each further one


class TryAgain(Exception):
    """What a later attempt may not meet."""


def make_client(server, model, timeout, retries, batch_size):
    """Returns a function from image files, as bytes, to an answer for each.

    An answer is a list of class names and one of scores, best first, or None where the server says
    that the file is no image.

    Args:
        server: HOST:PORT for gRPC, http://HOST:PORT (or https) for REST.
        model: The name that the server has it by.
        timeout: Seconds that a request may take.
        retries: How often a request is sent again.
        batch_size: Images of a request.
    Raises:
        InputError: If tensorflow-serving-api is needed and not there; when called, if the server
            refuses the request or its model is another.
        RunError: When called, if no attempt was answered.
    """
    by_rest = server.startswith(("http://", "https://"))
    ask = (_rest if by_rest else _grpc)(server.rstrip("/"), model, timeout)

    def answer_batch(contents):
        pause = PAUSE
        for attempt in range(retries + 1):
            try:
                found = ask(contents)
                break
            except TryAgain as error:
                if attempt == retries:
                    raise RunError(
                        f"The server at {server} did not answer, asked {retries + 1} times with "
                        f"{timeout} s for each: {error}."
                    ) from error
                time.sleep(pause)
                pause *= 2
        if any(len(found[field]) != len(contents) for field in FIELDS):
            raise InputError(
                f"A model must answer for each image. Received: {len(found['valid'])} answers for "
                f"{len(contents)} images."
            )
        rows = zip(*(found[field] for field in FIELDS), strict=True)
        return [(classes, scores) if valid else None for classes, scores, valid in rows]

    def answers(contents):
        batches = range(0, len(contents), batch_size)
        return [a for i in batches for a in answer_batch(contents[i : i + batch_size])]

    return answers


def _grpc(server, model, timeout):
    try:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    except ImportError as error:
        raise InputError(
            "gRPC needs tensorflow-serving-api: pip install --no-deps tensorflow-serving-api "
            "(its dependencies would bring a second TensorFlow). Or give --server=http://HOST:8501."
        ) from error
    again = (
        grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )  # fmt: skip
    sizes = ("grpc.max_send_message_length", "grpc.max_receive_message_length")
    channel = grpc.insecure_channel(server, [(size, -1) for size in sizes])
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def ask(contents):
        request = predict_pb2.PredictRequest(output_filter=FIELDS)
        request.model_spec.name, request.model_spec.signature_name = model, "serving_default"
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(contents, tf.string))
        try:
            outputs = stub.Predict(request, timeout).outputs
        except grpc.RpcError as error:
            if error.code() in again:
                raise TryAgain(f"{error.code().name}, {error.details()}") from error
            _refused(error.code().name, error.details())
        if not set(FIELDS) <= set(outputs):
            _refused(*ANOTHER_MODEL)
        found = {field: tf.make_ndarray(outputs[field]).tolist() for field in FIELDS}
        found["classes"] = [[name.decode() for name in names] for names in found["classes"]]
        return found

    return ask


def _rest(server, model, timeout):
    url = f"{server}/v1/models/{model}:predict"

    def ask(contents):
        encoded = ({"b64": base64.b64encode(content).decode()} for content in contents)
        instances = [{"image_bytes": text} for text in encoded]
        body = {"signature_name": "serving_default", "instances": instances}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                rows = json.load(response)["predictions"]
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace").strip()[:500]
            if error.code in (429, 502, 503, 504):
                raise TryAgain(f"HTTP {error.code}, {said}") from error
            _refused(f"HTTP {error.code}", said)
        except (OSError, http.client.HTTPException) as error:
            raise TryAgain(str(getattr(error, "reason", error)) or type(error).__name__) from error
        except (ValueError, KeyError) as error:
            _refused("no predictions", repr(error))
        if rows and not (isinstance(rows[0], dict) and set(FIELDS) <= set(rows[0])):
            _refused(*ANOTHER_MODEL)
        return {field: [row[field] for row in rows] for field in FIELDS}

    return ask


def _refused(code, text):
    raise InputError(f"The server refused the request: {code}, {text}.")
