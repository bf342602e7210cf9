"""Random generators derived from one another, so that one seed determines all samples, on any device."""

from __future__ import annotations

import torch


def child_generator(generator: torch.Generator, device: torch.device | str) -> torch.Generator:
    """A new generator on `device` whose seed `generator` draws."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seed))
