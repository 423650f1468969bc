"""Where the encoder of a cache came from, and whether its card and weights are still the same: checked before a fit.

The check uses neither timm nor the hub. Facts that cannot be compared are reported; a difference raises an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from fmcache.cache.header import Header, read_header
from fmcache.cache.reader import Cache
from fmcache.encoders.cards import SUFFIXES, TIMM, Card, Weights, card_names, precision_of, read_card
from fmcache.encoders.index import is_index, listed_files, sha256_weights
from fmcache.encoders.weights import hub_name, local_weights, pinned_weights
from fmcache.errors import CacheCorrupt, CacheMismatch, EncoderUnavailable, FmcacheError
from fmcache.identity import differences
from fmcache.scores.records import EncoderInfo, RunRecord
from fmcache.specs import EncoderChoice, Recipe
from fmcache.stages.identities import CARD_FIELDS
from fmcache.strict import builtins, decodable

KNOWN_WITHOUT_TIMM: tuple[str, ...] = ("name", "kind", "architecture", "arguments")
"""Fields of the card of ``timm:NAME`` that are known without timm; the other fields can only be read from timm."""

RANDOM = "-random"
"""The end of a cache name when random weights were chosen with the encoder, not by its card."""

_AGAIN = "or compute the cache again: fmcache extract --recompute, with the same flags"


@decodable
class Origin(msgspec.Struct, frozen=True):
    """Where the encoder of a cache came from. Recorded in `about` under ``origin``; not part of the cache's identity.

    `card` is a card's name, ``timm:NAME`` or the absolute path of a card file. `weights` is the absolute path of the
    weights file. `chosen` is whether the user gave this file in addition to the card. `hub` is its ``repo/file`` if it
    came from the hub. `notes` are the messages about the file from when it was loaded.
    """

    card: str = ""
    weights: str = ""
    chosen: bool = False
    hub: str = ""
    random_weights: bool = False
    notes: tuple[str, ...] = ()


def recorded_origin(record: RunRecord) -> Origin:
    """Return where the encoder of a run came from; if the record lacks it (fmcache 0.1.0), derive it from the name."""
    if record.origin:
        with contextlib.suppress(msgspec.ValidationError):
            return msgspec.convert(record.origin, Origin)
    name = record.encoder.name.partition("@")[0]
    return Origin(card=name.removesuffix(RANDOM), random_weights=name.endswith(RANDOM))


def recorded_choice(record: RunRecord, weights: str = "") -> EncoderChoice:
    """Return the choice that loads the encoder of a run; `weights` is a file that takes the place of the recorded."""
    origin = recorded_origin(record)
    return EncoderChoice(origin.card, weights or (origin.weights if origin.chosen else ""), origin.random_weights)


def origin_of(choice: EncoderChoice, card: Card, file: Path | None, notes: tuple[str, ...]) -> Origin:
    """Return the origin of an encoder that was loaded for `choice`, with the weights in `file`."""
    name = str(Path(choice.name).absolute()) if choice.name.endswith(SUFFIXES) else choice.name
    hub = weights_name(choice, card, file) if _is_of_hub(choice, card) else ""
    weights = str(file.absolute()) if file else ""
    return Origin(name, weights, bool(choice.weights), hub, choice.random_weights, notes)


def weights_name(choice: EncoderChoice, card: Card, file: Path | None) -> str:
    """Return the name of the weights in `file` for reports: ``repo/file`` if from the hub, otherwise the file name."""
    if not file:
        return ""
    return hub_name(card.weights) if card.weights and _is_of_hub(choice, card) else file.name


def _is_of_hub(choice: EncoderChoice, card: Card) -> bool:
    return bool(card.weights and card.weights.repo and not choice.weights)


def encoder_info(cache: Cache) -> EncoderInfo:
    """Return what a cache records about its encoder for tables and figures.

    Raises
    ------
    CacheCorrupt
        When this record is malformed.
    """
    try:
        return msgspec.convert(cache.header.about.get("encoder"), EncoderInfo)
    except msgspec.ValidationError as reason:
        raise CacheCorrupt(
            f"{cache.path}: its record of its encoder is malformed",
            found=str(reason),
            next_step="remove it with fmcache cache rm, then run the same fmcache extract again",
        ) from None


def joined_info(infos: Sequence[EncoderInfo], taps: Sequence[str]) -> EncoderInfo:
    """Return the facts of the entry whose decoder reads several taps of an encoder; `infos` are those of each tap."""
    first, joined = infos[0], "+".join(taps)
    title = first.title.removesuffix(f", block {taps[0]}").removesuffix(f", stage {taps[0]}")
    return msgspec.structs.replace(
        first,
        name=f"{first.name.removesuffix(f'@{taps[0]}')}@{joined}",
        title=f"{title}, taps {' + '.join(taps)}",
        width=sum(info.width for info in infos),
    )


def check_origin(
    cache: Cache,
    key: str,
    asked: str | EncoderChoice | None,
    recipe: Recipe,
    lock: Path,
    sha256_of: Callable[[Path], str],
) -> list[str]:
    """Compare the current card and weights of an encoder with those that its cache was made from.

    Parameters
    ----------
    key
        The encoder's name for folders and tables.
    asked
        The encoder in the recipe. None means that the encoder was found by its cache. A plain name or None does not say
        which weights are meant; then the weights that the cache records are compared.
    lock
        The file with the revision and sha256 that hub files had when they were first fetched.
    sha256_of
        Returns the sha256 of a file.

    Returns
    -------
    Lines that say what was not compared.

    Raises
    ------
    CacheMismatch
        When the card or the weights differ. The message names each field that differs, or the weights file and both
        sha256.
    SpecError, EncoderUnavailable, WeightsMismatch
        When the card, the lock or an index of weights files cannot be read.
    """
    stored = cache.header.identity.get("encoder")
    then = stored if isinstance(stored, dict) else {}
    origin = _recorded(cache.header, key)
    name = _card_name(asked, origin)
    if not (name.startswith(TIMM) or name in card_names() or (name.endswith(SUFFIXES) and Path(name).exists())):
        which = f"its card {name} was not found" if name else "the cache does not record its card"
        card, notes = None, [f"{which}: the card was not compared"]
    else:
        card, notes = _compare_card(cache, name, asked, origin, recipe, then)
    if then.get("random_weights") or not then.get("weights_sha256"):
        return notes
    return [*notes, *_compare_weights(cache, card, asked, origin, then["weights_sha256"], lock, sha256_of)]


def _recorded(header: Header, key: str) -> Origin:
    """Return the origin that a cache records; if it records none (fmcache 0.1.0), derive it from the cache's name."""
    try:
        return msgspec.convert(header.about["origin"], Origin)
    except (KeyError, msgspec.ValidationError):
        bare = key.removesuffix(RANDOM)
        return Origin(card=bare if bare in card_names() else "", random_weights=bare != key)


