"""Pictures of low rank say what the model stores."""

import pytest
import torch

from puna.compression.embeddings import factor_table
from puna.compression.hulls import Matrix
from puna.jobs.factoring import Factored
from puna.jobs.low_rank_report import kept_figure, spectra_section, table_spectra, tables_section
from puna.report.charts import HeatMap, PanelChart
from puna.report.page import Figure

GROUP, DOWN = "layers.{}.self_attn.q_proj+k_proj+v_proj", "layers.{}.mlp.down_proj"
FACTORED = Factored(
    ranks={},
    cuts={GROUP.format(0): 2, GROUP.format(1): 1, DOWN.format(0): 2},
    matrices={
        GROUP.format(0): Matrix(d_out=8, d_in=4, energies=(4.0, 3.0, 2.0, 1.0)),
        DOWN.format(0): Matrix(d_out=4, d_in=8, energies=(0.0, 0.0, 0.0, 0.0)),
        GROUP.format(1): Matrix(d_out=8, d_in=4, energies=(9.0, 1.0, 0.0, 0.0)),
        DOWN.format(1): Matrix(d_out=4, d_in=8, energies=(1.0, 1.0, 1.0, 1.0)),
    },
)


def test_a_cell_is_the_share_of_its_numbers_that_a_matrix_stores() -> None:
    chart = kept_figure("en", FACTORED).content
    assert isinstance(chart, HeatMap)
    assert (chart.rows, chart.columns) == (["q, k, v", "down"], ["0", "1"])
    assert chart.values == [[2 * 12 / 32, 12 / 32], [2 * 12 / 32, None]]


def test_a_curve_falls_from_all_the_loss_to_none() -> None:
    (figure,) = spectra_section("en", FACTORED).items
    assert isinstance(figure, Figure)
    assert isinstance(figure.content, PanelChart)
    first, second = figure.content.panels
    assert (first.low[0], first.high[0], first.low[-1], first.high[-1]) == (1.0, 1.0, 0.0, 0.0)
    assert (first.low[20], first.middle[20], first.high[20]) == (0.0, pytest.approx(0.15), 0.3)  # half of the parts
    assert first.mark == 32 / 12 / 4
    assert second.low[0] == 0.0  # a matrix without any loss


def test_a_table_is_drawn_with_what_it_kept() -> None:
    table = torch.arange(12.0, dtype=torch.float64).view(4, 3).square()
    made = {name: factor_table(table, rank) for name, rank in (("embed_tokens", 2), ("lm_head", 1))}
    (figure,) = tables_section("en", table_spectra(made, tied=False)).items
    assert isinstance(figure, Figure)
    assert isinstance(figure.content, PanelChart)
    first, second = figure.content.panels
    assert [(panel.name, panel.mark) for panel in (first, second)] == [("input table", 2 / 3), ("head", 1 / 3)]
    assert (first.middle[0], first.middle[-1]) == (1.0, 0.0)
    energies = made["embed_tokens"].energy_D
    assert table_spectra({"embed_tokens": made["embed_tokens"]}, tied=True).keys() == {"both"}
    assert first.middle[20] == pytest.approx(float(energies[2] / energies.sum()))
