"""The method of a study as text for a paper, and the works that it cites.

Every statement follows from the records of the runs and from what was computed of them. A fact that they lack is left
out. The text is plain; a citation ``[@key]`` names an entry of the BibTeX text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from fmcache.manifest import SPLITS
from fmcache.report.findings import Findings
from fmcache.report.references import Bibliography
from fmcache.report.summary import Row
from fmcache.scores.calibration import BINS
from fmcache.scores.records import RunRecord
from fmcache.statistics.evidence import score_name
from fmcache.statistics.schemas import MEAN

_NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)
_SHOWN_DIGITS = 12
"""Hexadecimal digits of a revision or sha256 that the text shows; the report lists each sha256 as a whole."""
SPLIT_NAMES = dict(zip(SPLITS, ("training", "validation", "test"), strict=True))
REDUCTIONS = {
    "pooled": "from counts summed over all test tiles",
    "per_tile": "of each test tile, averaged over the tiles where the label occurs or was predicted",
    "puma": "as in the PUMA challenge: from counts summed over all test tiles, 0 for a label without a hit, and "
    "without the background",
}
GRIDS = {
    "fit": "views were resized to the nearest multiple of it, and the decoder's output was resized to {px} px",
    "pad": "views were reflected at the bottom and right up to the next multiple, and this rim was cut from the "
    "decoder's output",
    "crop": "the rim at the bottom and right was left out: it was neither trained on nor scored",
}
PAPERS_DECODER = (
    "a 1 x 1 convolution to {width} channels; blocks of bilinear upsampling by 2, a 3 x 3 convolution and ReLU, as "
    "many as reach the size of the tile; a 1 x 1 convolution to the labels; and a bilinear interpolation where sizes "
    "still differ"
)
"""The paper's decoder, for results that do not say what their decoder does."""

Describe = Callable[[Findings, Bibliography], str]


def method(all_findings: Sequence[Findings]) -> list[str]:
    """Return the method of a study as paragraphs of plain text; `all_findings` has one entry per dataset.

    Names of datasets, labels and encoders are those of the user, unescaped.
    """
    return _written(all_findings)[0]


def bibtex(all_findings: Sequence[Findings]) -> str:
    """Return the BibTeX entries of all works that `method` cites: exactly these, sorted by key."""
    return _written(all_findings)[1].bibtex()


def _written(all_findings: Sequence[Findings]) -> tuple[list[str], Bibliography]:
    works = Bibliography()
    paragraphs = [" ".join(_data(one, works) for one in all_findings)]
    for describe in (_views, _encoders, _tokens, _training, _scores, _statistics, _software):
        paragraphs += _on_each(all_findings, describe, works)
    return [paragraph for paragraph in paragraphs if paragraph], works


def _on_each(all_findings: Sequence[Findings], describe: Describe, works: Bibliography) -> list[str]:
    """Return one paragraph if it holds for all datasets, otherwise one for each dataset."""
    texts = {one.summary.record.dataset: describe(one, works) for one in all_findings}
    if len(set(texts.values())) == 1:
        return [next(iter(texts.values()))]
    return [f"On {dataset}, the following holds. {text}" for dataset, text in texts.items() if text]


def _data(one: Findings, works: Bibliography) -> str:
    record, records, folds = one.summary.record, _records(one), one.summary.folds
    source = _first(of.dataset_source for of in records)
    licence = _first(of.dataset_licence for of in records)
    title, side = record.dataset_title, record.recipe["tile_px"]
    name = title + (f" ({record.dataset})" if record.dataset != title else "")
    if source:
        name += " " + works.cite_text(source, name=f"dataset-{record.dataset}", title=title)
    per_split = [f"{_range(of.tiles[split] for of in records)} {word}" for split, word in SPLIT_NAMES.items()]
    facts = [f"licence {licence}"] if licence else []
    facts.append(f"{_listed(per_split)} tiles in {f'each of {len(folds)} folds' if folds else 'one fixed split'}")
    facts.append(f"{side} x {side} px")
    facts += [f"images listed at {record.mpp:g} um/px"] if record.mpp else []
    text = f"The dataset {name} was used as follows: {'; '.join(facts)}."
    if subset := record.recipe.get("subset"):
        text += f" The training tiles are the listed subset of {subset}."
    labels = [label for label, _ in record.labels]
    return text + f" Its {len(labels)} labels are {_listed(labels)}." + _groups(one)


