"""Agents served from this process, at a free port, for as long as a test needs them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn

from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.serving.app import Service, make_app
from collm.serving.guard import Guard, Impatient


@contextmanager
def listening(app: Any, **options: Any) -> Iterator[str]:
    """The address of an ASGI application that is served in a thread."""
    config = uvicorn.Config(app, lifespan="on", log_level="error", http=Impatient, timeout_keep_alive=75, **options)
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


@contextmanager
def served(
    policy: Policy, backend: str = "collm", key: str | None = None, max_bytes: int = 2_000_000, trainable: bool = False
) -> Iterator[str]:
    """The address of an agent, which ends in /v1."""
    policy.backbone.eval()
    app = make_app(Service(policy, backend, "test", trainable))
    with listening(Guard(app, key, max_bytes, max_weights=10**8 if trainable else None)) as address:
        yield f"{address}/v1"


def team(path: str, parameters: str = "separate", **options: Any) -> dict[str, Policy]:
    """Two agents with weights that are not those they started from."""
    torch.manual_seed(3)
    lora = parameters == "lora"
    spec = PolicySpec(path=path, lora_rank=4 * lora, **{"max_new_tokens": 16, **options})
    policies: dict[str, Policy] = {}
    backbone = Backbone(path, "float32")
    for agent_id in ("a1", "a2"):
        if parameters == "separate":
            backbone = Backbone(path, "float32")
        if lora:
            backbone.add_adapter(agent_id, 4, 32.0, 0.0)
        policies[agent_id] = Policy(agent_id, spec, backbone, agent_id if lora else None)
        for weight in policies[agent_id].parameters():
            weight.data += 0.02 * torch.randn_like(weight)
    backbone.eval()
    return policies
