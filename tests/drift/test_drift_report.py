"""From tallies to the record: means, intervals, table, figures."""

import base64
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from drift_toys import LAYERS, drafter, target

from refspec.errors import CheckpointError
from refspec.evaluate import drift_report
from refspec.evaluate.drift import FIGURES, Tally, over
from refspec.reference.sampling import Sampler

ABOUT = {"feedback": "pre_norm", "residual": "raw", "feature_norm": "none"}
SETTINGS = {"target": "toy", "prompts": 4, "prompt_file": "built-in", "max_tokens": 12, "temp": 0.0}


@pytest.fixture(scope="module")
def measured():
    prompts = [[1, 2, 3, 0], [3, 3, 1], [2, 1, 0, 0, 1], [0, 1, 2, 3, 1, 1]]
    drafters = {"one": drafter(1), "two <b>": drafter(2, feedback="post_norm")}
    found = over(target(), drafters, prompts, LAYERS, depth=3, max_tokens=12, sampler=Sampler())
    return drift_report.record(found, dict.fromkeys(found, ABOUT), SETTINGS, seed=5)


def test_a_mean_is_the_ratio_of_sums_and_its_interval_holds_it():
    sums, counts = np.array([[1.0], [4.0], [9.0]]), np.array([[1.0], [2.0], [3.0]])
    (value,) = drift_report.intervals(sums, counts, drift_report.resamples(3, seed=0))
    assert value["mean"] == pytest.approx(14 / 6, abs=1e-6)
    assert 1 <= value["low"] < value["mean"] < value["high"] <= 3


def test_prompts_that_agree_leave_no_width():
    sums, counts = np.full((5, 1), 6.0), np.full((5, 1), 3.0)
    assert drift_report.intervals(sums, counts, drift_report.resamples(5, 0)) == [{"mean": 2, "low": 2, "high": 2}]


def test_the_interval_is_that_of_the_normal_law_for_many_prompts():
    values = np.random.default_rng(0).standard_normal((400, 1))
    (value,) = drift_report.intervals(values, np.ones((400, 1)), drift_report.resamples(400, 1))
    assert (value["high"] - value["low"]) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.08)


def test_nothing_counted_is_no_number_and_one_prompt_no_interval():
    draws = drift_report.resamples(1, 0)
    assert drift_report.intervals(np.zeros((1, 1)), np.zeros((1, 1)), draws) == [
        {"mean": None, "low": None, "high": None}
    ]
    assert drift_report.intervals(np.ones((1, 1)), np.ones((1, 1)), draws) == [{"mean": 1, "low": None, "high": None}]


