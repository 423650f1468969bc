"""Removals of caches that are killed at any point: what is extracted next, from another dataset, holds nothing old."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from fmcache.cache.reader import open_cache
from fmcache.cache.verify import verify_cache

RECIPE = {"name": "toy", "encoders": ["raw-pixels"], "tile_px": 32, "views": {"count": 1}}

FORKS = """
import json, os, re, sys
import fmcache.cli, fmcache.stages.extract, fmcache.stages.filling  # once for all commands
import fmcache.commands.caches, fmcache.cache.verify

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "open"}
folder = sys.argv[1]

def run(arguments, kill_at):
    changes = 0
    def count(event, args):
        nonlocal changes
        if event not in CHANGES or event == "open" and "r" in str(args[1] or "r"):
            return
        if folder in str(args[0]) or event in ("os.remove", "os.rmdir") and args[1] != -1:  # by rmtree, below a folder
            changes += 1
            if changes == kill_at or isinstance(kill_at, str) and re.search(kill_at, str(args[0])):
                os.kill(os.getpid(), 9)
    sys.addaudithook(count)
    sys.argv = ["fmcache", *arguments]
    code = 0
    try:
        fmcache.cli.main()
    except SystemExit as end:
        code = end.code or 0
    return code, changes

for line in sys.stdin:
    arguments, kill_at = json.loads(line)
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(theirs, 2)
        code, changes = run(arguments, kill_at)
        os.write(theirs, f"\\nchanges {changes}".encode())
        os._exit(code)
    os.close(theirs)
    with open(ours, errors="replace") as file:
        said = file.read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]), flush=True)
"""


class Commands:
    """The command line, each command in a process of its own that is forked when all of it has been loaded."""

    def __init__(self, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *arguments, kill_at=0):
        """Run a command; return (code, stderr).

        `kill_at` tells before which change of the file system it is killed: the number of one, or what its path holds.
        """
        self.process.stdin.write(json.dumps([arguments, kill_at]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def study(tmp_path_factory, make_study):
    """Two manifests of other tiles under the same names: all of the second is extracted, and two starts of the first.

    One was killed when the mask cache had all its shards and was not sealed, one when the tokens had.
    """
    folder = tmp_path_factory.mktemp("killed")
    (folder / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    commands = Commands(folder)
    for seed in (1, 2):
        (folder / str(seed)).mkdir()
        make_study(folder / str(seed), seed)
    for kind in ("view-bank", "raw-pixels"):
        assert commands.run(*extract(folder, folder / kind, 1), kill_at=rf"toy/{kind}/.*checksums-")[0] == -9
        assert len(list((folder / kind / "cache").glob(f"toy/{kind}/*/filling/*"))) == 4
    assert commands.run(*extract(folder, folder / "whole", 2))[0] == 0
    yield folder, commands
    commands.process.kill()
    commands.process.communicate()


def extract(folder, work, seed, *more):
    manifest, recipe = str(folder / str(seed) / "data_manifest.yaml"), str(folder / "r.yaml")
    return ("extract", "--manifest", manifest, "--recipe", recipe, "--work", str(work), "--device", "cpu", *more)


def caches(work):
    return sorted((work / "cache").rglob("*.zarr"))


def shards(work):
    return {str(f.relative_to(work)): f.read_bytes() for f in (work / "cache").rglob("c/*/*/**/*") if f.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(("removal", "start"), [("cache rm", "view-bank"), ("--recompute", "raw-pixels")])
def test_whatever_a_killed_removal_left_the_next_extract_gives_the_new_masks_or_refuses(study, removal, start):
    folder, commands = study
    work = folder / "work"

    def removed(kill_at):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder / start, work)
        if removal == "cache rm":
            return commands.run("cache", "rm", "--yes", *map(str, caches(work)), kill_at=kill_at)
        return commands.run(*extract(folder, work, 2, "--recompute"), kill_at=kill_at)

    code, said = removed(0)
    assert code == 0, said
    changes = int(said.rpartition("changes ")[2])
    for kill_at in range(1, changes + 1, max(1, changes // 5)):
        code = removed(kill_at)[0]
        if code == 0 and kill_at > changes - 6:
            continue  # threads try to make the same folder a few times more, or less: it had ended before
        assert code == -9, kill_at
        code, said = commands.run(*extract(folder, work, 2))
        if code:
            assert "was made from other inputs" in said, (kill_at, said)
            assert "tiles.a" in said
            code, said = commands.run(*extract(folder, work, 2, "--recompute"))
        assert code == 0, (kill_at, said)
        assert shards(work) == shards(folder / "whole"), kill_at
        for path in caches(work):
            assert verify_cache(path, lambda _: None).problems == []
            open_cache(path, "view_bank" if "view-bank" in str(path) else "tokens", {})
        assert [left for left in (work / "cache").rglob(".*") if not left.name.endswith(".lock")] == []
