"""Fetch a weights file from the Hugging Face hub, and say in plain words why one cannot be had."""

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
from fmcache.encoders.index import is_index, listed
from fmcache.errors import EncoderUnavailable, WeightsMismatch

PATIENCE_S = 5
"""How long the hub may take to answer a question; HF_HUB_ETAG_TIMEOUT sets another time."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_OR_FILE = "or pass a file you have with --weights FILE"
_NETWORK = (
    "check the network, the proxy and HF_ENDPOINT (HF_HUB_ETAG_TIMEOUT=30 waits longer), and try again, " + _OR_FILE
)


class HubUnreachable(EncoderUnavailable):
    """There was no answer from the hub: it need not be asked about the next encoder."""


def download(card: Card, weights: Weights, offline: bool) -> Path:
    """Return the path of the card's weights file in the hub's local cache, after fetching it if it is not there.

    Of an index, the files it lists are fetched too. `offline` never asks the hub; a hub that does not answer is given
    up after `PATIENCE_S`, and a file that is here is taken then. Logins, proxies and the place of the cache are
    huggingface_hub's business.

    Raises
    ------
    EncoderUnavailable
        Each with its own text: gated (not logged in; not approved), no such repository, revision or file, a refused
        token, no network, offline, a hub that fails, a download that broke off.
    WeightsMismatch
        When an index is none.
    """
    path = _download(card, weights, offline)
    if is_index(path):
        weights = msgspec.structs.replace(weights, revision=weights.revision or commit_of(path))
        for name in listed(path):
            _download(card, _beside(weights, name), offline)
    return path


def _download(card: Card, weights: Weights, offline: bool) -> Path:
    # Imported here: only a download needs it, and weights that are already on disk must load without it.
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
                raise  # otherwise the library decides whether the file that is here will do
    with _in_plain_words(card, weights, offline), _quietly():
        revision = weights.revision or None
        return Path(hf_hub_download(weights.repo, weights.file, revision=revision, local_files_only=offline))


def _beside(weights: Weights, name: str) -> Weights:
    return msgspec.structs.replace(weights, file=str(PurePosixPath(weights.file).with_name(name)))


def commit_of(path: Path) -> str:
    """Return the commit that a file in the hub's local cache belongs to (``.../snapshots/COMMIT/...``)."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1]


def local_file(weights: Weights) -> Path | None:
    """Return a card's hub file in the hub's local cache, without asking the hub; None when it is not all there."""
    path = _local(weights)
    if path and is_index(path):
        try:
            names = listed(path)
        except WeightsMismatch:
            return path  # reading it says what is wrong with it
        revision = weights.revision or commit_of(path)
        if not all(_local(_beside(msgspec.structs.replace(weights, revision=revision), name)) for name in names):
            return None
    return path


def _local(weights: Weights) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(weights.repo, weights.file, revision=weights.revision or None)
    except HFValidationError:  # asking the hub says it in words
        return None
    return Path(found) if isinstance(found, str) else None


def must_not_ask(offline: bool) -> bool:
    """Return whether the hub is not to be asked: by `offline` (the flag), or by HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return offline or bool(constants.HF_HUB_OFFLINE)


def not_here(card: Card, weights: Weights) -> EncoderUnavailable:
    """Return the error for weights that are not on this machine while the hub may not be asked."""
    return EncoderUnavailable(
        f"the weights of {card.name!r} ({weights.repo}/{weights.file}) are not on this machine, "
        "and the hub may not be asked",
        next_step=f"run once without --offline and HF_HUB_OFFLINE{_after_accepting(card, weights)}, {_OR_FILE}",
    )


def check_access(card: Card, weights: Weights) -> None:
    """Ask the hub whether this account may have the card's file, without fetching it; raises as `download`."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with _in_plain_words(card, weights, offline=False, fetching=False), _quietly():
        url = hf_hub_url(weights.repo, weights.file, revision=weights.revision or None)
        patience = int(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE_S)
        _within(patience, lambda: get_hf_file_metadata(url, timeout=patience))


def _within(seconds: float, ask: Callable[[], object]) -> None:
    """Call `ask`, for so long at most: timeouts of HTTP hold for each address of a host, and not for its name.

    Raises
    ------
    TimeoutError
        When there was no answer by then.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            ask()
        except BaseException as reason:  # noqa: BLE001  # raised again by whoever waits
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
    """Keep the library's warnings of each retry off the terminal, and its progress bar off pipes and files."""
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


