"""The process of one served agent; `tools/serve.py` starts one for each."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import threading
from pathlib import Path

import torch
import uvicorn

from collm.errors import ConfigurationError
from collm.serving.agents import load_agent
from collm.serving.app import Service, make_app
from collm.serving.decoding import responder
from collm.serving.guard import Guard, Impatient

_KEEP_ALIVE_SECONDS = 75  # longer than clients keep connections, so that none is closed while a request is sent


def version_of(folder: Path) -> str:
    """A name for the weights in a folder: the same weights have the same one."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def end_with_parent() -> None:
    """End this process as soon as its standard input is closed: also where its parent was killed."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def serve(folder: Path, backend: str, host: str, port: int, key: str | None, max_bytes: int) -> None:
    """Serve one agent until the process is told to stop.

    Args:
        folder: The exported agent.
        backend: What generates: `collm` or `transformers`.
        host: Address to listen at.
        port: Port to listen at.
        key: Key that clients have to send; None for none.
        max_bytes: Longest request.
    """
    policy = load_agent(folder, backend)
    with torch.inference_mode():
        service = Service(policy, responder(policy, backend), version_of(folder))
    guarded = Guard(make_app(service), key, max_bytes)
    uvicorn.run(
        guarded,
        host=host,
        port=port,
        http=Impatient,
        limit_concurrency=2000,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=5,
        lifespan="on",
        log_level="warning",
    )


def main() -> int:
    """The command of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--backend", choices=("collm", "transformers"), required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key-env")
    parser.add_argument("--max-bytes", type=int, required=True)
    given = parser.parse_args()
    end_with_parent()
    key = os.environ[given.key_env] if given.key_env else None
    try:
        serve(given.folder, given.backend, given.host, given.port, key, given.max_bytes)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
