"""Score recorded cases without any model: collm score cases.jsonl [--reward paper|released]"""

from __future__ import annotations


def main() -> int:
    """The command."""
    from collm.scoring.command import main

    return main()
