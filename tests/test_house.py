"""The rules of the house: which room may import which, and that JAX users never load TensorFlow."""

import ast
from pathlib import Path

from conftest import ROOT, python

# Each room and the rooms below it that it may import; `errors` is open to all.
ALLOWED = {
    "errors": set(),
    "storage": set(),
    "dropping": set(),
    "tpu": {"private"},
    "layers": {"dropping", "tpu"},
    "tokens": {"dropping"},
    "heads": {"dropping"},
    "stem": {"dropping"},
    "positions": set(),
    "private": set(),
    "exact": {"private"},
    "models": {"layers", "tokens", "heads", "stem", "exact", "private"},
    "resnet": {"dropping", "models", "stem"},
    "transfer": {"positions"},
    "runs": {"models", "storage"},
    "weights": {"models", "positions", "resnet", "transfer", "runs", "storage"},
    "data": {"storage"},
    "analysis": {"layers", "models"},
    "finetuning": set(),
    "training": {"finetuning", "private", "storage"},
    "evaluation": set(),
    "serving": {"data", "storage"},
    "__init__": {
        "dropping", "finetuning", "heads", "layers", "models", "resnet", "stem", "tokens",
        "transfer", "weights",
    },
}  # fmt: skip
ONLY_IN_EXPERIMENTS = {"absl", "ml_collections", "matplotlib"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "vitkeras":
            yield from (f"vitkeras.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_arrows_point_down():
    files = sorted((ROOT / "vitkeras").rglob("*.py"))
    assert len(files) > 10
    for path in files:
        room = path.relative_to(ROOT / "vitkeras").parts[0].removesuffix(".py")
        for name in imports(path):
            first, *rest = name.split(".")
            assert first not in ONLY_IN_EXPERIMENTS | {"experiments"}, f"{path}: {name}"
            if first == "vitkeras":
                allowed = ALLOWED[room] | {room, "errors"}
                assert rest and rest[0] in allowed, f"{path} must not import {name}"


def test_no_test_imports_a_command():
    """Commands have flags of the same names: a process can take in only one."""
    texts = {path.stem: path.read_text() for path in (ROOT / "experiments").glob("*.py")}
    commands = {f"experiments.{name}" for name, text in texts.items() if "cli.run(main" in text}
    assert "experiments.train" in commands
    for path in sorted((ROOT / "tests").glob("*.py")):
        if path.stem == "test_real_weights":  # in a process of its own, see .ci/run
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                found = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
                assert not found & commands, f"{path} must not import {found & commands}"


def test_no_room_is_called_utils():
    assert not [p for p in (ROOT / "vitkeras").rglob("*utils*") if p.suffix == ".py"]


def test_public_names_exist():
    import vitkeras

    for name in vitkeras.__all__:
        assert getattr(vitkeras, name).__doc__ or name in ("VARIANTS", "HYBRIDS", "RESNETS")


def test_jax_users_load_no_tensorflow():
    code = "import sys, vitkeras; print('tensorflow' in sys.modules)"
    assert python("-c", code, KERAS_BACKEND="jax").stdout.strip() == "False"


def test_every_config_only_changes_fields_of_the_base():
    import importlib

    base = importlib.import_module("experiments.configs.common").get_config()
    configs = sorted(Path(ROOT / "experiments/configs").glob("[a-z]*.py"))
    for path in configs:
        module = importlib.import_module(f"experiments.configs.{path.stem}")
        assert set(module.get_config()) == set(base)
        assert module.__doc__
