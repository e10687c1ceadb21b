"""The command line itself: help, version, flags, recipes, next commands."""

import re

import pytest
from helpers.processes import command, python

import vitkeras
from vitkeras import configs
from vitkeras.cli import main, runner

FOLDER = ("--config=folder", "--workdir=unused")


def run(*argv):
    """Runs a command line in a fresh process in which TensorFlow cannot be imported."""
    code = (
        "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "from vitkeras.cli import main; sys.exit(main.main(sys.argv[1:]))"
    )
    process = python("-c", code, *argv)
    assert "Traceback" not in process.stderr, process.stderr
    return process.returncode, process.stdout, process.stderr


def test_without_arguments_the_commands_are_listed(capsys):
    for argv in ([], ["--help"], ["help"]):
        assert main.main(argv) == 0
        out = capsys.readouterr().out
        assert all(re.search(rf"^  {name} +\w", out, re.M) for name in main.COMMANDS)
    commands = {"train", "evaluate", "predict", "export", "explain", "probe", "preflight"}
    assert set(main.COMMANDS) == commands


def test_version(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vitkeras {vitkeras.__version__}\n"


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_lists_every_flag_and_config_field_without_tensorflow(name):
    code, out, error = run(name, "--help")
    assert (code, error) == (0, "")
    assert out.startswith(f"Usage: vitkeras {name}") and "  --debug\n" in out
    if name in ("train", "probe", "preflight"):
        base = configs.base_config()
        assert {field.name for field in configs.fields()} == set(base)
        for field in configs.fields():
            assert f"  --config.{field.name}\n" in out
            assert len(field.description) > 4 and field.default in out
        assert "--config.batch_size\n      Global batch size. (default: 512)" in out
        assert "(default: not set)" in out


@pytest.mark.parametrize(
    "argv, received",
    [
        (["trian"], 'Received: trian. Did you mean "train"?'),
        (["train", "--workdir=x"], "`--config` is required"),
        (["train", "--config=folder"], "`--workdir` is required"),
        (["train", *FOLDER, "extra"], "Received: extra"),
        (["train", *FOLDER, "--lr=3"], "Received: --lr. Did you mean --config.learning_rate?"),
        (["train", *FOLDER, "--batch_size=3"], "Did you mean --config.batch_size?"),
        (["train", *FOLDER, "--smok"], 'Did you mean "--smoke"?'),
        (["train", *FOLDER, "--config.lerning_rate=1"], 'Did you mean "learning_rate"?'),
        (["train", *FOLDER, "--config.lr=1"], 'Did you mean "learning_rate"?'),
        (["train", *FOLDER, "--config.epochs=many"], "epochs"),
        (["train", "--config=digts", "--workdir=x"], 'config=digts. Did you mean "digits"?'),
        (["train", "--config=nope.py", "--workdir=x"], "config=nope.py"),
        (["evaluate", "--workdir=x", "--split=tset"], "split"),
        (["predict", "--workdir=x", "--retries=-1", "a.png"], "retries"),
        (["probe", "--weights=x"], "`--workdir` is required"),
        (["probe", "--workdir=x", "--config.shot=5"], 'Did you mean "shots"?'),
    ],
)
def test_a_wrong_command_line_is_one_sentence_without_tensorflow(argv, received):
    code, out, error = run(*argv)
    assert (code, out) == (2, "") and received in error, error
    assert error.startswith("error: ") and error.count("\n") == 1 and "\\" not in error


def test_a_recipe_is_a_name_or_a_file_that_may_import_its_neighbors(tmp_path, monkeypatch):
    (tmp_path / "my_defaults.py").write_text("EPOCHS = 7\n")
    (tmp_path / "recipe.py").write_text(
        "import my_defaults\n"
        "from vitkeras.configs import base\n"
        "def get_config(batch='8'):\n"
        "    config = base.get_config()\n"
        "    config.update(epochs=my_defaults.EPOCHS, batch_size=int(batch))\n"
        "    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    from vitkeras.cli import train

    def parse(*argv):
        return runner.parse(train, "vitkeras train", [*argv, "--workdir=run"])[0].config

    assert parse("--config=digits").dataset == "digits"
    assert parse("--config", "folder").dataset == "folder:photos"
    assert parse("--config.epochs=3", "--config=digits").epochs == 3
    config = parse("--config=recipe.py:16")
    assert (config.epochs, config.batch_size) == (7, 16)


def test_a_run_with_a_recipe_that_cannot_be_imported_is_one_sentence(tmp_path):
    (tmp_path / "recipe.py").write_text("import no_such_module\n")
    code, _, error = command("train", f"--config={tmp_path}/recipe.py", f"--workdir={tmp_path}/r")
    assert code == 2 and "no_such_module" in error and error.count("\n") == 1


def test_standard_error_has_only_what_the_command_logs(tmp_path):
    process = python("-m", "vitkeras", "evaluate", f"--workdir={tmp_path}", TF_CPP_MIN_LOG_LEVEL="")
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
