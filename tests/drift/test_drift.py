"""The drift measurement against cases small enough to work out by hand, and against the decode cycle."""

import math

import numpy as np
import pytest
from drift_toys import LAYERS, drafter, target

from refspec.errors import UsageError
from refspec.evaluate.drift import FIGURES, MASSES, WINDOW, Tally, add_rows, heat_columns, measure, over, record, select
from refspec.reference.draft import RowRecord
from refspec.reference.sampling import Sampler
from refspec.session import Session

GREEDY = Sampler()
PROMPT = [1, 2, 3, 0, 2]


def one(drafting, prompt=PROMPT, *, depth=4, max_tokens=20, sampler=GREEDY, seed=0, every=None, **settings):
    """The tally of one prompt."""
    found = over(
        target(**settings), {"d": drafting}, [prompt], LAYERS, depth=depth, max_tokens=max_tokens, sampler=sampler,
        seed=seed, every=every,
    )  # fmt: skip
    return found["d"][0]


def means(tally, name):
    with np.errstate(invalid="ignore"):  # nothing is counted where a figure has no meaning
        return tally.sums[name] / tally.counts[name]


@pytest.mark.parametrize("feedback", ["pre_norm", "post_norm"])
def test_the_four_shares_and_the_heat_map_sum_to_one_at_every_depth(feedback):
    tally = one(drafter(3, feedback=feedback))
    for share in (sum(means(tally, name) for name in MASSES), (tally.heat / tally.heat_counts[:, None]).sum(1)):
        np.testing.assert_allclose(share, 1, atol=1e-6)
    assert means(tally, "chain")[0] == 0 and (means(tally, "chain")[1:] > 0).all()


def test_even_attention_gives_each_part_its_share_of_the_rows():
    blind = drafter(attn_q=True)  # queries of zero: equal attention on every row
    text = record(target(), PROMPT, LAYERS, max_tokens=3, sampler=GREEDY, seed=0)
    tally = measure(blind, text, text.features, depth=1)  # one token a chain, at most 2 output tokens before it
    chains = int(tally.counts["sink"][0])
    # true rows of each chain; the last token is never drafted
    positions = [len(PROMPT) - 1 + p for p in (0, 1)][:chains]
    assert chains == (1 if tally.sums["accepted"][0] else 2)
    assert means(tally, "sink")[0] == pytest.approx(np.mean([1 / n for n in positions]))
    assert means(tally, "prompt")[0] == pytest.approx(np.mean([3 / n for n in positions]))
    assert means(tally, "verified")[0] == pytest.approx(np.mean([(n - 4) / n for n in positions]))
    assert means(tally, "entropy")[0] == pytest.approx(np.mean([math.log(n) for n in positions]))


def test_a_block_that_adds_nothing_hands_its_state_on_unchanged():
    tally = one(drafter(attn_output=True, ffn_down=True))
    np.testing.assert_allclose(means(tally, "growth"), 1, rtol=1e-6)
    np.testing.assert_allclose(means(tally, "cosine")[1:], 1, rtol=1e-6)
    assert tally.counts["cosine"][0] == 0  # depth 1 has no depth before it


