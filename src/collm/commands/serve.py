"""Serve the agents of a run as OpenAI-compatible endpoints: collm serve RUN"""

from __future__ import annotations


def main() -> int:
    """The command."""
    from collm.serving.command import main

    return main()
