"""New weights for vLLM's own server, as `serve.py --backend vllm --trainable` starts it.

vLLM reads weights in the processes of its workers, so that they go through a file on its machine. Answers wait while
weights change, and each gives the version of its weights as its `system_fingerprint`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from starlette.requests import Request
from starlette.responses import JSONResponse
from torch import Tensor
from transformers import AutoModelForCausalLM

from collm.inference.endpoint.weights import VERSION_HEADER
from collm.inference.vllm_engine import check_installed
from collm.models.agent_record import read_agent
from collm.models.loading import load_config
from collm.serving.folders import AGENT_VARIABLE, adapter_settings
from collm.serving.guard import App, Guard, Message, Receive, Send
from collm.serving.vllm_sets import take_sets
from collm.serving.weights import Refused, read_weights, run_of


class TakesWeights:
    """Middleware of vLLM's server that takes weights at `/weights`, as this project's servers do.

    Args:
        app: The server, whose state vLLM sets when it has started.
    """

    def __init__(self, app: App):
        check_installed("trainable is true, which needs vLLM's server")
        self.app = app
        self.folder = Path(os.environ[AGENT_VARIABLE])
        self.agent_id = read_agent(self.folder)["agent_id"]
        self.is_adapter = bool(adapter_settings(self.folder))
        self.shapes, self.tied = adapter_shapes(self.folder) if self.is_adapter else model_shapes(self.folder)
        most = 2 * sum(4 * torch.Size(shape).numel() for shape in self.shapes.values()) + 10_000_000
        self.guarded = Guard(self.take, os.environ.get("VLLM_API_KEY"), max_weights=most)
        self.run: str | None = None  # whose weights are taken
        self.files: TemporaryDirectory | None = None  # of the adapter that answers
        self.answering = 0
        self.changing = False
        self.changes = asyncio.Condition()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/weights":
            await self.guarded(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].endswith("/completions"):
            async with self.changes:
                await self.changes.wait_for(lambda: not self.changing)
                self.answering += 1
            try:
                await self.app(scope, receive, send)
            finally:
                async with self.changes:
                    self.answering -= 1
                    self.changes.notify_all()
        else:
            await self.app(scope, receive, send)

    async def take(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request that brings weights."""
        request = Request(scope, receive)
        try:
            version = request.headers.get(VERSION_HEADER, "")
            run = run_of(version, self.run)
            weights = read_weights(await request.body(), self.shapes)
            async with self.alone():
                self.name_weights(scope["app"].state, "none")  # while they are neither the old nor the new ones
                await (self.load_adapter if self.is_adapter else self.load_model)(scope["app"].state, weights)
                await scope["app"].state.engine_client.reset_prefix_cache()
                self.name_weights(scope["app"].state, version)
                self.run = run
        except Refused as error:
            body = {"error": {"message": str(error), "type": "invalid_request_error", "code": 409}}
            await JSONResponse(body, 409)(scope, receive, send)
        else:
            await JSONResponse({"version": version})(scope, receive, send)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """The context in which nothing is answered: answers that are being written come first, others after it."""
        async with self.changes:
            await self.changes.wait_for(lambda: not self.changing)
            self.changing = True
            try:
                await self.changes.wait_for(lambda: not self.answering)
                yield
            finally:
                self.changing = False
                self.changes.notify_all()

    @staticmethod
    def name_weights(state: Any, version: str) -> None:
        """Say in every answer from now on which weights wrote it."""
        for serving in (state.openai_serving_completion, state.openai_serving_chat):
            serving.system_fingerprint = version

    async def load_model(self, state: Any, weights: dict[str, Tensor]) -> None:
        """Let all workers read a whole model."""
        weights |= {name: weights[same].clone() for name, same in self.tied.items()}
        with TemporaryDirectory() as folder:
            path = Path(folder, "model.safetensors")
            save_file(weights, path)
            await state.engine_client.collective_rpc("take_weights", args=(str(path),))

    async def load_adapter(self, state: Any, weights: dict[str, Tensor]) -> None:
        """Put an adapter in the place of the one before, under a number of its own, so that no cached one is used."""
        from vllm.lora.request import LoRARequest

        models = state.openai_serving_models
        files = TemporaryDirectory()
        shutil.copyfile(self.folder / "adapter_config.json", Path(files.name, "adapter_config.json"))
        save_file(weights, Path(files.name, "adapter_model.safetensors"))
        await state.engine_client.remove_lora(models.lora_requests[self.agent_id].lora_int_id)
        adapter = LoRARequest(self.agent_id, models.lora_id_counter.inc(1), files.name)
        await state.engine_client.add_lora(adapter)
        models.lora_requests[self.agent_id] = adapter
        if self.files is not None:
            self.files.cleanup()
        self.files = files


class Worker:
    """What workers of vLLM can do beside its own: `--worker-extension-cls`."""

    model_runner: Any

    def take_weights(self, path: str) -> None:
        """Take over the weights in a file."""
        self.model_runner.reload_weights(weights_iterator=iter(load_file(path).items()))

    def take_sets(self, place: str, length: int) -> dict[str, Any]:
        """The sets that the tokens of a response were drawn from; see `GivesSets`."""
        return take_sets(place, length)


def model_shapes(folder: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The shape of each weight of a model by name, tied ones once, and what each of the others is tied to.

    vLLM is given the others too: on processors it would not renew a head that is tied to the embedding.
    """
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(load_config(str(folder)))
    first = {weight: name for name, weight in lm.named_parameters()}
    tied = {name: first[weight] for name, weight in lm.named_parameters(remove_duplicate=False)}
    tied = {name: same for name, same in tied.items() if name != same}
    return {name: list(weight.shape) for name, weight in lm.state_dict().items() if name not in tied}, tied


def adapter_shapes(folder: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """The shape of each matrix of an adapter by name; none are tied."""
    with safe_open(folder / "adapter_model.safetensors", "pt") as stored:
        return {name: stored.get_slice(name).get_shape() for name in stored.keys()}, {}  # noqa: SIM118
