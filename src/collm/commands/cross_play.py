"""Teams with a mate missing, late or of another run: collm cross_play --runs '[A, B]' --out DIR"""

from __future__ import annotations


def main() -> int:
    """The command."""
    from collm.studies.cross_play import main

    return main()
