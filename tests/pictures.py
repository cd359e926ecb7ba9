"""One real picture of each kind and width: drawing hundreds takes a tenth of a second each, and jobs look at none of them."""

from collections.abc import Callable
from typing import Any

import pytest
from markupsafe import Markup

from puna.report import page

drawn: dict[tuple[type, int], Markup] = {}


def draw_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages show the first picture of its kind in place of each later one; tests/report draws them all."""
    draw: Callable[..., Markup] = page.draw_chart

    def few(chart: Any, *, width: int, prefix: str, title: str) -> Markup:
        key = type(chart), width
        if key not in drawn:
            drawn[key] = draw(chart, width=width, prefix=prefix, title=title)
        return drawn[key]

    monkeypatch.setattr(page, "draw_chart", few)
