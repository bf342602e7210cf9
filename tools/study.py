"""Train methods with several seeds in parallel and compare them: `python tools/study.py --config FILE --jobs 2`."""

import sys
from pathlib import Path

from collm.studies.study import main

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.exit(main(script=here / "fit.py", default_config=here.parent / "configs" / "base.yaml"))
