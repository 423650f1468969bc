import io

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from fmcache.datasets.add import add
from fmcache.datasets.split import split
from fmcache.errors import SpecError
from fmcache.manifest import Manifest


@pytest.fixture
def manifest(tmp_path):
    """Twelve tiles of four patients; tile i has i + 1 of 12 rows tumour. One tile is called no."""
    names = [*(f"t{i:02d}" for i in range(11)), "no"]
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for i, name in enumerate(names):
        Image.fromarray(np.full((12, 12, 3), 20 * i, "uint8")).save(tmp_path / "images" / f"{name}.png")
        mask = np.zeros((12, 12), "uint8")
        mask[: i + 1] = 1
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    groups = "tile,group\n" + "".join(f"{name},p{i % 4}\n" for i, name in enumerate(names))
    (tmp_path / "groups.csv").write_text(groups)
    path = tmp_path / "data_manifest.yaml"
    add(path, "mine", tmp_path / "images", tmp_path / "masks", labels="other=0,tumour=1", ignore="255", mpp=0.5,
        groups=str(tmp_path / "groups.csv"), split="6/3/3", seed=0, replace=False)  # fmt: skip
    path.write_text("# ours\n" + path.read_text())
    return path


def text(shown):
    console = Console(width=200, file=io.StringIO())
    console.print(shown)
    return console.file.getvalue()


def test_folds_and_subsets_are_written_beside_a_fixed_split_that_stays(manifest):
    before = Manifest(manifest).dataset()
    split(manifest, "mine", "", 4, "2,4,6", 0)
    after = Manifest(manifest).dataset()
    assert manifest.read_text().startswith("# ours\n")
    assert after.tiles == before.tiles
    assert [after.splits.of(s) for s in ("train", "val", "test")] == [
        before.splits.of(s) for s in ("train", "val", "test")
    ]
    assert len(after.folds) == 4
    for splits in (after.splits, *after.folds):
        assert [len(subset) for subset in splits.subsets] == [2, 4, 6]
    assert any("no" in fold.test for fold in after.folds)  # and not false


def test_the_same_command_writes_the_same_file_and_another_seed_another(manifest):
    written = []
    for seed in (0, 0, 1):
        split(manifest, "mine", "6/3/3", 4, "2", seed)
        written.append(manifest.read_text())
    assert written[0] == written[1] != written[2]
    split(manifest, "mine", "6/3/3", 0, "", 0)
    assert "folds" not in yaml.safe_load(manifest.read_text())["datasets"]["mine"]


def test_the_table_says_how_far_each_split_is_off_in_each_label(manifest):
    shown = text(split(manifest, "mine", "", 3 + 1, "", 0))
    dataset = Manifest(manifest).dataset()
    rows = {name: i + 1 for i, name in enumerate([*(f"t{i:02d}" for i in range(11)), "no"])}
    tumour = 100 * np.mean([rows[t] for t in dataset.folds[2].test]) / 12
    off = tumour - 100 * 6.5 / 12
    line = next(line for line in shown.splitlines() if "fold 2 test" in line)
    assert f"{tumour:.1f} ({off:+.1f})" in line
    assert f"{100 - tumour:.1f} ({-off:+.1f})" in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("", 0, ""), "nothing to do"),
        (("6/3", 0, ""), "--split"),
        (("", 0, "a few"), "--subsets"),
        (("", 0, "7"), "subsets of 7"),
        (("", 5, ""), "5 folds cannot be made"),
        (("20/5/10", 0, ""), "needs 35 tiles"),
    ],
)
def test_what_cannot_be_is_refused_and_the_manifest_stays_as_it_was(manifest, arguments, says):
    before = manifest.read_text()
    with pytest.raises(SpecError, match=says):
        split(manifest, "mine", *arguments, 0)
    assert manifest.read_text() == before


def test_folds_and_subsets_that_a_new_split_drops_are_reported(manifest):
    assert "removed" not in text(split(manifest, "mine", "", 4, "2,4", 0))
    told = " ".join(text(split(manifest, "mine", "6/3/3", 0, "", 0)).split())
    assert "note: 4 folds (--folds 4) and the subsets of 2,4 tiles (--subsets 2,4) were listed before" in told
