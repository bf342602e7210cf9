"""Sources of chance that follow from one another, so that one seed decides everything wherever it is drawn."""

from __future__ import annotations

import torch


def child_generator(generator: torch.Generator, device: torch.device | str) -> torch.Generator:
    """A new generator on `device`, begun from a number that `generator` draws."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seed))
