"""A `tf.distribute.TPUStrategy` that executes on CPUs.

Of TensorFlow, and not changed: the strategy, its variables and their policies, its replica context,
how it reduces, gathers and broadcasts, and `tpu.split_compile_and_replicate`, which traces the
function of `run` into a cluster: the graph that a TPU worker would compile.

Emulated: the execution of that graph. Each cluster is traced into a graph of its own, copied once
per replica, and imported into the calling function, wherever `run` is called: in a function, a loop
or a branch. In the copy for replica r,

- TPUReplicatedInput is input r, and output r of TPUReplicatedOutput is the value in copy r.
- CrossReplicaSum is one AddN over the copies; AllToAll splits each copy and concatenates the parts.
- XlaOptimizationBarrier is IdentityN, in the functions that the cluster calls too.
- No operation starts before all inputs of the cluster are there, as a TPU program starts.

Not emulated: compilation, the chip and its numerics, its runtime and packed variables, transfer to
the devices, and several hosts. Cross-replica operations inside functions and loops of a cluster and
dynamic shapes are refused.
"""

import re
import sys
import unittest.mock

import numpy as np
import tensorflow as tf
from tensorflow.python.client import session
from tensorflow.python.eager import context
from tensorflow.python.framework import func_graph
from tensorflow.python.tpu import tpu, tpu_system_metadata

HOST = "/job:localhost/replica:0/task:0/device:"
DROPPED = ("TPUReplicateMetadata", "TPUCompilationResult")
CROSS_REPLICA = ("CrossReplicaSum", "AllToAll", "CollectivePermute")
REPLICATION = (*DROPPED, *CROSS_REPLICA, "TPUReplicatedInput", "TPUReplicatedOutput")
CONTROL_FLOW = ("If", "StatelessIf", "While", "StatelessWhile", "Case", "StatelessCase")
MARKS = re.compile("_(class|tpu_.*|xla_.*|Xla.*|pivot_for_cluster)$")

replicate = tpu.split_compile_and_replicate


class Resolver(tf.distribute.cluster_resolver.SimpleClusterResolver):
    """Claims a local TPU with a number of cores."""

    cores = 2
    tpu_hardware_feature = None

    def __init__(self, tpu=None):
        super().__init__(tf.train.ClusterSpec({}))

    def get_job_name(self):
        return "localhost"

    def get_tpu_system_metadata(self):
        names = [*(("TPU", i) for i in range(self.cores)), ("CPU", 0)]
        devices = [session._DeviceAttributes(f"{HOST}{kind}:{i}", kind, 0, 0) for kind, i in names]
        return tpu_system_metadata.TPUSystemMetadata(self.cores, 1, self.cores, None, devices)


class EmulatedTPUStrategy(tf.distribute.TPUStrategy):
    """A TPUStrategy whose `run` executes on one logical CPU for each core."""

    def __init__(self, resolver):
        super().__init__(resolver)
        self._enable_packed_variable_in_eager_mode = False
        devices = [f"{HOST}CPU:{i}" for i in range(resolver.cores)]
        extended = self.extended
        extended._tpu_devices = np.array(devices, dtype=object)[:, None]
        extended._device_input_worker_devices = {devices[0]: devices}
        extended._host_input_worker_devices = {devices[0]: devices[:1] * len(devices)}
        self.clusters = []
        tpu_run = extended.tpu_run

        def emulated(*arguments, **options):
            cluster = Cluster(devices, *arguments, **options)
            self.clusters.append(cluster)
            return cluster.call()

        def run(*arguments):
            with unittest.mock.patch.object(tpu, "split_compile_and_replicate", emulated):
                return tpu_run(*arguments)

        extended.tpu_run = run


