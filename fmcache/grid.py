"""Geometry: which pixels of a tile belong to which token of an encoder's grid. Integers only."""

from __future__ import annotations

from typing import NamedTuple

from fmcache.errors import SpecError
from fmcache.specs import GridPolicy


class GridGeometry(NamedTuple):
    """The geometry of a square tile of `tile_px` pixels for patches of `patch` pixels, under a `policy`.

    When the patch size does not divide the tile side, ``fit`` resizes the view to the nearest multiple; ``pad``
    reflects it at the bottom and right, up to the next multiple; ``crop`` drops the rim at the bottom and right
    (Hugging Face's Dinov2 does so without a message). When the patch size divides the side, all three are the same.
    """

    tile_px: int
    patch: int
    policy: GridPolicy = "fit"

    @property
    def side(self) -> int:
        """Number of rows, and of columns, of the token grid.

        Raises
        ------
        SpecError
            When ``crop`` leaves no patch.
        """
        whole, rest = divmod(self.tile_px, self.patch)
        if self.policy == "crop":
            if whole == 0:
                raise SpecError(
                    f"a tile of {self.tile_px} px holds no whole patch of {self.patch} px",
                    expected=f"tile_px of at least {self.patch}",
                    next_step="use larger tiles, or grid: fit or pad",
                )
            return whole
        larger = rest > 0 if self.policy == "pad" else 2 * rest >= self.patch
        return max(1, whole + larger)

    @property
    def input_px(self) -> int:
        """Side of the encoder's input, in pixels: a multiple of the patch size."""
        return self.side * self.patch

    @property
    def logits_px(self) -> int:
        """Side to which logits are interpolated, in tile pixels."""
        return self.tile_px if self.policy == "fit" else self.input_px

    @property
    def covered_px(self) -> int:
        """Side of the region of the tile, from the top left, that is trained on and scored: logits cover it."""
        return min(self.logits_px, self.tile_px)

    @property
    def upsampling_blocks(self) -> int:
        """Number s of x2 upsampling blocks: ceil(log2(logits_px / side)), exactly (protocol, point 5)."""
        return (-(-self.logits_px // self.side) - 1).bit_length()
