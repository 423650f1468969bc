"""Structs are ready for decoding in several threads as soon as their module is imported."""

import gc
import importlib
import pkgutil
import subprocess
import sys

import msgspec

import fmcache

NEVER_DECODED = {"Frozen", "RunResults"}
FIRST_USE_IN_THREADS = """
import sys, threading
from fmcache.cache.header import Header
import msgspec
sys.setswitchinterval(1e-6)
value = dict(kind="tokens", state="sealed", tiles=["a"], stored=[1], identity={}, fingerprint="x", about={})
together = threading.Barrier(8)
def convert():
    together.wait()
    msgspec.convert(value, Header)
threads = [threading.Thread(target=convert) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def structs():
    """Every struct that a module of fmcache defines."""
    for module in pkgutil.walk_packages(fmcache.__path__, "fmcache."):
        if module.name != "fmcache.__main__":
            importlib.import_module(module.name)
    todo = [msgspec.Struct]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        if kind.__module__.startswith("fmcache."):
            yield kind


def is_prepared(kind):
    return any(type(one).__name__ == "StructInfo" for one in gc.get_referents(kind))


def test_every_struct_that_is_decoded_is_prepared_at_import():
    found = list(structs())
    assert len(found) > 25
    assert {kind.__name__ for kind in found if not is_prepared(kind)} == NEVER_DECODED


def test_a_struct_without_the_decorator_is_seen_as_not_prepared():
    bare = msgspec.defstruct("Bare", [("a", int)])
    assert not is_prepared(bare)
    msgspec.json.decode(b'{"a": 1}', type=bare)
    assert is_prepared(bare)


def test_threads_that_read_their_first_header_at_the_same_moment_do_not_crash():
    subprocess.run([sys.executable, "-c", FIRST_USE_IN_THREADS], check=True)
