"""From a word in the config to a tf.distribute strategy."""

import json
import os
import zlib

import tensorflow as tf

from vitkeras.errors import InputError, nearest

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")


def make_strategy(name="auto"):
    """Returns the strategy that a name stands for. Call it before any TensorFlow op.

    Args:
        name: "one_device" (the first GPU, else the CPU); "mirrored" (all GPUs of this machine, else
            all logical CPUs); "multi_worker" (the hosts in TF_CONFIG); "tpu" (the TPU that
            TPU_NAME names, else the local one); "tpu:NAME"; "auto": multi_worker where TF_CONFIG
            is set, tpu where TPU_NAME is set or a TPU is attached, mirrored with two GPUs or more,
            else one_device.
    Raises:
        InputError: If the name is unknown, or asks for what this machine has not.
    """
    name, colon, tpu = name.partition(":")
    if name not in STRATEGIES or (colon and (name != "tpu" or not tpu)):
        raise InputError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}, or tpu:NAME. "
            f"Received: strategy={name + colon + tpu!r}."
            f"{nearest(name, STRATEGIES)}"
        )
    if name == "auto":
        name = _found()
    if name == "multi_worker":
        if not os.environ.get("TF_CONFIG"):
            raise InputError(
                "`strategy=multi_worker` reads the hosts from TF_CONFIG. Received: no TF_CONFIG in "
                "the environment."
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _tpu(tpu or os.environ.get("TPU_NAME") or "local")
    gpus = tf.config.list_logical_devices("GPU")
    devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.OneDeviceStrategy(devices[0])


def _found():
    if os.environ.get("TF_CONFIG"):
        return "multi_worker"
    if os.environ.get("TPU_NAME") or tf.config.list_physical_devices("TPU"):
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"


def _tpu(name):
    """Connects to a TPU as TPU VMs want it."""
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    # A name is looked up over the network (OSError).
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"`strategy=tpu` needs a TPU. Received: the name {name!r}, and no such TPU is found "
            f"({str(error).splitlines()[0][:200]})."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def is_multi_worker(strategy):
    """Whether several hosts, each with a process of its own, train together."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy):
    """Whether this host is the one that writes files and prints."""
    if not is_multi_worker(strategy):
        return True
    resolver = strategy.cluster_resolver
    chief_is_worker_0 = "chief" not in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (chief_is_worker_0 and resolver.task_id == 0)


def mean_over_hosts(strategy, values):
    """Returns the means over all replicas of a short list of numbers that each host gives.

    Every host must call this, at the same place in its program.
    """
    if not is_multi_worker(strategy):
        return list(values)
    own = tf.constant(values, tf.float64)
    parts = strategy.experimental_distribute_values_from_function(lambda _: own)
    return strategy.reduce(tf.distribute.ReduceOp.MEAN, parts, axis=None).numpy().tolist()


def check_same_on_hosts(strategy, record):
    """Checks that every host was given the same; every host must call this.

    Args:
        strategy: Of the run.
        record: Anything JSON can hold: config, class names and whatever else decides numbers.
    Raises:
        InputError: On every host, if one differs.
    """
    number = float(zlib.crc32(json.dumps(record, sort_keys=True).encode()))
    if mean_over_hosts(strategy, [number]) != [number]:
        raise InputError(
            "Every host must be given the same config and the same data. "
            "Received: values that differ between hosts. Run the same command on all of them."
        )


def distribute(strategy, make_batches, batch_size):
    """Returns global batches of which each host makes only its own part.

    Args:
        strategy: Of the run.
        make_batches: Function of (host, hosts) that returns a tf.data.Dataset of that host's part.
        batch_size: Global batch.
    Returns:
        On one host its tf.data.Dataset, else a tf.distribute.DistributedDataset; `fit` takes both.
    """
    if not is_multi_worker(strategy) and getattr(strategy.extended, "num_hosts", 1) == 1:
        return make_batches(0, 1)
    per_replica = batch_size // strategy.num_replicas_in_sync
    return strategy.distribute_datasets_from_function(
        lambda context: make_batches(
            context.input_pipeline_id, context.num_input_pipelines
        ).rebatch(per_replica, drop_remainder=True)
    )


def check_global_batch(batch_size, replicas, accumulation_steps=1):
    """Returns the batch of each replica.

    Raises:
        InputError: If `batch_size` is not a positive multiple of replicas times pieces.
    """
    unit = replicas * accumulation_steps
    if batch_size < 1 or unit < 1 or batch_size % unit:
        down = max(batch_size // max(unit, 1), 1) * unit
        up = max(-(-batch_size // max(unit, 1)), 1) * unit
        raise InputError(
            "`batch_size` is the global batch and must be divisible by the number of replicas "
            "times `accumulation_steps`. "
            f"Received: batch_size={batch_size}, {replicas} replicas, "
            f"accumulation_steps={accumulation_steps}. Nearest: {down}, {up}."
        )
    return batch_size // replicas
