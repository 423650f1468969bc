"""The recipes of pipelines/cluster.md: its Dask commands are valid, and its SLURM script does what the page shows."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fmcache.scores.run_files import find_runs
from fmcache.stages import places

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "pipelines" / "cluster.md").read_text()
SCRIPT = ROOT / "pipelines" / "slurm.py"
SBATCH = """#!{python}
import shutil, subprocess, sys
# as SLURM does: the file may be gone when the job starts
script = "{folder}/submitted.sh"
shutil.copy(sys.argv[-1], script)
log = open("{folder}/jobs.log", "a")
job = subprocess.Popen(["bash", script], stdout=log, stderr=log, start_new_session=True)
print(f"Submitted batch job {{job.pid}}")
"""
SCANCEL = """#!{python}
import contextlib, os, signal, sys
for job in sys.argv[1:]:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int(job), signal.SIGKILL)
open("{folder}/cancelled", "a").write(" ".join(sys.argv[1:]))
"""


def commands():
    """Return the shell lines of the page."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    return [line.strip().removesuffix("&").strip() for block in blocks for line in block.splitlines()]


def script():
    spec = importlib.util.spec_from_file_location("slurm_recipe", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_dask_commands_of_the_page_are_valid():
    from distributed.cli import dask_scheduler, dask_worker

    parsed = {}
    for line in commands():
        words = shlex.split(line)
        while words and "=" in words[0]:
            words.pop(0)
        if words[:1] == ["dask"]:
            main = {"scheduler": dask_scheduler, "worker": dask_worker}[words[1]].main
            parsed[words[1]] = main.make_context(words[1], words[2:], ignore_unknown_options=False).params
    assert parsed["scheduler"]["port"] == "8786"
    assert (parsed["worker"]["nthreads"], parsed["worker"]["memory_limit"]) == (1, "0")


def test_the_job_script_is_the_one_that_the_page_shows():
    (line,) = [line for line in commands() if line.startswith("python pipelines/slurm.py")]
    slurm = script()
    with slurm.cluster_of(slurm.options_of(shlex.split(line)[2:])) as cluster:
        made = cluster.job_script()
    made = re.sub(r"\S+ -m distributed", "PYTHON -m distributed", made)
    made = re.sub(r"tcp://\S+ --name \S+", "SCHEDULER --name NAME", made)
    (shown,) = re.findall(r"```\n(#!.*?)```", PAGE, re.S)
    assert made.strip().splitlines() == shown.strip().splitlines()
    assert made.count("--memory-limit 0") == 1
    assert made.rindex("--memory-limit") == made.index("--memory-limit 0")  # the last one counts


def test_lines_of_the_user_come_before_the_worker():
    slurm = script()
    options = slurm.options_of(["r.yaml", "--gres", "", "--account", "p1", "--before", "module load x"])
    with slurm.cluster_of(options) as cluster:
        made = cluster.job_script()
    assert made.index("module load x") < made.index("dask_worker")
    assert "#SBATCH -A p1" in made
    assert "--gres" not in made


@pytest.mark.slow
def test_the_script_runs_a_study_on_jobs_and_cancels_them_at_the_end(tmp_path):
    """`sbatch` and `scancel` are scripts of this test, which run the real job script here."""
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (tmp_path / "bin" / name).write_text(text.format(python=sys.executable, folder=tmp_path))
        (tmp_path / "bin" / name).chmod(0o755)
    labels = [{"name": n, "colour": c} for n, c in (("a", "#ff0000"), ("b", "#00ff00"), ("c", "#0000ff"))]
    toy = {"format": "demo", "seed": 1, "size_px": 64, "labels": labels, "tiles": [{"id": f"t{i}"} for i in range(4)]}
    toy["splits"] = {"train": ["t0", "t1"], "val": ["t2"], "test": ["t3"]}
    (tmp_path / "data_manifest.yaml").write_text(
        yaml.safe_dump({"format": 1, "default": "toy", "datasets": {"toy": toy}})
    )
    recipe = {
        "name": "toy", "encoders": ["raw-pixels"], "tile_px": 64, "views": {"count": 2}, "decoder": {"width": 4},
        "fit": {"seeds": 2, "epochs": 2, "batch": 2, "validate_epochs": 2},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    environment = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "r.yaml", "--gres", "", "--cores", "2", "--jobs", "1"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=480,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + (tmp_path / "jobs.log").read_text()
    assert "dask_worker" in (tmp_path / "submitted.sh").read_text()
    assert done.stdout.count("test Dice") == 2
    assert len(find_runs(places.results(tmp_path / "work"), "toy")) == 2
    assert (tmp_path / "cancelled").exists()
