"""A prompt that goes on from the run before: what is kept of it, and that the output is that of a fresh session.

The toy's logits and states are functions of all tokens held, and its drafter checks every row it is fed: a position or
row kept wrongly changes the output or fails.
"""

import numpy as np
import pytest
from loop_toys import Noisy, Perfect, ToyTarget
from test_tree_cycle import ToyTreeTarget, with_trees

from refspec.decoding.cycle import CHUNK
from refspec.decoding.deferred import BACKLOG, DeferredDrafter
from refspec.decoding.fallback import FallbackDrafter
from refspec.decoding.kept import Kept
from refspec.decoding.lookup import LookupDrafter
from refspec.errors import BackendError
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler
from refspec.reference.tree import TreeShape
from refspec.session import Session

FIRST, MORE = [1, 2, 3, 4, 5, 0, 2], [3, 1, 0, 5]
SAMPLERS = [
    Sampler(), Sampler(temperature=0.8),
    Sampler(temperature=0.8, penalties=Penalties(presence=0.7, dry_multiplier=0.9, prompt=True)),
]  # fmt: skip
MAKE = {
    "plain": lambda target: None,
    "chain": Noisy,
    "lookup": lambda target: LookupDrafter(),
    "fallback": lambda target: FallbackDrafter(Noisy(target)),
    "deferred": lambda target: DeferredDrafter(Noisy(target), lambda: False),
}


def finished(generation):
    list(generation)
    return generation


def run(session, prompt, **options):
    return finished(session.generate(tokens=prompt, max_tokens=30, **options))


def toy(make, **options):
    target = ToyTarget(n_ctx=400, end=(), **options)
    return Session(target, make(target), draft_max=3)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["greedy", "sampled", "penalized"])
@pytest.mark.parametrize("kind", MAKE)
def test_the_second_turn_is_that_of_a_fresh_session(kind, sampler):
    session = toy(MAKE[kind])
    one = run(session, FIRST, sampler=sampler, seed=3)
    prompt = FIRST + one.tokens + MORE
    two = run(session, prompt, sampler=sampler, seed=4)
    fresh = run(toy(MAKE[kind]), prompt, sampler=sampler, seed=4)
    assert two.tokens == fresh.tokens and fresh.statistics.prompt_kept == 0
    held = len(FIRST) + len(one.tokens) - 1  # the last token of an output is decided and has not run
    assert two.statistics.prompt_kept == (held if kind == "plain" else held - 1)


@pytest.mark.parametrize("draft_sampling", [False, True])
def test_the_second_turn_drafts_what_a_fresh_session_drafts(draft_sampling):
    options = {"sampler": Sampler(temperature=0.8), "draft_sampling": draft_sampling}
    session = toy(Noisy)
    one = run(session, FIRST, seed=3, **options)
    prompt = FIRST + one.tokens + MORE
    two, fresh = (run(s, prompt, seed=4, **options) for s in (session, toy(Noisy)))
    assert two.tokens == fresh.tokens and two.statistics.accepted == fresh.statistics.accepted
    assert two.statistics.prompt_kept > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trees_keep_their_accepted_paths(temperature):
    def made():
        target = ToyTreeTarget(n_ctx=400, end=())
        return Session(target, with_trees(Noisy)(target), draft_max=8, tree=TreeShape(8, 3, 4))

    sampler, session = Sampler(temperature=temperature), made()
    one = run(session, FIRST, sampler=sampler)
    prompt = FIRST + one.tokens + MORE
    two = run(session, prompt, sampler=sampler)
    assert two.statistics.prompt_kept == len(FIRST) + len(one.tokens) - 2
    assert two.tokens == run(made(), prompt, sampler=sampler).tokens


@pytest.mark.parametrize("at", range(1, len(FIRST) + 12))
def test_a_prompt_that_turns_off_anywhere_keeps_what_came_before(at):
    session = toy(Noisy)
    one = run(session, FIRST)
    text = FIRST + one.tokens
    prompt = [*text[:at], (text[at] + 1) % 7, *MORE]
    two = run(session, prompt)
    assert two.tokens == run(toy(Noisy), prompt).tokens
    assert two.statistics.prompt_kept <= at


@pytest.mark.parametrize("make", [Noisy, lambda target: None])
def test_the_same_prompt_again_and_its_beginning(make):
    session = toy(make)
    once = run(session, FIRST)
    again = run(session, FIRST)
    assert again.tokens == once.tokens and again.statistics.prompt_kept == len(FIRST) - (2 if session.drafter else 1)
    for n in (1, 2, 3):
        assert run(session, FIRST[:n]).tokens == run(toy(make), FIRST[:n]).tokens


def test_a_drafter_that_was_not_asked_has_no_rows_to_keep():
    session = toy(Noisy)
    one = run(session, FIRST, speculate=False)
    two = run(session, FIRST + one.tokens + MORE)
    assert two.statistics.prompt_kept == 0 and two.tokens == run(toy(Noisy), FIRST + one.tokens + MORE).tokens


