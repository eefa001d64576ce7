"""A target within a grammar is one more target: every output matches, and the same with and without guesses."""

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_toys import TEMPERS, ToyTarget
from test_penalized import Trees

from refspec.decoding.cycle import drafting_within, prefill, speculate
from refspec.decoding.deferred import DeferredDrafter
from refspec.decoding.grammar_target import DraftGrammar, GrammarTarget, MindsGrammar
from refspec.decoding.grammars import Grammars
from refspec.decoding.lookup import LookupDrafter
from refspec.decoding.penalized_target import under
from refspec.errors import UsageError
from refspec.grammar.automaton import automaton
from refspec.grammar.constraint import Constraint
from refspec.grammar.future import Place, estimate_of, sequence_law, wanted
from refspec.grammar.gbnf import dyck
from refspec.grammar.regex import regex
from refspec.grammar.tokens import ByteTokens, Vocabulary
from refspec.reference.chain import ChainDrafter, NumpyChooser
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler, p_target
from refspec.session import Session

PIECES = [b"a", b"b", b"ab", b"(", b")", b"\xc3", b""]
END = 6
PROMPT = [0, 3, 1]
PATTERNS = ["(ab|b)*a", r"\((a|b){2,4}\)", "a{3}b{0,2}", "(é|a)?b+", "ab|ba|(ab)+b", r"[ab()]{1,6}"]
KINDS = ["local", "onestep", "lookahead:2", "beam:2"]
some = settings(max_examples=60, deadline=None, derandomize=True)


def toy(**options):
    return ToyTarget(pieces=[*PIECES[:5], b"\xc3\xa9", b""], end=(END,), n_ctx=60, **options)


def run(target, drafter, constraint, *, sampler, seed=3, k=3, fidelity="local", jumps=True, sampled=False):
    """The tokens and steps of one output."""
    inner = under(target, sampler.penalties, PROMPT)
    within = GrammarTarget(inner, constraint, len(PROMPT), sampler=sampler, fidelity=fidelity, jumps=jumps)
    list(prefill(within, drafter, PROMPT))
    options = {"sampler": sampler, "seed": seed, "max_tokens": constraint.limit, "draft_max": k}
    steps = list(speculate(within, drafter, PROMPT[-1], draft_sampling=sampled, **options))
    return [t for step in steps for t in step.tokens], steps


def constraint_of(target, pattern, limit=12):
    pieces = [target.token_to_bytes(t) for t in range(target.n_vocab)]
    return Constraint(ByteTokens(automaton(regex(pattern)), Vocabulary(pieces, {END})), [END], limit)


@settings(some, max_examples=150)
@given(
    st.sampled_from(PATTERNS), st.sampled_from(TEMPERS), st.sampled_from([0.0, 0.8]), st.sampled_from(KINDS),
    st.integers(0, 40), st.booleans(), st.sampled_from([Penalties(), Penalties(presence=1.0, frequency=0.5)]),
)  # fmt: skip
def test_every_output_matches_and_is_the_plain_one(pattern, temper, temperature, kind, salt, sampled, penalties):
    sampler = Sampler(temperature=temperature, penalties=penalties)
    outputs = []
    for k, drafter in ((0, None), (1, temper), (4, temper), (3, LookupDrafter)):
        target = toy(salt=salt)
        made = None if drafter is None else drafter() if drafter is LookupDrafter else drafter(target)
        constraint = constraint_of(target, pattern)
        tokens, steps = run(target, made, constraint, sampler=sampler, k=k, fidelity=kind, jumps=k > 0)
        assert steps[-1].stop == "end" and tokens[-1] == END and len(tokens) <= 12
        assert re.fullmatch(pattern, b"".join(target.pieces[t] for t in tokens).decode())
        outputs.append(tokens)
        if made is not None:
            assert len(target.rows) == len(PROMPT) + len(tokens) - 1 or steps[-1].accepted
    assert outputs[0] == outputs[1] == outputs[2] == outputs[3]
    if sampled and temperature:
        target = toy(salt=salt)
        tokens, _ = run(target, temper(target), constraint_of(target, pattern), sampler=sampler, sampled=True)
        assert tokens[-1] == END and re.fullmatch(pattern, b"".join(target.pieces[t] for t in tokens).decode())


