"""One agent as an OpenAI-compatible endpoint: completions of token ids or text, and chat."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from collm.inference.endpoint.masks import packed
from collm.inference.endpoint.weights import VERSION_HEADER
from collm.inference.sampling import Sampling, sampling_of
from collm.models.policy import Policy
from collm.models.policy_spec import LEAST_TEMPERATURE
from collm.serving.batcher import Batcher, Busy
from collm.serving.conversations import Conversations
from collm.serving.decoding import Job
from collm.serving.weights import Refused, Weights
from collm.trajectory import Action

_LETTERS_PER_TOKEN = 32  # longer texts cannot fit and are not tokenized


class _Settings(BaseModel):
    """What requests have in common; what they leave out is as the agent was trained."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int = 1
    stream: bool = False
    stop: Any = None
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None
    return_token_ids: bool = False


class _Completion(_Settings):
    prompt: str | list[int]
    logprobs: int | None = Field(None, ge=0, le=1)
    return_sampling_mask: bool = False


class _Part(BaseModel):
    role: str
    content: str


class _Chat(_Settings):
    messages: list[_Part] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False


class _Text(BaseModel):
    model: str | None = None
    prompt: str


class Service:
    """Answers the requests of one agent.

    Args:
        policy: The agent, in evaluation mode.
        backend: What writes its responses; see `decoding.responder`.
        version: What responses call the weights that wrote them.
        trainable: Take new weights from a learner.
    """

    def __init__(self, policy: Policy, backend: str, version: str, trainable: bool = False):
        self.policy = policy
        self.weights = Weights(policy, backend, version, trainable)
        self.batcher = Batcher(self.weights.respond)
        self.conversations = Conversations(policy)

    def sampling(self, given: _Settings, max_tokens: int | None) -> Sampling:
        """The settings of a request; HTTP status 400 for those that cannot be followed."""
        if given.model not in (None, self.policy.agent_id):
            raise HTTPException(404, f"there is no model {given.model!r:.100} here, only {self.policy.agent_id!r}")
        for name, value, only in (
            ("n", given.n, 1),
            ("stream", given.stream, False),
            ("stop", given.stop or None, None),
        ):
            if value != only:
                raise HTTPException(400, f"{name} is {value!r:.50}; this server supports {only!r} only")
        if given.temperature and given.temperature < LEAST_TEMPERATURE:
            least = f"give 0 for the most likely tokens, or {LEAST_TEMPERATURE:g} or more"
            raise HTTPException(400, f"temperature is {given.temperature:g}; {least}")
        ends = self.policy.eos_ids
        if given.stop_token_ids is not None and set(given.stop_token_ids) != ends:
            raise HTTPException(
                400,
                f"stop_token_ids is {given.stop_token_ids!r:.50}; by its folder, responses of this agent end with "
                f"{sorted(ends)} only",
            )
        own = sampling_of(self.policy, greedy=given.temperature == 0)
        limit = max_tokens or own.max_new_tokens
        return Sampling(
            limit,
            given.temperature or own.temperature,
            own.top_p if given.top_p is None else given.top_p,
            own.top_k if given.top_k is None else max(given.top_k, 0),
            own.greedy,
            min(limit, own.min_new_tokens if given.min_tokens is None else given.min_tokens),
            self.allowed(given),
        )

    def allowed(self, given: _Settings) -> tuple[int, ...] | None:
        """The only tokens that may be written: those of the request, of which null is all, or else the agent's own."""
        if "allowed_token_ids" not in given.model_fields_set:
            return None if self.policy.allowed_ids is None else tuple(self.policy.allowed_ids)
        ids, most = given.allowed_token_ids, self.policy.backbone.vocabulary_size
        if ids is None:
            return None
        if not ids or not all(0 <= token < most for token in ids):
            raise HTTPException(400, f"allowed_token_ids must be tokens from 0 to {most - 1}, at least one")
        return tuple(ids)

    def check_ids(self, ids: list[int], limit: int) -> None:
        """HTTP status 400 for a prompt that the model cannot read."""
        most = self.policy.backbone.vocabulary_size
        if not ids or not all(0 <= token < most for token in ids):
            raise HTTPException(400, f"the prompt must be tokens from 0 to {most - 1}, at least one")
        room = self.policy.spec.max_tokens()
        if len(ids) + limit > room:
            raise HTTPException(400, f"{len(ids)} tokens and a response of {limit} do not fit the context of {room}")

    def check_text(self, texts: list[str]) -> None:
        """HTTP status 400 for texts that are too long to be tokenized."""
        size, most = sum(map(len, texts)), self.policy.spec.max_tokens() * _LETTERS_PER_TOKEN
        if size > most:
            raise HTTPException(400, f"the prompt has {size} characters; a context of this model never has over {most}")

    async def answer(self, ids: list[int], sampling: Sampling, seed: int | None) -> tuple[Action, str]:
        """The response to a prompt, and the version of the weights that wrote it."""
        self.check_ids(ids, sampling.max_new_tokens)
        seed = secrets.randbits(62) if seed is None else seed
        try:
            response, version = await self.batcher.answer(Job(ids, sampling, seed))
        except Busy as error:
            raise HTTPException(429, "too many requests wait", {"retry-after": "1"}) from error
        return self.policy.actions([ids], [response])[0], version

    def choice(self, action: Action, given: _Settings) -> dict[str, Any]:
        """What completions and chats say alike about a response."""
        ids = {"token_ids": list(action.token_ids), "prompt_token_ids": list(action.prompt_ids)}
        reason = "length" if action.truncated else "stop"
        return {"index": 0, "finish_reason": reason, **(ids if given.return_token_ids else {})}

    def reply(self, kind: str, action: Action, version: str, choice: dict[str, Any]) -> dict[str, Any]:
        """The body of an answer."""
        counts = {"prompt_tokens": len(action.prompt_ids), "completion_tokens": len(action.token_ids)}
        return {
            "id": f"{kind}-{action.uid}",
            "object": kind,
            "created": int(time.time()),
            "model": self.policy.agent_id,
            "system_fingerprint": version,
            "choices": [choice],
            "usage": {**counts, "total_tokens": sum(counts.values())},
        }

    def tokens_of(self, action: Action) -> list[str]:
        """Texts of the tokens of a response."""
        return [str(self.policy.tokenizer.decode([token])) for token in action.token_ids]


