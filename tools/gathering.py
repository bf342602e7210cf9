"""Train with and without messages and write results/resource_gathering: `python tools/gathering.py`."""

import os
import subprocess
import sys
from pathlib import Path

from collm.studies.silence import write_page

if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[1])  # pages name files of this repository, wherever it lies
    study = "configs/studies/resource_gathering.yaml"
    status = subprocess.run([sys.executable, "tools/study.py", "--config", study, *sys.argv[1:]]).returncode
    if not status:
        write_page(Path(study), Path("results/resource_gathering"))
    sys.exit(status)
