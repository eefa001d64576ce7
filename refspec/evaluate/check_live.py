"""The short run of `refspec check`: acceptance by position, magnitudes by depth, and what their patterns mean.

The detectors: nearly nothing accepted at the first position (wrong layers or misaligned states); a state that grows
with draft depth although post-norm feedback is set; acceptance that collapses after the first position (wrong
feedback). Then every usual mistake is undone and compared (`evaluate/check_readings.py`), so that the cause is
measured, not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from refspec.evaluate.check_readings import FEW, Compared, boundaries, compare, readings, verdict
from refspec.evaluate.finding import MISFIT, NOTE, OK, Finding
from refspec.evaluate.outputs import outputs
from refspec.evaluate.prompts import built_in
from refspec.evaluate.speed import total
from refspec.evaluate.teacher_forced import record
from refspec.gguf import drafter_meta as meta
from refspec.gguf.header import GgufInfo
from refspec.gguf.io import read_tensor
from refspec.llama.eagle3 import LlamaEagle3Drafter
from refspec.llama.native_eagle3 import NativeEagle3Drafter, complete_weights, open_drafter
from refspec.llama.target import LlamaTarget
from refspec.reference.config import DrafterConfig, FeatureNorm, Feedback
from refspec.reference.draft import magnitude
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.metrics import Statistics
from refspec.reference.sampling import Sampler
from refspec.session import GREEDY, Generation, Session

DRAFT = 4  # draft tokens per verify step of the run
ENOUGH = 20  # verify steps below which acceptance says nothing
FIRST_LOW = 0.15  # an off-by-one in the captured layers leaves about 0.1
FIRST_WEAK = 0.4  # below it the usual mistakes are likely; a drafter may also be trained too little
JUMP = 4.0  # magnitude of a true row's state over a chained row's: what a missing feature norm leaves
COLLAPSE = 0.5  # acceptance at a later position, given the ones before, as a share of the first's
GROWTH = 1.5  # of the state's magnitude from the first chained row to the last
MORE = 8  # outputs sampled from the target, per prompt of the run
SECONDS = 60.0  # about as long the target generates them, and the readings take

Tokens = tuple[list[int], int]  # prompt and output, and where the output begins


class Run(NamedTuple):
    """One run of the pair: its counts, the state's magnitude by draft depth, and the sequences."""

    statistics: Statistics
    magnitudes: list[float]
    sequences: list[Tokens]


def run_pair(
    target_info: GgufInfo, drafter_info: GgufInfo, config: DrafterConfig, *, threads: int | None, prompts: int,
    max_tokens: int, progress: Callable[[str], None],
) -> tuple[dict[str, Any], list[Finding]]:  # fmt: skip
    """Run the pair, judge it, and compare every reading of its switches; (numbers for --json, findings)."""
    settings: dict[str, Any] = {"n_threads": threads, "n_threads_batch": threads}
    asked = built_in(prompts * (1 + MORE))
    target = LlamaTarget(target_info.path, capture_layers=config.capture_layers, **settings)
    try:
        progress(f"running {prompts} prompts")
        session = Session(target, open_drafter(drafter_info.path, target, **settings))
        as_is = _measure(session, asked[:prompts], max_tokens)
    finally:
        target.close()
    findings = [*judge(as_is.statistics, as_is.magnitudes, config), _coverage(drafter_info, as_is.sequences)]
    n_layer = int(target_info.metadata[f"{target_info.arch}.block_count"])
    tried = readings(config, n_layer, _theta(target_info, drafter_info))
    recorded = boundaries(config, tried)
    target = LlamaTarget(target_info.path, capture_layers=recorded, **settings)
    try:
        progress(f"recording the target on up to {prompts * MORE} prompts")
        ids = read_tensor(drafter_info, "d2t") if "d2t" in drafter_info.tensors else np.arange(config.vocab_size)
        greedy = [record(target, *sequence, ids) for sequence in as_is.sequences]
        sampled = [record(target, *sequence, ids) for sequence in _sampled(target, asked, max_tokens)]
    finally:
        target.close()
    found: list[Compared] = []
    if sum(len(r.tokens) - r.start for r in sampled) >= FEW:
        _, weights = complete_weights(drafter_info, target_info)
        how: dict[str, Any] = {"depth": DRAFT, "seconds": SECONDS, "progress": progress}
        found = compare(config, weights, recorded, sampled, greedy, tried, **how)
        fired = any(f.level == MISFIT or (f.about == "first token" and f.level == NOTE) for f in findings)
        findings.append(_lost_norm() if _unnormed(as_is.magnitudes, config) else verdict(found, unexplained=fired))
    numbers = {
        "tau": as_is.statistics.tau, "verify_steps": as_is.statistics.verify_steps,
        "accepted_by_position": as_is.statistics.accepted_by_position, "magnitude_by_depth": as_is.magnitudes,
        "readings": {c.reading.name: c.as_dict() for c in found},
    }  # fmt: skip
    return numbers, findings


def _theta(target: GgufInfo, drafter: GgufInfo) -> float | None:
    """The target's RoPE base, where no divisors of the drafter's own make it meaningless."""
    scaled = meta.TENSORS["rope_freqs"] in drafter.tensors or "rope_freqs.weight" in target.tensors
    return None if scaled else float(target.metadata.get(f"{target.arch}.rope.freq_base", 10000.0))


def _sampled(target: LlamaTarget, prompts: Sequence[str], max_tokens: int) -> list[Tokens]:
    """Outputs of the target at temperature 1, generated within SECONDS."""
    session, made, began = Session(target), list[Generation](), perf_counter()
    for seed, prompt in enumerate(prompts):
        made += outputs(session, [prompt], max_tokens=max_tokens, sampler=Sampler(temperature=1.0), seed=seed)
        if perf_counter() - began > SECONDS:
            break
    target.capturing = True
    return _sequences(made)


