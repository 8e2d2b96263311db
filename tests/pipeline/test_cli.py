"""Jobs on the command line: values, help, errors, the RESULT line and exit codes."""

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from bsm.configs.semantic import DeepLabConfig
from pipeline import cli
from pipeline.errors import RecipeError
from pipeline.recipe import Recipe, from_json, to_json

RECIPE = Recipe(name="job")

VERB = '''
    """Do a thing.   python jobs/thing.py"""
    import logging
    from typing import Literal
    from pipeline.cli import run_verb
    from pipeline.errors import DatasetError, TrainingError

    def one(*, root: str, count: int = 3, mood: Literal["good", "bad"] = "good") -> dict:
        """Do the one thing.

        Args:
            root: where it lies.
            count: how many.
            mood: which way.
        """
        logging.getLogger("pipeline.thing").info("working")
        if root == "broken":
            raise DatasetError("2 problems: a; b. Fix them, or type: thing --on-bad drop")
        if root == "late":
            raise TrainingError("loss is NaN at step 4")
        if root == "bug":
            raise ValueError("not for users")
        if root == "stop":
            raise KeyboardInterrupt
        return {"root": root, "count": count}

    def two() -> dict:
        """Do the other thing."""
        return {}

    run_verb(VERBS)
'''


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(scope="module")
def verb(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("verb") / "thing.py"
    path.write_text(textwrap.dedent(VERB).replace("VERBS", "one"))
    return path


@pytest.fixture(scope="module")
def verbs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("verbs") / "thing.py"
    path.write_text(textwrap.dedent(VERB).replace("VERBS", '{"one": one, "two": two}'))
    return path


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("job") / "job.py"
    path.write_text(
        textwrap.dedent(
            '''
            """Train a thing.   python jobs/job.py"""
            import sys
            from pipeline import main
            from pipeline.recipe import Recipe
            try:
                main(Recipe(name="job"))
            finally:
                heavy = [name for name in ("ray", "torch", "mlflow") if name in sys.modules]
                print("heavy modules:", heavy, file=sys.stderr)
            '''
        )
    )
    return path


def test_overrides_are_typed_and_the_rest_stays():
    recipe, wants_print = cli.parse_recipe(
        RECIPE,
        [
            *("--optim.steps", "10", "--optim.decay-at", "5", "8", "--data.short-edge-px", "64"),
            *("--data.root", "s3://b/x", "--scale.num-workers", "0", "--optim.clip-norm", "2"),
            *("--evaluation.max-images", "None", "--model.backbone.norm", "group"),
            *(
                "--model.weights",
                "m.pkl",
                "--model.weights-leave-out",
                "box_head.scores",
                "mask_head",
            ),
            *("--model.box-convention", "torchvision", "--model.backbone.stride-in-1x1"),
            *("--model.backbone.weights-color-order", "bgr", "--model.backbone.weights", "r50.pkl"),
            *("--model.backbone.pixel-std", "1", "1", "1"),
        ],
    )
    assert not wants_print
    assert (recipe.optim.steps, recipe.optim.decay_at) == (10, (5, 8))
    assert recipe.data.short_edge_px == (64,)
    assert (recipe.data.root, recipe.scale.num_workers) == ("s3://b/x", 0)
    assert (recipe.optim.clip_norm, recipe.evaluation.max_images) == (2.0, None)
    assert recipe.model.backbone.norm == "group"
    assert recipe.model.weights == "m.pkl"
    assert recipe.model.weights_leave_out == ("box_head.scores", "mask_head")
    assert recipe.model.box_convention == "torchvision"
    assert recipe.model.backbone.stride_in_1x1
    assert recipe.model.backbone.weights_color_order == "bgr"
    assert recipe.model.backbone.pixel_std == (1.0, 1.0, 1.0)
    assert from_json(to_json(recipe)) == recipe
    assert recipe.optim.global_batch == RECIPE.optim.global_batch
    assert type(recipe) is Recipe


def test_no_override_gives_the_declared_recipe():
    assert cli.parse_recipe(RECIPE, []) == (RECIPE, False)


def test_every_violation_is_reported_at_once():
    arguments = (
        "--optim.steps -1 --optim.decay-at 8 5 --optim.clip-norm nan --data.short-edge-px 64 7 "
        "--checkpoint.keep 0 --scale.num-workers 3 --model.mask-head.targets.kernel-size 4"
    )
    with pytest.raises(RecipeError) as caught:
        cli.parse_recipe(RECIPE, arguments.split())
    assert str(caught.value).splitlines() == [
        "7 problems in the recipe:",
        "  model.mask_head.targets.kernel_size: must be odd, got 4",
        "  data.short_edge_px[1]: must be at least 32, got 7",
        "  optim.steps: must be at least 1, got -1",
        "  optim.clip_norm: needs a finite number, got nan",
        "  optim.decay_at: must not decrease, got (8, 5)",
        "  checkpoint.keep: must be at least 1, got 0",
        "  scale.num_workers: 3 does not divide optim.global_batch 16; take one of 1, 2, 4, 8, 16",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("--model.geometry", "torchvision"), "--model.box-convention"),
        (("--model.mask-head.squeeze.wiring=paper",), "--model.mask-head.squeeze.variant"),
        (("--scale.images_per_pass", "2"), "--scale.images-per-microbatch"),
        (("--evaluation.images-per-pass", "2"), "--evaluation.images-per-batch"),
    ],
)
def test_an_old_flag_ends_with_2_and_names_the_new_one(old, new):
    with pytest.raises(RecipeError, match=f"perhaps you meant {new}$") as caught:
        cli.parse_recipe(RECIPE, list(old))
    assert caught.value.exit_code == 2


