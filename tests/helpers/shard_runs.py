"""Trains tiny models on batches that do not divide by the replicas, case by case.

python tests/helpers/shard_runs.py REPLICAS OUT.npz [CASE ...]

OUT has losses, metrics, predictions and weights of each case, which must not depend on REPLICAS.
"""

import contextlib
import sys

import keras
import numpy as np
import tensorflow as tf

import vitkeras as vk

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0, 255, (45, 8, 8, 3)).astype("float32")
LABELS = RNG.integers(0, 5, 45)
WEIGHTS = RNG.uniform(0, 3, 45).astype("float32")


class AddMean(keras.layers.Layer):
    """Adds a loss that is a mean over the batch."""

    def call(self, x):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(x)))
        return x


class GradientNorm(vk.Model):
    """Returns one more result from its train step."""

    def train_step(self, data):
        return {**super().train_step(data), "seven": 7.0}


class OwnStep(vk.Model):
    """Has a train step of its own, which reduces and clips as Keras does."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        reduced = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
        self.optimizer.apply(reduced, self.trainable_variables)
        return {"norm": tf.linalg.global_norm(reduced)}


def dense(x, name="head"):
    kernel = keras.initializers.RandomNormal(0, 0.1, seed=3)
    return keras.layers.Dense(5, kernel_initializer=kernel, name=name)(x)


def with_head(base, *layers, kind=vk.Model):
    """Returns a model with a head on further layers."""
    x = base.output
    for layer in layers:
        x = layer(x)
    return kind(base.input, dense(x))


def two_heads(base):
    return vk.Model(
        base.input, {"one": dense(base.output, "one"), "two": dense(base.output, "two")}
    )


def unused(base):
    useless = keras.ops.stop_gradient(dense(base.output, "unused"))
    return vk.Model(base.input, dense(base.output) + useless)


def own_step(base):
    return with_head(base, kind=OwnStep)


#: Cases that also train on a `tf.data.Dataset`, within the scope.
ON_DATASETS = ("uneven", "short first batch", "accumulation", "sample weights", "two outputs",
               "steps_per_execution")  # fmt: skip
#: Cases that evaluate and predict as another case does.
ONLY_TRAINING = ("clipping", "class weights", "unused weights, accumulation", "weight regularizer",
                 "frozen", "further result")  # fmt: skip
#: Name: (model from the backbone, options of `compile`, options of `fit`).
CASES = {
    "uneven": (with_head, {}, {}),
    "short first batch": (with_head, {}, {"count": 7, "batch_size": 8}),
    "empty shard": (with_head, {}, {"count": 1, "batch_size": 8}),
    "one more example than replicas": (with_head, {}, {"count": 5, "batch_size": 16}),
    "clipping": (with_head, {"clipnorm": 0.05}, {}),
    "accumulation": (with_head, {"accumulation_steps": 2}, {}),
    "sample weights": (with_head, {}, {"sample_weight": True}),
    "class weights": (with_head, {}, {"class_weight": {0: 2.0, 1: 0.5, 2: 1.0, 3: 0.0, 4: 3.0}}),
    "dict of inputs": (with_head, {}, {"structure": lambda x: {"images": x}}),
    "two outputs": (two_heads, {}, {"targets": lambda y: {"one": y, "two": 4 - y}}),
    "unused weights": (unused, {}, {}),
    "unused weights, accumulation": (unused, {"accumulation_steps": 2}, {}),
    "steps_per_execution": (with_head, {"steps_per_execution": 2, "weight_decay": 0.1}, {}),
    "activity regularizer": (
        lambda base: with_head(base, keras.layers.Dense(8, activity_regularizer="l2")), {}, {},
    ),
    "weight regularizer": (
        lambda base: with_head(base, keras.layers.Dense(8, kernel_regularizer="l2")), {}, {},
    ),
    "add_loss": (lambda base: with_head(base, AddMean()), {}, {}),
    "synchronized BatchNormalization, equal shards": (
        lambda base: with_head(base, keras.layers.BatchNormalization(synchronized=True)), {},
        {"count": 24, "batch_size": 12},
    ),
    "frozen": (lambda base: with_head(base), {"trainable": False}, {}),
    "further result": (lambda base: with_head(base, kind=GradientNorm), {}, {}),
    "own train step": (own_step, {}, {"count": 24, "batch_size": 12}),
}  # fmt: skip


def train(scope, name, make, compile_options, fit_options):
    """Returns what must not depend on the number of replicas."""
    options = {"batch_size": 15, "count": 45, **fit_options}
    count, batch_size = options.pop("count"), options.pop("batch_size")
    compile_options = dict(compile_options)
    trainable = compile_options.pop("trainable", True)
    keras.utils.set_random_seed(0)
    with scope():
        base = vk.vit("Ti/4", image_size=8, hidden_dim=16, mlp_dim=32, num_heads=2, num_layers=1,
                      include_top=False)  # fmt: skip
        model = make(base)
        for i, weight in enumerate(model.get_layer("norm").weights):
            weight.assign(weight + 0.1 * i)
        model.trainable = trainable
        optimizer_options = {
            name: compile_options.pop(name, None) for name in ("clipnorm", "weight_decay")
        }
        optimizer = keras.optimizers.SGD(0.1, **optimizer_options)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        metrics = None if make is own_step else ["accuracy"]
        if isinstance(model.output, dict):
            metrics = {name: metrics for name in model.output}
        model.compile(optimizer, loss, metrics=metrics, jit_compile=False, **compile_options)
    x = options.pop("structure", lambda x: x)(IMAGES[:count])
    y = options.pop("targets", lambda y: y)(LABELS[:count])
    if options.pop("sample_weight", False):
        options["sample_weight"] = WEIGHTS[:count]
    options |= {"batch_size": batch_size, "verbose": 0, "shuffle": False}
    if name not in ONLY_TRAINING:
        options["validation_data"] = (x, y)
    history = model.fit(x, y, epochs=3, **options).history
    if name in ON_DATASETS:
        data = tf.data.Dataset.from_tensor_slices(
            (x, y, options["sample_weight"]) if "sample_weight" in options else (x, y)
        )
        with scope():
            again = model.fit(data.batch(batch_size), verbose=0).history
        history |= {f"again_{name}": values for name, values in again.items()}
    results = {
        "history": np.concatenate([np.ravel(history[name]) for name in sorted(history)]),
        "weights": np.concatenate([np.ravel(w) for w in model.get_weights()]),
    }
    if name in ONLY_TRAINING:
        return results
    evaluated = model.evaluate(x, y, batch_size=batch_size, verbose=0, return_dict=True)
    predicted = keras.tree.flatten(
        model.predict_on_batch(keras.tree.map_structure(lambda t: t[:5], x))
    )
    assert all(len(each) == min(count, 5) for each in predicted)
    return results | {
        "evaluated": np.array([evaluated[name] for name in sorted(evaluated)]),
        "predicted": np.concatenate([np.ravel(each) for each in predicted]),
    }


def main():
    """Trains the cases."""
    replicas, out, names = int(sys.argv[1]), sys.argv[2], sys.argv[3:] or list(CASES)
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * replicas
    )
    results, scope = {}, contextlib.nullcontext
    if replicas > 1:
        scope = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)]).scope
    for name in names:
        for what, value in train(scope, name, *CASES[name]).items():
            results[f"{name}/{what}"] = value
    np.savez(out, **results)


if __name__ == "__main__":
    main()
