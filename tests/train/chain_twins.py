"""The reference's weights in the training code's module, and that module as a Drafter, to compare the two."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from refspec.convert.export import split_rows
from refspec.reference.config import DrafterConfig, Weights
from refspec.reference.draft import Draft
from refspec.train.drafter import ChainStep, Eagle3, TrainedDrafter
from refspec.train.model import document_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

import tiny  # noqa: F401 - for the tests that import this file

SIZES = (
    "hidden_size",
    "target_hidden_size",
    "capture_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "draft_vocab_size",
    "rms_eps",
    "rope_theta",
    "context_length",
)


def torch_twin(config: DrafterConfig, weights: Weights) -> Eagle3:
    """The drafter of a GGUF (RoPE pairs interleaved) as the training code has it (half-split)."""
    switches = {name: getattr(config, name).value for name in ("feature_norm", "feedback", "residual")}
    trained = TrainedDrafter(**{name: getattr(config, name) for name in SIZES}, **switches)
    w = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    twin = Eagle3(trained, w["token_embd"], w["d2t"] if "d2t" in w else torch.arange(config.vocab_size))
    q, k = (torch.from_numpy(split_rows(np.array(weights[name]), config.head_dim)) for name in ("attn_q", "attn_k"))
    values = {
        "fc.weight": w["fc"],
        "attn_norm.weight": w["attn_norm"],
        "hidden_norm.weight": w["hidden_norm"],
        "qkv.weight": torch.cat([q, k, w["attn_v"]]),
        "o.weight": w["attn_output"],
        "ffn_norm.weight": w["ffn_norm"],
        "gate_up.weight": torch.cat([w["ffn_gate"], w["ffn_up"]]),
        "down.weight": w["ffn_down"],
        "norm.weight": w["output_norm"],
        "head.weight": w["output"],
    }
    values |= {f"fc_norm.{i}.weight": w[f"fc_norm.{i}"] for i in range(config.n_states) if f"fc_norm.{i}" in w}
    values |= {"fc_norm.0.weight": w["fc_norm"]} if "fc_norm" in w else {}
    unset = twin.load_state_dict(values, strict=False).missing_keys
    assert sorted(unset) == ["draft_ids"], unset
    return twin.eval()


@torch.no_grad()
def forced_chain(
    twin: Eagle3, tokens: np.ndarray, features: np.ndarray, forced: list[int], depth: int
) -> list[ChainStep]:
    """The training code's chain of `depth` steps from the last of the rows (tokens [T], features [T, n_states*Ht])
    along `forced`.
    """
    t = len(tokens)
    ids = torch.tensor([[0, *tokens.tolist(), *forced, 0, 0][: t + depth]])
    states = list(torch.from_numpy(np.array(features))[None].chunk(len(twin.config.capture_layers), -1))
    mask = document_mask(torch.zeros(1, t), bos=1).float()  # one document
    return list(twin.chain(ids, states, mask, torch.tensor([[t - 1]]), depth))


def argmax(twin: Eagle3, step: ChainStep) -> int:
    """The draft token of a step, a target id."""
    with torch.no_grad():
        return int(twin.draft_ids[twin.head(step.normed).argmax(-1)])


class TorchDrafter:
    """Drafts by running the training chain along its own argmax, one step longer each time."""

    def __init__(self, twin: Eagle3) -> None:
        self.twin, self.capture_layers, self.seconds = twin, twin.config.capture_layers, 0.0
        self.reset()

    def reset(self) -> None:
        self.tokens, self.features, self.n_rows = [], [], 0

    def extend(self, tokens: np.ndarray, features: np.ndarray) -> None:
        self.tokens.append(np.array(tokens))
        self.features.append(np.array(features))
        self.n_rows += len(tokens)

    def draft(self, k: int, **_: object) -> Draft:
        rows, features = np.concatenate(self.tokens), np.concatenate(self.features)
        tokens: list[int] = []
        while len(tokens) < k:
            tokens.append(argmax(self.twin, forced_chain(self.twin, rows, features, tokens, len(tokens) + 1)[-1]))
        return Draft(np.array(tokens, np.int32), None, np.full(k, np.nan, np.float32))
