"""Train, validate, test or predict: `python tools/fit.py {fit,validate,test,predict} --config ...`."""

import sys
from pathlib import Path

from collm.errors import ConfigurationError
from collm.runtime.versions import check_versions


def main() -> int:
    """Check what is installed, then do what the command line says."""
    try:
        check_versions()
    except ConfigurationError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    from collm import cli  # which imports everything else

    return cli.main(default_config=Path(__file__).resolve().parents[1] / "configs" / "base.yaml")


if __name__ == "__main__":
    sys.exit(main())
