"""Run a command until it ends or standard input is closed, as it is when the process that started this one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main() -> int:
    """Run the command that the arguments are."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.killpg(0, signal.SIGKILL)  # this process leads its group

    threading.Thread(target=wait, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
