"""The client against a stub that speaks the real protos and answers from a real export; and what
the server reads beside it, parsed with its own messages.

Needs tensorflow-serving-api, installed with --no-deps: what it depends on is a second TensorFlow.
"""

import base64
import concurrent.futures
import contextlib
import http.server
import json
import re
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, photo
from test_experiments import script

import vitkeras as vk
from experiments import client
from vitkeras import data, serving
from vitkeras.errors import InputError, RunError
from vitkeras.serving.server_files import BATCH_SIZES, server_files
from vitkeras.serving.warmup import WARMUP

REASON = "pip install --no-deps tensorflow-serving-api, as .ci/run does"
predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2", reason=REASON)

import grpc  # noqa: E402
from google.protobuf import text_format  # noqa: E402
from tensorflow_serving.apis import prediction_log_pb2, prediction_service_pb2_grpc  # noqa: E402
from tensorflow_serving.config import model_server_config_pb2  # noqa: E402

NAMES = ["ant", "bee", "cow"]
SIZE = (32, 48)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = vk.vit("Ti/16", image_size=SIZE, num_classes=len(NAMES), **TINY)
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(24, 3)))
    base = tmp_path_factory.mktemp("saved") / "animals"
    return serving.export(model, data.Preprocessing(SIZE), NAMES, base)


@pytest.fixture(scope="module")
def signatures(exported):
    return tf.saved_model.load(exported).signatures


@pytest.fixture
def images(tmp_path):
    """Five files of which the third is no image."""
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        photo(40 + i, 60, seed=i).save(path)
    paths[2].write_bytes(b"no image")
    return paths


