"""Prompt lookup: the rule of its head, against a search that knows no index; rollback; and the fallback's choice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_toys import Noisy, Perfect, ToyTarget

from refspec.decoding.deferred import DeferredDrafter
from refspec.decoding.fallback import FallbackDrafter
from refspec.decoding.lookup import LookupDrafter
from refspec.errors import ShapeError, UsageError
from refspec.llama.open_pair import describe, lookups
from refspec.reference.sampling import Sampler
from refspec.session import Session

NO_FEATURES = np.zeros((99, 0), np.float32)
texts = st.lists(st.integers(0, 3), min_size=0, max_size=40)


def feed(drafter, tokens):
    drafter.extend(np.array(tokens, np.int32), NO_FEATURES[: len(tokens)])


def by_search(text, k, longest, shortest):
    """The same rule without an index: longest suffix, most recent occurrence, reading on into the draft."""
    for n in range(min(longest, len(text)), shortest - 1, -1):
        suffix = text[len(text) - n :]
        for start in range(len(text) - n - 1, -1, -1):
            if text[start : start + n] == suffix:
                out = list(text)
                for i in range(k):
                    out.append(out[start + n + i])
                return n, out[len(text) :]
    return 0, []


@settings(max_examples=300, deadline=None)
@given(texts, st.integers(0, 9), st.integers(1, 5), st.integers(1, 3))
def test_lookup_drafts_what_a_search_of_the_text_finds(text, k, longest, shortest):
    shortest = min(shortest, longest)
    drafter = LookupDrafter(longest, shortest)
    feed(drafter, text)
    draft = drafter.draft(k)
    matched, expected = by_search(text, k, longest, shortest)
    assert (drafter.matched, draft.tokens.tolist()) == (matched, expected)
    assert draft.q_draft is None and np.all(draft.confidence == np.float32(matched / (matched + 1)))


@settings(max_examples=150, deadline=None)
@given(texts, texts, st.data())
def test_rollback_equals_recomputing(text, more, data):
    keep = data.draw(st.integers(0, len(text)))
    drafter, again = LookupDrafter(), LookupDrafter()
    drafter.begin(2)
    again.begin(2)
    feed(drafter, text)
    drafter.rollback(keep)
    feed(drafter, more)
    feed(again, text[:keep] + more)
    assert drafter._after == again._after and drafter.n_rows == again.n_rows == keep + len(more)
    assert drafter.draft(5).tokens.tolist() == again.draft(5).tokens.tolist()


def test_the_index_grows_by_no_more_than_the_longest_match_per_token():
    drafter = LookupDrafter(longest=4)
    feed(drafter, list(range(50)))
    before = len(drafter._after)
    feed(drafter, [99])
    assert len(drafter._after) - before <= 4 and max(map(len, drafter._journal)) <= 4


def test_stop_ends_the_draft_before_the_token_it_refuses():
    drafter = LookupDrafter()
    feed(drafter, [1, 2, 3, 1, 2, 3, 1])
    asked = []
    draft = drafter.draft(6, stop=lambda i, score: asked.append((i, score)) or i == 2)
    assert draft.tokens.tolist() == [2, 3] and [i for i, _ in asked] == [0, 1, 2]
    assert {score for _, score in asked} == {0.8}


def test_what_cannot_be_asked_of_lookup_is_an_error():
    with pytest.raises(UsageError, match="shortest"):
        LookupDrafter(2, 3)
    drafter = LookupDrafter()
    feed(drafter, [1])
    with pytest.raises(ShapeError, match="2 rows"):
        drafter.rollback(2)
    with pytest.raises(ShapeError, match="first token"):
        drafter.begin(1)
    with pytest.raises(UsageError, match="-1"):
        drafter.draft(-1)


samplers = st.sampled_from([Sampler(), Sampler(temperature=0.7), Sampler(temperature=1.5, top_k=3)])


@settings(max_examples=40, deadline=None)
@given(samplers, st.integers(1, 6), st.integers(0, 99), st.sampled_from(["lookup", "fallback"]))
def test_the_text_of_a_seed_is_the_plain_one_with_lookup_alone_and_as_a_fallback(sampler, k, seed, kind):
    target = ToyTarget(n_vocab=4, end=(), n_ctx=200, sharpness=2.0)
    drafter = LookupDrafter() if kind == "lookup" else FallbackDrafter(Noisy(target), sure=0.7)
    session = Session(target, drafter, draft_max=k)
    options = {"tokens": [1, 2, 1, 2, 3], "max_tokens": 60, "sampler": sampler, "seed": seed}
    texts = []
    for speculate in (True, False):
        generation = session.generate(speculate=speculate, **options)
        list(generation)
        texts.append(generation.tokens)
    assert texts[0] == texts[1]


def test_the_fallback_looks_up_exactly_where_the_trained_drafter_is_unsure_and_the_text_repeats():
    target = ToyTarget(n_vocab=4, end=(), n_ctx=200)
    text = [1, 2, 3, 1, 2, 3, 1, 2]

    def made(sure):
        drafter = FallbackDrafter(Perfect(target), sure=sure)
        drafter.begin(0)
        drafter.extend(np.array(text, np.int32), np.array([[i, t] for i, t in enumerate([0, *text[:-1]])], np.float32))
        return drafter

    unsure, sure = made(1.0), made(0.0)
    assert unsure.draft(3).tokens.tolist() == [3, 1, 2] and unsure.from_lookup and unsure.lookups == 1
    assert (
        lookups(unsure) == 1
        and lookups(DeferredDrafter(unsure, lambda: False)) == 1
        and lookups(unsure.trained) == lookups(None) == 0
    )
    own = sure.draft(3).tokens.tolist()
    assert not sure.from_lookup and own == sure.trained.draft(3).tokens.tolist()
    unsure.lookup.reset()  # a text without repetition: the trained draft after all, with its own coins
    assert unsure.draft(3).tokens.tolist() == own and not unsure.from_lookup
    sampler = Sampler(temperature=1.0)
    sampled = unsure.draft(3, coins=np.full(3, 0.4), sampler=sampler)
    assert sampled.q_draft is not None and len(sampled.q_draft) == 3
    assert describe(unsure) == "eagle3 + lookup"
