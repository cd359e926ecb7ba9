"""The rule by which a frontier recommends, and the command that it prints."""

import shlex
from dataclasses import replace
from pathlib import Path

from puna.jobs.frontier_recipe import FrontierRecipe
from puna.jobs.frontier_result import (
    FrontierPoint,
    FrontierResult,
    Original,
    cheapest,
    command_for,
    nats_text,
    recommend,
    verdict,
)

POINT = FrontierPoint(
    method="auto", keep=0.6, bytes=600, share=0.6, added_nats=0.02, low=0.01, high=0.03, ranks={},
    decode_tokens_per_second=2.0, prefill_tokens_per_second=3.0,
)  # fmt: skip


def test_the_smallest_that_stays_within_the_limit_for_certain_is_recommended() -> None:
    larger, unsure = replace(POINT, bytes=700, added_nats=0.001), replace(POINT, bytes=500, high=0.0501)
    grown = replace(POINT, bytes=1000)
    assert recommend([larger, POINT, unsure], 1000) is POINT
    assert recommend([unsure, grown], 1000) is None
    better = replace(POINT, added_nats=0.01)
    assert recommend([POINT, better], 1000) is better


def test_where_none_is_the_cheapest_for_its_bytes_is_named() -> None:
    dear = replace(POINT, bytes=900, added_nats=0.2, high=0.3)
    near = replace(POINT, method="int8", keep=None, bytes=500, added_nats=0.5, high=0.6)
    assert cheapest([dear, near, replace(POINT, bytes=1000)], 1000) is near
    original = Original(bytes=1000, nats_per_token=4.0, decode_tokens_per_second=1.0, prefill_tokens_per_second=9.0)
    none = FrontierResult(
        original=original, frontier=[dear, near], recommended=None, command=None, ablation=[], seconds=1.0, peak_bytes=1,
        report="r",
    )  # fmt: skip
    assert verdict(none).startswith("Nothing is recommended")
    assert "int8" in verdict(none)
    assert "no setting stored less" in verdict(replace(none, frontier=[replace(POINT, bytes=1000)]))
    assert verdict(replace(none, recommended=POINT)).startswith("auto 60 % is recommended")


def test_the_command_names_what_was_measured_and_the_same_texts() -> None:
    recipe = FrontierRecipe(model=Path("my model"), calibration=Path("c.txt"), evaluate=Path("e.txt"))
    auto = shlex.split(command_for(recipe, POINT, Path("runs/f")))
    assert auto == [*["puna", "compress"], "my model", *["runs/f-auto-60", "--calibration", "c.txt", "--keep", "0.6"],
                    "--evaluate", "e.txt"]  # fmt: skip
    whitened = command_for(replace(recipe, evaluate=None), replace(POINT, method="whitened", keep=0.9), Path("f"))
    assert whitened == "puna compress 'my model' f-whitened-90 --calibration c.txt --method whitened --keep 0.9"
    assert "f-int8 --calibration c.txt --quantize int8 " in command_for(
        recipe, replace(POINT, method="int8", keep=None), Path("f")
    )


def test_nothing_added_has_no_sign() -> None:
    assert [nats_text(value) for value in (-0.00001, 0.05, -0.5)] == ["0.0000", "0.0500", "−0.5000"]
