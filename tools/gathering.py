"""Train with and without messages and write results/resource_gathering: `python tools/gathering.py`."""

import subprocess
import sys
from pathlib import Path

from collm.studies.silence import write_page

if __name__ == "__main__":
    root = Path(__file__).resolve().parents[1]
    study = root / "configs" / "studies" / "resource_gathering.yaml"
    status = subprocess.run([sys.executable, root / "tools" / "study.py", "--config", study, *sys.argv[1:]]).returncode
    if not status:
        write_page(study, root / "results" / "resource_gathering")
    sys.exit(status)
