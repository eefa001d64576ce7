"""The nearest drafter stock llama.cpp can run, chosen and measured by its acceptance compared with the exact one's.

Verification is lossless, so only acceptance is lost. The norms are calibrated, and the best candidate chosen, on some
prompts; the loss is measured on others. The folding itself is `convert/stock.py`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from refspec.convert import stock as folding
from refspec.decoding.drafter import Drafter
from refspec.decoding.wrapped import WrappedDrafter
from refspec.errors import UsageError
from refspec.evaluate.outputs import outputs
from refspec.evaluate.speed import total
from refspec.gguf import drafter_meta as meta
from refspec.gguf.io import copy_metadata, read_gguf_header, write_drafter
from refspec.llama.eagle3 import LlamaEagle3Drafter
from refspec.llama.native_eagle3 import complete_weights, open_drafter
from refspec.llama.target import LlamaTarget
from refspec.reference.metrics import Statistics
from refspec.session import GREEDY, Session

ROWS = 4096  # calibration rows kept


class Recorder(WrappedDrafter):
    """A Drafter that keeps the first ROWS true rows that another one gets."""

    def __init__(self, inner: Drafter) -> None:
        super().__init__(inner)
        self.tokens: list[np.ndarray] = []
        self.features: list[np.ndarray] = []
        self.kept = 0

    def extend(self, tokens: np.ndarray, features: np.ndarray) -> None:
        """Append true rows, and keep a copy of them."""
        if self.kept < ROWS:
            self.tokens.append(np.array(tokens))
            self.features.append(np.array(features))
            self.kept += len(tokens)
        self.inner.extend(tokens, features)


def make_stock(
    target: str | os.PathLike[str], drafter: str | os.PathLike[str], out: str | os.PathLike[str], *,
    calibration: Sequence[str], held_out: Sequence[str], outtype: str = "f16", max_tokens: int = 64, draft_max: int = 4,
    threads: int | None = None, progress: Callable[[str], None] = lambda line: None, name: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write to `out` the best of the near drafters, as `outtype`; taus of all and of the exact one, for --json.

    All run on the prompts of `calibration`, the best and the exact one then on those of `held_out`. Raises `UsageError`
    when stock llama.cpp runs the drafter exactly or prompts are missing, `CheckpointError` where nothing is near.
    """
    if not calibration or not held_out:
        raise UsageError(f"{drafter}: calibrating and measuring take different prompts; give at least two prompts")
    source, info = read_gguf_header(target), read_gguf_header(drafter)
    reasons = meta.stock_reasons(meta.from_metadata(info))
    if not reasons:
        raise UsageError(f"{info.path}: stock llama.cpp runs it exactly; use it as it is")
    settings: dict[str, Any] = {"n_threads": threads, "n_threads_batch": threads}

    def run(
        make: Callable[[LlamaTarget], Drafter], layers: Sequence[int], prompts: Sequence[str]
    ) -> tuple[Statistics, Drafter]:
        held = LlamaTarget(source.path, capture_layers=layers, **settings)
        with Session(held, made := make(held)) as session:
            runs = outputs(session, prompts, max_tokens=max_tokens, draft_max=draft_max, sampler=GREEDY)
            return total([generation.statistics for generation in runs]), made

    progress(f"the exact drafter on {len(calibration)} prompts, calibrating")
    config, weights = complete_weights(info, source)

    def recorded(held: LlamaTarget) -> Drafter:
        return cast(Drafter, Recorder(open_drafter(info.path, held, **settings)))

    exact, recorder = run(recorded, config.capture_layers, calibration)
    assert isinstance(recorder, Recorder)
    rows = np.concatenate(recorder.tokens)[:ROWS], np.concatenate(recorder.features)[:ROWS]
    means = folding.calibrate(config, weights, *rows)
    own = {n: a for n, a in weights.items() if n not in meta.SHARED or meta.TENSORS[n] in info.tensors}
    near = folding.candidates(config, own, means)
    found: dict[str, Statistics] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "near.gguf"

        def measure(how: str, prompts: Sequence[str]) -> Statistics:
            write_drafter(path, *near[how], outtype=outtype)
            return run(lambda held: LlamaEagle3Drafter(path, held, **settings), near[how][0].capture_layers, prompts)[0]

        for how in near:
            progress(how)
            found[how] = measure(how, calibration)
        best = max(found, key=lambda how: found[how].tau)
        progress(f"both on {len(held_out)} other prompts")
        kept = measure(best, held_out)
    truth, _ = run(lambda held: open_drafter(info.path, held, **settings), config.capture_layers, held_out)
    called = name or str(info.path)
    taus = f"tau {kept.tau:.3f} for {truth.tau:.3f} on prompts it was not calibrated on"
    facts = ("layout", "files", "rope", "rms_norm_eps", "draft_vocab", "d2t")
    carried = ["general.name", "tokenizer.", "refspec.rope_scaling", *(f"refspec.provenance.{fact}" for fact in facts)]
    values: dict[str, Any] = copy_metadata(info, *carried)
    values["refspec.provenance.stock"] = f"{best}; nearest to {Path(called).name}, {taus}"
    write_drafter(out, *near[best], outtype=outtype, metadata=values)
    return {
        "drafter": called, "written": str(out), "reasons": reasons, "chosen": best,
        "calibration": {
            "prompts": len(calibration), "exact": _numbers(exact),
            "candidates": {n: _numbers(s) for n, s in found.items()},
        },
        "held_out": {"prompts": len(held_out), "exact": _numbers(truth), "chosen": _numbers(kept)},
        "loss_of_tau": 1 - kept.tau / truth.tau,
    }  # fmt: skip


def _numbers(s: Statistics) -> dict[str, Any]:
    return {"tau": s.tau, "accepted_by_position": s.accepted_by_position, "verify_steps": s.verify_steps}


def lines(made: dict[str, Any]) -> list[str]:
    """The lines that `convert --stock` prints, from the dictionary of `make_stock`."""
    first, then = made["calibration"], made["held_out"]
    rows = {"exact (refspec)": first["exact"], **first["candidates"]}
    held_out = {"exact (refspec)": then["exact"], made["chosen"]: then["chosen"]}
    width = max(map(len, rows))
    out = [f"{made['drafter']}: stock llama.cpp cannot run it: {reason}" for reason in made["reasons"]]
    out.append(f"{'':<{width}}  tau on {first['prompts']} prompts, accepted by position")
    for name, row in rows.items():
        out.append(f"{name:<{width}}  {_row(row)}{'  <- best, written' if name == made['chosen'] else ''}")
    out.append(f"{'':<{width}}  on {then['prompts']} others")
    out += [f"{name:<{width}}  {_row(row)}" for name, row in held_out.items()]
    out.append(
        f"{made['written']}: loses {100 * made['loss_of_tau']:.1f} % of tau, measured on the {then['prompts']} prompts "
        "it was not calibrated on; the output stays the target's own"
    )
    return out


def _row(numbers: dict[str, Any]) -> str:
    return f"{numbers['tau']:.2f}  " + " ".join(f"{share:.2f}" for share in numbers["accepted_by_position"])
