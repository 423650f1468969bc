"""The fifteen encoders of the study at their full width, at the paper's tile size, with random weights."""

import msgspec
import numpy as np
import pytest
import torch
import yaml

from fmcache.encoders.cards import STUDY, read_card
from fmcache.encoders.load import load_encoder
from fmcache.encoders.tokens import token_grids
from fmcache.grid import GridGeometry
from fmcache.specs import EncoderChoice

SIDES = {16: {"fit": 32}, 8: {"fit": 64}, 14: {"fit": 37, "pad": 37, "crop": 36}}


def tile():
    return np.random.default_rng(0).integers(0, 256, (1, 512, 512, 3), dtype=np.uint8)


@pytest.fixture
def cut(tmp_path):
    """Write the card of an encoder of the study with one block, and without the facts that depend on depth."""

    def write(name):
        card = read_card(name)
        arguments = card.arguments | {"depth": 1}
        short = msgspec.structs.replace(card, arguments=arguments, depth=1, params=0, weights=None)
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(msgspec.to_builtins(short)))
        return EncoderChoice(str(path), random_weights=True)

    return write


@pytest.mark.parametrize("name", STUDY)
def test_an_encoder_cut_to_one_block_gives_its_grid_at_512_px_under_every_policy(cut, name):
    encoder = load_encoder(cut(name), torch.device("cpu"))
    card = read_card(name)
    for policy, side in SIDES[card.patch].items():
        grids = token_grids(encoder, tile(), GridGeometry(512, card.patch, policy))
        assert grids.shape == (1, card.width, side, side)
        assert bool(grids.isfinite().all())


@pytest.mark.large
@pytest.mark.parametrize("name", STUDY)
def test_an_encoder_at_full_size_gives_finite_tokens(name):
    encoder = load_encoder(EncoderChoice(name, random_weights=True), torch.device("cpu"))
    assert encoder.params == encoder.card.params
    grid = GridGeometry(512, encoder.card.patch)
    grids = token_grids(encoder, tile(), grid)
    assert grids.shape == (1, encoder.card.width, grid.side, grid.side)
    assert bool(grids.isfinite().all())