@contextmanager
def _in_plain_words(card: Card, weights: Weights, offline: bool, fetching: bool = True) -> Iterator[None]:
    from huggingface_hub import errors

    # The base of all transport errors belongs to whichever HTTP library this release of huggingface_hub uses.
    transport: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    try:
        yield
    except (
        errors.HfHubHTTPError,
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.FileMetadataError,
        errors.HFValidationError,
        TimeoutError,
        transport,
    ) as reason:
        raise _explained(reason, card, weights, offline, fetching) from reason


def _explained(reason: Exception, card: Card, weights: Weights, offline: bool, fetching: bool) -> EncoderUnavailable:
    from huggingface_hub import errors

    place = f"{weights.repo}/{weights.file}"
    match reason:
        case errors.GatedRepoError():
            return _gated(card, weights, reason.response.status_code)
        case errors.RepositoryNotFoundError():
            problem = f"the hub has no repository {weights.repo!r}, or it is private"
            step = f"check `weights.repo` in the card of {card.name!r}; for a private one, hf auth login; {_OR_FILE}"
        case errors.RevisionNotFoundError():
            problem = f"{weights.repo!r} has no revision {weights.revision!r}"
            step = f"check `weights.revision` in the card of {card.name!r}, {_OR_FILE}"
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError() if _must_not_ask(reason, offline):
            return not_here(card, weights)
        case errors.LocalEntryNotFoundError() if isinstance(reason.__cause__, errors.HfHubHTTPError):
            return _explained(reason.__cause__, card, weights, offline, fetching)
        case errors.LocalEntryNotFoundError():
            return unreachable(card, weights, _first_line(reason.__cause__ or reason))
        case errors.EntryNotFoundError():
            problem = f"{weights.repo!r} has no file {weights.file!r}"
            step = f"check `weights.file` in the card of {card.name!r}, {_OR_FILE}"
        case errors.HfHubHTTPError() if reason.response.status_code == 401:
            problem = "the hub refused your token"
            step = f"hf auth login with a valid token, or mend HF_TOKEN, {_OR_FILE}"
        case errors.HfHubHTTPError():
            problem = f"the hub did not give {place}: it answered with status {reason.response.status_code}"
            step = f"try again later, {_OR_FILE}"
        case errors.HFValidationError():
            problem = f"the hub has no repository {weights.repo!r}: that is no repository name"
            step = f"check `weights.repo` in the card of {card.name!r}, {_OR_FILE}"
        case _ if not fetching:  # of the transport: there was no answer
            return unreachable(card, weights, _first_line(reason.__cause__ or reason))
        case _:
            problem = f"the download of {place} broke off"
            step = f"try again, {_OR_FILE}"
    return EncoderUnavailable(problem, found=_first_line(reason.__cause__ or reason), next_step=step)


def _must_not_ask(reason: Exception, offline: bool) -> bool:
    from huggingface_hub import errors

    return (
        offline
        or isinstance(reason, errors.OfflineModeIsEnabled)
        or isinstance(reason.__cause__, errors.OfflineModeIsEnabled)
    )


def unreachable(card: Card, weights: Weights, found: str) -> HubUnreachable:
    """Return the error for a hub that gives no answer; `found` tells what came instead."""
    return HubUnreachable(
        "the hub cannot be reached",
        found=found,
        next_step=_NETWORK + _after_accepting(card, weights),
    )


def _after_accepting(card: Card, weights: Weights) -> str:
    return f" (gated: first accept the licence at {_page(card, weights)})" if card.gated else ""


def _page(card: Card, weights: Weights) -> str:
    return card.licence_page or f"https://huggingface.co/{weights.repo}"


def _gated(card: Card, weights: Weights, status: int) -> EncoderUnavailable:
    login = "then hf auth login (or set HF_TOKEN) and run again"
    return EncoderUnavailable(
        f"the weights of {card.name!r} are gated: {weights.repo} gives them to approved accounts only",
        expected=f"an account that accepted the licence{f' ({card.licence})' if card.licence else ''} and was approved",
        found="no login" if status == 401 else "a login that has not been approved",
        next_step=f"accept the licence at {_page(card, weights)}, wait for approval (it may take days), "
        f"{login}; {_OR_FILE}",
    )


def _first_line(reason: BaseException) -> str:
    return next((line.strip() for line in str(reason).splitlines() if line.strip()), type(reason).__name__)
