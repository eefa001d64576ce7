"""The OpenMP threads llama.cpp computes on, for refspec's own kernels, as addresses for C.

Not a second pool: two pools that spin on the same processors slow each other down. A build of llama.cpp without OpenMP
(macOS, Windows) has no such functions, and the kernels then use one thread.
"""

from __future__ import annotations

import ctypes

from refspec.llama import api
from refspec.llama.context import default_threads
from refspec.native import Team


def team(threads: int | None) -> Team | None:
    """`threads` of them (None: one for every processor); None where that is one, or llama.cpp has no OpenMP."""
    threads = default_threads() if threads is None else threads
    functions = (api.team_parallel, api.team_rank, api.team_size)
    if threads < 2 or any(function is None for function in functions):
        return None
    parallel, rank, size = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
    return Team(parallel, rank, size, threads)
