"""Play an environment with any team: collm play RUN --agent builder_2=human"""

from __future__ import annotations


def main() -> int:
    """The command."""
    from collm.serving.play import main

    return main()
