"""The non-public API of Keras and TensorFlow that this package uses.

`trainers/tensorflow.py` overrides and calls the names of the model and of the epoch iterator; all
access to non-public attributes of the optimizer and the losses is here. A test checks every name
of `NAMES` against the installed Keras, which is why setup.cfg has an upper bound on Keras.
"""

import contextlib
import sys
import threading
import warnings

from vitkeras.errors import InputError

_thread = threading.local()

#: By owner: a compiled model, its optimizer, the epoch iterator of `fit`, and
#: `keras.src.losses.loss`.
NAMES = {
    "model": (
        "_compute_loss",
        "_loss_tracker",
        "_maybe_symbolic_build",
        "_symbolic_build",
        "distribute_strategy",
        "make_predict_function",
        "make_test_function",
        "make_train_function",
        "predict_function",
        "test_function",
        "train_function",
    ),
    "optimizer": (
        "_all_reduce_sum_gradients",
        "_apply_weight_decay",
        "_distribution_strategy",
        "_get_variable_index",
        "_model_variables_moving_average",
        "_use_weight_decay",
    ),
    "iterator": ("_distributed_dataset", "data_adapter"),
    "losses": ("reduce_values",),
}


@contextlib.contextmanager
def without_allocation():
    """Builds models without values: their weights have shapes only, and can never be read."""
    import keras
    from keras.src.backend.common import global_state

    name = "uninitialized_variables"
    before = list(global_state.get_global_attribute(name) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # The next scope would allocate them.
        global_state.set_global_attribute(name, before)


def inner_optimizer(optimizer):
    """Returns the optimizer that a `LossScaleOptimizer` wraps, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def uses_weight_decay(optimizer, variable):
    """Returns whether the optimizer applies weight decay to a variable."""
    return inner_optimizer(optimizer)._use_weight_decay(variable)


def variable_index(optimizer, variable):
    """Returns the index of a variable among those that the optimizer was built with."""
    return optimizer._get_variable_index(variable)


class DecayInUpdateStep:
    """Mixin for optimizers whose `update_step` applies weight decay with a rate per variable."""

    def _apply_weight_decay(self, variables):
        """Disables Keras's weight decay, which uses one rate for all variables."""


def moving_averages(optimizer):
    """Returns the moving averages of the trainable variables of an optimizer with EMA."""
    return inner_optimizer(optimizer)._model_variables_moving_average


@contextlib.contextmanager
def skip_gradient_all_reduce(optimizer):
    """Disables the optimizer's gradient all-reduce; gradients are already reduced.

    The optimizer clips before its all-reduce, so that it then clips the reduced gradient.
    """
    if optimizer is None or optimizer._distribution_strategy.num_replicas_in_sync == 1:
        yield
        return
    optimizer._all_reduce_sum_gradients = list
    try:
        yield
    finally:
        del optimizer._all_reduce_sum_gradients


def check_reduction(name, reduction):
    """Checks the reduction of a loss that is computed for parts of a batch.

    Raises:
        InputError: If the loss of the batch is not the mean of those of its examples.
    """
    if reduction not in ("sum_over_batch_size", "mean"):
        raise InputError(
            "`reduction` of a loss must be sum_over_batch_size on several replicas or with "
            f"`accumulation_steps`. Received: {name} with reduction={reduction!r}."
        )


@contextlib.contextmanager
def check_loss_values():
    """Checks losses that are computed in it, and makes the loss of no examples 0.

    Raises:
        InputError: If a loss function returns a scalar, or its reduction is not a mean.
    """
    from keras import ops
    from keras.src.losses import loss as losses

    original = losses.reduce_values
    if not hasattr(original, "checked"):

        def reduce_values(values, sample_weight=None, reduction="sum_over_batch_size"):
            if not getattr(_thread, "check_loss_values", False):
                return original(values, sample_weight, reduction)
            check_reduction("a loss", reduction)
            if len(values.shape) == 0:
                raise InputError(
                    "A loss function must return one value per example on several replicas or with "
                    "`accumulation_steps`. Received: a scalar. Do not reduce over the first axis."
                )
            if values.shape[0] == 0:
                return ops.sum(values)
            return original(values, sample_weight, reduction)

        reduce_values.checked = True
        losses.reduce_values = reduce_values
    _thread.check_loss_values = True
    try:
        yield
    finally:
        _thread.check_loss_values = False


@contextlib.contextmanager
def exact_step():
    """Marks a step of `ReplicaConsistentModel`, see `in_exact_step`."""
    _thread.in_exact_step = True
    try:
        yield
    finally:
        _thread.in_exact_step = False


def in_exact_step():
    """Returns whether a step of `ReplicaConsistentModel` calls the layer."""
    return getattr(_thread, "in_exact_step", False)


def warn_of_inexact_training(training):
    """Warns if Keras's own train step calls a layer on one of several replicas."""
    import keras

    if not training or in_exact_step() or keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas == 1 or tf.distribute.in_cross_replica_context():
        return
    frame = sys._getframe()
    while frame := frame.f_back:  # the thread of a replica starts with the train step
        if frame.f_code.co_name == "train_step":
            model = frame.f_locals.get("self")
            if isinstance(model, keras.Model):
                warnings.warn(
                    f"{type(model).__name__} {model.name!r} contains layers of vitkeras and trains "
                    f"as Keras does: results depend on the number of replicas, here {replicas}. "
                    "Use vitkeras.Model(inputs, outputs) instead of keras.Model(inputs, outputs).",
                    stacklevel=2,
                )
            return


def tf_data_debug_mode():
    """Returns whether `tf.data.experimental.enable_debug_mode` was called."""
    from tensorflow.python.data.ops import debug_mode

    return debug_mode.DEBUG_MODE


def limit_connection_time(cluster, seconds):
    """Limits the time that `MultiWorkerMirroredStrategy` waits for the hosts of a `ClusterSpec`."""
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.distribute import multi_worker_util
    from tensorflow.python.eager import context

    context.context().configure_coordination_service(
        "standalone",
        multi_worker_util.coordination_leader(cluster),
        cluster_register_timeout_in_ms=int(1000 * seconds),
        coordinated_jobs=[  # as the strategy does
            coordination_config_pb2.CoordinatedJob(name=job, num_tasks=cluster.num_tasks(job))
            for job in ("chief", "worker")
            if job in cluster.jobs
        ],
    )
    context.context().coordination_service.cluster_register_with_barrier = True


def xla_optimization_barrier(tensors):
    """Returns the same tensors; XLA moves no operation across."""
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    return gen_xla_ops.xla_optimization_barrier(tensors)


def all_operations(graph):
    """Returns the operations of a graph and of the functions, branches and loops in it."""
    found = list(graph.get_operations())
    for function in graph._functions.values():
        found += all_operations(function.graph)
    return found


def in_xla_context():
    """Returns whether XLA will compile the function that is being traced."""
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util

    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)
