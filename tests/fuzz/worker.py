"""`python -m tests.fuzz.worker FOLDER`: makes and tries the cases whose numbers it reads, a line of JSON for each.

refused   an error of refspec, in one line
accepted  read, loaded and run
anything else is named: an exception of Python, or what a message has wrong
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import refspec
from refspec.convert import convert_drafter, convert_target
from refspec.convert.inspect import describe, lines
from refspec.errors import RefspecError
from refspec.gguf.io import read_drafter
from tests.fuzz import mutate, seeds

WORDS = "Why is the sky blue?"


def gguf_target(rng: random.Random, folder: Path) -> Callable[[], None]:
    """A target, run alone: its chat template, its tokenizer, a few tokens."""
    file = folder / "target.gguf"
    mutate.gguf(rng, seeds.TARGETS[rng.choice(list(seeds.TARGETS))](), file)
    tree = rng.random() < 0.1

    def run() -> None:
        lines(describe(file))
        with refspec.load(file, n_ctx=64, threads=1, tuned=False, lookup=not tree) as session:
            session.encode(WORDS, raw=True)
            session.encode([{"role": "user", "content": WORDS}, {"role": "assistant", "content": "<|im_end|>"}])
            list(session.generate(WORDS, max_tokens=4))

    return run


def gguf_drafter(rng: random.Random, folder: Path) -> Callable[[], None]:
    """A drafter, run with a sound target."""
    target, file = folder / "target.gguf", folder / "drafter.gguf"
    seeds.tiny.target(target)
    mutate.gguf(rng, seeds.DRAFTERS[rng.choice(list(seeds.DRAFTERS))](), file)
    how = rng.choice(("auto", "llama", "own"))

    def run() -> None:
        lines(describe(file))
        read_drafter(file)
        with refspec.load(target, file, n_ctx=64, threads=1, tuned=False, draft_max=3, drafter_kernels=how) as session:
            list(session.generate(tokens=[3, 4, 5], max_tokens=6))

    return run


def checkpoint(rng: random.Random, folder: Path) -> Callable[[], None]:
    """A checkpoint's directory, described and converted."""
    made = folder / "checkpoint"
    name = rng.choice(list(seeds.CHECKPOINTS))
    seeds.CHECKPOINTS[name](made)
    mutate.checkpoint(rng, made)

    def run() -> None:
        try:
            lines(describe(made))
        finally:
            if name == "hf_target":
                convert_target(made, folder / "out.gguf", "f32")
            else:
                over: dict[str, Any] = {"layer_ids": [2, 4, 5], "feedback": "pre_norm", "head_norm": True}
                convert_drafter(made, None, folder / "out.gguf", "f32", over)

    return run


KINDS = (gguf_target, gguf_target, gguf_drafter, checkpoint)


def outcome(number: int, folder: Path) -> str:
    """What became of one case."""
    rng = random.Random(number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        run = rng.choice(KINDS)(rng, folder)
    except Exception as error:  # gguf's writer refuses it
        return f"not made: {type(error).__name__}"
    try:
        run()
    except RefspecError as error:
        text = str(error)
        return "refused" if text and "\n" not in text and len(text) < 1000 else f"message: {text[:200]!r}"
    except Exception as error:
        at = error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        where = f"{Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}" if at else "?"
        return f"traceback: {type(error).__name__} at {where}: {str(error)[:120]}"
    return "accepted"


def main() -> None:
    """Numbers on stdin, outcomes on stdout."""
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(outcome(int(line), folder)), flush=True)


if __name__ == "__main__":
    main()