def _card_name(asked: str | EncoderChoice | None, origin: Origin) -> str:
    name = asked.name if isinstance(asked, EncoderChoice) else asked or ""
    # the user may also pass the name of a cache to `--encoder`: then the card is the recorded one
    return name if name.endswith(SUFFIXES) or name.startswith(TIMM) or name in card_names() else origin.card


def _compare_card(
    cache: Cache, name: str, asked: str | EncoderChoice | None, origin: Origin, recipe: Recipe, then: dict[str, Any]
) -> tuple[Card | None, list[str]]:
    """Return the card, and lines that say what was not compared; raises the errors of `check_origin`."""
    notes: list[str] = []
    random_weights = asked.random_weights if isinstance(asked, EncoderChoice) else origin.random_weights
    if name.startswith(TIMM):
        card, fields, now = None, KNOWN_WITHOUT_TIMM, _without_timm(name.removeprefix(TIMM))
        notes.append(_not_asked(cache.header))
    else:
        card, fields = read_card(name), CARD_FIELDS
        now, random_weights = builtins(card), random_weights or card.random_weights
    expected = {field: now[field] for field in fields} | {"random_weights": random_weights}
    lines = differences(expected, {field: then.get(field) for field in expected}, "encoder")
    if card and recipe.precision == "published" and "device" in cache.header.about:
        on_cpu = str(cache.header.about["device"]).startswith("cpu")
        precision = precision_of(recipe.precision, card, on_gpu=not on_cpu)
        lines += differences({"precision": precision}, {"precision": cache.header.identity.get("precision")})
    if lines:
        raise _other_card(cache.path, name, lines)
    return card, notes


