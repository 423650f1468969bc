"""Strict YAML: text -> frozen, typed structs. Every error message names the file, the line and the key.

Recipes, the data manifest and encoder cards are all read with this module. Unknown keys, wrong types and repeated keys
are refused; nothing is guessed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from fmcache.errors import FmcacheError, SpecError

T = TypeVar("T")
Key = tuple[str | int, ...]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


S = TypeVar("S", bound=type[msgspec.Struct])


def decodable(kind: S) -> S:
    """Prepare a struct for decoding when its module is imported; a class decorator.

    Without it, msgspec prepares a type when it is first used. Two threads that do this at the same time crash the
    process (a segmentation fault, seen with msgspec 0.22).
    """
    msgspec.json.Decoder(kind)
    return kind


class Frozen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every struct that is read from YAML: immutable; unknown fields are refused."""


class Document:
    """A parsed YAML file: plain values, and the line of every key, for messages.

    If `text` is given, it is parsed instead of the file: so a file can be checked before it is written.

    Raises
    ------
    `error`
        When the file is missing, is not YAML, or repeats a key.
    """

    def __init__(self, path: Path, error: type[FmcacheError] = SpecError, text: str | None = None) -> None:
        self.path, self.error = path, error
        self._lines: dict[Key, int] = {}
        text = self._read() if text is None else text
        self._values_left = 1000 + 10 * len(text)  # only aliases of aliases can give more values than this
        try:
            loader = _Loader(text)  # raises an error for control characters
            try:
                node = loader.get_single_node()
                self.value = None if node is None else self._build(loader, node, ())
            finally:
                loader.dispose()
        except yaml.YAMLError as reason:
            found = " ".join(str(reason).split())
            way = "indent with spaces, not tabs" if "tab character" in found or "'\\t'" in found else "correct it there"
            raise error(f"{path} is not valid YAML", found=found, next_step=way) from None
        except RecursionError:
            raise error(f"{path} is nested too deeply, or contains itself", next_step="remove levels") from None

    def _read(self) -> str:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            problem = f"{self.path} does not exist"
            raise self.error(problem, next_step="check the path and the current folder") from None
        except (IsADirectoryError, UnicodeDecodeError) as reason:
            problem = f"{self.path} is not a YAML text file"
            raise self.error(problem, found=str(reason), next_step="pass another file, or save it as UTF-8") from None

    def _build(self, loader: Any, node: yaml.Node, at: Key) -> Any:
        self._lines.setdefault(at, node.start_mark.line + 1)
        self._values_left -= 1
        if self._values_left < 0:
            raise self.error(f"{self.path}: its aliases give too many values", next_step="write values without aliases")
        if isinstance(node, yaml.MappingNode):
            mapping: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                key = self._scalar(loader, key_node)
                if isinstance(key_node, yaml.CollectionNode):
                    line = key_node.start_mark.line + 1
                    raise self.error(f"{self.path}:{line}: a key is a list or a mapping", expected="a name as the key")
                self._lines[(*at, key)] = line = key_node.start_mark.line + 1
                if key in mapping:
                    raise self.error(f"{self.path}:{line}: key {key!r} is given twice", next_step="keep one of them")
                mapping[key] = self._build(loader, value_node, (*at, key))
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [self._build(loader, item, (*at, i)) for i, item in enumerate(node.value)]
        return self._scalar(loader, node)

    def _scalar(self, loader: Any, node: yaml.Node) -> Any:
        try:
            return loader.construct_object(node, deep=True)
        except (ValueError, OverflowError, LookupError, AttributeError) as reason:
            # text that looks like a date or number but is invalid: 2024-02-31, 0x_
            line, text = node.start_mark.line + 1, str(node.value)[:60]
            problem = f"{self.path}:{line}: {text!r} looks like a date or a number, but is not a valid one"
            raise self.error(problem, found=str(reason), next_step="put it in quotes if it is text") from None

    def where(self, *at: str | int) -> str:
        """Return ``file:line: key.path`` of a key; the line is that of its nearest parent if the file lacks the key."""
        for length in range(len(at), -1, -1):
            if (line := self._lines.get(at[:length])) is not None:
                name = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in at).lstrip(".")
                return f"{self.path}:{line}: {name}".removesuffix(": ")
        return str(self.path)

    def convert(self, kind: type[T] | Any, *at: str | int) -> T:
        """Return the value under key `at` as a checked `kind`.

        Raises
        ------
        the document's error
            When a key is unknown, missing, of the wrong type, or out of range.
        """
        value: Any = self.value
        for key in at:
            value = value[key]
        if value is None:
            value = {}
        try:
            result: T = msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError as reason:
            message, _, tail = str(reason).partition(" - at `")
            inner: list[str | int] = [
                int(index) if index else name for name, index in re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", tail)
            ]
            if unknown := re.search(r"unknown field `([^`]*)`", message):
                inner.append(unknown[1])
                message = f"unknown key {unknown[1]!r}"
            raise self.error(f"{self.where(*at, *inner)}: {message}") from None
        return result


def builtins(value: Any) -> Any:
    """Return a struct as plain dictionaries, lists, strings and numbers (for identities and JSON)."""
    return msgspec.to_builtins(value)