def _groups(one: Findings) -> str:
    groups = {tile: group for of in _records(one) for tile, group in of.groups.items()}
    if not groups:
        return ""
    n, whole = len(set(groups.values())), one.evidence.tiles
    which = f"The {whole} test tiles" if len(groups) == whole else f"{len(groups)} of the {whole} test tiles"
    return f" {which} come from {n} {'patient or slide' if n == 1 else 'patients or slides'}."


def _views(one: Findings, works: Bibliography) -> str:
    views = one.summary.record.recipe["views"]
    turns = [
        f"rotation by up to {views['rotate_deg']:g} degrees to either side" if views["rotate_deg"] else "",
        "reflection with probability 0.5" if views["flip"] else "",
        f"zoom by a factor between 1/{views['scale']:g} and {views['scale']:g}" if views["scale"] > 1 else "",
        f"shear by up to {views['shear_deg']:g} degrees" if views["shear_deg"] else "",
        f"a shift by up to {100 * views['translate']:g} % of the side" if views["translate"] else "",
    ]
    colours = [
        f"{name} by up to {100 * views[name]:g} %" for name in ("brightness", "contrast", "saturation") if views[name]
    ]
    colours += [f"hue by up to {100 * views['hue']:g} % of the colour circle"] if views["hue"] else []
    changes = [change for change in turns if change] + ([f"changes of {_listed(colours)}"] if colours else [])
    text = (
        f"{_counted(views['count'], 'view')} of each training tile {_was(views['count'])} drawn once, and all encoders "
        "and seeds used the same views. "
    )
    text += f"A view is a random combination of {_listed(changes)}. " if changes else "Views are unchanged tiles. "
    if any(turns):
        outside = "ignored in training" if views["outside"] == "ignore" else "given the reflected label"
        text += f"Beyond the border of a tile the image was reflected; there, pixels were {outside}. "
    return text + "Validation and test tiles were used unchanged."


def _encoders(one: Findings, works: Bibliography) -> str:
    rows = one.summary.rows
    ranked, apart = [row for row in rows if not row.is_control], [row for row in rows if row.is_control]
    text = "Encoders were frozen: their weights were not trained further."
    if ranked:
        n = _counted(len(ranked), "encoder")
        text += f" {n} {_was(len(ranked))} compared: {'; '.join(_encoder(one, row, works) for row in ranked)}."
    if apart:
        text += f" Controls, which were not ranked: {'; '.join(_encoder(one, row, works) for row in apart)}."
    with_weights = [row.encoder for row in rows if row.encoder.weights_sha256 and not row.encoder.random_weights]
    unclear = [of.title for of in with_weights if of.licence.startswith("unclear")]
    closed = [of.title for of in with_weights if _NON_COMMERCIAL.search(of.licence) and of.title not in unclear]
    if closed:
        text += f" The licence of these weights allows non-commercial use only: {_listed(closed)}."
    if unclear:
        text += f" The licence of these weights is unclear, and may not allow commercial use: {_listed(unclear)}."
    if random := [row.encoder.title for row in rows if row.encoder.random_weights]:
        text += f" These encoders had random weights and have learnt nothing: {_listed(random)}."
    return text


def _encoder(one: Findings, row: Row, works: Bibliography) -> str:
    encoder = row.encoder
    cited = ""
    if encoder.citation:
        cited = " " + works.cite_text(encoder.citation, name=f"encoder-{encoder.name}", title=encoder.title)
    facts = [_parameters(encoder.params), f"patch size {encoder.patch} px", f"{encoder.width} channels"]
    facts += [_weights(one, row)] if encoder.weights_sha256 and not encoder.random_weights else []
    facts += [f"licence {encoder.licence}"] if encoder.licence and not encoder.random_weights else []
    return f"{encoder.display}{cited} ({', '.join(fact for fact in facts if fact)})"


