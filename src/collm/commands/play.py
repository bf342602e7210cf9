"""Play an environment with any team: collm play RUN --agent builder_2=human"""

from __future__ import annotations

from collm.commands import wants_help


def main() -> int:
    """The command."""
    if wants_help():
        from collm.runtime.quick_help import function_help

        print(function_help("collm.serving.play", "play_command", positional=True))
        return 0
    from collm.serving.play import main

    return main()
