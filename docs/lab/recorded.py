"""Real drafts, recorded once: what a pair's drafter proposes at every position of plain decoding's own outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple, cast

import numpy as np

from refspec.decoding.cycle import NO_DRAFT, drafting_under, feed, start_drafter
from refspec.decoding.drafter import TreeDrafter
from refspec.decoding.penalized_target import under
from refspec.decoding.tree_cycle import asked_at, cut_after_end
from refspec.evaluate import drift
from refspec.evaluate.acceptance import room_for
from refspec.evaluate.prompts import Prompt, fit
from refspec.reference.sampling import Sampler
from refspec.reference.tree import NODES_LIMIT, Tree, TreeShape, empty_tree
from refspec.session import Session

CHUNK = 512  # tokens of a prompt given at once, as the cycle does


class Recorded(NamedTuple):
    """An output of plain decoding, and what the drafter would have drafted at each position of it."""

    family: str
    held: int  # positions of the prompt that were run
    mean_log_probability: float  # of the drafter along its end, nan where it cannot tell
    tokens: list[int]
    confidences: list[list[float]]  # by position, of up to `most` tokens
    right: list[int]  # by position, how many of them the output goes on with
    trees: Sequence[Tree] = ()  # by position but the last, where trees were asked for


def record(
    session: Session,
    prompts: Sequence[Prompt],
    most: int,
    *,
    max_tokens: int,
    sampler: Sampler,
    progress: Callable[[], None] = lambda: None,
) -> list[Recorded]:
    """Decode every prompt plainly, and ask the drafter for `most` tokens at every position, and for a tree where the
    session drafts trees.

    A prompt too long for the context loses its beginning.
    """
    target, drafter = session.target, session.drafter
    assert drafter is not None
    longest, found = room_for(session, max_tokens, None), []
    for prompt in prompts:
        tokens = fit(session.encode(prompt.text), longest)
        penalized = under(target, sampler.penalties, tokens)
        decoded = drift.record(
            penalized, tokens, drafter.capture_layers, max_tokens=max_tokens, sampler=sampler, seed=0
        )
        text, n, told = decoded.tokens.astype(np.int32), decoded.n_prompt, [math.nan]
        start_drafter(drafter, tokens[0])
        minded = drafting_under(penalized, drafter)
        for start in range(0, n - 1, CHUNK):
            stop = min(start + CHUNK, n - 1)
            tell = told.append if stop + 1 == n else None
            feed(drafter, text[start + 1 : stop + 1], decoded.features[start:stop], tell)
        confidences: list[list[float]] = []
        right: list[int] = []
        trees: list[Tree] = []
        for at in range(n - 1, len(text) - 1):
            if minded is not None:
                minded.begin(int(text[at]), at)
            draft = drafter.draft(min(most, len(text) - 1 - at)) if drafter.n_rows else NO_DRAFT
            agree = [a == b for a, b in zip(draft.tokens.tolist(), text[at + 1 :].tolist(), strict=False)]
            right.append(agree.index(False) if False in agree else len(agree))
            confidences.append([float(c) for c in draft.confidence])
            if session.tree is not None and at + 2 < len(text):
                room = len(text) - 2 - at
                trees.append(tree_of(cast(TreeDrafter, drafter), session.tree, room, sampler, target.end_tokens))
            drafter.extend(text[at + 1 : at + 2], decoded.features[at : at + 1])
        found.append(Recorded(prompt.family, n - 1, told[-1], text[n:].tolist(), confidences, right, trees))
        progress()
    return found


def tree_of(drafter: TreeDrafter, shape: TreeShape, room: int, sampler: Sampler, ends: Container[int]) -> Tree:
    """The tree that the decode cycle would have grown, and what a smaller or a lower one would have held besides."""
    if not drafter.n_rows:
        return empty_tree()
    wanted = asked_at(shape._replace(nodes=NODES_LIMIT, depth=min(shape.depth, room)), sampler)
    return cut_after_end(drafter.draft_tree(wanted), ends)
