"""Puts the helpers of other areas' tests on the path: tiny models, records, ways to call a command."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / area) for area in ("cli", "engine", "drift")]
