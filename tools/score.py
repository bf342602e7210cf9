"""Score recorded cases without any model: `python tools/score.py cases.jsonl [--reward paper|released]`."""

import sys

from collm.commands.score import main

if __name__ == "__main__":
    sys.exit(main())
