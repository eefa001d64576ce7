"""The decode cycle: draft -> verify -> commit, one Step per run of the target.

Not a sampler and not an engine: `verify.py` holds the lossless rule, targets and drafters hold the models. Plain
decoding is this same loop with zero draft tokens, so both are timed and tested as one thing.

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

from refspec.adaptive.policy import ChainPolicy
from refspec.adaptive.prompt_prior import SURVEYED
from refspec.decoding.burst import Ahead
from refspec.decoding.draft_penalties import DraftPenalties, MindsPenalties, draft_penalties
from refspec.decoding.drafter import Drafter, Lends, SeesFirst, survey
from refspec.decoding.penalized_target import PenalizedTarget, check_under
from refspec.decoding.target import Judge, Judges, Target
from refspec.native import MatchRule, verify_deterministic, verify_rejection
from refspec.reference.draft import Draft, Stop
from refspec.reference.metrics import Seconds, Step
from refspec.reference.ops import Array, Ids
from refspec.reference.sampling import ACCEPT, DRAFT, RESIDUAL, TARGET, Sampler, coins
from refspec.reference.verify import Rows, Verdict

NO_DRAFT = Draft(np.zeros(0, np.int32), None, np.zeros(0, np.float32))


def prefill(
    target: Target,
    drafter: Drafter | None,
    prompt: Sequence[int],
    chunk: int = 512,
    *,
    expect: Callable[[float], None] | None = None,
) -> Iterator[int]:
    """Run all but the last of prompt [N] through the target, and their rows through the drafter; yields rows done, per
    chunk.

    `expect` is told how sure the drafter is along the last SURVEYED rows (`base.Surveys`), unless there are too few or
    it cannot tell.
    """
    target.reset()
    if drafter is not None:
        start_drafter(drafter, int(prompt[0]))
    tokens = np.asarray(prompt, dtype=np.int32)  # [N]
    for start in range(0, len(tokens) - 1, chunk):
        stop = min(start + chunk, len(tokens) - 1)
        target.decode(tokens[start:stop], logits="none")
        if drafter is not None:
            # row P wants the NEXT token, x_{P+1}
            wanted, features = tokens[start + 1 : stop + 1], _features(target, drafter, stop - start)
            feed(drafter, wanted, features, expect if stop + 1 == len(tokens) else None)
        yield stop


def start_drafter(drafter: Drafter, first: int) -> None:
    """A text that begins with the token `first`, no row of it run."""
    drafter.reset()
    if isinstance(drafter, SeesFirst):
        drafter.begin(first)


def feed(drafter: Drafter, tokens: Ids, features: Array, expect: Callable[[float], None] | None = None) -> None:
    """Append true rows;

    `expect` is told how sure the drafter is along the last SURVEYED of them, unless there are too few.
    """
    last = min(SURVEYED, len(tokens))
    if expect is None or last < SURVEYED // 2:
        drafter.extend(tokens, features)
        return
    if len(tokens) > last:
        drafter.extend(tokens[:-last], features[:-last])
    expect(survey(drafter, tokens[-last:], features[-last:]))


def speculate(
    target: Target,
    drafter: Drafter | None,
    pending: int,
    *,
    sampler: Sampler,
    seed: int,
    max_tokens: int,
    draft_max: int,
    draft_sampling: bool = False,
    policy: ChainPolicy | None = None,
) -> Iterator[Step]:
    """Decide up to max_tokens tokens after `pending`, yielding one Step per verify pass; the last Step says why it
    stopped.

    `policy` chooses how many of draft_max tokens each step drafts, from past steps and the drafter's confidence; never
    from a coin. Without a drafter, or with draft_max 0, every step decides one token. With deterministic drafts the
    text depends on the target, the sampler and the seed only, never on the drafter or draft_max. Where C can
    (`burst.py`) several steps are run before the first of them is yielded: target and drafter are then ahead of what
    was said. Raises BackendError when the target returns logits that are not finite.
    """
    check_under(target, sampler)
    minded = drafting_under(target, drafter)
    # At temperature 0 a sampled draft is the argmax and rejection is equality: one rule is enough.
    # Without a drafter nothing is sampled from it, and the text of a seed is the plain one.
    rejecting = draft_sampling and drafter is not None and not sampler.greedy
    rule = _SampledDrafts(sampler, seed) if rejecting else _OneCoin(sampler, seed)
    judge = target.judge(sampler, seed) if isinstance(target, Judges) and not rejecting else None
    end_tokens = target.end_tokens
    position = 0  # index of the next output token
    stop: str | None = None
    while stop is None and max_tokens > 0:
        # ahead: steps that need not be asked for one by one, as many to a call as nobody notices
        if judge is not None and (
            steps := _several(target, judge, drafter, policy, draft_max, pending, position, max_tokens - position)
        ):
            for i, step in enumerate(steps):
                if i + 1 == len(steps):  # no text ends before
                    tokens, stop = close_text(list(step.tokens), step.accepted, target, max_tokens - position)
                    step = step._replace(tokens=tokens, stop=stop)
                pending = step.tokens[-1]
                yield step
                position += len(step.tokens)
            continue

        began, target_before, drafter_before = perf_counter(), target.seconds, drafter.seconds if drafter else 0.0
        start = target.n_past

        # draft: never past the last token wanted or the last free position, so the text ends where plain decoding ends
        # it
        k = min(draft_max, max_tokens - position - 1, target.n_ctx - start - 1)
        plan = None if policy is None else policy.plan(k if drafter and drafter.n_rows else 0)
        if plan is not None:
            k = plan.draft
        draft = NO_DRAFT
        if drafter is not None and k > 0 and drafter.n_rows:
            if minded is not None:
                minded.begin(pending, start)
            draft = _cut_after_end(rule.draft(drafter, k, position, plan.stop if plan else None), end_tokens)
            # a token drawn by a coin may not be dropped for what came of it
            if plan is not None and draft.q_draft is None:
                draft = _first(draft, plan.keep(len(draft.tokens)))
        drafted = draft.tokens.tolist()

        # verify: one run of the target over the pending token and the draft; row i decides output position + i commit:
        # keep the rows of the pending and the accepted tokens, in the target and, from true features, in the drafter
        if judge is not None:
            accepted, tokens = judge(pending, draft.tokens, position)  # the next four lines in one call
        else:
            rows = target.decode([pending, *drafted], logits="all")
            verdict = rule.verify([target.logits(i) for i in range(rows)], draft, position)
            accepted, tokens = verdict.accepted, verdict.tokens
            target.rollback(start + accepted + 1)
        if drafter is not None:
            drafter.extend(np.asarray(tokens, dtype=np.int32), _features(target, drafter, accepted + 1))
        pending = tokens[-1]

        tokens, stop = close_text(tokens, accepted, target, max_tokens - position)
        in_target = target.seconds - target_before
        in_drafter = drafter.seconds - drafter_before if drafter else 0.0
        seconds = Seconds(in_target, in_drafter, perf_counter() - began - in_target - in_drafter)
        step = Step(position, drafted, accepted, tokens, seconds, stop)
        if policy is not None and plan is not None:
            began = perf_counter()
            policy.learn(plan, step)
            step = step._replace(seconds=seconds._replace(other=seconds.other + perf_counter() - began))
        yield step
        position += len(tokens)


def _several(
    target: Target,
    judge: Judge,
    drafter: Drafter | None,
    policy: ChainPolicy | None,
    draft_max: int,
    pending: int,
    position: int,
    room: int,
) -> list[Step]:
    """The next steps, run in one call, the drafter told;

    none where the cycle has to take the next one itself.
    """
    began, drafting = perf_counter(), drafter is not None and draft_max > 0
    if policy is not None and drafting:
        return []
    lent = drafter.lend() if drafting and isinstance(drafter, Lends) else None
    if drafting and lent is None:
        return []
    ahead = Ahead(room, draft_max if drafting else 0)
    steps = judge.several(pending, ahead, lent, position, room)
    if not steps:
        return steps
    if lent is not None:
        assert isinstance(drafter, Lends)
        drafter.given(sum(len(step.tokens) for step in steps), sum(step.seconds.drafter for step in steps))
    elif drafter is not None:
        drafter.extend(np.array([step.tokens[0] for step in steps], np.int32), _features(target, drafter, len(steps)))
    spent = sum(step.seconds.total for step in steps)
    seconds = steps[-1].seconds  # what this took around the steps is the last one's
    steps[-1] = steps[-1]._replace(seconds=seconds._replace(other=seconds.other + perf_counter() - began - spent))
    return steps


def drafting_under(target: Target, drafter: Drafter | None) -> DraftPenalties | None:
    """Have a drafter that minds penalties draft under the target's, or under none; what it then drafts under."""
    if not isinstance(drafter, MindsPenalties):
        return None
    drafter.penalties = None
    if isinstance(target, PenalizedTarget):
        drafter.penalties = draft_penalties(target.penalties, target.text, target.first, target.n_vocab, target.breaks)
    return drafter.penalties


