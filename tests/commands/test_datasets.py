from pathlib import Path

from fmcache.commands.data import data_list
from fmcache.commands.datasets import list_datasets
from fmcache.manifest import Manifest

ROOT = Path(__file__).parents[2]
LABELS = """
    labels:
      - {name: tumour, colour: "#d55e00"}
      - {name: 间质, colour: "#009e73"}
"""
FOLDER = f"""
format: 1
default: mine
datasets:
  mine:
    format: folder
    root: tiles{LABELS}
    tiles:
      - {{id: a, group: p1, image: a.png, mask: a.png, image_sha256: {"a" * 64}, mask_sha256: {"a" * 64}}}
      - {{id: b, group: p1, image: b.png, mask: b.png, image_sha256: {"a" * 64}, mask_sha256: {"a" * 64}}}
      - {{id: c, image: c.png, mask: c.png, image_sha256: {"a" * 64}, mask_sha256: {"a" * 64}}}
      - {{id: d, image: d.png, mask: d.png, image_sha256: {"a" * 64}, mask_sha256: {"a" * 64}}}
    splits: {{train: [a, b], val: [c], test: [d], subsets: [[a], [a, b]]}}
"""


def rows(listed):
    table = list_datasets(listed)
    names, *cells = (list(column.cells) for column in table.columns)
    titles = [column.header for column in table.columns[1:]]
    return {name: dict(zip(titles, row, strict=True)) for name, *row in zip(names, *cells, strict=True)}


def test_datasets_are_listed_with_sizes_splits_and_labels_also_those_not_fetched():
    found = rows(Manifest(ROOT / "data_manifest.yaml"))
    assert {"demo", "puma", "puma-official", "upv-anxa5"} <= set(found)
    demo = found["demo"]
    assert (demo["tiles"], demo["groups"], demo["split"], demo["um/px"]) == ("30", "10", "15/5/10", "0.5")
    assert (demo["labels"], demo["files"]) == ("tumour, stroma, other", "drawn")
    assert (found["puma"]["tiles"], found["puma"]["files"]) == ("–", "not fetched")


def test_groups_subsets_and_a_missing_folder_are_told(tmp_path):
    path = tmp_path / "data_manifest.yaml"
    path.write_text(FOLDER)
    mine = rows(Manifest(path))["mine"]
    assert (mine["tiles"], mine["groups"], mine["split"], mine["subsets"]) == ("4", "3", "2/1/1", "1,2")
    assert (mine["folds"], mine["um/px"], mine["files"]) == ("–", "–", "missing: tiles")
    (tmp_path / "tiles").mkdir()
    assert rows(Manifest(path))["mine"]["files"] == "tiles"


def test_the_list_is_whole_on_a_narrow_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    path = tmp_path / "data_manifest.yaml"
    path.write_text(FOLDER)
    data_list(path)
    shown = capsys.readouterr().out
    assert "labels: tumour, 间质" in shown
    assert {"mine", "split: tiles to train / validate / test"} <= set(shown.splitlines())
