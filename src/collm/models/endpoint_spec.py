"""The settings of an agent whose responses come from servers, by `engine: endpoint`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from collm.errors import ConfigurationError
from collm.runtime.checks import COUNT, COUNT_OR_ZERO, POSITIVE, check_choice, check_numbers, shown

PROTOCOLS = ("completions", "chat")
LATE = ("wait", "silent", "last", "fail")


@dataclass
class EndpointSpec:
    """Servers that answer for one agent, behind the interface that OpenAI, vLLM and `tools/serve.py` have.

    Args:
        url: Address of the interface, such as http://127.0.0.1:8001/v1, or several with the same model: episodes are
            spread over them.
        model: Name of the model there; by default the agent's.
        protocol: `completions` sends the tokens of the prompt and gets those of the response, as in training, with the
            tokenizer of the policy's `path`; `chat` sends messages, for hosted models whose tokens are unknown.
        api_key_env: Environment variable that holds the key of the servers.
        late: What becomes of an answer that does not come: `fail` ends the episode as failed; `silent` acts as if the
            agent had written nothing, `last` as if it had repeated itself; `wait` asks again until `patience` ends and
            then fails.
        retries: How often a request that failed is sent again.
        deadline: Longest time for an answer with its retries, in seconds. By default every attempt may take 5 times the
            95th percentile of the answers before, at their load, and twice as long after each retry.
        patience: Longest time for an attempt while nothing was measured, and for an answer with `late: wait`, in
            seconds.
        concurrency: Most requests at once.
        version: What every response must give as its `system_fingerprint`; by default anything.
        trained: Train the agent here, and push its weights to the servers, which `serve.py --trainable` started, before
            the first rollout after an update. Responses of other weights are refused.
    """

    url: str | list[str] = field(default_factory=list)
    model: str | None = None
    protocol: str = "completions"
    api_key_env: str | None = None
    late: str = "fail"
    retries: int = 2
    deadline: float | None = None
    patience: float = 120.0
    concurrency: int = 64
    version: str | None = None
    trained: bool = False

    @property
    def urls(self) -> list[str]:
        """All addresses, without slashes at their ends."""
        return [url.rstrip("/") for url in ([self.url] if isinstance(self.url, str) else self.url)]

    def check(self, name: str) -> None:
        """Refuse what cannot work, without asking any server.

        Raises:
            ConfigurationError: Names the setting, its value and how to mend it.
        """
        self._check_urls(name)
        check_choice(f"{name}.protocol", self.protocol, PROTOCOLS)
        check_choice(f"{name}.late", self.late, LATE)
        if self.trained and (self.protocol != "completions" or self.late not in ("fail", "wait") or self.version):
            raise ConfigurationError(
                f"{name}.trained needs the tokens that were sampled, by the weights that train: use protocol "
                "completions, late fail or wait, and no version."
            )
        check_numbers(name, self, retries=COUNT_OR_ZERO, patience=POSITIVE, concurrency=COUNT)
        check_numbers(name, self, deadline=POSITIVE.or_none)
        if self.api_key_env and not os.environ.get(self.api_key_env):
            raise ConfigurationError(f"{name}.api_key_env is {self.api_key_env!r}, but that variable is not set.")

    def _check_urls(self, name: str) -> None:
        given = [self.url] if isinstance(self.url, str) else self.url
        if not isinstance(given, list) or not all(isinstance(url, str) for url in given):
            raise ConfigurationError(
                f"{name}.url is {shown(self.url)}; give the address of a server, or a list of them."
            )
        if not given:
            raise ConfigurationError(f"{name}.url is missing; give the address of a server that ends in /v1.")
        for url in given:
            try:
                parts = urlsplit(url)
                known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
            except ValueError:  # such as half an IPv6 address, or a port of letters
                known = False
            if not known:
                raise ConfigurationError(f"{name}.url is {url!r}; give an address such as http://127.0.0.1:8001/v1.")
            if parts.username or parts.password:
                raise ConfigurationError(f"{name}.url holds a password; name a variable with api_key_env instead.")