def _features(target: Target, drafter: Drafter, rows: int) -> Array:
    """States of the first rows of the last decode;

    [rows, 0] for a drafter that reads tokens only, whose target captures none.
    """
    return target.features()[:rows] if drafter.capture_layers else np.empty((rows, 0), np.float32)


def close_text(tokens: list[int], accepted: int, target: Target, room: int) -> tuple[list[int], str | None]:
    """The tokens of a step that belong to the text, of which `room` may still be decided, and why it ends here, if it
    does.
    """
    if accepted and tokens[accepted - 1] in target.end_tokens:
        tokens = tokens[:accepted]  # the text ended inside the draft: plain decoding never decides the bonus token
    if tokens[-1] in target.end_tokens:
        return tokens, "end"
    if len(tokens) >= room:
        return tokens, "length"
    return tokens, "context" if target.n_past >= target.n_ctx else None


class _OneCoin:
    """Deterministic drafts; output position p is decided by its one coin, drafted or not: same seed, same text."""

    def __init__(self, sampler: Sampler, seed: int) -> None:
        self.sampler, self.seed, self.rule = sampler, seed, MatchRule(sampler)

    def draft(self, drafter: Drafter, k: int, position: int, stop: Stop | None) -> Draft:
        return drafter.draft(k, stop=stop) if stop else drafter.draft(k)

    def verify(self, logits: list[Array], draft: Draft, position: int) -> Verdict:
        n = len(logits)
        needed = np.zeros(n) if self.sampler.greedy else coins(self.seed, position, n, TARGET)
        return self.rule(logits, draft.tokens, needed)


