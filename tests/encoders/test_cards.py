import re

import pytest

from fmcache.encoders.cards import GROUPS, STUDY, card_names, read_card
from fmcache.errors import EncoderUnavailable, SpecError


def test_every_built_in_card_is_called_as_its_file():
    assert {"virchow2", "raw-pixels", "random-vits16"} <= set(card_names())
    assert all(read_card(name).name == name for name in card_names())


def test_every_gated_card_names_the_licence_to_accept():
    gated = [card for card in map(read_card, card_names()) if card.gated]
    assert gated
    assert all(card.licence and card.licence_page.startswith("https://") and card.weights.repo for card in gated)


def test_the_study_keeps_its_15_encoders_whatever_cards_are_added():
    groups = {group: {card.name for card in map(read_card, card_names()) if card.group == group} for group in GROUPS}
    assert groups["study"] == set(STUDY)
    assert len(STUDY) == 15
    assert {"h0-mini", "midnight-12k", "gpfm", "mstar", "kaiko-vits16"} <= groups["newer"]
    assert {"resnet50-in1k", "dinov2-vits14", "dinov3-vitl16"} <= groups["baselines"]
    assert groups["controls"] == {"raw-pixels", "colour-texture", "random-vits16"}


def test_every_encoder_that_was_published_has_a_citation():
    assert all(card.citation for card in map(read_card, card_names()) if not card.control)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(EncoderUnavailable, match=r"no encoder is called 'virchow3'") as caught:
        read_card("virchow3")
    assert "virchow2" in caught.value.expected


def test_an_unknown_key_is_named_with_file_and_line(write_card):
    path = write_card()
    path.write_text(path.read_text() + "colour: blue\n")
    line = len(path.read_text().splitlines())
    with pytest.raises(SpecError, match=re.escape(f"{path}:{line}: colour: unknown key 'colour'")):
        read_card(str(path))


def test_a_local_weights_file_lies_beside_its_card_and_a_hub_file_stays_a_name(write_card, tmp_path):
    local = read_card(str(write_card(weights={"file": "sub/w.pth"})))
    assert local.weights.file == str(tmp_path / "sub" / "w.pth")
    hub = read_card(str(write_card(weights={"repo": "a/b", "file": "w.pth"})))
    assert hub.weights.file == "w.pth"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../x"}, "card name '../x'"),
        ({"std": [0.2, 0.0, 0.2]}, "three numbers above 0"),
        ({"architecture": ""}, "expected the name of a timm model"),
        ({"random_weights": True}, "contradict each other"),
        ({"arguments": {"checkpoint_path": "w.pth"}}, "arguments.checkpoint_path is set by fmcache"),
        ({"arguments": {"dynamic_img_pad": True}}, "arguments.dynamic_img_pad is set by fmcache"),
        ({"arguments": {"features_only": True}}, "arguments.features_only is set by fmcache"),
        ({"arguments": {"init_values": "1e-5"}}, "write it with a dot, as in 1.0e-5"),
        ({"weights": {"repo": "a/b"}}, "need the name of the `file`"),
        ({"weights": {"file": "w", "sha256": "abc"}}, "expected a sha256 of 64 hex digits"),
        ({"weights": {"file": "w", "revision": "v1"}}, "a revision needs the `repo`"),
        ({"kind": "pixels"}, "kind pixels has no network"),
        (
            {"kind": "pixels", "architecture": None, "arguments": {}, "prefix_tokens": 0, "weights": None},
            r"expected 768 for kind pixels",
        ),
        ({"control": True, "baseline": True}, "control and baseline contradict each other"),
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"patch": 0}, "patch"),
    ],
)
def test_a_card_that_cannot_be_true_is_refused(write_card, changes, message):
    path = write_card(**changes)
    with pytest.raises(SpecError, match=message) as caught:
        read_card(str(path))
    assert str(path) in str(caught.value)
