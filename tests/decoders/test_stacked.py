"""Seeds trained together against each seed alone, on toy grids in memory."""

import numpy as np
import pytest
import torch

from fmcache.decoders.batches import Grids
from fmcache.decoders.heads import Decoder, initialise
from fmcache.decoders.losses import segmentation_loss
from fmcache.decoders.stacked import Stack
from fmcache.decoders.train import channel_scale, train, train_seeds
from fmcache.grid import Grid
from fmcache.specs import FitSpec

CPU = torch.device("cpu")
SEEDS = (3, 0, 7)
CHANNELS, WIDTH, LABELS = 5, 6, 3


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def toy(tiles, views, grid, seed):
    """Return tokens that tell the label of their patch, with noise; a rim of ignored pixels; label 2 is rare."""
    rng = np.random.default_rng(seed)
    patches = rng.choice(LABELS, (tiles, views, grid.side, grid.side), p=[0.5, 0.4, 0.1])
    tokens = rng.normal(0, 0.7, (tiles, views, CHANNELS, grid.side, grid.side)) + 4 * rng.normal(size=(CHANNELS, 1, 1))
    tokens[:, :, 0] += patches
    at = np.arange(grid.tile_px) * grid.side // grid.tile_px
    masks = patches[..., at[:, None], at].astype(np.uint8)
    masks[..., :3, :] = 255
    names = tuple(f"{seed}-{i}" for i in range(tiles))
    return Grids(names, range(views), torch.from_numpy(tokens).float(), torch.from_numpy(masks))


def fit_all(seeds, grid, batch=4, standardise=False, source=lambda grids: grids):
    """Train `seeds` together; 5 tiles in batches of 4 leave a last batch of one, 2 when batch is 3."""
    grids, val, test = toy(5, 3, grid, 1), toy(2, 1, grid, 2), toy(3, 1, grid, 3)
    spec = FitSpec(epochs=6, batch=batch, validate_epochs=2, restart_epochs=3, learning_rate=2e-2)
    scale = channel_scale(grids) if standardise else None
    decoder = Decoder(CHANNELS, WIDTH, LABELS, grid, form="direct")
    return train_seeds(decoder, source(grids), val, test, spec, seeds, "pooled", CPU, scale)


@pytest.mark.parametrize(("batch", "standardise", "grid"), [
    (4, False, Grid(32, 8)), (3, True, Grid(32, 8)), (8, True, Grid(30, 7)), (4, False, Grid(30, 7, "pad")),
    (4, True, Grid(30, 7, "crop")),
])  # fmt: skip
def test_seeds_together_come_to_the_losses_weights_and_counts_of_each_alone(batch, standardise, grid):
    together = fit_all(SEEDS, grid, batch, standardise)
    for seed, one in zip(SEEDS, together, strict=True):
        (alone,) = fit_all((seed,), grid, batch, standardise)
        assert one.best_epoch == alone.best_epoch
        for ours, theirs in zip(one.curve, alone.curve, strict=True):
            assert ours[:2] == theirs[:2]
            assert ours[2:5] == pytest.approx(theirs[2:5], rel=1e-4, abs=1e-5)
            assert (ours.val_dice is None) == (theirs.val_dice is None)
        assert one.weights.keys() == alone.weights.keys()
        for name, value in one.weights.items():
            assert torch.allclose(value, alone.weights[name], rtol=1e-3, atol=1e-4), name
        # a pixel whose two best labels are equal to rounding may go either way
        pixels = alone.test.sum()
        assert np.abs(one.test - alone.test).sum() <= 1e-3 * pixels
        assert np.abs(one.val - alone.val).sum() <= 1e-3 * pixels
    assert together[0].curve[0].loss > together[0].curve[-1].loss  # it did train
    assert not torch.equal(together[0].weights["project.weight"], together[1].weights["project.weight"])


