"""Configuration files of TF Serving, next to the versions: text protos with default values."""

import json
from pathlib import Path

from vitkeras.io.atomic import write_file

#: Allowed batch sizes of the server, and batch sizes of the warm-up requests.
BATCH_SIZES = (1, 8, 32)


def write_server_files(base: Path, model_name: str) -> None:
    """Writes the files that do not exist yet: edited files are kept.

    Args:
        base: Folder of the versions.
        model_name: Name of the model, and of its folder in /models of the container.
    """
    for name, content in format_server_files(model_name).items():
        if not (base / name).exists():
            write_file(base / name, content.encode())


def format_server_files(model_name: str) -> dict[str, str]:
    """Returns the text of each file, by file name."""
    allowed = "".join(f"allowed_batch_sizes: {size}\n" for size in BATCH_SIZES)
    return {
        "models.config": f"""\
model_config_list {{
  config {{
    name: {json.dumps(model_name)}
    base_path: {json.dumps(f"/models/{model_name}")}
    model_platform: "tensorflow"
  }}
}}
""",
        "batching_parameters.txt": f"""\
# A longer timeout gives larger batches: more images/s, higher latency. Measure with your load.
max_batch_size {{ value: {BATCH_SIZES[-1]} }}
batch_timeout_micros {{ value: 2000 }}
max_enqueued_batches {{ value: 64 }}
# Batches in parallel. Each holds at most 200 million decoded pixels: 600 MB, or twice that for
# progressive JPEGs.
num_batch_threads {{ value: 2 }}
# The last one must be max_batch_size. The warm-up requests have these sizes.
{allowed}""",
        "monitoring.config": """\
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
""",
    }
