"""Compares an emulated TPUStrategy with one device, case by case.

python tests/helpers/tpu_runs.py CORES CASE ...

The last line of the output is a JSON object with the results of each case.
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import vitkeras as vk
from helpers.emulated_tpu import REPLICATION, emulated_tpu_strategy
from helpers.models import TINY
from vitkeras import training
from vitkeras.layers.regularization import Dropout, StochasticDepth

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(48, 8, 8, 3)).astype("float32")
LABELS = RNG.integers(0, 5, 48).astype("int32")
SMALL = TINY | {"num_layers": 1}
ONE_DEVICE = tf.distribute.get_strategy()


def dataset(batch_size=16):
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS))
    return data.batch(batch_size, drop_remainder=True)


def compiled(strategy, name="sgd", ema=None, clip_norm=None, **options):
    """Returns a tiny compiled model, the same for each strategy."""
    compile_options = {
        key: options.pop(key)
        for key in ("accumulation_steps", "steps_per_execution")
        if key in options
    }
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = vk.vit(
            "Ti/4", image_size=8, num_classes=5, include_rescaling=False, **SMALL | options
        )
        optimizer = training.make_optimizer(
            name, 0.05, 0.01, clip_norm=clip_norm, ema_momentum=ema,
            variables=model.trainable_variables,
        )  # fmt: skip
        model.compile(
            optimizer, training.SmoothedCrossEntropy(), metrics=["accuracy"], **compile_options
        )
        model.optimizer.build(model.trainable_variables)
    return model


def weights(model):
    """Returns the weights and the state of the optimizer, without its counter, as one array."""
    variables = [*model.weights, *model.optimizer.variables[1:]]
    return np.concatenate([np.ravel(v.numpy()).astype("float64") for v in variables])


def between_replicas(model):
    """Returns the largest difference between the parts of a mirrored variable."""
    variables = [*model.weights, *model.optimizer.variables]
    parts = [[p.numpy().astype("float64") for p in v.value.values] for v in variables]
    return max(float(np.abs(p - each[0]).max()) for each in parts for p in each)


def largest(one, two):
    return float(np.abs(np.asarray(one) - np.asarray(two)).max())


def compared(strategy, data=dataset, callbacks=list, steps=None, epochs=2, other=None, **options):
    """Trains, evaluates and predicts on the strategy and on one device; returns differences."""
    results = []
    for each in (strategy, ONE_DEVICE):
        model = compiled(each, **options | (other or {} if each is ONE_DEVICE else {}))
        start = weights(model)
        history = model.fit(
            data(), epochs=epochs, steps_per_epoch=steps, callbacks=callbacks(), verbose=0,
            validation_data=dataset(24),
        ).history  # fmt: skip
        if each is strategy:
            replicas = between_replicas(model)
        results.append(
            {
                "history": np.array([history[name] for name in sorted(history)]),
                "weights": weights(model),
                "moved": weights(model) - start,
                "evaluation": np.array(model.evaluate(IMAGES[:32], LABELS[:32], 16, verbose=0)),
                "outputs": model.predict(IMAGES[:19], 8, verbose=0),
                "batch_outputs": model.predict_on_batch(IMAGES[:5]),
            }
        )
    one, two = results
    differences = {name: largest(one[name], two[name]) for name in one if name != "moved"}
    return {
        **differences, "moved": largest(one["moved"], 0), "between_replicas": replicas,
        "iterations": int(model.optimizer.iterations),
    }  # fmt: skip


def fit(strategy):
    """With clipping and a callback that sets the learning rate."""
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.02 / (1 + epoch))
    return compared(strategy, clip_norm=0.1, callbacks=lambda: [schedule])


def accumulation(strategy):
    return compared(strategy, accumulation_steps=2, clip_norm=0.1, other={"accumulation_steps": 1})


def ema(strategy):
    return compared(strategy, ema=0.9, callbacks=lambda: [keras.callbacks.SwapEMAWeights()])


def execution(strategy):
    """Two epochs of 70 steps, in executions of 50 and 20."""
    return compared(
        strategy, data=lambda: dataset().repeat(), steps=70, steps_per_execution=50,
        other={"steps_per_execution": 1},
    )  # fmt: skip


def end_of_data(strategy):
    """The data ends in the second step of an execution."""
    return compared(strategy, steps_per_execution=2, other={"steps_per_execution": 1})


def masks(strategy):
    """Whether masks differ between cores and steps, and core 0 has those of one device."""
    results = {}
    for make in (Dropout, StochasticDepth):
        with strategy.scope():
            layer = make(0.5, seed=1)

        def replica(layer=layer):
            return layer(tf.ones((64, 4)), training=True)

        run = tf.function(strategy.run, autograph=False)
        drawn = [
            x.numpy() for _ in range(2) for x in strategy.experimental_local_results(run(replica))
        ]
        single = replica(make(0.5, seed=1)).numpy()
        results[make.__name__] = {
            "all_differ": len({x.tobytes() for x in drawn}) == len(drawn),
            "as_one_device": bool(np.array_equal(drawn[0], single)),
        }
    return results


def collectives(strategy):
    """Reductions, gathers of both kinds, assignments and outputs, in a loop and a branch."""
    with strategy.scope():
        mirrored = tf.Variable(1.0, aggregation=tf.VariableAggregation.MEAN)
        first = tf.Variable(0, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
        options = {"aggregation": tf.VariableAggregation.SUM, "trainable": False}
        summed = tf.Variable(0.0, synchronization=tf.VariableSynchronization.ON_READ, **options)

    def replica(x):
        context = tf.distribute.get_replica_context()
        index = context.replica_id_in_sync_group
        mirrored.assign_add(x * tf.cast(index, tf.float32))
        first.assign(index + 7)
        summed.assign_add(x)
        return {
            "sum": context.all_reduce("sum", tf.cast(index, tf.float32)),
            "gathered": context.all_gather(tf.cast(index, tf.float32)[None], 0),
            "gathered_int64": context.all_gather(tf.cast(index, tf.int64)[None, None] + 3, 1),
            "none": None,
        }

    @tf.function
    def run(x, steps):
        for _ in tf.range(steps):
            if x > 0:
                strategy.run(replica, args=(x,))
        return strategy.run(replica, args=(x,))

    results = {
        name: [x.numpy().tolist() for x in strategy.experimental_local_results(value)]
        for name, value in run(tf.constant(2.0), tf.constant(2)).items()
        if value is not None
    }
    for name, variable in {"mirrored": mirrored, "first": first, "parts": summed}.items():
        results[name] = [part.numpy().tolist() for part in variable.values]
    return results | {"summed": float(summed.read_value())}


def refused(strategy):
    """Messages of what is refused: a partial batch, and what the emulation does not do."""

    def message(call):
        try:
            call()
        except (ValueError, NotImplementedError) as error:
            return str(error)

    def loop(x):
        context = tf.distribute.get_replica_context()
        return tf.while_loop(lambda x: x < 9.0, lambda x: [context.all_reduce("sum", x)], [x])

    model = compiled(strategy)
    data = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(16)
    run = tf.function(strategy.run, autograph=False)
    return [
        message(lambda: model.fit(data, verbose=0)),
        message(lambda: model.predict(data.map(lambda x, y: x), verbose=0)),
        message(lambda: run(loop, args=(tf.constant(1.0),))),
    ]


def operations(strategy):
    """Operations of the training and evaluation steps, and what XLA says of each cluster."""
    known, errors = set(), {}
    for label, options in {
        "plain": {"name": "adamw"},
        "clipping": {"clip_norm": 0.1, "ema": 0.9},
        "accumulation": {"accumulation_steps": 2},
        "dropout": {"dropout_rate": 0.1, "stochastic_depth_rate": 0.1},
        "remat, bfloat16": {"dropout_rate": 0.1, "remat": True, "dtype": "mixed_bfloat16"},
    }.items():
        strategy.clusters.clear()
        model = compiled(strategy, **options)
        model.fit(dataset(), verbose=0, steps_per_epoch=1)
        model.evaluate(dataset(), verbose=0, steps=1)
        model.predict(IMAGES[:16], verbose=0)
        errors[label] = [cluster.xla_error() for cluster in strategy.clusters]
        for cluster in strategy.clusters:
            known |= cluster.operations()
    strategy.clusters.clear()

    def replica():
        return tf.strings.length(tf.strings.as_string(tf.ones(3)))

    tf.function(strategy.run, autograph=False).get_concrete_function(replica)
    errors["strings"] = [strategy.clusters[0].xla_error()]
    return {"operations": sorted(known - {*REPLICATION}), "errors": errors}


def main():
    """Runs the cases."""
    strategy = emulated_tpu_strategy(int(sys.argv[1]))
    results = {name: globals()[name](strategy) for name in sys.argv[2:]}
    print(json.dumps(results | {"tensorflow": tf.__version__}))


if __name__ == "__main__":
    main()
