"""Acceptance of several drafters over the same outputs of the target: what a drafter is worth, whatever the machine.

Not a report and not the decode cycle. With one coin per output position the output does not depend on the drafter, so
the target decides it once, without speculation, and every drafter is led over it: what the cycle would have drafted,
judged and accepted at each of its verify positions follows exactly (up to the engine's rounding between batch shapes).
A chain of k draft tokens is the beginning of every longer one, so several draft lengths share their chains. Of a tree
the path that is the output is accepted, at any temperature: the cycle judges each position by the same one coin
(`verify_tree_deterministic`). Trees drawn for rejection have other outputs. Tau is generated tokens per verify step,
the bonus token included; it is summed over prompts, not averaged over them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from refspec.decoding.drafter import Drafter, SeesFirst, TreeDrafter
from refspec.decoding.tree_cycle import asked_at, continued, cut_after_end
from refspec.errors import UsageError
from refspec.evaluate.conversation import encode, padded
from refspec.evaluate.drift import CHUNK, Output, record, select
from refspec.evaluate.prompts import Prompt, fit
from refspec.reference.eagle3 import Eagle3Drafter
from refspec.reference.metrics import Seconds, Statistics, Step
from refspec.reference.ops import Array
from refspec.reference.sampling import Sampler
from refspec.reference.tree import ROOT, Tree, TreeShape, empty_tree
from refspec.session import Session

FREE = Seconds(0.0, 0.0, 0.0)  # nothing here is timed
Condition = tuple[str, int | None]  # a perturbation, and the length in tokens prompts are padded to
Drafted = int | TreeShape  # per verify step: a chain of so many tokens, or a tree
TURN_SEED = 1_000_003  # later turns get coins of their own


def first_of_each(prompts: Sequence[Prompt], count: int | None) -> list[Prompt]:
    """At most `count` prompts of each family, in order."""
    seen: dict[str, int] = {}
    out = []
    for prompt in prompts:
        seen[prompt.family] = seen.get(prompt.family, 0) + 1
        if count is None or seen[prompt.family] <= count:
            out.append(prompt)
    return out


def fitting(session: Session, prompts: Sequence[Prompt], perturbations: Sequence[str], length: int) -> list[int]:
    """Numbers of the prompts that have at most `length` tokens under every perturbation."""
    return [
        i for i, prompt in enumerate(prompts)
        if all(len(encode(session, [prompt.text], name)) <= length for name in perturbations)
    ]  # fmt: skip


def grower(drafter: Drafter) -> str | None:
    """Which code grows a drafter's trees: llama.cpp or reference; None for one that drafts chains only."""
    if not hasattr(drafter, "draft_tree"):
        return None
    return "reference" if isinstance(drafter, Eagle3Drafter) else "llama.cpp"


def with_twins(lengths: Sequence[int], trees: Sequence[TreeShape]) -> list[int]:
    """Draft lengths, ascending, with that of the chain each tree is compared to: as many tokens as it has nodes."""
    return sorted({*lengths, *(shape.nodes for shape in trees)})


def room_for(session: Session, max_tokens: int, length: int | None) -> int:
    """Tokens a prompt may have beside `max_tokens`; UsageError when none, or one padded to `length`, fits."""
    n_ctx = session.target.n_ctx
    room = n_ctx - max_tokens
    if room < max(2, length or 0):
        what = "a prompt" if length is None else f"--context {length}"
        raise UsageError(f"--max-tokens {max_tokens} leaves no room for {what} in a context of {n_ctx}; raise -c")
    return room