class Cluster:
    """What one call of `run` traced."""

    def __init__(self, devices, *arguments, **options):
        self.devices, outputs = devices, []

        def trace():
            outputs.append(replicate(*arguments, **options)[1])

        self.graph = func_graph.func_graph_from_py_func("cluster", trace, (), {})
        self.outputs = outputs[0]
        self.graph_def = self.graph.as_graph_def()
        self._check()

    def _check(self):
        for function in self.graph_def.library.function:
            for node in function.node_def:
                if node.op in CROSS_REPLICA:
                    raise NotImplementedError(
                        "A cross-replica operation must not be in a loop, branch or function of "
                        f"the replica function. Received: {node.name} ({node.op}) in "
                        f"{function.signature.name}."
                    )
        constants = {n.name: n.attr["value"].tensor for n in self.graph_def.node if n.op == "Const"}
        for node in self.graph_def.node:
            if node.op == "XlaSetDynamicDimensionSize":
                raise NotImplementedError(
                    "Inputs of `run` must have static shapes. Received: a dynamic dimension of "
                    f"{node.input[0]}."
                )
            if node.op in CROSS_REPLICA:
                groups = constants[node.input[1].partition(":")[0]].tensor_shape.dim
                if node.op == "CollectivePermute" or groups[0].size != 1:
                    raise NotImplementedError(
                        "A cross-replica operation must be CrossReplicaSum or AllToAll over all "
                        f"replicas. Received: {node.op} over {groups[0].size} groups."
                    )

    def operations(self):
        """Returns the types of the operations, also of the functions that are called."""
        nodes = [n for n in self.graph_def.node if n.op != "Placeholder"]
        for function in self.graph_def.library.function:
            nodes += function.node_def
        return {node.op for node in nodes}

    def call(self):
        """Imports the copies into the graph that is being traced.

        Returns:
            The results of `split_compile_and_replicate`: an operation, and outputs by replica.
        """
        graph = tf.compat.v1.get_default_graph()
        copies = self.copies(self.devices)
        captures = {f"{inner.op.name}:0": outer for outer, inner in self.graph.captures}
        used = {name for node in copies.node for name in node.input}
        inputs = {name: graph.capture(captures[name]) for name in captures if name in used}
        pivots = [node.name for node in copies.node if node.name.endswith(f"/{self.pivot}")]
        leaves = tf.nest.flatten(self.outputs)
        names = [leaf.name for leaf in leaves if leaf is not None]
        imported = iter(tf.graph_util.import_graph_def(copies, inputs, pivots + names))
        data = [tensor.op for tensor in inputs.values() if tensor.dtype != tf.resource]
        for _ in pivots:
            next(imported)._add_control_inputs([*data, *graph._control_dependencies_for_inputs([])])
        found = [None if leaf is None else next(imported) for leaf in leaves]
        return [tf.no_op(), tf.nest.pack_sequence_as(self.outputs, found)]

    def xla_error(self):
        """Returns why XLA cannot lower the copy of replica 0, or None if it can.

        Cross-replica operations are the identity in it.
        """
        copies = self.copies(self.devices[:1], for_xla=True)
        used = {name for node in copies.node for name in node.input}
        captures = [(outer, f"{inner.op.name}:0") for outer, inner in self.graph.captures]
        data, variables = {}, {}
        for outer, name in [pair for pair in captures if pair[1] in used]:
            if outer.dtype == tf.resource:
                (part,) = outer._handle_data.shape_and_type
                variables[name] = tf.Variable(tf.zeros(tf.TensorShape(part.shape), part.dtype))
            else:
                data[name] = tf.TensorSpec(outer.shape, outer.dtype)
        names = [x.name for x in tf.nest.flatten(self.outputs[0]) if x is not None]

        @tf.function(jit_compile=True, autograph=False)
        def replica(*values):
            graph = tf.compat.v1.get_default_graph()
            inputs = dict(zip(data, values, strict=True))
            inputs |= {name: graph.capture(v.handle) for name, v in variables.items()}
            found = tf.graph_util.import_graph_def(copies, inputs, names)
            return [x for x in found if isinstance(x, tf.Tensor)]

        try:
            replica.experimental_get_compiler_ir(*data.values())(stage="hlo")
        except (tf.errors.OpError, TypeError, ValueError) as error:
            return str(error)

    def copies(self, devices, for_xla=False):
        """Returns a GraphDef with one copy of the cluster for each device."""
        nodes, replicas = self.graph_def.node, range(len(devices))
        given = {n.name: n.input for n in nodes if n.op == "TPUReplicatedInput"}
        returned = {n.name: n.input[0] for n in nodes if n.op == "TPUReplicatedOutput"}
        outside = {n.name for n in nodes if n.op in ("Placeholder", *DROPPED)} | {*given, *returned}
        self.pivot = next(n.name for n in nodes if "_pivot_for_cluster" in n.attr)
        cluster = {n.name for n in nodes if "_tpu_replicate" in n.attr} - outside | {self.pivot}
        sums = set()
        copies = tf.compat.v1.GraphDef(versions=self.graph_def.versions)
        copies.library.CopyFrom(self.graph_def.library)

        def remap(tensor, replica):
            name, _, index = tensor.removeprefix("^").partition(":")
            if tensor.startswith("^"):
                name = returned.get(name, name).partition(":")[0]
                if name not in cluster:
                    return [] if name in outside else [tensor]
                each = replicas if replica is None else [replica]
                return [f"^replica_{r}/{name}" for r in each]
            if name in given:
                return remap(given[name][replica], replica)
            if name in returned:
                return remap(returned[name], int(index or 0) % len(devices))
            return [f"replica_{replica}/{tensor}" if name in cluster else f"{name}:{index or 0}"]

        def add(name, op, inputs, device="", **attributes):
            controls = dict.fromkeys(i for i in inputs if i.startswith("^"))
            inputs = [*(i for i in inputs if not i.startswith("^")), *controls]
            node = copies.node.add(name=name, op=op, input=inputs, device=device)
            for key, value in attributes.items():
                if isinstance(value, int):
                    node.attr[key].i = value
                else:
                    node.attr[key].CopyFrom(value)
            return node

        def sum_of(node, attributes):
            name = f"{node.name}/sum"
            if name not in sums:
                terms = [i for r in replicas for i in remap(node.input[0], r)]
                add(name, "AddN", terms, devices[0], N=len(devices), **attributes)
                sums.add(name)
            return name

        def add_all_to_all(node):
            group, name, attr = len(devices), node.name, node.attr
            int32 = tf.compat.v1.AttrValue(type=tf.int32.as_datatype_enum)
            for key in ("split_dimension", "concat_dimension"):
                value = tf.compat.v1.AttrValue(tensor=tf.make_tensor_proto(attr[key].i, tf.int32))
                add(f"{name}/{key}", "Const", [], dtype=int32, value=value)
            for r in replicas:
                inputs = [f"{name}/split_dimension", *remap(node.input[0], r)]
                add(f"{name}/split_{r}", "Split", inputs, T=attr["T"], num_split=group)
            for r in replicas:
                inputs = [*(f"{name}/split_{q}:{r}" for q in replicas), f"{name}/concat_dimension"]
                options = {"T": attr["T"], "Tidx": int32, "N": group}
                add(f"replica_{r}/{name}", "ConcatV2", inputs, devices[r], **options)

        for node in nodes:
            if node.name in outside:
                continue
            if node.op == "AllToAll" and not for_xla:
                add_all_to_all(node)
                continue
            attributes = {key: value for key, value in node.attr.items() if not MARKS.match(key)}
            if node.name not in cluster:
                inputs = [i for each in node.input for i in remap(each, 0)]
                inputs += [i for each in node.input if each[0] == "^" for i in remap(each, None)]
                add(node.name, node.op, inputs, **attributes)
                continue
            for r in replicas:
                op, name = node.op, f"replica_{r}/{node.name}"
                inputs = [i for each in node.input for i in remap(each, r)]
                if node.op in ("CrossReplicaSum", "AllToAll"):
                    op, attributes = "Identity", {"T": node.attr["T"]}
                    inputs = remap(node.input[0], r)
                    if node.op == "CrossReplicaSum":
                        inputs = [sum_of(node, attributes)]
                elif node.op == "XlaOptimizationBarrier" and not for_xla:
                    op = "IdentityN"
                elif node.name != self.pivot and not any(i.startswith("replica_") for i in inputs):
                    inputs.append(f"^replica_{r}/{self.pivot}")
                add(name, op, inputs, devices[r], **attributes)
        _adapt_functions(copies, for_xla)
        return copies


