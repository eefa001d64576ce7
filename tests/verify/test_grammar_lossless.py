"""Faithful outputs by exact enumeration: rows p Phi, through the rules of verification as they are, sample the model
given that its output is valid; every path of the rules, no statistics.
"""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tree_backends import NUMPY as NUMPY_TREES
from tree_steps import fixed_trees, match_tree_step
from verify_backends import NUMPY, Backend
from verify_enumeration import Tokens, continued, sequence_law, total_variation
from verify_steps import LOSSLESS, match_step, rejection_step
from verify_toys import ToyModel, drafters, models

from refspec.errors import BackendError, UsageError
from refspec.grammar.automaton import automaton
from refspec.grammar.constraint import Constraint
from refspec.grammar.future import (
    Beam,
    Lookahead,
    Place,
    Rollouts,
    estimate_of,
    fidelity,
    local,
    transformed,
    variation,
    variation_at_most,
    wanted,
)
from refspec.grammar.future import sequence_law as grammar_law
from refspec.grammar.gbnf import dyck
from refspec.grammar.regex import regex
from refspec.grammar.tokens import ByteTokens, Vocabulary
from refspec.reference.sampling import Sampler, p_target

few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
END = 3
VOCABULARY = Vocabulary([b"(", b")", b"()", b""], {END})
LANGUAGES = [dyck("()", 2), dyck("()", 1), regex(r"(\(\)){0,2}|\(\(\)\)"), regex(r"[()]{2}")]
ROUNDED = 1e-6  # float32 logits


class ToyLaw:
    """A toy model as a Law at a temperature."""

    def __init__(self, model: ToyModel, temperature: float = 1.0) -> None:
        self.model, self.sampler = model, Sampler(temperature=temperature)

    def __call__(self, prefix: Tokens, ids: np.ndarray | None = None) -> np.ndarray:
        p = p_target(self.model.logits(prefix), self.sampler)
        return p if ids is None else p[ids]

    def key(self, prefix: Tokens) -> Tokens:
        return prefix


class Faithful:
    """A toy model as decoding sees it: its logits under the transform; after an end the end again, for ever."""

    def __init__(self, model: ToyModel, constraint: Constraint, name: str, temperature: float, dtype: type) -> None:
        self.vocab, self.temperature, self.dtype = model.vocab, temperature, dtype
        self.constraint, self.law = constraint, ToyLaw(model, temperature)
        self.estimate = estimate_of(name, constraint, self.law)

    def logits(self, history: Tokens) -> np.ndarray:
        place = Place((), self.constraint.start, self.constraint.limit)
        for token in history:
            place = place.after(token, self.constraint.step(place.state, token, place.left))
        if place.state < 0:
            row = np.full(self.vocab, -np.inf, self.dtype)
            row[END] = 0
            return row
        row = self.constraint.allowed(place.state, place.left)
        phi = self.estimate(place, row, self.law(history))
        return transformed(self.law.model.logits(history).astype(self.dtype), row, phi, self.temperature)


@st.composite
def cases(draw):
    model = draw(models(4))
    assume(not model.masked)
    tokens = ByteTokens(automaton(draw(st.sampled_from(LANGUAGES))), VOCABULARY)
    temperature = draw(st.sampled_from([1.0, 0.7, 1.6]))
    try:
        return model, Constraint(tokens, VOCABULARY.ends, draw(st.integers(2, 4))), temperature
    except UsageError:
        assume(False)


def padded(law, length: int):
    return {(*output, *[END] * (length - len(output))): p for output, p in law.items()}


def meant(model, constraint, temperature):
    return padded(wanted(constraint, ToyLaw(model, temperature)), constraint.limit)


@few
@given(cases())
def test_exact_rows_are_the_model_given_a_valid_output(case):
    model, constraint, temperature = case
    law = ToyLaw(model, temperature)
    exact = wanted(constraint, law)
    assert abs(sum(exact.values()) - 1) <= LOSSLESS
    assert variation(grammar_law(constraint, law, Lookahead(constraint, law)), exact) <= LOSSLESS
    everything = Beam(constraint, law, 100)
    assert variation(grammar_law(constraint, law, everything), exact) <= LOSSLESS
    assert variation(grammar_law(constraint, law, Lookahead(constraint, law, constraint.limit)), exact) <= LOSSLESS
    place, end = Place((), constraint.start, constraint.limit), Lookahead(constraint, law)
    total = sum(math.prod(law(y[:i])[v] for i, v in enumerate(y)) for y in exact)
    assert end.phi(place, None) == pytest.approx(total, rel=1e-12)
    for k in (1, 2):  # a beam knows at least and at most
        phi, least, most = Beam(constraint, law, k).phi(place)
        assert least * (1 - 1e-12) <= min(total, phi) and max(total, phi) <= most * (1 + 1e-12)


