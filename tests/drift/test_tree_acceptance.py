"""Acceptance of trees over forced text is the tree cycle's own, a tree of one path is a chain, and gains over chains
are paired.
"""

import json

import numpy as np
import pytest
from drift_toys import LAYERS, cli_models, drafter, target, toys

import refspec
from refspec.decoding.tree_cycle import COLDEST, asked_at
from refspec.evaluate import acceptance, acceptance_report
from refspec.evaluate.drift import Output
from refspec.evaluate.drift import record as record_text
from refspec.evaluate.prompts import Prompt, read
from refspec.reference.draft import Draft
from refspec.reference.sampling import Sampler
from refspec.reference.tree import ROOT, Tree, TreeShape
from refspec.session import Session

PROMPT = [1, 2, 3, 0, 2]
SHAPES = [TreeShape(6, 2, 3), TreeShape(12, 3, 5), TreeShape(3, 3, 1), TreeShape(40, 4, 4)]
call, one_line_error, result, tiny = cli_models.call, cli_models.one_line_error, cli_models.record, cli_models.tiny


class TreeToy(toys.ToyTarget):
    """The toy target with trees: the logits and features of a node are those of its path."""

    max_nodes = 63

    def decode_tree(self, tokens, parents):
        self.paths = [[*self.rows, int(tokens[0])]]
        for token, parent in zip(tokens[1:], parents, strict=True):
            self.paths.append([*self.paths[int(parent) + 1], int(token)])
        assert len(self.rows) + len(self.paths) <= self.n_ctx
        self._logits = [self.law(path) for path in self.paths]
        self._features = np.array([toys.feature(path) for path in self.paths], np.float32)
        return len(tokens)

    def keep_path(self, nodes):
        self.rows = list(self.paths[nodes[-1] + 1 if nodes else 0])


@pytest.mark.parametrize(("temperature", "end"), [(0.0, ()), (0.0, (3,)), (0.9, ()), (0.9, (3,))])
@pytest.mark.parametrize("n_ctx", [60, 14])
def test_one_pass_gives_what_the_tree_cycle_counts_for_every_shape(temperature, end, n_ctx):
    sampler, stood = Sampler(temperature=temperature), 0
    for seed in range(4):
        settings = {"n_vocab": 4, "salt": seed, "end": end, "n_ctx": n_ctx}
        text = record_text(TreeToy(**settings), PROMPT, LAYERS, max_tokens=20, sampler=sampler, seed=seed)
        asked = [asked_at(shape, sampler) for shape in SHAPES]
        found = acceptance.follow(drafter(seed), text, text.features, [1, 5, *asked])
        alone = acceptance.follow(drafter(seed), text, text.features, [1, 5])
        assert all(found[k] == alone[k] for k in (1, 5))  # trees do not disturb chains
        for shape, key in zip(SHAPES, asked, strict=True):
            run = Session(TreeToy(**settings), drafter(seed), draft_max=shape.nodes, tree=shape).generate(
                tokens=PROMPT, max_tokens=20, sampler=sampler, seed=seed
            )
            list(run)
            cycle, ours = run.statistics, found[key]
            assert (ours.generated_tokens, ours.verify_steps) == (cycle.generated_tokens, cycle.verify_steps)
            assert (ours.judged, ours.accepted, ours.tree_sizes) == (cycle.judged, cycle.accepted, cycle.tree_sizes)
            stood += sum(cycle.accepted)
    assert stood > 0  # the comparison saw trees that stood


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("end", [(), (3,)])
def test_a_tree_of_one_child_per_node_counts_as_the_chain(temperature, end):
    sampler, stood = Sampler(temperature=temperature), 0
    for seed in range(4):
        text = record_text(target(salt=seed, end=end), PROMPT, LAYERS, max_tokens=20, sampler=sampler, seed=seed)
        for k in (1, 3, 6):
            shape = asked_at(TreeShape(k, 1, k), sampler)
            found = acceptance.follow(drafter(seed), text, text.features, [k, shape])
            chain, tree = found[k], found[shape]
            assert (chain.tau, chain.verify_steps, chain.judged, chain.accepted) == (
                tree.tau,
                tree.verify_steps,
                tree.judged,
                tree.accepted,
            )
            assert sum(size * steps for size, steps in tree.tree_sizes.items()) == sum(chain.judged)
            stood += sum(tree.accepted)
    assert stood > 0


class Scripted:
    """Drafts 5 2 2 always, as a tree with 7 beside the 5 and 3 beside the last 2."""

    capture_layers = ()
    seconds = 0.0
    n_rows = 0

    def reset(self):
        self.n_rows = 0

    def extend(self, tokens, features):
        self.n_rows += len(tokens)

    def draft(self, k, **_):
        return Draft(np.array([5, 2, 2][:k], np.int32), None, np.ones(3, np.float32))

    def draft_tree(self, shape, **_):
        parents = np.array([ROOT, ROOT, 0, 2, 2], np.int32)  # 5, 7, 5 2, 5 2 2, 5 2 3
        return Tree(np.array([5, 7, 2, 2, 3], np.int32), parents, np.ones(5, np.float32))


