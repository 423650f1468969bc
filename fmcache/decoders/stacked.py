"""Decoders of several seeds as one: every parameter gets a leading seed axis, and one call does the work of all.

Meant for a device on which starting a small step's kernels takes longer than running them, so that S seeds stacked cost
little more than one. On a CPU that is not so (pipelines/bench/LOG.md), and no GPU has confirmed it yet: nothing in
`fmcache fit` stacks so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.func import functional_call, vmap

from fmcache.decoders.heads import Decoder, initialise

Weights = dict[str, torch.Tensor]


class Stack:
    """The decoders of `seeds`, initialised each from its seed; `parameters` are those to optimise, by name.

    With several seeds each parameter is (seed, *its shape in the decoder), and a seed's values depend on that seed
    alone: nothing in the forward pass, the gradient of a sum of losses or an elementwise optimiser (NAdam's only shared
    state is a product over step numbers, the same for all) mixes entries of the seed axis. One seed is the decoder
    itself, without a detour.

    Parameters
    ----------
    decoder
        On its device; its own values are overwritten.
    """

    def __init__(self, decoder: Decoder, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)
        self._decoder = decoder
        if len(self.seeds) == 1:
            initialise(decoder, self.seeds[0])
            self.parameters: Weights = dict(decoder.named_parameters())
            return
        # torch's vmap takes the direct form only
        project, classify = decoder.project, decoder.classify
        decoder = Decoder(
            project.in_channels, project.out_channels, classify.out_channels, decoder.grid, form="direct"
        ).to(project.weight.device)
        self._decoder = decoder
        starts = []
        for seed in self.seeds:
            initialise(decoder, seed)
            starts.append({name: value.detach().clone() for name, value in decoder.named_parameters()})
        self.parameters = {name: torch.stack([start[name] for start in starts]).requires_grad_() for name in starts[0]}

    @property
    def covered_px(self) -> int:
        """Side of the logits."""
        return self._decoder.grid.covered_px

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (seed, view, label, y, x) of each seed's own tokens (seed, view, channel, row, col)."""
        return self._call(tokens, 0)

    def logits_of_same(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (seed, view, label, y, x) of tokens (view, channel, row, col) that all seeds look at."""
        return self._call(tokens.unsqueeze(0) if len(self.seeds) == 1 else tokens, None)

    def weights(self) -> list[Weights]:
        """Return copies of the weights in main memory, seed by seed."""
        held = {name: value.detach().cpu() for name, value in self.parameters.items()}
        if len(self.seeds) == 1:
            return [{name: value.clone() for name, value in held.items()}]
        return [{name: value[i].clone() for name, value in held.items()} for i in range(len(self.seeds))]

    def load(self, weights: Sequence[Weights]) -> None:
        """Set the weights, seed by seed."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                values = torch.stack([own[name] for own in weights])
                parameter.copy_(values.reshape(parameter.shape))

    def _call(self, tokens: torch.Tensor, seed_axis: int | None) -> torch.Tensor:
        if len(self.seeds) == 1:
            logits: torch.Tensor = self._decoder(tokens[0])
            return logits.unsqueeze(0)
        return vmap(self._one, in_dims=(0, seed_axis))(self.parameters, tokens)

    def _one(self, parameters: Weights, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = functional_call(self._decoder, parameters, (tokens,))
        return logits
