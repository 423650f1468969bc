"""Fetch a weights file from the Hugging Face hub; `hub_words` explains why a file is unavailable."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path, PurePosixPath

import msgspec

from fmcache.encoders.cards import Card, Weights
from fmcache.encoders.hub_words import in_plain_words
from fmcache.encoders.index import is_index, listed_files
from fmcache.errors import EncoderUnavailable, HubUnreachable, WeightsMismatch

PATIENCE_S = 5
"""How long the hub may take to answer a request; HF_HUB_ETAG_TIMEOUT sets another time."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def download_weights(card: Card, weights: Weights, offline: bool) -> Path:
    """Return the path of the card's weights file in the hub's local cache, after fetching it if it is not there.

    For an index, the files that it lists are fetched too. With `offline`, the hub is never asked. If the hub does not
    answer within `PATIENCE_S`, a file in the local cache is used. Logins, proxies and the location of the cache are
    handled by huggingface_hub.

    Raises
    ------
    EncoderUnavailable
        With a separate text for each case: gated (not logged in; not approved), no such repository, revision or file, a
        refused token, no network, offline, a failing hub, an interrupted download.
    WeightsMismatch
        When a file that is named like an index is not an index.
    """
    path = _download(card, weights, offline)
    if is_index(path):
        weights = msgspec.structs.replace(weights, revision=weights.revision or commit_of(path))
        for name in listed_files(path):
            _download(card, _beside(weights, name), offline)
    return path


def _download(card: Card, weights: Weights, offline: bool) -> Path:
    # Imported here, because only a download needs it: weights on disk must load without it.
    from huggingface_hub import hf_hub_download

    here = _local(weights)
    offline = offline or bool(here and _COMMIT.fullmatch(weights.revision))
    if not offline:
        try:
            check_access(card, weights)
        except HubUnreachable as silent:
            if not here:
                raise HubUnreachable(
                    f"the weights of {card.name!r} ({weights.repo}/{weights.file}) are not on this machine, "
                    "and the hub cannot be reached",
                    found=silent.found,
                    next_step=silent.next_step,
                ) from silent
            offline = True
        except EncoderUnavailable:
            if not here:
                raise  # otherwise the library decides whether the local file can be used
    with in_plain_words(card, weights, offline), _quietly():
        revision = weights.revision or None
        return Path(hf_hub_download(weights.repo, weights.file, revision=revision, local_files_only=offline))


def _beside(weights: Weights, name: str) -> Weights:
    return msgspec.structs.replace(weights, file=str(PurePosixPath(weights.file).with_name(name)))


def commit_of(path: Path) -> str:
    """Return the commit that a file in the hub's local cache belongs to (``.../snapshots/COMMIT/...``)."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1]


def local_file(weights: Weights) -> Path | None:
    """Return a card's hub file in the hub's local cache, without asking the hub; None when it is incomplete."""
    path = _local(weights)
    if path and is_index(path):
        try:
            names = listed_files(path)
        except WeightsMismatch:
            return path  # reading the file reports what is wrong
        revision = weights.revision or commit_of(path)
        if not all(_local(_beside(msgspec.structs.replace(weights, revision=revision), name)) for name in names):
            return None
    return path


def _local(weights: Weights) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(weights.repo, weights.file, revision=weights.revision or None)
    except HFValidationError:  # asking the hub reports this error
        return None
    return Path(found) if isinstance(found, str) else None


def must_not_ask(offline: bool) -> bool:
    """Return whether the hub must not be asked, because of `offline` (the flag) or HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return offline or bool(constants.HF_HUB_OFFLINE)


def check_access(card: Card, weights: Weights) -> None:
    """Ask the hub whether this account may fetch the card's file, without fetching it; raises as `download_weights`."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with in_plain_words(card, weights, offline=False, fetching=False), _quietly():
        url = hf_hub_url(weights.repo, weights.file, revision=weights.revision or None)
        patience = int(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE_S)
        _within(patience, lambda: get_hf_file_metadata(url, timeout=patience))


def _within(seconds: float, ask: Callable[[], object]) -> None:
    """Call `ask` and wait at most `seconds`. HTTP timeouts count per address of a host and do not cover name lookup.

    Raises
    ------
    TimeoutError
        When there was no answer in this time.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            ask()
        except BaseException as reason:  # noqa: BLE001  # raised again by the waiting thread
            raised.append(reason)

    asking = threading.Thread(target=run, daemon=True)
    asking.start()
    asking.join(seconds)
    if asking.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if raised:
        raise raised[0]


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide the library's warnings about retries, and its progress bar when standard error is not a terminal."""
    from huggingface_hub import utils
    from huggingface_hub.utils import logging

    verbosity, hide = logging.get_verbosity(), not sys.stderr.isatty() and not utils.are_progress_bars_disabled()  # type: ignore[attr-defined]
    logging.set_verbosity(ERROR)
    if hide:
        utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if hide:
            utils.enable_progress_bars()  # type: ignore[attr-defined]
