"""The decode cycle with draft trees: plan, grow, verify all nodes in one run of the target, keep the accepted path.

The cycle of `cycle.py`, with its state between cycles, its Steps and its coins; only what is drafted and how it is
verified differs. Same seed, same output as plain decoding, whatever the tree (`verify_tree_deterministic`); with
`draft_sampling` the same distribution (`verify_tree_rejection`).

Legend: N nodes, h height of a tree, m largest number of siblings.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from time import perf_counter

import numpy as np

from refspec.decoding.cycle import close_output
from refspec.decoding.drafter import TreeDrafter
from refspec.decoding.grammar_target import GrammarTarget
from refspec.decoding.penalized_target import check_under
from refspec.decoding.plan import DraftTreePolicy, FixedTree
from refspec.decoding.target import TreeTarget
from refspec.errors import UsageError
from refspec.native import verify_tree_deterministic, verify_tree_rejection
from refspec.reference.metrics import Seconds, Step
from refspec.reference.sampling import ACCEPT, DRAFT, RESIDUAL, TARGET, Sampler, coins
from refspec.reference.tree import ROOT, Tree, TreeShape, empty_tree
from refspec.reference.tree_grow import More
from refspec.reference.tree_verify import TreeVerdict
from refspec.reference.verify import Rows

# The temperature at which a drafter is asked how far the target gets is the target's, but not below this: at 0 every
# tree would be a chain. Seen on the embedded pair at temperature 0, 16 nodes: a fifth to a third more tokens per verify
# step than when asked at 1, with little difference between 0.33 and 0.5.
COLDEST = 0.4
# stream of the accept coin of sibling j is SIBLING + j, and ACCEPT for the first: above every DRAFT + cycle
SIBLING = 1 << 32


def speculate_tree(
    target: TreeTarget, drafter: TreeDrafter, pending: int, *, sampler: Sampler, seed: int, max_tokens: int,
    shape: TreeShape, draft_sampling: bool = False, policy: DraftTreePolicy | None = None,
) -> Iterator[Step]:  # fmt: skip
    """Decide up to max_tokens tokens after `pending`, yielding one Step per verify step; the last says why it stopped.

    `policy` chooses how many of shape.nodes are verified; never from a coin. Step.draft is the output's path through
    the tree and, where it stopped inside, the first children from there on. Raises BackendError for logits that are not
    finite, UsageError for a policy over sampled trees, of which no node may be dropped for what it is.
    """
    if policy is not None and draft_sampling:
        raise UsageError("nodes are chosen for deterministic trees only; leave --adaptive or --draft-sampling out")
    grammar = target if isinstance(target, GrammarTarget) else None
    check_under(target if grammar is None else grammar.inner, sampler)
    rule = _SampledTrees(sampler, seed) if draft_sampling and not sampler.greedy else _OneCoin(sampler, seed)
    chosen: DraftTreePolicy = FixedTree() if policy is None else policy
    end_tokens, n_ctx, held = target.end_tokens, target.n_ctx, target.n_past
    position = 0  # index of the next output token
    stop: str | None = None
    learning = 0.0  # seconds of the last step's learning, which count with the next one
    while stop is None and max_tokens > 0:
        began, target_before, drafter_before = perf_counter(), target.seconds, drafter.seconds

        # plan: never past the last token wanted, nor more nodes than there are free positions
        left = max_tokens - position
        depth, nodes = min(shape.depth, left - 1), min(shape.nodes, target.max_nodes, n_ctx - held - 1)
        plan = chosen.plan(nodes if depth > 0 and nodes > 0 and drafter.n_rows > 0 else 0)

        # draft
        tree = empty_tree()
        if plan.nodes > 0:
            wanted = TreeShape(plan.nodes, shape.top_k, depth, floor=max(shape.floor, plan.floor))
            tree = cut_after_end(rule.draft(drafter, wanted, position, plan.more), end_tokens)
        tree = plan.keep(tree)
        if grammar is not None and tree.distributions is None:  # a node that was drawn may not be dropped
            tree = grammar.pruned(pending, tree)

        # verify: one run of the target over the pending token and all nodes
        path, tokens = _verified(target, rule, pending, tree, position)
        accepted = len(path)
        drafted = tree.tokens[continued(tree, path)].tolist()

        # commit: the accepted path's rows, which the target has kept, in the drafter from true features
        held += accepted + 1
        drafter.extend(np.array(tokens, np.int32), target.features()[[0, *(node + 1 for node in path)]])
        pending = tokens[-1]
        tokens, stop = close_output(tokens, accepted, end_tokens, left, n_ctx - held)

        # learn
        in_target, in_drafter = target.seconds - target_before, drafter.seconds - drafter_before
        ended = perf_counter()
        seconds = Seconds(in_target, in_drafter, ended - began - in_target - in_drafter + learning)
        step = Step(position, drafted, accepted, tokens, seconds, stop, nodes=len(tree.tokens), depth=tree.height)
        chosen.learn(plan, step, path)
        learning = perf_counter() - ended

        yield step
        position += len(tokens)


def _verified(
    target: TreeTarget, rule: _OneCoin | _SampledTrees, pending: int, tree: Tree, position: int
) -> TreeVerdict:
    """Run the pending token and the tree, decide, and keep the accepted path."""
    if len(tree.tokens):
        rows = target.decode_tree([pending, *tree.tokens.tolist()], tree.parents)
    else:  # a step of plain decoding, which costs no more than that
        rows = target.decode([pending], logits="all")
    verdict = rule.verify([target.logits(i) for i in range(rows)], tree, position)
    if len(tree.tokens):
        target.keep_path(verdict.path)
    return verdict


class _OneCoin:
    """Deterministic trees; output position p is decided by its one coin, drafted or not: same seed, same output."""

    def __init__(self, sampler: Sampler, seed: int) -> None:
        self.sampler, self.seed = sampler, seed

    def draft(self, drafter: TreeDrafter, shape: TreeShape, position: int, more: More | None) -> Tree:
        return drafter.draft_tree(asked_at(shape, self.sampler), more=more)

    def verify(self, logits: Rows, tree: Tree, position: int) -> TreeVerdict:
        n = tree.height + 1
        needed = np.zeros(n) if self.sampler.greedy else coins(self.seed, position, n, TARGET)
        return verify_tree_deterministic(logits, tree, self.sampler, needed)


class _SampledTrees:
    """Trees drawn without replacement and verified by recursive rejection; no coin is used twice."""

    def __init__(self, sampler: Sampler, seed: int) -> None:
        self.sampler, self.seed, self.cycle = sampler, seed, 0

    def draft(self, drafter: TreeDrafter, shape: TreeShape, position: int, more: More | None) -> Tree:
        self.cycle += 1
        # the stream is this cycle's alone: any numbers will do
        drawn = coins(self.seed, position, shape.nodes, DRAFT + self.cycle)
        return drafter.draft_tree(shape, coins=drawn, sampler=self.sampler)

    def verify(self, logits: Rows, tree: Tree, position: int) -> TreeVerdict:
        h, m = tree.height, tree.width
        residual = coins(self.seed, position, h + 1, RESIDUAL)
        accept = np.empty((h, m))
        for j in range(m):
            accept[:, j] = coins(self.seed, position, h, SIBLING + j if j else ACCEPT)
        return verify_tree_rejection(logits, tree, self.sampler, accept, residual)


def asked_at(shape: TreeShape, sampler: Sampler) -> TreeShape:
    """The shape with the temperature at which a drafter is asked for a deterministic tree: see COLDEST."""
    return shape._replace(temperature=max(sampler.temperature, COLDEST))


def cut_after_end(tree: Tree, end_tokens: Container[int]) -> Tree:
    """Drop what follows an end-of-generation token: it could only cost time."""
    kept: list[int] = []
    alive = {ROOT}
    for node, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
        if parent in alive:
            kept.append(node)
            if token not in end_tokens:
                alive.add(node)
    return tree if len(kept) == len(tree.tokens) else tree.keep(kept)


def continued(tree: Tree, path: list[int]) -> list[int]:
    """The accepted path and then the first child of each node to a leaf: what a chain would have called its draft."""
    nodes = list(path)
    following = tree.children(nodes[-1] if nodes else ROOT)
    while following:
        nodes.append(following[0])
        following = tree.children(nodes[-1])
    return nodes
