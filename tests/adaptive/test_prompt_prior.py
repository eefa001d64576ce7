"""What is expected of an output before it begins: what outputs after prompts like its own gained."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refspec.adaptive.prompt_prior import ALL, FIRST, LOGP_SCALE, MEAN, MEAN_STEPS, OUTPUTS, PromptPrior


def output(prior: PromptPrior, held: int, logp: float, gain: float, steps: int = FIRST) -> None:
    prior.begin(held, logp)
    for _ in range(steps):
        prior.add(gain)


def test_before_any_output_a_first_guess_is_expected() -> None:
    assert PromptPrior().expected == pytest.approx(MEAN)


def test_outputs_of_another_kind_are_told_apart_by_log_probability_and_by_length() -> None:
    prior = PromptPrior()
    for _ in range(8):
        output(prior, 60, -1.0, 0.3)
        output(prior, 60, -2.0, -0.2)
        output(prior, 4000, -1.0, -0.1)
    found = {}
    for held, logp in ((60, -1.0), (60, -2.0), (4000, -1.0), (60, math.nan)):
        prior.begin(held, logp)
        found[held, logp] = prior.expected
    assert found[60, -1.0] > 0.2 and found[60, -2.0] < -0.1 and found[4000, -1.0] < 0
    assert found[60, math.nan] == pytest.approx(0.05, abs=0.03), "of unknown log-probability: like both"


def test_the_kernel_is_the_one_in_the_head_of_the_file() -> None:
    prior = PromptPrior()
    output(prior, 31, -1.0, 0.5, steps=4)  # log2(32) = 5
    prior.begin(127, -1.0 - 2 * LOGP_SCALE)  # 2 more is one scale of length
    weight = math.exp(-(1.0**2 + 2.0**2) / 2)
    mean = (MEAN_STEPS * MEAN + 4 * 0.5) / (MEAN_STEPS + 4)
    assert prior.expected == pytest.approx((ALL * mean + weight * 2.0) / (ALL + weight * 4))


def test_only_the_first_steps_of_an_output_count_and_old_outputs_are_forgotten() -> None:
    prior = PromptPrior()
    prior.begin(60, -1.0)
    for i in range(FIRST + 50):
        prior.add(1.0 if i < FIRST else -9.0)
    prior.begin(60, -1.0)
    assert prior.expected > 0.4
    for _ in range(OUTPUTS):
        output(prior, 60, -1.0, -0.2)
    prior.begin(60, -1.0)
    assert prior.expected < -0.15


@given(
    st.lists(
        st.tuples(st.integers(0, 9000), st.one_of(st.just(math.nan), st.floats(-9, 0)), st.floats(-2, 3)), max_size=30
    )
)
def test_what_is_expected_is_within_what_was_seen(outputs: list[tuple[int, float, float]]) -> None:
    prior = PromptPrior()
    for held, logp, gain in outputs:
        output(prior, held, logp, gain, steps=3)
    prior.begin(100, -1.0)
    seen = [MEAN, *(gain for _, _, gain in outputs)]
    assert min(seen) - 1e-9 <= prior.expected <= max(seen) + 1e-9
