"""Attention over whole buffers is attention over what was written into them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from collm.inference.embedded.cache import ReservedLayer


@pytest.fixture
def _unwritten_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # new memory that nobody fills is NaN then
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_unwritten_is_nan")
def test_unused_positions_of_the_buffers_are_masked() -> None:
    torch.manual_seed(0)
    layer, scale = ReservedLayer(), 0.5
    layer.update(torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4))
    keys, values = layer.update(torch.randn(3, 2, 1, 4), torch.randn(3, 2, 1, 4))
    queries, seen = torch.randn(3, 2, 2, 4), torch.zeros(3, 1, 1, 6)
    seen[1, ..., :2] = torch.finfo(seen.dtype).min
    found = layer.attend(queries, seen, scale)
    assert layer.buffers(seen)[0].shape[2] > 6
    assert_close(found, F.scaled_dot_product_attention(queries, keys, values, seen, scale=scale))