def test_fresh_reads_everything_and_the_next_keeps_again():
    session = toy(Noisy)
    run(session, FIRST)
    assert run(session, FIRST, fresh=True).statistics.prompt_kept == 0
    assert run(session, FIRST).statistics.prompt_kept == len(FIRST) - 2


def test_what_others_ran_on_the_target_between_two_turns_is_not_kept():
    session = toy(Noisy)
    one = run(session, FIRST)
    session.target.reset()
    session.target.decode([5, 5, 5, 5])
    prompt = FIRST + one.tokens + MORE
    assert run(session, prompt).tokens == run(toy(Noisy), prompt).tokens


def test_an_interrupted_prompt_is_kept_as_far_as_it_was_read():
    prompt = [i % 6 for i in range(CHUNK + 100)]
    target = ToyTarget(n_ctx=1000, end=())
    session = Session(target, Noisy(target), draft_max=3)
    decode = target.decode

    def decode_once(tokens, *, logits="all"):
        stopped.stop()
        return decode(tokens, logits=logits)

    stopped = session.generate(tokens=prompt)
    target.decode = decode_once
    assert list(stopped) == []
    target.decode = decode
    assert session.generate(tokens=prompt).prompt == prompt
    two = finished(session.generate(tokens=prompt, max_tokens=5))
    assert two.statistics.prompt_kept == CHUNK - 1


def test_after_a_failure_everything_is_read_again():
    session = toy(Perfect)
    one = session.generate(tokens=FIRST, max_tokens=30)
    next(one)
    extend = session.drafter.extend

    def fail(tokens, features):
        raise BackendError("the drafter is out of order")

    session.drafter.extend = fail
    with pytest.raises(BackendError, match="out of order"):
        next(one)
    session.drafter.extend = extend
    two = run(session, FIRST + one.tokens + MORE)
    assert two.statistics.prompt_kept == 0
    assert two.tokens == run(toy(Perfect), FIRST + one.tokens + MORE).tokens


def test_a_state_that_cannot_go_back_is_made_again():
    def refuse(n):
        if n < session.target.n_past:
            raise BackendError("a recurrent state")

    session = toy(lambda target: None)
    session.target.rollback = refuse
    one = run(session, FIRST)
    two = run(session, FIRST + one.tokens + MORE)
    assert two.statistics.prompt_kept == len(FIRST) + len(one.tokens) - 1, "nothing is taken back"
    three = run(session, FIRST + MORE)
    assert three.statistics.prompt_kept == 0
    assert three.tokens == run(toy(lambda target: None), FIRST + MORE).tokens


def test_a_drafter_that_missed_rows_goes_on_with_a_gap_and_the_target_keeps_its_own():
    target = ToyTarget(n_ctx=2000, end=())
    drafter = DeferredDrafter(LookupDrafter(), lambda: True)
    kept, prompt = Kept(), [i % 6 for i in range(BACKLOG + 400)]
    assert kept.take(target, drafter, prompt) == 0
    target.decode(prompt[:-1], logits="none")
    drafter.extend(np.array(prompt[1:]), np.zeros((len(prompt) - 1, 0), np.float32))
    assert drafter.n_rows == BACKLOG < target.n_past
    assert kept.take(target, drafter, [*prompt, 1, 2, 3]) == len(prompt) - 2
    assert (target.n_past, drafter.n_rows) == (len(prompt) - 2, 0)


@pytest.mark.parametrize(("first", "kept"), [(CHUNK, 0), (CHUNK + 1, CHUNK), (2 * CHUNK, CHUNK)])
def test_where_every_bit_counts_only_whole_chunks_of_prompts_are_kept(first, kept):
    target = ToyTarget(n_ctx=3000, end=())
    session = Session(target, Noisy(target), draft_max=3, batch_invariant=True)
    prompt = [i % 6 for i in range(first)]
    one = finished(session.generate(tokens=prompt, max_tokens=600))
    chunks, decode = [], target.decode

    def watched(tokens, *, logits="all"):
        chunks.extend([len(tokens)] if logits == "none" else [])
        return decode(tokens, logits=logits)

    target.decode = watched
    two = finished(session.generate(tokens=prompt + one.tokens + MORE, max_tokens=5))
    assert two.statistics.prompt_kept == kept
    assert set(chunks[:-1]) <= {CHUNK} and sum(chunks) == len(prompt) + len(one.tokens) + len(MORE) - 1 - kept


def test_rows_that_wait_are_taken_back_without_being_run():
    inner = LookupDrafter()
    drafter = DeferredDrafter(inner, lambda: True)
    drafter.extend(np.arange(10), np.zeros((10, 0), np.float32))
    drafter.rollback(4)
    assert (drafter.n_rows, inner.n_rows) == (4, 0)
    drafter.draft(1)
    assert inner.n_rows == 4
    drafter.extend(np.arange(3), np.zeros((3, 0), np.float32))
    drafter.rollback(2)
    assert (drafter.n_rows, inner.n_rows) == (2, 2)
