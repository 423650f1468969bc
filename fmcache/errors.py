"""The exceptions fmcache raises on purpose, grouped by what the person at the keyboard would do next.

::

    FmcacheError
    ├── ManifestError      (ValueError)          mend data_manifest.yaml
    ├── SpecError          (ValueError)          mend the recipe, card or flag
    ├── TileError          (ValueError)          mend an image or a mask
    ├── ExtraMissing       (ImportError)         install an optional extra
    ├── DataUnavailable    (RuntimeError)        try again, or put the file in place yourself
    ├── EncoderUnavailable (RuntimeError)        get access, pass a file, choose another encoder
    │   └── HubUnreachable                       mend the network, or pass a file
    ├── WeightsMismatch    (ValueError)          these weights are not of this encoder
    ├── TokensOverflow     (ArithmeticError)     store tokens in a wider type
    ├── NoRoom             (OSError)             free disk space or move the working folder
    │   └── NoMemory                             fewer workers, smaller batches or tiles
    ├── WorkerDied         (RuntimeError)        fewer workers, or none to see why
    ├── CacheNotFound      (FileNotFoundError)   run extract
    ├── CacheUnsealed      (RuntimeError)        run extract again: it goes on where it stopped
    ├── CacheMismatch      (ValueError)          recompute, or restore what changed
    ├── CacheCorrupt       (RuntimeError)        remove and recompute
    ├── Busy               (RuntimeError)        wait for the other process
    ├── ResultsNotFound    (FileNotFoundError)   run fit
    ├── ResultsMismatch    (ValueError)          recompute, or give the recipe another name
    └── ResultsCorrupt     (RuntimeError)        run fit again: it redoes what is damaged

Every message says what was expected, what was found and what to do; ``fmcache.cli`` prints it in place of a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


def some(items: Iterable[str], shown: int = 5) -> str:
    """Return the first few items for a message, and how many more there are; empty for none."""
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
        What should have been there and what was.
    next_step
        What the user can do now, as a command where there is one.
    """

    def __init__(self, problem: str, *, expected: str = "", found: str = "", next_step: str = "") -> None:
        self.problem, self.expected, self.found, self.next_step = problem, expected, found, next_step
        super().__init__(problem, expected, found, next_step)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders when units of work run on Dask; keyword-only arguments need help there.
        return _rebuild, (type(self), self.problem, self.expected, self.found, self.next_step)

    def bare(self) -> FmcacheError:
        """Return the same error without traceback and cause, which would keep alive what was in hand when it arose."""
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
    """data_manifest.yaml, or a file it lists, is not as it should be."""


class SpecError(FmcacheError, ValueError):
    """A recipe, an encoder card or a flag is not as it should be."""


class TileError(FmcacheError, ValueError):
    """An image or a mask cannot be read or does not fit its label map."""


class ExtraMissing(FmcacheError, ImportError):
    """A package that only some commands need is not installed."""


class DataUnavailable(FmcacheError, RuntimeError):
    """A file of a dataset cannot be had from where it should lie."""


class EncoderUnavailable(FmcacheError, RuntimeError):
    """The encoder is unknown, or its weights cannot be had."""


class HubUnreachable(EncoderUnavailable):
    """There was no answer from the hub: it need not be asked about the next encoder."""


class WeightsMismatch(FmcacheError, ValueError):
    """A weights file does not fit the encoder's card."""


class TokensOverflow(FmcacheError, ArithmeticError):
    """Tokens became inf or NaN in the stored type."""


class NoRoom(FmcacheError, OSError):
    """The disk or memory cannot hold what is about to be made."""


class NoMemory(NoRoom):
    """Main memory, or that of a GPU, ran out."""


class WorkerDied(FmcacheError, RuntimeError):
    """A process that worked for this one ended before its work did."""


class CacheNotFound(FmcacheError, FileNotFoundError):
    """There is no cache at this place."""


class CacheUnsealed(FmcacheError, RuntimeError):
    """The cache was started but not finished."""


class CacheMismatch(FmcacheError, ValueError):
    """The cache was made from other inputs than those asked for."""


class CacheCorrupt(FmcacheError, RuntimeError):
    """The cache breaks its own format."""


class Busy(FmcacheError, RuntimeError):
    """Another process is writing here."""


class ResultsNotFound(FmcacheError, FileNotFoundError):
    """There are no results at this place."""


class ResultsMismatch(FmcacheError, ValueError):
    """Results under this name come from another recipe or cache."""


class ResultsCorrupt(FmcacheError, RuntimeError):
    """A file of a run is missing or is not what was written."""
