"""Teams with a mate missing, late or of another run: collm cross_play --runs '[A, B]' --out DIR"""

from __future__ import annotations

from collm.commands import helped


def main() -> int:
    """The command."""
    if helped("collm.studies.cross_play", "cross_play"):
        return 0
    from collm.studies.cross_play import main

    return main()
