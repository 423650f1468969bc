"""The method text: every statement follows from the records, and every citation has an entry."""

import re

import msgspec
import polars as pl
import pytest
from pybtex.database import parse_string

from fmcache.decoders.layers import Shape
from fmcache.decoders.registry import KINDS, settings
from fmcache.encoders.cards import read_card
from fmcache.grid import GridGeometry
from fmcache.report.facts import facts
from fmcache.report.findings import find
from fmcache.report.method import bibtex, method
from fmcache.scores.records import EncoderInfo, Extraction
from fmcache.specs import DecoderSpec, Recipe

COUNTS = [(80, 10, 10), (60, 30, 10), (70, 20, 20), (50, 40, 20), (65, 20, 30)]
"""(tp, fp, fn) of label a in each test tile; label b has half of them."""
VIEW_SENTENCE = "A view is a random combination of rotation by up to 180 degrees to either side, reflection"


def encoder(name, **fields):
    given = {"title": name.upper(), "params": 303_350_784, "width": 1024, "patch": 16, "control": False,
             "random_weights": False, "weights_sha256": "ab" * 32} | fields  # fmt: skip
    return EncoderInfo(name, **given)


@pytest.fixture
def runs_of(part):
    """Return runs of an encoder, one for each seed, on five test tiles."""

    def drawn(info, seeds=3, **fields):
        made = []
        for seed in range(seeds):
            one = part(info.name, seed, (9, 1, 1), (9, 1, 1))
            rows = [
                ("test", f"t{i}", label, tp // n + seed * (i + len(info.name)), fp // n, fn // n)
                for i, (tp, fp, fn) in enumerate(COUNTS)
                for n, label in enumerate("ab", 1)
            ]
            counts = pl.concat([one.counts.filter(pl.col("split") == "val"), table(rows, one.counts.schema)])
            made.append(one_with(one, counts, encoder=info, tiles={"train": 15, "val": 5, "test": 5}, **fields))
        return made

    return drawn


def table(rows, schema):
    return pl.DataFrame(rows, schema=schema, orient="row")


def one_with(run, counts, **fields):
    return msgspec.structs.replace(run, record=msgspec.structs.replace(run.record, **fields), counts=counts)


@pytest.fixture
def folded(in_folds):
    """Return runs on folds, each of which tests a tile of its own."""

    def drawn(*dice):
        return [
            one_with(run, run.counts.with_columns(tile=pl.format("{}{}", "tile", pl.lit(run.record.fold))))
            for run in in_folds(*dice)
        ]

    return drawn


def cited(paragraphs):
    return {
        key for found in re.findall(r"\[(@[^]]+)\]", "\n".join(paragraphs)) for key in re.findall("@([^;]+)", found)
    }


def entries(text):
    return parse_string(text, "bibtex").entries


def test_the_text_states_what_the_records_hold(runs_of):
    card = read_card("uni")
    uni = encoder("uni", title="UNI", licence=card.licence, citation=card.citation, weights="uni.bin")
    origin = {"hub": "MahmoodLab/UNI/pytorch_model.bin", "weights": "/home/me/hub/snapshots/0123456789abcdef/uni.bin"}
    tokens = {"tap": "last", "store": "float16", "precision": "float16",
              "encoder": {"mean": [0.5], "std": [0.2], "prefix_tokens": 1}}  # fmt: skip
    groups = {f"t{i}": f"p{i // 2}" for i in range(5)}
    facts = {"origin": origin, "identity": {"tokens": tokens}, "dataset_source": "Me 2020", "dataset_licence": "CC0",
             "extraction": Extraction(1.0, 2, 3, 4, "cuda:0 (H100)"), "groups": groups,
             "versions": {"fmcache": "0.1.0", "torch": "2.9"}, "decoder_params": 2_623_491,
             "number_format": "float32, inputs of convolutions rounded to TF32"}  # fmt: skip
    other = encoder("other", title="Other", patch=14)
    one = find([*runs_of(uni, **facts), *runs_of(other, **facts | {"origin": {}})])
    text = "\n".join(method([one]))
    for stated in (
        "The dataset Toy (d) [@dataset-d] was used as follows: licence CC0; 15 training, 5 validation and 5 test tiles "
        "in one fixed split; 512 x 512 px; images listed at 0.5 um/px. Its 2 labels are a and b. The 5 test tiles come "
        "from 3 patients or slides.",
        "50 views of each training tile were drawn once",
        VIEW_SENTENCE,
        "UNI [@chen2024uni] (303.4 million parameters, patch size 16 px, 1024 channels, weights "
        "MahmoodLab/UNI/pytorch_model.bin at revision 0123456789ab, licence CC-BY-NC-ND-4.0)",
        "Other (303.4 million parameters, patch size 14 px, 1024 channels, weights of sha256 abababababab)",
        "The licence of these weights allows non-commercial use only: UNI.",
        "Where the patch size does not divide 512, views were resized to the nearest multiple of it",
        "Class and register tokens were dropped. Encoders ran in float16. Token grids were stored as float16.",
        "It has 2.6 million parameters.",
        "in batches of up to 8 views: 100 steps",  # 15 tiles: 2 batches an epoch, 50 epochs
        "Decoders were computed in float32, inputs of convolutions rounded to TF32.",
        "Each encoder was used with 3 seeds.",
        "the choice of 3 test units: patients or slides",
        "All pairs of the 2 ranked encoders",
        "The same was computed for dice_per_tile, iou, precision and recall; looking",
        "Software: fmcache 0.1.0 [@fmcache], torch 2.9. Encoders ran on: cuda:0 (H100). Decoders were trained on: cpu.",
    ):
        assert stated in text
    assert "/home/me" not in text
    assert entries(bibtex([one]))["fmcache"].fields["note"] == "Version 0.1.0"


def test_what_the_records_lack_is_left_out(study):
    text = "\n".join(method([find([run for run in study if run.record.encoder.name == "good"])]))
    assert "2 seeds" in text
    for absent in ("patient", "revision", "licence", "Intervals", "Holm", "control", "Pixels were normalised",
                   "stored as", "Encoders ran", "random weights", "standardised", "computed in"):  # fmt: skip
        assert absent not in text, absent


def test_random_weights_are_said_to_be_so_and_their_licence_does_not_matter(runs_of):
    closed = {"licence": "Owkin non-commercial"}
    four = [encoder("one", **closed), encoder("two", **closed, random_weights=True), encoder("ten", licence="MIT"),
            encoder("six", licence="unclear (MIT or CC-BY-NC-ND-4.0)")]  # fmt: skip
    text = "\n".join(method([find([run for info in four for run in runs_of(info)])]))
    assert "allows non-commercial use only: ONE." in text
    assert "is unclear, and may not allow commercial use: SIX." in text
    assert "These encoders had random weights and have learnt nothing: TWO." in text
    assert "3 encoders were compared" in text
    named = "TWO (random weights) (303.4 million parameters, patch size 16 px, 1024 channels)"
    assert f"Controls, which were not ranked: {named}." in text


def test_what_differs_between_datasets_is_said_for_each(study):
    elsewhere = [
        one_with(run, run.counts, dataset="e", device="gpu",
                 recipe=run.record.recipe | {"views": run.record.recipe["views"] | {"count": 7}})
        for run in study
    ]  # fmt: skip
    paragraphs = method([find(study), find(elsewhere)])
    text = "\n".join(paragraphs)
    assert "On d, the following holds. 50 views" in text
    assert "On e, the following holds. 7 views" in text
    assert text.count("the same light decoder") == 1
    assert "trained on: gpu." in text


def test_folds_are_counted(folded):
    text = "\n".join(method([find(folded(50, 60, 55, 65, 52, 61))]))
    assert "15 training, 5 validation and 1 test tiles in each of 3 folds" in text
    assert "with 2 seeds on each fold." in text
    assert "The test tiles of all folds of a seed were scored together." in text


def test_unchanged_views_and_one_loss_are_said_as_such(part):
    recipe = part("x", 0, (1, 1, 1), (1, 1, 1)).record.recipe
    still = dict.fromkeys(("rotate_deg", "shear_deg", "translate", "brightness", "contrast", "saturation", "hue"), 0.0)
    views = recipe["views"] | still | {"flip": False, "scale": 1.0, "count": 1}
    run = part("x", 0, (1, 1, 1), (1, 1, 1))
    fit = recipe["fit"] | {"dice_weight": 0.0, "standardise": "channel"}
    run = one_with(run, run.counts, recipe=recipe | {"views": views, "fit": fit})
    text = "\n".join(method([find([run])]))
    assert "1 view of each training tile was drawn once" in text
    assert "Views are unchanged tiles. Validation" in text
    assert "was cross-entropy (weight 1). " in text
    assert "Tokens were standardised" in text
    assert "milletari2016vnet" not in cited(method([find([run])]))


def test_every_citation_has_an_entry_and_every_entry_is_cited(runs_of, study, folded):
    cards = [read_card(name) for name in ("uni", "resnet50-in1k", "colour-texture")]
    encoders = [
        encoder(card.name, title=card.title, citation=card.citation, control=card.control, licence=card.licence)
        for card in cards
    ]
    for runs in (study, folded(50, 60, 55, 65), [run for info in encoders for run in runs_of(info, seeds=2)]):
        one = find(runs)
        assert cited(method([one])) == set(entries(bibtex([one])))


def recipe_with(decoder):
    return msgspec.to_builtins(Recipe(name="toy")) | {"decoder": decoder}


@pytest.mark.parametrize("decoder", [{"width": 64}, {"kind": "paper", "width": 64}], ids=["earlier release", "named"])
def test_the_papers_decoder_reads_the_same_with_and_without_its_name_and_words(runs_of, decoder):
    grid = GridGeometry(512, 16)
    texts = set()
    for words in ("", KINDS["paper"].words(Shape((1024,), 64, 2, grid))):
        runs = runs_of(encoder("one"), recipe=recipe_with(decoder), decoder_words=words)
        texts.add("\n".join(method([find(runs)])))
        assert facts(find(runs).summary)["decoder"] == "width 64, 10 parameters (first encoder)"
    (text,) = texts
    assert "the same light decoder [@vitoria-benchmark] was trained: a 1 x 1 convolution to 64 channels; blocks" in text


@pytest.mark.parametrize(
    ("kind", "says", "fact"),
    [
        ("linear", "(linear) was trained: a linear probe", "linear, 10 parameters"),
        ("paper-norm", "a 3 x 3 convolution, group normalisation and ReLU", "paper-norm, width 64, 10 parameters"),
        (
            "multi-tap",
            "for each of 2 taps a 1 x 1 convolution to 64 channels, summed; blocks",
            "multi-tap, width 64, 10",
        ),
    ],
)
def test_another_decoder_is_named_and_described_as_its_kind_says(runs_of, kind, says, fact):
    channels = (512, 512) if kind == "multi-tap" else (1024,)
    words = KINDS[kind].words(Shape(channels, 64, 2, GridGeometry(512, 16)))
    recipe = recipe_with(settings(DecoderSpec(kind=kind, width=64)))
    found = find(runs_of(encoder("one"), recipe=recipe, decoder_words=words))
    text = "\n".join(method([found]))
    assert says in text
    assert "same light decoder [@vitoria-benchmark]" not in text
    assert facts(found.summary)["decoder"].startswith(fact)


def test_several_taps_of_one_decoder_are_said_to_be_read_by_it(runs_of):
    tokens = [{"tap": tap, "store": "float16", "precision": "float32"} for tap in ("6+norm", "last")]
    joined = "\n".join(method([find(runs_of(encoder("one@6+norm+last"), identity={"tokens": tokens}))]))
    assert "A decoder reads several outputs of an encoder" in joined
    assert "Token grids were stored as float16" in joined
    alone = "\n".join(method([find(runs_of(encoder("one@6+norm"), identity={"tokens": tokens[0]}))]))
    assert "A decoder reads several outputs" not in alone
