"""Structs are ready for decoding in several threads as soon as their module is imported."""

import subprocess
import sys

NEVER_DECODED = {"Frozen", "RunResults"}
UNPREPARED = """
import gc, importlib, pkgutil
import msgspec
import fmcache
for module in pkgutil.walk_packages(fmcache.__path__, "fmcache."):
    if module.name != "fmcache.__main__":
        importlib.import_module(module.name)
todo = [msgspec.Struct, msgspec.defstruct("Bare", [("a", int)], module="fmcache.bare")]
while todo:
    kind = todo.pop()
    if kind.__name__ != "Bare":
        todo += kind.__subclasses__()
    if kind.__module__.startswith("fmcache."):
        prepared = any(type(one).__name__ == "StructInfo" for one in gc.get_referents(kind))
        print(kind.__name__, prepared)
"""


def test_every_struct_that_is_decoded_is_prepared_at_import():
    # in a process of its own: other tests decode, and that prepares a struct too
    done = subprocess.run([sys.executable, "-c", UNPREPARED], capture_output=True, text=True, check=True)
    found = dict(line.split() for line in done.stdout.splitlines())
    assert len(found) > 25
    assert {name for name, prepared in found.items() if prepared == "False"} == NEVER_DECODED | {"Bare"}
