"""llama.cpp as refspec uses it: models, contexts, hidden states. Only `lib.py` imports `llama_cpp`."""

from refspec.engine.amx import REFUSED, repacking_works
from refspec.engine.checks import check_boundaries, check_target
from refspec.engine.context import Context, RowBatch, check_threads, default_threads
from refspec.engine.model import Model
from refspec.engine.pairing import Lender, check_pair, drafter_config

__all__ = [
    "REFUSED", "Context", "Lender", "Model", "RowBatch", "check_boundaries", "check_pair", "check_target", "check_threads",
    "default_threads", "drafter_config", "repacking_works",
]  # fmt: skip
