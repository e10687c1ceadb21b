"""Looks at data, pipeline and model of a config before any accelerator time is paid for.

    python -m experiments.preflight --config=experiments/configs/folder.py \
        --config.dataset=folder:photos --memory_gib=16 --images_per_second=900

It writes preflight.html, with a grid of training images as the model sees them; the last line on
standard output has all of it as JSON. The exit code is 0 if the run can begin; else 2, with what is
in the way.

With --tpu=v5e:2x4 the steps that train and evaluate are compiled for that slice, where there is no
TPU (extra `aot`), in some minutes: do they compile, do they fit, what bounds their speed. Its
replicas and memory take the place of --replicas and --memory_gib. --largest_batch compiles until
the largest batch that fits is found, to an eighth.
"""

import functools
import json
from pathlib import Path

from experiments import cli  # first: it sets TensorFlow's log level

# isort: split
import keras
import numpy as np
import tensorflow as tf
from absl import flags

import vitkeras as vk
from experiments import look, page, tpu, tpu_module
from experiments.plan import (
    build_model,
    check_bad_images,
    compile_model,
    open_data,
    read_config,
    run_length,
    say,
)
from vitkeras import data, training
from vitkeras.errors import InputError
from vitkeras.finetuning import freeze
from vitkeras.storage import write_file
from vitkeras.training.memory import state_bytes, step_bytes

