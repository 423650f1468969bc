"""A run against the plain loop, on toy grids in memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fmcache.decoders.batches import TokenGrids
from fmcache.decoders.decoder import Decoder, initialise
from fmcache.decoders.layers import Shape
from fmcache.decoders.train import Training, channel_scale, predicted_labels, train
from fmcache.grid import GridGeometry
from fmcache.scores import predictions
from fmcache.scores.counts import count
from fmcache.specs import FitSpec

CPU = torch.device("cpu")
CHANNELS, WIDTH, LABELS = 5, 6, 3
GRID = GridGeometry(32, 8)


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
    return TokenGrids(names, range(views), torch.from_numpy(tokens).float(), torch.from_numpy(masks))


class Noting:
    """A source that notes which (tile, view) were asked for."""

    def __init__(self, grids):
        self.grids, self.tiles, self.views, self.asked = grids, grids.tiles, grids.views, []

    def fetch(self, step, device):
        self.asked.append(step.tolist())
        return self.grids.fetch(step, device)


def training(grids, val, test, spec, decoder=None, scale=None):
    decoder = decoder or Decoder(Shape((CHANNELS,), WIDTH, LABELS, GRID), form="direct")
    return Training(decoder, grids, val, test, spec, "pooled", CPU, scale)


def plain_loss(logits, truth):
    """Cross-entropy + Dice loss by torch's own functions, for truth in which every label occurs."""
    p = logits.movedim(1, -1)[truth != 255].softmax(-1)
    target = torch.nn.functional.one_hot(truth[truth != 255].long(), LABELS)
    dice = 2 * (p * target).sum(0) / (p + target).sum(0)
    return torch.nn.functional.cross_entropy(logits, truth.long(), ignore_index=255) + 1 - dice.mean()


def test_a_run_is_the_plain_loop_step_by_step():
    grids = toy(4, 1, GRID, 1)
    spec = FitSpec(epochs=3, batch=4, learning_rate=1e-2, restart_epochs=100, validate_epochs=3)
    fitted = train(training(grids, grids, grids, spec), 0)
    plain = Decoder(Shape((CHANNELS,), WIDTH, LABELS, GRID), form="direct")
    initialise(plain, 0)
    optimiser = torch.optim.NAdam(plain.parameters())
    for epoch in range(3):
        optimiser.param_groups[0]["lr"] = 1e-2 * 0.5 * (1 + np.cos(np.pi * epoch / 100))
        optimiser.zero_grad()
        plain_loss(plain(grids.tokens[:, 0]), grids.masks[:, 0]).backward()
        optimiser.step()
    for name, value in plain.named_parameters():
        assert torch.allclose(value, fitted.weights[name], rtol=1e-4, atol=1e-6), name


def test_each_seed_walks_its_own_batches_and_the_scale_is_applied_to_all_tokens():
    """5 tiles in batches of 4 leave a last batch of one."""
    spec = FitSpec(epochs=6, batch=4, validate_epochs=2, restart_epochs=3, learning_rate=2e-2)
    grids, rest = toy(5, 3, GRID, 1), toy(2, 1, GRID, 2)
    scale, asked = channel_scale(grids), {}
    for seed in (3, 0):
        noting = Noting(grids)
        raw = train(training(noting, rest, rest, spec, scale=scale), seed)
        asked[seed] = noting.asked
        mean, std = scale.mean, scale.std
        own, others = (replace(one, tokens=(one.tokens - mean) / std) for one in (grids, rest))
        scaled = train(training(own, others, others, spec), seed)
        assert [row.loss for row in raw.curve] == pytest.approx([row.loss for row in scaled.curve], rel=1e-5)
    assert asked[3] != asked[0]
    assert {len(step) for step in asked[3]} == {4, 1}


