"""A tiny study in its own folder, and its states: the contents of all files, to be restored and compared."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from torturing.commands import Running, run

State = dict[str, bytes]
"""Content of each file of a study, by its path below the study's folder."""

DATASETS = ("mine", "got", "toy")
"""A folder of tiles, a fetched dataset (its tiles are in a lock file), and drawn tiles; each has its own recipe."""

MORE, CARD, MANIFEST = "more.yaml", "tiny.yaml", "data_manifest.yaml"
FETCHED = "got.lock.yaml"
HUB = "hub"
"""Folder of the hub's local cache, with a weights file that looks downloaded."""

SIDE, TILES = 64, 6
LABELS = {"a": "#ff0000", "b": "#00ff00", "c": "#0000ff"}
ADD = f"data add mine --images mine/images --masks mine/masks --labels a=0,b=1,c=2 --mpp 0.5 --split {TILES - 2}/1/1"
REPORT, VERIFY = "report", "cache verify"
PLAIN = "--device cpu --threads 1"
SPLIT = "data split mine --split 3/2/1 --folds 3 --subsets 1,2"
_COMMIT = "0123456789abcdef" * 2 + "01234567"
_ARCHITECTURE = "vit_tiny_patch16_224"
_ARGUMENTS = {"img_size": SIDE, "depth": 2, "embed_dim": 24, "num_heads": 2}


def draw(folder: Path) -> None:
    """Write a new study: manifest, tiles of two datasets, recipes, a card, its weights. No command has run on it."""
    folder.mkdir(parents=True)
    demo = {
        "format": "demo", "seed": 1, "size_px": SIDE,
        "labels": [{"name": name, "colour": colour} for name, colour in LABELS.items()],
        "tiles": [{"id": f"t{i}"} for i in range(4)],
        "splits": {"train": ["t0", "t1"], "val": ["t2"], "test": ["t3"]},
    }  # fmt: skip
    fetched = {
        "format": "folder", "root": "got", "mpp": 0.5, "fetch": {"split": "4/1/1"},
        "labels": [{"name": n, "colour": c, "values": [i]} for i, (n, c) in enumerate(LABELS.items())],
    }  # fmt: skip
    manifest = {"format": 1, "default": "toy", "datasets": {"toy": demo, "got": fetched}}
    (folder / MANIFEST).write_text("# A study to be tortured.\n" + yaml.safe_dump(manifest, sort_keys=False))
    for name in ("mine", "got"):
        _draw_tiles(folder / name, seed=len(name))
    card = {
        "name": "tiny", "title": "Tiny ViT", "architecture": _ARCHITECTURE, "arguments": _ARGUMENTS, "patch": 16,
        "width": 24, "prefix_tokens": 1, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2],
        "weights": {"repo": "toy/tiny", "file": "model.safetensors"},
    }  # fmt: skip
    (folder / CARD).write_text(yaml.safe_dump(card, sort_keys=False))
    recipe = {
        "encoders": ["raw-pixels", CARD], "tile_px": SIDE, "views": {"count": 2}, "decoder": {"width": 4},
        "fit": {"seeds": 2, "epochs": 2, "batch": 2, "validate_epochs": 1, "learning_rate": 0.01},
    }  # fmt: skip
    recipes = {f"{name}.yaml": {"name": name, "datasets": [name], **recipe} for name in DATASETS}
    recipes[MORE] = recipes["mine.yaml"] | {"views": {"count": 4}}
    for name, content in recipes.items():
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False))
    _draw_weights(folder / HUB / "models--toy--tiny")


