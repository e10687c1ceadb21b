"""Compiles a StableHLO module for a TPU, in a process of its own, on a machine without a TPU.

    python -m vitkeras.preflight.tpu_compiler MODULE.mlir TOPOLOGY OUTPUT

Prints memory and cost statistics of the compiler as one line of JSON and writes the text of the
compiled module to OUTPUT. Uses libtpu through jax (extra `aot`); imports neither TensorFlow nor
Keras.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

#: libtpu needs a description of the machine that it would run on; any valid one is enough.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",  # otherwise libtpu waits minutes for a metadata server
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is opened, so no lock is needed
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def to_tpu_form(stablehlo: str) -> str:
    """Returns StableHLO that TensorFlow lowered for a CPU as it lowers it for a TPU."""
    # libtpu does not know mhlo.copy; a reshape to the same shape is a no-op too.
    stablehlo = re.sub(
        r'"?mhlo\.copy"?\(?\s*(%\w+)\)?\s*:\s*\(?(tensor<[^>]*>)\)?(\s*->\s*tensor<[^>]*>)?',
        r"stablehlo.reshape \1 : (\2) -> \2",
        stablehlo,
    )
    # Random bits: tensorflow-tpu 2.19.1 uses the generator of the chip, which has a state of two
    # numbers. Philox is expanded into operations that move several times as much
    # (tests/preflight/test_tpu_compilation.py).
    return re.sub(
        r"(%\w+), (%\w+) = stablehlo\.rng_bit_generator (%\w+), algorithm =\s+PHILOX : "
        r"\(tensor<3xui64>\) -> \(tensor<3xui64>, (tensor<\w+>)\)",
        r"\2_two = stablehlo.slice \3 [0:2] : (tensor<3xui64>) -> tensor<2xui64>\n"
        r"\2_third = stablehlo.slice \3 [2:3] : (tensor<3xui64>) -> tensor<1xui64>\n"
        r"\2_next, \2 = stablehlo.rng_bit_generator \2_two, algorithm = DEFAULT : "
        r"(tensor<2xui64>) -> (tensor<2xui64>, \4)\n"
        r"\1 = stablehlo.concatenate \2_next, \2_third, dim = 0 : "
        r"(tensor<2xui64>, tensor<1xui64>) -> tensor<3xui64>",
        stablehlo,
    )


def main(module: str, topology: str, output: str) -> None:
    """Compiles `module` for one device of `topology`."""
    os.environ.update(ENVIRONMENT)
    import numpy as np
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies

    text = to_tpu_form(Path(module).read_text())
    # A host has four chips by default, which does not fit a slice of one chip.
    host = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology, **host)
    device: Any = chips.devices[0]
    options = xla_client.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id]]))
    with mlir.make_ir_context():
        parsed = ir.Module.parse(text)
        compiled = device.client.compile(parsed, xla_client.DeviceList((device,)), options)
    Path(output).write_text("\n".join(m.to_string() for m in compiled.hlo_modules()))
    memory, cost = compiled.get_compiled_memory_stats(), compiled.cost_analysis()
    print(json.dumps({
        "device": device.device_kind,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "flops": cost["flops"],
        "accessed_bytes": cost["bytes accessed"],
    }))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
