"""Commands that are killed, interrupted, or in each other's way: what was finished stays, nothing is left running."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import msgspec
import psutil
import pytest
import yaml
from tblib import pickling_support

from fmcache.errors import Busy, NoMemory, NoRoom
from fmcache.scores.run_files import find_runs, read_run
from fmcache.specs import DecoderSpec, FitSpec, Recipe, ViewSpec
from fmcache.stages import encoder_runs, places, shards
from fmcache.stages.extract import extract
from fmcache.stages.fit import fit
from fmcache.stages.flags import Flags

SEED_1_NEVER_ENDS = """
    import sys
    if "fit" in sys.orig_argv or any("spawn_main" in part for part in sys.orig_argv):
        import time
        import numpy as np
        from fmcache.decoders import concurrent_seeds

        def train(training, seed, tick, train=concurrent_seeds.train):
            while seed == 1:
                training.train.fetch(np.zeros((1, 2), np.int64), training.device)
                time.sleep(0.01)
            return train(training, seed, tick)

        concurrent_seeds.train = train
"""
HOLD = """
import sys
from pathlib import Path
from fmcache.locks import locked
with locked(Path(sys.argv[1])):
    print(flush=True)
    input()
"""


@pytest.fixture
def manifest(tmp_path, drawn):
    return drawn(tmp_path, 3, 1, 1)


@pytest.fixture
def recipe(tmp_path):
    recipe = Recipe(
        name="toy",
        encoders=("raw-pixels", "colour-texture"),
        tile_px=64,
        views=ViewSpec(count=2),
        decoder=DecoderSpec(width=6),
        fit=FitSpec(seeds=2, epochs=2, batch=2, validate_epochs=2),
    )
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(msgspec.to_builtins(recipe)))
    return recipe


def flags(work, **kwargs):
    return Flags(work, device="cpu", threads=1, **kwargs)


def quiet(_):
    pass


def alone(recipe, **fields):
    return msgspec.structs.replace(recipe, encoders=("raw-pixels",), **fields)


@contextlib.contextmanager
def held(path):
    """Let another process hold the lock of a cache or study; yield that process."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        yield process
        if process.poll() is None:
            process.communicate("\n")


