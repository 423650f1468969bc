"""Locks: one writer at a time, on one machine, and on two that share a folder whose locks work on one machine only."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from fmcache import locks
from fmcache.errors import Busy
from fmcache.locks import lock_files, locked

STALE_S = 1.0
HOST = f"""
import sys
from pathlib import Path
import filelock
from fmcache import locks
from fmcache.errors import Busy

host, path = sys.argv[1], Path(sys.argv[2])
locks.here = lambda: (host, "machine " + host)
locks.FileLock = lambda file, **options: filelock.FileLock(f"{{file}}.{{host}}", **options)
locks.STALE_S, locks.BEAT_S = {STALE_S}, 0.1
try:
    print("ready", flush=True)
    sys.stdin.readline()
    with locks.locked(path):
        print("held", flush=True)
        sys.stdin.readline()
    print("left", flush=True)
except Busy as busy:
    print(str(busy).replace("\\n", " "), flush=True)
"""


class Host:
    """A process that pretends to run on a host of that name; each host has its own lock of the operating system."""

    def __init__(self, name, path):
        command = [sys.executable, "-c", HOST, name, str(path)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout.readline() == "ready\n"

    def begin(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def says(self):
        return self.process.stdout.readline().strip()

    def lock(self):
        self.begin()
        return self.says()

    leave = lock


@contextmanager
def hosts(path, *names):
    started = [Host(name, path) for name in names]
    try:
        yield started
    finally:
        for host in started:
            host.process.kill()
            host.process.communicate()


def test_a_second_host_is_refused_with_the_name_of_the_holder_and_gets_the_lock_after_its_release(tmp_path):
    with hosts(tmp_path / "x", "alpha", "beta", "gamma") as (alpha, beta, gamma):
        assert alpha.lock() == "held"
        time.sleep(1.5 * STALE_S)  # the holder lives longer than STALE_S and renews its owner file
        refused = beta.lock()
        assert f"process {alpha.process.pid} on alpha, since 20" in refused
        assert "next: wait until it ends" in refused
        assert alpha.leave() == "left"
        assert gamma.lock() == "held"
        assert gamma.leave() == "left"
        assert gamma.process.stderr.read() == ""  # nothing was taken over


def test_the_lock_of_a_process_killed_on_another_host_is_taken_over_after_a_while_with_a_message(tmp_path):
    with hosts(tmp_path / "x", "alpha", "beta", "gamma") as (alpha, beta, gamma):
        assert alpha.lock() == "held"
        alpha.process.kill()
        alpha.process.wait()
        assert "on alpha" in beta.lock()  # no other host can know yet that it is dead
        time.sleep(1.2 * STALE_S)
        assert gamma.lock() == "held"
        assert gamma.leave() == "left"
        assert f"taken over from process {alpha.process.pid} on alpha" in gamma.process.stderr.read()
    assert [path for path in lock_files(tmp_path / "x") if path.name.endswith("owner") and path.exists()] == []


def test_on_one_host_the_lock_of_a_killed_process_is_taken_over_immediately(tmp_path):
    with hosts(tmp_path / "x", "alpha", "alpha") as (first, second):
        assert first.lock() == "held"
        first.process.kill()
        first.process.wait()
        assert second.lock() == "held"
        assert second.leave() == "left"
        assert f"taken over from process {first.process.pid} on alpha" in second.process.stderr.read()


def test_exactly_one_of_several_hosts_takes_over_the_lock_of_a_dead_one(tmp_path):
    with hosts(tmp_path / "x", "dead", "a", "b", "c") as (dead, *living):
        assert dead.lock() == "held"
        dead.process.kill()
        dead.process.wait()
        time.sleep(1.2 * STALE_S)
        for host in living:
            host.begin()
        assert sorted(host.says() == "held" for host in living) == [False, False, True]


def test_a_process_whose_lock_was_taken_over_while_it_slept_reports_that_at_its_end(tmp_path):
    with hosts(tmp_path / "x", "alpha", "beta") as (alpha, beta):
        assert alpha.lock() == "held"
        alpha.process.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * STALE_S)
        assert beta.lock() == "held"
        alpha.process.send_signal(signal.SIGCONT)
        assert f"taken over by another process, while this one gave no sign of life for {STALE_S:g} s" in alpha.leave()
        assert beta.leave() == "left"


def test_ages_are_measured_by_the_clock_of_the_shared_folder_not_of_the_host(tmp_path, monkeypatch):
    path = tmp_path / "x"
    (_, owner) = lock_files(path)
    with locked(path):
        kept = owner.read_bytes().replace(locks.here()[1].encode(), b"another machine")
    owner.write_bytes(kept)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with pytest.raises(Busy), locked(path):
        pass
    then = owner.stat().st_mtime - locks.STALE_S - 1
    os.utime(owner, (then, then))
    with locked(path):
        pass


def test_a_folder_without_hard_links_is_locked_as_well(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with locked(tmp_path / "x"):
        assert lock_files(tmp_path / "x")[1].read_bytes().startswith(b"{")
        with pytest.raises(Busy, match=f"process {os.getpid()} on "), locked(tmp_path / "x"):
            pass
    assert not lock_files(tmp_path / "x")[1].exists()


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff", b"[" * 10**5, b'{"host": 3}'])
def test_an_unreadable_owner_file_belongs_to_an_unknown_host(tmp_path, content):
    (_, owner) = lock_files(tmp_path / "x")
    owner.write_bytes(content)
    with pytest.raises(Busy, match="an unknown host"), locked(tmp_path / "x"):
        pass
    then = owner.stat().st_mtime - locks.STALE_S - 1
    os.utime(owner, (then, then))
    with locked(tmp_path / "x"):
        pass


def test_a_waiting_process_gets_the_lock_when_it_is_free(tmp_path):
    with hosts(tmp_path / "x", "alpha") as (alpha,):
        assert alpha.lock() == "held"
        alpha.begin()  # it releases the lock immediately
        with locked(tmp_path / "x", wait_s=30):
            pass
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".x.lock", ".x.lock.alpha"}