def _adapt_functions(graph_def, for_xla):
    """Renames the functions, and replaces what only XLA executes."""
    suffix = "_xla" if for_xla else "_cpu"
    names = {f.signature.name for f in graph_def.library.function}
    nodes = list(graph_def.node)
    for function in graph_def.library.function:
        function.signature.name += suffix
        for key in [key for key in function.attr if MARKS.match(key)]:
            del function.attr[key]
        for node in function.node_def:
            node.device = ""
            for key in [key for key in node.attr if MARKS.match(key)]:
                del node.attr[key]
            if node.op == "XlaOptimizationBarrier" and not for_xla:
                node.op = "IdentityN"
        nodes += function.node_def
    for node in nodes:
        if node.op in names:
            node.op += suffix
        if node.op in CONTROL_FLOW and not for_xla:
            # Otherwise each blocks a thread; with many cores, all threads.
            node.attr["_lower_using_switch_merge"].b = True
        for value in node.attr.values():
            for called in (value.func, *value.list.func) if value.WhichOneof("value") else ():
                if called.name in names:
                    called.name += suffix
    for function in graph_def.library.function:  # a function knows only those that it calls itself
        if not context.context().has_function(function.signature.name):
            context.context().add_function_def(function)


def emulated_tpu_strategy(cores):
    """Returns an `EmulatedTPUStrategy`. Call it before any TensorFlow operation.

    Args:
        cores: Number of cores, each of them a replica.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * cores
    tf.config.set_logical_device_configuration(cpu, devices)
    # With fewer threads than devices, the iterator of a distributed dataset can block.
    tf.config.threading.set_inter_op_parallelism_threads(4 * cores)
    tf.config.list_logical_devices()
    # Grappler does not rewrite clusters; here it would rewrite the copies in different ways.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    Resolver.cores = cores
    return EmulatedTPUStrategy(Resolver())


def install(cores):
    """Makes TensorFlow find an emulated TPU, under any name."""
    Resolver.cores = cores
    tf.config.experimental_connect_to_cluster = lambda resolver: emulated_tpu_strategy(cores)
    tf.distribute.cluster_resolver.TPUClusterResolver = Resolver
    tf.distribute.TPUStrategy = EmulatedTPUStrategy
    tf.tpu.experimental.initialize_tpu_system = lambda resolver: None


if __name__ == "__main__":
    # python tests/helpers/emulated_tpu.py CORES COMMAND ...: the command with an emulated TPU.
    install(int(sys.argv[1]))
    from vitkeras.cli.main import main

    sys.exit(main(sys.argv[2:]))
