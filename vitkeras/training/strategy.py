"""Distribution strategies by name, and what hosts exchange."""

import concurrent.futures
import contextlib
import json
import os
import platform
import re
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from vitkeras.arguments import did_you_mean
from vitkeras.errors import InputError, RunError
from vitkeras.io.run_directory import installed_versions
from vitkeras.keras_internals import limit_connection_time

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker", "tpu")
#: Environment variable with the seconds that a host waits for the others, and its default.
CONNECT_VARIABLE, CONNECT_SECONDS = "VITKERAS_CONNECT_SECONDS", 600
#: Seconds between messages of a host that waits.
MESSAGE_SECONDS = 10


def check_strategy_name(name: str) -> None:
    """Checks the name of a strategy, not whether its devices exist.

    Raises:
        InputError: If it is not one of `STRATEGIES` or tpu:NAME.
    """
    kind, colon, tpu = name.partition(":")
    if kind not in STRATEGIES or (colon and (kind != "tpu" or not tpu)):
        raise InputError(
            f"`strategy` must be one of {', '.join(STRATEGIES)}, or tpu:NAME. "
            f"Received: strategy={name!r}.{did_you_mean(kind, STRATEGIES)}"
        )


def make_strategy(name: str = "auto") -> tf.distribute.Strategy:
    """Returns the strategy with a name. Call it before any TensorFlow op.

    Args:
        name: "one_device" (the first GPU, else the CPU); "mirrored" (all GPUs of this machine, else
            all logical CPUs); "multi_worker" (the hosts in TF_CONFIG); "tpu" (the TPU that
            TPU_NAME names, else the local one); "tpu:NAME"; "auto": multi_worker if TF_CONFIG is
            set, tpu if TPU_NAME is set or a TPU is attached, mirrored with two or more GPUs, else
            one_device.
    Raises:
        InputError: If the name is unknown, or this machine lacks what the strategy needs.
        RunError: If the hosts in TF_CONFIG cannot be connected, or not all of them start within the
            seconds in VITKERAS_CONNECT_SECONDS, by default 600.
    """
    check_strategy_name(name)
    name, _, tpu = name.partition(":")
    if name == "auto":
        name = _detect_strategy()
    if name == "multi_worker":
        if not os.environ.get("TF_CONFIG"):
            raise InputError(
                "`strategy=multi_worker` reads the hosts from TF_CONFIG. Received: no TF_CONFIG in "
                "the environment."
            )
        seconds = _connect_seconds()
        try:
            cluster, own, others = _hosts(json.loads(os.environ["TF_CONFIG"]))
            return _connect_hosts(cluster, own, others, seconds)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                "TF_CONFIG must be JSON with the hosts and the task of this host. "
                f"Received: TF_CONFIG={os.environ['TF_CONFIG'][:200]} ({error})."
            ) from error
        except (OSError, tf.errors.OpError) as error:
            reason = " ".join(str(getattr(error, "message", error)).split())[:200]
            raise RunError(
                f"The hosts in TF_CONFIG cannot be connected ({reason}). Start the "
                "same command on all of them; each needs its port to be free."
            ) from error
    if name == "tpu":
        return _make_tpu_strategy(tpu or os.environ.get("TPU_NAME") or "local")
    gpus = tf.config.list_logical_devices("GPU")
    devices = [device.name for device in gpus or tf.config.list_logical_devices("CPU")]
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(devices)
    return tf.distribute.OneDeviceStrategy(devices[0])


def _hosts(tf_config):
    """Returns the cluster, the address of this host and those of the hosts that it waits for.

    Checks what TensorFlow does not: it would train on one host, or use a port of its choice.
    """
    task = tf_config["task"]
    if task["type"] not in ("chief", "worker"):
        raise ValueError("the type of the task is neither chief nor worker")
    cluster = tf.train.ClusterSpec(tf_config["cluster"])
    addresses = {
        (job, index): cluster.task_address(job, index)
        for job in ("chief", "worker")
        for index in (cluster.task_indices(job) if job in cluster.jobs else ())
    }
    for address in addresses.values():
        if not re.fullmatch(r".+:\d+", address):
            raise ValueError(f"{address} is not HOST:PORT")
    own = addresses.pop((task["type"], task["index"]))
    return cluster, own, list(addresses.values())


def _connect_seconds():
    """Returns the value of `CONNECT_VARIABLE`."""
    text = os.environ.get(CONNECT_VARIABLE) or str(CONNECT_SECONDS)
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise InputError(
        f"{CONNECT_VARIABLE} must be a positive number. Received: {CONNECT_VARIABLE}={text}."
    )


def _connect_hosts(cluster, own, others, seconds):
    """Returns the strategy of a cluster."""
    if others:
        _wait_for_hosts(own, others, seconds)
        limit_connection_time(cluster, seconds)  # for a host that is lost meanwhile
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    if threading.current_thread() is threading.main_thread():
        # TensorFlow's coordination service replaces the handler by one that ignores SIGTERM.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    return strategy


