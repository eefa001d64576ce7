"""The check of the law on observed logits: it passes the code as it is, and finds a rule that is wrong."""

import numpy as np
import pytest
from loop_toys import Noisy, ToyTarget

from refspec.decoding.lookup import LookupDrafter
from refspec.evaluate import sampled_law
from refspec.reference.sampling import Sampler
from refspec.reference.verify import verify_rejection
from refspec.session import Session

SAMPLER = Sampler(temperature=0.9)


def session(drafter=Noisy):
    target = ToyTarget(end=(), n_ctx=300, sharpness=1.5)
    return Session(target, drafter(target) if drafter is Noisy else drafter(), draft_max=3)


def test_the_code_as_it_is_emits_the_targets_law_on_the_rows_observed():
    found = sampled_law.check(session(), ["hello", "world"], SAMPLER, max_tokens=60, seed=1)
    assert found.rows == sampled_law.ROWS and found.counted == sampled_law.COUNTED and found.holds
    assert found.variation <= 1e-12 and found.as_dict()["holds"] is True
    assert "the target's distribution" in sampled_law.describe(found)[0]


def test_the_law_is_the_targets_for_any_filter_of_its_logits():
    for sampler in (Sampler(temperature=0.5, top_k=3), Sampler(temperature=1.5, top_p=0.7, logit_bias={1: -np.inf})):
        assert sampled_law.check(session(), ["hello"], sampler, max_tokens=60, seed=2).holds


@pytest.mark.parametrize("wrong", ["accepts always", "accepts too rarely", "resamples from p"])
def test_a_wrong_rule_is_found(monkeypatch, wrong):
    def broken(logits, draft, q, sampler, accept, residual):
        if wrong == "accepts always":
            accept = np.zeros(len(draft))
        elif wrong == "accepts too rarely":
            accept = np.minimum(np.asarray(accept) * 1.2, 1 - 2**-53)
        else:
            verdict = verify_rejection(logits, draft, q, sampler, accept, residual)
            if verdict.accepted == 0:
                return type(verdict)(0, [sampled_law.invert_cdf(sampled_law.p_target(logits[0], sampler), residual[0])])
        return verify_rejection(logits, draft, q, sampler, accept, residual)

    monkeypatch.setattr(sampled_law, "verify_rejection", broken)
    found = sampled_law.check(session(), ["hello"], SAMPLER, max_tokens=60, seed=1)
    assert not found.holds and "NOT" in sampled_law.describe(found)[0]


def test_a_wrong_residual_is_found_exactly(monkeypatch):
    monkeypatch.setattr(sampled_law, "residual", lambda p, q: p)
    assert sampled_law.check(session(), ["hello"], SAMPLER, max_tokens=60, seed=1).variation > 0.01


def test_drafts_without_a_law_have_nothing_to_check():
    found = sampled_law.check(session(LookupDrafter), ["ababab"], SAMPLER, max_tokens=20, seed=1)
    assert found.rows == 0 and found.holds and "own samples" in sampled_law.describe(found)[0]