@some
@given(
    st.sampled_from(PATTERNS), st.sampled_from([*KINDS, "exact"]), st.sampled_from([0.0, 0.7]), st.integers(0, 30),
    st.lists(st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(0, 3)), max_size=4),
)  # fmt: skip
def test_a_row_is_the_transform_of_the_tokens_up_to_it(pattern, kind, temperature, salt, batches):
    target, sampler = toy(salt=salt), Sampler(temperature=temperature)
    constraint = constraint_of(target, pattern, 6 if kind == "exact" else 9)
    within = GrammarTarget(target, constraint, 3, sampler=sampler, fidelity=kind)
    within.decode(PROMPT[:2], logits="none")
    at = [PROMPT[2]]
    law = Law(target, temperature or 1.0)
    estimate = estimate_of(kind, constraint, law)
    for tokens, back in [([], 0), *batches]:
        start = within.n_past
        within.decode(at + tokens)
        assert target.rows[start:] == at + tokens  # continuations left nothing behind
        np.testing.assert_array_equal(within.features()[:, 1], at + tokens)
        for i in range(len(at + tokens)):
            output = tuple(target.rows[3 : start + i + 1])
            place = Place((), constraint.start, constraint.limit)
            for token in output:
                place = place.after(token, constraint.step(place.state, token, place.left))
            logits = within.logits(i)
            if place.state < 0:
                np.testing.assert_array_equal(logits, target.law(target.rows[: start + i + 1]))
                continue
            row, p = constraint.allowed(place.state, place.left), law(output)
            want = p[row.ids] * estimate(place, row, p)
            got = p_target(logits, Sampler(temperature=temperature or 1.0))
            assert np.isneginf(np.delete(logits, row.ids)).all()
            np.testing.assert_allclose(got[row.ids], want / want.sum(), atol=1e-6)
        within.rollback(max(within.n_past - back, 3))
        at = [2]


class Spelling(ToyTarget):
    """The toy with a tokenizer: the longest piece first; with `blank` as some do, a piece before the first word."""

    blank = False

    def tokenize(self, text, *, add_special=True, parse_special=False):
        data, found = text.encode(), [3] if self.blank else []
        while data:
            best = max((p for p in self.pieces if p and data.startswith(p)), key=len, default=b"(")
            found.append(self.pieces.index(best))
            data = data[len(best) :]
        return found


class Law:
    def __init__(self, target, temperature):
        self.target, self.sampler = target, Sampler(temperature=temperature)

    def __call__(self, prefix, ids=None):
        p = p_target(self.target.law([*PROMPT, *prefix]), self.sampler)
        return p if ids is None else p[ids]

    def key(self, prefix):
        return prefix


@some
@given(st.sampled_from(PATTERNS), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 7)), min_size=1, max_size=6))
def test_a_node_of_a_tree_is_the_row_of_its_path(pattern, nodes):
    inner = Trees(pieces=toy().pieces, end=(END,), n_ctx=60)
    constraint = constraint_of(inner, pattern)
    within = GrammarTarget(inner, constraint, 3, sampler=Sampler())
    within.decode(PROMPT[:2], logits="none")
    parents = [parent % (i + 1) - 1 for i, (_, parent) in enumerate(nodes)]
    rows = within.decode_tree([PROMPT[2], *(token for token, _ in nodes)], parents)
    for i in range(rows):
        chain = toy()
        alone = GrammarTarget(chain, constraint, 3, sampler=Sampler())
        alone.decode(PROMPT[:2], logits="none")
        last = alone.decode([PROMPT[2], *inner.paths[i][1:]]) - 1
        np.testing.assert_array_equal(within.logits(i), alone.logits(last))


def test_what_is_certain_is_one_verify_step():
    target = toy()
    constraint = constraint_of(target, r"\(aaaaaa\)b?")
    drafter = LookupDrafter()
    tokens, steps = run(target, drafter, constraint, sampler=Sampler(), k=2)
    assert steps[0].draft == [3, *[0] * 6, 4] and steps[0].accepted == 8
    assert run(toy(), None, constraint, sampler=Sampler(), jumps=False)[0] == tokens
    assert target.decodes[0] == 9 and len(steps) <= 3


def test_the_distribution_of_a_seeded_run_is_what_is_meant():
    """Over many seeds: the exact mode, drafts sampled or not, against the definition."""
    target, sampler = toy(salt=5, sharpness=1.5), Sampler(temperature=1.0)
    constraint = constraint_of(target, "ab|ba|(ab)+b|aab", 5)
    law = Law(target, 1.0)
    meant, masked = wanted(constraint, law), sequence_law(constraint, law, estimate_of("local", constraint, law))
    for sampled in (False, True):
        counts = {}
        for seed in range(600):
            inner = toy(salt=5, sharpness=1.5)
            tokens, _ = run(
                inner, TEMPERS[1](inner), constraint, sampler=sampler, seed=seed, k=2, fidelity="exact", sampled=sampled
            )
            counts[tuple(tokens)] = counts.get(tuple(tokens), 0) + 1
        assert counts.keys() <= meant.keys()
        chi = sum((counts.get(y, 0) - 600 * p) ** 2 / (600 * p) for y, p in meant.items())
        assert chi < len(meant) + 5 * math.sqrt(2 * len(meant))
        wrong = sum((counts.get(y, 0) - 600 * p) ** 2 / (600 * p) for y, p in masked.items())
        assert wrong > chi + 30  # the masked distribution is another one


