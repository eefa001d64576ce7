"""The reference reproduces eight golden chains computed by the trainers' own torch classes.

Tolerance: 5e-5 absolute, on logits and states of magnitude up to about 50: both sides are float32, their sums differ in
order. A wrong switch moves them by more than 0.1 (last test).
"""

from dataclasses import replace

import numpy as np
import pytest
from oracle_cases import CASES, load_case

from refspec import native
from refspec.reference import ops
from refspec.reference.config import FeatureNorm, Feedback, Residual
from refspec.reference.draft import Ops
from refspec.reference.eagle3 import Eagle3Drafter

ATOL = 5e-5


def close(actual: np.ndarray, golden: np.ndarray) -> None:
    np.testing.assert_allclose(actual, golden, rtol=0, atol=ATOL)


def test_all_eight_cases_are_present() -> None:
    assert len(CASES) == 8


@pytest.mark.parametrize("backend", [ops, native], ids=["ops", "native"])
@pytest.mark.parametrize("name", CASES)
def test_prefix_rows_and_forced_chain_match_the_trainer(name: str, backend: Ops) -> None:
    config, weights, golden, _ = load_case(name)
    drafter = Eagle3Drafter(config, weights, backend)

    prefix = drafter.forward_rows(golden["prefix_tokens"], golden["features"], is_target_feature=True)
    close(prefix.g, golden["prefix_g"])
    close(prefix.logits, golden["prefix_logits_all"])
    close(prefix.logits[-1], golden["prefix_logits"])
    close(prefix.h[-1], golden["prefix_h_prenorm"])

    state = prefix.state_out[-1:]
    for step, token in enumerate(golden["chain_tokens"]):
        close(state[0], golden["chain_state_in"][step])
        rows = drafter.forward_rows(np.array([token]), state, is_target_feature=False)
        close(rows.h[0], golden["chain_h_prenorm"][step])
        close(rows.logits[0], golden["chain_logits"][step])
        close(rows.state_out[0], golden["chain_state_out"][step])
        state = rows.state_out


@pytest.mark.parametrize("name", CASES)
def test_every_row_of_the_training_time_test_is_a_rolled_back_chain(name: str) -> None:
    config, weights, golden, _ = load_case(name)
    drafter = Eagle3Drafter(config, weights)
    n_steps, n_rows, _ = golden["ttt_logits"].shape
    tokens, compared = golden["ttt_input_ids"], 0
    for row in range(n_rows):
        # extending by one true row drops the previous row's whole chain: 18 rollbacks in one run
        rows = drafter.forward_rows(
            tokens[row : row + 1], golden["features_all"][row : row + 1], is_target_feature=True
        )
        for step in range(n_steps):
            if step:
                forced = tokens[row + step : row + step + 1]
                rows = drafter.forward_rows(forced, rows.state_out, is_target_feature=False)
            close(rows.logits[0], golden["ttt_logits"][step, row])
            compared += 1
            if row + step + 1 == n_rows:
                break
    assert compared == sum(min(n_steps, n_rows - row) for row in range(n_rows))


@pytest.mark.parametrize("name", CASES)
def test_draft_ids_are_the_golden_absolute_ids(name: str) -> None:
    config, weights, golden, _ = load_case(name)
    assert np.array_equal(Eagle3Drafter(config, weights).d2t, golden["draft_ids"])


def test_greedy_draft_is_the_inference_classes_greedy_chain() -> None:
    config, weights, golden, _ = load_case("safeai_base")
    drafter = Eagle3Drafter(config, weights)
    drafter.extend(golden["prefix_tokens"], golden["features"])
    expected = golden["greedy_topk1_draft_tokens"][1:]  # the first entry is the token of the last prefix row
    assert drafter.draft(len(expected)).tokens.tolist() == expected.tolist()


@pytest.mark.parametrize("switch", ["feedback", "residual", "feature_norm", "head_norm"])
def test_the_golden_chain_notices_each_wrong_switch(switch: str) -> None:
    config, weights, golden, _ = load_case("spec_nbr1_fc_norm_out1")  # every normalization on
    wrong = {
        "feedback": Feedback.PRE_NORM,
        "residual": Residual.RAW,
        "feature_norm": FeatureNorm.NONE,
        "head_norm": False,
    }[switch]
    if switch == "feature_norm":
        weights = {k: a for k, a in weights.items() if not k.startswith("fc_norm")}
    drafter = Eagle3Drafter(replace(config, **{switch: wrong}), weights)  # type: ignore[arg-type]
    rows = drafter.forward_rows(golden["prefix_tokens"], golden["features"], is_target_feature=True)
    rows = drafter.forward_rows(golden["chain_tokens"][:1], rows.state_out[-1:], is_target_feature=False)
    assert np.abs(rows.logits[0] - golden["chain_logits"][0]).max() > 0.1
