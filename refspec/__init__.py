"""refspec: normalized speculative drafters (EAGLE-3 and EAGLE 3.1) for language models run by llama.cpp.

`load` a pair, `Session.generate` text; `refspec.session` shows it in five lines.
"""

from refspec.errors import BackendError, CheckpointError, PromptError, RefspecError, ShapeError, UsageError
from refspec.reference.metrics import Seconds, Statistics, Step
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler
from refspec.session import Event, Generation, Session, load

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
