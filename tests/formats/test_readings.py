"""Every usual mistake, planted in a drafter whose true reading is known, is found, named and told from chance.

The target is made of the drafter: its distributions are the true reading's own, so no other reading can have a smaller
cross-entropy, and its greedy text is made of the true reading's drafts.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from formats_toys import drafter_config, drafter_weights

from refspec.evaluate.check_readings import Compared, Reading, boundaries, compare, readings, verdict
from refspec.evaluate.teacher_forced import Gain, Recording, accepted, gain, log_softmax, scores
from refspec.reference import ops
from refspec.reference.config import DrafterConfig
from refspec.reference.eagle3 import Eagle3Drafter

N_LAYER, DEPTH = 12, 4
RECORDED = tuple(range(1, N_LAYER))
TRUE: dict[str, Any] = {"capture_layers": (2, 6, 9), "vocab_size": 60, "draft_vocab_size": 60, "feature_norm": "none"}


def states(rng: np.random.Generator, n: int) -> np.ndarray:
    """A residual stream [n, boundaries, Ht]:

    each boundary is the one before and something more, as a target's layers are.
    """
    return np.cumsum(rng.standard_normal((n, len(RECORDED), 64)), axis=1).astype(np.float32)


def recordings(
    c: DrafterConfig, w: dict[str, np.ndarray], late: int, *, greedy: bool, count: int = 4, length: int = 30
) -> list[Recording]:
    drafter = Eagle3Drafter(c, w, ops)
    columns = [RECORDED.index(b) for b in c.capture_layers]
    out = []
    for seed in range(count):
        rng = np.random.default_rng((seed, greedy))
        start, tokens, held = 6, list(rng.integers(0, c.vocab_size, 6)), states(rng, length)
        features = np.roll(held[:, columns].reshape(length, -1), late, axis=0)
        drafter.reset()
        while len(tokens) < length:
            if greedy:  # four tokens of the text at a time are what the true reading drafts
                drafter.extend(np.array(tokens[drafter.n_rows + 1 :]), features[drafter.n_rows : len(tokens) - 1])
                tokens += drafter.draft(DEPTH).tokens.tolist()
            else:
                tokens.append(int(rng.integers(0, c.vocab_size)))
        tokens = tokens[:length]
        drafter.reset()
        rows = drafter.forward_rows(np.array(tokens[1:]), features[: length - 1], is_target_feature=True)
        distributions = np.zeros((length, c.draft_vocab_size), np.float32)
        distributions[1:] = log_softmax(
            rows.logits.astype(np.float64)
        )  # row P predicts what the target's row P + 1 predicts
        out.append(Recording(np.array(tokens, np.int32), start, held, distributions))
    return out


# what is wrong in the file -> (what is true, what the file states, the reading that undoes it)
PLANTED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "pre-norm set, trained post-norm": ({"feedback": "post_norm"}, {"feedback": "pre_norm"}, "--feedback post_norm"),
    "post-norm set, trained pre-norm": ({"feedback": "pre_norm"}, {"feedback": "post_norm"}, "--feedback pre_norm"),
    "normed residual set on a post-norm drafter": ({"feedback": "post_norm"}, {"residual": "normed"}, "--residual raw"),
    "raw residual set": ({"residual": "normed"}, {"residual": "raw"}, "--residual normed"),
    "no norm before the head": ({"head_norm": True}, {"head_norm": False}, "--head-norm yes"),
    "another RoPE base": ({"rope_theta": 10000.0}, {"rope_theta": 100.0}, "--rope-theta 10000"),
    "rows of q and k not reordered": ({}, {"rope_style": "half_split"}, "q and k rows in the other RoPE order"),
    "layers one too high": ({}, {"capture_layers": (3, 7, 10)}, "--layer-ids 2,6,9"),
    "layers one too low": ({"capture_layers": (3, 7, 10)}, {"capture_layers": (2, 6, 9)}, "--layer-ids 3,7,10"),
    "layers that are not the default": ({}, {"capture_layers": (4, 6, 10)}, "--layer-ids 2,6,9"),
    "biases of a program that left them out": ({}, {"biases": ("attn_q", "ffn_down")}, "no biases"),
}


def judge(truth: DrafterConfig, stated: DrafterConfig, late: int = 0, seed: int = 0) -> list[Compared]:
    w = drafter_weights(stated if stated.biases else truth, seed)
    own = {k: a for k, a in w.items() if not k.endswith(".bias")}
    tried = readings(stated, N_LAYER, 10000.0)
    assert set(boundaries(stated, tried)) <= set(RECORDED)
    sampled, greedy = (recordings(truth, own, late, greedy=g) for g in (False, True))
    return compare(stated, w, RECORDED, sampled, greedy, tried, depth=DEPTH, seconds=1e9, progress=lambda line: None)


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found_and_named(mistake: str) -> None:
    true, wrong, name = PLANTED[mistake]
    truth = drafter_config(**(TRUE | true))
    found = judge(truth, replace(truth, **wrong))
    finding = verdict(found, unexplained=False)
    assert finding.level == "misfit" and finding.said.startswith(name), finding
    assert finding.cause


def test_rows_paired_with_the_state_before_are_found() -> None:
    truth = drafter_config(**TRUE)
    finding = verdict(judge(truth, truth, late=1), unexplained=False)
    assert finding.level == "misfit" and finding.said.startswith("the states of the row before")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "switches", [{}, {"feedback": "pre_norm", "residual": "normed"}, {"head_norm": False}], ids=str
)
def test_the_true_reading_is_not_accused(switches: dict[str, Any], seed: int) -> None:
    truth = drafter_config(**(TRUE | switches))
    found = judge(truth, truth, seed=seed)
    assert verdict(found, unexplained=False).level == "ok" and not any(c.better for c in found)
    assert verdict(found, unexplained=True).level == "note"


def test_a_reading_whose_tensors_are_not_there_is_left_out() -> None:
    truth = drafter_config(**(TRUE | {"head_norm": False, "feedback": "pre_norm"}))
    w = {k: a for k, a in drafter_weights(truth).items() if k != "output_norm"}
    tried = readings(truth, N_LAYER)
    sampled, greedy = (recordings(truth, w, 0, greedy=g) for g in (False, True))
    found = compare(truth, w, RECORDED, sampled, greedy, tried, depth=DEPTH, seconds=1e9, progress=lambda line: None)
    assert {"--feedback post_norm", "--head-norm yes"} & {r.name for r in tried} and len(found) == len(tried) - 2


def test_little_time_means_fewer_texts_and_no_crash() -> None:
    truth = drafter_config(**TRUE)
    w = drafter_weights(truth)
    sampled, greedy = (recordings(truth, w, 0, greedy=g) for g in (False, True))
    found = compare(
        truth,
        w,
        RECORDED,
        sampled,
        greedy,
        readings(truth, N_LAYER),
        depth=DEPTH,
        seconds=0.0,
        progress=lambda line: None,
    )
    assert found and not any(c.better for c in found)


def test_a_small_gain_is_not_named_and_neither_is_one_of_a_drafter_that_drafts_nothing() -> None:
    reading = Reading("--residual raw", "", {})
    assert not Compared(reading, Gain(-3.0, -2.9, 0.05), Gain(2.0, 2.0, 0.1)).better
    assert Compared(reading, Gain(-3.0, -2.8, 0.05), Gain(2.0, 2.0, 0.1)).better
    # fewer drafts are no better reading
    assert not Compared(reading, Gain(-3.0, -2.8, 0.05), Gain(2.0, 1.9, 0.1)).better
    # untrained: chance has many shapes
    assert not Compared(reading, Gain(-9.0, -8.0, 0.05), Gain(0.0, 0.1, 0.01)).better


def test_a_reading_beside_the_usual_mistakes_is_worth_a_note_only() -> None:
    unusual = Reading("--layer-ids 2,6,8", "", {}, usual=False)
    assert verdict([Compared(unusual, Gain(-3.0, -2.8, 0.05), Gain(2.0, 2.0, 0.1))], unexplained=False).level == "note"


def test_gain_is_paired() -> None:
    a, b = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.5, 1.5, 2.4, 3.6])
    found = gain(a, b)
    assert found.other - found.as_is == pytest.approx(0.5) and found.sigmas > 5
    assert gain(a, a).sigmas == 0.0 and gain(a, a + 1).sigmas == np.inf


def test_replayed_drafts_of_the_true_reading_are_its_own_text() -> None:
    truth = drafter_config(**TRUE)
    w = drafter_weights(truth)
    (greedy,) = recordings(truth, w, 0, greedy=True, count=1)
    columns = [RECORDED.index(b) for b in truth.capture_layers]
    counts = accepted(Eagle3Drafter(truth, w, ops), [greedy], columns, DEPTH, 1 << 30)
    assert counts[::DEPTH][:5].tolist() == [DEPTH] * 5  # the places the text was made at
    assert len(accepted(Eagle3Drafter(truth, w, ops), [greedy], columns, DEPTH, 7)) <= 7
    assert (scores(Eagle3Drafter(truth, w, ops), [greedy], columns) <= 0).all()
