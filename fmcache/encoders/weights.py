"""Weights of an encoder: find the file (given, beside the card, or on the hub), and read it without running code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fmcache.encoders.cards import Card
from fmcache.errors import EncoderUnavailable, WeightsMismatch
from fmcache.identity import sha256_file

State = dict[str, torch.Tensor]


def find_weights(card: Card, given: str, offline: bool) -> Path:
    """Return the weights file of a card.

    Parameters
    ----------
    given
        The user's own file, or a folder that holds the card's file; empty to use the card's source.
    offline
        Never ask the hub; its local copies are still used.

    Raises
    ------
    EncoderUnavailable
        When the file is not here and cannot be had; the message says what to do for each reason.
    WeightsMismatch
        When its hash is not the card's.
    """
    path = _given(card, Path(given)) if given else _own(card, offline)
    if card.weights and card.weights.sha256 and not given and (found := sha256_file(path)) != card.weights.sha256:
        raise WeightsMismatch(
            f"{path} is not the file the card of {card.name} names",
            expected=f"sha256 {card.weights.sha256}",
            found=f"sha256 {found}",
            next_step="download it again, or correct the card",
        )
    return path


def read_state(path: Path) -> State:
    """Return the tensors of a weights file by key, on the CPU: safetensors, or a pickle that holds only tensors.

    A single ``state_dict`` level around them is taken off.

    Raises
    ------
    WeightsMismatch
        When the file is damaged, holds no tensors, or is a pickle that wants to run code (which is never done).
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as reason:
        raise WeightsMismatch(
            f"{path} was not loaded: it holds more than tensors, and loading that could run code",
            found=str(reason).split("\n", 1)[0][:200],
            next_step="ask its author for a safetensors file, or for a pickle of plain tensors",
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, OSError) as reason:
        raise WeightsMismatch(
            f"{path} cannot be read as weights",
            expected="a whole .safetensors file, or a .pt/.pth/.bin pickle of tensors",
            found=str(reason).split("\n", 1)[0][:200] or type(reason).__name__,
            next_step="download it again",
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsMismatch(f"{path} is no dictionary of tensors", next_step="save model.state_dict() and pass that")
    return content


def _given(card: Card, path: Path) -> Path:
    if path.is_dir() and card.weights:
        path = path / Path(card.weights.file).name
    if not path.is_file():
        raise EncoderUnavailable(f"no weights file {path}", next_step="check the path given with --weights")
    return path


def _own(card: Card, offline: bool) -> Path:
    if card.weights is None:
        raise EncoderUnavailable(
            f"{card.name} comes without weights",
            next_step="pass --weights FILE, or --random-weights for a dry run that is labelled as such",
        )
    if card.weights.repo:
        return _from_hub(card, offline)
    path = Path(card.weights.file)
    if not path.is_file():
        raise EncoderUnavailable(
            f"the weights of {card.name} are not there",
            expected=str(path),
            next_step="correct `weights: {file: ...}` in the card (relative to the card), or pass --weights FILE",
        )
    return path


def _from_hub(card: Card, offline: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    source = card.weights
    if source is None:
        raise EncoderUnavailable(f"{card.name} comes without weights", next_step="pass --weights FILE")
    try:
        return Path(
            hf_hub_download(source.repo, source.file, revision=source.revision or None, local_files_only=offline)
        )
    except HfHubHTTPError as error:
        _explain(card, source.repo, error.response.status_code, error)
    except LocalEntryNotFoundError as error:
        cause: BaseException | None = error
        while cause is not None:  # the hub's own answer may be wrapped in "not found locally either"
            if isinstance(cause, HfHubHTTPError):
                _explain(card, source.repo, cause.response.status_code, error)
            cause = cause.__cause__ or cause.__context__
        _explain(card, source.repo, 0, error)
    except (OSError, json.JSONDecodeError) as error:
        _explain(card, source.repo, 0, error)


def _explain(card: Card, repo: str, status: int, error: BaseException) -> NoReturn:
    local = "or, with the file at hand, pass --weights FILE"
    if status in (401, 403):
        page = card.licence_page or f"https://huggingface.co/{repo}"
        problem = f"the hub refuses {card.name} ({status}): its licence must be accepted, and you must be logged in"
        steps = f"accept the licence at {page} (approval may take days), then `hf auth login` or set HF_TOKEN; {local}"
    elif status == 404:
        problem = f"the hub has no such file: {repo}/{card.weights.file if card.weights else ''}"
        steps = f"check `weights:` of the card; {local}"
    elif status:
        problem = f"the hub answered {status} for {repo}"
        steps = f"try again later; {local}"
    else:
        problem = f"the weights of {card.name} are not on this machine, and the hub cannot be reached"
        steps = f"connect to the network (and leave --offline out); {local}"
    raise EncoderUnavailable(problem, found=str(error).split("\n", 1)[0][:200], next_step=steps) from error


def describe(state: State, limit: int = 3) -> list[dict[str, Any]]:
    """Return key and shape of the first `limit` tensors, for messages."""
    return [{"key": key, "shape": list(state[key].shape)} for key in list(state)[:limit]]
