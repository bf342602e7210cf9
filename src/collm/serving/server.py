"""The process of one served agent; `tools/serve.py` starts one for each."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import threading
from pathlib import Path

import uvicorn

from collm.errors import ConfigurationError
from collm.runtime.terminal import printable
from collm.serving.agents import load_agent
from collm.serving.app import Service, make_app
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


def serve(folder: Path, backend: str, host: str, port: int, key: str | None, max_bytes: int, trainable: bool) -> None:
    """Serve one agent until the process is told to stop.

    Args:
        folder: The exported agent.
        backend: What generates: `collm` or `transformers`.
        host: Address to listen at.
        port: Port to listen at.
        key: Key that clients have to send; None for none.
        max_bytes: Longest request.
        trainable: Take new weights from a learner.
    """
    policy = load_agent(folder, backend)
    service = Service(policy, backend, version_of(folder), trainable)
    size = sum(weight.numel() * weight.element_size() for weight in policy.backbone.parameters())
    guarded = Guard(make_app(service), key, max_bytes, max_weights=2 * size + 10_000_000 if trainable else None)
    uvicorn.run(
        guarded,
        host=host,
        port=port,
        http=Impatient,
        ws="none",
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
    parser.add_argument("--trainable", action="store_true")
    given = parser.parse_args()
    end_with_parent()
    key = os.environ[given.key_env] if given.key_env else None
    try:
        serve(given.folder, given.backend, given.host, given.port, key, given.max_bytes, given.trainable)
    except ConfigurationError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
