"""Write the model of one run as a bundle: a folder that works without fmcache (`fmcache.bundles`)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fmcache.bundles import contents, onnx_file, tracing
from fmcache.bundles.bioimage import bioimage_description
from fmcache.bundles.bundle_page import bundle_page
from fmcache.bundles.contents import Facts
from fmcache.bundles.passing_on import restriction
from fmcache.bundles.same_encoder import load_same_encoder
from fmcache.bundles.whole_model import WholeModel
from fmcache.bundles.wsinfer import wsinfer_config
from fmcache.cache.encoding import store_of
from fmcache.decoders.fitted import FittedDecoder, load_decoder
from fmcache.encoders.load import Encoder
from fmcache.errors import BundleCorrupt, BundleNotFound, SpecError, some
from fmcache.identity import differences
from fmcache.manifest import TileEntry
from fmcache.report.method import bibtex, method
from fmcache.scores.run_files import WEIGHTS, whole_folder
from fmcache.shortage import naming_shortage
from fmcache.stages import places
from fmcache.stages.exported_run import ChosenRun, Wanted, choose_run, encoder_identity, facts_of
from fmcache.stages.origins import recorded_choice
from fmcache.strict import builtins
from fmcache.tiles.demo import draw_tile

_TEST_SEED = 15
"""The seed of the drawn tile that is in every bundle, with what the model returns for it."""


def export(wanted: Wanted, work: Path, to: Path, say: Callable[[str], None] = print) -> Path:
    """Write the bundle of a run into the folder `to`, which appears when it is complete; return the folder.

    A bundle of the same run, with the same choices and the same version of fmcache and torch, is left as it is.

    Raises
    ------
    ResultsNotFound, ResultsCorrupt, ResultsMismatch
        When there is no such run, or its files are damaged.
    SpecError
        When the target holds something else, the um/px are unknown, the licence of the weights restricts passing them
        on, or torch cannot write the encoder in the wanted form.
    EncoderUnavailable, WeightsMismatch
        When the encoder's weights are unavailable, or are not those of the run.
    ExtraMissing
        When ONNX is wanted and its packages are not installed.
    """
    if wanted.onnx:
        onnx_file.check_installed()
    chosen = choose_run(wanted, places.results(work))
    _check_licence(chosen, wanted)
    fitted = load_decoder(chosen.folder / WEIGHTS, chosen.record)
    facts = facts_of(chosen, wanted, standardised=fitted.standardised)
    if _is_there(to, facts):
        say(f"{to} holds this bundle already: {facts.title}")
        return to
    encoder = None if wanted.decoder_only else _encoder(chosen, wanted, work)
    relief = "close other programs that use memory, or pass --decoder-only"
    with naming_shortage(f"export of {facts.title}", relief), whole_folder(to) as folder:
        shutil.copyfile(chosen.folder / WEIGHTS, folder / contents.DECODER)
        if encoder:
            _write_model(folder, facts, encoder, fitted)
        (folder / contents.FACTS).write_bytes(contents.facts_json(facts))
        (folder / contents.PAGE).write_bytes(bundle_page(facts, method([chosen.findings])))
        (folder / contents.REFERENCES).write_text(bibtex([chosen.findings]), encoding="utf-8")
        contents.write_checksums(folder)
    say(f"exported: {facts.title}")
    say(f"bundle: {to}")
    return to


def _check_licence(chosen: ChosenRun, wanted: Wanted) -> None:
    encoder = chosen.record.encoder
    why = restriction(chosen.card, random_weights=encoder.random_weights)
    if not why or wanted.decoder_only or wanted.accept_licence:
        return
    page = f" ({chosen.card.licence_page})" if chosen.card.licence_page else ""
    raise SpecError(
        f"the licence of the weights of {encoder.title} restricts passing them on",
        expected="a licence under which everybody may pass them on, or your decision",
        found=f"{why}{page}",
        next_step="pass --decoder-only, which leaves the weights out; or read the licence, and pass --accept-licence "
        "if it allows what you intend (keeping the bundle to yourself, for example)",
    )


def _encoder(chosen: ChosenRun, wanted: Wanted, work: Path) -> Encoder:
    """Return the encoder of the run; raises as `load_same_encoder`."""
    choice = recorded_choice(chosen.record, wanted.weights)
    identity, lock = encoder_identity(chosen.record), places.weights_lock(work)
    return load_same_encoder(choice, identity, torch.device("cpu"), offline=wanted.offline, lock=lock)


def _is_there(to: Path, facts: Facts) -> bool:
    """Return whether a folder holds this bundle already; raises SpecError if it holds anything else."""
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return False
    try:
        held = contents.checked_facts(to)
    except (BundleNotFound, BundleCorrupt) as error:
        found = error.problem
    else:
        lines = differences(*map(builtins, (facts, held)))
        if not lines:
            return True
        found = f"{held.title}; it differs in " + some(dict.fromkeys(re.split("[.:]", line)[0] for line in lines))
    raise SpecError(
        f"{to} exists, and holds something other than this bundle",
        expected="a new or empty folder",
        found=found,
        next_step="pass another folder as --to, or remove this one",
    )


def _write_model(folder: Path, facts: Facts, encoder: Encoder, fitted: FittedDecoder) -> None:
    model = WholeModel(encoder, facts.taps, store_of(facts.store), fitted)
    drawn, _ = draw_tile(_TEST_SEED, TileEntry("bundle"), facts.tile_px)
    tile = torch.from_numpy(drawn / np.float32(255)).permute(2, 0, 1)[None].contiguous()
    tracing.save(tracing.trace(model, tile), folder / contents.MODEL)
    with torch.no_grad():
        expected = tracing.load(folder / contents.MODEL, torch.device("cpu"))(tile)
        tracing.check_same(model, "TorchScript", expected, model(tile))
    if facts.onnx:
        onnx_file.write_onnx(model, tile, folder)
    np.save(folder / contents.TEST_INPUT, tile.numpy())
    np.save(folder / contents.TEST_OUTPUT, expected.numpy())
    (folder / contents.WSINFER).write_bytes(wsinfer_config(facts))
    described = bioimage_description(facts, folder, torch_version=torch.__version__, opset=onnx_file.OPSET)
    (folder / contents.BIOIMAGE).write_bytes(described)
