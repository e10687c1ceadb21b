"""The client against a stub that uses the server's messages and answers from a real export.

Needs tensorflow-serving-api, installed with --no-deps: its dependencies are a second TensorFlow.
"""

import base64
import concurrent.futures
import contextlib
import gzip
import http.server
import json
import re
import socketserver
import threading

import pytest
import tensorflow as tf
from helpers.images import photo
from helpers.processes import command

from vitkeras.errors import InputError, RunError
from vitkeras.serving import client

REASON = "pip install --no-deps tensorflow-serving-api, as .ci/run does"
predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2", reason=REASON)

import grpc  # noqa: E402
from tensorflow_serving.apis import prediction_service_pb2_grpc  # noqa: E402

HTTP_STATUSES = {"OK": 200, "INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "UNAVAILABLE": 503}


@pytest.fixture
def images(tmp_path):
    """Five files; the third is not an image."""
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(paths):
        photo(40 + i, 60, seed=i).save(path)
    paths[2].write_bytes(b"not an image")
    return paths


class Stub(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers both protocols as the server does, from an export, after some initial faults.

    A fault is a status, or a number for an HTTP status.
    """

    def __init__(self, signatures, faults=(), text="not now"):
        self.signatures, self.faults, self.text = signatures, list(faults), text
        self.batch_sizes = []  # of the requests
        self.missing_bytes = 0  # of each REST answer
        self.ready = threading.Event()  # until it is set, requests wait
        self.ready.set()

    def answers(self, name, signature, image_bytes, fields=()):
        """Returns a status, and outputs by name or an error text."""
        self.batch_sizes.append(len(image_bytes))
        self.ready.wait(60)
        if self.faults:
            return self.faults.pop(0), self.text
        if name != "tiny":
            return "NOT_FOUND", f"Servable not found for request: Latest({name})"
        outputs = self.signatures[signature](image_bytes=tf.constant(image_bytes))
        return "OK", {k: v.numpy() for k, v in outputs.items() if not fields or k in fields}

    def Predict(self, request, context):
        """The method of prediction_service.proto."""
        spec, image_bytes = request.model_spec, tf.make_ndarray(request.inputs["image_bytes"])
        status, outputs = self.answers(
            spec.name, spec.signature_name, image_bytes, request.output_filter
        )
        if status != "OK":
            context.abort(grpc.StatusCode[status], outputs)
        response = predict_pb2.PredictResponse(model_spec=spec)
        for key, value in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return response

    def rest(self, path, body):
        """Returns the HTTP status and the content."""
        name = re.fullmatch(r"/v1/models/(\w+):predict", path)[1]
        image_bytes = [base64.b64decode(x["image_bytes"]["b64"]) for x in body["instances"]]
        status, outputs = self.answers(name, body["signature_name"], image_bytes)
        if status != "OK":
            return HTTP_STATUSES.get(status, status), json.dumps({"error": outputs})
        columns = {key: value.tolist() for key, value in outputs.items()}
        columns["classes"] = [[name.decode() for name in row] for row in columns["classes"]]
        rows = zip(*columns.values(), strict=True)
        predictions = [dict(zip(columns, row, strict=True)) for row in rows]
        return 200, json.dumps({"predictions": predictions})


@contextlib.contextmanager
def serve_grpc(stub):
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(stub, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        stub.ready.set()
        server.stop(None).wait()


@contextlib.contextmanager
def serve_rest(stub):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content = stub.rest(self.path, body)
            if status == 0:
                return  # closes the connection
            with contextlib.suppress(BrokenPipeError):  # the client may have given up
                self.send_response(status)
                self.send_header("Content-Length", str(len(content) + stub.missing_bytes))
                self.end_headers()
                self.wfile.write(content.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        stub.ready.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch):
    monkeypatch.setattr(client, "BACKOFF", 0.01)


both_protocols = pytest.mark.parametrize("protocol", [serve_grpc, serve_rest])


@both_protocols
def test_predict_with_a_server_equals_predict_with_the_export(
    protocol, exported, signatures, images
):
    stub = Stub(signatures, ["UNAVAILABLE"])
    with protocol(stub) as server:
        code, out, err = command(
            "predict", f"--server={server}", "--model_name=tiny", "--batch_size=2", *images
        )
    assert code == 0 and sorted(stub.batch_sizes) == [1, 2, 2, 2]  # one of them is repeated
    remote = json.loads(out.splitlines()[-1])["predictions"]
    _, out, _ = command("predict", f"--saved_model={exported}", *images)
    local = json.loads(out.splitlines()[-1])["predictions"]
    for actual, expected in zip(remote, local, strict=True):
        assert actual["path"] == expected["path"] and actual["valid"] == expected["valid"]
        assert [x["class"] for x in actual["top"]] == [x["class"] for x in expected["top"]]
        for one, other in zip(actual["top"], expected["top"], strict=True):
            assert abs(one["probability"] - other["probability"]) < 1e-5
    assert [x["valid"] for x in remote] == [True, True, False, True, True]
    assert len({x["top"][0]["probability"] for x in remote if x["valid"]}) == 4
    assert "2.png  invalid: not a JPEG, PNG or WebP image" in err


@both_protocols
def test_retries_and_refusals(protocol, signatures, images):
    contents = [path.read_bytes() for path in images]

    def predict(faults=(), model_name="tiny", retries=2, text="not now"):
        stub = Stub(signatures, faults, text)
        predict.batch_sizes = stub.batch_sizes
        with protocol(stub) as server:
            return client.make_client(server, model_name, 30.0, retries, 8)(contents)

    predictions = predict(["UNAVAILABLE", "UNAVAILABLE"])
    assert [each is not None for each in predictions] == [True, True, False, True, True]
    assert predict.batch_sizes == [5, 5, 5]
    with pytest.raises(RunError, match="3 attempts with a timeout of 30.0 s each.*not now"):
        predict(["UNAVAILABLE"] * 3)
    assert predict.batch_sizes == [5, 5, 5]
    with pytest.raises(InputError, match="refused.*not now"):
        predict(["INVALID_ARGUMENT"])
    assert predict.batch_sizes == [5]
    with pytest.raises(InputError, match="Servable not found for request: Latest.no."):
        predict(model_name="no")
    assert predict.batch_sizes == [5]
    with pytest.raises(InputError, match="x{400}") as error:
        predict(["INVALID_ARGUMENT"], text="x" * 5000)
    assert len(str(error.value)) < 600


def test_which_http_failures_are_retried(signatures, images):
    contents = [images[0].read_bytes()]
    for status in (429, 502, 503, 504, 0):  # 0 closes the connection
        stub = Stub(signatures, [status])
        with serve_rest(stub) as server:
            assert client.make_client(server, "tiny", 30.0, 1, 8)(contents) != [None]
        assert stub.batch_sizes == [1, 1]
    for status in (400, 403, 404, 413, 500):
        stub = Stub(signatures, [status])
        with serve_rest(stub) as server:
            with pytest.raises(InputError, match=f"HTTP {status}, .*not now"):
                client.make_client(server, "tiny", 30.0, 1, 8)(contents)
        assert stub.batch_sizes == [1]


@both_protocols
def test_a_server_that_does_not_answer_or_is_not_there(protocol, signatures):
    stub = Stub(signatures)
    stub.ready.clear()
    with protocol(stub) as server:
        with pytest.raises(RunError, match="2 attempts with a timeout of 0.2 s each"):
            client.make_client(server, "tiny", 0.2, 1, 8)([b"x"])
        assert not stub.ready.is_set() and 1 <= len(stub.batch_sizes) <= 2
    with pytest.raises(RunError, match="1 attempts"):  # nothing listens there now
        client.make_client(server, "tiny", 5.0, 0, 8)([b"x"])


@both_protocols
@pytest.mark.parametrize(
    "outputs",
    [
        {"classes": [["x"]], "valid": [True]},
        {"classes": [[1.0]], "scores": [[1.0]], "valid": [True]},
        {"classes": [["x", "y"]], "scores": [[1.0]], "valid": [True]},
        {"classes": ["x"], "scores": [1.0], "valid": [True]},
        {"classes": [["x"]], "scores": [["x"]], "valid": [True]},
        {"classes": [["x"]], "scores": [[1.0]], "valid": [1]},
        {"classes": [["x"]] * 2, "scores": [[1.0]] * 2, "valid": [True] * 2},
    ],
)
def test_outputs_of_another_model_are_refused(protocol, outputs):
    class Other(Stub):
        def answers(self, *_):
            return "OK", {k: tf.constant(v).numpy() for k, v in outputs.items()}

        def rest(self, *_):
            rows = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values())]  # noqa: B905
            return 200, json.dumps({"predictions": rows})

    with protocol(Other(None)) as server:
        with pytest.raises(InputError, match="classes, scores, valid.*model_name=tiny"):
            client.make_client(server, "tiny", 30.0, 0, 8)([b"x"])


@pytest.mark.parametrize(
    "content",
    ["", "<html>", "[]", "null", "3", '"x"', "{}", '{"predictions": null}', '{"predictions": 3}',
     '{"predictions": [3]}', '{"predictions": ["x"]}', '{"predictions": []}',
     '{"outputs": {"classes": [["x"]], "scores": [[1.0]], "valid": [true]}}'],
)  # fmt: skip
def test_unexpected_json_is_refused(content):
    stub = Stub(None)
    stub.rest = lambda *_: (200, content)
    with serve_rest(stub) as server:
        with pytest.raises(InputError, match="classes, scores, valid.*model_name=tiny"):
            client.make_client(server, "tiny", 30.0, 0, 8)([b"x"])


def test_an_incomplete_answer_is_reported(signatures):
    stub = Stub(signatures)
    stub.missing_bytes = 10
    with serve_rest(stub) as server:
        with pytest.raises(RunError, match="incomplete: .*10 more expected"):
            client.make_client(server, "tiny", 30.0, 0, 8)([b"x"])


@contextlib.contextmanager
def serve_bytes(*chunks, pause=0.0):
    """A server that answers every request with chunks of bytes, with a pause after each."""
    stop = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(2**16)
            with contextlib.suppress(OSError):  # the client may have given up
                for chunk in chunks:
                    self.request.sendall(chunk)
                    if pause and stop.wait(pause):
                        return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            stop.set()
            server.shutdown()
            thread.join()


def reply(body, *headers):
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX: ", reply(b"x" * 1000)[:-1000], b""])
def test_an_answer_that_takes_too_long_is_given_up(start):
    chunks = [bytes([byte]) for byte in start] + [b"x"] * 900
    with serve_bytes(*chunks, pause=0.05) as server:  # each read takes less than the timeout
        with pytest.raises(RunError, match="2 attempts with a timeout of 0.5 s each"):
            client.make_client(server, "tiny", 0.5, 1, 8)([b"x"])


def test_the_size_of_an_answer_is_bounded(monkeypatch):
    monkeypatch.setattr(client, "MAX_REPLY_BYTES", 10_000)
    endless = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"[" * 9000
    with serve_bytes(endless, b"[" * 2000) as server:
        with pytest.raises(RunError, match="at most 10,000 bytes"):
            client.make_client(server, "tiny", 30.0, 0, 8)([b"x"])
    bomb = gzip.compress(b" " * 5_000_000)
    assert len(bomb) < 10_000
    with serve_bytes(reply(bomb, "Content-Encoding: gzip")) as server:  # not asked for
        with pytest.raises(InputError, match="classes, scores, valid"):
            client.make_client(server, "tiny", 30.0, 0, 8)([b"x"])


PREDICTION = '{"predictions": [{"classes": ["x"], "scores": [%s], "valid": true}]}'


@pytest.mark.parametrize(
    "body",
    [b"[" * 50_000, b"[" * 900 + b"]" * 900, b"\xff\xfe", b"1" * 5000,
     *(PREDICTION.replace("%s", x).encode() for x in ("NaN", "Infinity", "-1", "9" * 400))],
)  # fmt: skip
def test_odd_json_is_refused(body):
    with serve_bytes(reply(body)) as server:
        with pytest.raises(InputError, match="classes, scores, valid.*model_name=tiny"):
            client.make_client(server, "tiny", 30.0, 0, 8)([b"x"])


@pytest.mark.parametrize(
    "head, error, message",
    [
        (b"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0", InputError,
         "HTTP 307"),
        (b"HTTP/1.1 204 No Content", InputError, "HTTP 204"),
        (b"HTTP/1.1 abc OK\r\nContent-Length: 0", RunError, "1 attempts"),
        (b"SSH-2.0-OpenSSH_9.6", RunError, "1 attempts"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz", RunError, "incomplete"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, RunError, "1 attempts"),
    ],
)  # fmt: skip
def test_odd_answers_are_reported(head, error, message):
    with serve_bytes(head + b"\r\n\r\n") as server:
        with pytest.raises(error, match=message):
            client.make_client(server, "tiny", 5.0, 0, 8)([b"x"])


def test_a_malformed_tensor_is_refused():
    class Other(Stub):
        def Predict(self, request, context):
            response = predict_pb2.PredictResponse(model_spec=request.model_spec)
            for name, value in (("classes", b"x"), ("scores", 1.0), ("valid", True)):
                response.outputs[name].CopyFrom(tf.make_tensor_proto([value]))
            self.damage(response.outputs["scores"])
            return response

    def large(tensor):
        tensor.tensor_shape.dim[0].size = 2**40

    def empty(tensor):
        tensor.ClearField("float_val")
        tensor.tensor_content = b"x"

    def no_dtype(tensor):
        tensor.dtype = 0

    for damage in (large, empty, no_dtype):
        stub = Other(None)
        stub.damage = damage
        with serve_grpc(stub) as server:
            with pytest.raises(InputError, match="classes, scores, valid.*malformed tensor"):
                client.make_client(server, "tiny", 30.0, 0, 8)([b"x"])


def test_errors_of_the_command(images):
    code, _, err = command("predict", images[0])
    assert code == 2 and "--workdir" in err and "--server" in err
    code, _, err = command("predict", "--server=localhost:1", "--workdir=x", images[0])
    assert code == 2 and "--workdir" in err and "--server" in err
    code, _, err = command("predict", "--server=http://127.0.0.1:9", "--retries=0", images[0])
    assert code == 1 and "1 attempts" in err and "Traceback" not in err
    for url in ("http://", "http://a:b"):
        code, _, err = command("predict", f"--server={url}", images[0])
        assert code == 2 and f"server={url}" in err
