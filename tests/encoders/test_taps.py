import shutil

import numpy as np
import pytest
import torch

from fmcache.encoders import tokens
from fmcache.encoders.load import compile_blocks, load_encoder
from fmcache.encoders.tokens import batch_size, grids_of_views, tapped_grids, token_grids
from fmcache.errors import NoRoom, SpecError
from fmcache.grid import GridGeometry
from fmcache.specs import EncoderChoice

CPU = torch.device("cpu")
GRID = GridGeometry(64, 16)


@pytest.fixture
def encoder(write_card):
    return load_encoder(EncoderChoice(str(write_card()), random_weights=True), CPU)


@pytest.fixture(autouse=True)
def no_memory_of_batch_sizes(monkeypatch):
    monkeypatch.setattr(tokens, "_BATCH_SIZE", {})


def noise(views):
    return np.random.default_rng(views).integers(0, 256, (views, 64, 64, 3), dtype=np.uint8)


def test_a_tap_is_the_output_of_its_block_and_norm_follows_where_asked(encoder):
    image = noise(2)
    seen = {}
    for i, block in enumerate(encoder.module.blocks, start=1):
        block.register_forward_hook(lambda _, __, output, i=i: seen.__setitem__(i, output))
    token_grids(encoder, image, GRID)
    first, second, normed, last = tapped_grids(encoder, image, GRID, "float32", ("1", "2", "1+norm", "last"))

    def on_rows(of_tokens):
        return of_tokens[:, 3:].transpose(1, 2).reshape(2, 48, 4, 4)

    assert torch.equal(first, on_rows(seen[1]))
    assert torch.equal(second, on_rows(seen[2]))
    assert torch.allclose(normed, on_rows(encoder.module.norm(seen[1])), atol=1e-6)
    assert torch.allclose(last, token_grids(encoder, image, GRID), atol=1e-6)
    assert not torch.allclose(first, last, atol=0.1)


def test_all_taps_come_from_one_forward_pass_that_ends_at_the_last_block_asked_for(encoder):
    runs = []
    for i, block in enumerate(encoder.module.blocks, start=1):
        block.register_forward_hook(lambda *_, i=i: runs.append(i))
    tapped_grids(encoder, noise(1), GRID, "float32", ("1", "2", "last"))
    assert runs == [1, 2]
    runs.clear()
    tapped_grids(encoder, noise(1), GRID, "float32", ("1",))
    assert runs == [1]


def test_a_block_that_is_not_there_is_refused(encoder):
    with pytest.raises(SpecError, match="has no block 3 to tap") as caught:
        tapped_grids(encoder, noise(1), GRID, "float32", ("3",))
    assert caught.value.expected == "last, or a block from 1 to 2"
    pixels = load_encoder(EncoderChoice("raw-pixels"), CPU)
    with pytest.raises(SpecError, match="'raw-pixels' has no block"):
        tapped_grids(pixels, noise(1), GRID, "float32", ("1",))


class Cramped:
    """A module on a device with room for `room` views: more raise what torch raises."""

    def __init__(self, module, room):
        self.module, self.room, self.sizes, self.blocks = module, room, [], module.blocks

    def forward_features(self, x):
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.module.forward_features(x)


def test_a_batch_that_does_not_fit_is_halved_and_no_view_is_lost_or_repeated(encoder, monkeypatch):
    monkeypatch.setitem(tokens.FIRST_BATCH, "cpu", 8)
    cramped = encoder._replace(module=Cramped(encoder.module, room=3))
    views = noise(11)
    grids = torch.cat([at[0] for at in grids_of_views(cramped, iter(views), GRID, "float32", ("last",))])
    assert torch.allclose(grids, token_grids(encoder, views, GRID), atol=1e-5)
    assert cramped.module.sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert batch_size(CPU) == 2  # the next tile starts where this one ended


def test_a_view_that_does_not_fit_alone_says_what_to_do(encoder):
    cramped = encoder._replace(module=Cramped(encoder.module, room=0))
    with pytest.raises(NoRoom, match="for one view of 64 px in 'tiny'") as caught:
        list(grids_of_views(cramped, iter(noise(2)), GRID, "float32", ("last",)))
    assert caught.value.found == "CUDA out of memory"


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_tokens_but_for_rounding_and_any_batch(write_card, encoder):
    compiled = load_encoder(EncoderChoice(str(write_card()), random_weights=True), CPU)
    compile_blocks(compiled)
    for views in (3, 1):
        expected, found = (token_grids(one, noise(views), GRID) for one in (encoder, compiled))
        assert torch.allclose(found, expected, atol=1e-4)
    assert compiled.module.state_dict().keys() == encoder.module.state_dict().keys()


def test_without_a_compiler_compiling_is_refused_with_the_remedy(encoder):
    import torch._dynamo
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    compile_blocks(encoder)
    compilers = inductor.patch({"cpp.cxx": (None, "/nonexistent"), "fx_graph_cache": False})
    with compilers, pytest.raises(SpecError, match=r"No working C\+\+ compiler(.|\n)*without --compile"):
        list(grids_of_views(encoder, noise(1), GRID, "float32", ("last",)))
    torch._dynamo.reset()
