"""The training-time test is the inference chain: same numbers as the NumPy reference, for every switch combination."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the `train` extra (torch)")

from refspec.reference.config import DrafterConfig, RopeStyle  # noqa: E402
from refspec.reference.eagle3 import Eagle3Drafter  # noqa: E402
from refspec.train.drafter import Eagle3, TrainedDrafter  # noqa: E402
from refspec.train.model import document_mask  # noqa: E402

SWITCHES = list(itertools.product(("none", "concat", "per_state"), ("pre_norm", "post_norm"), ("raw", "normed")))
ROWS, DEPTH, VOCAB, BOS = 9, 4, 40, 1


def make(feature_norm: str, feedback: str, residual: str) -> tuple[Eagle3, TrainedDrafter]:
    torch.manual_seed(3)
    config = TrainedDrafter(
        hidden_size=16, target_hidden_size=16, capture_layers=(1, 2, 4), n_heads=4, n_kv_heads=2, head_dim=8,
        intermediate_size=24, vocab_size=VOCAB, draft_vocab_size=30, rms_eps=1e-5, rope_theta=10000.0,
        context_length=64, feature_norm=feature_norm, feedback=feedback, residual=residual,
    )  # fmt: skip
    draft_ids = torch.randperm(VOCAB)[:30].sort().values
    drafter = Eagle3(config, torch.randn(VOCAB, 16), draft_ids)
    for name, parameter in drafter.named_parameters():
        if "norm" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return drafter, config


def reference(drafter: Eagle3, config: TrainedDrafter) -> Eagle3Drafter:
    """The same weights in the reference, straight from the checkpoint names."""
    state = {k: v.numpy() for k, v in drafter.checkpoint_state().items()}
    p = "layers.0."
    weights = {
        "fc": state["fc.weight"], "token_embd": state["embed_tokens.weight"], "output": state["lm_head.weight"],
        "output_norm": state["norm.weight"], "attn_norm": state[p + "input_layernorm.weight"],
        "hidden_norm": state[p + "hidden_norm.weight"], "ffn_norm": state[p + "post_attention_layernorm.weight"],
        "d2t": state["d2t"] + np.arange(config.draft_vocab_size),
    }  # fmt: skip
    weights |= {f"attn_{x}": state[f"{p}self_attn.{x}_proj.weight"] for x in "qkv"}
    weights |= {f"ffn_{x}": state[f"{p}mlp.{x}_proj.weight"] for x in ("gate", "up", "down")}
    weights["attn_output"] = state[p + "self_attn.o_proj.weight"]
    if config.feature_norm == "concat":
        weights["fc_norm"] = state["input_norm.weight"]
    if config.feature_norm == "per_state":
        weights |= {f"fc_norm.{i}": state[f"fc_norm.{i}.weight"] for i in range(3)}
    sizes = {k: v for k, v in config.to_dict().items() if k != "capture_layers"}
    return Eagle3Drafter(
        DrafterConfig(capture_layers=config.capture_layers, rope_style=RopeStyle.HALF_SPLIT, **sizes), weights
    )


@pytest.mark.parametrize(("feature_norm", "feedback", "residual"), SWITCHES)
def test_each_ttt_row_equals_the_forced_chain_of_the_reference(feature_norm, feedback, residual):
    drafter, config = make(feature_norm, feedback, residual)
    rng = np.random.default_rng(5)
    tokens = rng.integers(2, VOCAB, ROWS + DEPTH + 1)
    tokens[0] = BOS
    states = [rng.standard_normal((1, ROWS, 16)).astype(np.float32) for _ in range(3)]
    rows = torch.arange(0, ROWS, 2)[None]  # a subset: the others must not be needed
    ids = torch.from_numpy(tokens)[None]
    mask = document_mask(ids[:, :ROWS], BOS).float()
    with torch.no_grad():
        steps = drafter.chain(ids, [torch.from_numpy(s) for s in states], mask, rows, DEPTH)
        logits = [drafter.head(step.normed).numpy()[0] for step in steps]  # DEPTH x [R, D]
    features = np.concatenate([s[0] for s in states], -1)  # [T, 3*Ht]
    for at, row in enumerate(rows[0].tolist()):
        numpy_drafter = reference(drafter, config)
        out = numpy_drafter.forward_rows(tokens[1 : row + 2], features[: row + 1], is_target_feature=True)
        for step in range(DEPTH):
            np.testing.assert_allclose(logits[step][at], out.logits[-1], atol=2e-5, rtol=0)
            token = tokens[row + 2 + step : row + 3 + step]
            out = numpy_drafter.forward_rows(token, out.state_out[-1:], is_target_feature=False)


def test_a_row_sees_no_other_document():
    drafter, _ = make("per_state", "post_norm", "raw")
    rng = np.random.default_rng(6)
    tokens = rng.integers(2, VOCAB, ROWS + DEPTH + 1)
    tokens[[0, 4]] = BOS
    states = [torch.from_numpy(rng.standard_normal((1, ROWS, 16)).astype(np.float32)) for _ in range(3)]
    rows = torch.tensor([[5, 6, 7]])

    def run(changed: int | None) -> np.ndarray:
        ids, seen = torch.from_numpy(tokens.copy())[None], [s.clone() for s in states]
        if changed is not None:
            seen[1][0, changed] += 1.0
        mask = document_mask(torch.from_numpy(tokens)[None, :ROWS], BOS).float()
        with torch.no_grad():
            return torch.stack([step.normed for step in drafter.chain(ids, seen, mask, rows, DEPTH)]).numpy()

    np.testing.assert_array_equal(run(None), run(2))  # a row of the document before
    assert np.abs(run(None) - run(4)).max() > 1e-3  # a row of its own document
