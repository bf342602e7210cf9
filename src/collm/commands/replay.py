"""Show recorded episodes in one HTML page: collm replay RUN_OR_JSONL --out replay.html"""

from __future__ import annotations


def main() -> int:
    """The command."""
    from collm.replay.command import main

    return main()
