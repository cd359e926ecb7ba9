import pytest

from puna.topics.explain import explain


def test_a_fresh_adapter_is_the_base_and_a_merged_one_is_the_attached_one():
    shown = explain("lora", model="tiny", rank=8).numbers["model"]
    assert shown["first_output_difference"] == 0
    assert shown["merged_difference"] <= 1e-6 < shown["moved"]
    assert shown["rank_of_update"] == 8


def test_alpha_scales_the_update_and_leaves_the_count():
    grid = explain("lora", model="tiny", rank=8).numbers["model"]["by_alpha"]
    assert list(grid.rows) == ["4", "8", "16", "32"]
    counts, scales, norms = zip(*grid.values, strict=True)
    assert len(set(counts)) == 1
    assert scales == (0.5, 1, 2, 4)
    assert norms[2] == pytest.approx(2 * norms[1], rel=1e-5)


def test_the_notes_table_of_8b_stands_beside_the_right_one():
    shown = explain("lora", model="llama-3-8b", rank=16).numbers
    rows = dict(zip(shown["example"]["table"].rows, shown["example"]["table"].values, strict=True))
    assert rows["q_proj"] == (131_072, 131_072)
    assert rows["k_proj"] == rows["v_proj"] == (131_072, 81_920)
    assert rows["attention, a layer"] == (524_288, 425_984)
    assert rows["MLP, a layer"] == (884_736, 884_736)
    assert rows["a layer"] == (1_409_024, 1_310_720)
    assert rows["32 layers"] == (45_088_768, 41_943_040)
    assert shown["example"]["models"].values[0] == (39_976_960, 39_976_960, 0)
    assert list(shown["model"]["by_alpha"].rows) == ["8", "16", "32", "64"]
    assert shown["model"]["by_alpha"].values == [[41_943_040, scale] for scale in (0.5, 1, 2, 4)]
    assert round(shown["model"]["percent_of_model"], 4) == 0.5223
