"""A cache on a folder that two hosts share, of whose locks neither sees the other's."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fmcache.cache.reader import open_cache
from fmcache.cache.verify import verify_cache
from fmcache.cache.writer import open_writer, write_shard

STALE_S = 0.8
VIEWS = {"a": 2, "b": 2, "c": 1}
ITEM = (3, 2, 2)
WRITER = f"""
import os, signal, sys
from pathlib import Path
import filelock
from fmcache import locks
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_two_hosts as toy

host, path, kill = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "killed"
locks.here = lambda: (host, "machine " + host)
locks.FileLock = lambda file, **options: filelock.FileLock(f"{{file}}.{{host}}", **options)
locks.STALE_S, locks.BEAT_S = toy.STALE_S, 0.1
try:
    toy.write(path, kill)
except locks.Busy as busy:
    print(busy)
    sys.exit(3)
"""


def values_of(tile, first, stop):
    return np.random.default_rng([tile, first]).integers(0, 9, (stop - first, *ITEM)).astype("float16")


def write(path, kill):
    identity = {"tiles": dict.fromkeys(VIEWS, "hash")}
    with open_writer(path, "tokens", identity, ITEM, "float16", VIEWS, {}) as writer:
        shards = writer.missing()
        writer.begin()
        for shard in shards:
            if kill and shard.tile == 1:
                half = path / "tokens" / "c" / "1" / "0" / "0" / "0" / "0.partial"
                half.parent.mkdir(parents=True)
                half.write_bytes(b"half a shard")
                os.kill(os.getpid(), signal.SIGKILL)
            write_shard(path, "tokens", shard, values_of(shard.tile, shard.first, shard.stop))
        writer.seal()
    print(len(shards))


def on(host, path, end="finished"):
    return subprocess.run([sys.executable, "-c", WRITER, host, str(path), end], capture_output=True, text=True)


def test_a_cache_whose_writer_was_killed_on_one_host_is_finished_by_another_once_its_lock_is_stale(tmp_path):
    path, whole = tmp_path / "x.zarr", tmp_path / "whole.zarr"
    write(whole, kill=False)
    killed = on("alpha", path, "killed")
    assert killed.returncode == -signal.SIGKILL
    refused = on("beta", path)
    if refused.returncode == 3:  # a busy machine may have taken longer to start than the lock stays fresh
        assert "on alpha" in refused.stdout
        time.sleep(1.2 * STALE_S)
        refused = on("beta", path)
    assert (refused.returncode, refused.stdout) == (0, "2\n")
    assert "taken over from process" in refused.stderr
    assert verify_cache(path, lambda _: None).problems == []
    assert {f.relative_to(path): f.read_bytes() for f in path.rglob("*") if f.is_file()} == {
        f.relative_to(whole): f.read_bytes() for f in whole.rglob("*") if f.is_file()
    }
    assert open_cache(path, "tokens", {}).header.stored == (2, 2, 1)