def _weights(one: Findings, row: Row) -> str:
    encoder = row.encoder
    origin = _first(of.origin for of in _records(one) if of.encoder.name == encoder.name) or {}
    name = f"weights {origin.get('hub') or encoder.weights}".rstrip()
    if revision := _revision(origin):
        return f"{name} at revision {revision[:_SHOWN_DIGITS]}"
    return f"{name} of sha256 {encoder.weights_sha256[:_SHOWN_DIGITS]}"


def _revision(origin: Mapping[str, Any]) -> str:
    """Return the revision of weights from the hub, which is a folder of the hub's cache; '' if unknown."""
    parts = Path(origin.get("weights", "")).parts if origin.get("hub") else ()
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else ""


def _tokens(one: Findings, works: Bibliography) -> str:
    recipe = one.summary.record.recipe
    facts = {row.encoder.display: _identified(one, row) for row in one.summary.rows}
    cards = [_mapping(of.get("encoder")) for of in facts.values()]
    side = recipe["tile_px"]
    texts = []
    if all("mean" in card and "std" in card for card in cards):
        texts.append("Pixels were normalised with the mean and standard deviation that belong to each encoder")
    if any(side % row.encoder.patch for row in one.summary.rows):
        texts.append(f"Where the patch size does not divide {side}, {GRIDS[recipe['grid']].format(px=side)}")
    taps = {of["tap"] for of in facts.values() if "tap" in of}
    if any("+" in tap.replace("+norm", "") for tap in taps):
        texts.append(
            "A decoder reads several outputs of an encoder: those of the blocks or stages that the encoder's name says"
        )
    elif taps == {"last"}:
        texts.append("Tokens are the last output of each encoder, for transformers after the final norm")
    elif taps:
        texts.append(
            "Tokens are the output of the block or stage that the name of an encoder states, else its last output"
        )
    if any(card.get("prefix_tokens") for card in cards):
        texts.append("Class and register tokens were dropped")
    if all("precision" in of for of in facts.values()):
        texts.append(f"Encoders ran in {_by_value({name: of['precision'] for name, of in facts.items()})}")
    if stores := {of["store"] for of in facts.values() if "store" in of}:
        texts.append(f"Token grids were stored as {_listed(sorted(stores))}")
    return _sentences(texts)