def _draw_tiles(folder: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(TILES):
        mask = np.repeat(np.repeat(generator.integers(0, 3, (4, 4), np.uint8), SIDE // 4, 0), SIDE // 4, 1)
        image = 60 * mask[..., np.newaxis] + generator.integers(0, 80, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(image).save(folder / "images" / f"p{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"p{i}.png")


def _draw_weights(folder: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    model = timm.create_model(_ARCHITECTURE, num_classes=0, **_ARGUMENTS)
    generator = torch.Generator().manual_seed(0)
    values = {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in model.state_dict().items()}
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(_COMMIT)
    (folder / "snapshots" / _COMMIT).mkdir(parents=True)
    save_file(values, folder / "snapshots" / _COMMIT / "model.safetensors")


class Study:
    """A study in a folder, and its named states; each state is made when it is first needed.

    `bare`: just drawn; `added`: a folder is listed too; `split`: it has splits too; `listed`: another dataset is
    fetched too. Each dataset then has ``NAME.extracted``, ``NAME.half`` (killed in the middle of the extract),
    ``NAME.fitted`` and ``NAME.reported``. ``more.extracted`` got more views in a second extract; ``many.extracted`` and
    ``many.half`` got them in one extract.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        draw(folder)
        self._states = {"bare": state_of(folder)}
        self.life_s: dict[str, float] = {}
        """Duration, in seconds, of the commands that made a state, by its name."""

    def at(self, name: str) -> State:
        """Return a state. The folder is in that state only if it was made by this call."""
        if name not in self._states:
            before, *steps = self._way_to(name)
            self.put_back(before)
            if name.endswith(".half"):
                self._halve(steps[0])
            else:
                self.life_s[name] = sum(self._done(command) for command in steps)
            self._states[name] = state_of(self.folder)
        return self._states[name]

    def put_back(self, name: str) -> None:
        """Restore a state in the folder."""
        put_back(self.folder, self.at(name))

    def cache(self, kind: str) -> str:
        """Return the path of a cache of the dataset `mine`: that of an encoder, or the mask cache."""
        return next(
            name.partition(".zarr")[0] + ".zarr" for name in self.at("mine.extracted") if f"mine/{kind}/" in name
        )

    def _way_to(self, name: str) -> tuple[str, ...]:
        first = {"added": ("bare", ADD), "split": ("added", SPLIT), "listed": ("split", "data fetch got")}
        if name in first:
            return first[name]
        dataset, _, stage = name.partition(".")
        if dataset in ("more", "many"):
            return ("mine.extracted" if dataset == "more" else "listed", extract(MORE))
        return {
            "extracted": ("listed", extract(f"{dataset}.yaml")),
            "half": ("listed", extract(f"{dataset}.yaml")),
            "fitted": (f"{dataset}.extracted", fit(f"{dataset}.yaml")),
            "reported": (f"{dataset}.fitted", REPORT),
        }[stage]

    def _done(self, command: str) -> float:
        done = run(self.folder, command)
        if done.code:
            raise SystemExit(
                f"fmcache {command} ended with code {done.code} although nothing was killed or damaged:\n{done.text}"
            )
        return done.wall_s

    def _halve(self, command: str) -> None:
        """Kill an extract when the tokens of its last encoder are half written."""
        for _ in range(50):
            running = Running(self.folder, tuple(command.split()))
            while not running.ended() and len(list(self.folder.glob("work/cache/*/tiny/*/filling/[0-9]*"))) < 2:
                pass
            running.signal(signal.SIGKILL)
            running.wait()
            if list(self.folder.glob("work/cache/*/tiny/*/filling/[0-9]*")):
                return
            self.put_back("listed")
        raise SystemExit("an extract could not be killed half way")


def extract(recipe: str) -> str:
    """Return the command that extracts a recipe."""
    return f"extract --recipe {recipe} --offline {PLAIN}"


def fit(recipe: str) -> str:
    """Return the command that fits a recipe."""
    return f"fit --recipe {recipe} {PLAIN}"


def state_of(folder: Path) -> State:
    """Return the content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def put_back(folder: Path, state: State) -> None:
    """Restore exactly the files of a state in a folder; files that are equal already are not written."""
    for path in sorted(folder.rglob("*"), reverse=True):
        name = str(path.relative_to(folder))
        if path.is_dir() and not path.is_symlink():
            if name in state:
                shutil.rmtree(path)
            elif not any(path.iterdir()):
                path.rmdir()
        elif name not in state:
            path.unlink()
    for name, content in state.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def compared(state: State, only: Callable[[str], bool] = bool) -> State:
    """Return what must be equal after an interruption: a state without lock files, remembered hashes and times."""
    kept = {name: content for name, content in state.items() if only(name) and not _PASSING.search(name)}
    return {name: _essence(name, content) for name, content in kept.items()}


_PASSING = re.compile(r"(^|/)\.[^/]*\.lock$|hashes\.json$|/matplotlib/|^work/report/.*(/costs?\.[a-z]+|/report\.html)$")
"""Files that differ between two runs of the same commands. A report states the time of extract and fit in its figure
and table of costs, and in its page; its other files are compared."""
_COSTS = re.compile(rb"^### Costs\n.*?(?=^#|^!\[|\Z)", re.M | re.S)


def _essence(name: str, content: bytes) -> bytes:
    """Return the content to compare.

    That is ``run.json`` without times, costs and checksum; the header of a cache without its cost and checksum; the
    text of a report without its costs; the values of YAML; all of any other file.
    """
    try:
        if name.endswith("run.json"):
            record = json.loads(content)
            passing = ("wall_s", "together", "extraction", "sha256")
            return json.dumps({k: v for k, v in record.items() if k not in passing}).encode()
        if name.endswith(".zarr/zarr.json"):
            group = json.loads(content)
            header = group["attributes"]["fmcache"]
            del header["checksum"]
            header["about"].pop("extraction", None)
            return json.dumps(group).encode()
        if name.endswith("/report.md"):
            return _COSTS.sub(b"", content)
        if name.endswith(".yaml"):
            return json.dumps(yaml.safe_load(content)).encode()
    except (ValueError, AttributeError, TypeError, LookupError, RecursionError, yaml.YAMLError):
        pass
    return content


def differing(one: State, other: State) -> list[str]:
    """Return the files that differ between two states, or that only one of them has."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def leftovers(folder: Path) -> list[str]:
    """Return files and folders that a successful command must not leave."""
    names = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return [name for name in names if re.search(r"\.(partial|removed)$|(^|/)(filling|damaged)$", name)]
