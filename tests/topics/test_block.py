from pathlib import Path

import pytest

from puna.topics.explain import explain, find_topic
from puna.topics.subject import Subject
from puna.topics.words import topic_words


@pytest.fixture(scope="module")
def shown():
    return explain("block", model="tiny", lang="en")


def test_a_layer_of_llama_3_8b_and_the_model_hold_what_the_ledger_says():
    numbers = explain("block", model="llama-3-8b").numbers["model"]
    assert (numbers["layer_parameters"], numbers["parameters"]) == (218_112_000, 8_030_261_248)
    assert sum(whole for _, whole in numbers["parts"].values) == 8_030_261_248
    assert "steps" not in numbers


def test_of_a_large_preset_norms_are_counted():
    placements = explain("block", model="llama-3-8b").numbers["placements"]
    assert (placements["pre_norms"], placements["post_norms"]) == (65, 64)
    assert "placement" not in placements


def test_the_steps_stand_in_order_and_rope_keeps_lengths(shown):
    steps = shown.numbers["model"]["steps"]
    lengths = dict(zip(steps.rows, (length for _, length in steps.values), strict=True))
    assert list(lengths)[:4] == ["x: the stream", "norm of x", "q: queries, all heads", "q, turned by RoPE"]
    assert list(lengths)[-5:] == [
        "attention",
        "x + attention",
        "norm of that sum",
        "feed-forward",
        "y: what leaves the layer",
    ]
    assert lengths["q, turned by RoPE"] == pytest.approx(lengths["q: queries, all heads"], rel=1e-5)


def test_the_branches_are_added_to_the_stream_and_every_layer_reads_what_the_last_one_left(shown):
    assert shown.numbers["model"]["sum_difference"] == 0
    first, second = shown.numbers["model"]["by_layer"].values
    assert first[-1] == second[0]


def test_without_branches_a_block_is_the_identity_or_two_norms(shown):
    placements = shown.numbers["placements"]
    assert placements["pre_without_branches_difference"] == placements["post_without_branches_difference"] == 0
    assert (placements["pre_norms"], placements["post_norms"]) == (5, 4)
    assert [post for _, post in placements["placement"].values[1:]] == pytest.approx([8, 8], rel=1e-3)


def test_a_model_that_norms_its_sums_is_walked_too(build_llama):
    llama = build_llama(norm="layer", norm_placement="post")
    subject = Subject(
        name="post", config=llama.config, llama=llama, tokenizer=None, text="", ids=(1, 2, 3), rank=None, notices=()
    )
    model = find_topic("block").show(subject, topic_words("block", "en")).parts[0].numbers
    assert "sum_difference" not in model
    assert "norm of x" not in model["steps"].rows
    assert [layer[-1] for layer in model["by_layer"].values] == pytest.approx([8, 8], rel=0.1)


def test_the_picture_is_the_model_with_its_sizes(tmp_path):
    (path,) = explain("block", model="llama-3-8b", out=tmp_path).pictures
    assert "4,096" in Path(path).read_text("utf-8")
