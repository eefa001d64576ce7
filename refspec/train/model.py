"""The target in torch: a plain Llama decoder (RMSNorm, RoPE half-split, grouped-query attention, SwiGLU, tied head).

Trained with float32 master weights, in bf16 where the device is fast at it (`precision.py`). `hidden_boundaries`
returns the residual stream entering chosen layers, which is what an EAGLE-3 drafter reads.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TargetConfig:
    """Sizes of the target; `context_length` is the longest position it is trained for."""

    vocab_size: int = 4096
    hidden_size: int = 192
    n_layers: int = 14
    n_heads: int = 3
    n_kv_heads: int = 1
    head_dim: int = 64
    intermediate_size: int = 512
    rms_eps: float = 1e-5
    rope_theta: float = 10000.0
    context_length: int = 1024

    def to_dict(self) -> dict:
        """Plain values, for a checkpoint's identity."""
        return asdict(self)

    @property
    def default_capture_layers(self) -> tuple[int, int, int]:
        """Boundaries {2, n//2, n-3}, the default every EAGLE-3 code base shares."""
        return (2, self.n_layers // 2, self.n_layers - 3)


def rope_tables(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each [T, head_dim], half-split layout."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim)
    angle = positions.float()[:, None] * inverse[None, :]
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, T, hd] by tables [T, hd]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def document_mask(tokens: Tensor, bos: int) -> Tensor:
    """Additive [B, 1, T, T] bf16 mask: causal, and no row sees a document before its own (a BOS starts a document)."""
    document = (tokens == bos).cumsum(-1)
    seen = (document[:, :, None] == document[:, None, :]).tril()
    mask = torch.zeros(seen.shape, dtype=torch.bfloat16, device=seen.device).masked_fill_(~seen, float("-inf"))
    return mask[:, None]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [B, H, T, hd], k and v [B, H, S, hd], mask [B, 1, T, S] -> [B, H, T, hd].

    Written out on a processor: torch's CPU kernel is 2-3x slower at these sizes (T <= 1024, head_dim 64, bf16).
    """
    if q.is_cuda:
        return fused_attention(q, k, v, mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + mask
    return torch.softmax(scores, -1) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The same by torch's kernel, which on an accelerator keeps no [T, S] scores."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(-1, q.shape[1], -1, -1).to(q.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in float32 (`ops.rms_norm`)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


class Linear(nn.Linear):
    """A matrix without bias, drawn from a normal distribution of standard deviation `std`."""

    def __init__(self, inputs: int, outputs: int, std: float):
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight, std=std)


class Block(nn.Module):
    """One Llama layer: pre-norm attention and SwiGLU, each added to the residual stream."""

    def __init__(self, c: TargetConfig):
        super().__init__()
        self.c = c
        std, out_std = c.hidden_size**-0.5 * 0.7, c.hidden_size**-0.5 * 0.7 / (2 * c.n_layers) ** 0.5
        self.attn_norm = RMSNorm(c.hidden_size, c.rms_eps)
        self.qkv = Linear(c.hidden_size, (c.n_heads + 2 * c.n_kv_heads) * c.head_dim, std)
        self.o = Linear(c.n_heads * c.head_dim, c.hidden_size, out_std)
        self.ffn_norm = RMSNorm(c.hidden_size, c.rms_eps)
        self.gate_up = Linear(c.hidden_size, 2 * c.intermediate_size, std)
        self.down = Linear(c.intermediate_size, c.hidden_size, out_std)

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, H] -> q [B, heads, T, hd], k and v [B, kv heads, T, hd], the first two rotated."""
        c, (b, t, _) = self.c, x.shape
        qkv = self.qkv(self.attn_norm(x)).view(b, t, -1, c.head_dim).transpose(1, 2)
        qk, v = qkv.split([c.n_heads + c.n_kv_heads, c.n_kv_heads], 1)
        q, k = rope(qk, cos, sin).to(v.dtype).split([c.n_heads, c.n_kv_heads], 1)
        return q, k, v

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """The residual stream x [B, T, H] with what attention read, y [B, heads, T, hd], and the feed-forward of it."""
        x = x + self.o(y.transpose(1, 2).reshape(*x.shape[:2], -1))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, H], cos and sin of `rope_tables`, mask [B, 1, T, T] -> [B, T, H]."""
        q, k, v = self.heads(x, cos, sin)
        group = self.c.n_heads // self.c.n_kv_heads
        return self.after(x, attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), mask))


class Target(nn.Module):
    """A Llama-architecture model whose head is its embedding; q and k have Hugging Face's half-split RoPE order."""

    def __init__(self, config: TargetConfig):
        super().__init__()
        self.config = c = config
        self.embed = nn.Embedding(c.vocab_size, c.hidden_size)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = [Block(c) for _ in range(c.n_layers)]
        self.blocks = nn.ModuleList(self.layers)  # registers them
        self.norm = RMSNorm(c.hidden_size, c.rms_eps)

    def forward(self, tokens: Tensor, mask: Tensor, capture: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        """tokens [B, T], mask [B, 1, T, T] -> (normed last hidden [B, T, H], captured boundaries, each [B, T, H])."""
        c = self.config
        cos, sin = rope_tables(torch.arange(tokens.shape[1], device=tokens.device), c.head_dim, c.rope_theta)
        x = self.embed(tokens)
        states = {}
        for i, block in enumerate(self.layers):
            if i in capture:
                states[i] = x
            x = block(x, cos, sin, mask)
        if c.n_layers in capture:
            states[c.n_layers] = x
        return self.norm(x), [states[i] for i in capture]

    def head(self, hidden: Tensor) -> Tensor:
        """Normed hidden states [..., H] -> logits [..., V]."""
        return F.linear(hidden, self.embed.weight.to(hidden.dtype))

    def hf_state(self) -> dict[str, Tensor]:
        """Weights under Hugging Face Llama names, float32 (the head is tied to the embedding)."""
        c, out = self.config, {"model.embed_tokens.weight": self.embed.weight, "model.norm.weight": self.norm.weight}
        heads = [c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim, c.n_kv_heads * c.head_dim]
        for i, block in enumerate(self.layers):
            p = f"model.layers.{i}."
            q, k, v = block.qkv.weight.split(heads)
            gate, up = block.gate_up.weight.chunk(2)
            out |= {
                p + "self_attn.q_proj.weight": q, p + "self_attn.k_proj.weight": k, p + "self_attn.v_proj.weight": v,
                p + "self_attn.o_proj.weight": block.o.weight, p + "mlp.gate_proj.weight": gate,
                p + "mlp.up_proj.weight": up, p + "mlp.down_proj.weight": block.down.weight,
                p + "input_layernorm.weight": block.attn_norm.weight,
                p + "post_attention_layernorm.weight": block.ffn_norm.weight,
            }  # fmt: skip
        return {name: w.detach().float().cpu().contiguous() for name, w in out.items()}

    def load_hf_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `hf_state`: start from weights under Hugging Face Llama names."""
        c = self.config
        ours = {"embed.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
        for i in range(c.n_layers):
            p, q = f"model.layers.{i}.", f"blocks.{i}."
            ours[q + "qkv.weight"] = torch.cat([state[f"{p}self_attn.{x}_proj.weight"] for x in "qkv"])
            ours[q + "gate_up.weight"] = torch.cat([state[f"{p}mlp.{x}_proj.weight"] for x in ("gate", "up")])
            ours[q + "o.weight"] = state[p + "self_attn.o_proj.weight"]
            ours[q + "down.weight"] = state[p + "mlp.down_proj.weight"]
            ours[q + "attn_norm.weight"] = state[p + "input_layernorm.weight"]
            ours[q + "ffn_norm.weight"] = state[p + "post_attention_layernorm.weight"]
        self.load_state_dict(ours)

    def hf_config(self, bos: int, eos: int) -> dict:
        """config.json as Hugging Face writes it for a Llama model."""
        c = self.config
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": c.hidden_size,
            "num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads,
            "head_dim": c.head_dim, "intermediate_size": c.intermediate_size, "rms_norm_eps": c.rms_eps,
            "rope_theta": c.rope_theta, "vocab_size": c.vocab_size, "max_position_embeddings": c.context_length,
            "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
            "bos_token_id": bos, "eos_token_id": eos, "torch_dtype": "float32",
        }  # fmt: skip
