"""Serve the agents of a run as OpenAI-compatible endpoints: collm serve RUN"""

from __future__ import annotations

from collm.commands import wants_help


def main() -> int:
    """The command."""
    if wants_help():
        from collm.runtime.quick_help import function_help

        print(function_help("collm.serving.command", "serve", positional=True))
        return 0
    from collm.serving.command import main

    return main()
