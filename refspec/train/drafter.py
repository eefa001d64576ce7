"""The EAGLE-3 drafter in torch and its training-time test (TTT): the chain is unrolled during training.

Step i of row s sees the token x_{s+1+i}, the state fed back by step i-1 (gradients flow through the chain) and, in
attention, the true rows <= s of step 0 plus its own row's keys of steps 1..i (EAGLE-3, arXiv 2503.01840, section 3.2).
It learns the target's distribution at row s+1+i, restricted to the draft vocabulary, by soft cross-entropy. The forward
mathematics are those of `refspec.reference.eagle3`; tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refspec.train.model import Linear, RMSNorm, rope, rope_tables


@dataclass(frozen=True)
class TrainedDrafter:
    """Sizes, the three switches (values of the enums in `reference/config.py`) and the captured boundaries."""

    hidden_size: int
    target_hidden_size: int
    capture_layers: tuple[int, ...]
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    draft_vocab_size: int
    rms_eps: float
    rope_theta: float
    context_length: int
    feature_norm: str = "per_state"
    feedback: str = "post_norm"
    residual: str = "raw"
    attention_reg: float = 0.0  # weight of the attention regularizer in the loss (`drafter_loss.chain_losses`)

    def to_dict(self) -> dict:
        """Plain values, for a checkpoint's identity, without a regularizer that is off."""
        values = asdict(self) | {"capture_layers": list(self.capture_layers)}
        if not self.attention_reg:
            del values["attention_reg"]
        return values


class ChainStep(NamedTuple):
    """One TTT step of the chosen rows."""

    normed: Tensor  # [B, R, H] what the head reads
    state_out: Tensor  # [B, R, H] what the next step starts from
    own_mass: Tensor  # [B, R] attention on the chain's own tokens, mean over heads, float32; 0 at step 0


