"""Sizes of the toy target every training test shares."""

from __future__ import annotations

from refspec.train.model import TargetConfig

CONFIG = TargetConfig(
    vocab_size=320, hidden_size=32, n_layers=6, n_heads=2, n_kv_heads=1, head_dim=16, intermediate_size=48
)
STEPS = 4
