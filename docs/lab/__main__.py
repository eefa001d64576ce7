"""`python docs/lab COMMAND`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.cli import main

main(prog_name="python docs/lab")