def _sequences(made: Sequence[Generation]) -> list[Tokens]:
    """Those of finished generations, but for the shortest, which have nothing to compare."""
    found = [([*generation.prompt, *generation.tokens], len(generation.prompt)) for generation in made]
    return [sequence for sequence in found if len(sequence[0]) > 3]


def _measure(session: Session, prompts: Sequence[str], max_tokens: int) -> Run:
    drafter, sums = session.drafter, np.zeros((DRAFT, 2))

    def tell(depth: int, state: Any) -> None:
        if depth < DRAFT:
            sums[depth] += float(magnitude(np.asarray(state)[None])[0]), 1

    if isinstance(drafter, LlamaEagle3Drafter):
        drafter.probe = lambda depth, logits, state: tell(depth, state)
    elif isinstance(drafter, NativeEagle3Drafter):
        drafter.probe = tell
    elif isinstance(drafter, Eagle3Drafter):
        drafter.probe = lambda row: tell(row.depth, row.state_out[-1])
    try:
        made = list(outputs(session, prompts, max_tokens=max_tokens, draft_max=DRAFT, sampler=GREEDY))
    finally:
        if drafter is not None:
            drafter.close()
    return Run(total([g.statistics for g in made]), [float(s / n) for s, n in sums if n], _sequences(made))


def judge(statistics: Statistics, magnitudes: Sequence[float], config: DrafterConfig) -> list[Finding]:
    """The detectors: findings from acceptance by position and from the state's magnitude by draft depth."""
    shares = statistics.accepted_by_position
    said = f"tau {statistics.tau:.2f}, accepted by position {' '.join(f'{s:.2f}' for s in shares) or 'none'}"
    if not shares or statistics.judged[0] < ENOUGH:
        judged = statistics.judged[0] if statistics.judged else 0
        said += f"; {judged} verify steps are too few to judge by"
        return [Finding("run", NOTE, said, "the outputs ended early; raise --count")]
    return [_first(shares[0], said), _later(shares), _growth(magnitudes, config)]


def _first(share: float, said: str) -> Finding:
    if share >= FIRST_WEAK:
        return Finding("first token", OK, said)
    if share >= FIRST_LOW:
        cause = "a switch is not what it was trained with, or it was trained little, or on other data"
        return Finding("first token", NOTE, f"{said}: few first draft tokens are accepted", cause)
    cause = (
        "the captured layers are wrong (ids of layer outputs taken for boundaries are one too low), states are "
        "misaligned, the feature norm is missing, or the drafter is untrained or for another target"
    )
    return Finding("first token", MISFIT, f"{said}: hardly any first draft token is accepted", cause)


def _later(shares: Sequence[float]) -> Finding:
    given = [b / a for a, b in pairwise(shares) if a > 0]
    said = "later positions, given those before: " + (" ".join(f"{g:.2f}" for g in given) or "none")
    if shares[0] < FIRST_LOW or not given:
        return Finding("later tokens", NOTE, f"{said}; nothing to tell while the first fails")
    if given[0] < COLLAPSE * shares[0]:
        cause = "the wrong state is fed back: --feedback (pre_norm or post_norm) or --residual is not as in training"
        return Finding("later tokens", MISFIT, f"{said}: acceptance collapses after the first position", cause)
    if min(given) < COLLAPSE * shares[0]:
        cause = "it was trained for fewer draft tokens than 4"
        return Finding("later tokens", NOTE, f"{said}: acceptance falls with depth", cause)
    return Finding("later tokens", OK, said)


def _growth(magnitudes: Sequence[float], config: DrafterConfig) -> Finding:
    said = "magnitude of the state by depth: " + " ".join(f"{m:.3g}" for m in magnitudes)
    chained = magnitudes[1:]  # the first has the target's state behind it, of another scale
    if len(chained) < 2 or chained[-1] < GROWTH * chained[0]:
        return Finding("magnitude", OK, said)
    if config.feedback is Feedback.POST_NORM:
        cause = "the norm is not the one it was trained with, or it was trained with pre-norm feedback"
        return Finding("magnitude", MISFIT, f"{said}: it grows although post-norm feedback is set", cause)
    cause = "pre-norm feedback; EAGLE 3.1 (post-norm) is made against this"
    return Finding("magnitude", NOTE, f"{said}: it grows with depth", cause)


def _coverage(info: GgufInfo, sequences: Sequence[Tokens]) -> Finding:
    tokens = [token for sequence, start in sequences for token in sequence[start:]]
    if "d2t" not in info.tensors or not tokens:
        return Finding("coverage", OK, "every token of the target can be drafted")
    inside = float(np.isin(tokens, read_tensor(info, "d2t")).mean())
    said = f"{100 * inside:.1f} % of the tokens the target chose are in the draft vocabulary"
    level = OK if inside >= 0.9 else NOTE
    return Finding("coverage", level, said, "" if level == OK else "the draft vocabulary was counted on other data")


def _unnormed(magnitudes: Sequence[float], config: DrafterConfig) -> bool:
    """Whether a feature norm seems to be missing: true rows are far larger than those post-norm feedback bounds."""
    bounded = config.feedback is Feedback.POST_NORM and config.feature_norm is FeatureNorm.NONE
    return bounded and len(magnitudes) > 1 and magnitudes[0] > JUMP * magnitudes[1]


def _lost_norm() -> Finding:
    said = f"the state of true rows is over {JUMP:g} times that of chained ones"
    cause = "the feature norm (fc_norm, input_norm) was lost: convert it again with --feature-norm per_state or concat"
    return Finding("readings", MISFIT, said, cause)
