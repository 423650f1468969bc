"""fmcache: cache frozen pathology encoders once, train light decoders cheaply, report with honest spread.

Public names are loaded at first use: ``import fmcache`` alone loads neither torch nor zarr.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fmcache.cache.reader import open_cache
    from fmcache.encoders.load import load_encoder
    from fmcache.encoders.tokens import token_grids
    from fmcache.errors import FmcacheError
    from fmcache.manifest import Manifest
    from fmcache.specs import Recipe, read_recipe
    from fmcache.study import Study

_HOME = {
    "Manifest": "manifest",
    "Recipe": "specs",
    "FmcacheError": "errors",
    "Study": "study",
    "load_encoder": "encoders.load",
    "open_cache": "cache.reader",
    "read_recipe": "specs",
    "token_grids": "encoders.tokens",
}

__version__ = metadata.version("fmcache")
__all__ = [
    "FmcacheError",
    "Manifest",
    "Recipe",
    "Study",
    "__version__",
    "load_encoder",
    "open_cache",
    "read_recipe",
    "token_grids",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'fmcache' has no attribute {name!r}")
    return getattr(import_module(f"fmcache.{_HOME[name]}"), name)