def group_of(leader):
    """Return the processes of a group that still run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "how"), [(0, "KILL"), (0, "INT"), (1, "KILL"), (1, "INT"), (1, "TERM")])
def test_a_fit_that_is_stopped_when_one_of_two_lanes_has_ended_keeps_that_seed_and_leaves_no_process(
    tmp_path, manifest, recipe, workers, how, contents
):
    recipe = alone(recipe)
    extract(recipe, manifest, flags(tmp_path), quiet)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("if True:" + SEED_1_NEVER_ENDS)
    command = [sys.executable, "-m", "fmcache", "fit", "--recipe", str(tmp_path / "r.yaml"), "--device", "cpu"]
    command += ["--threads", "2", "--workers", str(workers), "--manifest", str(tmp_path / "data_manifest.yaml")]
    command += ["--work", str(tmp_path), "--encoder", "raw-pixels"]
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as process:  # fmt: skip
        said = iter(process.stdout.readline, "")
        assert any("Raw pixels · seed 0: test Dice" in line for line in said)  # though seed 1 never ends
        assert len(group_of(process.pid)) >= 1 + workers
        start = time.monotonic()
        os.killpg(process.pid, getattr(signal, f"SIG{how}"))
        errors = process.communicate()[1]
        seconds = time.monotonic() - start
    print(f"stopped after {seconds:.2f} s")
    assert seconds < 10
    time.sleep(0.2)
    assert group_of(process.pid) == []
    if how != "KILL":
        assert process.returncode == 128 + getattr(signal, f"SIG{how}")
        told = [line for line in errors.splitlines() if line and "epochs/s" not in line]
        assert told == ["interrupted: finished work is kept; the same command continues from there"]
    (part,) = find_runs(places.results(tmp_path), "toy")
    before, lines = contents(part), []
    assert fit(recipe, manifest, flags(tmp_path), lines.append) == []
    assert any("1 of 2 runs to do" in line for line in lines)
    assert contents(part) == before
    assert [read_run(path).record.seed for path in find_runs(places.results(tmp_path), "toy")] == [0, 1]


def test_a_second_request_to_end_is_answered_at_once(tmp_path):
    code = (
        "import time; from fmcache import cli\n"
        "def app():\n"
        "    try: print(flush=True); time.sleep(60)\n"
        "    finally: print('cleaning', flush=True); time.sleep(60)\n"
        "cli.app = app; cli.main()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_an_encoder_whose_cache_is_busy_is_left_out_and_told_at_the_end(tmp_path, manifest, recipe):
    lines = []
    with held(places.tokens_path(tmp_path, "toy", "raw-pixels", recipe, "last")):
        failures = extract(recipe, manifest, flags(tmp_path), lines.append)
    assert [(failure.encoder, type(failure.error)) for failure in failures] == [("raw-pixels", Busy)]
    assert "toy · raw-pixels: failed; continuing with the next encoder" in lines
    assert [failure.encoder for failure in fit(recipe, manifest, flags(tmp_path), quiet)] == ["raw-pixels"]
    assert extract(recipe, manifest, flags(tmp_path), quiet) == []


def test_a_view_bank_that_another_process_makes_is_waited_for(tmp_path, manifest, recipe):
    lines = []
    with held(places.mask_cache_path(tmp_path, "toy", recipe)) as other:

        def say(line):
            lines.append(line)
            if "another process is writing it; waiting" in line:
                other.kill()  # its lock is freed with it

        assert extract(recipe, manifest, flags(tmp_path), say) == []
    assert "mask cache: another process is writing it; waiting until that process ends" in lines[0]
    assert sum("waiting" in line for line in lines) == 1


def test_a_busy_variant_of_a_sweep_is_left_out_and_told_at_the_end_and_a_busy_study_alone_is_refused(
    tmp_path, manifest, recipe
):
    sweep = alone(recipe, sweep={"views.count": (1, 2)})
    extract(sweep, manifest, flags(tmp_path), quiet)
    lines = []
    with held(places.results(tmp_path) / "toy.count-1"):
        failures = fit(sweep, manifest, flags(tmp_path), lines.append)
        assert [(failure.dataset, type(failure.error)) for failure in failures] == [("toy.count-1", Busy)]
        assert len(find_runs(places.results(tmp_path), "toy.count-2")) == 2
        assert "toy.count-1: another process is fitting it; it is left out" in lines
    assert fit(sweep, manifest, flags(tmp_path), quiet) == []
    with held(places.results(tmp_path) / "toy"), pytest.raises(Busy):
        fit(alone(recipe), manifest, flags(tmp_path), quiet)


def full_after(monkeypatch, writes):
    """Let the disk be full from some write on: flushing fails, as where space is given out late."""
    real, done = os.fsync, []

    def fsync(descriptor):
        done.append(descriptor)
        if len(done) > writes:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("writes", [0, 1, 5, 10, 11, 14])
def test_a_full_disk_is_told_with_what_was_being_written_and_the_same_command_goes_on(
    tmp_path, manifest, recipe, monkeypatch, writes, contents
):
    recipe = alone(recipe)
    with monkeypatch.context() as patch:
        full_after(patch, writes)
        with pytest.raises(NoRoom, match=r"the disk is full: toy · (mask cache|raw-pixels|Raw pixels)") as error:
            extract(recipe, manifest, flags(tmp_path / "full"), quiet)
        assert "No space left on device" in error.value.found
        assert "the same command continues from there" in error.value.next_step
    for work in ("full", "whole"):
        assert extract(recipe, manifest, flags(tmp_path / work), quiet) == []
    assert contents(tmp_path / "full" / "cache") == contents(tmp_path / "whole" / "cache")


def test_a_disk_that_is_full_when_a_seed_ends_keeps_the_seeds_before(tmp_path, manifest, recipe, monkeypatch):
    recipe = alone(recipe)
    extract(recipe, manifest, flags(tmp_path), quiet)
    with monkeypatch.context() as patch:
        full_after(patch, 8)  # pictures of tiles, token grids as colours, and a run of six files
        with pytest.raises(NoRoom, match="the disk is full: toy · Raw pixels · seed 1"):
            fit(recipe, manifest, flags(tmp_path), quiet)
    assert [path.name for path in find_runs(places.results(tmp_path), "toy")] == ["seed-000"]
    assert fit(recipe, manifest, flags(tmp_path), quiet) == []


@pytest.mark.parametrize(
    "shortage",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
)
def test_an_encoder_that_needs_too_much_memory_does_not_end_the_others(
    tmp_path, manifest, recipe, monkeypatch, shortage
):
    load = shards.load_encoder

    def load_or_not(choice, *arguments, **options):
        if choice.name == "raw-pixels":
            raise shortage
        return load(choice, *arguments, **options)

    pickling_support.install()  # as Dask does once a cluster has run: copies of errors then keep their tracebacks
    monkeypatch.setattr(shards, "load_encoder", load_or_not)
    (failure,) = extract(recipe, manifest, flags(tmp_path), quiet)
    assert isinstance(failure.error, NoMemory)
    assert "out of memory: toy · raw-pixels" in str(failure.error)
    assert failure.error.__cause__ is failure.error.__traceback__ is None  # what filled the memory can go


def test_a_seed_that_needs_too_much_memory_is_named(tmp_path, manifest, recipe, monkeypatch):
    recipe = alone(recipe)
    extract(recipe, manifest, flags(tmp_path), quiet)

    def load(_):
        raise MemoryError

    monkeypatch.setattr(encoder_runs, "_load", load)
    with pytest.raises(NoMemory, match="out of memory: toy · Raw pixels · seed 0") as error:
        fit(recipe, manifest, flags(tmp_path), quiet)
    assert "--workers" in error.value.next_step