class _SampledDrafts:
    """Drafts sampled from q and judged by rejection: more is accepted at high temperature, the law stays the target's.

    Alg. 1 assumes independent uniforms, so no coin may be used twice. A position is judged, and resampled, in one cycle
    only: there the position makes the coin fresh. It may be drafted in several (what follows a rejection is discarded):
    there each cycle has a stream of its own.
    """

    def __init__(self, sampler: Sampler, seed: int) -> None:
        self.sampler, self.seed, self.cycle = sampler, seed, 0

    def draft(self, drafter: Drafter, k: int, position: int, stop: Stop | None) -> Draft:
        self.cycle += 1
        return drafter.draft(
            k, coins=coins(self.seed, position, k, DRAFT + self.cycle), sampler=self.sampler, stop=stop
        )

    def verify(self, logits: Rows, draft: Draft, position: int) -> Verdict:
        k = len(draft.tokens)
        residual = coins(self.seed, position, k + 1, RESIDUAL)
        if draft.q_draft is None:  # nothing was drafted, or by no coin (lookup): the target's own sample decides
            return verify_deterministic(logits, draft.tokens, self.sampler, residual)
        accept = coins(self.seed, position, k, ACCEPT)
        return verify_rejection(logits, draft.tokens, draft.q_draft, self.sampler, accept, residual)


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
