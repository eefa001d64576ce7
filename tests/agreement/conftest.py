"""Puts tests/reference on the path: its small random drafters are used here too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))
