"""Only licences that certainly allow it let weights be passed on without a decision of the user."""

import pytest

from fmcache.bundles.passing_on import restriction
from fmcache.encoders.cards import card_names, read_card
from fmcache.errors import SpecError

FREE = {
    "dinov2-vits14", "dinov2-vitb14", "dinov2-vitl14", "h-optimus-0", "hibou-b", "midnight-12k", "resnet50-in1k",
    "raw-pixels", "colour-texture", "random-vits16",
}  # fmt: skip


@pytest.mark.parametrize("name", card_names())
def test_only_cards_with_an_open_licence_and_without_a_gate_are_free(name):
    card = read_card(name)
    why = restriction(card, random_weights=card.random_weights)
    assert (why == "") == (name in FREE)
    assert not why or card.licence in why


def test_random_weights_are_nobodys_and_unknown_licences_restrict(tiny_card):
    card = read_card(str(tiny_card))
    assert restriction(card, random_weights=True) == ""
    bare = type(card)(
        name="a", title="A", architecture="b", patch=1, width=1, mean=(0, 0, 0), std=(1, 1, 1)
    )  # fmt: skip
    assert "not stated" in restriction(bare, random_weights=False)


def test_a_licence_that_restricts_passing_on_needs_a_decision(fitted, tmp_path):
    with pytest.raises(SpecError, match="restricts passing them on") as error:
        fitted.export(tmp_path / "out", accept_licence=False)
    assert "CC-BY-NC-ND-4.0" in error.value.found
    assert "https://example.org/tiny" in error.value.found
    assert "--accept-licence" in error.value.next_step
    folder = fitted.export(tmp_path / "out", accept_licence=False, decoder_only=True)
    assert not list(folder.glob("*.pt"))
    assert not list(folder.glob("*.npy"))
    fitted.export(tmp_path / "whole", accept_licence=True)
