"""What is compared between the command and a worker, as functions: a real worker is tested in test_lanes.py."""

import os
import shutil
from pathlib import Path

import pytest

from fmcache.errors import ClusterUnfit
from fmcache.runtime import admission
from fmcache.runtime.admission import Sees, check, differences, expected, look


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def sees(tmp_path):
    (tmp_path / "tiles").mkdir()
    (tmp_path / "m.yaml").write_text("format: 1")
    return Sees((("manifest", tmp_path / "m.yaml"), ("folder of the tiles", tmp_path / "tiles")),
                (("working folder", tmp_path / "work"),))  # fmt: skip


def test_a_worker_with_the_same_files_and_versions_fits_and_no_file_is_left(tmp_path, sees):
    with expected(sees) as wanted:
        facts = look(wanted)
    assert differences(facts) == []
    check({"tcp://a:1": facts})
    assert {"python", "code of fmcache", "torch", "timm", "numpy", "zarr", "dask"} <= facts.versions.keys()
    assert list((tmp_path / "work").iterdir()) == []


def test_each_thing_that_a_worker_does_not_see_is_named(tmp_path, sees):
    large = tmp_path / "weights.bin"
    with large.open("wb") as file:
        file.truncate(admission.WHOLE_BYTES + 1)
    with expected(sees._replace(reads=(*sees.reads, ("weights", large)))) as wanted:
        (tmp_path / "m.yaml").write_text("format: 2")
        (tmp_path / "tiles").rmdir()
        os.truncate(large, 5)
        shutil.rmtree(tmp_path / "work")
        (tmp_path / "work").mkdir()  # on another machine, a folder of the same name is another folder
        facts = look(wanted._replace(folder=str(tmp_path / "nowhere")))
    lines = differences(facts)
    assert [line.split(" /")[0] for line in lines] == [
        "current folder", "manifest", "folder of the tiles", "weights", "working folder",
    ]  # fmt: skip
    with pytest.raises(ClusterUnfit) as error:
        check({"tcp://a:1": facts, "tcp://b:1": facts})
    assert f"{tmp_path / 'work'}: a folder of this name exists, but it is another one" in error.value.found
    assert f"manifest {tmp_path / 'm.yaml'}: 9 bytes, sha256 " in error.value.found
    assert f"weights {large}: 5 bytes" in error.value.found
    assert f"{tmp_path / 'tiles'}: No such file or directory" in error.value.found
    assert error.value.found.count("tcp://b:1") == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_working_folder_that_a_worker_may_not_write_is_named(tmp_path, sees):
    with expected(sees) as wanted:
        (tmp_path / "work").chmod(0o555)
        try:
            (line,) = differences(look(wanted))
        finally:
            (tmp_path / "work").chmod(0o755)
    assert line.endswith("no right to write")


def test_versions_that_differ_are_named_with_both(sees, monkeypatch):
    with expected(sees) as wanted:
        facts = look(wanted)
    others = {name: version for name, version in facts.versions.items() if name != "timm"}
    facts = facts._replace(versions=others | {"torch": "1.0"})
    lines = differences(facts)
    assert [line.partition(" instead of ")[0] for line in lines] == ["timm is not installed", "torch 1.0"]


def test_other_code_of_the_same_version_is_noticed(tmp_path, monkeypatch):
    before = admission._code()
    copy = tmp_path / "fmcache"
    shutil.copytree(Path(admission.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(admission, "__file__", str(copy / "runtime" / "admission.py"))
    assert admission._code() == before
    with (copy / "grid.py").open("a") as file:
        file.write("# changed\n")
    assert admission._code() != before


def test_workers_that_share_a_gpu_although_there_are_more_and_mixed_workers_are_refused(sees):
    with expected(sees) as wanted:
        facts = look(wanted)
    two = facts._replace(gpus=("A100", "A100"))
    with pytest.raises(ClusterUnfit, match="would all use its first GPU"):
        check({"tcp://a:1": two, "tcp://a:2": two})
    check({"tcp://a:1": two, "tcp://b:1": two._replace(host="another")})
    own = [facts._replace(gpus=("A100",), visible=str(i)) for i in range(2)]
    check({f"tcp://a:{i}": one for i, one in enumerate(own)})
    with pytest.raises(ClusterUnfit, match="some workers have a GPU and others have none") as error:
        check({"tcp://a:1": own[0], "tcp://b:1": facts})
    assert "tcp://b:1" in error.value.found