def test_states_and_shares_of_rows_worked_out_by_hand():
    rows = [
        RowRecord(
            0,
            3,
            np.array([[[0.1, 0.2, 0.3, 0.4]], [[0.3, 0.2, 0.1, 0.4]]]),
            np.array([[1.0, 1.0]]),
            np.array([[3.0, 3.0]]),
            np.zeros((1, 2)),
            np.array([[3.0, 4.0]]),
        ),
        RowRecord(
            1,
            4,
            np.full((2, 1, 5), 0.2),
            np.array([[6.0, 8.0]]),
            np.array([[-4.0, 3.0]]),
            np.zeros((1, 2)),
            np.array([[-8.0, 6.0]]),
        ),
    ]
    tally = Tally(2)
    add_rows(tally, rows, n=4, n_prompt=3)  # true rows: sink, one of the prompt, two verified
    expected = {
        "sink": [0.2, 0.2],
        "prompt": [0.2, 0.2],
        "verified": [0.6, 0.4],
        "chain": [0.0, 0.2],
        "chain_earlier": [0.0, 0.0],
        "added": [3.0, 0.5],
        "magnitude": [math.sqrt(12.5), math.sqrt(50)],
        "growth": [1, 2],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(tally.sums[name], values, atol=1e-12, err_msg=name)
    assert tally.sums["cosine"][1] == pytest.approx(0, abs=1e-12)  # (3, 4) and (-8, 6) are at right angles
    assert tally.sums["entropy"][1] == pytest.approx(math.log(5))
    line = dict(zip(heat_columns(2), tally.heat[1], strict=True))
    assert line == pytest.approx(
        {
            "sink": 0.2,
            "earlier": 0,
            **dict.fromkeys([str(-i) for i in range(4, WINDOW + 1)], 0),
            "-3": 0.2,
            "-2": 0.2,
            "-1": 0.2,
            "+1": 0.2,
        }
    )


def test_the_heat_map_gathers_what_is_before_its_window():
    n = WINDOW + 4
    tally = Tally(1)
    add_rows(
        tally,
        [RowRecord(0, n - 1, np.full((1, 1, n), 1 / n), *np.ones((2, 1, 1)), np.zeros((1, 1)), np.ones((1, 1)))],
        n,
        n_prompt=2,
    )
    np.testing.assert_allclose(tally.heat[0] * n, [1, 3, *[1] * WINDOW])


@pytest.mark.parametrize(("temperature", "end"), [(0.0, ()), (0.0, (3,)), (0.9, ()), (0.9, (3,))])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_acceptance_is_what_the_decode_cycle_counts_at_that_draft_length(temperature, end, k):
    accepted = 0
    for seed in range(6):
        sampler, settings = Sampler(temperature=temperature), {"salt": seed, "end": end}
        tally = one(drafter(seed), depth=k, sampler=sampler, seed=seed, **settings)
        run = Session(target(**settings), drafter(seed)).generate(
            tokens=PROMPT, max_tokens=20, sampler=sampler, seed=seed, draft_max=k
        )
        list(run)
        s = run.statistics
        judged = len(s.judged)
        assert (tally.tokens, tally.steps) == (s.generated_tokens, s.verify_steps)
        assert tally.counts["accepted"].tolist() == s.judged + [0] * (k - judged)
        assert tally.sums["accepted"].tolist() == s.accepted + [0] * (k - judged)
        accepted += sum(s.accepted)
    assert accepted > 0  # the comparison saw accepted drafts


def test_the_context_ends_chains_where_the_cycle_ends_them():
    tally = one(drafter(1), depth=4, max_tokens=50, n_ctx=12)
    run = Session(target(n_ctx=12), drafter(1)).generate(tokens=PROMPT, max_tokens=50, draft_max=4)
    list(run)
    assert run.statistics.stop == "context"
    assert tally.counts["accepted"].tolist() == run.statistics.judged
    assert (tally.tokens, tally.steps) == (run.statistics.generated_tokens, run.statistics.verify_steps)


def test_given_previous_counts_only_chains_whose_earlier_tokens_stand():
    tally = one(drafter(2), depth=3, max_tokens=40)
    stood, judged = tally.sums["accepted"], tally.counts["accepted_given_previous"]
    assert (judged[1:] <= stood[:-1]).all()  # fewer where the output ends
    assert (tally.sums["accepted_given_previous"] == stood).all()


def test_every_visits_fixed_positions_and_gives_no_tau():
    tally = one(drafter(2), depth=2, max_tokens=20, every=4)
    assert tally.counts["accepted"][0] == 5  # 0, 4, 8, 12, 16
    assert tally.tokens == tally.steps == 0


@pytest.mark.parametrize("prompt", [[1], [1, 2]])
def test_the_shortest_prompts_are_measured(prompt):
    tally = one(drafter(), prompt, max_tokens=6)
    assert tally.tokens == 6 and tally.counts["sink"][0] > 0
    assert all(np.isfinite(tally.sums[name]).all() for name in FIGURES)


def test_a_drafter_is_measured_alike_alone_and_beside_another():
    prompts = [PROMPT, [3, 3, 1]]
    settings = {"depth": 3, "max_tokens": 12, "sampler": GREEDY}
    alone = over(target(), {"a": drafter(1)}, prompts, LAYERS, **settings)["a"]
    beside = over(target(), {"b": drafter(2), "a": drafter(1)}, prompts, LAYERS, **settings)["a"]
    for one_tally, other in zip(alone, beside, strict=True):
        for name in FIGURES:
            np.testing.assert_array_equal(one_tally.sums[name], other.sums[name])


def test_each_drafter_gets_the_states_of_its_own_layers():
    features = np.arange(12.0).reshape(2, 6)  # layers 2, 5, 9 of width 2
    np.testing.assert_array_equal(select(features, (2, 5, 9), (9, 2)), [[4, 5, 0, 1], [10, 11, 6, 7]])


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"depth": 2, "every": 0}])
def test_a_depth_or_step_below_one_is_refused(wrong):
    with pytest.raises(UsageError, match="at least 1"):
        over(target(), {"d": drafter()}, [PROMPT], LAYERS, max_tokens=4, sampler=GREEDY, **wrong)
