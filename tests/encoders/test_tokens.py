import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from fmcache.encoders.load import load_encoder
from fmcache.encoders.tokens import input_pixels, token_grids
from fmcache.errors import SpecError
from fmcache.grid import GridGeometry
from fmcache.specs import EncoderChoice

CPU = torch.device("cpu")


def load(name, random_weights=False):
    return load_encoder(EncoderChoice(str(name), random_weights=random_weights), CPU, offline=True)


@pytest.fixture
def toy(write_card):
    """Patches of 2 x 2 raw pixels, values left between 0 and 1."""
    path = write_card(
        kind="pixels", architecture=None, arguments={}, patch=2, width=12, prefix_tokens=0, depth=0, weights=None,
        mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0],
    )  # fmt: skip
    return load(path)


def noise(views, side, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (views, side, side, 3), dtype=np.uint8)


def test_a_token_of_raw_pixels_is_its_patch_row_by_row(toy):
    # 4 x 4 pixels; red identifies the pixel, green and blue are constant
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :, :, 0] = np.arange(16).reshape(4, 4)
    image[0, :, :, 1], image[0, :, :, 2] = 100, 200
    grid = token_grids(toy, image, GridGeometry(4, 2)) * 255
    assert grid.shape == (1, 12, 2, 2)
    assert grid.dtype == torch.float32
    red = grid[0, 0::3].round().int()
    assert red[:, 0, 0].tolist() == [0, 1, 4, 5]
    assert red[:, 0, 1].tolist() == [2, 3, 6, 7]
    assert red[:, 1, 0].tolist() == [8, 9, 12, 13]
    assert red[:, 1, 1].tolist() == [10, 11, 14, 15]
    assert torch.allclose(grid[0, 1::3], torch.tensor(100.0))
    assert torch.allclose(grid[0, 2::3], torch.tensor(200.0))


def test_colours_are_normalised_by_the_cards_mean_and_std(write_card):
    encoder = load(write_card(), random_weights=True)
    pixels = input_pixels(encoder, np.full((1, 16, 16, 3), 255, np.uint8), GridGeometry(16, 16))
    expected = [(1 - 0.5) / 0.2, (1 - 0.4) / 0.25, (1 - 0.3) / 0.5]
    assert pixels[0, :, 3, 4].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("side", "row", "col"), [(64, 1, 2), (64, 3, 0), (96, 0, 5), (96, 4, 1)])
def test_changing_a_patch_changes_its_own_token_most(write_card, side, row, col):
    encoder = load(write_card(), random_weights=True)
    image = noise(1, side)
    changed = image.copy()
    changed[:, row * 16 : (row + 1) * 16, col * 16 : (col + 1) * 16] ^= 255
    grid = GridGeometry(side, 16)
    moved = (token_grids(encoder, changed, grid) - token_grids(encoder, image, grid)).norm(dim=1)[0]
    assert divmod(int(moved.argmax()), grid.side) == (row, col)


