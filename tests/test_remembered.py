"""Remembered hashes are never those of a file that changed."""

import os
import time

import pytest
from filelock import FileLock

from fmcache import remembered
from fmcache.identity import sha256_file
from fmcache.remembered import Remembered


@pytest.fixture
def hashed(monkeypatch):
    """Return the list of files that are really read."""
    read = []
    monkeypatch.setattr(remembered, "sha256_file", lambda path: read.append(path) or sha256_file(path))
    return read


@pytest.fixture(autouse=True)
def later(monkeypatch):
    """Let hashes of new files be kept: the files of these tests are only seconds old."""
    monkeypatch.setattr(remembered, "FRESH_S", -1.0)
    monkeypatch.setattr(remembered, "WAIT_S", 0.05)


def written(path, content, age_s=60.0):
    path.write_bytes(content)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_an_unchanged_file_is_read_once_even_by_several_commands(tmp_path, hashed):
    file, store = written(tmp_path / "weights", b"abc"), tmp_path / "work" / "hashes.json"
    first = Remembered(store)
    assert first.sha256(file) == first.sha256(file) == sha256_file(file)
    first.keep()
    assert Remembered(store).sha256(file) == sha256_file(file)
    assert hashed == [file]


@pytest.mark.parametrize("how", ["content and time", "another file moved there", "same size and time"])
def test_a_changed_file_is_read_again(tmp_path, hashed, how):
    file, store = written(tmp_path / "weights", b"abc"), tmp_path / "hashes.json"
    first = Remembered(store)
    old = first.sha256(file)
    first.keep()
    times = file.stat()
    if how == "content and time":
        written(file, b"abd", age_s=30)
    elif how == "another file moved there":
        written(tmp_path / "other", b"abd").replace(file)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    else:
        file.write_bytes(b"abd")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert Remembered(store).sha256(file) == sha256_file(file) != old


def test_a_file_written_just_now_is_not_remembered(tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(remembered, "FRESH_S", 2.0)
    file, store = written(tmp_path / "weights", b"abc", age_s=0), tmp_path / "hashes.json"
    seen = Remembered(store)
    seen.sha256(file)
    seen.keep()
    assert not store.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff", b"[" * 10**5])
def test_a_damaged_store_is_ignored_and_replaced(tmp_path, content):
    file, store = written(tmp_path / "weights", b"abc"), tmp_path / "hashes.json"
    store.write_bytes(content)
    seen = Remembered(store)
    assert seen.sha256(file) == sha256_file(file)
    seen.keep()
    assert str(file) in store.read_text()


def test_two_commands_keep_what_both_have_learned(tmp_path, hashed):
    one, two, store = written(tmp_path / "1", b"1"), written(tmp_path / "2", b"2"), tmp_path / "hashes.json"
    first, second = Remembered(store), Remembered(store)
    first.sha256(one)
    second.sha256(two)
    first.keep()
    second.keep()
    assert [Remembered(store).sha256(file) for file in (one, two)] == [sha256_file(file) for file in (one, two)]
    assert hashed == [one, two]


def test_leftovers_of_a_killed_process_are_removed_and_a_locked_store_is_not_written(tmp_path, hashed):
    file, store = written(tmp_path / "weights", b"abc"), tmp_path / "hashes.json"
    (tmp_path / ".hashes.json.77.partial").write_bytes(b"{")
    first = Remembered(store)
    first.sha256(file)
    with FileLock(tmp_path / ".hashes.json.lock"):
        first.keep()
    assert not store.exists()
    first.keep()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hashes.json.lock", "hashes.json", "weights"]
    assert Remembered(store).sha256(file) == sha256_file(file)
    assert hashed == [file]