class Eagle3(nn.Module):
    """The drafter of `reference/eagle3.py` as torch modules, every switch included; export proves them equal."""

    embedding: Tensor
    draft_ids: Tensor

    def __init__(self, config: TrainedDrafter, embedding: Tensor, draft_ids: Tensor):
        """`embedding` [V, H] is the target's and stays frozen; `draft_ids` int64 [D] are ascending target ids."""
        super().__init__()
        self.config = c = config
        h, states, std = c.hidden_size, len(c.capture_layers), c.hidden_size**-0.5 * 0.7
        # the target's, which every run has: a checkpoint of a large vocabulary would be mostly this
        self.register_buffer("embedding", embedding.detach(), persistent=False)
        self.register_buffer("draft_ids", draft_ids)
        width = states * c.target_hidden_size
        if c.feature_norm == "per_state":
            self.fc_norm = nn.ModuleList(RMSNorm(c.target_hidden_size, c.rms_eps) for _ in range(states))
        elif c.feature_norm == "concat":
            self.fc_norm = nn.ModuleList([RMSNorm(width, c.rms_eps)])
        self.fc = Linear(width, h, width**-0.5)
        self.attn_norm, self.hidden_norm = RMSNorm(h, c.rms_eps), RMSNorm(h, c.rms_eps)
        self.qkv = Linear(2 * h, (c.n_heads + 2 * c.n_kv_heads) * c.head_dim, (2 * h) ** -0.5 * 0.7)
        self.o = Linear(c.n_heads * c.head_dim, h, std)
        self.ffn_norm = RMSNorm(h, c.rms_eps)
        self.gate_up = Linear(h, 2 * c.intermediate_size, std)
        self.down = Linear(c.intermediate_size, h, c.intermediate_size**-0.5 * 0.7)
        self.norm = RMSNorm(h, c.rms_eps)
        self.head = Linear(h, c.draft_vocab_size, std)
        self.head.weight.data.copy_(embedding[draft_ids])

    @torch.no_grad()
    def scale_inputs(self, sizes: list[float]) -> None:
        """Begin with an fc that takes captured states of these sizes (RMS) for states of size 1, where no norm does."""
        for part, size in zip(self.fc.weight.chunk(len(sizes), 1), sizes, strict=True):
            part.div_(max(size, 1e-6))

    def encode(self, states: list[Tensor]) -> Tensor:
        """Captured states, each [B, T, Ht] -> g [B, T, H], with the feature norm the config names."""
        if self.config.feature_norm == "per_state":
            return self.fc(torch.cat([norm(x) for norm, x in zip(self.fc_norm, states, strict=True)], -1))
        features = torch.cat([x.float() for x in states], -1)
        return self.fc(self.fc_norm[0](features) if self.config.feature_norm == "concat" else features)

    def project(self, tokens: Tensor, state: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """tokens [B, R], state [B, R, H] -> residual [B, R, H] and rotated q, k, v [B, heads, R, hd]."""
        c, (b, r) = self.config, tokens.shape
        normed = self.hidden_norm(state)
        x = torch.cat([self.attn_norm(F.embedding(tokens, self.embedding)), normed], -1)
        qkv = self.qkv(x).view(b, r, -1, c.head_dim).transpose(1, 2)
        q, k, v = qkv.split([c.n_heads, c.n_kv_heads, c.n_kv_heads], 1)
        q, k = rope(q, cos, sin).to(v.dtype), rope(k, cos, sin).to(v.dtype)
        group = c.n_heads // c.n_kv_heads
        residual = normed if c.residual == "normed" else state
        return residual, q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)

    def finish(self, residual: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """attended [B, heads, R, hd] -> (h pre-norm, n post-norm), each [B, R, H]."""
        b, _, r, _ = attended.shape
        y = residual + self.o(attended.transpose(1, 2).reshape(b, r, -1))
        gate, up = self.gate_up(self.ffn_norm(y)).chunk(2, -1)
        h = y + self.down(F.silu(gate) * up)
        return h, self.norm(h)

    def chain(
        self, tokens: Tensor, states: list[Tensor], mask: Tensor, rows: Tensor, depth: int
    ) -> Iterator[ChainStep]:
        """Unroll `depth` TTT steps; yields a ChainStep of the chosen rows at each.

        tokens [B, T+depth], states each [B, T, Ht], mask [B, 1, T, T], rows int64 [B, R] ascending row numbers: only
        its own row sees the keys of later steps, so rows without loss need none.
        """
        c, t = self.config, states[0].shape[1]
        scale, heads = c.head_dim**-0.5, c.n_heads

        def pick(x: Tensor) -> Tensor:  # [B, heads, T, hd] -> [B, heads, R, hd]
            return x.gather(2, rows[:, None, :, None].expand(-1, heads, -1, c.head_dim))

        cos, sin = rope_tables(torch.arange(t + depth, device=tokens.device), c.head_dim, c.rope_theta)
        residual, q, keys, values = self.project(tokens[:, 1 : t + 1], self.encode(states), cos[:t], sin[:t])
        row_mask = mask[:, 0].gather(1, rows[:, :, None].expand(-1, -1, t))[:, None]  # [B, 1, R, T]
        q, residual = pick(q), residual.gather(1, rows[:, :, None].expand(-1, -1, c.hidden_size))
        own: list[tuple[Tensor, Tensor]] = []
        for i in range(depth):
            scores = [(q * scale) @ keys.transpose(-1, -2) + row_mask]
            scores += [((q * scale) * k).sum(-1, keepdim=True) for k, _ in own]
            exact = torch.softmax(torch.cat(scores, -1).float(), -1)  # [B, heads, R, T + i]
            weights = exact.to(values.dtype)
            attended = weights[..., :t] @ values
            for j, (_, v) in enumerate(own):
                attended = attended + weights[..., t + j : t + j + 1] * v
            h, normed = self.finish(residual, attended)
            fed = normed if c.feedback == "post_norm" else h
            yield ChainStep(normed, fed, exact[..., t:].sum(-1).mean(1))
            if i + 1 < depth:
                at = rows + i + 1
                picked_cos, picked_sin = cos[at][:, None], sin[at][:, None]  # [B, 1, R, hd]
                residual, q, k, v = self.project(tokens.gather(1, at + 1), fed, picked_cos, picked_sin)
                own.append((k, v))

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Weights under the names of the speculators EAGLE 3.1 layout, float32; d2t holds offsets."""
        c = self.config
        heads = [c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim]
        q, k, v = self.qkv.weight.split(heads)
        gate, up = self.gate_up.weight.chunk(2)
        p = "layers.0."
        out = {
            "fc.weight": self.fc.weight,
            "embed_tokens.weight": self.embedding,
            "lm_head.weight": self.head.weight,
            "norm.weight": self.norm.weight,
            p + "input_layernorm.weight": self.attn_norm.weight,
            p + "hidden_norm.weight": self.hidden_norm.weight,
            p + "self_attn.q_proj.weight": q,
            p + "self_attn.k_proj.weight": k,
            p + "self_attn.v_proj.weight": v,
            p + "self_attn.o_proj.weight": self.o.weight,
            p + "post_attention_layernorm.weight": self.ffn_norm.weight,
            p + "mlp.gate_proj.weight": gate,
            p + "mlp.up_proj.weight": up,
            p + "mlp.down_proj.weight": self.down.weight,
        }
        if c.feature_norm == "per_state":
            out |= {f"fc_norm.{i}.weight": norm.weight for i, norm in enumerate(self.fc_norm)}
        elif c.feature_norm == "concat":
            out["input_norm.weight"] = self.fc_norm[0].weight
        member, ids = torch.zeros(c.vocab_size, dtype=torch.bool), self.draft_ids.cpu()
        member[ids] = True
        tensors = {name: w.detach().float().cpu().contiguous() for name, w in out.items()}
        return tensors | {"d2t": ids - torch.arange(c.draft_vocab_size), "t2d": member}

    def load_checkpoint_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `checkpoint_state`: parameters under this module's names, and `draft_ids`; KeyError."""
        p = "layers.0."
        ours = {
            "fc.weight": state["fc.weight"],
            "head.weight": state["lm_head.weight"],
            "norm.weight": state["norm.weight"],
            "attn_norm.weight": state[p + "input_layernorm.weight"],
            "hidden_norm.weight": state[p + "hidden_norm.weight"],
            "qkv.weight": torch.cat([state[f"{p}self_attn.{x}_proj.weight"] for x in "qkv"]),
            "o.weight": state[p + "self_attn.o_proj.weight"],
            "ffn_norm.weight": state[p + "post_attention_layernorm.weight"],
            "gate_up.weight": torch.cat([state[f"{p}mlp.{x}_proj.weight"] for x in ("gate", "up")]),
            "down.weight": state[p + "mlp.down_proj.weight"],
        }
        if self.config.feature_norm == "per_state":
            ours |= {
                f"fc_norm.{i}.weight": state[f"fc_norm.{i}.weight"] for i in range(len(self.config.capture_layers))
            }
        elif self.config.feature_norm == "concat":
            ours["fc_norm.0.weight"] = state["input_norm.weight"]
        offsets = state["d2t"].long()
        return {name: w.float() for name, w in ours.items()} | {"draft_ids": torch.arange(len(offsets)) + offsets}

    def checkpoint_config(self) -> dict:
        """config.json of the speculators EAGLE 3.1 layout."""
        c = self.config
        layer = {
            "model_type": "llama", "hidden_size": c.hidden_size, "num_attention_heads": c.n_heads,
            "num_key_value_heads": c.n_kv_heads, "head_dim": c.head_dim, "intermediate_size": c.intermediate_size,
            "num_hidden_layers": 1, "rms_norm_eps": c.rms_eps, "vocab_size": c.vocab_size, "hidden_act": "silu",
            "max_position_embeddings": c.context_length, "attention_bias": False, "mlp_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta}, "tie_word_embeddings": False,
        }  # fmt: skip
        return {
            "architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3", "model_type": "speculator_model",
            "transformer_layer_config": layer, "draft_vocab_size": c.draft_vocab_size,
            "target_hidden_size": c.target_hidden_size, "norm_before_residual": c.residual == "normed",
            "norm_before_fc": c.feature_norm == "concat", "fc_norm": c.feature_norm == "per_state",
            "norm_output": c.feedback == "post_norm",
            "eagle_aux_hidden_state_layer_ids": list(c.capture_layers), "torch_dtype": "float32",
        }  # fmt: skip