class Flat(ChainDrafter):
    """A drafter without preferences, over draft ids 0..3 that are other target ids."""

    capture_layers = ()
    seconds = 0.0

    def __init__(self):
        from refspec.reference import ops

        self.vocab_size, self.width, self.logit_ids = 7, 4, np.array([1, 3, 4, 6])
        self.draft_ids, self.choose, self.n_rows = self.logit_ids, NumpyChooser(ops), 0

    def reset(self):
        self.n_rows = 0

    def extend(self, tokens, features):
        self.n_rows += len(tokens)

    def begin_chain(self, k):
        return k

    def logits(self):
        return np.zeros(4, np.float32)

    def advance(self, token):
        pass


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_drafter_that_minds_a_grammar_drafts_within_it(wrapped):
    target, drafter = toy(), Flat()
    outer = DeferredDrafter(drafter, lambda: False) if wrapped else drafter
    assert isinstance(outer, MindsGrammar)
    within = GrammarTarget(target, constraint_of(target, r"\(b\)b*"), 3, sampler=Sampler())
    mask = drafting_within(within, outer)
    assert isinstance(mask, DraftGrammar) and drafter.grammar is mask
    within.decode(PROMPT[:2], logits="none")
    mask.begin(PROMPT[2])
    assert drafter.draft(6).tokens.tolist() == [3, 1, 4, 1, 1, 1]  # ids of equal logits: the lowest
    sampled = drafter.draft(4, coins=np.full(4, 0.99), sampler=Sampler(temperature=1.0))
    assert sampled.tokens.tolist() == [3, 1, 4, 6] and sampled.q_draft[3].tolist() == [0, 0.5, 0, 0, 0, 0, 0.5]
    other = GrammarTarget(target, constraint_of(target, "ab"), 3, sampler=Sampler())
    drafting_within(other, outer).begin(PROMPT[2])
    assert len(drafter.draft(3).tokens) == 0  # its vocabulary has no a
    assert drafting_within(None, outer) is None and drafter.grammar is None


def test_a_session_keeps_outputs_within_a_grammar():
    session = Session(Spelling(pieces=toy().pieces, end=(END,), n_ctx=60), LookupDrafter())
    for kind in ("local", "onestep", "exact", "beam:4", "lookahead:3"):
        generation = session.generate(tokens=PROMPT, grammar=regex("abab|ab|bb"), fidelity=kind, max_tokens=8)
        assert "".join(event.text for event in generation) in ("abab", "ab", "bb")
        assert generation.statistics.stop == "end"
    for wrong, said in [
        ({"fidelity": "exact"}, "there is none; give a grammar"),
        ({"fidelity": "best", "grammar": regex("a")}, "is none of"),
        ({"fidelity": "exact", "grammar": regex("a*")}, "at most 10000 strings"),
        ({"grammar": regex("a{9}"), "max_tokens": 5}, "the shortest output that matches has 10 tokens"),
        ({"grammar": regex("a{90}"), "max_tokens": 500}, "58 are allowed"),
        ({"grammar": regex("[x-z]+")}, "no tokens for any output"),
        ({"grammar": regex("a|ax"), "fidelity": "exact"}, "spell something else"),
    ]:
        with pytest.raises(UsageError, match=said):
            session.generate(tokens=PROMPT, **wrong)


def test_automata_are_made_once():
    grammars = Grammars(Spelling(pieces=toy().pieces, end=(END,)))
    assert grammars.tokens(regex("(a|b)*")) is grammars.tokens(regex("(a|b)*"))
    assert grammars.tokens(dyck("()", 2)) is not grammars.tokens(dyck("()", 3))
    assert grammars.trie(regex("a|b")).sequences == 2


def test_what_is_exact_is_cut_as_the_model_cuts_it():
    target = Spelling(pieces=[*PIECES[:5], b"\n", b""], end=(END,))
    trie = Grammars(target).trie(regex("abb|aab"))
    assert trie.row(trie.start).ids.tolist() == [0, 2]  # a ab, ab b
    target.blank = True  # ( before the first word, a newline or not
    assert Grammars(target).trie(regex("abb|aab")).row(0).ids.tolist() == [0, 2]
