"""Compiles a StableHLO module for a TPU, on a machine that has none, in a process of its own.

    python -m experiments.tpu_compiler MODULE.mlir TOPOLOGY OUTPUT

It prints a line of JSON with what the compiler says of memory and cost, and writes the compiled
module's text to OUTPUT. libtpu does the work (extra `aot`); only one process at a time can hold it.
"""

import json
import os
import re
import sys
from pathlib import Path

#: libtpu asks for the machine it would run on; any that exists will do for compiling.
MACHINE = {
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",  # else it waits minutes for a metadata server
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def main(module, topology, output):
    """Compiles."""
    os.environ.update(MACHINE)
    import numpy as np
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies

    # TensorFlow's copies, which this compiler does not know; a reshape does nothing either.
    text = re.sub(
        r'"?mhlo\.copy"?\(?\s*(%\w+)\)?\s*:\s*\(?(tensor<[^>]*>)\)?(\s*->\s*tensor<[^>]*>)?',
        r"stablehlo.reshape \1 : (\2) -> \2",
        Path(module).read_text(),
    )
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
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
