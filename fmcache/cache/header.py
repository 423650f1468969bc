"""The header of a cache: the attributes of FORMAT.md, and the check that a cache has the expected identity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from fmcache.errors import CacheCorrupt, CacheMismatch, CacheNotFound
from fmcache.identity import differences, fingerprint
from fmcache.strict import decodable

FORMAT_VERSION = 1
ATTRIBUTE = "fmcache"
FILLING = "filling"
METADATA = "zarr.json"
ZARR_FORMAT = 3

WHEN_GIVEN = ("order", "fill", "skip", "objects", "class_property")
"""Fields of a mask cache's identity that exist only when the manifest gives them."""

Kind = Literal["tokens", "view_bank", "slide_tokens"]
ARRAY: dict[Kind, str] = {"tokens": "tokens", "view_bank": "masks", "slide_tokens": "tokens"}
AXES: dict[Kind, tuple[str, ...]] = {
    "tokens": ("tile", "view", "channel", "row", "col"),
    "view_bank": ("tile", "view", "y", "x"),
    "slide_tokens": ("tile", "view", "channel", "row", "col"),
}
MADE_BY: dict[Kind, str] = {
    "tokens": "fmcache extract",
    "view_bank": "fmcache extract",
    "slide_tokens": "fmcache predict --cache-tokens",
}
"""The command that makes a cache, for the messages that ask for it again."""


@decodable
class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The ``fmcache`` attribute of a cache group (FORMAT.md, section 3).

    `tiles` are ids by position on the tile axis. `stored` is the number of views of each tile at the last seal.
    `identity` holds everything that can change a value; its ``tiles`` field maps every id to its content hash.
    """

    format: int = FORMAT_VERSION
    kind: Kind
    state: Literal["filling", "sealed"]
    tiles: tuple[str, ...]
    stored: tuple[int, ...]
    identity: dict[str, Any]
    fingerprint: str
    about: dict[str, Any]
    array_sha256: str = ""
    checksums_sha256: str = ""
    checksum: str = ""
    """Three checksums: of the file that describes the array, of the list of chunks (`fmcache.cache.checksums`), and of
    this header without `checksum`. All are '' in caches of fmcache 0.1.0; the first two are '' until a cache is
    sealed."""

    def attributes(self) -> dict[str, Any]:
        """Return the group attributes that hold this header."""
        said = msgspec.to_builtins(msgspec.structs.replace(self, checksum=""))
        return {ATTRIBUTE: said | {"checksum": fingerprint(said)}}


def parse_header(path: Path, attributes: dict[str, Any]) -> Header:
    """Return the header in a group's attributes.

    Raises
    ------
    CacheCorrupt
        When there is no header, it is malformed, or the fingerprint does not match the identity.
    CacheMismatch
        When it has another format version.
    """
    value = attributes.get(ATTRIBUTE)
    if not isinstance(value, dict):
        raise CacheCorrupt(f"{path} is a Zarr group, but not a cache of fmcache", next_step="check the path")
    if value.get("format") != FORMAT_VERSION:
        raise CacheMismatch(
            f"{path} has another cache format",
            expected=f"format {FORMAT_VERSION}",
            found=f"format {value.get('format')}",
            next_step="extract again with --recompute, or use the fmcache release that wrote it",
        )
    try:
        header = msgspec.convert(value, Header)
    except msgspec.ValidationError as reason:
        raise CacheCorrupt(f"{path}: the attributes are malformed ({reason})", next_step=_REMOVE) from None
    if value.keys() & _CHECKSUMS and header.checksum != fingerprint({**value, "checksum": ""}):
        raise CacheCorrupt(f"{path}: the attributes were changed: their checksum differs", next_step=_REMOVE)
    if header.fingerprint != fingerprint(header.identity):
        raise CacheCorrupt(f"{path}: the fingerprint does not match the identity", next_step=_REMOVE)
    hashed = header.identity.get("tiles")
    if not isinstance(hashed, dict) or sorted(hashed) != sorted(header.tiles) or len(header.stored) > len(header.tiles):
        raise CacheCorrupt(f"{path}: the list of tiles does not match the identity", next_step=_REMOVE)
    return header


def read_header(path: Path) -> Header:
    """Return the header of a cache, sealed or not.

    Raises
    ------
    CacheNotFound
        When there is no cache at `path`.
    CacheCorrupt, CacheMismatch
        When its metadata cannot be read, and as in `parse_header`.
    """
    try:
        said = msgspec.json.decode((path / METADATA).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CacheNotFound(
            f"there is no cache {path}", next_step="run fmcache extract: it creates the cache"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as reason:
        raise CacheCorrupt(f"{path}: {METADATA} cannot be read", found=str(reason)[:200], next_step=_REMOVE) from None
    attributes = said.get("attributes") if isinstance(said, dict) else None
    if not isinstance(attributes, dict) or said.get("node_type") != "group" or said.get("zarr_format") != ZARR_FORMAT:
        raise CacheCorrupt(f"{path} is not a Zarr group", next_step=_REMOVE)
    return parse_header(path, attributes)


def check_identity(path: Path, expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Check that a cache was made from the expected identity.

    Every field of `expected` must be equal in `found`. Extra tiles in `found` are not a difference, because a cache may
    serve several splits. `expected` may leave out fields that the caller cannot know (stage two has no weights).
    Exception: when `expected` has labels, a field of `WHEN_GIVEN` that it leaves out must also be absent in `found`.

    Raises
    ------
    CacheMismatch
        When a field differs; the message names the fields.
    """
    compared = (*expected, *(WHEN_GIVEN if "labels" in expected else ()))
    known = {key: found[key] for key in compared if key in found}
    if isinstance(known.get("tiles"), dict) and isinstance(expected.get("tiles"), dict):
        known["tiles"] = {id_: known["tiles"].get(id_) for id_ in expected["tiles"]}
    if lines := differences(expected, known):
        raise CacheMismatch(
            f"{path} was made from other inputs:\n    " + "\n    ".join(lines[:12]),
            next_step="undo the change, or recompute the cache with --recompute",
        )


def with_tiles(identity: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    """Return an identity whose ``tiles`` also hold `added`."""
    return {**identity, "tiles": {**identity["tiles"], **added}}


def positions(path: Path, tiles: Sequence[str], ids: Sequence[str]) -> list[int]:
    """Return the positions of tile ids on the tile axis.

    Raises
    ------
    CacheMismatch
        When the cache has no tile with one of the ids.
    """
    at = {id_: i for i, id_ in enumerate(tiles)}
    if absent := [id_ for id_ in ids if id_ not in at]:
        raise CacheMismatch(
            f"{path} lacks {len(absent)} tiles",
            found=f"no tile {absent[0]!r}",
            next_step="run fmcache extract again",
        )
    return [at[id_] for id_ in ids]


_CHECKSUMS = {"checksum", "array_sha256", "checksums_sha256"}
"""Headers of fmcache 0.1.0 have none of these; a header that has any of them must have a `checksum`."""

_REMOVE = "remove it with fmcache cache rm, then run fmcache extract"
