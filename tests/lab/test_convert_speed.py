"""`convert-speed` measures a conversion beside a copy, leaves nothing behind, and says which bar is missed."""

import json

import numpy as np
import pytest
from cli_models import one_line_error
from lab_command import call

from lab import convert_speed
from refspec.convert import convert_drafter


@pytest.mark.parametrize("size", [20e6, 300e6, 2e9, 6e9])
def test_the_synthetic_drafter_has_the_size_asked_for(size):
    held = 2 * sum(int(np.prod(shape)) for shape in convert_speed.shapes(size).values())
    assert held == pytest.approx(size, rel=0.15)


def test_the_synthetic_drafter_is_one_the_converter_takes(tmp_path):
    written = convert_speed.write_checkpoint(tmp_path, 20e6)
    assert written == (tmp_path / "model.safetensors").stat().st_size
    report = convert_drafter(tmp_path, None, tmp_path / "d.gguf", "f16")
    assert report.arch == "eagle3" and report.resolved["capture_layers"].value == (2, 16, 29)


def test_it_measures_and_leaves_nothing_behind(tmp_path):
    result = call("convert-speed", "--size", 0.02, "--repeat", 1, "--dir", tmp_path, "--json")
    made = json.loads(result.stdout)  # the exit code says whether this machine meets the bars
    assert made["within"] == (result.exit_code == 0) and list(tmp_path.iterdir()) == []
    assert (
        made["peak_resident_bytes"] < made["memory_bar"] and made["idle_resident_bytes"] <= made["peak_resident_bytes"]
    )
    assert len(made["copy_seconds"]) == len(made["convert_seconds"]) == 1 and made["gguf_bytes"] > 0


def test_the_table_says_which_bar_is_missed():
    made = {
        "checkpoint_bytes": 2e9,
        "gguf_bytes": 2e9,
        "outtype": "f16",
        "repeat": 1,
        "copy_seconds": [1.0],
        "convert_seconds": [4.0],
        "speed_of_copying": 0.25,
        "peak_resident_bytes": 2e9,
        "idle_resident_bytes": 5e7,
        "memory_bar": 1e9,
        "speed_bar": 0.5,
    }
    text = "\n".join(convert_speed.table(made))
    assert "0.25 of copying (median of pairs): MISSES the bar of 0.5" in text and "MISSES the bar of 1000 MB" in text


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path):
    assert "are needed" in one_line_error(call("convert-speed", "--size", 1e6, "--dir", tmp_path), 2)
    assert "name another with --dir" in one_line_error(call("convert-speed", "--dir", tmp_path / "none"), 2)
    assert list(tmp_path.iterdir()) == []
