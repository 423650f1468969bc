"""Processes of this machine: each gets a GPU of its own, before torch is imported."""

import importlib

import pytest
import torch

from fmcache.errors import SpecError
from fmcache.runtime import runners
from fmcache.runtime.cluster import environments, keeping_workers
from fmcache.runtime.devices import where

VISIBLE = "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("visible", "count", "given"),
    [
        ("0,1,2,3", 4, ["0", "1", "2", "3"]),
        ("3, 5", 3, ["3", "5", "3"]),
        ("GPU-8932f937,MIG-7", 2, ["GPU-8932f937", "MIG-7"]),
        ("1,-1,2", 2, ["1", "1"]),  # CUDA stops at the first index that is invalid
        ("", 2, [None, None]),
        ("-1", 1, [None]),
    ],
)
def test_processes_share_out_the_gpus_that_this_process_may_use(monkeypatch, visible, count, given):
    monkeypatch.setenv(VISIBLE, visible)
    assert [one.get(VISIBLE) for one in environments(count)] == given


def test_without_the_variable_torch_counts_the_gpus(monkeypatch):
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [one[VISIBLE] for one in environments(3)] == ["0", "1", "0"]


@pytest.mark.slow
def test_workers_see_their_own_gpu_and_are_kept_for_the_next_run(units, tmp_path, monkeypatch, units_folder):
    monkeypatch.setenv(VISIBLE, "3,5")
    monkeypatch.setenv("PYTHONPATH", str(units_folder), prepend=":")
    module = importlib.import_module("units_of_lanes")
    groups = [(module.Shared("x", str(tmp_path)), [module.Unit(str(i), 1) for i in range(6)])]
    with keeping_workers():
        for _ in range(2):
            found = [result for _, result in runners.run(module.place, groups, lambda _: None, 2)]
            assert {visible for *_, visible in found} == {"3", "5"}
    opened = (tmp_path / "opened").read_text().split()[::2]
    assert len(opened) == len(set(opened)) == 2  # the second run found the same processes with the same setup open


def test_workers_cannot_all_use_one_gpu():
    with pytest.raises(SpecError, match="cannot all use cuda:1"):
        where("cuda:1", 0, 2)


def test_processes_of_this_machine_share_its_cores_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr("fmcache.runtime.devices.thread_count", lambda threads: threads or 12)
    assert [where("cpu", 0, workers).threads for workers in (0, 1, 5, 20)] == [12, 12, 2, 1]
    assert where("cpu", 3, 5)[::2] == ("cpu", 3)
