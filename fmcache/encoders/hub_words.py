"""Plain error messages when the hub refuses or does not answer, each with a next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fmcache.encoders.cards import Card, Weights
from fmcache.errors import EncoderUnavailable, HubUnreachable

_OR_FILE = "or pass a file you have with --weights FILE"
_NETWORK = (
    "check the network, the proxy and HF_ENDPOINT (HF_HUB_ETAG_TIMEOUT=30 waits longer), and try again, " + _OR_FILE
)


def not_here(card: Card, weights: Weights) -> EncoderUnavailable:
    """Return the error for weights that are not on this machine when the hub must not be asked."""
    return EncoderUnavailable(
        f"the weights of {card.name!r} ({weights.repo}/{weights.file}) are not on this machine, "
        "and the hub must not be asked",
        next_step=f"run once without --offline and HF_HUB_OFFLINE{_after_accepting(card, weights)}, {_OR_FILE}",
    )


@contextmanager
def in_plain_words(card: Card, weights: Weights, offline: bool, fetching: bool = True) -> Iterator[None]:
    """Turn every error of the library and of the network into an error of fmcache; see `hub.download_weights`."""
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
            step = f"hf auth login with a valid token, or correct HF_TOKEN, {_OR_FILE}"
        case errors.HfHubHTTPError():
            problem = f"the hub did not give {place}: it answered with status {reason.response.status_code}"
            step = f"try again later, {_OR_FILE}"
        case errors.HFValidationError():
            problem = f"the hub has no repository {weights.repo!r}: this is not a repository name"
            step = f"check `weights.repo` in the card of {card.name!r}, {_OR_FILE}"
        case _ if not fetching:  # a transport error: there was no answer
            return unreachable(card, weights, _first_line(reason.__cause__ or reason))
        case _:
            problem = f"the download of {place} was interrupted"
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
    """Return the error for a hub that gives no answer; `found` states what was received instead."""
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
