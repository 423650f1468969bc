"""Facts of files at their first download, kept in a YAML file: every later run compares its files with them."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar

import yaml

from fmcache.errors import FmcacheError
from fmcache.identity import whole_file
from fmcache.locks import locked
from fmcache.strict import Document, Frozen, builtins

WAIT_S = 60  # the lock is held only to write one entry
T = TypeVar("T", bound=Frozen)


class Pins(Generic[T]):
    """A file of pins by name.

    Parameters
    ----------
    file
        The YAML file; None: there are no pins, and none are kept.
    kind
        The facts of one file.
    error
        What is raised when the file of pins has another form.
    heading
        One line for people who open the file.
    """

    def __init__(self, file: Path | None, kind: type[T], error: type[FmcacheError], heading: str) -> None:
        self._file, self._kind, self._error, self._heading = file, kind, error, heading

    def read(self) -> dict[str, T]:
        """Return all pins; empty when there is no file. Raises `error` with file, line and key."""
        if self._file is None or not self._file.is_file():
            return {}
        found: dict[str, T] = Document(self._file, self._error).convert(dict[str, self._kind])  # type: ignore[name-defined]
        return found

    def add(self, name: str, facts: T, *, replace: bool = False) -> bool:
        """Pin a file; return whether it was done. A pin that exists stays, unless `replace` is set.

        Processes take turns.
        """
        if self._file is None:
            return False
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._file, WAIT_S):
            pins = self.read()
            if name in pins and not replace:
                return False
            with whole_file(self._file, "w") as file:
                file.write(f"# {self._heading}\n")
                yaml.safe_dump({key: builtins(one) for key, one in sorted((pins | {name: facts}).items())}, file)
        return True