def measure(
    session: Session, drafters: Mapping[str, Drafter], prompts: Sequence[Prompt], number: int, condition: Condition, *,
    layers: Sequence[int], lengths: Sequence[int], max_tokens: int, sampler: Sampler, seed: int,
    turns: int | None = None, trees: Sequence[TreeShape] = (),
) -> list[dict[str, Any]]:  # fmt: skip
    """Counts of every drafter at every draft length, and tree, over the answers to one prompt; one entry a turn.

    The answers before a turn are the target's own. A padded prompt has its first turn only. A conversation that is too
    long keeps its first token and its end. Raises as `room_for` and `conversation.encode`.
    """
    name, length = condition
    room = room_for(session, max_tokens, length)
    prompt = prompts[number]
    said = [prompt.text, *prompt.later][: 1 if length is not None else turns]
    conversation: list[str] = []
    chains = with_twins(lengths, trees)
    shapes = [asked_at(shape, sampler) for shape in trees]
    out = []
    for t, turn in enumerate(said):
        conversation.append(turn)
        if length is None:
            tokens = encode(session, conversation, name)
        else:
            tokens = padded(session, prompts, number, length, name)
        coins = seed + number + TURN_SEED * t
        text = record(session.target, fit(tokens, room), layers, max_tokens=max_tokens, sampler=sampler, seed=coins)
        output = text.tokens[text.n_prompt :].tolist()
        counts = {}
        for drafter, model in drafters.items():
            own = select(text.features, layers, model.capture_layers)
            counts[drafter] = follow(model, text, own, [*chains, *(shapes if grower(model) else ())])
        out.append({
            "prompt_tokens": text.n_prompt, "tokens": len(output),
            "counts": {d: {str(k): _counts(k, s) for k, s in by.items()} for d, by in counts.items()},
        })  # fmt: skip
        words = b"".join(session.target.token_to_bytes(i) for i in output if i not in session.target.end_tokens)
        conversation.append(words.decode("utf-8", "replace"))
    return out


def follow(drafter: Drafter, text: Output, features: Array, drafts: Sequence[Drafted]) -> dict[Drafted, Statistics]:
    """The decode cycle's counts over an output by draft length or tree; features [N-1, n_states*Ht] of its layers."""
    drafter.reset()
    if isinstance(drafter, SeesFirst):
        drafter.begin(int(text.tokens[0]))
    found: dict[Drafted, Statistics] = {k: Statistics() for k in drafts}
    for position, wanted in _visits(text, found):
        n = text.n_prompt - 1 + position  # index of the pending token: rows 0..n-1 are true
        chains, trees = [k for k in wanted if isinstance(k, int)], [k for k in wanted if isinstance(k, TreeShape)]
        left, free = text.max_tokens - position - 1, text.n_ctx - n - 1  # tokens, positions
        room = n > 0 and left > 0 and free > 0
        for start in range(drafter.n_rows, n if room else 0, CHUNK):
            stop = min(start + CHUNK, n)
            drafter.extend(text.tokens[start + 1 : stop + 1], features[start:stop])
        decided = text.tokens[n + 1 :].tolist()
        drafted = drafter.draft(min(max(chains), left, free)).tokens.tolist() if room and chains else []
        ends = [i for i, token in enumerate(drafted) if token in text.end_tokens]
        drafted = drafted[: ends[0] + 1] if ends else drafted  # as the cycle: nothing after an end
        agree = [a == b for a, b in zip(drafted, decided, strict=False)]
        right = agree.index(False) if False in agree else len(agree)
        for k in chains:
            accepted = min(k, right)
            found[k].add(Step(position, drafted[:k], accepted, decided[: accepted + 1], FREE))
        for shape in trees:
            tree = empty_tree()
            if room:
                fits = shape._replace(nodes=min(shape.nodes, free), depth=min(shape.depth, left))
                tree = cut_after_end(cast(TreeDrafter, drafter).draft_tree(fits), text.end_tokens)
            found[shape].add(_tree_step(position, tree, decided))
    return found


def _tree_step(position: int, tree: Tree, decided: list[int]) -> Step:
    """The verify step of a tree before tokens that are decided: the path that is these tokens is accepted."""
    path: list[int] = []
    for token in decided:
        same = [i for i in tree.children(path[-1] if path else ROOT) if tree.tokens[i] == token]
        if not same:
            break
        path.append(same[0])
    drafted = tree.tokens[continued(tree, path)].tolist()
    return Step(position, drafted, len(path), decided[: len(path) + 1], FREE, nodes=len(tree.tokens), depth=tree.height)


def _counts(drafted: Drafted, s: Statistics) -> list[Any]:
    """What a journal keeps of a turn: verify steps, tokens judged and accepted by position, nodes judged of trees."""
    nodes = [sum(size * steps for size, steps in s.tree_sizes.items())]
    return [s.verify_steps, s.judged, s.accepted, *(nodes if isinstance(drafted, TreeShape) else [])]


def _visits(text: Output, found: Mapping[Drafted, Statistics]) -> Iterator[tuple[int, list[Drafted]]]:
    """Output positions at which the cycle of some draft verifies, ascending, and which drafts those are."""
    length = len(text.tokens) - text.n_prompt
    while True:
        position = min((s.generated_tokens for s in found.values()), default=length)
        if position >= length:
            return
        yield position, [k for k, s in found.items() if s.generated_tokens == position]
