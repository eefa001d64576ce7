"""The decode cycle: plan, draft, verify, commit, learn; one Step per run of the target.

Not a sampler and not an engine: `reference/verify.py` holds the lossless rule, targets and drafters hold the models.
Plain decoding is this same loop with zero draft tokens, so both are timed and tested as one thing.

State between two cycles, with n = target.n_past:
  x_0..x_n      decided tokens; x_n is `pending`: decided, not yet run through the target
  target        KV of x_0..x_{n-1}
  drafter       true rows 0..n-1, row P made of token x_{P+1} and the target's feature a_P
The last prompt token starts as pending, so every generated token is decided by a verify step and tau is exactly
generated tokens / verify steps.

Source of the cycle: Leviathan 2023, Alg. 1, and EAGLE-3 (Li 2025) for the rows of the drafter.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from time import perf_counter

import numpy as np

from refspec.adaptive.prompt_prior import SURVEYED
from refspec.decoding.draft_penalties import DraftPenalties, MindsPenalties, draft_penalties
from refspec.decoding.drafter import Drafter, SeesFirst, survey
from refspec.decoding.grammar_target import DraftGrammar, GrammarTarget, MindsGrammar
from refspec.decoding.penalized_target import PenalizedTarget, check_under
from refspec.decoding.plan import DraftPolicy, FixedLength
from refspec.decoding.target import Target
from refspec.decoding.verifier import DraftCoins, verifier_for
from refspec.reference.draft import Draft
from refspec.reference.metrics import Seconds, Step
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import Sampler

CHUNK = 512  # tokens of a prompt that are read at once
NO_DRAFT = Draft(np.zeros(0, np.int32), None, np.zeros(0, np.float32))


def prefill(
    target: Target, drafter: Drafter | None, prompt: Sequence[int], chunk: int = CHUNK, *, held: int = 0,
    expect: Callable[[float], None] | None = None,
) -> Iterator[int]:  # fmt: skip
    """Run all but the last of prompt [N] through the target, and their rows through the drafter; yields rows done.

    Without the first `held`, which both hold already (`kept.py`); what they hold is forgotten if that is 0. `expect` is
    told how sure the drafter is along the last SURVEYED rows, unless there are too few or it cannot tell.
    """
    if not held:
        target.reset()
        if drafter is not None:
            start_drafter(drafter, int(prompt[0]))
    tokens = np.asarray(prompt, dtype=np.int32)  # [N]
    for start in range(held, len(tokens) - 1, chunk):
        stop = min(start + chunk, len(tokens) - 1)
        target.decode(tokens[start:stop], logits="none")
        if drafter is not None:
            # row P wants the NEXT token, x_{P+1}
            wanted, features = tokens[start + 1 : stop + 1], _features(target, drafter, stop - start)
            feed(drafter, wanted, features, expect if stop + 1 == len(tokens) else None)
        yield stop


def start_drafter(drafter: Drafter, first: int) -> None:
    """Begin a sequence with the token `first`; no row of it has run."""
    drafter.reset()
    if isinstance(drafter, SeesFirst):
        drafter.begin(first)


def feed(drafter: Drafter, tokens: Ids, features: Array, expect: Callable[[float], None] | None = None) -> None:
    """Append true rows; `expect` is told how sure the drafter is along the last SURVEYED, unless they are too few."""
    last = min(SURVEYED, len(tokens))
    if expect is None or last < SURVEYED // 2:
        drafter.extend(tokens, features)
        return
    if len(tokens) > last:
        drafter.extend(tokens[:-last], features[:-last])
    expect(survey(drafter, tokens[-last:], features[-last:]))


def speculate(
    target: Target, drafter: Drafter | None, pending: int, *, sampler: Sampler, seed: int, max_tokens: int,
    draft_max: int, draft_sampling: bool = False, policy: DraftPolicy | None = None,
) -> Iterator[Step]:  # fmt: skip
    """Decide up to max_tokens tokens after `pending`, yielding one Step per verify step; the last says why it stopped.

    `policy` chooses the draft length, at most draft_max, from past steps and the drafter's confidence; never from a
    coin. With deterministic drafts the output depends on target, sampler and seed only. BackendError for non-finite
    logits.
    """
    grammar = target if isinstance(target, GrammarTarget) else None
    check_under(target if grammar is None else grammar.inner, sampler)
    penalties, mask = drafting_under(target, drafter), drafting_within(grammar, drafter)
    # At temperature 0 a sampled draft is the argmax and rejection is equality: one rule is enough. Without a drafter
    # nothing is sampled from it, and the output of a seed is the plain one.
    sampled = draft_sampling and drafter is not None and not sampler.greedy
    verify = verifier_for(target, sampler, seed, sampled=sampled).step
    draft_coins = DraftCoins(seed) if sampled else None
    chosen: DraftPolicy = FixedLength() if policy is None else policy
    end_tokens, n_ctx, held = target.end_tokens, target.n_ctx, target.n_past
    position = 0  # index of the next output token
    stop: str | None = None
    learning = 0.0  # seconds of the last step's learning, which count with the next one
    while stop is None and max_tokens > 0:
        began, target_before, drafter_before = perf_counter(), target.seconds, drafter.seconds if drafter else 0.0

        # plan: never past the last token wanted or the last free position, so the output ends where plain decoding ends
        left = max_tokens - position
        room = min(draft_max, left - 1, n_ctx - held - 1) if drafter is not None and drafter.n_rows else 0
        plan = chosen.plan(room)

        # draft: what a grammar makes certain, if that is more than would be guessed
        draft = NO_DRAFT if grammar is None else certain(grammar.jump(pending, min(left - 1, n_ctx - held - 1)))
        jumps = len(draft.tokens) > plan.draft
        if not jumps and drafter is not None and (k := plan.draft) > 0:
            if penalties is not None:
                penalties.begin(pending, held)
            if mask is not None:
                mask.begin(pending)
            coins = None if draft_coins is None else draft_coins(k, position)
            draft = drafter.draft(k, coins=coins, sampler=sampler if sampled else None, stop=plan.stop)
            draft = _cut_after_end(draft, end_tokens)
            if draft.q_draft is None:  # a token drawn by a coin may not be dropped for what came of it
                draft = _first(draft, plan.keep(len(draft.tokens)))
                if grammar is not None:  # lookup knows no grammar
                    draft = _first(draft, grammar.agreeing(pending, draft.tokens))

        # verify: one run of the target; the i-th of its tokens decides output position `position` + i
        accepted, tokens = verify(pending, draft, position)

        # commit: the accepted tokens' rows, which the target has kept, in the drafter from true features
        held += accepted + 1
        if drafter is not None:
            drafter.extend(np.array(tokens, np.int32), _features(target, drafter, accepted + 1))
        pending = tokens[-1]
        tokens, stop = close_output(tokens, accepted, end_tokens, left, n_ctx - held)

        # learn
        in_target = target.seconds - target_before
        in_drafter = drafter.seconds - drafter_before if drafter else 0.0
        ended = perf_counter()
        seconds = Seconds(in_target, in_drafter, ended - began - in_target - in_drafter + learning)
        step = Step(position, draft.tokens.tolist(), accepted, tokens, seconds, stop)
        if not jumps:  # what is certain says nothing of guesses
            chosen.learn(plan, step)
        learning = perf_counter() - ended

        yield step
        position += len(tokens)


def drafting_under(target: Target, drafter: Drafter | None) -> DraftPenalties | None:
    """Have a drafter that minds penalties draft under the target's, or under none; what it then drafts under."""
    if not isinstance(drafter, MindsPenalties):
        return None
    drafter.penalties = None
    inner = target.inner if isinstance(target, GrammarTarget) else target
    if isinstance(inner, PenalizedTarget):
        drafter.penalties = draft_penalties(inner)
    return drafter.penalties


