"""The walls hold: fit runs where no encoder or image can be opened, report where no torch is installed."""

import subprocess
import sys

import pytest
import yaml

RECIPE = {
    "name": "toy", "encoders": ["raw-pixels", "colour-texture"], "tile_px": 32, "views": {"count": 1},
    "decoder": {"width": 4}, "fit": {"seeds": 1, "epochs": 1, "batch": 2, "validate_epochs": 1},
}  # fmt: skip
BLOCKED = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"{{name}} is behind a wall", name=name)

sys.meta_path.insert(0, Wall())
"""
IMAGES_AND_MODELS = {
    "timm",
    "torchvision",
    "PIL",
    "cv2",
    "rasterio",
    "shapely",
    "tifffile",
    "openslide",
    "huggingface_hub",
}
TENSORS_AND_CACHE = {"torch", "zarr", "numcodecs", "safetensors"} | IMAGES_AND_MODELS - {
    "PIL"
}  # matplotlib needs Pillow


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a recipe and a manifest of drawn tiles, extracted."""
    folder = tmp_path_factory.mktemp("walls")
    demo = {
        "format": "demo", "seed": 1, "size_px": 32,
        "labels": [{"name": n, "colour": c} for n, c in (("a", "#ff0000"), ("b", "#00ff00"), ("c", "#0000ff"))],
        "tiles": [{"id": f"t{i}"} for i in range(4)],
        "splits": {"train": ["t0", "t1"], "val": ["t2"], "test": ["t3"]},
    }  # fmt: skip
    manifest = {"format": 1, "default": "toy", "datasets": {"toy": demo}}
    (folder / "data_manifest.yaml").write_text(yaml.safe_dump(manifest))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    ended = behind(set(), folder, "extract", "--recipe", "recipe.yaml", "--device", "cpu")
    assert ended.returncode == 0, ended.stderr
    return folder


def behind(names, folder, *command):
    """Run a command in a process in which modules cannot be imported."""
    script = BLOCKED.format(names=names or "()") + "from fmcache.cli import main\nmain()\n"
    return subprocess.run(
        [sys.executable, "-c", script, *command], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )


def test_fit_runs_without_encoders_images_and_hub_and_report_without_torch_and_zarr(study):
    fitted = behind(IMAGES_AND_MODELS, study, "fit", "--recipe", "recipe.yaml", "--device", "cpu")
    assert fitted.returncode == 0, fitted.stderr
    assert fitted.stdout.count("test Dice") == 2
    reported = behind(TENSORS_AND_CACHE, study, "report")
    assert reported.returncode == 0, reported.stderr
    assert (study / "work" / "report" / "toy" / "report.md").exists()
    script = BLOCKED.format(names=TENSORS_AND_CACHE) + (
        "import fmcache\nstudy = fmcache.Study('recipe.yaml')\nprint(study.results().height, study.dice().height)\n"
    )
    read = subprocess.run([sys.executable, "-c", script], cwd=study, capture_output=True, text=True, check=False)
    assert read.stdout.split() == [str(2 * 2 * 3), str(2 * 3)], read.stderr


@pytest.mark.parametrize(
    ("names", "command"), [({"cv2"}, ["extract", "--recompute"]), ({"torch"}, ["fit", "--recompute"])]
)
def test_a_wall_stops_what_needs_what_is_behind_it(study, names, command):
    ended = behind(names, study, *command, "--recipe", "recipe.yaml", "--device", "cpu", "--work", "elsewhere")
    assert ended.returncode != 0
    assert "is behind a wall" in ended.stderr
