"""Checkpoints that the speculators library builds and saves itself convert, and its own torch forward comes back to
1e-4.

Every combination of flags its configuration accepts, Llama and Qwen3 blocks, float32, a prefix and depths 1 to 6,
through NumPy, C and llama.cpp. Skipped with a reason where the library (and torch, transformers) is not installed.
"""

import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # its forward is compiled otherwise, for minutes
torch = pytest.importorskip("torch", reason="needs PyTorch")
try:
    from speculators import SpeculatorsConfig, VerifierConfig
    from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
    from speculators.proposals.greedy import GreedyTokenProposalConfig
    from transformers import LlamaConfig, Qwen3Config
except ImportError as error:
    pytest.skip(f"needs the speculators library: {error}", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "formats"))

from chains import ATOL, chain_by_llama, chain_by_reference, chain_in_c, write_target_for  # noqa: E402

from refspec.convert import convert_drafter  # noqa: E402
from refspec.gguf.io import read_drafter  # noqa: E402

ROWS, DEPTH, WIDTH, VOCAB, DRAFT = 12, 6, 64, 300, 120
NORMS = {"none": {}, "concat": {"norm_before_fc": True}, "per_state": {"fc_norm": True}}
COMBINATIONS = list(product(["llama", "qwen3"], NORMS, [False, True], [False, True], [DRAFT, VOCAB]))


def build(
    kind: str, norm: str, before_residual: bool, norm_output: bool, draft: int, seed: int = 0, **layer: Any
) -> Any:
    """A random model of the library, in float32, its weights representable in bfloat16."""
    torch.manual_seed(seed)
    block = (LlamaConfig if kind == "llama" else Qwen3Config)(**({
        "hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "intermediate_size": 128,
        "num_hidden_layers": 1, "vocab_size": VOCAB, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    } | layer))  # fmt: skip
    block._attn_implementation = "eager"
    config = Eagle3SpeculatorConfig(
        transformer_layer_config=block, draft_vocab_size=draft, norm_before_residual=before_residual,
        norm_output=norm_output,
        eagle_aux_hidden_state_layer_ids=[2, 4, 5], **NORMS[norm],
        speculators_config=SpeculatorsConfig(
            algorithm="eagle3", proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=3)],
            default_proposal_method="greedy", verifier=VerifierConfig(name_or_path=None, architectures=[]),
        ),
    )  # fmt: skip
    model = Eagle3DraftModel(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            x = torch.randn_like(p)
            p.copy_((1 + 0.2 * x if p.ndim == 1 else x * (1.0 if "embed" in name else p.shape[-1] ** -0.5)).bfloat16())
    if draft < VOCAB:
        ids = torch.sort(torch.randperm(VOCAB)[:draft]).values
        member = torch.zeros(VOCAB, dtype=torch.bool)
        member[ids] = True
        model.load_vocab_mappings(member, ids - torch.arange(draft))
    return model.float().eval()


def forward(model: Any) -> dict[str, np.ndarray]:
    """The library's training-time test over ROWS + DEPTH rows; row ROWS - 1 of each step is a prefix and a chain."""
    rng = np.random.default_rng(4)
    tokens, features = (
        rng.integers(0, VOCAB, ROWS + DEPTH),
        rng.standard_normal((ROWS + DEPTH, 3 * WIDTH)).astype(np.float32),
    )
    seen: list[np.ndarray] = []
    hook = model.lm_head.register_forward_hook(
        lambda module, inputs, out: seen.append(out[0, ROWS - 1].detach().numpy())
    )
    with torch.no_grad():
        model(
            hidden_states=torch.from_numpy(features)[None], input_ids=torch.from_numpy(tokens)[None],
            document_ids=torch.ones(1, ROWS + DEPTH, dtype=torch.long), ttt_steps=DEPTH + 1,
        )  # fmt: skip
    hook.remove()
    return {
        "prefix_tokens": tokens[:ROWS], "features": features[:ROWS], "chain_tokens": tokens[ROWS:],
        "prefix_logits": seen[0], "chain_logits": np.array(seen[1:]),
    }  # fmt: skip


def compare(directory: Path, model: Any, qk_norm: bool) -> None:
    golden = forward(model)
    model.save_pretrained(directory / "ckpt")
    target = write_target_for(directory, golden, vocab=VOCAB)
    convert_drafter(directory / "ckpt", target, directory / "d.gguf", "f32")
    config = read_drafter(directory / "d.gguf")[0]
    assert config.qk_norm is qk_norm
    # llama.cpp's eagle3 graph has no query and key norms and no biases: there refspec runs its own kernels
    for run in [chain_by_reference, chain_in_c] + ([] if qk_norm or config.biases else [chain_by_llama]):
        prefix, chain = run(directory / "d.gguf", target, golden)
        np.testing.assert_allclose(prefix, golden["prefix_logits"], rtol=0, atol=ATOL, err_msg=run.__name__)
        np.testing.assert_allclose(chain, golden["chain_logits"], rtol=0, atol=ATOL, err_msg=run.__name__)


@pytest.mark.parametrize(("kind", "norm", "before_residual", "norm_output", "draft"), COMBINATIONS)
def test_every_combination_of_flags(
    tmp_path: Path, kind: str, norm: str, before_residual: bool, norm_output: bool, draft: int
) -> None:
    compare(tmp_path, build(kind, norm, before_residual, norm_output, draft), kind == "qwen3")


ROPES: dict[str, dict[str, Any]] = {
    "theta": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0},
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPES)
def test_every_rope_scaling(tmp_path: Path, rope: str) -> None:
    compare(tmp_path, build("llama", "per_state", True, True, DRAFT, rope_parameters=ROPES[rope]), False)


@pytest.mark.parametrize(
    "layer", [{"head_dim": 32}, {"num_key_value_heads": 4}, {"num_attention_heads": 2, "head_dim": 48}], ids=str
)
def test_every_proportion(tmp_path: Path, layer: dict[str, int]) -> None:
    compare(tmp_path, build("llama", "per_state", False, True, DRAFT, **layer), False)


@pytest.mark.parametrize(
    ("kind", "flags"),
    [("llama", {"attention_bias": True}), ("llama", {"mlp_bias": True}),
     ("llama", {"attention_bias": True, "mlp_bias": True}),
     ("qwen3", {"attention_bias": True})],
)  # fmt: skip
@pytest.mark.parametrize("norm_output", [False, True])
def test_every_bias(tmp_path: Path, kind: str, flags: dict[str, bool], norm_output: bool) -> None:
    compare(tmp_path, build(kind, "per_state", False, norm_output, DRAFT, **flags), kind == "qwen3")
