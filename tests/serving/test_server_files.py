"""The configuration files and warm-up requests, parsed with the messages of TF Serving.

Two tests need tensorflow-serving-api, installed with --no-deps.
"""

import re

import pytest
import tensorflow as tf
from helpers.processes import ROOT

from vitkeras.serving.server_files import BATCH_SIZES, format_server_files
from vitkeras.serving.warmup import WARMUP_FILE

REASON = "pip install --no-deps tensorflow-serving-api, as .ci/run does"


def test_the_readme_of_saved_models_names_the_files():
    text = (ROOT / "saved_models/README.md").read_text()
    for name, content in format_server_files("digits").items():
        assert f"/models/digits/{name}" in text
        assert (ROOT / "saved_models/digits" / name).read_text() == content


def test_files_have_the_fields_of_the_server(exported):
    messages = pytest.importorskip(
        "tensorflow_serving.config.model_server_config_pb2", reason=REASON
    )
    from google.protobuf import text_format

    def parse(text):
        config = text_format.Parse(text, messages.ModelServerConfig())
        (model,) = config.model_config_list.config
        return model

    model = parse((exported.parent / "models.config").read_text())
    assert (model.name, model.base_path) == ("tiny", "/models/tiny")
    assert parse(format_server_files('quo"te')["models.config"]).name == 'quo"te'
    # tensorflow-serving-api has no messages for these files: only names and values are compared.
    batching = (exported.parent / "batching_parameters.txt").read_text()
    allowed = [int(size) for size in re.findall(r"^allowed_batch_sizes: (\d+)$", batching, re.M)]
    assert allowed == sorted(set(allowed)) == list(BATCH_SIZES)
    assert re.search(rf"^max_batch_size {{ value: {allowed[-1]} }}$", batching, re.M)
    assert "prometheus_config {" in (exported.parent / "monitoring.config").read_text()


def test_warmup_requests_run_every_signature(exported, signatures):
    messages = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2", reason=REASON)
    records = list(tf.data.TFRecordDataset(str(exported / WARMUP_FILE)).as_numpy_iterator())
    assert 0 < len(records) <= 1000
    sizes = []
    for record in records:
        log = messages.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.name == "tiny"
        inputs = {key: tf.constant(tf.make_ndarray(x)) for key, x in request.inputs.items()}
        outputs = signatures[request.model_spec.signature_name](**inputs)
        assert outputs["valid"].numpy().all()
        sizes.append((request.model_spec.signature_name, len(outputs["valid"])))
        log.DiscardUnknownFields()
        assert log.SerializeToString(deterministic=True) == record
    assert {size for name, size in sizes if name == "serving_default"} == set(BATCH_SIZES)
    assert {name for name, _ in sizes} == set(signatures) - {"xla"}
