"""Identities of caches are what they were: a cache that someone has must be found again."""

import pytest

from fmcache.encoders.cards import STUDY, read_card
from fmcache.identity import fingerprint
from fmcache.specs import Recipe
from fmcache.stages.identities import tokens_identity, with_encoder
from fmcache.strict import builtins

KNOWN = {
    "conch": "5280adcca289e284",
    "conchv1.5": "fc7a31b2ef57c9fb",
    "h-optimus-0": "ec69115fa753b2a7",
    "h-optimus-1": "5ac3f1b22c9c1dea",
    "hibou-b": "ae516fcf4f7ca6b2",
    "hibou-l": "d7a8efd82ff17438",
    "kaiko-vitl14": "f92508a0d5b37e07",
    "lunit-vits8": "050757c5671d4f6b",
    "phikon": "9bf80d3a370be962",
    "phikon-v2": "abb062b0b033236c",
    "prov-gigapath": "83b1cb4908f3d9d6",
    "uni": "e56a76037f5843bb",
    "uni2-h": "eddb3ba3ec4289d1",
    "virchow": "db521092bca24042",
    "virchow2": "82d88c22f519e16a",
    "raw-pixels": "d6d0f4fd2a9bd112",
    "random-vits16": "fe65ec94ea2cb28b",
}
"""First digits of the fingerprint of each encoder's cache below, as the first version of fmcache wrote it."""


def identity_of(name):
    identity = tokens_identity(Recipe(), "d", {"t": ("a" * 64, "b" * 64)}, "last")
    return with_encoder(identity, builtins(read_card(name)), "c" * 64, random_weights=False, precision="float16")


def test_every_encoder_of_the_study_has_a_known_identity():
    assert set(STUDY) <= KNOWN.keys()


@pytest.mark.parametrize("name", KNOWN)
def test_the_identity_of_an_encoders_cache_never_moves(name):
    assert fingerprint(identity_of(name))[:16] == KNOWN[name]
