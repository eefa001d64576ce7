"""What drafters learn from a batch, and their loss.

`Lesson` holds everything the variants of one run share: the target's states, its distribution at each depth, and which
rows count.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refspec.train.drafter import Eagle3
from refspec.train.model import Target, document_mask
from refspec.train.precision import compute_type, mixed

DEPTH_WEIGHT = 0.8  # loss_i counts 0.8^i (EAGLE-3; SafeAILab, SpecForge and TorchSpec agree)


class TopTokens(NamedTuple):
    """A distribution over the draft vocabulary as its likeliest tokens and the mass of the rest."""

    ids: Tensor  # int64 [B, R, k] draft ids
    p: Tensor  # [B, R, k]
    rest: Tensor  # [B, R]

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """[B, R] of a drafter's logits [B, R, D], all tokens that are not kept counting as one."""
        logq = F.log_softmax(logits, -1).gather(-1, self.ids)  # [B, R, k]
        other = torch.log1p(-logq.exp().sum(-1).clamp(max=1 - 1e-6))
        return -(self.p * logq).sum(-1) - self.rest * other


class AllTokens(NamedTuple):
    """A distribution over the draft vocabulary, all of it."""

    p: Tensor  # [B, R, D]

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """[B, R] of a drafter's logits [B, R, D]."""
        return -(self.p * F.log_softmax(logits, -1)).sum(-1)


class Lesson(NamedTuple):
    """One batch of B sequences of T tokens with R chosen rows each, for chains of K steps."""

    tokens: Tensor  # int64 [B, T+K+1]
    states: list[Tensor]  # captured, each [B, T, Ht]
    mask: Tensor  # [B, 1, T, T]
    rows: Tensor  # int64 [B, R] ascending
    # K times the target's over the draft vocabulary, at the teacher's temperature
    p_target: list[TopTokens] | list[AllTokens]
    best: list[Tensor]  # K x int64 [B, R] the target's argmax, a target id
    in_vocabulary: list[Tensor]  # K x bool [B, R] whether that is in the draft vocabulary
    valid: list[Tensor]  # K x bool [B, R] whether the row counts: the assistant's, in its own document


class Teacher:
    """Makes Lessons with a target on a device."""

    def __init__(
        self,
        target: Target,
        capture: tuple[int, ...],
        draft_ids: Tensor,
        bos: int,
        depth: int,
        temperature: float = 1.0,
    ) -> None:
        """`temperature` is that of the distribution to learn; towards 0 it becomes the target's first choice."""
        self.temperature = temperature
        self.target, self.capture, self.draft_ids, self.bos, self.depth = target, capture, draft_ids, bos, depth
        self.device = draft_ids.device
        none = torch.zeros(target.config.vocab_size, dtype=torch.bool, device=self.device)
        self.head = target.embed.weight.detach()[draft_ids]  # [D, H]
        self.member = none.index_fill_(0, draft_ids, True)

    @torch.no_grad()
    def lesson(self, tokens: np.ndarray, mask: np.ndarray, share: float) -> Lesson:
        """Tokens int64 [B, T] and the assistant's mask [B, T]; `share` of the rows are chosen."""
        depth = self.depth
        mine = torch.from_numpy(mask).bool().to(self.device)
        ids = torch.from_numpy(tokens).to(self.device)
        document = (ids == self.bos).cumsum(-1)
        seen, t = document_mask(ids, self.bos), ids.shape[1]
        with mixed(self.device):
            hidden, states = self.target(ids, seen, self.capture)
            hidden = hidden.to(compute_type(self.device))
            best = self.target.head(hidden).argmax(-1)  # [B, T] of the whole vocabulary
            # [B, T, D]; multiplying again is quicker than picking columns of the full logits
            drafted = F.linear(hidden, self.head.to(hidden.dtype))

        def valid_at(i: int) -> Tensor:  # row s predicts x_{s+2+i}: the assistant's, in the same document
            shift = slice(2 + i, 2 + i + t)
            inside = F.pad(document, (0, depth + 2), value=-1)[:, shift] == document
            return F.pad(mine, (0, depth + 1))[:, shift] & inside

        rows = choose_rows(valid_at(0), int(t * share))
        where = [(rows + 1 + i).clamp(max=t - 1) for i in range(depth)]
        over_draft = torch.softmax(drafted.float() / self.temperature, -1)
        p_target = [AllTokens(over_draft.gather(1, at[:, :, None].expand(-1, -1, len(self.draft_ids)))) for at in where]
        agreed = [best.gather(1, at) for at in where]
        return Lesson(
            F.pad(ids, (0, depth + 1)), states, seen, rows, p_target, agreed, [self.member[b] for b in agreed],
            [valid_at(i).gather(1, rows) for i in range(depth)],
        )  # fmt: skip


def choose_rows(valid: Tensor, count: int) -> Tensor:
    """`count` random rows of each sequence, those with loss first: bool [B, T] -> int64 [B, R] ascending."""
    # the same on every device
    draw = torch.rand(valid.shape, generator=torch.Generator().manual_seed(int(valid.sum())))
    return (draw.to(valid.device) + valid.float()).topk(count, 1).indices.sort(1).values


def chain_losses(drafter: Eagle3, lesson: Lesson, depth: int) -> tuple[Tensor, list, list]:
    """TTT loss, and per depth the number of argmax agreements and of scored rows (both empty while gradients are on).

    With CE_i the soft cross-entropy of step i = 0..K-1, averaged over the rows that count and have the target's best
    token in the draft vocabulary, and m_i the attention that a row of step i gives the chain's own tokens (keys of
    steps 1..i, its own one included) instead of true rows, averaged over heads and over the rows that count,

        loss = sum_i 0.8^i CE_i + attention_reg / (K-1) * sum_{i=1..K-1} m_i

    The second term is the attention regularizer: 0 where all attention stays on true rows, attention_reg where none
    does.
    """
    total, hits, scored = torch.zeros((), device=lesson.tokens.device), [], []
    alive = None
    weight = drafter.config.attention_reg / max(1, depth - 1)
    for i, step in enumerate(drafter.chain(lesson.tokens, lesson.states, lesson.mask, lesson.rows, depth)):
        valid = lesson.valid[i]
        logits = drafter.head(step.normed).float()
        loss = lesson.p_target[i].cross_entropy(logits)
        total = total + DEPTH_WEIGHT**i * _mean(loss, valid & lesson.in_vocabulary[i])
        if weight and i:
            total = total + weight * _mean(step.own_mass, valid)
        if not torch.is_grad_enabled():
            right = drafter.draft_ids[logits.argmax(-1)] == lesson.best[i]
            alive = right if alive is None else alive & right
            hits.append((int((right & valid).sum()), int((alive & valid).sum())))
            scored.append(int(valid.sum()))
    return total, hits, scored


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum() / counted.sum().clamp(min=1)
