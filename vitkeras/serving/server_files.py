"""What TF Serving reads beside the versions: text protos, with values to begin with."""

import json

from vitkeras.storage import write_file

#: Of batches that the server makes of several requests, and of the warm-up requests.
BATCH_SIZES = (1, 8, 32)


def write_server_files(base, name):
    """Writes those that are not there yet: what somebody changed stays.

    Args:
        base: Folder of the versions.
        name: Of the model, and of the folder below /models, where the container has it.
    """
    for file, content in server_files(name).items():
        if not (base / file).exists():
            write_file(base / file, content.encode())


def server_files(name):
    """Returns the content of each file by its name."""
    allowed = "".join(f"allowed_batch_sizes: {size}\n" for size in BATCH_SIZES)
    return {
        "models.config": f"""\
model_config_list {{
  config {{
    name: {json.dumps(name)}
    base_path: {json.dumps(f"/models/{name}")}
    model_platform: "tensorflow"
  }}
}}
""",
        "batching_parameters.txt": f"""\
# How many requests wait for each other is a trade of latency for images/s: measure your own.
max_batch_size {{ value: {BATCH_SIZES[-1]} }}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 64 }}
# Batches at the same moment. Each holds 200 million decoded pixels at the very most: 600 MB, or
# twice that where they come from progressive JPEGs.
num_batch_threads {{ value: 2 }}
# The last one equals max_batch_size; the warm-up requests have these sizes.
{allowed}""",
        "monitoring.config": """\
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
""",
    }