OUTPUT = flags.DEFINE_string("output", "preflight.html", "The page to write.")
FULL = flags.DEFINE_bool("full", False, "Read every image, not a sample.")
SAMPLE = flags.DEFINE_integer("sample", 1000, "Images of each split to look at.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 12.0, "How long to time the pipeline.", lower_bound=1)
REPLICAS = flags.DEFINE_integer(
    "replicas", None, "Devices of the run, 1 by default.", lower_bound=1
)
TPU = flags.DEFINE_string("tpu", None, "A TPU slice to compile for, such as v5e:2x4.")
LARGEST_BATCH = flags.DEFINE_bool("largest_batch", False, "Compile for the largest batch too.")
MEMORY_GIB = flags.DEFINE_float("memory_gib", 16.0, "Memory of each device.", lower_bound=1e-3)
IMAGES_PER_SECOND = flags.DEFINE_float(
    "images_per_second", None, "What all devices train together; gives hours.", lower_bound=1e-3
)
SPLITS = ("train", "validation", "test")
#: Of the device's memory: the allocator and the program want some too.
USABLE = 0.9


def look_at_data(source, config, warn, stop):
    """Returns what is said of the images, and the pictures."""
    sample = None if FULL.value else SAMPLE.value
    facts = {"images": {split: source.num_examples(split) for split in SPLITS}}
    looked = {split: look.sizes(source.stored(split), sample) for split in SPLITS}
    bad = source.bad_images + [
        (f"{split} {place}", reason)
        for split, found in looked.items()
        for place, reason in found.bad
    ]
    count = sum(len(found.rows) for found in looked.values()) + len(bad)
    facts |= {
        "looked_at": count,
        "bad_images": len(bad),
        "bad_percent": 100 * len(bad) / count,
        "bad": [f"{path}: {reason}" for path, reason in bad[:20]],
        "classes": len(source.class_names),
    }
    try:
        check_bad_images(bad, count - len(bad), config.max_bad_percent)
    except InputError as error:
        stop(str(error).rstrip("."))
    rows = [row for found in looked.values() for row in found.rows]
    sides = np.array([(height, width) for height, width, _ in rows])
    facts["median_size"] = [int(side) for side in np.median(sides, axis=0)]
    facts["modes"] = look.shares(kind for _, _, kind in rows)
    if (np.median(sides, axis=0) < 0.5 * np.array(config.image_size)).any():
        warn("half of the images or more are less than half as large as image_size: it only blurs")
    labels = look.labels(source, sample)
    strange = labels[(labels < 0) | (labels >= len(source.class_names))]
    if len(strange):
        stop(f"{len(strange)} labels are of no class, such as {strange[0]}")
        labels = labels[~np.isin(labels, strange)]
    counts = np.bincount(labels, minlength=len(source.class_names))
    facts["per_class"] = {"least": int(counts.min()), "most": int(counts.max())}
    missing = [n for n, c in zip(source.class_names, counts, strict=True) if not c]
    if missing:
        warn(f"among the {len(labels)} labels seen, none is of {', '.join(missing[:5])}")
    elif counts.max() > 10 * counts.min():
        warn(
            f"the largest class has {counts.max() / counts.min():.0f} times the images of the least"
        )
    pictures = [
        ("Training images of each class.", look.draw_balance(source.class_names, counts)),
        ("Height and width of the images looked at, in pixels.", look.draw_sizes(sides)),
    ]
    return facts, pictures


def look_at_pipeline(source, preprocessing, augmentation, config, wanted, warn, stop):
    """Returns rates and where the time goes, and the first batches' images.

    `wanted` is how many images/s the devices would take, or None.
    """
    try:
        stages = look.time_stages(source, preprocessing, augmentation, config, SECONDS.value)
        grid = look.draw_batch(source, preprocessing, augmentation, config)
    except tf.errors.InvalidArgumentError:
        stop("an image that was not among the sample cannot be decoded: --full names all such")
        return {}, []
    rate = stages["batches"]
    if wanted and rate < wanted:
        most = "" if IMAGES_PER_SECOND.value else "at most "
        warn(
            f"this machine's pipeline makes {rate:.0f} images/s, the devices would take "
            f"{most}{wanted:,.0f}: they will wait"
        )
    return {"images_per_second": {k: round(v, 1) for k, v in stages.items()}}, [grid]


def look_at_model(config, num_classes, steps, warn, stop):
    """Returns parameters, memory and the length of the run."""
    replicas = tpu.parse_slice(TPU.value).replicas if TPU.value else REPLICAS.value or 1
    per_replica = training.check_global_batch(
        config.batch_size, replicas, config.accumulation_steps
    )
    total_steps, epochs = run_length(config, steps)
    model = build_model(config, num_classes, say)
    freeze(model, config.freeze)
    facts = {
        "parameters": model.count_params(),
        "steps_per_epoch": steps,
        "steps": epochs * steps,
        "epochs": epochs,
        "images_per_replica": per_replica // config.accumulation_steps,
    }
    if not TPU.value:  # else its compiler says more
        facts |= look_at_memory(model, config, total_steps, per_replica, replicas, stop)
    if config.warmup_steps > total_steps / 2:
        warn(f"warmup_steps={config.warmup_steps} is more than half of {total_steps} steps")
    if IMAGES_PER_SECOND.value:
        facts["hours"] = round(
            epochs * steps * config.batch_size / IMAGES_PER_SECOND.value / 3600, 2
        )
    return facts


def look_at_memory(model, config, total_steps, per_replica, replicas, stop):
    """Returns what a step takes on each device, and the largest batch."""
    pieces, config.accumulation_steps = config.accumulation_steps, 1
    compile_model(model, config, total_steps)
    config.accumulation_steps = pieces
    state = state_bytes(model)
    if pieces > 1:  # the sum of the gradients
        state += sum(4 * int(np.prod(v.shape)) for v in model.trainable_variables)
    # Far enough up that it is images, not the optimizer, that the most is held for.
    one, two = (step_bytes(model, images) for images in (64, 128))
    for_each, fixed = (two - one) / 64, 2 * one - two

    def needed(images):
        return state + fixed + for_each * images

    usable = USABLE * MEMORY_GIB.value * 2**30
    largest = int(max(usable - needed(0), 0) / for_each)
    largest_batch = largest * replicas * pieces
    gib = needed(per_replica // pieces) / 2**30
    if largest < per_replica // pieces:
        way_out = "a device with more memory"
        if largest:
            cut = -(-per_replica // largest)
            way_out = f"accumulation_steps={cut}, or a batch of {largest_batch} at most"
        stop(
            f"a step of {per_replica // pieces} images needs about {gib:.3g} GiB on each device, "
            f"of which {USABLE * MEMORY_GIB.value:.3g} can be used: {way_out}"
        )
    return {
        "gib_per_replica": round(gib, 2),
        "gib_of_state": round(state / 2**30, 2),
        "largest_batch": largest_batch,
    }


def look_at_tpu(config, mixes, num_classes, steps, warn, stop):
    """Returns what the compiler of the slice says, and the bytes moved, operation by operation."""
    place = tpu.parse_slice(TPU.value)
    images = training.check_global_batch(config.batch_size, place.replicas)

    def compiled_model(remat):
        own = config.copy_and_resolve_references()
        own.remat = remat
        model = build_model(own, num_classes, lambda text: None)
        freeze(model, own.freeze)
        compile_model(model, own, run_length(own, steps)[0])
        return model

    model = compiled_model(config.remat)
    train = functools.partial(tpu.train_module, mixes=mixes)
    # By name: the step's module for a number of images, and the pieces that it takes them in.
    modules = {
        "train": (functools.partial(train, model), config.accumulation_steps),
        "evaluate": (functools.partial(tpu.evaluation_module, model), 1),
    }
    if config.variant not in vk.RESNETS and not config.remat:
        other = compiled_model(remat=True)
        modules["train_remat"] = functools.partial(train, other), config.accumulation_steps
    facts, reports = {"slice": place.topology, "replicas": place.replicas}, {}
    searched = []
    for name, (module, pieces) in modules.items():
        say(f"compiling the step for {TPU.value}: {name} ...")
        try:
            reports[name] = tpu.compile_module(module(images), place, images, pieces)
        except InputError as error:
            if name != "train_remat":
                stop(str(error).rstrip("."))
            if tpu.TOO_LARGE in str(error):
                searched.append(name)
            continue
        searched.append(name)
        facts[name] = reports[name].facts
        if facts[name]["memory_share"] > 1 and name != "train_remat":
            stop(f"the step ({name}) needs {facts[name]['memory_share']:.0%} of the memory")
    if "train" in facts and facts["train"]["bfloat16_share"] < 0.99:
        warn("not all matrix products are in bfloat16: dtype=mixed_bfloat16 is faster on a TPU")
    for name in ("train", "train_remat"):
        if LARGEST_BATCH.value and name in searched:
            say(f"looking for the largest batch: {name} ...")
            module, pieces = modules[name]
            largest = tpu.largest_batch(module, place, images, pieces, say)
            facts[name.replace("train", "largest_batch")] = largest * place.replicas
    table = ""
    if "train" in reports:
        facts["verdict"] = told_of(place, facts["train"])
        say(facts["verdict"])
        rows = tpu_module.by_operation(
            tpu_module.moved(reports["train"].compiled, config.accumulation_steps)
        )[:25]
        table = "\n".join(
            f"{size / 1e9:.2f} GB, {times} times: {what}" for what, times, size in rows
        )
    return facts, table


def told_of(place, facts):
    """Returns a sentence on a compiled training step."""
    bound = "arithmetic" if facts["arithmetic_ms"] > facts["memory_ms"] else "memory traffic"
    return (
        f"On {place.topology} a training step takes {facts['memory_share']:.0%} of the memory and "
        f"is bound by {bound}: {max(facts['arithmetic_ms'], facts['memory_ms']):.3g} ms at least, "
        f"{facts['images_per_second']:,.0f} images/s at most."
    )


def main(_):
    """Looks, writes the page, and says whether to go on."""
    if TPU.value is not None:
        tpu.parse_slice(TPU.value)
        if REPLICAS.present or MEMORY_GIB.present:
            raise InputError(
                "Give `tpu`, which has its replicas and memory, or `replicas` and `memory_gib`. "
                f"Received: tpu={TPU.value} and others."
            )
    config = read_config()
    warnings, obstacles = [], []
    sample = None if FULL.value else SAMPLE.value
    source, augmentation, preprocessing = open_data(config, say, sample)
    steps = data.steps_per_epoch(source, config.batch_size)
    keras.utils.set_random_seed(config.seed)
    say("building the model ...")
    model = look_at_model(config, len(source.class_names), steps, warnings.append, obstacles.append)
    devices, moved = {}, ""
    if TPU.value:
        devices, moved = look_at_tpu(
            config, augmentation.mixes, len(source.class_names), steps,
            warnings.append, obstacles.append,
        )  # fmt: skip
    say("looking at images ...")
    images, pictures = look_at_data(source, config, warnings.append, obstacles.append)
    say("timing the pipeline ...")
    wanted = IMAGES_PER_SECOND.value or devices.get("train", {}).get("images_per_second")
    pipeline, grid = look_at_pipeline(
        source, preprocessing, augmentation, config, wanted, warnings.append, obstacles.append
    )
    result = {
        "ready": not obstacles, "obstacles": obstacles, "warnings": warnings, "data": images,
        "pipeline": pipeline, "model": model, "tpu": devices, "page": OUTPUT.value,
    }  # fmt: skip
    verdict = "The run can begin." if not obstacles else "The run should not begin."
    memory, on_tpu = f"\n{look.MEMORY}" if not devices else "", []
    if devices:
        on_tpu = [page.Section("TPU", f"{look.told(devices)}\n{look.TPU}\n{moved}", [])]
    text = page.render(
        f"Preflight: {config.variant} on {config.dataset}",
        [verdict, *(f"In the way: {each}." for each in obstacles),
         *(f"Mind: {each}." for each in warnings)],
        [
            page.Section("Images", look.told(images), pictures),
            page.Section("What the model sees", "The first images of the run, augmented.", grid),
            page.Section("Pipeline", look.told(pipeline) + "\n" + look.STAGES, []),
            page.Section("Model and run", look.told(model) + memory, []),
            *on_tpu,
        ],
    )  # fmt: skip
    write_file(Path(OUTPUT.value).absolute(), text.encode())
    for each in warnings:
        say(f"mind: {each}")
    if obstacles:
        print(json.dumps(result))
        raise InputError(f"The run should not begin: {'; '.join(obstacles)}. See {OUTPUT.value}.")
    return result


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    cli.run(main)
