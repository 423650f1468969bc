"""The exceptions fmcache raises on purpose, grouped by what the user should do next.

::

    FmcacheError
    ├── ManifestError      (ValueError)          correct data_manifest.yaml
    ├── SpecError          (ValueError)          correct the recipe, card or flag
    ├── TileError          (ValueError)          correct an image or a mask
    ├── ExtraMissing       (ImportError)         install an optional extra
    ├── DataUnavailable    (RuntimeError)        try again, or put the file in place yourself
    ├── StoreUnavailable   (RuntimeError)        check URL, credentials, rights and region of a store
    ├── EncoderUnavailable (RuntimeError)        get access, pass a file, or choose another encoder
    │   └── HubUnreachable                       check the network, or pass a file
    ├── WeightsMismatch    (ValueError)          pass the weights of this encoder
    ├── TokensOverflow     (ArithmeticError)     store tokens in a wider type
    ├── NoRoom             (OSError)             free disk space or move the working folder
    │   └── NoMemory                             use fewer workers, smaller batches or tiles
    ├── WorkerDied         (RuntimeError)        use fewer workers, or none to see the cause
    ├── ClusterUnfit       (RuntimeError)        correct the address of the cluster, or the environment of its workers
    ├── CacheNotFound      (FileNotFoundError)   run extract
    ├── CacheUnsealed      (RuntimeError)        run extract again: it continues where it stopped
    ├── CacheMismatch      (ValueError)          recompute, or restore what changed
    ├── CacheCorrupt       (RuntimeError)        remove and recompute
    ├── Busy               (RuntimeError)        wait for the other process
    ├── ResultsNotFound    (FileNotFoundError)   run fit
    ├── ResultsMismatch    (ValueError)          recompute, or give the recipe another name
    ├── ResultsCorrupt     (RuntimeError)        run fit again: it repeats the damaged runs
    ├── BundleNotFound     (FileNotFoundError)   check the path of the folder that export wrote
    └── BundleCorrupt      (RuntimeError)        copy the bundle again, or export it again

Every message says what was expected, what was found and what to do. ``fmcache.cli`` prints it in place of a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


def some(items: Iterable[str], shown: int = 5) -> str:
    """Return the first few items as text for a message, and how many more there are; '' when there are none."""
    listed = list(items)
    more = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + more


class FmcacheError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    problem
        One sentence: what went wrong, with the name of the file, key or tile.
    expected, found
        What was expected, and what was there instead.
    next_step
        What the user can do now; a command if one exists.
    """

    def __init__(self, problem: str, *, expected: str = "", found: str = "", next_step: str = "") -> None:
        self.problem, self.expected, self.found, self.next_step = problem, expected, found, next_step
        super().__init__(problem, expected, found, next_step)

    def __reduce__(self) -> tuple[object, ...]:
        # Dask pickles exceptions to send them between processes; pickle cannot pass keyword-only arguments by itself.
        return _rebuild, (type(self), self.problem, self.expected, self.found, self.next_step)

    def bare(self) -> FmcacheError:
        """Return the same error without traceback and cause: these would keep large objects in memory."""
        return _rebuild(type(self), self.problem, self.expected, self.found, self.next_step)

    def __str__(self) -> str:
        lines = [self.problem]
        lines += [
            f"  {word}: {text}"
            for word, text in (("expected", self.expected), ("found", self.found), ("next", self.next_step))
            if text
        ]
        return "\n".join(lines)


def _rebuild(kind: type[FmcacheError], problem: str, expected: str, found: str, next_step: str) -> FmcacheError:
    return kind(problem, expected=expected, found=found, next_step=next_step)


class ManifestError(FmcacheError, ValueError):
    """data_manifest.yaml, or a file that it lists, is wrong."""


class SpecError(FmcacheError, ValueError):
    """A recipe, an encoder card or a flag is wrong."""


class TileError(FmcacheError, ValueError):
    """An image or a mask cannot be read or does not fit its label map."""


class ExtraMissing(FmcacheError, ImportError):
    """A package that only some commands need is not installed."""


class DataUnavailable(FmcacheError, RuntimeError):
    """A file of a dataset is unavailable: it could not be downloaded, or is not in its place."""


class StoreUnavailable(FmcacheError, RuntimeError):
    """A store of objects refused a request or did not answer, or lacks what fmcache needs of it."""


class EncoderUnavailable(FmcacheError, RuntimeError):
    """The encoder is unknown, or its weights are unavailable."""


class HubUnreachable(EncoderUnavailable):
    """The hub did not answer: asking it about the next encoder is useless."""


class WeightsMismatch(FmcacheError, ValueError):
    """A weights file does not fit the encoder's card."""


class TokensOverflow(FmcacheError, ArithmeticError):
    """Tokens became inf or NaN in the stored type."""


class NoRoom(FmcacheError, OSError):
    """The disk or memory is too small for what is about to be written."""


class NoMemory(NoRoom):
    """Main memory or GPU memory ran out."""


class WorkerDied(FmcacheError, RuntimeError):
    """A worker process ended before its work was finished."""


class ClusterUnfit(FmcacheError, RuntimeError):
    """There is no Dask cluster at this address, or its workers have other versions or other files."""


class CacheNotFound(FmcacheError, FileNotFoundError):
    """There is no cache at this path."""


class CacheUnsealed(FmcacheError, RuntimeError):
    """The cache was started but not finished."""


class CacheMismatch(FmcacheError, ValueError):
    """The cache was made from other inputs than the requested ones."""


class CacheCorrupt(FmcacheError, RuntimeError):
    """The cache violates its own format."""


class Busy(FmcacheError, RuntimeError):
    """Another process is writing here."""


class ResultsNotFound(FmcacheError, FileNotFoundError):
    """There are no results at this path."""


class ResultsMismatch(FmcacheError, ValueError):
    """Results under this name come from another recipe or cache."""


class ResultsCorrupt(FmcacheError, RuntimeError):
    """A file of a run is missing or was changed after it was written."""


class BundleNotFound(FmcacheError, FileNotFoundError):
    """There is no bundle in this folder."""


class BundleCorrupt(FmcacheError, RuntimeError):
    """A file of a bundle is missing or was changed after it was written."""
