"""README and docs: every file, link, picture, make target and flag that they name exists."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_README_LINES = 200
MAX_PICTURE_BYTES = 500_000

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "jobs" / "README.md",
    ROOT / "cluster" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
TEXTS = dict(zip(NAMES, (page.read_text() for page in PAGES), strict=True))

CODE_FOLDERS = ("bsm", "pipeline", "jobs", "tests", "cluster")


def code_lines(text: str) -> list[str]:
    """Return the lines of the code blocks that show commands, with continued lines joined."""
    blocks = re.findall(r"^ *```(?:bash)?\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return "".join(blocks).replace("\\\n", " ").splitlines()


def job_commands() -> dict[str, str]:
    """Return every command that runs a job, with its page; those of `bsm` as its file."""
    return {
        re.sub("^bsm ", "jobs/command.py ", command): name
        for name, text in TEXTS.items()
        for line in code_lines(text)
        for command in re.findall(
            r"(?:python (?=jobs)|^ *(?=bsm ))((?:jobs/\S+\.py|bsm)[^#]*)", line
        )
    }


@functools.cache
def show_help(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command, "--help"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_is_short_and_links_every_page():
    readme = TEXTS["README.md"]
    assert readme.count("\n") <= MAX_README_LINES
    assert [name for name in NAMES if name != "README.md" and f"({name})" not in readme] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("docs/")])
def test_a_page_opens_with_a_command_or_code(name):
    lines = TEXTS[name].splitlines()
    assert lines[0].startswith("# ")
    assert lines[2].startswith("```")


@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_page_names_exists(name):
    text = TEXTS[name]
    folders = "|".join((*CODE_FOLDERS, "docs"))
    named = set(re.findall(rf"(?<![\w/.~-])(?:{folders})/[\w./-]*\w/?", text))
    missing = [path for path in named if not (ROOT / path).exists()]
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", prose)
    missing += [link for link in links if not (ROOT / name).parent.joinpath(link).exists()]
    assert missing == []


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_small(name):
    for picture in re.findall(r"!\[[^]]+\]\((\S+)\)", TEXTS[name]):
        size = (ROOT / name).parent.joinpath(picture).stat().st_size
        assert size <= MAX_PICTURE_BYTES, picture


@pytest.mark.parametrize("name", [*NAMES, ".ci/run"])
def test_every_make_target_exists(name):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / name).read_text()
    assert set(re.findall(r"(?:^|`) *make ([a-z]+)", text, re.MULTILINE)) <= targets


def test_the_readme_starts_with_the_quickstart():
    assert "make quickstart" in code_lines(TEXTS["README.md"])


@pytest.mark.parametrize("command", sorted(job_commands()), ids=lambda command: command[:60])
def test_every_flag_of_a_job_command_exists(command):
    job, *words = shlex.split(command)
    if job == "jobs/command.py":
        file, *words = words
        job = f"jobs/{words.pop(0) if file == 'train' else file}.py"
    verbs = [word for word in words[:1] if re.fullmatch("[a-z][a-z0-9-]*", word)]
    flags = [word for word in words if word.startswith("--")]
    # The recipe in a file is that of the reader, and jobs/coco_r50.py has the same fields.
    program = "jobs/coco_r50.py" if job == "jobs/train.py" else job
    if program != job:
        verbs = []
    shown = show_help(program, *verbs)
    other = ("--help", "--list")
    missing = [f for f in flags if f not in other and not re.search(rf"(?<!\S){f}(?![\w-])", shown)]
    assert missing == [], f"{job_commands()[command]}: {command}"


def test_every_recipe_flag_exists():
    jobs = ("coco_r50", "cityscapes_semantic_r50", "refine_coco")
    shown = "".join(show_help(f"jobs/{job}.py") for job in jobs)
    known = set(re.findall(r"--[a-z][\w.-]*", shown))
    for name, text in TEXTS.items():
        flags = set(re.findall(r"(?<!\S)`?(--[a-z]+\.[a-z0-9.-]+[a-z0-9])", text))
        assert flags <= known, name


def test_the_map_names_every_folder_of_the_code():
    mapped = set(re.findall(r"`((?:bsm|pipeline|jobs|tests|cluster)/[^`]*)`", TEXTS["docs/map.md"]))
    wrong = {
        path
        for path in mapped
        if not ((ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file())
    }
    assert wrong == set()
    folders = {
        f"{path.parent.relative_to(ROOT)}/"
        for top in CODE_FOLDERS
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    # tests/pipeline and cluster hold files of their own; every other folder does too.
    assert folders - mapped == set()