def _wait_for_hosts(own, others, seconds):
    """Waits until every other host listens on its port, and logs which hosts do not.

    TensorFlow waits while it holds the global interpreter lock: neither a message nor Ctrl-C would
    be possible. Meanwhile this host listens on its own port, as TensorFlow will do, so that hosts
    that wait here find each other.
    """
    silent, start = others, time.monotonic()
    last_message = start - MESSAGE_SECONDS
    with (
        socket.create_server(("", int(own.rpartition(":")[2])), backlog=1024),
        concurrent.futures.ThreadPoolExecutor(32) as threads,
    ):
        while True:
            listening = threads.map(_listens, silent)
            silent = [each for each, found in zip(silent, listening, strict=True) if not found]
            if not silent:
                return
            names = ", ".join(silent[:8]) + (", ..." if len(silent) > 8 else "")
            now = time.monotonic()
            if now - start >= seconds:
                raise RunError(
                    f"All hosts in TF_CONFIG must start within {seconds:g} seconds. "
                    f"Received: no answer from {names}. Start the same command on all of them; "
                    f"{CONNECT_VARIABLE} sets the number of seconds."
                )
            if now - last_message >= MESSAGE_SECONDS:
                last_message = now
                logging.info(
                    "Waiting for the hosts %s in TF_CONFIG, %.0f of %g seconds.",
                    names, now - start, seconds,
                )  # fmt: skip
            time.sleep(min(1, seconds))


def _listens(address):
    """Returns whether a host listens on its port."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError, ValueError, OverflowError):
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        return True
    return False


def _detect_strategy():
    if os.environ.get("TF_CONFIG"):
        return "multi_worker"
    if os.environ.get("TPU_NAME") or tf.config.list_physical_devices("TPU"):
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "one_device"


def _make_tpu_strategy(name):
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    # OSError: names are looked up over the network.
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"`strategy=tpu` needs a TPU. Received: the name {name!r}, and no such TPU is found "
            f"({str(error).splitlines()[0][:200]})."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def is_multi_worker(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether several hosts, each with its own process, train together."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this host is the one that writes files and logs."""
    if not is_multi_worker(strategy):
        return True
    resolver = strategy.cluster_resolver
    chief_is_worker_0 = "chief" not in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (chief_is_worker_0 and resolver.task_id == 0)


def mean_over_hosts(strategy: tf.distribute.Strategy, values: Sequence[float]) -> list[float]:
    """Returns the means over all replicas of a few numbers that each host passes.

    A collective operation: every host must call it in the same order.
    """
    if not is_multi_worker(strategy):
        return list(values)
    local = tf.constant(values, tf.float64)
    per_replica = strategy.experimental_distribute_values_from_function(lambda _: local)
    return strategy.reduce(tf.distribute.ReduceOp.MEAN, per_replica, axis=None).numpy().tolist()


def check_same_on_hosts(
    strategy: tf.distribute.Strategy, values: Mapping[str, Any], rule: str
) -> None:
    """Checks that all hosts have the same values. Every host must call it.

    Args:
        strategy: The strategy of the run.
        values: From name to what must be the same, as JSON can hold it; the same number on all
            hosts. The message has the names of those that differ.
        rule: What must be the same, in words.
    Raises:
        InputError: On every host, if one of them differs.
    """
    sums = [float(zlib.crc32(json.dumps(v, sort_keys=True).encode())) for v in values.values()]
    means = mean_over_hosts(strategy, sums)
    differing = [name for name, x, mean in zip(values, sums, means, strict=True) if x != mean]
    if differing:
        raise InputError(
            f"Every host must be given {rule}. Received: hosts that differ in "
            f"{', '.join(differing)}. Run the same command on all of them."
        )


def check_same_versions(strategy: tf.distribute.Strategy) -> None:
    """Checks that all hosts have the same versions of the packages. Every host must call it.

    Raises:
        InputError: On every host, if one of them differs.
    """
    versions = installed_versions() | {"Python": ".".join(platform.python_version_tuple()[:2])}
    values = {f"{name} ({version} here)": version for name, version in versions.items()}
    check_same_on_hosts(strategy, values, "the same versions of packages and Python")


def distribute(
    strategy: tf.distribute.Strategy,
    make_batches: Callable[[int, int], tf.data.Dataset],
    batch_size: int,
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Returns global batches, of which each host produces only its shard.

    Args:
        strategy: The strategy of the run.
        make_batches: Function of (host, number of hosts) that returns the shards of that host.
        batch_size: Global batch size.
    Returns:
        On one host its dataset, otherwise a distributed dataset; `fit` takes both.
    """
    if not is_multi_worker(strategy) and getattr(strategy.extended, "num_hosts", 1) == 1:
        return make_batches(0, 1)
    per_replica = batch_size // strategy.num_replicas_in_sync
    return strategy.distribute_datasets_from_function(
        lambda context: make_batches(
            context.input_pipeline_id, context.num_input_pipelines
        ).rebatch(per_replica, drop_remainder=True)
    )


def check_global_batch(batch_size: int, replicas: int, accumulation_steps: int = 1) -> int:
    """Returns the batch size per replica.

    Raises:
        InputError: If `batch_size` is not a positive multiple of replicas times microbatches.
    """
    unit = replicas * accumulation_steps
    if batch_size < 1 or unit < 1 or batch_size % unit:
        down = max(batch_size // max(unit, 1), 1) * unit
        up = max(-(-batch_size // max(unit, 1)), 1) * unit
        raise InputError(
            "`batch_size` is the global batch size and must be divisible by the number of replicas "
            "times `accumulation_steps`. "
            f"Received: batch_size={batch_size}, {replicas} replicas, "
            f"accumulation_steps={accumulation_steps}. Nearest: {down}, {up}."
        )
    return batch_size // replicas
