"""Attention drift, measured: what each row of a speculation chain looks at, and what it hands to the next row.

The rows are those of `reference/eagle3.py` under its probe; `evaluate/drift_report.py` makes means and tables. Source
of the question: Attention Drift (arXiv 2605.09992).

Chain depth j = 1..K is the row that predicts the j-th draft token. The row of depth 1 is the last true row; deeper rows
are chained. Verify positions are those of the decode cycle at draft length K, so the acceptance here is the cycle's
own. Sums and counts are kept per prompt, never means: a mean over chains is then a ratio, and prompts can be resampled.
Legend: K depth, N tokens of prompt and output, S rows held, W window, nh heads.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refspec.decoding.cycle import NO_DRAFT, prefill, speculate
from refspec.decoding.target import Target
from refspec.errors import UsageError
from refspec.reference.draft import Draft, RowRecord, Stop, magnitude
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler

WINDOW = 8  # true rows before the chain that the heat map shows one by one
CHUNK = 256  # true rows run at a time
MASSES = ("sink", "prompt", "verified", "chain")  # of the attention; they sum to 1
# the first: `chain` without the row itself
STATES = ("chain_earlier", "entropy", "added", "magnitude", "growth", "cosine")
JUDGED = ("accepted", "accepted_given_previous")
FIGURES = (*MASSES, *STATES, *JUDGED)  # what is known of each depth
Floats = npt.NDArray[np.float64]


class Output(NamedTuple):
    """The target's output after one prompt, and the states a drafter would have received on the way."""

    tokens: Ids  # [N] prompt, then output
    n_prompt: int
    features: Array  # [N-1, n_states*Ht] of rows 0..N-2, in the order of the recorded layers
    max_tokens: int  # output tokens that were allowed
    n_ctx: int
    end_tokens: Container[int]


@dataclass
class Tally:
    """Sums over the chains of one prompt, and how many values went into each."""

    depth: int
    sums: dict[str, Floats] = field(init=False)  # [K] by figure
    counts: dict[str, Floats] = field(init=False)  # [K] by figure
    heat: Floats = field(init=False)  # [K, 2 + W + K-1] attention mass by `heat_columns`
    heat_counts: Floats = field(init=False)  # [K]
    tokens: int = 0  # output tokens decided
    steps: int = 0  # verify steps that decided them

    def __post_init__(self) -> None:
        self.sums = {name: np.zeros(self.depth) for name in FIGURES}
        self.counts = {name: np.zeros(self.depth) for name in FIGURES}
        self.heat = np.zeros((self.depth, len(heat_columns(self.depth))))
        self.heat_counts = np.zeros(self.depth)

    def add(self, name: str, depth: int, value: float) -> None:
        """One value of a figure at depth 1..K."""
        self.sums[name][depth - 1] += value
        self.counts[name][depth - 1] += 1


class Recorder:
    """A Drafter that drafts nothing and keeps what it is given, so that plain decoding records the states it passes."""

    def __init__(self, capture_layers: Sequence[int]) -> None:
        self.capture_layers = tuple(capture_layers)
        self.seconds = 0.0
        self.reset()

    def reset(self) -> None:
        self.features: list[Array] = []
        self.n_rows = 0

    def extend(self, tokens: Ids, features: Array) -> None:
        self.features.append(np.array(features, np.float32))  # a copy: the target reuses its buffer
        self.n_rows += len(tokens)

    def draft(
        self, k: int, *, coins: Floats | None = None, sampler: Sampler | None = None, stop: Stop | None = None
    ) -> Draft:
        return NO_DRAFT

    def rollback(self, n_rows: int) -> None:
        raise UsageError("a recorder keeps every row; reset it instead")

    def close(self) -> None:
        self.reset()


def record(
    target: Target, prompt: Sequence[int], layers: Sequence[int], *, max_tokens: int, sampler: Sampler, seed: int
) -> Output:
    """Decode up to max_tokens after prompt [n] without speculation, and keep the states of the captured `layers`."""
    recorder = Recorder(layers)
    target.capturing = True  # type: ignore[misc]
    for _ in prefill(target, recorder, prompt):
        pass
    tokens = list(prompt)
    for step in speculate(target, recorder, prompt[-1], sampler=sampler, seed=seed, max_tokens=max_tokens, draft_max=0):
        tokens += step.tokens
    features = np.concatenate(recorder.features)[: len(tokens) - 1]  # [N-1, n_states*Ht]
    ids = np.asarray(tokens, np.int64)
    return Output(ids, len(prompt), features, max_tokens, target.n_ctx, target.end_tokens)


def measure(drafter: Eagle3Drafter, recorded: Output, features: Array, depth: int, every: int | None = None) -> Tally:
    """Draft to `depth` at the cycle's verify positions, or at each `every`-th output position; one prompt's sums.

    features [N-1, n_states*Ht] are those of this drafter's own layers (see `select`).
    """
    tally, output = Tally(depth), recorded.tokens[recorded.n_prompt :].tolist()
    drafter.reset()
    position = 0
    while position < len(output):
        n = recorded.n_prompt - 1 + position  # index of the pending token: rows 0..n-1 are true
        k = min(depth, recorded.max_tokens - position - 1, recorded.n_ctx - n - 1)
        records, drafted = _chain(drafter, recorded, features, n, k) if n and k > 0 else ([], [])
        following = output[position : position + len(drafted)]
        agree = [a == b for a, b in zip(drafted, following, strict=False)]
        accepted = agree.index(False) if False in agree else len(agree)
        for j in range(1, len(drafted) + 1):  # as the cycle counts: a token after a rejection is judged, not accepted
            tally.add("accepted", j, j <= accepted)
            if j <= accepted + 1:
                tally.add("accepted_given_previous", j, j <= accepted)
        add_rows(tally, records[: len(drafted)], n, recorded.n_prompt)
        tally.steps += every is None  # away from the cycle's positions there is no tau
        position += every or accepted + 1
    tally.tokens = 0 if every else len(output)
    return tally


