"""Print the memory that a configuration needs on 1, 2 and 8 devices: `python tools/plan.py --config ...`."""

import sys
from pathlib import Path

from collm.benchmark.plan import main

if __name__ == "__main__":
    sys.exit(main(default_config=Path(__file__).resolve().parents[1] / "configs" / "base.yaml"))