def _training(one: Findings, works: Bibliography) -> str:
    fit = one.summary.record.recipe["fit"]
    steps = _range(
        -(-of.tiles["train"] * fit["passes_per_epoch"] // fit["batch"]) * fit["epochs"] for of in _records(one)
    )
    seeds = _range(len({seed for _, seed in row.runs}) for row in one.summary.rows)
    texts = [_decoder(one, works)]
    if fit["standardise"] == "channel":
        texts.append(
            "Tokens were standardised by the mean and standard deviation of each channel in the training grids"
        )
    if one.summary.record.recipe["decoder"].get("bias") == "label-shares":
        texts.append("The biases of the logits start at the logarithms of the labels' shares of the training pixels")
    texts += [
        f"The optimiser was NAdam {works.cite('dozat2016nadam')}; the learning rate falls from "
        f"{fit['learning_rate']:g} to 0 along a cosine that restarts every {_counted(fit['restart_epochs'], 'epoch')} "
        f"{works.cite('loshchilov2017sgdr')}",
        f"Training took {_counted(fit['epochs'], 'epoch')} with {_counted(fit['passes_per_epoch'], 'view')} of each "
        f"training tile, in batches of up to {_counted(fit['batch'], 'view')}: {steps} steps",
        _loss(fit, works),
        _number_formats(one),
        f"The mean Dice over labels on the validation tiles was computed every "
        f"{_counted(fit['validate_epochs'], 'epoch')} and after the last one; the weights with the highest value were "
        "tested",
        f"Each encoder was used with {seeds} seed{'s' * (seeds != '1')}{' on each fold' * bool(one.summary.folds)}",
        "A seed determines the initial weights of the decoder and the order of tiles and views",
    ]
    return _sentences(texts)


def _decoder(one: Findings, works: Bibliography) -> str:
    low, high = (pick(of.decoder_params for of in _records(one)) for pick in (min, max))
    size = _parameters(low) if low == high else f"{_parameters(low)} to {_parameters(high)}, depending on the encoder"
    record = one.summary.record
    settings = record.recipe["decoder"]
    kind = settings.get("kind", "paper")
    which = works.cite("vitoria-benchmark") if kind == "paper" else f"({kind})"
    words = record.decoder_words or PAPERS_DECODER.format(width=settings.get("width"))
    return f"On the token grids of each encoder, the same light decoder {which} was trained: {words}. It has {size}"


def _loss(fit: Mapping[str, Any], works: Bibliography) -> str:
    parts = []
    if fit["cross_entropy_weight"]:
        parts.append(f"cross-entropy (weight {fit['cross_entropy_weight']:g})")
    if fit["dice_weight"]:
        parts.append(f"soft Dice loss (weight {fit['dice_weight']:g}) {works.cite('milletari2016vnet')}")
    return f"The loss, over the labelled pixels of a batch, was {_listed(parts)}" if parts else ""


def _number_formats(one: Findings) -> str:
    formats = {of.number_format for of in _records(one)}
    return f"Decoders were computed in {'; '.join(sorted(formats))}" if formats and "" not in formats else ""


def _scores(one: Findings, works: Bibliography) -> str:
    together = "The test tiles of all folds of a seed were scored together. " if one.summary.folds else ""
    return (
        f"The score is Dice {works.cite('dice1945')} per label {REDUCTIONS[one.summary.reduction]}, and the mean over "
        f"the labels that have a Dice. Pixels without a label were not counted. {together}The tables show the mean and "
        f"standard deviation over seeds.{_further(one, works)}"
    )


def _further(one: Findings, works: Bibliography) -> str:
    text, further = "", one.further
    if len(further.boundary):
        text += (
            f" The agreement of boundaries is the normalised surface Dice {works.cite('nikolov2021surface')} at a "
            f"tolerance of {further.boundary['tolerance'][0]}, from the boundary pixels (4-connected) of each label, "
            "summed over all test tiles; edges of tiles and pixels without a label make no boundary."
        )
    if len(further.calibration):
        text += (
            f" The expected calibration error {works.cite('guo2017calibration')} is that of the largest softmax "
            f"probability, in {BINS} bins of equal width over all pixels of the test tiles."
        )
    return text


def _statistics(one: Findings, works: Bibliography) -> str:
    table = _own(one, one.answer.intervals)
    of_mean = table.filter(pl.col("label") == MEAN)
    if table["low"].null_count() == len(table):
        return ""
    jackknife = works.cite("miller1974jackknife", "efron1981jackknife")
    texts = [
        "Intervals are at 95 %",
        f"They cover the seeds and the choice of {len(one.evidence.units)} test units: {_units(one)}",
        f"Per label, the variance over units is the jackknife variance {jackknife} of the logit of Dice; the variance "
        "over seeds is added",
        f"Limits use Student's t with the degrees of freedom of Satterthwaite {works.cite('satterthwaite1946')}",
        f"The interval of the mean over labels combines those of the labels by MOVER {works.cite('zou2008mover')}",
        "Where it is larger, a jackknife over folds replaces this variance"
        if one.summary.folds
        else "The split is fixed: intervals do not cover other training tiles",
        _pairs(one, works),
    ]
    if len(one.answer.against_control):
        texts.append("Intervals of differences to the best control hold for each pair alone")
    if lost := int(of_mean["lost"].sum()):
        texts.append(f"{_counted(lost, 'run')} that did not learn a label {_was(lost)} kept in all means")
    if out := len(one.evidence.left_out):
        texts.append(f"{_counted(out, 'run')} that did not test all tiles {_was(out)} left out of means and intervals")
    scores = one.answer.intervals["score"].unique(maintain_order=True)
    if others := [score for score in scores if score not in table["score"]]:
        texts.append(f"The same was computed for {_listed(others)}; looking at several scores is not corrected for")
    return _sentences(texts)


def _pairs(one: Findings, works: Bibliography) -> str:
    if not _own(one, one.answer.pairs)["p"].count():
        return ""
    n = _own(one, one.answer.intervals).filter(pl.col("label") == MEAN)["may_be_best"].count()
    return (
        f"All pairs of the {n} ranked encoders were compared on the same units by moderated t tests "
        f"{works.cite('smyth2004')} with the correction of Holm {works.cite('holm1979')}; the family-wise error is 5 % "
        "for each label and for the mean. The rank intervals follow from these tests. An encoder may be best unless "
        f"such a test, at an error of 5 %, finds another ahead of it {works.cite('hsu1996')}"
    )


def _own(one: Findings, table: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of a table for the score of the recipe."""
    return table.filter(pl.col("score") == score_name(one.summary.reduction))


def _units(one: Findings) -> str:
    grouped = {tile for of in _records(one) for tile in of.groups}
    if not grouped:
        return "the test tiles"
    return "patients or slides" if len(grouped) == one.evidence.tiles else "patients, slides, and tiles without either"


def _software(one: Findings, works: Bibliography) -> str:
    records = _records(one)
    names = list(dict.fromkeys(name for of in records for name in of.versions))
    versions = {name: _listed(sorted({of.versions[name] for of in records if name in of.versions})) for name in names}
    cited = works.cite("fmcache", note=f"Version {versions['fmcache']}") if "fmcache" in versions else ""
    shown = [f"{name} {version}" + (f" {cited}" if name == "fmcache" else "") for name, version in versions.items()]
    texts = [f"Software: {', '.join(shown)}"] if shown else []
    if encoded := sorted({of.extraction.device for of in records if of.extraction and of.extraction.device}):
        texts.append(f"Encoders ran on: {', '.join(encoded)}")
    texts.append(f"Decoders were trained on: {', '.join(sorted({of.device for of in records}))}")
    return _sentences(texts)


def _records(one: Findings) -> list[RunRecord]:
    return [run.record for run in one.runs]


def _identified(one: Findings, row: Row) -> Mapping[str, Any]:
    """Return what identifies the token cache of an encoder; empty if its records do not hold it.

    Of several taps that one decoder reads, it is that of the first, with the names of all taps.
    """
    found = _first(of.identity.get("tokens") for of in _records(one) if of.encoder.name == row.encoder.name)
    if isinstance(found, list):
        taps = [_mapping(tokens) for tokens in found]
        return {**taps[0], "tap": "+".join(str(of.get("tap")) for of in taps)}
    return _mapping(found)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _sentences(texts: Iterable[str]) -> str:
    return " ".join(f"{text}." for text in texts if text)


def _first(values: Iterable[Any]) -> Any:
    """Return the first value that is not empty; '' if there is none."""
    return next((value for value in values if value), "")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def _range(numbers: Iterable[int]) -> str:
    low, *rest = sorted(set(numbers))
    return f"{low} to {rest[-1]}" if rest else str(low)


def _counted(n: int, unit: str) -> str:
    return f"{n} {unit}{'s' * (n != 1)}"


def _was(n: int) -> str:
    return "was" if n == 1 else "were"


def _parameters(n: int) -> str:
    if n == 0:
        return "no parameters"
    return f"{n / 1e6:.1f} million parameters" if n >= 1e5 else f"{n:,} parameters"


def _by_value(value_of: Mapping[str, str]) -> str:
    """Return the common value, or each value with the names that have it."""
    names: dict[str, list[str]] = {}
    for name, value in value_of.items():
        names.setdefault(value, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{value} ({', '.join(names[value])})" for value in sorted(names))
