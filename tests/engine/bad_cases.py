"""Every way of misusing the engine that once ended the process or went wrong silently, run one after the other in one
process.

Run as `python bad_cases.py DIRECTORY NAME...`: prints one JSON line per case as soon as it is over, so that whoever
reads it knows which case ended the process, if one does. The cases are functions that should raise a RefspecError:
bad_targets.py, bad_drafters.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_drafters
import bad_targets
import bad_tools

from refspec.errors import RefspecError

CASES: dict[str, tuple[str, str, Callable[[], Any]]] = bad_targets.CASES | bad_drafters.CASES


def main(directory: str, names: list[str]) -> None:
    """Run the named cases and report each."""
    bad_tools.home = Path(directory)
    for name in names:
        try:
            CASES[name][2]()
            said = ["nothing", ""]
        except RefspecError as error:
            said = [type(error).__name__, str(error)]
        except Exception as error:
            said = [f"unexpected {type(error).__name__}", str(error)]
        print(json.dumps([name, *said]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