def test_a_flag_in_the_wrong_section_gets_a_suggestion():
    with pytest.raises(RecipeError, match=r"--data\.step; perhaps you meant --optim\.steps$"):
        cli.parse_recipe(RECIPE, ["--data.step", "10"])
    for flag in ("--scale.checkpoint-every", "--optim.checkpoint-every", "--scale.every-step"):
        with pytest.raises(
            RecipeError, match=f"{flag}; perhaps you meant --checkpoint.every-steps$"
        ):
            cli.parse_recipe(RECIPE, [flag, "10"])


def test_the_flags_are_those_of_the_recipes_own_model(capsys):
    semantic = Recipe(name="job", model=DeepLabConfig())
    recipe, _ = cli.parse_recipe(
        semantic,
        [
            *("--model.head.kind", "pointrend", "--model.output-stride", "16"),
            *("--model.backbone.norm", "group", "--model.head.aspp-rates", "1", "2"),
            *("--optim.schedule", "poly", "--model.head.targets.no-unite-boundary"),
        ],
    )
    assert type(recipe.model) is DeepLabConfig
    assert (recipe.model.head.kind, recipe.model.output_stride) == ("pointrend", 16)
    assert (recipe.model.backbone.norm, recipe.model.head.aspp_rates) == ("group", (1, 2))
    assert not recipe.model.head.targets.unite_boundary
    assert cli.parse_recipe(semantic, []) == (semantic, False)
    with pytest.raises(RecipeError, match=r"targets\.kernel_size: must be odd, got 4"):
        cli.parse_recipe(semantic, ["--model.head.targets.kernel-size", "4"])
    for model, flag in ((semantic, "--model.mask-head.kind"), (RECIPE, "--model.head.kind")):
        with pytest.raises(SystemExit):
            cli.parse_recipe(model, [flag, "plain"])
        assert flag in capsys.readouterr().err


def test_a_typo_ends_with_2_and_a_suggestion(job):
    done = run(job, "--optim.stepss", "10")
    assert done.returncode == 2
    assert "Perhaps you meant" in done.stderr
    assert "--optim.steps INT" in done.stderr
    assert "heavy modules: []" in done.stderr


def test_a_wrong_type_ends_with_2_and_names_the_flag(job):
    done = run(job, "--optim.steps", "many")
    assert done.returncode == 2
    assert "--optim.steps" in done.stderr


def test_a_violation_ends_with_2_without_traceback_or_ray_import(job):
    done = run(job, "--scale.num-workers", "3")
    assert done.returncode == 2
    assert "take one of 1, 2, 4, 8, 16" in done.stderr
    assert "Traceback" not in done.stderr
    assert "heavy modules: []" in done.stderr


def test_help_shows_the_docstrings_of_job_and_fields(job):
    done = run(job, "--help")
    assert done.returncode == 0
    assert "Train a thing." in done.stdout
    text = " ".join(done.stdout.replace("\u2502", " ").split())
    assert "--optim.steps INT Optimizer steps of the whole run. (default: 90000)" in text
    assert "--print-recipe" in text


