"""The nearest drafter stock llama.cpp can run, chosen and judged by what it accepts beside the exact one.

Correctness never suffers, verification is lossless; what is lost is acceptance, and that is measured on the prompts the
norms were calibrated on. The folding itself is `convert/stock.py`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from refspec import drafter_meta as meta
from refspec.api import Session
from refspec.bench import total
from refspec.check_live import complete_weights, reference_drafter
from refspec.convert import stock as folding
from refspec.drafters.base import Draft, Drafter, Stop
from refspec.drafters.llama import LlamaEagle3Drafter
from refspec.engine import drafter_config
from refspec.errors import BackendError, UsageError
from refspec.gguf_io import copy_metadata, read_gguf_header, write_drafter
from refspec.metrics import Statistics
from refspec.sampling import Sampler
from refspec.targets.llama import LlamaTarget

ROWS = 4096  # calibration rows kept


class Recorder:
    """A Drafter that keeps the first ROWS true rows another one is given."""

    def __init__(self, inner: Drafter) -> None:
        self.inner = inner
        self.capture_layers = inner.capture_layers
        self.tokens: list[np.ndarray] = []
        self.features: list[np.ndarray] = []
        self.kept = 0

    @property
    def n_rows(self) -> int:
        """True rows committed."""
        return self.inner.n_rows

    @property
    def seconds(self) -> float:
        """Time spent inside the drafter."""
        return self.inner.seconds

    def extend(self, tokens: np.ndarray, features: np.ndarray) -> None:
        """Append true rows, and keep a copy of them."""
        if self.kept < ROWS:
            self.tokens.append(np.array(tokens))
            self.features.append(np.array(features))
            self.kept += len(tokens)
        self.inner.extend(tokens, features)

    def draft(
        self, k: int, *, coins: np.ndarray | None = None, sampler: Sampler | None = None, stop: Stop | None = None
    ) -> Draft:
        """Draft up to k tokens."""
        return self.inner.draft(k, coins=coins, sampler=sampler, stop=stop)

    def rollback(self, n_rows: int) -> None:
        """Keep only the first n_rows true rows."""
        self.inner.rollback(n_rows)

    def reset(self) -> None:
        """Forget every row."""
        self.inner.reset()

    def close(self) -> None:
        """Release the drafter."""
        self.inner.close()


def make_stock(
    target: str | os.PathLike[str],
    drafter: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    prompts: Sequence[str],
    outtype: str = "f16",
    max_tokens: int = 64,
    draft_max: int = 4,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write to `out` the best of the near drafters, as `outtype`; taus of all and of the exact one, for --json.

    Raises `UsageError` when stock llama.cpp runs the drafter exactly, `CheckpointError` where nothing is near.
    """
    source, info = read_gguf_header(target), read_gguf_header(drafter)
    reasons = meta.stock_reasons(meta.from_metadata(info))
    if not reasons:
        raise UsageError(f"{info.path}: stock llama.cpp runs it exactly; nothing is to be folded")
    settings: dict[str, Any] = {"n_threads": threads, "n_threads_batch": threads}

    def run(make: Callable[[LlamaTarget], Drafter], layers: Sequence[int]) -> tuple[Statistics, Drafter]:
        with Session(held := LlamaTarget(source.path, capture_layers=layers, **settings), made := make(held)) as session:
            runs = []
            for text in prompts:
                encoded = session.encode(text)[-(held.n_ctx - max_tokens) :]
                generation = session.generate(tokens=encoded, max_tokens=max_tokens, draft_max=draft_max)
                for _ in generation:
                    pass
                runs.append(generation.statistics)
        return total(runs), made

    def exact_drafter(held: LlamaTarget) -> Recorder:
        try:
            drafter_config(info)
            return Recorder(LlamaEagle3Drafter(info.path, held, **settings))
        except BackendError:  # a switch llama.cpp has not
            return Recorder(reference_drafter(info, source))

    progress("the exact drafter, calibrating")
    config, weights = complete_weights(info, source)
    exact, recorder = run(lambda held: cast(Drafter, exact_drafter(held)), config.capture_layers)
    assert isinstance(recorder, Recorder)
    rows = np.concatenate(recorder.tokens)[:ROWS], np.concatenate(recorder.features)[:ROWS]
    calibration = folding.calibrate(config, weights, *rows)
    own = {n: a for n, a in weights.items() if n not in meta.SHARED or meta.TENSORS[n] in info.tensors}
    near = folding.candidates(config, own, calibration)
    found: dict[str, Statistics] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (c, w) in near.items():
            progress(name)
            path = write_drafter(Path(folder) / "near.gguf", c, w, outtype=outtype)
            found[name], _ = run(lambda held, path=path: LlamaEagle3Drafter(path, held, **settings), c.capture_layers)  # type: ignore[misc]
    best = max(found, key=lambda name: found[name].tau)
    loss = 1 - found[best].tau / exact.tau
    values = {
        **copy_metadata(info, "general.name", "tokenizer."),
        "refspec.provenance.stock": f"{best}; nearest to {info.path.name}, tau {found[best].tau:.3f} for {exact.tau:.3f}",
    }
    write_drafter(out, *near[best], outtype=outtype, metadata=values)
    return {
        "drafter": str(info.path), "written": str(out), "reasons": reasons, "prompts": len(prompts), "chosen": best,
        "exact": _numbers(exact), "candidates": {n: _numbers(s) for n, s in found.items()}, "loss_of_tau": loss,
    }  # fmt: skip


def _numbers(s: Statistics) -> dict[str, Any]:
    return {"tau": s.tau, "accepted_by_position": s.accepted_by_position, "verify_steps": s.verify_steps}


def lines(made: dict[str, Any]) -> list[str]:
    """The text `refspec stock` prints, from the dictionary of `make_stock`."""
    rows = {"exact (refspec)": made["exact"], **made["candidates"]}
    width = max(map(len, rows))
    out = [f"{made['drafter']}: stock llama.cpp cannot run it: {reason}" for reason in made["reasons"]]
    out.append(f"{'':<{width}}  tau   accepted by position")
    for name, row in rows.items():
        shares = " ".join(f"{share:.2f}" for share in row["accepted_by_position"])
        out.append(f"{name:<{width}}  {row['tau']:.2f}  {shares}{'  <- written' if name == made['chosen'] else ''}")
    out.append(
        f"{made['written']}: loses {100 * made['loss_of_tau']:.1f} % of tau on {made['prompts']} calibration prompts; the text stays the target's own"
    )
    return out
