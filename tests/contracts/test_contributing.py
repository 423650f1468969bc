"""For contributors: checks of CONTRIBUTING.md, the CI workflow, the hooks, and the package's metadata."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PAGE = ROOT / ".github" / "CONTRIBUTING.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TASKS = ("an encoder", "a dataset format", "a decoder", "a score", "a command", "a field of the recipe")


def paths(text):
    """Return the files and folders that a text names in code marks: words with a slash, and files of the top level."""
    words = re.findall(r"[\w./-]+", " ".join(re.findall(r"`+([^`]+)`+", text)))
    return sorted({word for word in words if "/" in word or word.endswith((".md", ".toml", ".yaml"))})


def absent(text):
    return [path for path in paths(text) if not (ROOT / path).exists()]


def test_every_path_on_the_page_exists():
    found = paths(PAGE.read_text())
    assert {"fmcache/specs.py", "README.md", ".ci/run", "tests/decoders", "fmcache/encoders/cards/"} <= set(found)
    assert absent(PAGE.read_text()) == []


def test_the_check_of_paths_can_fail():
    text = "```sh\npytest tests/nowhere -k x\n```\n`fmcache/no/file.py`, `fmcache/specs.py` and `ABSENT.md`"
    assert absent(text) == ["ABSENT.md", "fmcache/no/file.py", "tests/nowhere"]


@pytest.mark.parametrize("task", TASKS)
def test_every_task_names_files_to_touch_and_a_test_to_run(task):
    (row,) = re.findall(rf"^\| {task} \| (.*) \| (.*) \|$", PAGE.read_text(), re.M)
    touch, run = row
    assert any(path.startswith("fmcache/") for path in paths(touch))
    assert re.search(r"`pytest tests/", run)


def test_the_page_fits_one_screen():
    assert len(PAGE.read_text().splitlines()) <= 60


def test_the_workflow_runs_ci_run_on_every_python_that_the_package_allows():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML reads the key `on` as true
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    versions = job["strategy"]["matrix"]["python-version"]
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert versions == [f"3.{minor}" for minor in range(11, 11 + len(versions))]
    assert all(version in allowed for version in versions)
    assert "3.10" not in allowed  # the oldest tested version is the oldest allowed one
    listed = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert listed == versions


def test_actions_are_pinned_to_a_major_version():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    uses = re.findall(r"uses: (\S+)", text)
    assert uses
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in uses)


def test_hooks_run_the_linters_of_ci_run_from_the_dev_extra():
    hooks = [
        hook
        for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
        for hook in repository["hooks"]
    ]
    dev = {Requirement(line).name for line in PROJECT["optional-dependencies"]["dev"]}
    assert {"ruff", "mypy", "pre-commit"} <= dev
    # hooks use the environment's linters, so that no second place lists their versions
    assert all(hook["language"] == "system" and hook["entry"].split()[0] in dev for hook in hooks)
    ours = {" ".join(hook["entry"].split()[:2]) for hook in hooks}
    assert ours == {"ruff check", "ruff format", "mypy"}
    script = (ROOT / ".ci" / "run").read_text()
    assert all(re.search(rf"^{entry}\b", script, re.M) for entry in ours)


def test_the_citation_and_the_licence_are_those_of_the_package():
    (entry,) = re.findall(r"```bibtex\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    cited = dict(re.findall(r"(\w+)\s*=\s*\{+(.*?)\}+,?\n", entry))
    assert cited["version"] == PROJECT["version"]
    assert cited["author"] == PROJECT["authors"][0]["name"]
    licence = (ROOT / "LICENSE").read_text()
    assert licence.startswith(f"{cited['license']} License")
    assert cited["license"] == PROJECT["license"]
    assert cited["year"] in licence


def named_in_tree(tree):
    """Yield the path of every file and folder in a tree; later names in a line lie below the folder that starts it."""
    base, inside = Path(), Path()
    for line in tree.splitlines():
        indent, first, rest = re.fullmatch(r"( *)(\S+)(.*)", line).groups()
        if len(indent) <= 2:
            outer = Path() if not indent else inside
            base = outer / first if first.endswith("/") else outer
            inside = base if not indent else inside
            yield outer / first
            first = ""
        yield from (base / name for name in re.findall(r"[\w.-]+\.(?:py|md|yaml)\b|\w+/(?=[:;) ])", first + rest))


def test_every_file_in_the_tree_of_the_readme_exists():
    (tree,) = re.findall(r"## Files\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    named = list(map(str, named_in_tree(tree)))
    assert {"fmcache/specs.py", "fmcache/stages/fit.py", "fmcache/encoders/cards", "pipelines/fuzz.py"} <= set(named)
    assert [path for path in named if not (ROOT / path).exists()] == []
    rooms = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "fmcache").glob("*/__init__.py")}
    assert rooms <= set(named)


def test_the_check_of_the_tree_can_fail():
    tree = "a.yaml     inputs\nroom/\n  one.py   first\n  two/     three.py: third,\n           four.md; five/: fifth\n"
    expected = ["a.yaml", "room", "room/one.py", "room/two", "room/two/three.py", "room/two/four.md", "room/two/five"]
    assert list(map(str, named_in_tree(tree))) == expected
