"""TorchAnswers: a target of a training run answering many prompts at once, on the device that trained it.

`llama/parallel_target.py` does the same for any GGUF in llama.cpp. On two cores torch makes about half of llama.cpp's
tokens per second (900 and 1,600). Legend: B sequences, S positions, T tokens, V vocabulary, hd head size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refspec.decoding.requests import Answer, Request
from refspec.errors import UsageError
from refspec.reference.sampling import Sampler
from refspec.train.model import Block, rope_tables
from refspec.train.precision import choose_device, compute_type, mixed
from refspec.train.target import hf_directory, load_target
from refspec.train.tokenizer import load_tokenizer

POOL = 4  # batches are cut from as many of them, sorted by their prompts' lengths: little of a batch is padding
PARALLEL = {"cuda": 2048, "cpu": 64}


class TorchAnswers:
    """The interface of `ParallelTarget` that `regenerate` uses."""

    def __init__(
        self, run: Path, *, n_ctx: int, device: str = "auto", parallel: int | None = None, threads: int | None = None
    ) -> None:
        """`run` is a run folder of `train target` or a Hugging Face directory. Raises CheckpointError, UsageError."""
        if threads:
            torch.set_num_threads(threads)
        self.device = choose_device(device)
        self.model = load_target(run).to(self.device)
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                module.to(compute_type(self.device))  # once, instead of before every multiplication
        self.path = hf_directory(run)
        if not 1 <= n_ctx <= self.model.config.context_length:
            limit = self.model.config.context_length
            raise UsageError(
                f"{run}: {n_ctx} positions for a prompt and its answer are outside its 1..{limit}; allow shorter ones"
            )
        self.parallel = parallel or PARALLEL[self.device.type]
        self.vocabulary = load_tokenizer(self.path / "tokenizer.json").get_vocab()
        ends = json.loads((self.path / "config.json").read_text("utf-8")).get("eos_token_id")
        self.end_tokens = frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def answers(
        self,
        requests: Iterable[Request],
        *,
        max_new: int,
        sampler: Sampler,
        stop: frozenset[int],
    ) -> Iterator[Answer]:
        """As `ParallelTarget.answers`, but with a temperature only (UsageError).

        A request's neighbours change its answer only by the rounding of the device's matrix multiplications.
        """
        if sampler != Sampler(sampler.temperature):
            raise UsageError(
                f"{self.path}: torch answers without penalties and filters; name this run's GGUF, or leave them out"
            )
        queue = iter(requests)
        while pool := list(islice(queue, POOL * self.parallel)):
            pool.sort(key=lambda request: len(request.prompt))
            for at in range(0, len(pool), self.parallel):
                yield from self._batch(pool[at : at + self.parallel], max_new, sampler.temperature, stop)

    def close(self) -> None:
        """Nothing to free by hand."""

    @torch.no_grad()
    def _batch(
        self, requests: list[Request], max_new: int, temperature: float, stop: frozenset[int]
    ) -> Iterator[Answer]:
        """Answers to one batch; sequences that have ended leave it whenever half of it has."""
        on, longest = self.device, max(len(request.prompt) for request in requests)
        # Prompts end at the same position: the padding before the shorter ones is never attended to.
        prompts = np.zeros((len(requests), longest), np.int64)
        for row, request in enumerate(requests):
            prompts[row, longest - len(request.prompt) :] = request.prompt
        before = torch.tensor([longest - len(request.prompt) for request in requests], device=on)  # [B]
        greedy = torch.tensor([request.coins is None for request in requests], device=on)
        drawn = [np.zeros(max_new) if r.coins is None else r.coins[:max_new] for r in requests]
        coins = torch.from_numpy(np.stack(drawn)).to(on)
        sampled = temperature > 0 and any(request.coins is not None for request in requests)
        stops = torch.tensor(sorted(stop), device=on)
        running, memory = list(requests), _Memory(self.model.layers, len(requests), longest + max_new, on)
        tokens = torch.from_numpy(prompts).to(on)
        said = torch.empty(len(requests), 0, dtype=torch.int64, device=on)
        open_ = torch.ones(len(requests), dtype=torch.bool, device=on)
        for step in range(max_new):
            with mixed(on):
                logits = self._next(tokens, memory, before)
            token = logits.argmax(-1)
            if sampled:
                token = torch.where(greedy, token, draw(logits, coins[:, step], temperature))
            said = torch.cat([said, token[:, None]], 1)
            open_ = open_ & ~torch.isin(token, stops)
            tokens = token[:, None]
            last = step + 1 == max_new
            if not last and (step % 8 or int(open_.sum()) * 2 > len(running)):
                continue  # checked now and then: a check waits for the device
            alive = torch.zeros_like(open_) if last else open_
            written = said.cpu().numpy()
            for i in torch.nonzero(~alive)[:, 0].tolist():
                yield Answer(running[i], _until(written[i].tolist(), stop))
            if not bool(alive.any()):
                return
            kept = torch.nonzero(alive)[:, 0]
            running = [running[i] for i in kept.tolist()]
            before, greedy, coins, said, tokens, open_ = (x[kept] for x in (before, greedy, coins, said, tokens, open_))
            memory.keep(kept)

    def _next(self, tokens: Tensor, memory: _Memory, before: Tensor) -> Tensor:
        """Logits [B, V] float32 after tokens [B, T] at the positions that follow those in memory."""
        c, at = self.model.config, memory.held
        end = at + tokens.shape[1]
        places = torch.arange(end, device=self.device)
        seen = (places[None] >= before[:, None])[:, None] & (places[None] <= places[at:, None])[None]  # [B, T, S]
        # Padding sees itself: nobody reads it, and softmax of nothing is not a number.
        seen = seen | (places[None] == places[at:, None])[None]
        group = c.n_heads // c.n_kv_heads
        mask = torch.zeros(seen.shape, dtype=compute_type(self.device), device=self.device).masked_fill_(
            ~seen, float("-inf")
        )
        mask = mask.repeat(1, group, 1)[:, None]  # [B, 1, group T, S]
        cos, sin = rope_tables(places[at:], c.head_dim, c.rope_theta)
        x = self.model.embed(tokens)
        for layer, block in enumerate(self.model.layers):
            q, k, v = block.heads(x, cos, sin)
            keys, values = memory.put(layer, k, v, at)
            x = block.after(x, _attend(q, keys, values, mask))
        memory.held = end
        return self.model.head(self.model.norm(x[:, -1]).to(compute_type(self.device))).float()


class _Memory:
    """Keys and values [B, kv heads, S, hd] of every layer, the first `held` positions filled."""

    def __init__(self, layers: list[Block], sequences: int, positions: int, device: torch.device) -> None:
        c, self.held = layers[0].c, 0
        shape = (sequences, c.n_kv_heads, positions, c.head_dim)
        self.pairs = [[torch.empty(shape, dtype=compute_type(device), device=device) for _ in "kv"] for _ in layers]

    def put(self, layer: int, k: Tensor, v: Tensor, at: int) -> tuple[Tensor, Tensor]:
        """Store keys and values from position `at` on; all up to them."""
        end = at + k.shape[2]
        for held, new in zip(self.pairs[layer], (k, v), strict=True):
            held[:, :, at:end] = new
        keys, values = self.pairs[layer]
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, sequences: Tensor) -> None:
        """Drop all sequences but these."""
        self.pairs = [[held[sequences] for held in pair] for pair in self.pairs]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [B, heads, T, hd], k and v [B, kv heads, S, hd], additive mask [B, 1, group T, S] -> [B, heads, T, hd].

    The query heads that share a key head are rows of one multiplication: keys are read once, not once a head.
    """
    b, heads, t, hd = q.shape
    rows = q.reshape(b, k.shape[1], heads // k.shape[1] * t, hd)
    return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).reshape(b, heads, t, hd)


def draw(logits: Tensor, coins: Tensor, temperature: float) -> Tensor:
    """Tokens [B], drawn with coins [B] from softmax(logits / temperature) as `sampling.sample` does."""
    weights = torch.exp((logits - logits.max(-1, keepdim=True).values).double() / temperature)
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    point = torch.minimum(coins * total, torch.nextafter(total, torch.zeros_like(total)))
    return (cumulative <= point[:, None]).sum(-1)


def _until(tokens: list[int], stop: frozenset[int]) -> list[int]:
    for i, token in enumerate(tokens):
        if token in stop:
            return tokens[: i + 1]
    return tokens
