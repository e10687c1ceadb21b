"""Rules for imports, names and docstrings of the package."""

import ast
import importlib
import pkgutil

from helpers.processes import ROOT, python

# Each subpackage or module of vitkeras, and what it may import besides `errors` and `arguments`.
ALLOWED = {
    "errors": set(),
    "arguments": set(),
    "keras_internals": set(),
    "layers": {"keras_internals"},
    "trainers": {"keras_internals"},
    "models": {"keras_internals", "layers", "trainers"},
    "io": {"keras_internals", "models"},
    "pretrained": {"io", "layers", "models"},
    "data": {"io", "keras_internals"},
    "training": {"io", "keras_internals", "models"},
    "evaluation": {"data", "io", "models"},
    "interpret": {"io", "layers", "models"},
    "serving": {"data", "io", "models"},
    "preflight": {"data", "io", "keras_internals", "layers"},
    "configs": set(),
    "cli": {
        "configs", "data", "evaluation", "interpret", "io", "models", "preflight", "pretrained",
        "serving", "training",
    },
    "__init__": {"layers", "models", "pretrained", "training"},
    "__main__": {"cli"},
}  # fmt: skip


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "vitkeras":
            yield from (f"vitkeras.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_a_module_imports_only_from_the_layers_below_it():
    files = sorted((ROOT / "vitkeras").rglob("*.py"))
    assert len(files) > 50
    for path in files:
        package = path.relative_to(ROOT / "vitkeras").parts[0].removesuffix(".py")
        for name in imports(path):
            first, *rest = name.split(".")
            assert first != "experiments", f"{path}: {name}"
            if first == "vitkeras":
                allowed = ALLOWED[package] | {package, "errors", "arguments"}
                if package in ("cli", "io") and not rest:
                    continue  # the public API and the version
                assert rest and rest[0] in allowed, f"{path} must not import {name}"


def test_the_allowed_imports_have_no_cycle():
    remaining = dict(ALLOWED)
    while remaining:
        leaves = [name for name, below in remaining.items() if not below & set(remaining)]
        assert leaves, f"a cycle among {sorted(remaining)}"
        for name in leaves:
            del remaining[name]


#: Methods whose meaning Keras or Python defines.
UNDOCUMENTED = {
    "build", "call", "compile", "compute_output_shape", "evaluate", "fit", "from_config",
    "get_config", "make_test_function", "make_train_function", "test_step", "train_step",
    "update_step", "write",
}  # fmt: skip


def test_public_methods_have_docstrings():
    for path in sorted((ROOT / "vitkeras").rglob("*.py")):
        for owner in ast.walk(ast.parse(path.read_text())):
            if not isinstance(owner, ast.ClassDef) or owner.name.startswith("_"):
                continue
            for node in owner.body:
                if not isinstance(node, ast.FunctionDef) or node.name in UNDOCUMENTED:
                    continue
                if node.name.startswith(("_", "on_")) or ast.get_docstring(node):
                    continue
                raise AssertionError(f"{path}: {owner.name}.{node.name} has no docstring")


def test_no_module_is_called_utils():
    assert not [p for p in (ROOT / "vitkeras").rglob("*utils*") if p.suffix == ".py"]


def test_public_names_exist():
    import vitkeras

    for name in vitkeras.__all__:
        assert getattr(vitkeras, name).__doc__ or name in ("VARIANTS", "HYBRIDS", "RESNETS")


def test_tensorflow_is_not_imported_on_jax():
    code = "import sys, vitkeras; vitkeras.vit; print('tensorflow' in sys.modules)"
    assert python("-c", code, KERAS_BACKEND="jax").stdout.strip() == "False"


def test_every_config_only_changes_fields_of_the_base():
    base = importlib.import_module("vitkeras.configs.base").get_config()
    for package in ("vitkeras.configs", "experiments.configs"):
        names = [m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__)]
        assert names
        for name in names:
            module = importlib.import_module(f"{package}.{name}")
            assert module.__doc__
            if hasattr(module, "get_config") and name != "of_run":  # that takes a run directory
                assert set(module.get_config()) == set(base)
