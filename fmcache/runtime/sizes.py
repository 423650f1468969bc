"""Numbers of bytes as people read them; in a module of its own, so that telling them loads no Zarr."""

from __future__ import annotations


def size_text(n_bytes: int) -> str:
    """Return a number of bytes for people."""
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.1f} MB"
