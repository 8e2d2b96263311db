"""The command `bsm` calls the same functions as the files of jobs/."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import command, completion
from jobs.coco_r101 import ROWS
from pipeline.recipe import from_json, to_json

ROOT = Path(__file__).parents[2]
VERBS_OF_ONE_FUNCTION = (
    "audit",
    "doctor",
    "finetune",
    "predict",
    "refine",
    "report",
    "quickstart",
)


@pytest.fixture
def bsm(monkeypatch, capsys):
    """Run the command in this process, and return its exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["/usr/bin/bsm", *arguments])
        code = 0
        try:
            command.main()
        except SystemExit as stopped:
            code = stopped.code or 0
        return code, *capsys.readouterr()

    return run


def test_help_names_every_verb_with_an_example_that_starts_with_it(bsm):
    code, out, _ = bsm("--help")
    assert code == 0
    for name, verb in command.VERBS.items():
        assert verb.example.split()[0] == name
        assert f"  {name} " in out
        assert f"bsm {verb.example}\n" in out
    assert bsm() == (0, out, "")


def test_a_recipe_of_jobs_is_trained_by_its_name(bsm):
    for arguments in (["coco_r101"], ["coco_r101", "squeeze"], ["jobs/coco_r101.py"]):
        code, out, _ = bsm("train", *arguments, "--print-recipe")
        assert (code, from_json(out)) == (0, ROWS["squeeze"].recipe)
    code, out, _ = bsm("train", "coco_r101", "plain", "--print-recipe", "--optim.steps", "70000")
    assert from_json(out).optim.steps == 70_000
    assert from_json(out).name == "coco_r101_plain"


def test_a_recipe_in_a_file_is_trained_by_its_path(bsm, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(to_json(ROWS["bmask"].recipe))
    code, out, _ = bsm("train", str(file), "--print-recipe")
    assert (code, from_json(out)) == (0, ROWS["bmask"].recipe)


def test_a_sweep_is_named_without_its_prefix(bsm):
    code, out, _ = bsm("sweep", "coco_r50", "--print-recipe")
    assert (code, from_json(out).name) == (0, "sweep_coco_r50")


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["trian"], "perhaps you meant train"),
        (["train", "coco_r11"], "perhaps you meant coco_r101"),
        (["train", "coco_r101", "plan"], "perhaps you meant plain"),
        (["train", "--optim.steps", "3"], "bsm train RECIPE --optim.steps 3"),
        (["sweep", "coco_r5"], "perhaps you meant coco_r50"),
        (["train", "missing.json"], "file not found: missing.json"),
        (["train", "command"], "'command' is not a recipe"),
    ],
)
def test_a_misspelled_word_is_an_error_with_a_suggestion(bsm, arguments, suggestion):
    code, out, error = bsm(*arguments)
    assert (code, out) == (2, "")
    assert suggestion in error


def test_all_recipes_and_sweeps_are_listed(bsm):
    files = {path.stem: path.read_text() for path in (ROOT / "jobs").glob("*.py")}
    recipes = {
        name for name, text in files.items() if text.endswith((" main(ROWS)\n", " main(RECIPE)\n"))
    }
    sweeps = {name.removeprefix("sweep_") for name in files if name.startswith("sweep_")}
    assert set(command.list_recipes()) == recipes
    assert set(command.list_sweeps()) == sweeps
    _, out, _ = bsm("train")
    assert "coco_r50 " in out
    assert "Mask R-CNN with the boundary squeeze" in out


def test_the_help_of_a_verb_shows_commands_as_users_type_them(bsm):
    code, out, _ = bsm("models", "--help")
    assert code == 0
    assert "usage: bsm models" in out
    assert "bsm models promote bsm-coco --version 3" in out
    assert "python jobs/" not in out
    _, out, _ = bsm("train", "coco_r101", "--help")
    assert "bsm train coco_r101 [ROW] [OPTIONS]" in out
    # A cluster has the files, and not always the command.
    assert "ray job submit --working-dir . -- python jobs/coco_r101.py" in out


@pytest.mark.parametrize("verb", VERBS_OF_ONE_FUNCTION)
def test_the_help_of_a_single_function_has_an_example(bsm, verb):
    code, out, _ = bsm(verb, "--help")
    assert code == 0
    described = out.partition("options")[0].partition("\n")[2]
    assert re.search(rf"^ *bsm {verb}\b", described, re.MULTILINE)


def test_a_verb_runs_its_job(bsm, tmp_path):
    code, _, error = bsm("audit", "--data", str(tmp_path / "nothing"))
    assert code == 2
    assert "DatasetError" in error
    assert "it is not a folder of shards" in error


def test_a_report_of_another_folder_is_an_error(bsm, tmp_path):
    code, _, error = bsm("report", str(tmp_path))
    assert code == 2
    assert "so it is not the folder of a run" in error


def test_the_version_is_that_of_the_package(bsm):
    assert bsm("--version")[1].startswith("bsm ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tra"], {"train"}),
        (["train", "coco_r101"], {"coco_r101", "coco_r101_3x"}),
        (["train", "coco_r101", "pl"], {"plain"}),
        (["train", "coco_r101", "--optim.st"], {"--optim.steps"}),
        (["finetune", "--fr"], {"--from"}),
        (["finetune", "--optim.st"], {"--optim.steps"}),
        (["sweep", "coco_r50", "--tri"], {"--trials"}),
        (["models", "pro"], {"promote"}),
        (["models", "promote", "--fo"], {"--force"}),
        (["ingest", "coco", "--roo"], {"--root"}),
        (["audit", "--d"], {"--data", "--deep"}),
        (["nothing", ""], set()),
        (["train", "nothing", ""], set()),
    ],
)
def test_the_tab_key_completes(words, expected):
    assert set(completion.complete(words)) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_a_shell_calls_the_command(bsm, shell):
    code, out, _ = bsm("completion", shell)
    assert code == 0
    assert "bsm --complete" in out
    assert "RESULT" not in out


def test_bash_completes_with_the_printed_lines(bsm, tmp_path):
    _, script, _ = bsm("completion", "bash")
    fake = tmp_path / "bsm"
    # What bash passes is what matters here; the words themselves are tested above.
    fake.write_text('#!/bin/sh\necho "$#|$*"\n')
    fake.chmod(0o755)
    code = f"{script}\nCOMP_WORDS=(bsm train coco_r101 '') COMP_CWORD=3; _bsm; echo \"$COMPREPLY\""
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", code],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        env={**os.environ, "PATH": path},
    )
    assert done.stdout == "4|--complete train coco_r101 \n"


def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path):
    # Through a pipe whose reader is gone before the command starts.
    read, write = os.pipe()
    os.close(read)
    with contextlib.closing(os.fdopen(write, "wb")) as closed:
        done = subprocess.run(
            [sys.executable, ROOT / "jobs" / "command.py", "--help"],
            stdout=closed,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


def test_hints_name_the_commands_that_users_of_bsm_type(bsm, tmp_path):
    code, _, errors = bsm("audit", "--data", str(tmp_path / "none"))
    assert code == 2
    assert "bsm ingest coco --root" in errors
    assert "jobs/" not in errors
    text = "python jobs/models.py list; ray job submit -- python jobs/coco_r50.py; python jobs/x.py"
    assert command.name_commands(text) == text.replace("python jobs/models.py", "bsm models")
    hint = "train: python jobs/refine_coco.py --name x, or python jobs/sweep_coco_r50.py"
    renamed = "train: bsm train refine_coco --name x, or bsm sweep coco_r50"
    assert command.name_commands(hint) == renamed