class Stub(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers both protocols as the server does: from the export, after some first faults."""

    def __init__(self, signatures, faults=(), delay=0.0):
        self.signatures, self.faults, self.delay = signatures, list(faults), delay
        self.sizes = []  # images of each request

    def answers(self, name, signature, image_bytes, fields=()):
        """Returns a status, and arrays by name or a sentence."""
        self.sizes.append(len(image_bytes))
        time.sleep(self.delay)
        if self.faults:
            return self.faults.pop(0), "not now"
        if name != "animals":
            return "NOT_FOUND", f"Servable not found for request: Latest({name})"
        found = self.signatures[signature](image_bytes=tf.constant(image_bytes))
        return "OK", {key: value for key, value in found.items() if not fields or key in fields}

    def Predict(self, request, context):
        """As in prediction_service.proto."""
        spec, image_bytes = request.model_spec, tf.make_ndarray(request.inputs["image_bytes"])
        status, found = self.answers(
            spec.name, spec.signature_name, image_bytes, request.output_filter
        )
        if status != "OK":
            context.abort(grpc.StatusCode[status], found)
        response = predict_pb2.PredictResponse(model_spec=spec)
        for key, value in found.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response

    def rest(self, path, body):
        """Returns an HTTP status and what the body holds."""
        name = re.fullmatch(r"/v1/models/(\w+):predict", path)[1]
        image_bytes = [base64.b64decode(x["image_bytes"]["b64"]) for x in body["instances"]]
        status, found = self.answers(name, body["signature_name"], image_bytes)
        codes = {"OK": 200, "INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "UNAVAILABLE": 503}
        if status != "OK":
            return codes[status], {"error": found}
        columns = {key: value.numpy().tolist() for key, value in found.items()}
        columns["classes"] = [[name.decode() for name in row] for row in columns["classes"]]
        rows = zip(*columns.values(), strict=True)
        return 200, {"predictions": [dict(zip(columns, row, strict=True)) for row in rows]}


@contextlib.contextmanager
def serving_grpc(stub):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(stub, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def serving_rest(stub):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code, answer = stub.rest(self.path, body)
            content = json.dumps(answer).encode()
            with contextlib.suppress(BrokenPipeError):  # the client waits no longer
                self.send_response(code)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


PROTOCOLS = pytest.mark.parametrize("protocol", [serving_grpc, serving_rest])


@PROTOCOLS
def test_predict_asks_a_server(protocol, exported, signatures, images):
    stub = Stub(signatures, ["UNAVAILABLE"])
    with protocol(stub) as server:
        flags = (f"--server={server}", "--model_name=animals", "--batch_size=2")
        served, process = script("predict", *flags, *images)
    assert stub.sizes == [2, 2, 2, 1]  # the first one twice
    local, _ = script("predict", f"--saved_model={exported}", *images)
    for ours, theirs in zip(served["predictions"], local["predictions"], strict=True):
        assert ours["image"] == theirs["image"] and ours["valid"] == theirs["valid"]
        assert [x["class"] for x in ours["top"]] == [x["class"] for x in theirs["top"]]
        for one, other in zip(ours["top"], theirs["top"], strict=True):
            assert abs(one["probability"] - other["probability"]) < 1e-5
    assert [x["valid"] for x in served["predictions"]] == [True, True, False, True, True]
    assert len({x["top"][0]["probability"] for x in served["predictions"] if x["valid"]}) == 4
    assert "2.png: no whole JPEG or PNG file" in process.stderr


@PROTOCOLS
def test_retries_and_refusals(protocol, signatures, images, monkeypatch):
    monkeypatch.setattr(client, "PAUSE", 0.01)
    contents = [path.read_bytes() for path in images]

    def ask(faults=(), model="animals", retries=2):
        stub = Stub(signatures, faults)
        with protocol(stub) as server:
            try:
                return client.make_client(server, model, 30.0, retries, 8)(contents), stub
            finally:
                ask.sizes = stub.sizes

    answers, stub = ask(["UNAVAILABLE", "UNAVAILABLE"])
    assert [answer is not None for answer in answers] == [True, True, False, True, True]
    assert stub.sizes == [5, 5, 5]
    with pytest.raises(RunError, match="asked 3 times with 30.0 s for each.*not now"):
        ask(["UNAVAILABLE"] * 3)
    with pytest.raises(InputError, match="refused the request.*not now"):
        ask(["INVALID_ARGUMENT"])
    assert ask.sizes == [5]
    with pytest.raises(InputError, match="Servable not found for request: Latest.no."):
        ask(model="no")
    assert ask.sizes == [5]


@PROTOCOLS
def test_a_server_that_hangs_or_is_not_there(protocol, signatures, monkeypatch):
    monkeypatch.setattr(client, "PAUSE", 0.01)
    stub = Stub(signatures, delay=2.0)
    with protocol(stub) as server:
        start = time.monotonic()
        with pytest.raises(RunError, match="asked 2 times with 0.2 s for each"):
            client.make_client(server, "animals", 0.2, 1, 8)([b"x"])
        assert time.monotonic() - start < 2.0
    with pytest.raises(RunError, match="asked 1 times"):  # the port is free again
        client.make_client(server, "animals", 5.0, 0, 8)([b"x"])


@PROTOCOLS
def test_another_model_is_named_as_such(protocol, signatures):
    class Other(Stub):
        def answers(self, *arguments):
            return "OK", {"classes": tf.constant([["x"]]), "valid": tf.constant([True])}

    with protocol(Other(signatures)) as server:
        with pytest.raises(InputError, match="does not answer with classes, scores, valid"):
            client.make_client(server, "animals", 30.0, 0, 8)([b"x"])


def test_predict_says_what_is_wrong(images):
    assert "Give one of --workdir" in script("predict", images[0], fails=True)
    both = ("--server=localhost:1", "--workdir=x", images[0])
    assert "Give one of --workdir" in script("predict", *both, fails=True)
    gone = ("--server=http://127.0.0.1:9", "--retries=0", images[0])
    assert "did not answer, asked 1 times" in script("predict", *gone, fails=True)


def test_warmup_requests_are_predictions_that_every_signature_answers(exported, signatures):
    records = list(tf.data.TFRecordDataset(str(exported / WARMUP)).as_numpy_iterator())
    assert 0 < len(records) <= 1000
    asked = []
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == "animals"
        inputs = {key: tf.constant(tf.make_ndarray(x)) for key, x in request.inputs.items()}
        found = signatures[request.model_spec.signature_name](**inputs)
        assert found["valid"].numpy().all()
        asked.append((request.model_spec.signature_name, len(found["valid"])))
        assert (
            request.SerializeToString()
            == predict_pb2.PredictRequest.FromString(
                request.SerializeToString()
            ).SerializeToString()
        )
    assert {size for name, size in asked if name == "serving_default"} == set(BATCH_SIZES)
    assert {name for name, _ in asked} == set(signatures)


def test_the_files_beside_it_say_what_the_server_takes(exported):
    config = text_format.Parse(
        (exported.parent / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path) == ("animals", "/models/animals")
    files = server_files('quo"te')
    text_format.Parse(files["models.config"], config := model_server_config_pb2.ModelServerConfig())
    assert config.model_config_list.config[0].name == 'quo"te'
    # Their messages are not in tensorflow-serving-api: only names and numbers are looked at.
    batching = (exported.parent / "batching_parameters.txt").read_text()
    allowed = [int(size) for size in re.findall(r"^allowed_batch_sizes: (\d+)$", batching, re.M)]
    assert allowed == sorted(set(allowed)) == list(BATCH_SIZES)
    assert re.search(rf"^max_batch_size {{ value: {allowed[-1]} }}$", batching, re.M)
    assert "prometheus_config {" in (exported.parent / "monitoring.config").read_text()