def test_the_company_and_the_order_of_seeds_change_nothing_beyond_rounding():
    grid = Grid(32, 8)
    pair, swapped = fit_all((3, 0), grid), fit_all((0, 3), grid)
    for one, other in ((pair[0], swapped[1]), (pair[1], swapped[0])):
        for name, value in one.weights.items():
            assert torch.allclose(value, other.weights[name], rtol=1e-3, atol=1e-4), name


class Noting:
    """A source that notes which (tile, view) were asked for."""

    def __init__(self, grids):
        self.grids, self.tiles, self.views, self.asked = grids, grids.tiles, grids.views, []

    def fetch(self, step, device):
        self.asked.append(step.tolist())
        return self.grids.fetch(step, device)


def test_each_seed_walks_its_own_batches_in_its_own_order():
    notes = []

    def noting(grids):
        notes.append(Noting(grids))
        return notes[-1]

    fit_all((3, 0), Grid(32, 8), source=noting)
    fit_all((3,), Grid(32, 8), source=noting)
    fit_all((0,), Grid(32, 8), source=noting)
    both, three, zero = (note.asked for note in notes)
    assert both == [a + b for a, b in zip(three, zero, strict=True)]
    assert three != zero
    assert {len(step) for step in three} == {4, 1}


def test_one_seed_is_the_plain_loop_step_by_step():
    grid = Grid(32, 8)
    grids = toy(4, 1, grid, 1)
    spec = FitSpec(epochs=3, batch=4, learning_rate=1e-2, restart_epochs=100, validate_epochs=3)
    fitted = train(Decoder(CHANNELS, WIDTH, LABELS, grid, form="direct"), grids, grids, grids, spec, 0, "pooled", CPU)
    plain = Decoder(CHANNELS, WIDTH, LABELS, grid, form="direct")
    initialise(plain, 0)
    optimiser = torch.optim.NAdam(plain.parameters())
    for epoch in range(3):
        optimiser.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + np.cos(np.pi * epoch / 100))
        loss = segmentation_loss(plain(grids.tokens[:, 0]), grids.masks[:, 0], spec).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, value in plain.named_parameters():
        assert torch.allclose(value, fitted.weights[name], rtol=1e-4, atol=1e-6), name


def test_each_seed_keeps_the_weights_of_its_own_best_epoch():
    fitted = fit_all(tuple(range(6)), Grid(32, 8))
    assert len({one.best_epoch for one in fitted}) > 1, "seeds that peak at one epoch could not tell a mix-up"
    for one in fitted:
        scores = {row.epoch: row.val_dice for row in one.curve if row.val_dice is not None}
        assert scores[one.best_epoch] == max(scores.values()) == one.val_dice
        decoder = Decoder(CHANNELS, WIDTH, LABELS, Grid(32, 8), form="direct")
        decoder.load_state_dict(one.weights)
        grids = toy(3, 1, Grid(32, 8), 3)
        predicted = decoder(grids.tokens[:, 0]).argmax(1)
        hits = [int(((predicted == label) & (grids.masks[:, 0] == label)).sum()) for label in range(LABELS)]
        assert one.test[:, :, 0].sum(0).tolist() == pytest.approx(hits, abs=3)


def test_a_loss_per_seed_is_the_loss_of_its_batch():
    logits = torch.randn(3, 2, LABELS, 6, 6, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)[torch.arange(3 * 2 * 36) % 4].reshape(3, 2, 6, 6)
    truth[1] = 255
    truth[2] = 1
    together = segmentation_loss(logits, truth, FitSpec())
    for i in range(3):
        alone = segmentation_loss(logits[i], truth[i], FitSpec())
        assert [part[i].item() for part in together] == pytest.approx([part.item() for part in alone], abs=1e-6)


def test_a_stack_gives_back_what_was_loaded():
    decoder = Decoder(CHANNELS, WIDTH, LABELS, Grid(32, 8), form="direct")
    one, other = Stack(decoder, (1, 2)), Stack(decoder, (8, 9))
    other.load(one.weights())
    for mine, theirs in zip(one.weights(), other.weights(), strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
