"""Findings on records with known answers: the numbers, the verdicts, and a text that quotes nothing else."""

import json
import re
from pathlib import Path

import pytest
from cli_models import one_line_error
from findings_toys import K, P, acceptance_record, write_records
from lab_command import call

from lab import findings_numbers as findings
from lab import findings_text
from lab.findings_records import PLAIN, read
from refspec.errors import CheckpointError


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return findings.derive(read(write_records(tmp_path_factory.mktemp("records"))))


def test_a_ratio_is_the_mean_over_seeds_and_its_interval_holds_every_truth(found):
    for k in ("3", "8"):
        value = found["ratios"]["standard"][k]["all"]
        assert value["mean"] == pytest.approx(1.25, abs=0.03) and value["low"] < 1.25 < value["high"]
        assert len(value["seeds"]) == 3 and value["mean"] == pytest.approx(sum(value["seeds"]) / 3, abs=1e-5)
        assert {"math", "chat"} < found["ratios"]["standard"][k].keys()


def test_seeds_that_differ_widen_an_interval_that_prompts_alone_would_leave_narrow():
    import numpy as np

    rng = np.random.default_rng(0)
    alike = [np.array([[100.0, 50.0]] * 8)] * 3
    apart = [np.array([[100.0, steps]] * 8) for steps in (40.0, 50.0, 60.0)]
    base = [np.array([[100.0, 100.0]] * 8)] * 3
    narrow, wide = (findings.ratio(list(zip(base, own, strict=True)), rng) for own in (alike, apart))
    assert (narrow["low"], narrow["mean"], narrow["high"]) == (2, 2, 2)
    assert wide["low"] < 1.8 < 2.3 < wide["high"] and wide["mean"] == pytest.approx((2.5 + 2 + 100 / 60) / 3, abs=1e-5)


def test_foreign_templates_are_pooled_without_the_own_one_and_shown_one_by_one(found, tmp_path):
    groups = found["ratios"]["perturb"]["3"]
    assert set(groups) == {"all", "none", "raw", "no-bos"}
    records = read(write_records(tmp_path / "one", seeds=(1,), only=("main",)))
    steps = findings.steps(records[0], "perturb", PLAIN, 3, lambda c, i: c["perturb"] != "none")
    assert steps.shape == (P, 2) and steps[0, 0] == 400  # two foreign templates of 200 tokens
    assert set(found["ratios"]["context"]["3"]) == {"all", "128", "256"}


def test_what_strange_input_costs_is_told_for_each_side(found, tmp_path):
    assert found["hurt"]["perturb"]["3"]["plain"]["mean"] == pytest.approx(1, abs=0.03)
    assert "little to cure" in findings_text.markdown(found, [])
    records = read(write_records(tmp_path / "records", only=("main",)))
    for r in records:
        for condition in r.records["perturb"]["conditions"]:
            if condition["perturb"] != "none":  # plain needs twice the steps there, normalized as many as before
                steps = condition["by_prompt"]["verify_steps"]["plain"]
                steps.update({k: [2 * x for x in values] for k, values in steps.items()})
        for condition in r.records["context"]["conditions"]:
            if condition["context"] == 256:
                steps = condition["by_prompt"]["verify_steps"]["normalized"]
                steps.update({k: [4 * x for x in values] for k, values in steps.items()})
    hurt = findings.derive(records)["hurt"]
    assert hurt["perturb"]["8"]["plain"]["mean"] == pytest.approx(0.5, abs=0.02)
    assert hurt["perturb"]["8"]["normalized"]["mean"] == pytest.approx(1, abs=0.03)
    assert (hurt["context"]["3"]["plain"]["mean"], hurt["context"]["3"]["normalized"]["mean"]) == (1, 0.25)
    text = findings_text.markdown(findings.derive(records), [])
    assert text.count("little to cure") == 1  # the plain drafter loses nothing at the longest context


def test_verdicts_follow_the_intervals(found):
    assert (
        found["drift"]["plain"]["growth_verdict"] == "grows"
        and found["drift"]["normalized"]["growth_verdict"] == "keeps"
    )
    assert found["drift"]["plain"]["growth"][-1]["mean"] == pytest.approx(1 + 0.5 * (K - 1))
    assert found["drift"]["attention_verdict"] == "less"
    assert [p["mean"] for p in found["drift"]["plain_less_normalized"]] == pytest.approx([0.1 * (K - 1)] * 3, abs=1e-6)
    text = findings_text.markdown(found, [])
    assert "plain drafter grows with depth" in text and "normalized drafter keeps its size" in text
    assert "Long context: the norms cost acceptance, against the paper (draft length 3, 8)." in text
    assert (
        "Benchmarks, own template: the norms help, and the interval reaches the paper's 1.10 (draft length 3, 8)."
        in text
    )
    assert "stays below the paper's 2.00" in text
    assert "weight 0.25" in text and "bonus 2, on the plain drafter" in text
    assert (
        "Holding the plain drafter's state at its first size gains at draft length 3, 8: so much is what its growth "
        "costs." in text
    )
    assert "Trained less deep, beside training to depth 3: tau at draft length 8 is normalized " in text
    # no shorter here
    assert "Both norms over none after 0.3 million tokens and after 0.3 million" in text and "learn sooner" not in text
    assert "Growth by 1.5 at every depth costs the plain drafter more than the normalized one (draft length 8)." in text
    assert "The state grows in: plain, plain reg. It keeps its size in: normalized, post only." in text


