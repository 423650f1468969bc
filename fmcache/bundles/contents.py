"""What a bundle contains: the names of its files, the facts in ``bundle.json``, and the list of checksums.

- ``torchscript_model.pt``  TorchScript: float32 RGB (tile, colour, y, x) in 0..1 -> probabilities (tile, label, y, x)
- ``model.onnx``  the same as ONNX, if it was asked for; weights above 2 GB are in ``model.onnx.data``
- ``decoder.safetensors``  the decoder of the run, byte for byte
- ``config.json``  the configuration that WSInfer's model zoo uses (`fmcache.bundles.wsinfer`)
- ``rdf.yaml``  the description of the BioImage Model Zoo (`fmcache.bundles.bioimage`)
- ``test_input.npy``, ``test_output.npy``  a tile and what the model returns for it
- ``bundle.json``  the fields of `Facts`
- ``README.md``, ``references.bib``  the same for people, and the method of the study
- ``SHA256SUMS``  the sha256 of all other files, as ``sha256sum -c`` reads it

A bundle without encoder weights lacks the TorchScript and ONNX files, their two descriptions and the test tile.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from fmcache.errors import BundleCorrupt, BundleNotFound
from fmcache.grid import GridGeometry
from fmcache.identity import sha256_file
from fmcache.scores.records import EncoderInfo
from fmcache.strict import decodable

FORMAT = 1
MODEL, ONNX, DECODER = "torchscript_model.pt", "model.onnx", "decoder.safetensors"
WSINFER, BIOIMAGE, FACTS = "config.json", "rdf.yaml", "bundle.json"
TEST_INPUT, TEST_OUTPUT = "test_input.npy", "test_output.npy"
PAGE, REFERENCES, CHECKSUMS = "README.md", "references.bib", "SHA256SUMS"

_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\]+)")
_AGAIN = "copy the bundle again, or run fmcache export again"


@decodable
class BundleLabel(msgspec.Struct, frozen=True):
    """A label: its name and colour (``#rrggbb``). Its place in the list is its place on the label axis."""

    name: str
    colour: str


@decodable
class BundleDice(msgspec.Struct, frozen=True):
    """The Dice (0 to 1) of a label, or of their ``mean``, on the test tiles.

    `of_run` is that of the exported run. `mean` is the mean over the `seeds` of its encoder in the study, and `low` and
    `high` its 95 % limits over test units (patients or slides, or tiles) and seeds; null where there are none, and
    `without_limits` says why. A label that no test tile has, has no Dice.
    """

    label: str
    of_run: float | None
    mean: float | None
    low: float | None
    high: float | None
    seeds: int
    units: int
    without_limits: str | None


@decodable
class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What ``bundle.json`` states.

    `covered_px` is the side of the region, from the top left of a tile, for which there are probabilities. `mpp` is the
    um per pixel of a tile. `card` is the name with which `fmcache.load_encoder` finds the encoder ('': a card of the
    user's own). `encoder_identity` holds everything of the encoder that can change a token. `fingerprint` is the sha256
    of the run's identity, as its record in the study has it; the identity itself stays there, because it names tiles.
    """

    format: int
    tile_px: int
    covered_px: int
    mpp: float
    labels: tuple[BundleLabel, ...]
    encoder: EncoderInfo
    encoder_display: str
    encoder_identity: dict[str, Any]
    card: str
    licence_page: str
    holds_encoder_weights: bool
    onnx: bool
    taps: tuple[str, ...]
    grid: str
    store: str
    precision_of_study: str
    decoder: dict[str, Any]
    decoder_words: str
    decoder_sha256: str
    standardised: bool
    study: str
    dataset: str
    dataset_title: str
    dataset_source: str
    dataset_licence: str
    seed: int
    fold: int | None
    fingerprint: str
    dice_of_tiles: str
    dice: tuple[BundleDice, ...]
    tiles: dict[str, int]
    collapsed: tuple[str, ...]
    versions: dict[str, str]
    precision_of_fit: str = "float32"
    """`fit.precision` of the study; bundles of earlier releases hold decoders that were trained in float32."""

    @property
    def title(self) -> str:
        """Encoder, dataset and seed; it always states random weights."""
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.encoder_display} on {self.dataset_title}, study {self.study}, seed {self.seed}{fold}"

    @property
    def geometry(self) -> GridGeometry:
        """The geometry of the token grid on the tile's pixels."""
        return GridGeometry(self.tile_px, self.encoder.patch, self.grid)  # type: ignore[arg-type]


def facts_json(facts: Facts) -> bytes:
    """Return the content of ``bundle.json``."""
    return msgspec.json.format(msgspec.json.encode(facts), indent=1) + b"\n"


def write_checksums(folder: Path) -> None:
    """Write the list of the sha256 of all files in a folder."""
    files = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
    (folder / CHECKSUMS).write_text("".join(f"{sha256_file(path)}  {path.name}\n" for path in files))


def checked_facts(folder: Path) -> Facts:
    """Return the facts of a bundle, after checking every listed file against its sha256.

    Files that the list does not name are ignored, and never read.

    Raises
    ------
    BundleNotFound
        When the folder does not exist or is no bundle.
    BundleCorrupt
        When a file is missing or was changed, or a later fmcache wrote the bundle; the message names the file.
    """
    listed = _listed(folder)
    for name, sha256 in listed.items():
        try:
            found = sha256_file(folder / name)
        except OSError as reason:
            raise BundleCorrupt(f"{folder / name} cannot be read", found=str(reason), next_step=_AGAIN) from None
        if found != sha256:
            raise BundleCorrupt(
                f"{folder / name} was changed after it was written", expected=f"sha256 {sha256}",
                found=f"sha256 {found}", next_step=_AGAIN,
            )  # fmt: skip
    facts = _facts(folder)
    needed = (FACTS, DECODER, *((MODEL,) if facts.holds_encoder_weights else ()))
    if lacking := [name for name in needed if name not in listed]:
        raise BundleCorrupt(f"{folder / CHECKSUMS} does not list {', '.join(lacking)}", next_step=_AGAIN)
    return facts


def _listed(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise BundleNotFound(
            f"{folder} is not a bundle",
            expected=f"a folder with {CHECKSUMS} and {FACTS}, as fmcache export writes it",
            next_step="check the path",
        ) from None
    except UnicodeDecodeError as reason:
        raise BundleCorrupt(f"{folder / CHECKSUMS} is damaged", found=str(reason), next_step=_AGAIN) from None
    found = [_LINE.fullmatch(line) for line in lines]
    if not all(found):
        wrong = lines[found.index(None)]
        raise BundleCorrupt(f"{folder / CHECKSUMS} is damaged", found=wrong[:80], next_step=_AGAIN)
    return {line[2]: line[1] for line in found if line}


def _facts(folder: Path) -> Facts:
    try:
        said = msgspec.json.decode((folder / FACTS).read_bytes())
        if isinstance(said, dict) and isinstance(said.get("format"), int) and said["format"] > FORMAT:
            raise BundleCorrupt(
                f"{folder} was written by a later fmcache", expected=f"format {FORMAT}",
                found=f"format {said['format']}", next_step="use the later fmcache",
            )  # fmt: skip
        return msgspec.convert(said, Facts)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as reason:
        raise BundleCorrupt(f"{folder / FACTS} cannot be read", found=str(reason)[:200], next_step=_AGAIN) from None
