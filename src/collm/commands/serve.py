"""Serve the agents of a run as OpenAI-compatible endpoints: collm serve RUN"""

from __future__ import annotations

from collm.commands import helped


def main() -> int:
    """The command."""
    if helped("collm.serving.command", "serve", positional=True):
        return 0
    from collm.serving.command import main

    return main()