def test_the_seed_decides_the_resamples():
    first, again, other = (drift_report.resamples(7, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first.sum(1) == 7).all()


def test_the_record_is_json_and_holds_every_figure_at_every_depth(measured):
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert [d["name"] for d in measured["drafters"]] == ["one", "two <b>"]
    for one in measured["drafters"]:
        assert [row["depth"] for row in one["depths"]] == [1, 2, 3]
        assert one["tau"]["mean"] == pytest.approx(one["tokens"] / one["verify_steps"], abs=1e-6)
        for row in one["depths"]:
            assert row["chains"] > 0 and set(row) == {"depth", "chains", *FIGURES}
            for name in FIGURES:
                value = row[name]
                assert set(value) == {"mean", "low", "high"}
                assert value["mean"] is None or value["low"] is None or value["low"] <= value["mean"] <= value["high"]
            assert math.isclose(sum(row[n]["mean"] for n in ("sink", "prompt", "verified", "chain")), 1, abs_tol=1e-5)
        assert all(math.isclose(sum(line), 1, abs_tol=1e-4) for line in one["heat"]["mass"])
        assert {len(line) for line in one["heat"]["mass"]} == {len(one["heat"]["columns"])}


def test_a_paired_difference_is_narrow_where_prompts_differ_more_than_drafters():
    one, other = [], []
    for value in (1.0, 5.0, 9.0, 20.0):  # the other drafter is 1 lower on every prompt
        for tallies, size in ((one, value), (other, value - 1)):
            tallies.append(Tally(1))
            tallies[-1].add("magnitude", 1, size)
    draws = drift_report.resamples(4, seed=0)
    assert drift_report.differences(one, other, "magnitude", draws) == [{"mean": 1, "low": 1, "high": 1}]
    assert drift_report.differences(one, other, "cosine", draws) == [{"mean": None, "low": None, "high": None}]


def test_the_record_holds_each_further_drafter_less_the_first(measured):
    assert measured["first"] == "one" and set(measured["minus_first"]) == {"two <b>"}
    one, two = ([row["magnitude"]["mean"] for row in d["depths"]] for d in measured["drafters"])
    got = [value["mean"] for value in measured["minus_first"]["two <b>"]["magnitude"]]
    assert got == pytest.approx([b - a for a, b in zip(one, two, strict=True)], abs=1e-5)


def test_the_table_has_a_line_for_each_depth_and_says_what_the_words_mean(measured):
    lines = drift_report.table(measured)
    assert sum(re.match(r" +[123] ", line) is not None for line in lines) == 6
    assert any(line.startswith("one (pre_norm feedback, raw residual, feature norm none): tau ") for line in lines)
    for word in ("sink", "verified", "growth", "RMS", "row 0"):
        assert any(word in line for line in lines)


def test_a_depth_no_chain_reached_is_a_dash():
    record = drift_report.record({"d": [Tally(2), Tally(2)]}, {"d": ABOUT}, SETTINGS, seed=0)
    assert record["drafters"][0]["depths"][0]["chain"]["mean"] is None
    assert "-" in drift_report.table(record)[2] and "nan" not in "".join(drift_report.table(record))


def test_a_file_that_is_no_record_is_named(tmp_path):
    for text in ("{", "[]", '{"format": "other"}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"x\.json: .*refspec drift --json"):
            drift_report.read(str(tmp_path / "x.json"))


def test_figures_and_page_need_no_other_file_and_repeat(measured, tmp_path):
    pytest.importorskip("matplotlib")
    from refspec.evaluate import drift_plots

    written = drift_plots.write(measured, tmp_path / "out")
    assert {path.name for path in written} == {
        "drift.json",
        "drift.html",
        *(f"{name}.png" for name in drift_plots.FIGURES),
    }
    assert drift_report.read(str(written[0])) == measured
    page = (tmp_path / "out" / "drift.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == len(drift_plots.FIGURES)
    assert not re.search(r"(src|href)='(?!data:)", page) and "two <b>" not in page and "two &lt;b&gt;" in page
    for path, again in zip(
        written, drift_plots.write(drift_report.read(str(written[0])), tmp_path / "again"), strict=True
    ):
        assert path.read_bytes() == again.read_bytes(), path.name
        assert path.suffix != ".png" or path.read_bytes().startswith(b"\x89PNG")


def test_the_page_begins_with_its_conclusion_in_words(measured, tmp_path):
    pytest.importorskip("matplotlib")
    from refspec.evaluate import drift_plots

    first, _ = drift_report.conclusions(measured)
    assert (
        first.startswith("one: ") and "tokens per model call (tau)." in first and "The first guess is accepted" in first
    )
    assert (
        "nothing was drafted"
        in drift_report.conclusions(drift_report.record({"d": [Tally(2)]}, {"d": ABOUT}, SETTINGS, seed=0))[0]
    )
    page = drift_plots.page(measured, dict.fromkeys(drift_plots.FIGURES, b""))
    assert page.index("</h1><p>one: ") < page.index("<p>two &lt;b&gt;: ") < page.index("<img")


def with_magnitudes(values):
    """The record of one drafter whose state has these sizes by depth, and nothing else."""
    tallies = [Tally(len(values)) for _ in range(2)]
    for tally in tallies:
        for depth, value in enumerate(values, 1):
            tally.add("magnitude", depth, value)
    return drift_report.record({"d": tallies}, {"d": ABOUT}, SETTINGS, seed=0)


@pytest.mark.parametrize("values", [[3.0, 12.0, 40.0], [1.1, 2.0, 11.5], [0.5, 300.0, 9e4]])
def test_a_log_axis_has_two_labels_at_least(values):
    pytest.importorskip("matplotlib")
    from refspec.evaluate import drift_plots

    figure = drift_plots.state(with_magnitudes(values))
    figure.draw_without_rendering()
    axis = figure.axes[0]
    low, high = axis.get_ylim()
    shown = [x.get_text() for x in axis.get_yticklabels() if low <= x.get_position()[1] <= high and x.get_text()]
    assert axis.get_yscale() == "log" and len(shown) >= 2


def test_numbers_are_above_the_intervals(measured):
    pytest.importorskip("matplotlib")
    from refspec.evaluate import drift_plots

    for panel in drift_plots.mass(measured).axes:
        assert panel.texts and all(text.get_position()[1] > 1 for text in panel.texts)


class Strict(HTMLParser):
    """Every element is closed in its order, and nothing is fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.images = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attributes:
            assert name not in ("href", "srcset", "data", "action") and (
                name != "src" or value.startswith("data:image/png;base64,")
            )
            if name == "src":
                self.images.append(base64.b64decode(value.partition(",")[2], validate=True))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_holds_its_images(measured, tmp_path):
    pytest.importorskip("matplotlib")
    from refspec.evaluate import drift_plots

    drift_plots.write(measured, tmp_path)
    page, parser = (tmp_path / "drift.html").read_text("utf-8"), Strict()
    parser.feed(page)
    parser.close()
    assert parser.open == [] and page.startswith("<!doctype html>")
    assert parser.images == [(tmp_path / f"{name}.png").read_bytes() for name in drift_plots.FIGURES]
    for tag in ("script", "link", "iframe", "object"):
        assert tag not in parser.seen
    assert "url(" not in page and "@import" not in page and "http" not in re.sub(r"base64,[^']*", "", page)
    assert parser.seen.count("tr") == 2 * (1 + 3) and parser.seen.count("td") == 2 * 3 * (2 + len(FIGURES))


def test_figures_are_drawn_where_depths_are_empty_and_prompts_single(tmp_path):
    pytest.importorskip("matplotlib")
    from refspec.evaluate import drift_plots

    found = over(target(), {"d": drafter(1)}, [[1, 2, 3]], LAYERS, depth=6, max_tokens=3, sampler=Sampler(), every=2)
    record = drift_report.record(found, {"d": ABOUT}, SETTINGS, seed=0)
    assert record["drafters"][0]["depths"][5]["chains"] == 0
    assert len(drift_plots.write(record, tmp_path)) == 2 + len(drift_plots.FIGURES)


def test_without_matplotlib_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.figure'] = None\n"
        "from refspec.cli import main\n"
        "main(['drift', '-o', 'never-made'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr
        == "refspec: figures need matplotlib: .venv/bin/pip install -e '.[plot]' in a checkout, or leave out -o\n"
    )
