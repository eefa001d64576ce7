"""Every switch combination of the drafter on small random weights, run by NumPy and by C, and how far apart they end
up.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from small_drafters import small_config, small_rows, small_weights

from refspec import native
from refspec.reference.config import BIASED, DrafterConfig, FeatureNorm, Feedback, Residual, RopeStyle
from refspec.reference.eagle3 import Eagle3Drafter

TRUE_ROWS, DEPTH = 7, 5

# Sizes around the 16 lanes of the C sums, so that full blocks, tails and both together occur.
BASE: dict[str, Any] = dict(
    hidden_size=40, target_hidden_size=40, n_heads=4, n_kv_heads=4, head_dim=10, intermediate_size=70, vocab_size=97,
    draft_vocab_size=97,
)  # fmt: skip
VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "d2t": dict(draft_vocab_size=50),
    "width": dict(target_hidden_size=24, capture_layers=(1, 3)),
    "gqa": dict(n_heads=6, n_kv_heads=2, head_dim=18),
    "one_state_one_head": dict(capture_layers=(2,), n_heads=1, n_kv_heads=1, head_dim=32),
    "qk_norm": dict(qk_norm=True),
    "no_head_norm": dict(head_norm=False),
    "biases": dict(biases=BIASED, n_kv_heads=2, draft_vocab_size=50),
    "rope_freqs": dict(draft_vocab_size=50, n_kv_heads=2),  # with divisors, see weights()
}


class Case(NamedTuple):
    """One drafter: a name for the table, its configuration and weights."""

    name: str
    config: DrafterConfig
    weights: dict[str, np.ndarray]


class Chain(NamedTuple):
    """What true rows and a chain of DEPTH forced tokens gave: arrays over rows, true ones first."""

    logits: np.ndarray  # [T, D]
    h: np.ndarray  # [T, H]
    state: np.ndarray  # [T, H]
    attention: np.ndarray  # [T, nh, T], 0 where not visible


def cases() -> Iterator[Case]:
    """feature norm 3 x feedback 2 x residual 2 x rope style 2, times the variations."""
    for variation, changes in VARIATIONS.items():
        for norm, feedback, residual, style in product(FeatureNorm, Feedback, Residual, RopeStyle):
            switches = dict(feature_norm=norm, feedback=feedback, residual=residual, rope_style=style)
            config = small_config(**(BASE | changes | switches))
            weights = small_weights(config)
            if variation == "rope_freqs":
                weights["rope_freqs"] = np.linspace(1, 8, config.head_dim // 2, dtype=np.float32)
            name = "-".join([variation, norm.value, feedback.value, residual.value, style.value])
            yield Case(name, config, weights)


def run_reference(case: Case, ops: Any) -> Chain:
    """The reference drafter on a numerical backend: refspec.reference.ops, or refspec.native."""
    drafter = Eagle3Drafter(case.config, case.weights, ops)
    tokens, features = small_rows(case.config, TRUE_ROWS + DEPTH)
    total = TRUE_ROWS + DEPTH
    attention = np.zeros((total, case.config.n_heads, total), np.float32)

    def probe(record: Any) -> None:
        rows, seen = record.attention.shape[1:]
        attention[record.first_row : record.first_row + rows, :, :seen] = record.attention.transpose(1, 0, 2)

    drafter.probe = probe
    runs = [drafter.forward_rows(tokens[:TRUE_ROWS], features[:TRUE_ROWS], is_target_feature=True)]
    for token in tokens[TRUE_ROWS:]:
        runs.append(drafter.forward_rows(np.array([token]), runs[-1].state_out[-1:], is_target_feature=False))
    logits, h, state = (np.concatenate([getattr(run, name) for run in runs]) for name in ("logits", "h", "state_out"))
    return Chain(logits, h, state, attention)


def run_c(case: Case) -> Chain:
    """The same rows by rs_eagle3_encode and rs_eagle3_step."""
    rows = native.Eagle3Rows(case.config, case.weights, TRUE_ROWS + DEPTH)
    tokens, features = small_rows(case.config, TRUE_ROWS + DEPTH)
    total = TRUE_ROWS + DEPTH
    attention = np.zeros((total, case.config.n_heads, total), np.float32)
    steps: list[native.StepResult] = []
    for row, token in enumerate(tokens.tolist()):
        state = rows.encode(features[row]) if row < TRUE_ROWS else steps[-1].state_out
        steps.append(rows.step(token, state, row, attention=True))
        attention[row, :, : row + 1] = steps[-1].attention
    logits, h, state = (np.array([getattr(step, name) for step in steps]) for name in ("logits", "h", "state_out"))
    return Chain(logits, h, state, attention)


def difference(a: Chain, b: Chain) -> tuple[float, float]:
    """Largest |a - b| over true rows and over chained rows, each array relative to its own largest magnitude."""

    def worst(rows: slice) -> float:
        pairs = zip(a, b, strict=True)
        return max(float(np.abs(x[rows] - y[rows]).max() / np.abs(x[rows]).max()) for x, y in pairs)

    return worst(slice(0, TRUE_ROWS)), worst(slice(TRUE_ROWS, None))
