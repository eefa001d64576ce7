"""Whether llama.cpp can multiply with weights repacked for AMX here, or ends the process.

A llama.cpp built for a processor with AMX (Intel's matrix tiles) repacks quantized weights for it. In some builds the
first multiplication with them is a segmentation fault (seen with GCC 12, at the load of the tile configuration;
llama.cpp issue 20824). Pull request 26954 there names two causes, not checked here: compilers that drop the stores
filling that configuration, and kernels that give tiles only to threads that ask. No flag tells such a build from a good
one, so one multiplication is tried in a child process, once per build and processor.
"""

from __future__ import annotations

import sys
import tempfile
from functools import cache
from pathlib import Path

from refspec.gguf.io import read_gguf_header
from refspec.llama import api, trial
from refspec.llama.model import Model, Weights
from refspec.llama.probe_cache import ask_once

FILE, WIDTH = "probe.gguf", 64  # tiles take matrices with a multiple of 32 rows
REFUSED = (
    "repacking would end the process: the AMX kernels of this llama.cpp crash on this processor; leave the weights as"
    " they are, or install a llama.cpp built without these kernels"
)


@cache
def repacking_works() -> bool:
    """Whether llama.cpp may repack weights: True without AMX, else what the child process showed."""
    if b"AMX_INT8 = 1" not in api.system_info():
        return True
    return ask_once("amx", [], tried, bool)


def tried() -> bool:
    """Try it in a child process."""
    with tempfile.TemporaryDirectory() as folder:
        trial.write_model(Path(folder) / FILE, width=WIDTH, outtype="q8_0")
        return trial.survives(__name__, folder)


def run(folder: Path, *, repack: bool = True) -> None:
    """What the child does: the multiplications that a crashing build does not survive with `repack`."""
    trial.run(Model(read_gguf_header(folder / FILE), held=Weights(repack=repack)))


if __name__ == "__main__":
    trial.leave_no_core_file()
    run(Path(sys.argv[1]))
