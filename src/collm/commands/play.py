"""Play an environment with any team: collm play RUN --agent builder_2=human"""

from __future__ import annotations

from collm.commands import helped


def main() -> int:
    """The command."""
    if helped("collm.serving.play", "play_command", positional=True):
        return 0
    from collm.serving.play import main

    return main()
