"""llama.cpp's own driver on the same pair: `llama-speculative-simple` run as a program, and the figures it prints.

It drafts greedily, matches the target's sample and knows no post-norm feedback: only a drafter with the architecture
name eagle3 can be compared. Its time begins after the prompt, as refspec's does; loading is in neither.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from refspec.errors import BackendError, UsageError
from refspec.gguf import drafter_meta
from refspec.gguf.io import read_gguf_header

PROGRAM = "llama-speculative-simple"
TIMEOUT = 3600  # seconds, for one prompt
TRIES = 3  # a thread of its own writes the program's log, and now and then the program ends before that is done
_DECODED = re.compile(r"decoded\s+(\d+) tokens in\s+([0-9.]+) seconds")
_COUNT = re.compile(r"^n_(drafted|accept)\s*=\s*(\d+)", re.MULTILINE)


class Run(NamedTuple):
    """What the program said of one prompt."""

    tokens: int
    seconds: float
    drafted: int
    accepted: int

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed, without the prompt."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Rival:
    """The program in a directory, with the settings that make it comparable."""

    def __init__(self, folder: str | os.PathLike[str], model: str, drafter: str | os.PathLike[str]) -> None:
        """Raises UsageError when the program is not there, or the drafter is one that it would run wrong."""
        self.program = Path(folder) / (PROGRAM + (".exe" if os.name == "nt" else ""))
        if not os.access(self.program, os.X_OK):
            raise UsageError(f"{self.program}: no such program; name the directory of llama.cpp's tools")
        if not os.fspath(drafter) or read_gguf_header(drafter).arch != drafter_meta.STOCK_ARCH:
            raise UsageError(
                f"{drafter or 'this drafter'}: stock llama.cpp cannot run this drafter; name its pre-norm twin with "
                "--llama-cpp-drafter, or make the nearest file with `refspec convert --stock`"
            )
        self.model, self.drafter = model, os.fspath(drafter)

    def command(self, prompt_file: str, *, max_tokens: int, draft_max: int, n_ctx: int, **settings: Any) -> list[str]:
        """The command line for one prompt."""
        more = []
        for flag, name in (("-t", "threads"), ("-tb", "threads_batch"), ("-fa", "flash_attn")):
            if settings.get(name) is not None:
                more += [flag, str(settings[name])]
        if not settings.get("repack", True):  # its AMX kernels would end the program too (`llama/amx.py`)
            more.append("--no-repack")
        return [
            str(self.program), "-m", self.model, "-md", self.drafter, "--spec-type", "draft-eagle3",
            "--spec-draft-n-max", str(draft_max), "--spec-draft-p-min", "0", "-f", prompt_file, "-n", str(max_tokens),
            "-c", str(n_ctx), "--temp", "0", "--seed", "0", *more,
        ]  # fmt: skip

    def run(self, text: str, **settings: Any) -> Run:
        """Generate from a prompt's text; BackendError with the program's last line when it fails."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "prompt.txt"
            file.write_text(text, "utf-8")
            command = self.command(str(file), **settings)
            for _ in range(TRIES):
                try:
                    done = subprocess.run(
                        command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
                    )
                except (OSError, subprocess.TimeoutExpired) as error:
                    raise BackendError(f"{self.program}: {error}") from None
                output = done.stdout + "\n" + done.stderr
                if done.returncode or _DECODED.search(output):
                    break
        return read(self.program, output, done.returncode)


def read(program: str | os.PathLike[str], output: str, code: int) -> Run:
    """The figures in the program's output."""
    found = _DECODED.search(output)
    if code or found is None:
        last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "no output")
        raise BackendError(f"{program}: exit {code}, no decoding speed in its output; it said: {last[:200]}")
    counts = {name: int(value) for name, value in _COUNT.findall(output)}
    return Run(int(found[1]), float(found[2]), counts.get("drafted", 0), counts.get("accept", 0))


def prompts_as_text(session: Any, prompts: Sequence[str]) -> list[str]:
    """The prompts through the chat template, as the program reads them (it adds the BOS token itself)."""
    template = session.chat_template
    return [p if template is None else session.render([{"role": "user", "content": p}], template) for p in prompts]