@few
@given(cases(), st.data())
def test_speculation_samples_the_wanted_distribution(case, data):
    model, constraint, temperature = case
    target, sampler = Faithful(model, constraint, "exact", temperature, np.float64), Sampler(temperature=temperature)
    exact, n = meant(*case), constraint.limit
    plain = continued(lambda y: match_step(NUMPY.verify_deterministic, target, (), sampler, y), n)
    assert total_variation(plain, exact) <= LOSSLESS
    draft = tuple(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)))
    guessed = continued(lambda y: match_step(NUMPY.verify_deterministic, target, draft, sampler, y), n)
    assert total_variation(guessed, exact) <= LOSSLESS
    tree = data.draw(fixed_trees(4, 4))
    grown = continued(lambda y: match_tree_step(NUMPY_TREES.deterministic, target, tree, sampler, y), n)
    assert total_variation(grown, exact) <= LOSSLESS


@settings(few, max_examples=8)
@given(cases(), drafters(4), st.integers(1, 2))
def test_sampled_drafts_sample_the_wanted_distribution(case, drafter, k):
    model, constraint, temperature = case
    target, sampler = Faithful(model, constraint, "exact", temperature, np.float64), Sampler(temperature=temperature)
    law = continued(lambda y: rejection_step(NUMPY.verify_rejection, target, drafter, k, sampler, y), constraint.limit)
    assert total_variation(law, meant(*case)) <= LOSSLESS


@settings(few, max_examples=8)
@given(case=cases(), name=st.sampled_from(["local", "onestep", "lookahead:2", "beam:1", "exact"]), data=st.data())
def test_c_keeps_the_distribution_of_the_rows_it_is_given(backend: Backend, case, name, data):
    model, constraint, temperature = case
    target, sampler = Faithful(model, constraint, name, temperature, np.float32), Sampler(temperature=temperature)
    n, draft = constraint.limit, tuple(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=2)))
    rows = sequence_law(lambda y: p_target(target.logits(y), sampler), n, 4)
    law = continued(lambda y: match_step(backend.verify_deterministic, target, draft, sampler, y), n)
    assert total_variation(law, rows) <= LOSSLESS
    estimate = padded(grammar_law(constraint, target.law, target.estimate), n)
    assert total_variation(law, estimate) <= ROUNDED
    if name == "exact":
        assert total_variation(law, meant(*case)) <= ROUNDED


def test_masking_is_not_what_is_meant():
    """The paper's point in one case: a walk into brackets that the limit hardly lets it close."""
    model = ToyModel(4, 3, 3.0, False, False)
    constraint = Constraint(ByteTokens(automaton(dyck("()", 2)), VOCABULARY), [END], 6)
    law = ToyLaw(model)
    exact = wanted(constraint, law)
    assert variation(grammar_law(constraint, law, local), exact) > 0.05
    assert variation(grammar_law(constraint, law, Lookahead(constraint, law)), exact) <= LOSSLESS


@few
@given(cases())
def test_the_bound_holds(case):
    model, constraint, temperature = case
    law = ToyLaw(model, temperature)
    beam, exact = Beam(constraint, law, 2), Lookahead(constraint, law)
    got = grammar_law(constraint, law, beam)
    grammar_law(constraint, law, exact)
    error = 0.0
    for place, (phi, _, _) in beam.known.items():
        error = max(error, abs(math.log(phi / exact.phi(place, None))))
    assert variation(got, wanted(constraint, law)) <= variation_at_most(error, constraint.limit) + 1e-12


@settings(few, max_examples=6)
@given(cases())
def test_the_mean_weight_of_rollouts_is_phi(case):
    """Every coin once, on a grid so fine that the sum over it is nearly the mean."""
    model, constraint, temperature = case
    law, proposal = ToyLaw(model, temperature), ToyLaw(ToyModel(4, 9, 1.0, False, False))
    place, total = Place((), constraint.start, constraint.limit), 0.0
    rng = np.random.default_rng(0)
    outputs = Rollouts(constraint, law, proposal, 1, lambda prefix, n: rng.random(n))
    weights = [outputs.weight(place) for _ in range(3000)]
    total = Lookahead(constraint, law).phi(place, None)
    assert abs(np.mean(weights) - total) <= 5 * np.std(weights) / math.sqrt(3000) + 1e-12


@pytest.mark.parametrize("name", ["", "loca", "beam", "beam:0", "beam:x", "lookahead:", "exact:2", "local:1"])
def test_an_unknown_fidelity_is_refused(name):
    with pytest.raises(UsageError, match="is none of local, onestep, lookahead:k, beam:k, exact"):
        fidelity(name)


def test_a_model_that_gives_no_valid_output_a_chance_is_named():
    constraint = Constraint(ByteTokens(automaton(regex(r"\(\)")), VOCABULARY), [END], 4)
    row = constraint.allowed(constraint.start, 4)
    with pytest.raises(BackendError, match="every output that matches the probability 0"):
        transformed(np.zeros(4), row, np.zeros(len(row.ids)), 1.0)