def test_loaded_weights_give_the_tokens_of_the_model_they_come_from(write_card, tiny_model, tmp_path):
    model = tiny_model()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    image = noise(2, 64)
    pixels = (torch.from_numpy(image).permute(0, 3, 1, 2) / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / (
        torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    )
    with torch.no_grad():
        tokens = model.forward_features(pixels)
    grids = token_grids(load(write_card()), image, GridGeometry(64, 16))
    for token in range(16):
        assert torch.allclose(grids[:, :, token // 4, token % 4], tokens[:, 3 + token], atol=1e-5)


def test_at_other_sizes_the_position_table_is_resampled_by_timms_rule(write_card, tiny_model, tmp_path):
    model = tiny_model(no_embed_class=True)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    arguments = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "reg_tokens": 2, "init_values": 0.1}
    encoder = load(write_card(arguments=arguments | {"no_embed_class": True}))
    table = timm.layers.resample_abs_pos_embed(
        model.pos_embed.data, [6, 6], num_prefix_tokens=0, interpolation="bicubic", antialias=True
    )
    larger = tiny_model(no_embed_class=True, img_size=96)
    larger.load_state_dict(model.state_dict() | {"pos_embed": table})
    image = noise(1, 96)
    with torch.no_grad():
        tokens = larger.forward_features(input_pixels(encoder, image, GridGeometry(96, 16)))
    expected = tokens[:, 3:].transpose(1, 2).reshape(1, 48, 6, 6)
    assert torch.allclose(token_grids(encoder, image, GridGeometry(96, 16)), expected, atol=1e-5)


@pytest.mark.parametrize(("policy", "side"), [("fit", 3), ("pad", 4), ("crop", 3)])
def test_every_policy_gives_its_grid_where_patches_do_not_divide_the_tile(write_card, policy, side):
    encoder = load(write_card(), random_weights=True)
    grids = token_grids(encoder, noise(2, 50), GridGeometry(50, 16, policy))
    assert grids.shape == (2, 48, side, side)
    assert bool(grids.isfinite().all())


def test_crop_leaves_the_bottom_and_right_rim_out(toy):
    image = noise(1, 5)
    cropped = token_grids(toy, image, GridGeometry(5, 2, "crop"))
    assert torch.equal(cropped, token_grids(toy, image[:, :4, :4].copy(), GridGeometry(4, 2)))


def test_pad_reflects_at_the_bottom_and_right(toy):
    image = noise(1, 5)
    padded = np.pad(image, ((0, 0), (0, 1), (0, 1), (0, 0)), mode="reflect")
    assert torch.equal(token_grids(toy, image, GridGeometry(5, 2, "pad")), token_grids(toy, padded, GridGeometry(6, 2)))


def test_pad_reflects_again_and_again_where_a_tile_is_smaller_than_half_a_patch(write_card):
    path = write_card(
        kind="pixels", architecture=None, arguments={}, patch=16, width=768, prefix_tokens=0, depth=0, weights=None
    )
    encoder, image = load(path), noise(1, 5)
    padded = np.pad(image, ((0, 0), (0, 11), (0, 11), (0, 0)), mode="reflect")
    assert torch.equal(
        token_grids(encoder, image, GridGeometry(5, 16, "pad")), token_grids(encoder, padded, GridGeometry(16, 16))
    )


def test_fit_keeps_places_and_stays_between_black_and_white(toy):
    # a black left half and a white right half, 41 px -> 42 px
    image = np.zeros((1, 41, 41, 3), np.uint8)
    image[:, :, 21:] = 255
    pixels = input_pixels(toy, image, GridGeometry(41, 2))
    assert pixels.shape == (1, 3, 42, 42)
    assert float(pixels.min()) == 0.0
    assert float(pixels.max()) == 1.0
    assert int((pixels[0, 0, 0] < 0.5).sum()) in (21, 22)
    assert bool((pixels[0, 0, 0].diff() >= -1e-6).all())
    assert torch.allclose(pixels, pixels[:, :, :1, :], atol=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 5e-2), ("float16", 5e-3)])
def test_half_precision_is_close_to_float32_and_not_the_same(write_card, precision, tolerance):
    encoder = load(write_card(), random_weights=True)
    image, grid = noise(1, 64), GridGeometry(64, 16)
    exact, half = token_grids(encoder, image, grid), token_grids(encoder, image, grid, precision)
    difference = float((half - exact).norm() / exact.norm())
    assert 0 < difference < tolerance
    assert half.dtype == torch.float32


def test_a_decoder_can_be_trained_on_grids_directly(write_card):
    grids = token_grids(load(write_card(), random_weights=True), noise(1, 64), GridGeometry(64, 16))
    decoder = torch.nn.Conv2d(48, 3, kernel_size=1)
    decoder(grids).sum().backward()
    assert float(decoder.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("images", "grid"),
    [
        (noise(1, 32), GridGeometry(64, 16)),
        (noise(1, 64).astype(np.float32), GridGeometry(64, 16)),
        (noise(1, 64)[..., :1], GridGeometry(64, 16)),
        (noise(1, 64), GridGeometry(64, 8)),
    ],
    ids=["size", "type", "grey", "patch"],
)
def test_images_that_do_not_belong_to_grid_and_encoder_are_refused(write_card, images, grid):
    encoder = load(write_card(), random_weights=True)
    with pytest.raises(SpecError, match="not a valid input of 'tiny'"):
        token_grids(encoder, images, grid)


def test_tokens_that_do_not_lie_on_the_grid_are_refused(toy):
    card = load("raw-pixels").card
    with pytest.raises(SpecError, match="do not match the grid"):
        token_grids(toy._replace(card=card), noise(1, 32), GridGeometry(32, 16))
