"""fmcache: cache frozen pathology encoders once, train light decoders cheaply, report with honest spread."""

from importlib.metadata import version

__version__ = version("fmcache")
__all__ = ["__version__"]
