"""Who may import whom, and what a command may load before its body runs (fmcache's rooms; see README)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fmcache

ROOT = Path(fmcache.__file__).parent
GROUND = {
    "errors", "fonts", "identity", "locks", "remembered", "shortage", "strict", "specs", "manifest", "grid", "demand",
}  # fmt: skip
CARDS = {"encoders.cards"}
MAY = {
    "errors": set(),
    "fonts": set(),
    "identity": set(),
    "locks": {"errors", "identity"},
    "remembered": {"identity"},
    "shortage": {"errors"},
    "strict": {"errors"},
    "specs": {"errors", "strict"},
    "manifest": {"errors", "strict"},
    "grid": {"errors", "specs"},
    "demand": {"errors", "specs", "manifest"},
    "encoders.cards": GROUND,
    "tiles": GROUND | {"tiles"},
    "encoders": GROUND | {"encoders"},
    "cache": GROUND | {"cache"},
    "scores": GROUND | {"scores"},
    "decoders": GROUND | {"cache", "scores", "decoders"},
    "report": GROUND | {"scores", "report"},
    "stages.extract": GROUND | {"tiles", "cache", "stages"},
    "stages.asked": GROUND | {"stages"},
    "stages.filling": GROUND | {"tiles", "encoders", "cache", "stages", "scores"},
    "stages.shards": GROUND | {"tiles", "encoders", "cache", "stages"},
    "stages.labelled": GROUND | {"cache.reader", "scores.dice"},
    "stages.fit": GROUND | {"cache", "decoders", "scores", "stages"},
    "stages.report": GROUND | {"scores", "report"},
    "stages.cut": GROUND | {"tiles", "stages"},
    "stages.cut_plan": GROUND | {"tiles", "stages.progress"},
    "stages.squares": GROUND | {"tiles", "stages.progress"},
    "stages.merge": GROUND | {"tiles", "stages.progress"},
    "stages.entries": GROUND,
    "stages.data": GROUND | {"tiles", "stages"},
    "stages.fetch": GROUND | {"tiles", "stages"},
    "stages.download": GROUND | {"stages.progress"},
    "stages.check": GROUND | {"tiles", "stages"},
    "stages.show": GROUND | {"tiles", "stages"},
    "stages.split": GROUND | {"tiles", "stages"},
    "stages.sources": GROUND | {"stages"},
    "stages.survey": GROUND | {"tiles", "stages"},
    "stages.ahead": set(),
    "stages.runners": {"errors", "shortage", "stages.cluster"},
    "stages.cluster": {"errors"},
    "stages.progress": set(),
    "stages.flags": {"errors"},
    "stages.sizes": set(),
    "decoders.arithmetic": {"grid"},
    "stages.devices": {"errors"},
    "stages.identities": GROUND | {"cache.format"},
    "stages.scale": GROUND | {"cache.format"},
    "stages.places": GROUND | CARDS | {"stages.identities"},
    "stages.origins": GROUND
    | CARDS
    | {
        "cache",
        "encoders.index",
        "encoders.weights",
        "scores.table",
        "stages.identities",
    },
    "stages.caches": GROUND | {"cache", "scores", "stages"},
    "stages.catalogue": GROUND | CARDS | {"encoders.hub", "encoders.load", "stages.sizes"},
    "stages.costs": GROUND | CARDS | {"cache.stores", "decoders.arithmetic", "encoders.outlines", "stages.identities"},
    "stages.speed": GROUND | CARDS | {"encoders.tokens", "decoders", "stages"},
    "stages.plan": GROUND | CARDS | {"cache.stores", "encoders.load", "stages"},
    "stages.plan_table": {"demand", "specs", "stages"},
    "stages.access": GROUND | {"tiles", "encoders", "stages"},
    "study": GROUND | {"cache.reader", "decoders", "scores", "stages"},
    "commands": GROUND | CARDS | {"commands", "stages", "cache.verify"},
    "cli": GROUND | {"commands", "stages"},
}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if not name.endswith("__init__") and name != "__main__":
            yield name, path


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fmcache"):
            module = node.module.removeprefix("fmcache").lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                is_module = (ROOT / Path(*inner.split("."))).with_suffix(".py").exists()
                yield inner if is_module else module


def allowed(name):
    return MAY[name] if name in MAY else MAY[name.split(".")[0]]


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_a_module_imports_only_what_its_room_may(name, path):
    for target in imported(path):
        may = allowed(name)
        assert target in may or target.split(".")[0] in may, f"{name} imports {target}"


def loaded_after(code):
    script = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


HEAVY = {"torch", "timm", "zarr", "numcodecs", "polars", "numpy", "dask", "distributed", "matplotlib", "PIL", "cv2"}
HEAVY |= {"shapely", "rasterio", "requests", "openslide"}


def test_help_loads_the_ground_floor_and_typer_only():
    assert not HEAVY & loaded_after("import fmcache.cli, fmcache.specs, fmcache.manifest, fmcache.encoders.cards")


def test_the_light_import_test_can_fail():
    assert "numpy" in loaded_after("import fmcache.cache.layout")


def test_fit_loads_no_timm_no_images_and_no_hub():
    assert not {"timm", "torchvision", "PIL", "cv2", "rasterio", "huggingface_hub"} & loaded_after(
        "import fmcache.stages.fit"
    )


def test_report_loads_no_torch_and_no_cache():
    assert not {"torch", "timm", "zarr", "cv2"} & loaded_after("import fmcache.stages.report")


def test_a_plan_without_measuring_loads_no_torch():
    assert not {"torch", "timm", "cv2"} & loaded_after("import fmcache.stages.plan")


def test_the_list_of_encoders_loads_no_zarr_and_no_torch():
    assert not {"torch", "timm", "zarr", "numpy"} & loaded_after("import fmcache.stages.catalogue")


def test_the_serial_runner_needs_no_dask():
    assert not {"dask", "distributed"} & loaded_after("import fmcache.stages.extract, fmcache.stages.fit")


def test_public_names_are_there_and_importing_fmcache_loads_none_of_their_rooms():
    for name in fmcache.__all__:
        assert getattr(fmcache, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fmcache.nothing
    assert not HEAVY & loaded_after("import fmcache")
