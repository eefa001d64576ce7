"""`python docs/lab COMMAND`: the laboratory's commands, from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.cli import main  # noqa: E402

if __name__ == "__main__":
    main(prog_name="python docs/lab")