def select(features: Array, recorded: Sequence[int], wanted: Sequence[int]) -> Array:
    """Of features [T, len(recorded)*Ht] those of the `wanted` layers, in their order: [T, len(wanted)*Ht]."""
    if not wanted:  # a drafter that reads tokens only
        return np.empty((len(features), 0), np.float32)
    states = features.reshape(len(features), len(recorded), -1)  # [T, n_states, Ht]
    return states[:, [list(recorded).index(layer) for layer in wanted]].reshape(len(features), -1)


def heat_columns(depth: int) -> list[str]:
    """Names of the heat map's columns: the sink, all earlier true rows as one, the last true rows, the chain's rows."""
    chain = [f"+{i}" for i in range(1, depth)]
    return ["sink", "earlier", *[str(i - WINDOW) for i in range(WINDOW)], *chain]


def _chain(
    drafter: Eagle3Drafter, recorded: Output, features: Array, n: int, k: int
) -> tuple[list[RowRecord], list[int]]:
    """Bring the drafter to true rows 0..n-1 and chain k draft tokens: k row records, tokens up to an end token."""
    records: list[RowRecord] = []
    drafter.rollback(min(drafter.n_rows, n - 1))  # the last true row runs here, under the probe
    for start in range(drafter.n_rows, n - 1, CHUNK):
        stop = min(start + CHUNK, n - 1)
        drafter.extend(recorded.tokens[start + 1 : stop + 1], features[start:stop])
    drafter.probe = records.append
    try:
        drafter.extend(recorded.tokens[n : n + 1], features[n - 1 : n])
        tokens = drafter.draft(k).tokens.tolist()
    finally:
        drafter.probe = None
    ends = [i for i, token in enumerate(tokens) if token in recorded.end_tokens]
    return records, tokens[: ends[0] + 1] if ends else tokens


def add_rows(tally: Tally, records: Sequence[RowRecord], n: int, n_prompt: int) -> None:
    """Add attention and states of one chain; row P holds token P+1, so rows 0..n_prompt-2 are the prompt's."""
    before: Array | None = None
    first = 0.0
    for j, row in enumerate(records, 1):
        heads = row.attention[:, -1].astype(np.float64)  # [nh, S]
        weights = heads.mean(0)  # [S]
        masses = (weights[:1], weights[1 : n_prompt - 1], weights[max(n_prompt - 1, 1) : n], weights[n:])
        for name, part in zip(MASSES, masses, strict=True):
            tally.add(name, j, float(part.sum()))
        tally.add("chain_earlier", j, float(weights[n:-1].sum()))
        tally.add("entropy", j, float(-(heads * np.log(np.where(heads > 0, heads, 1.0))).sum(-1).mean()))
        beside, added = magnitude(np.stack([row.residual[-1], row.added[-1]]).astype(np.float64))
        if beside > 0:
            tally.add("added", j, float(added / beside))
        state = row.state_out[-1].astype(np.float64)  # [H]
        size = float(magnitude(state[None])[0])
        first = size if j == 1 else first
        tally.add("magnitude", j, size)
        if first > 0:
            tally.add("growth", j, size / first)
        if before is not None and size > 0 and np.any(before):
            tally.add("cosine", j, float(state @ before / np.linalg.norm(state) / np.linalg.norm(before)))
        before = state
        _add_heat(tally, j, weights, n)


def _add_heat(tally: Tally, depth: int, weights: Floats, n: int) -> None:
    """Add weights [S] of one row to the columns of `heat_columns`; row 0 stays the sink inside the window, too."""
    line = tally.heat[depth - 1]  # [2 + W + K-1]
    shown = max(n - WINDOW, 1)  # first row that has a column of its own
    line[0] += weights[0]
    line[1] += weights[1:shown].sum()
    line[2 + WINDOW - (n - shown) : 2 + WINDOW] += weights[shown:n]
    line[2 + WINDOW : 2 + WINDOW + len(weights) - n] += weights[n:]
    tally.heat_counts[depth - 1] += 1


def over(
    target: Target, drafters: dict[str, Eagle3Drafter], prompts: Sequence[Sequence[int]], layers: Sequence[int], *,
    depth: int, max_tokens: int, sampler: Sampler, seed: int = 0, every: int | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, list[Tally]]:  # fmt: skip
    """Measure every drafter on the same outputs, one Tally per prompt; `layers` are those the target captures.

    Prompt i is sampled with seed + i. Raises UsageError for a depth or a step below 1, and as the target does.
    """
    if depth < 1 or (every is not None and every < 1):
        raise UsageError(f"drift: depth = {depth} and every = {every} must be at least 1")
    found: dict[str, list[Tally]] = {name: [] for name in drafters}
    for i, prompt in enumerate(prompts):
        recorded = record(target, prompt, layers, max_tokens=max_tokens, sampler=sampler, seed=seed + i)
        for name, drafter in drafters.items():
            own = select(recorded.features, layers, drafter.capture_layers)
            found[name].append(measure(drafter, recorded, own, depth, every))
        progress()
    return found
