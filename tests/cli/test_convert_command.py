"""`refspec convert`: options reach the converter, facts go to stdout, refusals are one line that names the option."""

import json
import sys
from pathlib import Path

import pytest
from cli_models import call, one_line_error

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "formats"))

from formats_toys import write_drafter_directory

from refspec.gguf.io import read_drafter

ORACLE = Path(__file__).parent.parent / "vectors" / "oracles" / "specforge_fc_norm_norm_output_true" / "checkpoint"


def test_what_was_resolved_is_printed(tmp_path):
    folder = write_drafter_directory(tmp_path / "draft")
    result = call("convert", folder, "-o", tmp_path / "d.gguf", "--outtype", "f32")
    assert result.exit_code == 0, result.output
    for word in ("refspec-eagle3", "post_norm", "speculators meaning", "2, 3, 4", "stock llama.cpp cannot run it"):
        assert word in result.stdout
    assert [p.name for p in tmp_path.glob("*.gguf*")] == ["d.gguf"]


def test_every_override_arrives(tmp_path):
    options = ["--feedback", "post_norm", "--residual", "normed", "--feature-norm", "none", "--head-norm", "no",
               "--layer-ids", "1,2, 6", "--rope-theta", "5e5", "--d2t", "offsets", "--ignore", "pretraining_tp", "--name", "toy", "--json"]  # fmt: skip
    result = call("convert", ORACLE, "-o", tmp_path / "d.gguf", *options)
    assert result.exit_code == 0, result.output
    c, _ = read_drafter(tmp_path / "d.gguf")
    assert (c.feedback.value, c.residual.value, c.feature_norm.value) == ("post_norm", "normed", "none")
    assert (c.head_norm, c.capture_layers, c.rope_theta) == (False, (1, 2, 6), 500000.0)
    resolved = json.loads(result.stdout)["resolved"]
    assert all(
        resolved[k]["source"].startswith("override")
        for k in ("feedback", "residual", "feature_norm", "head_norm", "rope", "d2t")
    )


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ([], "--layer-ids"),
        (["--layer-ids", "2,4,5"], "--feedback"),
        (["--layer-ids", "2,x"], "--layer-ids"),
        (["--layer-ids", "2,4,5", "--feedback", "pre_norm", "--ignore", "nothing"], "--ignore"),
    ],
)
def test_a_refusal_names_the_option_and_leaves_no_file(tmp_path, options, word):
    result = call("convert", ORACLE, "-o", tmp_path / "d.gguf", *options)
    assert result.exit_code in (1, 2) and word in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_directory_without_a_checkpoint_is_one_line(tmp_path):
    assert "config.json" in one_line_error(call("convert", tmp_path, "-o", tmp_path / "d.gguf"))
