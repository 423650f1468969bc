"""``README.md`` of a bundle: what the model is, how to run it, how good it is, and what its licences allow."""

from __future__ import annotations

from collections.abc import Sequence

from fmcache.bundles.contents import (
    BIOIMAGE,
    CHECKSUMS,
    DECODER,
    FACTS,
    MODEL,
    ONNX,
    REFERENCES,
    TEST_INPUT,
    TEST_OUTPUT,
    WSINFER,
    BundleDice,
    Facts,
)
from fmcache.report.escapes import escape_markdown

_USE = f"""```python
import numpy as np
import torch
from PIL import Image

model = torch.jit.load("{MODEL}").eval()
tile = np.asarray(Image.open("tile.png").convert("RGB"))  # (y, x, colour) uint8, {{tile_px}} x {{tile_px}} px
tiles = torch.from_numpy(tile / np.float32(255)).permute(2, 0, 1)[None]  # (tile, colour, y, x) float32 in 0..1
with torch.no_grad():
    probabilities = model(tiles)  # (tile, label, y, x) float32
labels = probabilities.argmax(dim=1)  # (tile, y, x)
```"""


def bundle_page(facts: Facts, method: Sequence[str]) -> bytes:
    """Return the page as Markdown; `method` is the method of the study, paragraph by paragraph, as plain text."""
    parts = [f"# {escape_markdown(facts.title)}", *_warnings(facts), _what(facts), *_use(facts), *_tables(facts)]
    parts += [*_licences(facts), *_origin(facts), "## Method of the study", *map(escape_markdown, method)]
    parts.append(escape_markdown(f"Citations such as [@fmcache] are keys of the entries in {REFERENCES}."))
    return ("\n\n".join(parts) + "\n").encode()


def _warnings(facts: Facts) -> list[str]:
    lines = []
    if facts.encoder.random_weights:
        lines.append(
            "**The weights of the encoder are random: it has learnt nothing. Use this bundle for tests only.**"
        )
    if facts.collapsed:
        names = ", ".join(map(escape_markdown, facts.collapsed))
        lines.append(f"**Training of this run collapsed: it never predicts {names} on the test tiles.**")
    lines.append("For research only. The model was not validated for any clinical use.")
    return lines


def _what(facts: Facts) -> str:
    whole = facts.covered_px == facts.tile_px
    covered = "" if whole else f", for the {facts.covered_px} x {facts.covered_px} px at the top left of the tile"
    text = (
        f"A frozen encoder ({escape_markdown(facts.encoder_display)}) and a light decoder that fmcache fitted on "
        f"{facts.tiles['train']} tiles. It divides a tile of {facts.tile_px} x {facts.tile_px} px at {facts.mpp:g} "
        f"um/px into {len(facts.labels)} labels{covered}."
    )
    if not facts.holds_encoder_weights:
        text += (
            f" This bundle holds the decoder only (`{DECODER}`). The weights of the encoder are not in it: whoever "
            "uses the bundle gets them from their publisher."
        )
    return text


def _use(facts: Facts) -> list[str]:
    if not facts.holds_encoder_weights:
        return ["## Use", "With fmcache, and access to the encoder:", _with_fmcache(facts), _files(facts)]
    lines = [
        "## Use",
        "Without fmcache, with torch alone. TorchScript is a program: load only bundles from people whom you trust, "
        f"and check the files first (`sha256sum -c {CHECKSUMS}`).",
        _USE.format(tile_px=facts.tile_px),
        f"Input is RGB, float32 in 0..1, (tile, colour, y, x), always {facts.tile_px} px wide and high; the number of "
        "tiles is free. The model normalises the pixels itself. Output are probabilities after the softmax, float32, "
        f"(tile, label, y, x), {facts.covered_px} px wide and high. For the tile in `{TEST_INPUT}` the model returns "
        f"`{TEST_OUTPUT}`, up to rounding.",
        "With fmcache, which checks the files first:",
        _with_fmcache(facts),
        f"`{WSINFER}` follows the layout of WSInfer's model zoo. WSInfer itself expects one vector of probabilities "
        "per tile; this model returns a map.",
    ]
    return [*lines, _files(facts)]


def _with_fmcache(facts: Facts) -> str:
    card = facts.card or "a card of the encoder"
    note = "" if facts.holds_encoder_weights else f"  # gets the weights of {card}, and checks their sha256"
    return (
        "```python\nfrom pathlib import Path\n\nfrom fmcache.bundles.opening import open_bundle\n\n"
        f'model = open_bundle(Path(".")){note}\n'
        "probabilities = model(tiles)  # (tile, y, x, colour) uint8 -> (seed, tile, label, y, x) float32\n```"
    )


