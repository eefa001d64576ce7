"""refspec: normalized speculative drafters (EAGLE-3 and EAGLE 3.1) for language models run by llama.cpp.

`load` a pair, `Session.generate` text; `refspec.session` shows it in five lines.
"""

from importlib.metadata import PackageNotFoundError, version

from refspec.errors import BackendError, CheckpointError, PromptError, RefspecError, ShapeError, UsageError
from refspec.options import DraftOptions, ModelOptions
from refspec.reference.metrics import Seconds, Statistics, Step
from refspec.reference.penalties import Penalties
from refspec.reference.sampling import Sampler
from refspec.session import Event, Generation, Session, load

try:
    __version__ = version("refspec")
except PackageNotFoundError:  # a checkout that is imported, and not installed
    __version__ = "0+unknown"

__all__ = [
    "BackendError",
    "CheckpointError",
    "DraftOptions",
    "Event",
    "Generation",
    "ModelOptions",
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
    "__version__",
    "load",
]
