"""A toy target of the loop tests with real EAGLE-3 drafters of a few dimensions on it, for the drift measurement."""

import importlib.util
from pathlib import Path

import numpy as np

from refspec.reference.config import DrafterConfig, Feedback, Residual, RopeStyle, weight_shapes
from refspec.reference.eagle3 import Eagle3Drafter

HERE = Path(__file__).parent
LAYERS = (0, 1)  # the toy target captures its position and its token


def borrowed(name, path):
    """A helper of another area's tests, under a name of its own."""
    spec = importlib.util.spec_from_file_location(name, HERE.parent / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toys = borrowed("drift_loop_toys", "decoding/loop_toys.py")
cli_models = borrowed("drift_cli_models", "cli/cli_models.py")


def drafter(seed=0, vocab=4, feedback="pre_norm", **zeroed):
    """A random drafter for ToyTarget(vocab); tensors named in `zeroed` are 0."""
    config = DrafterConfig(
        hidden_size=8,
        target_hidden_size=1,
        capture_layers=LAYERS,
        n_heads=2,
        n_kv_heads=1,
        head_dim=4,
        intermediate_size=12,
        vocab_size=vocab,
        draft_vocab_size=vocab,
        rms_eps=1e-6,
        rope_theta=1e4,
        rope_style=RopeStyle.INTERLEAVED,
        feature_norm="none",
        feedback=Feedback(feedback),
        residual=Residual.RAW,
    )
    rng = np.random.default_rng(seed)
    weights = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else rng.standard_normal(shape).astype(np.float32)
        for name, shape in weight_shapes(config)[0].items()
        if name != "d2t"
    }
    for name in zeroed:
        weights[name] = np.zeros_like(weights[name])
    return Eagle3Drafter(config, weights)


def target(vocab=4, n_ctx=60, end=(), **settings):
    return toys.ToyTarget(n_vocab=vocab, n_ctx=n_ctx, end=end, **settings)