def _files(facts: Facts) -> str:
    rows = [(DECODER, "the weights of the decoder, and the statistics that standardise its tokens, if it uses them")]
    if facts.holds_encoder_weights:
        rows = [(MODEL, "normalisation, encoder, decoder and softmax as TorchScript"), *rows]
        rows += [(WSINFER, "the configuration of WSInfer's model zoo, 1.0")]
        rows += [(BIOIMAGE, "the description of the BioImage Model Zoo, 0.5")]
        rows += [(f"{TEST_INPUT}`, `{TEST_OUTPUT}", "a drawn tile, and what the model returns for it")]
    if facts.onnx:
        rows.append((ONNX, "the same model as ONNX"))
    rows += [(FACTS, "all facts on this page, for programs"), (REFERENCES, "the works that the method cites")]
    rows.append((CHECKSUMS, "the sha256 of every file"))
    return "\n".join(["| file | what it holds |", "|---|---|", *(f"| `{name}` | {what} |" for name, what in rows)])


def _tables(facts: Facts) -> list[str]:
    labels = ["| id | label | colour |", "|---|---|---|"]
    labels += [f"| {i} | {escape_markdown(one.name)} | `{one.colour}` |" for i, one in enumerate(facts.labels)]
    first = facts.dice[0]
    dice = [f"| label | this run | mean of {first.seeds} seeds | 95 % interval |", "|---|---|---|---|"]
    dice += [
        f"| {escape_markdown(one.label)} | {_percent(one.of_run)} | {_percent(one.mean)} | {_limits(one)} |"
        for one in facts.dice
    ]
    units = facts.dice[-1].units
    notes = (
        f"Dice in percent on {facts.tiles['test']} test tiles, {facts.dice_of_tiles}. The interval is that of the mean "
        f"of this encoder over its seeds in the study, for other test units ({units} here hold the rarest label) and "
        "other seeds; it is not an interval of this run alone, and does not cover other training tiles. If the "
        "run was chosen by its Dice on these tiles, its Dice is optimistic."
    )
    return ["## Labels", "\n".join(labels), "## Validation", "\n".join(dice), notes]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _limits(one: BundleDice) -> str:
    if one.low is None or one.high is None:
        return f"none: {one.without_limits}" if one.without_limits else "none"
    return f"[{_percent(one.low)}, {_percent(one.high)}]"


def _licences(facts: Facts) -> list[str]:
    encoder, page = facts.encoder, f" ({facts.licence_page})" if facts.licence_page else ""
    if not encoder.params or encoder.random_weights:
        weights = "The encoder has no published weights, so no licence restricts them."
    else:
        weights = f"Weights of the encoder: {encoder.licence or 'no licence stated in its card'}{page}."
        weights += (
            " Their terms also apply to everybody who gets this bundle."
            if facts.holds_encoder_weights
            else " They are not in this bundle."
        )
    data = f"The decoder was fitted on {facts.dataset_title}, licence {facts.dataset_licence or 'not stated'}"
    data += f" ({facts.dataset_source})." if facts.dataset_source else "."
    cite = [f"Please cite the encoder: {encoder.citation}"] if encoder.citation else []
    return ["## Licences", *map(escape_markdown, [weights, data, *cite])]


def _origin(facts: Facts) -> list[str]:
    rows = [
        ("study, dataset, seed", f"{facts.study}, {facts.dataset}, {facts.seed}"),
        ("fold", "the fixed split" if facts.fold is None else str(facts.fold)),
        ("identity of the run (sha256)", facts.fingerprint),
        ("encoder", f"{facts.encoder.name}, {facts.encoder.params:,} parameters, taps {', '.join(facts.taps)}"),
        ("weights of the encoder (sha256)", facts.encoder.weights_sha256 or "none"),
        ("decoder", facts.decoder_words or ", ".join(f"{key} {value}" for key, value in facts.decoder.items())),
        ("weights of the decoder (sha256)", facts.decoder_sha256),
        ("tokens standardised", "by channel, as in training" if facts.standardised else "no"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(facts.versions.items()))),
    ]
    table = ["| | |", "|---|---|", *(f"| {name} | {escape_markdown(value)} |" for name, value in rows)]
    rounding = (
        f"All arithmetic here is float32. Tokens are rounded as the cache of the study stores them ({facts.store}). "
        "The decoder is in its direct form; on a CPU the study computed it in a faster form. Both agree up to rounding."
    )
    if facts.precision_of_study != "float32":
        rounding += (
            f" The study ran the encoder in {facts.precision_of_study}, so tokens here differ by the rounding of "
            f"{facts.precision_of_study}, and pixels close to a boundary may get another label than in the study."
        )
    if facts.precision_of_fit == "bfloat16":
        rounding += " The study trained and tested the decoder in bfloat16, so a few pixels may get another label here."
    return ["## Origin", "\n".join(table), rounding]