def numbers(value):
    """Every number in a JSON value, and those inside its strings."""
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, (int, float)):
        return {f"{abs(value):{form}}" for form in ("g", ".0f", ".1f", ".2f", ".3f")} | {f"{abs(value) * 100:.0f}"}
    if isinstance(value, str):
        return set(re.findall(r"\d+(?:\.\d+)?", value))
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    return set().union(*(numbers(part) for part in parts)) if parts else set()


@pytest.mark.parametrize("only", [None, ("main",), ("ablation",), ("depth",)])
def test_the_text_quotes_no_number_that_the_json_does_not_hold(tmp_path, only):
    got = json.loads(json.dumps(findings.derive(read(write_records(tmp_path, only=only))), allow_nan=False))
    text = findings_text.markdown(got, ["drift", "ratios", "depth", "ablation"])
    names = r"EAGLE(-3| 3\.1)"  # of the architectures
    quoted = set(re.findall(r"\d+(?:\.\d+)?", re.sub(names, "", text)))
    assert quoted <= numbers(got), sorted(quoted - numbers(got))
    assert len(quoted) > 10 and "nan" not in text and "None" not in text
    assert ("Not measured." in text) == (only is not None)


def test_what_is_missing_is_said_to_be_missing(tmp_path):
    text = findings_text.markdown(findings.derive(read(write_records(tmp_path, seeds=(1,), only=("depth",)))), [])
    assert (
        text.count("Not measured.") == 4
        and "Fewer than three seeds" in text
        and "Anchored attention: not measured." in text
    )


def test_one_command_writes_page_numbers_and_figures_and_repeats_them(tmp_path):
    pytest.importorskip("matplotlib")
    records = write_records(tmp_path / "records")
    for out in ("a", "b"):
        result = call("findings", "write", records, "-o", tmp_path / out)
        assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {
        "findings.md",
        "findings.json",
        *(f"findings-{n}.png" for n in ("drift", "ratios", "depth", "ablation")),
    }
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    text = (tmp_path / "a" / "findings.md").read_text()
    assert {m for m in re.findall(r"\]\((.*?\.png)\)", text)} == {name for name in names if name.endswith(".png")}
    lesser = write_records(tmp_path / "lesser", only=("main",))
    call("findings", "write", lesser, "-o", tmp_path / "a")
    assert (
        not (tmp_path / "a" / "findings-depth.png").exists()
        and "findings-depth" not in (tmp_path / "a" / "findings.md").read_text()
    )


def test_records_that_are_none_are_named(tmp_path):
    pytest.importorskip("matplotlib")
    assert "holds no */job.json" in one_line_error(call("findings", "write", tmp_path, "-o", tmp_path / "out"))
    records = write_records(tmp_path / "records", seeds=(1,), only=("depth",))
    (records / "depth-ttt1-seed1" / "drift.json").write_text("{}")
    assert "drift.json" in one_line_error(call("findings", "write", records, "-o", tmp_path / "out"))


def test_seeds_measured_on_different_prompts_are_refused(tmp_path):
    records = write_records(tmp_path / "records", seeds=(1, 2), only=("depth",))
    other = acceptance_record(["normalized", "plain"], {"normalized": 1.2, "plain": 1}, 2)
    for row in (other["conditions"][0]["by_prompt"],):
        for key in ("family", "id", "tokens"):
            row[key] = row[key][1:]
        row["verify_steps"] = {d: {k: s[1:] for k, s in by.items()} for d, by in row["verify_steps"].items()}
    (records / "depth-ttt1-seed2" / "standard.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="different prompts"):
        findings.derive(read(records))


DOCS = Path(__file__).resolve().parents[2] / "docs"


def near(one, other):
    """Equal but for the rounding of sums on another machine."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(near(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(near, one, other))
    return one == pytest.approx(other, abs=2e-6) if isinstance(one, float) else one == other


def test_the_committed_page_says_what_the_committed_records_hold():
    committed = json.loads((DOCS / "findings.json").read_text())
    assert near(json.loads(json.dumps(findings.derive(read(DOCS / "records")))), committed)
    page = (DOCS / "findings.md").read_text()
    drawn = [path.stem.removeprefix("findings-") for path in DOCS.glob("findings-*.png")]
    assert drawn and page == findings_text.markdown(committed, drawn)
    assert all(f"findings-{name}.png" in page for name in drawn)
