"""Cases handed to a worker process one by one: whatever it does, it is known which case it was."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 20.0  # seconds for a case
ROOM = 2 << 30  # bytes beyond those of the process before it
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Counts:
    """How many cases ended how, and what is wrong with those that are."""

    ended: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)

    def __str__(self) -> str:
        kinds = ("refused", "accepted", "not made", "aborted", "hung", "over memory", "traceback", "message")
        counts = ", ".join(f"{kind} {self.ended[kind]}" for kind in kinds)
        return f"{sum(self.ended.values())} cases: {counts}; slowest {self.slowest[0]:.1f} s (case {self.slowest[1]})"


class Worker:
    """A process that tries cases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = os.environ | {
            "REFSPEC_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "GGML_NO_BACKTRACE": "1",
            "REFSPEC_FIRST_LOAD": "no",  # what the checks before the call miss is to be seen here
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(folder / "case")], stdin=subprocess.PIPE, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=environment,
        )  # fmt: skip
        self.usual = 0

    def tell(self, number: int) -> str:
        """What became of a case; where the worker is gone after it, `alive` is false."""
        process = self.process
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        until = time.monotonic() + PATIENCE + (0 if self.usual else 60)  # the first one waits for Python to start
        while time.monotonic() < until:
            if select.select([process.stdout], [], [], 0.05)[0]:
                if line := process.stdout.readline():
                    self.usual = self.usual or self._memory()
                    return str(json.loads(line))
                process.wait()
                return f"aborted: {process.returncode}: {process.stderr.read()[-200:].strip()}"
            if self.usual and self._memory() > self.usual + ROOM:
                self.end()
                return "over memory"
        self.end()
        return "hung"

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _memory(self) -> int:
        try:
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0


def run(first: int, count: int, keep: Path | None = None) -> Counts:
    """Try the cases first..first+count-1; files of those that fail are kept."""
    counts, worker = Counts(), None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(first, first + count):
            if worker is None or not worker.alive:
                worker = Worker(folder)
                said = worker.tell(-1)  # Python starts, llama.cpp is tried out
                if not worker.alive:
                    raise SystemExit(f"no worker: {said}")
            began = time.monotonic()
            said = worker.tell(number)
            counts.slowest = max(counts.slowest, (time.monotonic() - began, number))
            kind = said.partition(":")[0]
            counts.ended[kind] += 1
            if kind not in ("refused", "accepted", "not made"):
                counts.failures.append(f"case {number}: {said}")
                if keep is not None:
                    print(counts.failures[-1], flush=True)
        if worker is not None:
            worker.end()
    return counts


def main() -> None:
    """`python -m tests.fuzz.campaign N [FIRST]`: counts, and exit code 1 where a case failed."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    counts = run(first, count, Path("."))
    print(counts)
    raise SystemExit(bool(counts.failures))


if __name__ == "__main__":
    main()
