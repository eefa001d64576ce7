"""Speculative output against plain output: where they part, and whether the engine's rounding explains it.

Not a timing. llama.cpp sums in another order for another batch shape, so the logits of a token change a little when it
is verified beside others; when two candidates are that close, the tokens may differ although the rule is lossless.
`explain` measures this rounding without any speculation: it runs the plain output twice, token by token and in batches,
and compares the logits of the same positions.

With e the largest change of any logit (the noise):
  greedy   the order of two logits can turn if they are within 2 e
  sampled  a cumulative probability can move by at most e / (2 T), or by what was measured where top-k, top-p or
           min-p turned
Legend: N prompt tokens, V vocabulary, T temperature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, cycle
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from refspec.decoding.cycle import prefill
from refspec.decoding.grammar_target import GrammarTarget
from refspec.decoding.penalized_target import under
from refspec.decoding.target import Target, TreeTarget
from refspec.reference.ops import Array
from refspec.reference.sampling import TARGET, Sampler, coin, p_target

WINDOW = 64  # positions kept on each side of the difference; logits of a large vocabulary are half a megabyte


class Difference(NamedTuple):
    """The first output position at which two runs disagree."""

    position: int
    plain: int  # token of the plain run
    speculative: int  # token of the speculative run
    unit: str  # "logit" or "probability": what gap and limit are measured in
    gap: float  # how far the plain run's numbers are from giving the other token
    noise: float  # largest change of a logit between batch shapes, in this output
    limit: float  # the gap that this noise can close

    @property
    def within_noise(self) -> bool:
        """True when the engine's rounding alone explains the difference."""
        return self.gap <= self.limit


def first_difference(plain: Sequence[int], speculative: Sequence[int]) -> int | None:
    """Index of the first token that differs, None when one output begins with the other."""
    return next((i for i, (a, b) in enumerate(zip(plain, speculative, strict=False)) if a != b), None)


def explain(
    target: Target, prompt: Sequence[int], plain: Sequence[int], speculative: Sequence[int], *, sampler: Sampler,
    seed: int, draft_max: int, trees: bool = False,
) -> Difference | None:  # fmt: skip
    """Measure the first difference of two outputs of the same prompt [N]; None when there is none.

    `draft_max` is the most tokens that were verified beside the pending one, with `trees` as nodes, for a TreeTarget.
    """
    position = first_difference(plain, speculative)
    if position is None:
        return None
    if not isinstance(target, GrammarTarget):  # which is under penalties already
        target = under(target, sampler.penalties, prompt)
    window = range(max(0, position - WINDOW), min(len(plain), position + WINDOW))
    alone = dict(_rows(target, prompt, plain, window, [1]))
    # largest first: other kernels begin at some size, and a short output must not end before they are met
    together = _rows(target, prompt, plain, window, range(max(draft_max, 1) + 1, 1, -1))
    noise = moved = 0.0
    if trees:  # what lies between the cells that a row attends to changes sums that a chain does not
        sizes = sorted({2, max(draft_max // 2, 2), max(draft_max, 2)})
        grown = (_tree_rows(cast(TreeTarget, target), prompt, plain, window, nodes) for nodes in sizes)
        together = chain.from_iterable((*grown, together))
    for i, row in together:
        noise = max(noise, _largest_change(alone[i], row))
        if not sampler.greedy:
            moved = max(moved, _largest_change(_cumulative(alone[i], sampler), _cumulative(row, sampler)))
    a, b = plain[position], speculative[position]
    if sampler.greedy:
        bias = sampler.logit_bias
        row = alone[position]
        gap = abs(float(row[a]) + bias.get(a, 0.0) - float(row[b]) - bias.get(b, 0.0))
        return Difference(position, a, b, "logit", gap, noise, 2 * noise)
    u = coin(seed, position, TARGET)
    cdf = _cumulative(alone[position], sampler)
    gap = max(_distance(u, cdf, a), _distance(u, cdf, b))
    return Difference(position, a, b, "probability", gap, noise, max(moved, noise / (2 * sampler.temperature)))


def _rows(
    target: Target, prompt: Sequence[int], text: Sequence[int], window: range, sizes: Sequence[int]
) -> Iterator[tuple[int, Array]]:
    """(i, logits [V] that decide output token i) for i in window, decoding in batches whose sizes go round `sizes`."""
    for _ in prefill(target, None, prompt):
        pass
    inputs = [prompt[-1], *text[: window.stop - 1]]  # input i decides output i
    start = 0
    for size in cycle(sizes):
        if start >= len(inputs):
            return
        rows = target.decode(inputs[start : start + size], logits="all")
        for i in range(rows):
            if start + i in window:
                yield start + i, target.logits(i).copy()  # the view dies with the next decode
        start += rows


def _tree_rows(
    target: TreeTarget, prompt: Sequence[int], text: Sequence[int], window: range, nodes: int
) -> Iterator[tuple[int, Array]]:
    """As `_rows`, in trees of `nodes` nodes: the text itself, and at every token another one beside it."""
    for _ in prefill(target, None, prompt):
        pass
    inputs = [prompt[-1], *text[: window.stop - 1]]
    start = 0
    while start < len(inputs):
        depth = min(nodes // 2, len(inputs) - start - 1, target.n_ctx - target.n_past - 1)
        tokens, parents, path = [inputs[start]], list[int](), list[int]()
        for token in inputs[start + 1 : start + 1 + depth]:
            above = path[-1] if path else -1
            if len(parents) + 2 <= min(target.max_nodes, target.n_ctx - target.n_past - 1):
                tokens.append((token + 1) % target.n_vocab)  # first, so that it lies between the two
                parents.append(above)
            path.append(len(parents))
            tokens.append(token)
            parents.append(above)
        target.decode_tree(tokens, parents) if path else target.decode(tokens, logits="all")
        for i, row in enumerate([0, *(node + 1 for node in path)]):
            if start + i in window:
                yield start + i, target.logits(row).copy()
        if path:
            target.keep_path(path)
        start += 1 + len(path)


def _cumulative(logits: Array, sampler: Sampler) -> npt.NDArray[np.float64]:
    return np.cumsum(p_target(logits, sampler))


def _largest_change(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    with np.errstate(invalid="ignore"):  # -inf - -inf: a token forbidden in both did not change
        return float(np.nanmax(np.abs(a - b), initial=0.0))


def _distance(u: float, cdf: npt.NDArray[np.float64], token: int) -> float:
    """How far the cumulative probabilities must move for the coin u to draw `token`; 0 when it does already."""
    low = float(cdf[token - 1]) if token else 0.0
    return max(low - u, u - float(cdf[token]), 0.0)