def test_print_recipe_prints_the_overridden_recipe_and_nothing_else(job):
    done = run(job, "--print-recipe", "--optim.steps", "12")
    assert done.returncode == 0
    optim = from_json(done.stdout).optim
    # The schedule follows the steps.
    assert (optim.steps, optim.decay_at) == (12, (8, 11))
    assert "ends before its first checkpoint" in done.stderr
    assert "--optim.decay-at 8 11: the same shares of 12 steps" in done.stderr


def test_a_submitted_job_rejects_relative_paths(job, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    done = run(job, "--data.root", "/somewhere")
    assert done.returncode == 2
    assert "--storage runs" in done.stderr
    assert "--data.root" not in done.stderr


def test_the_last_line_of_a_verb_is_its_result(verb):
    done = run(verb, "--root", "here", "--count", "4")
    assert done.returncode == 0
    *progress, last = done.stdout.splitlines()
    assert progress == ["working"]
    assert json.loads(last.removeprefix("RESULT ")) == {"root": "here", "count": 4}


def test_subcommands_choose_the_function(verbs):
    done = run(verbs, "one", "--root", "here")
    assert json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))["root"] == "here"
    assert run(verbs, "two").stdout == "RESULT {}\n"
    wrong = run(verbs, "onne", "--root", "here")
    assert wrong.returncode == 2
    assert "'onne' is not a subcommand of python " in wrong.stderr
    assert wrong.stderr.strip().endswith(", perhaps you meant one; there are: one, two")


def test_bad_input_ends_with_2_and_one_message(verb):
    done = run(verb, "--root", "broken")
    assert done.returncode == 2
    assert done.stderr == "DatasetError: 2 problems: a; b. Fix them, or type: thing --on-bad drop\n"
    assert "RESULT" not in done.stdout


def test_a_failed_run_ends_with_1_and_a_bug_with_its_traceback(verb):
    late = run(verb, "--root", "late")
    assert (late.returncode, "Traceback" in late.stderr) == (1, False)
    bug = run(verb, "--root", "bug")
    assert (bug.returncode, "Traceback" in bug.stderr) == (1, True)


def test_an_interrupt_ends_with_130(verb):
    done = run(verb, "--root", "stop")
    assert (done.returncode, "Traceback" in done.stderr) == (130, False)


def test_help_piped_into_head_ends_without_a_traceback(job):
    command = f"'{sys.executable}' '{job}' --help | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], check=False, capture_output=True, text=True, timeout=60
    )
    assert "usage" in done.stdout
    assert "Traceback" not in done.stderr
    assert "BrokenPipeError" not in done.stderr


def test_a_missing_argument_and_a_wrong_choice_end_with_2(verb):
    assert run(verb).returncode == 2
    done = run(verb, "--root", "x", "--mood", "glad")
    assert done.returncode == 2
    assert "good" in done.stderr


def test_the_package_is_cheap_to_import():
    code = "import pipeline, sys; print([m for m in ('ray','torch','tyro') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("declared", [True, False])
def test_a_switch_can_be_set_and_unset(declared):
    recipe = replace(RECIPE, scale=replace(RECIPE.scale, use_gpu=declared))
    assert cli.parse_recipe(recipe, ["--scale.use-gpu"])[0].scale.use_gpu
    assert not cli.parse_recipe(recipe, ["--scale.no-use-gpu"])[0].scale.use_gpu


