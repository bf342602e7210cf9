"""Where the tests of this folder run: on CUDA, or for a look at the tests themselves on what is named."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
import torch

DEVICE = torch.device(os.environ.get("COLLM_GPU_TESTS_DEVICE", "cuda:0"))
ACCELERATOR = "gpu" if DEVICE.type == "cuda" else "cpu"


def skip_without_cuda() -> None:
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device", allow_module_level=True)


def on_device(tensors: Iterable[torch.Tensor]) -> bool:
    return all(tensor.device == DEVICE for tensor in tensors)
