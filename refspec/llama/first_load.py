"""A file that was never loaded here is loaded in a child process first: llama.cpp may end or hang the one it is in.

What is known to do so is refused before (`gguf/target_checks.py`, `pair_checks.py`), but a file from a stranger may
know more. The trial loads the pair and runs a few tokens, once for each header, build of llama.cpp and processor; the
header decides what llama.cpp does, and the weights are checked for values that are not finite. REFSPEC_FIRST_LOAD=no
leaves the trial out.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from refspec import native
from refspec.errors import CheckpointError, RefspecError
from refspec.gguf.header import GgufInfo
from refspec.gguf.io import read_gguf_header
from refspec.llama import open_pair, trial
from refspec.llama.probe_cache import ask_once
from refspec.llama.target import LlamaTarget

PATIENCE, SLOW = 60.0, 50e6  # seconds, and as many more as reading the files takes at so many bytes a second
HUNG = 1000  # in place of an exit code
TOKENS = (1, 2, 3, 5)  # run together, and then one by one


def check(model: GgufInfo, drafter: GgufInfo | None) -> None:
    """CheckpointError where llama.cpp ended or hung the trial's process with these files."""
    files = [file for file in (model, drafter) if file is not None]
    if os.environ.get("REFSPEC_FIRST_LOAD", "").lower() in ("no", "off", "0") or not sys.executable:
        return
    about: list[object] = [digest(file) for file in files]
    about += [os.stat(native.path()).st_mtime_ns] if native.lib is not None else []
    code = ask_once("first-load", about, lambda: _tried([str(file.path) for file in files]), int)
    if code:
        how = f"did not end in {PATIENCE:.0f} s" if code == HUNG else f"ended the process (code {code})"
        names = " with ".join(str(file.path) for file in files)
        raise CheckpointError(
            f"{names}: llama.cpp {how} when it was tried in a process of its own; the file is damaged or hostile "
            "(REFSPEC_FIRST_LOAD=no loads it all the same)"
        )


def digest(info: GgufInfo) -> str:
    """A hash of the header and of the file's size."""
    end = min((tensor.offset for tensor in info.tensors.values()), default=info.file_size)
    found = hashlib.sha256(str(info.file_size).encode())
    with open(info.path, "rb") as file:
        while end > 0 and (block := file.read(min(end, 1 << 20))):
            found.update(block)
            end -= len(block)
    return found.hexdigest()


def _tried(files: list[str]) -> int:
    """0 where the child ended well, else its exit code or HUNG."""
    nothing = subprocess.DEVNULL
    patience = PATIENCE + sum(os.path.getsize(file) for file in files) / SLOW
    try:
        child = subprocess.run(
            [sys.executable, "-m", __name__, *files], stdin=nothing, stdout=nothing, stderr=nothing, timeout=patience,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return HUNG
    except OSError:  # no child can be started here: nothing is known
        return 0
    return child.returncode


def run(files: list[str]) -> None:
    """What the child does; an error of refspec is for the parent to find and say."""
    try:
        model, *more = (read_gguf_header(Path(file)) for file in files)
        drafter = more[0] if more else None
        layers = open_pair.capture_layers(drafter)
        target = open_pair.make_target(model, tree=None, n_ctx=64, n_threads=1, capture_layers=layers)
        loaded = open_pair.make_drafter(drafter, target, lookup=False, n_threads=1)
        _few_tokens(target)
        if loaded is not None:
            loaded.close()
        target.close()
    except RefspecError:
        pass


def _few_tokens(target: LlamaTarget) -> None:
    tokens = [token % target.n_vocab for token in TOKENS]
    target.decode(tokens)
    for token in tokens:
        target.decode([token])
    target.tokenize("Why is the sky blue?", parse_special=True)


if __name__ == "__main__":
    trial.leave_no_core_file()
    run(sys.argv[1:])