def by_hand(output, end=()):
    tokens = np.array([1, 4, *output])
    text = Output(tokens, 2, np.zeros((len(tokens) - 1, 0), np.float32), 20, 60, frozenset(end))
    shape = TreeShape(5, 2, 3)
    found = acceptance.follow(Scripted(), text, text.features, [3, shape])
    return found[3], found[shape]


def test_a_text_counted_by_hand():
    # tree: 7 stands and 1 follows; 5 2 3 stands and 7 follows; 9 follows; chain: 7; 1; 5 2 and 3; 7; 9
    chain, tree = by_hand([7, 1, 5, 2, 3, 7, 9])
    assert (tree.verify_steps, tree.judged, tree.accepted, tree.generated_tokens) == (3, [3, 3, 3], [2, 1, 1], 7)
    assert (chain.verify_steps, chain.judged, chain.accepted, chain.generated_tokens) == (5, [5, 5, 5], [1, 1, 0], 7)
    assert tree.tree_sizes == {5: 3}


def test_nothing_after_an_end_in_the_tree_is_counted():
    _, tree = by_hand([7, 1, 5], end=(5,))  # of the tree 5 and 7 are left
    assert (tree.verify_steps, tree.judged, tree.accepted, tree.tree_sizes) == (2, [2], [2], {2: 2})


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_drafter_is_asked_at_the_temperature_at_which_the_cycle_asks(temperature, monkeypatch):
    asked = []
    monkeypatch.setattr(acceptance, "follow", lambda model, text, features, drafts: asked.extend(drafts) or {})
    session, sampler, prompts = (
        Session(TreeToy(n_vocab=4, n_ctx=60, end=())),
        Sampler(temperature=temperature),
        [Prompt("x", "abc")],
    )
    acceptance.measure(
        session, {"d": drafter(1)}, prompts, 0, ("none", None), layers=LAYERS, lengths=[2], max_tokens=5,
        sampler=sampler, seed=0, trees=SHAPES[:1],
    )  # fmt: skip
    assert asked == [2, 6, SHAPES[0]._replace(temperature=temperature or COLDEST)]


def row(tokens, chain, tree):
    """A prompt of one turn:

    verify steps of drafter a's chain of 4 and of its tree of 4 nodes, half its steps' nodes missing; b has chains.
    """
    a = {
        "2": [chain + tokens, [1] * 2, [1] * 2],
        "4": [chain, [chain] * 4, [1] * 4],
        "4:2:3": [tree, [tree] * 2, [1] * 2, 2 * tree],
    }
    return {
        "family": "x",
        "id": "",
        "turns": [
            {"prompt_tokens": 5, "tokens": tokens, "counts": {"a": a, "b": {k: [30, [30], [1]] for k in ("2", "4")}}}
        ],
    }


def test_the_gain_is_tree_by_chain_on_the_same_prompts():
    rows = [row(30, 15, 10), row(60, 30, 20), row(90, 60, 40)]  # texts differ, the tree is always half as good again
    settings = {"draft_max": [2], "trees": ["4:2:3"], "perturb": ["none"]}
    got = acceptance_report.record(
        {("none", None): rows}, {"a": {"trees": "llama.cpp"}, "b": {"trees": None}}, settings, "b", seed=0
    )
    families = got["conditions"][0]["families"]["all"]
    assert families["over_chain"] == {"a": {"4:2:3": {"mean": 1.5, "low": 1.5, "high": 1.5}}}
    assert families["drafters"]["a"]["4:2:3"]["tau"]["mean"] == pytest.approx(180 / 70, abs=1e-6)
    assert (families["drafters"]["a"]["4:2:3"]["rows_per_step"], families["drafters"]["a"]["4"]["rows_per_step"]) == (
        3,
        5,
    )
    assert list(families["drafters"]["b"]) == ["2", "4"] and list(families["ratio"]["a"]) == ["2", "4"]
    text = "\n".join(acceptance_report.table(got))
    assert "trees 4:2:3 (nodes:children:depth) beside chains of 4" in text and "1.50±0.00" in text
    assert "trees grown by llama.cpp: a; chains only: b" in text
    assert json.loads(json.dumps(got, allow_nan=False)) == got


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    target_file, post = cli_models.write_pair(folder)
    two_states = tiny.drafter(folder / "two.gguf", layers=[1, 3, 4])
    _, values, tensors = tiny.drafter_parts(feature_norm="per_state", feedback="post_norm", seed=3)
    own = tiny.write(folder / "own.gguf", "refspec-eagle3", values | {"refspec.head_norm": False}, tensors)
    lines = [
        json.dumps({"benchmark": b, "turns": [t]}) + "\n" for b, t in (("math", "What is 2 + 2?"), ("chat", "Hello"))
    ]
    (folder / "p.jsonl").write_text("".join(lines))
    return {
        "target": target_file,
        "drafter": post,
        "two": str(two_states),
        "own": str(own),
        "prompts": str(folder / "p.jsonl"),
    }


