"""Fetch a weights file from the Hugging Face hub, and say in plain words why one cannot be had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmcache.encoders.cards import Card, Weights
from fmcache.errors import EncoderUnavailable

_OR_FILE = "or pass a file you have with --weights FILE"
_NETWORK = f"check the network, the proxy and HF_ENDPOINT, and try again, {_OR_FILE}"


def download(card: Card, weights: Weights, offline: bool) -> Path:
    """Return the path of the card's weights file in the hub's local cache, after fetching it if it is not there.

    `offline` never asks the hub. Logins, proxies and the place of the cache are huggingface_hub's business.

    Raises
    ------
    EncoderUnavailable
        Each with its own text: gated (not logged in; not approved), no such repository, revision or file, a refused
        token, no network, offline, a hub that fails, a download that broke off.
    """
    # Imported here: only a download needs it, and weights that are already on disk must load without it.
    from huggingface_hub import hf_hub_download

    with _in_plain_words(card, weights, offline):
        revision = weights.revision or None
        return Path(hf_hub_download(weights.repo, weights.file, revision=revision, local_files_only=offline))


def commit_of(path: Path) -> str:
    """Return the commit that a file in the hub's local cache belongs to (``.../snapshots/COMMIT/...``)."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1]


def local_file(weights: Weights) -> Path | None:
    """Return a card's hub file in the hub's local cache, without asking the hub; None when it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(weights.repo, weights.file, revision=weights.revision or None)
    return Path(found) if isinstance(found, str) else None


def check_access(card: Card, weights: Weights) -> None:
    """Ask the hub whether this account may have the card's file, without fetching it; raises as `download`."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with _in_plain_words(card, weights, offline=False, fetching=False):
        get_hf_file_metadata(hf_hub_url(weights.repo, weights.file, revision=weights.revision or None))


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
            problem = f"the weights of {card.name!r} ({place}) are not on this machine, and the hub may not be asked"
            step = f"run once without --offline and HF_HUB_OFFLINE, {_OR_FILE}"
        case errors.LocalEntryNotFoundError() if isinstance(reason.__cause__, errors.HfHubHTTPError):
            return _explained(reason.__cause__, card, weights, offline, fetching)
        case errors.LocalEntryNotFoundError():
            problem = f"the weights of {card.name!r} ({place}) are not on this machine, and the hub cannot be reached"
            step = _NETWORK
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
            problem = "the hub cannot be reached"
            step = _NETWORK
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


def _gated(card: Card, weights: Weights, status: int) -> EncoderUnavailable:
    page = card.licence_page or f"https://huggingface.co/{weights.repo}"
    login = "then hf auth login (or set HF_TOKEN) and run again"
    return EncoderUnavailable(
        f"the weights of {card.name!r} are gated: {weights.repo} gives them to approved accounts only",
        expected=f"an account that accepted the licence{f' ({card.licence})' if card.licence else ''} and was approved",
        found="no login" if status == 401 else "a login that has not been approved",
        next_step=f"accept the licence at {page}, wait for approval (it may take days), {login}; {_OR_FILE}",
    )


def _first_line(reason: BaseException) -> str:
    return next((line.strip() for line in str(reason).splitlines() if line.strip()), type(reason).__name__)