def drafting_within(grammar: GrammarTarget | None, drafter: Drafter | None) -> DraftGrammar | None:
    """Have a drafter that minds a grammar draft within the target's, or within none."""
    if not isinstance(drafter, MindsGrammar):
        return None
    drafter.grammar = None if grammar is None else DraftGrammar(grammar)
    return drafter.grammar


def certain(tokens: Ids) -> Draft:
    """A draft of what a grammar makes certain."""
    return Draft(np.asarray(tokens, np.int32), None, np.ones(len(tokens), np.float32))


def _features(target: Target, drafter: Drafter, n: int) -> Array:
    """States of the first n tokens of the last decode; [n, 0] for a drafter that reads tokens only."""
    return target.features()[:n] if drafter.capture_layers else np.empty((n, 0), np.float32)


def close_output(
    tokens: list[int], accepted: int, end_tokens: Container[int], left: int, room: int
) -> tuple[list[int], str | None]:
    """Tokens of a step that belong to the output, `left` at most, and why it ends, with `room` for more positions."""
    if accepted and tokens[accepted - 1] in end_tokens:
        tokens = tokens[:accepted]  # ended inside the draft: plain decoding never decides the bonus token
    if tokens[-1] in end_tokens:
        return tokens, "end"
    if len(tokens) >= left:
        return tokens, "length"
    return tokens, None if room > 0 else "context"


def _cut_after_end(draft: Draft, end_tokens: Container[int]) -> Draft:
    """Drop what was drafted after an end-of-generation token: it could only cost time."""
    for i, token in enumerate(draft.tokens.tolist()):
        if token in end_tokens:
            return _first(draft, i + 1)
    return draft


def _first(draft: Draft, n: int) -> Draft:
    """The first n tokens of a draft."""
    if n == len(draft.tokens):
        return draft
    return Draft(draft.tokens[:n], None if draft.q_draft is None else draft.q_draft[:n], draft.confidence[:n])
