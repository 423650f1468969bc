"""A picture or mask that is replaced under its name after `data add`: extract refuses it, whatever is cached."""

import os
import shutil
import time

import pytest

from fmcache import remembered
from fmcache.errors import CacheMismatch, ManifestError
from fmcache.remembered import Remembered
from fmcache.stages import places


def in_place(file):
    """Write other content of the same size into a file, and set its time back to what it was."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    with file.open("r+b") as same:
        same.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def by_a_neighbour(file):
    """Put another file of the same size and time in the place of a file, as cp -p and rsync do."""
    other = file.with_name("other")
    shutil.copy2(file, other)
    in_place(other)
    other.replace(file)


@pytest.mark.parametrize("extracted", [False, True], ids=["before extract", "when all is complete"])
@pytest.mark.parametrize("replace", [in_place, by_a_neighbour])
@pytest.mark.parametrize("name", ["images/a.png", "masks/d.png"])
def test_a_replaced_file_is_refused_by_name_though_its_size_and_time_are_those_of_before(
    study, monkeypatch, name, replace, extracted
):
    monkeypatch.setattr(remembered, "FRESH_S", -1)  # hashes are remembered at once, as those of files of yesterday are
    file = study.folder / name
    if extracted:
        study.extract()
        assert str(file) in Remembered(places.remembered(study.work))._seen
    original = file.read_bytes()
    time.sleep(0.02)  # longer than a tick of the clock of files
    replace(file)
    with pytest.raises(ManifestError, match="1 of 8 files of 'toy' are not the files that the") as refused:
        study.extract()
    assert f"{name} (has changed)" in refused.value.found
    assert "data add --replace" in refused.value.next_step
    file.write_bytes(original)
    study.extract()
    assert all("complete" in line for line in study.extract())


def test_a_file_that_is_gone_is_named_too(study):
    study.extract()
    (study.folder / "images" / "b.png").unlink()
    with pytest.raises(ManifestError) as refused:
        study.extract()
    assert "images/b.png (No such file or directory)" in refused.value.found


def test_fit_asks_for_no_image_and_says_nothing_of_them(study):
    study.extract()
    for kind in ("images", "masks"):
        shutil.rmtree(study.folder / kind)
    assert any("1 of 1 runs" in line for line in study.fit())


def test_a_file_that_is_listed_again_is_refused_by_tile_until_its_caches_are_computed_again(study):
    study.extract()
    study.draw("c", seed=1)
    study.add(replace=True)
    for stage in (study.extract, study.fit):
        with pytest.raises(CacheMismatch, match=r"tiles\.c") as refused:
            stage()
        assert "--recompute" in refused.value.next_step
    study.extract(recompute=True)
    study.fit()
