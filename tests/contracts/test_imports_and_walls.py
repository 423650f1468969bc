"""Which modules a room of fmcache may import, and what may be loaded before a command's body runs (see README)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fmcache

ROOT = Path(fmcache.__file__).parent
GROUND = (
    "errors", "identity", "fonts", "strict", "shortage", "locks", "pins", "remembered", "quoting", "settings", "specs",
    "manifest", "grid", "demand",
)  # fmt: skip
"""The ground floor: every room but runtime may import it; each of its modules may import the modules before it."""
BELOW = set(GROUND)
MAY = {
    "runtime": {"errors", "shortage", "runtime"},
    "tiles": BELOW | {"tiles"},
    "slides": BELOW | {"tiles", "slides"},
    "maps": BELOW | {"tiles", "maps"},
    "datasets": BELOW | {"runtime", "tiles", "slides", "datasets"},
    "encoders": BELOW | {"encoders"},
    "encoders.cards": BELOW,
    "cache": BELOW | {"cache"},
    "scores": BELOW | {"scores"},
    "decoders": BELOW | {"cache", "scores", "decoders"},
    "prediction": BELOW | {"runtime", "tiles", "maps", "encoders", "cache", "decoders", "prediction"},
    "statistics": BELOW | {"scores", "statistics"},
    "report": BELOW | {"scores", "statistics", "report"},
    "remote": BELOW | {"cache", "scores", "runtime", "remote"},
    "bundles": BELOW | {"cache", "encoders", "decoders", "scores", "report", "bundles"},
    "stages": BELOW
    | {"runtime", "tiles", "slides", "encoders", "cache", "decoders", "scores", "report", "bundles", "remote"}
    | {"stages"},
    "stages.predict": BELOW | {"runtime", "slides", "maps", "encoders", "scores", "prediction", "bundles", "stages"},
    "stages.predict_request": BELOW | {"maps", "stages"},
    "stages.slide_tokens": BELOW
    | {"runtime", "slides", "encoders", "cache", "decoders", "scores", "prediction", "stages"},
    "stages.slide_maps": BELOW | {"runtime", "slides", "maps", "prediction", "stages"},
    "stages.model_setup": BELOW | {"encoders", "cache", "decoders", "scores", "prediction", "bundles", "stages"},
    "stages.fit": BELOW | {"runtime", "cache", "decoders", "scores", "stages"},
    "stages.encoder_runs": BELOW | {"runtime", "cache", "decoders", "scores", "stages"},
    "stages.report": BELOW | {"scores", "report"},
    "planning": BELOW | {"runtime", "encoders", "cache", "decoders", "stages", "planning"},
    "commands": BELOW
    | {"runtime", "tiles", "maps", "encoders", "cache", "scores", "report", "remote", "stages", "datasets", "planning"}
    | {"commands"},
    "cli": BELOW | {"runtime", "stages", "planning", "commands"},
    "study": BELOW | {"cache", "decoders", "runtime", "scores", "remote", "stages"},
}
"""What each room may import; a module with its own row may import less than its room."""
REPEATED = {"report"}
"""Names that two modules may have: the stage has the name of what it writes."""


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
    if name in GROUND:
        return set(GROUND[: GROUND.index(name)])
    return MAY[name] if name in MAY else MAY[name.split(".")[0]]


@pytest.mark.parametrize(("name", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_a_module_imports_only_what_its_room_may(name, path):
    for target in imported(path):
        may = allowed(name)
        assert target in may or target.split(".")[0] in may, f"{name} imports {target}"


def test_rooms_state_their_purpose_and_what_they_may_import():
    for room in sorted(path.parent for path in ROOT.glob("*/__init__.py")):
        text = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
        assert "Imports " in text, room.name
        assert len(text.splitlines()) == 1, room.name
        assert room.name in MAY, room.name


def without_a_letter(name):
    return {name[:i] + name[i + 1 :] for i in range(len(name))}


def test_no_two_modules_have_the_same_name_or_names_that_differ_by_one_letter():
    names = sorted(name.split(".")[-1] for name, _ in modules())
    assert {name for name in names if names.count(name) > 1} <= REPEATED
    assert [(name, shorter) for name in names for shorter in without_a_letter(name) & set(names)] == []


def loaded_after(code):
    script = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


HEAVY = {"torch", "timm", "zarr", "numcodecs", "polars", "numpy", "dask", "distributed", "matplotlib", "PIL", "cv2"}
HEAVY |= {"shapely", "rasterio", "requests", "openslide", "scipy"}


def test_help_loads_the_ground_floor_and_typer_only():
    assert not HEAVY & loaded_after("import fmcache.cli, fmcache.specs, fmcache.manifest, fmcache.encoders.cards")


def test_the_light_import_test_can_fail():
    assert "numpy" in loaded_after("import fmcache.cache.layout")


def test_fit_loads_no_timm_no_images_and_no_hub():
    assert not {"timm", "torchvision", "PIL", "cv2", "rasterio", "huggingface_hub"} & loaded_after(
        "import fmcache.stages.fit"
    )


def test_report_loads_no_torch_and_no_cache():
    assert not {"torch", "timm", "zarr", "cv2"} & loaded_after(
        "import fmcache.stages.report, fmcache.stages.at_url, fmcache.remote.result_copies"
    )


def test_statistics_need_numpy_scipy_and_polars_alone():
    heavy = HEAVY | {"typer", "rich", "pandas"}
    assert heavy & loaded_after("import fmcache.statistics.answer") == {"numpy", "polars", "scipy"}


def test_a_plan_without_measuring_loads_no_torch():
    assert not {"torch", "timm", "cv2"} & loaded_after("import fmcache.planning.plan")


def test_the_list_of_encoders_loads_no_zarr_and_no_torch():
    assert not {"torch", "timm", "zarr", "numpy"} & loaded_after("import fmcache.commands.encoder_tables")


def test_the_serial_runner_needs_no_dask():
    assert not {"dask", "distributed"} & loaded_after("import fmcache.stages.extract, fmcache.stages.fit")


WITHOUT_A_STORE = """
import sys
sys.modules["boto3"] = sys.modules["botocore"] = None  # importing them fails; rasterio imports boto3 where it can
from pathlib import Path
from fmcache.commands import cache_tables, options
from fmcache.errors import ExtraMissing
from fmcache.stages import at_url, extract, filling, fit
work = options._local(Path(sys.argv[1]))
at_url.fetch_results(work)
cache_tables.list_caches(work)
with at_url.writing(work / "cache" / "a" / "b" / "c.zarr", recompute=False), at_url.writing_results(work / "s", work):
    pass
try:
    options._local(Path("s3://bucket/prefix"))
except ExtraMissing as missing:
    print(missing)
"""


def test_without_a_url_no_client_of_a_store_is_imported_and_a_url_names_the_extra(tmp_path):
    command = [sys.executable, "-c", WITHOUT_A_STORE, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "s3://bucket/prefix: boto3 is not installed\n  next: pip install 'fmcache[s3]'\n"


def test_public_names_exist_and_importing_fmcache_loads_none_of_their_rooms():
    for name in fmcache.__all__:
        assert getattr(fmcache, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fmcache.nothing
    assert not HEAVY & loaded_after("import fmcache")
