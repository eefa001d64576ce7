"""refspec: normalized speculative drafters (EAGLE-3 and EAGLE 3.1) for language models run by llama.cpp.

`load` a pair, `Session.generate` text; `refspec.api` shows it in five lines.
"""

from refspec.api import Event, Generation, Session, load
from refspec.errors import BackendError, CheckpointError, PromptError, RefspecError, ShapeError, UsageError
from refspec.metrics import Seconds, Statistics, Step
from refspec.penalties import Penalties
from refspec.sampling import Sampler

__all__ = [
    "BackendError",
    "CheckpointError",
    "Event",
    "Generation",
    "Penalties",
    "PromptError",
    "RefspecError",
    "Sampler",
    "Seconds",
    "Session",
    "ShapeError",
    "Statistics",
    "Step",
    "UsageError",
    "load",
]
