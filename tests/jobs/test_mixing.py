"""How sources share a run: math.md's figures through the recipe, exact at every row, and what is refused."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from puna.errors import BadData, CheckpointMismatch, UsageError
from puna.files import sha256_file
from puna.jobs import tokens
from puna.jobs.mixing import MixtureRule, mix
from puna.jobs.recipe import dump_recipe, fill, read_recipe
from puna.jobs.train import dry_run, train
from puna.jobs.train_recipe import DataSource, TrainRecipe
from puna.tokens.shards import open_shards
from puna.training.config import StepBudget, TimeBudget, TokenBudget, TrainingConfig

MEGA = 10_000
NAMES = ("a", "b", "c", "d")
SIZES = tuple(int(MEGA * size) for size in (20, 6, 1.5, 0.3))
CONFIG = TrainingConfig(budget=TokenBudget(tokens=30 * MEGA), batch=4, micro_batch=4, seq=16)


@dataclass
class Part:
    """Rows that only count."""

    tokens: int
    padding: float = 0.0


def mixed(rule: MixtureRule, given=(None,) * 4, config=CONFIG, padding=(0.0,) * 4):
    parts = [Part(size, share) for size, share in zip(SIZES, padding, strict=True)]
    return mix(NAMES, parts, given, rule, config)


@pytest.mark.parametrize(
    ("rule", "epochs"),
    [
        (MixtureRule(exponent=0.5), (0.77, 1.41, 2.82, 6.30)),
        (MixtureRule(exponent=0.3), (0.61, 1.43, 3.77, 11.62)),
        (MixtureRule(rule="unimax", epoch_cap=4), (0.57, 1.90, 4.0, 4.0)),
        (MixtureRule(), (1.079, 1.079, 1.079, 1.079)),
    ],
)
def test_the_figures_of_math_md_come_out_of_a_recipe(rule, epochs) -> None:
    planned = mixed(rule).planned(CONFIG)
    assert [each.epochs for each in planned] == pytest.approx(epochs, abs=0.006)
    assert sum(each.share for each in planned) == pytest.approx(1)
    assert sum(each.learned for each in planned) == pytest.approx(30 * MEGA)


@pytest.mark.parametrize("given", [(None,) * 4, (5.0, 3.0, 1.0, 1.0)])
def test_a_cap_holds_and_the_others_take_what_it_leaves_in_proportion(given) -> None:
    free, capped = (
        mixed(MixtureRule(exponent=1.0 if given[0] else 0.3, epoch_cap=cap), given).planned(CONFIG)
        for cap in (None, 2.0)
    )
    assert max(each.epochs for each in capped) <= 2.001
    below = [index for index, each in enumerate(capped) if each.epochs < 1.99]
    ratios = [capped[index].share / free[index].share for index in below]
    assert ratios == pytest.approx([ratios[0]] * len(below), rel=1e-3)
    assert ratios[0] > 1


@pytest.mark.parametrize("rule", ["proportional", "unimax"])
def test_a_source_smaller_than_a_65536th_keeps_its_cap(rule) -> None:
    sizes, budget = (2_000_000_000, 100, 3_000), 1_000_000_000
    config = TrainingConfig(budget=TokenBudget(tokens=budget), batch=4, micro_batch=4, seq=16)
    mixing = mix(NAMES[:3], [Part(size) for size in sizes], (None,) * 3, MixtureRule(rule=rule, epoch_cap=2), config)
    for each in mixing.planned(config):
        assert each.learned <= max(2.02 * each.tokens, 2 * each.tokens + config.seq)
    assert mixed(MixtureRule(epoch_cap=2.0)).weights == mixed(MixtureRule()).weights  # no finer than it must be


def test_a_source_too_small_for_any_weight_is_named() -> None:
    config = TrainingConfig(budget=TokenBudget(tokens=10**14), batch=4, micro_batch=4, seq=16)
    with pytest.raises(UsageError, match=r"b: expected at most 1 epochs, got .*: no weight is small enough"):
        mix(NAMES[:2], [Part(10**15), Part(100)], (None,) * 2, MixtureRule(epoch_cap=1), config)


def test_what_was_read_is_within_a_row_of_the_share_after_any_number_of_rows() -> None:
    mixing = mixed(MixtureRule(exponent=0.5), padding=(0.0, 0.1, 0.2, 0.0))
    for rows in (1, 7, 100, 12_345):
        read = mixing.read(rows, CONFIG)
        for each, weight, part in zip(read, mixing.weights, mixing.rows, strict=True):
            expected = rows * weight / sum(mixing.weights) * CONFIG.seq * (1 - part.padding)
            assert abs(each.learned - expected) < CONFIG.seq
    assert [each.share for each in read] == pytest.approx(mixing.shares(), abs=1e-3)


def test_steps_count_as_the_tokens_that_their_rows_hold() -> None:
    steps = replace(CONFIG, budget=StepBudget(steps=1000))
    planned = mixed(MixtureRule(), config=steps, padding=(0.25,) * 4).planned(steps)
    assert sum(each.learned for each in planned) == pytest.approx(1000 * 4 * 16 * 0.75)


def test_what_cannot_be_is_refused() -> None:
    for changes, said in (
        ({"exponent": -1.0}, "mixture.exponent: expected 0 to 1"),
        ({"epoch_cap": 0.0}, "mixture.epoch_cap: expected more than 0"),
        ({"rule": "unimax"}, "expected an epoch_cap"),
    ):
        with pytest.raises(UsageError, match=said):
            MixtureRule(**changes)
    with pytest.raises(UsageError, match="weights at the sources or a rule, got both"):
        mixed(MixtureRule(exponent=0.5), (1.0,) * 4)
    with pytest.raises(UsageError, match="more than 1 epochs"):
        mixed(MixtureRule(epoch_cap=1.0))
    timed = replace(CONFIG, budget=TimeBudget(seconds=9))
    with pytest.raises(UsageError, match="in steps or tokens, got seconds"):
        mixed(MixtureRule(epoch_cap=4.0), config=timed)
    assert mixed(MixtureRule(), config=timed).planned(timed) is None


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_names_its_source(weight) -> None:
    with pytest.raises(UsageError, match="--data b: expected a weight above 0"):
        mixed(MixtureRule(), (1.0, weight, 1.0, 1.0))
    with pytest.raises(UsageError, match="--data c: expected a weight for every source or for none"):
        mixed(MixtureRule(), (1.0, 1.0, None, 1.0))


def test_other_weights_need_no_new_shards_and_the_report_says_what_was_read(world, build_recipe, runs: Path) -> None:
    (runs / "more.txt").parent.mkdir()
    (runs / "more.txt").write_text("\n".join(f"the llama ate leaf {n}" for n in range(900)))
    documents = [runs / "more.txt", *[runs / f"{n}.txt" for n in range(20)]]
    for path in documents[1:]:
        path.write_text(f"{path.name} " * 50)
    tokens.build(documents, world.shards / "tokenizer", runs / "more")
    both = (DataSource(path=world.shards), DataSource(path=runs / "more"))
    before = {path: sha256_file(path) for path in (runs / "more").rglob("*") if path.is_file()}
    shares = []
    for name, rule in (("even", MixtureRule(exponent=0.0)), ("as-is", MixtureRule())):
        recipe = replace(build_recipe(4), data=both, mixture=rule)
        lines: list[str] = []
        train(recipe, runs / name, tell=lines.append)
        shares.append(tuple(dry_run(recipe).shares.values()))
        assert [line.split(":")[0] for line in lines] == [str(each.path) for each in both]
        assert "epochs" in lines[0]
        assert fill(TrainRecipe, read_recipe(runs / name / "recipe.toml")) == recipe
        page = (runs / name / "report.html").read_text()
        assert "What it was read from" in page
        assert f"{dry_run(recipe).tokens[str(runs / 'more')]:,}" in page
    assert shares[0] == pytest.approx((0.5, 0.5), abs=1e-4)
    assert abs(shares[1][0] - 0.5) > 0.1
    assert {path: sha256_file(path) for path in before} == before
    assert dump_recipe(recipe).count("[mixture]") == 1


def test_a_source_that_cannot_serve_is_named_and_leaves_no_run(world, build_recipe, runs: Path) -> None:
    recipe = build_recipe(4)
    runs.mkdir()
    (runs / "little.txt").write_text("one llama")
    tokens.build([runs / "little.txt"], world.shards / "tokenizer", runs / "little")
    (runs / "text.txt").write_text("another text for another vocabulary " * 40)
    tokens.learn([runs / "text.txt"], 280, runs / "tokenizer")
    tokens.build([runs / "text.txt"], runs / "tokenizer", runs / "foreign")
    assert len(open_shards(runs / "foreign")) > 1
    for bad, error, said in (
        ("little", BadData, "little: 1 documents cannot give 10"),
        ("foreign", CheckpointMismatch, f"foreign was made with another tokenizer than {world.shards}"),
        ("../" + runs.name + "/little", BadData, "little"),
    ):
        broken = replace(recipe, data=(*recipe.data, DataSource(path=runs / bad)))
        with pytest.raises(error, match=said):
            train(broken, runs / "run")
        assert not (runs / "run" / "recipe.toml").exists()
    small = replace(recipe, data=(DataSource(path=runs / "little"),), validation=world.shards)
    with pytest.raises(BadData, match=r"little: \d tokens are less than one window"):
        dry_run(small)
    with pytest.raises(UsageError, match="stands there twice"):
        replace(recipe, data=(*recipe.data, *recipe.data))
