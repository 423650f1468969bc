"""Numbers of bytes in readable form. This is a separate module, so that using it does not load Zarr."""

from __future__ import annotations


def size_text(n_bytes: int) -> str:
    """Return a number of bytes as text with a unit."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