def make_app(service: Service) -> FastAPI:
    """The application of one agent."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.batcher.running():
            yield

    app = FastAPI(title=f"agent {service.policy.agent_id}", lifespan=lifespan, docs_url=None, redoc_url=None)
    encode = service.policy.tokenizer

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        room = service.policy.spec.max_tokens()
        one = {"id": service.policy.agent_id, "object": "model", "owned_by": "collm", "max_model_len": room}
        record = {**service.policy.record(), "version": service.weights.version}
        return {"object": "list", "data": [{**one, "agent": record}]}

    @app.post("/tokenize")
    async def tokenize(given: _Text) -> dict[str, Any]:
        service.check_text([given.prompt])
        ids = await asyncio.to_thread(lambda: encode(given.prompt, add_special_tokens=False).input_ids)
        return {"tokens": ids, "count": len(ids)}

    @app.post("/v1/completions")
    async def completions(given: _Completion) -> dict[str, Any]:
        sampling = service.sampling(given, given.max_tokens)
        if isinstance(given.prompt, str):
            text = given.prompt
            service.check_text([text])
            ids = await asyncio.to_thread(lambda: list(encode(text).input_ids))
        else:
            ids = given.prompt
        action, version = await service.answer(ids, sampling, given.seed)
        choice = {"text": action.text, "logprobs": None, **service.choice(action, given)}
        if given.logprobs is not None:
            choice["logprobs"] = {"tokens": service.tokens_of(action), "token_logprobs": list(action.log_probs)}
        if given.return_sampling_mask and action.sampling_mask is not None:
            choice["sampling_mask"] = await asyncio.to_thread(packed, action.sampling_mask)
        return service.reply("text_completion", action, version, choice)

    @app.post("/v1/chat/completions")
    async def chat(given: _Chat) -> dict[str, Any]:
        sampling = service.sampling(given, given.max_completion_tokens or given.max_tokens)
        messages = [{"role": part.role, "content": part.content} for part in given.messages]
        service.check_text([part["content"] for part in messages])
        try:
            ids = await asyncio.to_thread(service.conversations.prompt, messages)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        action, version = await service.answer(ids, sampling, given.seed)
        service.conversations.remember(messages, action)
        message = {"role": "assistant", "content": action.text}
        choice = {"message": message, "logprobs": None, **service.choice(action, given)}
        if given.logprobs:
            pairs = zip(service.tokens_of(action), action.log_probs, strict=True)
            content = [{"token": token, "logprob": value, "top_logprobs": []} for token, value in pairs]
            choice["logprobs"] = {"content": content}
        return service.reply("chat.completion", action, version, choice)

    @app.post("/weights")
    async def weights(request: Request) -> dict[str, str]:
        version, content = request.headers.get(VERSION_HEADER, ""), await request.body()
        try:
            await service.batcher.between(lambda: service.weights.load(content, version))
        except Refused as error:
            raise HTTPException(409, str(error)) from error
        return {"version": version}

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        body = {"error": {"message": error.detail, "type": "invalid_request_error", "code": error.status_code}}
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        body = {"error": {"message": f"{where}: {first['msg']}", "type": "invalid_request_error", "code": 400}}
        return JSONResponse(body, 400)

    return app
