"""The verbs as a person types them."""

import os
import re
import subprocess
import sys

import pytest

from schoolhouse import __version__
from schoolhouse.cli import app
from toys.kit import run_here, write_recipe


@pytest.fixture
def home(tmp_path):
    run_here(write_recipe(tmp_path), tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def artifacts(home, tmp_path):
    return run_here(tmp_path / "toy.toml", home)


def call(capsys, *words):
    capsys.readouterr()
    app([str(word) for word in words], standalone_mode=False)
    return capsys.readouterr().out


def run_command(*words, **more):
    command = [sys.executable, "-m", "schoolhouse.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **more)


def test_help_lists_every_verb_and_cuts_no_sentence():
    done = run_command("--help")
    assert done.returncode == 0
    for verb in ("run", "prepare", "chat", "mask", "ls", "ledger", "verify", "export", "restore", "trace", "doctor"):
        assert re.search(rf"^\W*{verb}\s.*\.$", done.stdout, re.MULTILINE), verb
    assert "..." not in done.stdout.split("Commands:")[1]


def test_help_waits_for_no_heavy_import():
    # What a start costs is what it imports: typer alone takes a tenth of a second, with rich a quarter.
    code = (
        "import sys\nfrom schoolhouse.cli import app\napp(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers', 'pydantic', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("module", ["cli", "text", "tasks", "pipeline", "core.ledger", "model.config"])
def test_what_needs_no_tensors_does_not_import_torch(module):
    code = (
        f"import importlib, pkgutil, sys\nm = importlib.import_module('schoolhouse.{module}')\n"
        "for found in pkgutil.iter_modules(getattr(m, '__path__', [])): "
        "importlib.import_module(m.__name__ + '.' + found.name)\n"
        "assert 'torch' not in sys.modules, 'torch is imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_version(capsys):
    assert call(capsys, "--version") == f"schoolhouse {__version__}\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "nowhere.toml"], 2, "error: there is no recipe nowhere.toml"),
        (["runn"], 2, "No such command 'runn'"),
        (["verify", "abc"], 1, "error: there is no artifact or stage 'abc' below runs"),
        (["run"], 2, "Missing argument"),
    ],
)
def test_wrong_use_is_a_message_and_an_exit_code(tmp_path, words, code, said):
    done = run_command(*words, cwd=tmp_path)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_wrong_key_is_a_message_with_its_line(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "r"\n\n[[stage]]\nname = "base"\nrun = "get"\nsauce = "smollm2-135m-instruct"\n')
    done = run_command("run", recipe, cwd=tmp_path)
    assert done.returncode == 2
    assert "r.toml, line 6: stage 'base': unknown key 'sauce'; did you mean 'source'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_ls_lists_what_was_made(capsys, home, artifacts):
    printed = call(capsys, "ls", "--home", home)
    for artifact in artifacts.values():
        assert artifact.id in printed
        assert artifact.kind in printed
    assert "nothing was made yet" in call(capsys, "ls", "--home", home / "elsewhere")


def test_ledger_lists_runs_and_the_figures_of_one(capsys, home):
    printed = call(capsys, "ledger", "--home", home)
    run_id = next(word for word in printed.split() if re.fullmatch(r"[0-9a-f]{8}", word))
    assert "done" in printed
    figures = call(capsys, "ledger", run_id, "--home", home)
    for word in ("climb", "tokens", "80", "measured", "assumed: electricity at 0.3 EUR/kWh"):
        assert word in figures
    assert "no ledger" in call(capsys, "ledger", "--home", home / "elsewhere")


@pytest.mark.parametrize("name", ["climb", "toy/climb", "id", "start of id"])
def test_verify_finds_an_artifact_by_any_of_its_names(capsys, home, artifacts, name):
    climb = artifacts["climb"]
    name = {"id": climb.id, "start of id": climb.id[:7]}.get(name, name)
    assert (
        call(capsys, "verify", name, "--home", home) == f"{climb.id} (toy.learn): all 2 files are as they were made\n"
    )


def test_verify_names_the_changed_file(tmp_path, home, artifacts):
    with artifacts["climb"].file("weights.bin").open("r+b") as file:
        file.write(b"!")
    done = run_command("verify", "climb", "--home", home)
    assert done.returncode == 1
    assert "weights.bin was changed" in done.stderr


def test_a_stage_that_does_not_exist_names_the_nearest(home):
    done = run_command("verify", "clim", env=os.environ | {"SCHOOLHOUSE_HOME": str(home)})
    assert "there is no artifact or stage 'clim'" in done.stderr
    assert "did you mean 'climb'?" in done.stderr


def test_export_copies_the_files_and_nothing_else(capsys, tmp_path, home, artifacts):
    out = tmp_path / "out" / "model"
    call(capsys, "export", "climb", out, "--home", home)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "weights.bin"]
    assert (out / "weights.bin").read_bytes() == artifacts["climb"].file("weights.bin").read_bytes()
    done = run_command("export", "climb", out, "--home", home)
    assert done.returncode == 1
    assert "exists already; nothing was copied" in done.stderr


def test_doctor_says_that_an_artifact_has_no_metrics(home):
    done = run_command("doctor", "base", "--home", home)
    assert done.returncode == 1
    assert "has no file 'metrics.jsonl'; it holds source.bin" in done.stderr


def test_chat_with_what_is_no_model_says_so(home):
    done = run_command("chat", "report", "--home", home)
    assert done.returncode == 1
    assert "has no file 'config.json'; it holds report.html" in done.stderr
