"""Stock llama.cpp loads the drafters it computes exactly and loudly refuses all others:

the unmodified library is asked.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from formats_toys import drafter_config, drafter_weights

from refspec.gguf.io import write_drafter


def loads(path: Path) -> bool:
    """Whether the unmodified library loads the file, judged in this process: a refusal is a NULL, not an abort."""
    llama_cpp = pytest.importorskip("llama_cpp")
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if model:
        llama_cpp.llama_model_free(model)
    return bool(model)


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize("norm", ["none", "concat"])
@pytest.mark.parametrize("residual", ["raw", "normed"])
@pytest.mark.parametrize("draft_vocab", [160, 600])
def test_stock_llama_cpp_loads_what_it_computes(
    tmp_path: Path, outtype: str, norm: str, residual: str, draft_vocab: int
) -> None:
    config = drafter_config(feature_norm=norm, residual=residual, feedback="pre_norm", draft_vocab_size=draft_vocab)
    assert loads(write_drafter(tmp_path / "d.gguf", config, drafter_weights(config), outtype=outtype))


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_norm": "none"}, {"feedback": "pre_norm"}, {"feature_norm": "none", "qk_norm": True},
        *({"feature_norm": "none", "feedback": "pre_norm"} | c for c in (
            {"biases": ("attn_q",)}, {"head_norm": False}, {"qk_norm": True}, {"capture_layers": (2, 3)},
            {"capture_layers": (1, 2, 3, 4)},
        )),
    ],
)  # fmt: skip
def test_stock_llama_cpp_refuses_what_it_would_compute_wrongly(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = drafter_config(**changes)
    assert not loads(write_drafter(tmp_path / "d.gguf", config, drafter_weights(config)))


def test_the_refusal_is_loud_and_names_the_architecture(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    path = write_drafter(tmp_path / "d.gguf", drafter_config(), drafter_weights(drafter_config()))
    program = f"import llama_cpp; llama_cpp.Llama({str(path)!r}, verbose=True)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and "unknown model architecture: 'refspec-eagle3'" in done.stderr
