"""The drafter alone in torch: variants of it on the same lessons, as the step loop wants them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from refspec.train.budget import Plan
from refspec.train.drafter import Eagle3, TrainedDrafter
from refspec.train.drafter_loss import Lesson, chain_losses
from refspec.train.drafters import Separately
from refspec.train.lesson_batches import LessonBatches
from refspec.train.lessons import Lessons
from refspec.train.loop import Optimizers, tune_allocator
from refspec.train.precision import choose_device, mixed

HELD_OUT = 32  # one document of so many is held out
ROWS, LENGTH = 8, 512  # one step


class LessonTraining:
    """Variants of a drafter on the same lessons, as the step loop wants them."""

    def __init__(
        self,
        lessons: Lessons,
        variants: dict[str, TrainedDrafter],
        plan: Plan,
        embedding: Tensor,
        *,
        threads: int | None,
        device: str,
        muon_lr: float = 0.02,
        adam_lr: float = 0.002,
    ) -> None:
        tune_allocator()
        if threads:
            torch.set_num_threads(threads)
        self.depth, self.device = plan.depth, choose_device(device)
        documents = range(len(lessons.answered.starts) - 1)
        self.held = [d for d in documents if d % HELD_OUT == 0]  # documents nobody learns from
        kept = [d for d in documents if d % HELD_OUT]
        how: dict[str, Any] = {"length": LENGTH, "depth": plan.depth, "device": self.device}
        self.batches = LessonBatches(
            lessons, kept or self.held, rows=ROWS, seed=plan.seed, share=0.75, temperature=plan.teacher_temp, **how
        )
        self.held_out = LessonBatches(lessons, self.held, rows=1, seed=0, share=1.0, **how)
        scales = input_scales(lessons)
        draft_ids = torch.from_numpy(lessons.draft_ids)
        self.drafters: dict[str, Eagle3] = {}
        for name, config in variants.items():
            torch.manual_seed(plan.seed)  # the same draw for every twin: shared matrices start equal
            drafter = Eagle3(config, embedding, draft_ids)
            if config.feature_norm == "none":
                drafter.scale_inputs(scales)
            self.drafters[name] = drafter.to(self.device)
        self.together = nn.ModuleDict(self.drafters)
        self.optimizers = Separately(
            [
                Optimizers(d, muon_lr=muon_lr, adam_lr=adam_lr, is_matrix=lambda n: "head" not in n)
                for d in self.drafters.values()
            ]
        )

    def loss_of(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the variants' losses on batch `step`, and each of them."""
        lesson = self.batches[step]
        each = {name: self._loss(drafter, lesson) for name, drafter in self.drafters.items()}
        return sum(each.values()), {f"loss_{n}": v.detach() for n, v in each.items()}  # type: ignore[return-value]

    def _loss(self, drafter: Eagle3, lesson: Lesson) -> Tensor:
        with mixed(self.device):
            return chain_losses(drafter, lesson, self.depth)[0]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss, agreement by depth and tau on held-out answers, for each variant.

        The answers are the target's own, so tau is what greedy drafts would reach on greedy answers of this length.
        """
        figures: dict[str, float] = {}
        count = min(32, self.held_out.per_epoch)
        for name, drafter in self.drafters.items():
            loss, hits, scored = 0.0, np.zeros((self.depth, 2)), np.zeros(self.depth)
            for i in range(count):
                with mixed(self.device):
                    value, right, rows = chain_losses(drafter, self.held_out[i], self.depth)
                loss, hits, scored = loss + float(value) / count, hits + np.asarray(right), scored + np.asarray(rows)
            figures[f"{name}_loss"] = loss
            for i in range(self.depth):
                figures[f"{name}_agree_{i}"] = hits[i, 0] / max(scored[i], 1)
            figures[f"{name}_tau"] = 1 + float((hits[:, 1] / np.maximum(scored, 1)).sum())
        return figures


def input_scales(lessons: Lessons, sample: int = 4096) -> list[float]:
    """Usual root mean square of each captured state: the median over tokens, a sink's being a hundred times larger."""
    states = lessons.arrays["states"]
    picked = np.asarray(states[:: max(len(states) // sample, 1)]).astype(np.float32)  # [n, S, Ht]
    return [float(s) for s in np.median(np.sqrt(np.mean(picked * picked, -1)), 0)]
