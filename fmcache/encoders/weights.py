"""Weights files: which file to use, and whether it is the same file as in earlier runs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import msgspec

from fmcache.encoders.cards import Card, Weights
from fmcache.encoders.hub import commit_of, download_weights
from fmcache.encoders.index import is_index, sha256_weights
from fmcache.errors import EncoderUnavailable, SpecError, WeightsMismatch, some
from fmcache.pins import Pins
from fmcache.strict import Frozen, decodable

USUAL = ("model.safetensors", "pytorch_model.bin")
"""The file names that transformers uses for the weights in a folder."""


class WeightsFile(NamedTuple):
    """A weights file on this machine, and its sha256."""

    path: Path
    sha256: str


@decodable
class PinnedWeights(Frozen, frozen=True):
    """Revision and sha256 of a hub file at its first download; all later runs request and check the same."""

    revision: str
    sha256: str


def find_weights(card: Card, chosen: str, offline: bool, lock: Path | None) -> WeightsFile:
    """Return an encoder's weights file, after checking its sha256 if one is known.

    `chosen` (a file, or a folder that holds the card's file, an index, or one of the `USUAL` names) has priority over
    the card's local file, and this over the hub. `lock` is a YAML file with the revision and sha256 of each hub file at
    its first download. A revision or sha256 in the card has priority over the lock.

    Raises
    ------
    EncoderUnavailable
        When there is no such file, the card names no file, or the hub does not give it.
    WeightsMismatch
        When the file is not the one that the card or the lock states.
    """
    weights = card.weights or Weights()
    if weights.repo and not chosen:
        return _from_hub(card, weights, offline, lock)
    path = local_weights(card, chosen)
    return WeightsFile(path, check_sha256(path, weights.sha256, "the card"))


def local_weights(card: Card, chosen: str) -> Path:
    """Return the weights file that is `chosen`, or the local file that the card names; the file is not read.

    Raises
    ------
    EncoderUnavailable
        When there is no such file, or the card names no file.
    """
    weights = card.weights or Weights()
    if chosen:
        return _chosen_file(card, weights, Path(chosen))
    if not weights.file:
        raise EncoderUnavailable(
            f"{card.name!r} needs weights, and its card names no file",
            next_step="pass --weights FILE, or --random-weights for a dry run",
        )
    if Path(weights.file).is_dir():
        return _chosen_file(card, weights, Path(weights.file))
    if not Path(weights.file).is_file():
        raise EncoderUnavailable(
            f"the weights file of {card.name!r} does not exist: {weights.file}",
            next_step="correct `weights.file` in the card (it is relative to the card), or pass --weights FILE",
        )
    return Path(weights.file)


def _from_hub(card: Card, weights: Weights, offline: bool, lock: Path | None) -> WeightsFile:
    pinned = pinned_weights(lock).read().get(hub_name(weights))
    revision = weights.revision or (pinned.revision if pinned else "")
    path = download_weights(card, msgspec.structs.replace(weights, revision=revision), offline)
    if weights.sha256:
        return WeightsFile(path, check_sha256(path, weights.sha256, "the card"))
    if pinned and pinned.revision == revision:
        return WeightsFile(path, check_sha256(path, pinned.sha256, str(lock)))
    found = WeightsFile(path, sha256_weights(path))
    # a card that asks for another revision moves the pin
    now = PinnedWeights(revision or commit_of(path), found.sha256)
    pinned_weights(lock).add(hub_name(weights), now, replace=True)
    return found


def hub_name(weights: Weights) -> str:
    """Return the name of a hub file in a lock file."""
    return f"{weights.repo}/{weights.file}"


def pinned_weights(lock: Path | None) -> Pins[PinnedWeights]:
    """Return the pinned weights in a lock file, by hub file (``repo/file``); SpecError when it has another form."""
    return Pins(lock, PinnedWeights, SpecError, "Weights at their first download; every later run is pinned to these.")


def _chosen_file(card: Card, weights: Weights, chosen: Path) -> Path:
    if chosen.is_file():
        return chosen
    if not chosen.is_dir():
        raise EncoderUnavailable(f"there is no weights file {chosen}", next_step="check the path given with --weights")
    name = Path(weights.file).name if Path(weights.file) != chosen else ""
    if name and (chosen / name).is_file():
        return chosen / name
    inside = sorted(path for path in chosen.iterdir() if path.is_file())
    indexes = [path for path in inside if is_index(path)]
    usual = indexes if indexes else [path for path in inside if path.name in USUAL]
    if len(usual) == 1:
        return usual[0]
    raise EncoderUnavailable(
        f"the folder {chosen} holds {'several files of' if usual else 'no'} weights of {card.name!r}",
        expected=name or f"one of {', '.join(USUAL)}: the card names no file",
        found=some(path.name for path in usual or sorted(chosen.iterdir())) or "an empty folder",
        next_step=_next_step(chosen, [path.suffix for path in inside]),
    )


def _next_step(folder: Path, endings: Collection[str]) -> str:
    if ".distcp" not in endings:
        return "pass the file itself with --weights FILE"
    whole = folder.with_name(f"{folder.name}.pth")
    return (
        'this is a checkpoint of torch.distributed; if you trust its source: python -c "import '
        f"torch.distributed.checkpoint.format_utils as f; f.dcp_to_torch_save('{folder}', '{whole}')\", "
        f"and pass {whole}"
    )


def check_sha256(path: Path, expected: str, stated_by: str) -> str:
    """Return the sha256 of a weights file.

    Raises
    ------
    WeightsMismatch
        When another sha256 is expected; `stated_by` names the place that states it.
    """
    found = sha256_weights(path)
    if expected and found != expected:
        raise WeightsMismatch(
            f"{path} is not the file whose sha256 {stated_by} states",
            expected=f"sha256 {expected}",
            found=f"sha256 {found}",
            next_step=f"fetch the file again, or correct the sha256 in {stated_by}",
        )
    return found