def _other_card(path: Path, name: str, lines: list[str]) -> CacheMismatch:
    return CacheMismatch(
        f"{path} was made when the card {name} was different:\n    " + "\n    ".join(lines),
        next_step=f"restore the card, or put the changed card into a new file with another `name`, {_AGAIN}",
    )


def renamed(path: Path, asked: str | EncoderChoice | None) -> CacheMismatch | None:
    """Return the error for a cache that is not at `path` because its card had another `name` when it was made.

    Return None if there is no such cache.
    """
    name = asked.name if isinstance(asked, EncoderChoice) else asked or ""
    if not name.endswith(SUFFIXES):
        return None
    for other in sorted(path.parent.parent.glob(f"*/{path.name}")):
        try:
            header = read_header(other)
        except FmcacheError:
            continue
        stored, now = header.identity.get("encoder"), read_card(name).name
        then = stored.get("name") if isinstance(stored, dict) else None
        if _recorded(header, other.parent.name).card == str(Path(name).absolute()) and then != now:
            return _other_card(other, name, differences({"name": now}, {"name": then}, "encoder"))
    return None


def _without_timm(architecture: str) -> dict[str, Any]:
    return {"name": f"timm-{architecture}", "kind": "timm", "architecture": architecture, "arguments": {}}


def _not_asked(header: Header) -> str:
    versions = header.about.get("versions")
    used = versions.get("timm") if isinstance(versions, dict) else None
    try:
        now = metadata.version("timm")
    except metadata.PackageNotFoundError:
        now = ""
    which = f"{now}, as for the cache" if used == now else f"{used or '?'} for the cache, {now or 'none'} now"
    return f"patch, width, prefix_tokens, mean and std come from timm ({which}): extract compares them, fit does not"


def _compare_weights(
    cache: Cache,
    card: Card | None,
    asked: str | EncoderChoice | None,
    origin: Origin,
    sha256: str,
    lock: Path,
    sha256_of: Callable[[Path], str],
) -> list[str]:
    """Return lines that say what was not compared; raises the errors of `check_origin`."""
    weights = (card.weights if card else None) or Weights()
    chosen = asked.weights if isinstance(asked, EncoderChoice) else origin.weights if origin.chosen else ""
    if weights.sha256 not in ("", sha256):
        raise _other_weights(cache, "as the card states", weights.sha256, sha256)
    if weights.repo and not chosen:
        name = hub_name(weights)
        held = pinned_weights(lock).read().get(name)
        if held and held.sha256 != sha256 and weights.revision in ("", held.revision):
            raise _other_weights(cache, f"{name}, recorded in {lock}", held.sha256, sha256)
        fetched = origin.hub == name and weights.revision in ("", *Path(origin.weights).parts)
        file = Path(origin.weights) if fetched else None
    else:
        name = chosen or weights.file or origin.weights or "its weights file"
        file = _file_of(card, chosen, origin)
    made = f"the cache was made with weights of sha256 {sha256}"
    if not file or not _is_here(file):
        return [f"{name} was not found, so it was not compared: {made}"]
    try:
        found = sha256_weights(file, sha256_of)
    except OSError as reason:
        return [f"{name} cannot be read ({reason.strerror}), so it was not compared: {made}"]
    if found != sha256:
        raise _other_weights(cache, str(file), found, sha256)
    return []


def _file_of(card: Card | None, chosen: str, origin: Origin) -> Path | None:
    """Return the weights file if the user chose it or the card names no hub repository; None if missing or unknown."""
    if card and (chosen or (card.weights and card.weights.file)):
        try:
            return local_weights(card, chosen)
        except EncoderUnavailable:
            return None
    if chosen and not Path(chosen).is_dir():
        return Path(chosen)
    return Path(origin.weights) if origin.weights else None


def _is_here(file: Path) -> bool:
    return file.is_file() and (not is_index(file) or all(file.with_name(part).is_file() for part in listed_files(file)))


def _other_weights(cache: Cache, whose: str, now: str, then: str) -> CacheMismatch:
    return CacheMismatch(
        f"{cache.path} was made with other weights",
        expected=f"sha256 {now} ({whose})",
        found=f"sha256 {then} in the cache",
        next_step="restore the earlier weights; or extract the new ones under another name (in the recipe `as: NAME` "
        f"with `weights`, as flags --as NAME with --weights); {_AGAIN}",
    )
