"""Compiles a StableHLO module for a TPU, on a machine that has none, in a process of its own.

    python -m experiments.tpu_compiler MODULE.mlir TOPOLOGY OUTPUT

It prints a line of JSON with what the compiler says of memory and cost, and writes the compiled
module's text to OUTPUT. libtpu does the work (extra `aot`).
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
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run, so nothing is held
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def as_for_a_tpu(text):
    """Returns StableHLO as TensorFlow hands it out for a TPU, from that for a CPU."""
    # Copies, which this compiler does not know; a reshape does nothing either.
    text = re.sub(
        r'"?mhlo\.copy"?\(?\s*(%\w+)\)?\s*:\s*\(?(tensor<[^>]*>)\)?(\s*->\s*tensor<[^>]*>)?',
        r"stablehlo.reshape \1 : (\2) -> \2",
        text,
    )
    # Random bits: the chip's own generator, of a state of two numbers, as tensorflow-tpu 2.19.1 has
    # it. Philox, written out in operations, moves several times as much (tests/test_tpu.py).
    return re.sub(
        r"(%\w+), (%\w+) = stablehlo\.rng_bit_generator (%\w+), algorithm =\s+PHILOX : "
        r"\(tensor<3xui64>\) -> \(tensor<3xui64>, (tensor<\w+>)\)",
        r"\2_two = stablehlo.slice \3 [0:2] : (tensor<3xui64>) -> tensor<2xui64>\n"
        r"\2_third = stablehlo.slice \3 [2:3] : (tensor<3xui64>) -> tensor<1xui64>\n"
        r"\2_next, \2 = stablehlo.rng_bit_generator \2_two, algorithm = DEFAULT : "
        r"(tensor<2xui64>) -> (tensor<2xui64>, \4)\n"
        r"\1 = stablehlo.concatenate \2_next, \2_third, dim = 0 : "
        r"(tensor<2xui64>, tensor<1xui64>) -> tensor<3xui64>",
        text,
    )


def main(module, topology, output):
    """Compiles."""
    os.environ.update(MACHINE)
    import numpy as np
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies

    text = as_for_a_tpu(Path(module).read_text())
    # A host has four chips, unless there is only one.
    host = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology, **host)
    device = chips.devices[0]
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
