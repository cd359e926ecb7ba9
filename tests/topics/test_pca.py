from puna.topics.explain import explain


def test_the_error_is_the_dropped_eigenvalues_and_all_directions_are_the_table():
    shown = explain("pca", model="tiny", rank=24).numbers["model"]
    assert shown["error_difference"] <= 1e-12
    assert shown["full_rank_difference"] <= 1e-12
    assert 0 < shown["dropped_share"] < 1
    assert all(0 < lost < 1 for (lost,) in shown["lost_by_token"].values)


def test_the_counts_of_8b_are_the_ledgers():
    grid = explain("pca", model="llama-3-8b", rank=1024).numbers["llama_3_8b"]["by_rank"]
    rows = dict(zip(grid.rows, grid.values, strict=True))
    assert (rows["1024"][0], round(rows["1024"][1], 2)) == (135_532_544, 3.88)
    assert (rows["2048"][0], round(rows["2048"][1], 2)) == (271_060_992, 1.94)
    assert rows["3969"][0] <= rows["dense"][0] < 3970 * (128_256 + 4096) + 4096
    assert rows["1024"][2:] == [2 * 1024 * 4096, 2 * 1024 * (128_256 + 4096)]
    assert rows["dense"][2:] == [0, 2 * 128_256 * 4096]