def test_a_run_keeps_the_weights_of_its_best_epoch():
    spec = FitSpec(epochs=6, batch=4, validate_epochs=2, restart_epochs=3, learning_rate=2e-2)
    grids, val, test = toy(5, 3, GRID, 1), toy(2, 1, GRID, 2), toy(3, 1, GRID, 3)
    fitted = [train(training(grids, val, test, spec), seed) for seed in range(6)]
    assert len({one.best_epoch for one in fitted}) > 1, "seeds that peak at one epoch could not tell a mix-up"
    for one in fitted:
        scores = {row.epoch: row.val_dice for row in one.curve if row.val_dice is not None}
        assert scores[one.best_epoch] == max(scores.values()) == one.val_dice
        decoder = Decoder(Shape((CHANNELS,), WIDTH, LABELS, GRID), form="direct")
        decoder.load_state_dict(one.weights)
        predicted = decoder(test.tokens[:, 0]).argmax(1)
        hits = [int(((predicted == label) & (test.masks[:, 0] == label)).sum()) for label in range(LABELS)]
        assert one.test[:, :, 0].sum(0).tolist() == pytest.approx(hits, abs=3)


def test_counts_of_kept_tiles_follow_from_their_predictions_and_truth(monkeypatch):
    """7 test tiles in batches of 4, of which 3 are kept; a rim of the tile is not covered by the grid."""
    monkeypatch.setattr(predictions, "MOST_TILES", 3)
    crop = GridGeometry(35, 8, "crop")
    rest = toy(7, 1, GRID, 3)
    masks = torch.full((7, 1, 35, 35), 255, dtype=torch.uint8)
    masks[..., :32, :32] = rest.masks
    masks[..., 32:, :] = 1  # never counted
    test = replace(rest, masks=masks)
    spec = FitSpec(epochs=2, batch=4, validate_epochs=1, restart_epochs=3, learning_rate=2e-2)
    decoder = Decoder(Shape((CHANNELS,), WIDTH, LABELS, crop), form="direct")
    fitted = train(training(test, test, test, spec, decoder), 0)
    assert fitted.kept.tiles == ("3-0", "3-2", "3-4")
    assert fitted.kept.predicted.shape == fitted.kept.truth.shape == (3, 32, 32)
    assert np.array_equal(fitted.kept.truth, rest.masks[[0, 2, 4], 0].numpy())
    for at, tile in enumerate((0, 2, 4)):
        recounted = count(fitted.kept.predicted[at], fitted.kept.truth[at], LABELS)
        assert np.array_equal(recounted, fitted.test[tile])
    # every pixel with a truth, of all 7 tiles, has a confidence; those that are right are the true positives
    assert fitted.calibration[..., 0].sum(axis=1).tolist() == (rest.masks != 255).sum(dim=(1, 2, 3)).tolist()
    assert np.array_equal(fitted.calibration[..., 2].sum(axis=1), fitted.test[..., 0].sum(axis=1))


def test_grids_are_a_dataset_of_views_that_a_loader_takes_as_such():
    grids = toy(5, 3, GRID, 1)
    assert len(grids) == 15
    tokens, mask = grids[4]
    assert torch.equal(tokens, grids.tokens[1, 1])
    assert torch.equal(mask, grids.masks[1, 1])
    assert torch.equal(grids[-1][0], grids.tokens[4, 2])
    with pytest.raises(IndexError):
        grids[15]
    batches = list(torch.utils.data.DataLoader(grids, batch_size=4))
    assert [len(tokens) for tokens, _ in batches] == [4, 4, 4, 3]
    assert torch.equal(torch.cat([masks for _, masks in batches]), grids.masks.flatten(0, 1))


@pytest.mark.parametrize("labels", [1, 2, 3, 9])
def test_predicted_labels_are_the_first_of_the_largest_logits(labels):
    logits = torch.randint(-3, 4, (2, labels, 20, 30), generator=torch.Generator().manual_seed(labels)).float()
    found = predicted_labels(logits)
    assert found.dtype == torch.uint8
    assert (found.numpy() == logits.numpy().argmax(axis=1)).all()