def test_the_first_argument_names_a_row_and_the_first_row_is_the_default(tmp_path):
    path = tmp_path / "rows.py"
    path.write_text(
        textwrap.dedent(
            '''
            """Rows of a table.   python jobs/rows.py"""
            from pipeline import main
            from pipeline.recipe import Recipe
            from pipeline.rows import Paper, Row
            main({
                "one": Row(Recipe(name="first"), "A", (Paper(table="7", split="val", miou=1.5),)),
                "two": Row(Recipe(name="second"), "B"),
            })
            '''
        )
    )
    for arguments, name in ((["two"], "second"), (["one"], "first"), ([], "first")):
        printed = run(path, *arguments, "--optim.steps", "7", "--print-recipe")
        recipe = from_json(printed.stdout)
        assert (recipe.name, recipe.optim.steps) == (name, 7)
    for wrong in ("three", "tow"):
        done = run(path, wrong, "--print-recipe")
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert "the first argument is one of: one, two" in done.stderr
        assert ("perhaps you meant two" in done.stderr) == (wrong == "tow")
    listed = run(path, "--list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "one (default)  A      mIoU 1.5 (Table 7, val)" in listed.stdout
    shown = run(path, "--help")
    assert shown.returncode == 0
    for part in ("Rows of a table.", "mIoU 1.5 (Table 7, val)", "--optim.steps"):
        assert part in shown.stdout
    assert "--optim.steps" in run(path, "two", "--help").stdout


def test_a_run_ends_with_the_papers_numbers_and_its_result(tmp_path):
    path = tmp_path / "rows.py"
    path.write_text(
        textwrap.dedent(
            '''
            """A row with a number.   python jobs/rows.py"""
            import sys
            import types
            from pipeline import main
            from pipeline.recipe import Recipe
            from pipeline.rows import Paper, Row
            launch = types.ModuleType("pipeline.training.launch")
            launch.run = lambda recipe, row: {"mask_ap": 0.3794, "mask_ap50": None}
            sys.modules["pipeline.training.launch"] = launch
            paper = Paper(table="1f", split="val2017", mask_ap=38.6, mask_ap50=59.3)
            main({"one": Row(Recipe(name="first"), "A", (paper,)), "two": Row(Recipe(name="b"))})
            '''
        )
    )
    done = run(path)
    assert done.returncode == 0, done.stderr
    *_, paper, result = done.stdout.splitlines()
    assert paper == "mask AP 37.9 on val2017, the paper has 38.6 (Table 1f, val2017)"
    assert result.startswith("RESULT ")
    assert "the paper has" not in run(path, "two").stdout


SWEEP_JOB = '''
    """Search.   python jobs/sweep.py"""
    from pipeline.cli import main_sweep
    from pipeline.recipe import Recipe
    from pipeline.tuning.space import Range, Sweep

    main_sweep(Sweep(
        recipe=Recipe(name="job"),
        ranges=(Range(field="optim.lr_per_image", low=0.0001, high=0.01),),
    ))
'''


def test_a_sweep_takes_its_recipes_flags_and_its_own(tmp_path):
    job = tmp_path / "sweep.py"
    job.write_text(textwrap.dedent(SWEEP_JOB))
    done = run(job, "--optim.steps", "5000", "--trials", "7", "--print-recipe")
    assert from_json(done.stdout).optim.steps == 5000
    done = run(job, "--trial", "7")
    assert (done.returncode, "--trials" in done.stderr) == (2, True)
    done = run(job, "--trials", "0", "--optim.lr-per-image", "1")
    assert done.returncode == 2
    assert "trials: must be at least 1, got 0" in done.stderr
    assert (
        "\n  optim.lr_per_image: must be in the searched range 0.0001 to 0.01, got 1" in done.stderr
    )


def test_main_file_trains_the_recipe_of_a_file(tmp_path):
    job = tmp_path / "train.py"
    job.write_text("from pipeline.cli import main_file\nmain_file()\n")
    recipe = tmp_path / "winner.json"
    recipe.write_text(to_json(RECIPE))
    done = run(job, recipe, "--seed", "7", "--print-recipe")
    assert from_json(done.stdout) == replace(RECIPE, seed=7)
    for encoding in ("utf-8-sig", "utf-16"):
        recipe.write_bytes(to_json(RECIPE).encode(encoding))
        assert from_json(run(job, recipe, "--print-recipe").stdout) == RECIPE
    done = run(job, tmp_path / "absent.json")
    assert (done.returncode, "file not found" in done.stderr) == (2, True)
    done = run(job)
    assert (done.returncode, "no recipe file is given" in done.stderr) == (2, True)
    recipe.write_text('{"name": "x", "optm": {}}')
    done = run(job, recipe)
    assert (done.returncode, "perhaps you meant optim" in done.stderr) == (2, True)
    for other in (b"trial,state\n1,finished\n", b"\x89PNG\r\n"):
        recipe.write_bytes(other)
        done = run(job, recipe)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert f"{recipe}: the recipe is not valid JSON" in done.stderr
        assert "a sweep's winner.json" in done.stderr
