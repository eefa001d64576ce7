"""How likely drafted tokens are accepted, as far as it was seen."""

import pytest

from refspec.adaptive.acceptance_model import AcceptanceModel


def test_chances_follow_what_was_accepted_not_what_the_drafter_says():
    model = AcceptanceModel(4)
    assert model.chance(0.9, 0) == pytest.approx(0.9)
    for _ in range(300):
        model.learn([0.9], 1, 0)
        model.learn([0.35], 1, 1)
    assert model.chance(0.92, 0) < 0.05 and model.chance(0.35, 0) > 0.95
    assert model.chance(0.92, 2) < 0.3, "a depth not seen leans on its bin"
    assert 0.4 < model.by_depth()[0] < 0.6
    assert AcceptanceModel(1).chance(float("nan"), 0) == 0.5


def test_what_is_forgotten_is_how_much_was_seen_not_what():
    model = AcceptanceModel(4)
    for i in range(200):
        model.see(0.65, 0, i % 4 == 0)
    before = model.by_depth()[0]
    sure = model.chance(0.65, 0)
    model.forget(4)
    assert model.depths[0] == [4, pytest.approx(1, abs=0.1)], "a quarter was accepted, of however many"
    assert before < model.by_depth()[0] and sure < model.chance(0.65, 0) < 0.65, "the first guess counts again"
    kept = model.chance(0.65, 0)
    for _ in range(4):
        model.see(0.65, 0, True)
    assert model.chance(0.65, 0) > kept + 0.15, "and four tokens that are accepted overrule the rest"
    model.forget(100)
    assert model.depths[0][0] < 9, "fewer are left as they are"