def bench(models, *more, drafters=("drafter", "two")):
    named = [part for name in drafters for part in ("-d", models[name])]
    common = ["-m", models["target"], *named, "-t", "1", "-n", "14", "--prompts", models["prompts"], "--draft-max", "2"]
    return call("acceptance", *common, *more)


@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_the_command_counts_what_a_session_with_trees_counts(models, temperature):
    got = result(
        bench(models, "--reproducible", "f32", "--json", "--temp", temperature, "--tree", "12:4:3", "--tree", "2:1:2")
    )
    assert (
        got["settings"]["trees"] == ["12:4:3", "2:1:2"] and [d["trees"] for d in got["drafters"]] == ["llama.cpp"] * 2
    )
    (condition,) = got["conditions"]
    for name in ("drafter", "two"):
        figures = condition["families"]["all"]["drafters"][name]
        assert list(figures) == ["2", "12", "12:4:3", "2:1:2"] and figures["2:1:2"] == figures["2"]
        assert condition["families"]["all"]["over_chain"][name]["2:1:2"]["mean"] == 1
    sampler, steps = Sampler(temperature=float(temperature)), []
    with refspec.load(models["target"], models["drafter"], reproducible="f32", threads=1, tree="12:4:3") as session:
        for i, prompt in enumerate(read(models["prompts"])):
            run = session.generate(prompt.text, max_tokens=14, sampler=sampler, seed=i)
            list(run)
            steps.append(run.statistics.verify_steps)
    assert condition["by_prompt"]["verify_steps"]["drafter"]["12:4:3"] == steps
    without = result(bench(models, "--reproducible", "f32", "--json", "--temp", temperature))["conditions"][0][
        "families"
    ]["all"]
    for name in ("drafter", "two"):  # asking for trees leaves the chains as they are
        assert without["drafters"][name]["2"] == condition["families"]["all"]["drafters"][name]["2"]


def test_the_reference_and_llama_cpp_count_the_same_trees(models):
    llama, reference = (
        result(bench(models, "--reproducible", "f32", "--json", "--tree", "9:3:3", "--engine", e))
        for e in ("llama", "reference")
    )
    assert llama["conditions"] == reference["conditions"]
    assert {d["trees"] for d in llama["drafters"]} == {"llama.cpp"} and {d["trees"] for d in reference["drafters"]} == {
        "reference"
    }


def test_what_cannot_grow_trees_is_measured_as_chains_and_named(models):
    drafted = bench(models, "--tree", "6:2:3", "--lookup", "--reproducible", "f32", drafters=("own", "drafter"))
    assert drafted.exit_code == 0, drafted.output
    said = "trees grown by llama.cpp: drafter; trees and chains drafted by the reference code: own; chains only: lookup"
    assert said in drafted.stdout and "chain own" in drafted.stdout and "gain lookup" not in drafted.stdout


@pytest.mark.parametrize("arguments, words", [
    (["--tree", "x"], "is not N, N:topk or N:topk:depth"),
    (["--tree", "99"], "nodes = 99 is outside 1..64"),
])  # fmt: skip
def test_a_wrong_tree_is_one_line(models, arguments, words):
    assert words in one_line_error(bench(models, *arguments), code=2)


def test_without_a_drafter_that_grows_trees_the_command_says_so(models):
    ended = bench(models | {"drafter": models["target"]}, "--tree", "4", drafters=("drafter",))
    assert "--tree 4:4:8: no drafter here grows trees" in one_line_error(ended, code=2)


def test_a_killed_run_with_trees_goes_on_and_other_trees_are_refused(models, tmp_path, monkeypatch):
    whole, out = result(bench(models, "--json", "--tree", "6:2:3")), tmp_path / "a.jsonl"
    measured, calls = acceptance.measure, []

    def dying(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measured(*args, **options)

    monkeypatch.setattr(acceptance, "measure", dying)
    assert bench(models, "--json", "--tree", "6:2:3", "-o", out).exit_code == 130
    assert result(bench(models, "--json", "--tree", "6:2:3", "-o", out)) == whole and len(calls) == 3
    assert 'trees = ["6:2:3"], now null' in one_line_error(bench(models, "-o", out), code=2)
    assert 'trees = ["6:2:3"], now ["6:3:3"]' in one_line_error(bench(models, "--tree", "6:3:3", "-o", out), code=2)
