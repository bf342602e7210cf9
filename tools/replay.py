"""Show recorded episodes in one HTML page: `python tools/replay.py RUN_OR_JSONL --out replay.html`."""

import sys

from collm.commands import run

if __name__ == "__main__":
    sys.exit(run("replay"))
