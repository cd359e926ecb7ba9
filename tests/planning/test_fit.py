from dataclasses import replace

import pytest

from puna.arch.presets import PRESETS
from puna.planning.fit import fit_cards, fit_memory
from puna.planning.hardware import CARDS
from puna.planning.memory import bus_bytes_per_step, peak_memory
from puna.planning.settings import FullTraining, Inference, LoraTraining, Settings

EIGHT = PRESETS["llama-3-8b"].config
LORA = Settings(method=LoraTraining(), seq=2048, batch=4, base="bfloat16", loss="naive")
METHODS = [LORA, replace(LORA, method=Inference()), replace(LORA, method=FullTraining())]


@pytest.mark.parametrize("wanted", METHODS, ids=lambda wanted: wanted.method.kind)
@pytest.mark.parametrize("memory", [4, 8, 14, 16, 18, 24, 40, 80, 141, 200])
def test_what_is_said_to_fit_fits_and_what_is_not_cannot(wanted, memory):
    found = fit_memory(EIGHT, wanted, memory * 10**9)
    assert found.memory == peak_memory(EIGHT, found.settings)
    assert found.fits == (found.memory.total <= memory * 10**9)
    if not found.fits:
        assert fit_memory(EIGHT, wanted, found.memory.total).fits
        assert not fit_memory(EIGHT, wanted, found.memory.total - 1).fits


def test_nothing_changes_where_the_wish_fits():
    found = fit_memory(EIGHT, LORA, 10**12)
    assert found.settings == LORA
    assert found.changed == ()


def test_the_free_change_comes_first_then_time_then_precision_then_size():
    last = replace(LORA, loss="chunked", checkpointing=True, streamed_layers=32, streamed_embedding=True)
    needs = [
        peak_memory(EIGHT, settings).total
        for settings in (
            replace(LORA, loss="chunked"),
            replace(LORA, loss="chunked", checkpointing=True),
            last,
            replace(last, base="int8"),
            replace(last, base="nf4", batch=2),
        )
    ]
    changes = [fit_memory(EIGHT, LORA, need).changed for need in needs]
    rest = (
        "checkpointing: off -> on",
        "loss: naive -> chunked",
        "streamed layers: 32 of 32",
        "embedding: in host memory",
    )
    assert changes == [
        ("loss: naive -> chunked",),
        ("checkpointing: off -> on", "loss: naive -> chunked"),
        rest,
        ("base: bfloat16 -> int8", *rest),
        ("batch: 4 -> 2", "base: bfloat16 -> nf4", *rest),
    ]


def test_no_more_layers_are_streamed_than_it_takes():
    wanted = replace(LORA, batch=1, loss="chunked")
    for gigabytes in (8, 12, 14, 16, 18):
        found = fit_memory(EIGHT, wanted, gigabytes * 10**9).settings
        fewer = replace(found, streamed_layers=found.streamed_layers - 1)
        assert found.base == "bfloat16"
        assert found.streamed_layers > 2
        assert peak_memory(EIGHT, fewer).total > gigabytes * 10**9 or found.streamed_layers == 3


@pytest.mark.parametrize("gigabytes", [14, 16, 18])
def test_cards_of_14_to_18_gb_hold_no_resident_16_bit_base_of_8b_but_a_smaller_one(gigabytes):
    found = fit_memory(EIGHT, replace(LORA, batch=1), gigabytes * 10**9)
    resident = [each for each in found.tried if each.bus_bytes_per_step == 0]
    assert len(resident) == 4
    assert not any(each.fits for each in resident)
    assert all(each.fits and each.bus_bytes_per_step == 0 for each in found.instead)
    assert [each.changed[0] for each in found.instead] == ["base: bfloat16 -> int8", "base: bfloat16 -> nf4"]
    assert found.tried[-1].changed == found.changed
    assert found.tried[-1].total_bytes == found.memory.total


def test_8_and_12_gb_hold_8b_with_nf4_or_streamed_and_24_gb_as_it_is():
    resident = replace(LORA, batch=1, loss="chunked", checkpointing=True)
    assert peak_memory(EIGHT, replace(resident, base="nf4")).total < 12 * 10**9 < peak_memory(EIGHT, resident).total
    assert peak_memory(EIGHT, resident).total < 24 * 10**9
    assert fit_memory(EIGHT, resident, 24 * 10**9).changed == ()


def test_full_training_never_quantises_and_inference_never_recomputes():
    assert fit_memory(EIGHT, METHODS[2], 0).settings.base == "bfloat16"
    assert not fit_memory(EIGHT, METHODS[1], 0).settings.checkpointing


def test_a_larger_card_never_fits_less():
    for wanted in METHODS:
        fits = [line.fits for line in fit_cards(EIGHT, wanted)]
        assert fits == sorted(fits)
        assert len(fits) == len(CARDS)


def test_adapting_8b_streams_layers_on_8_gb_and_none_on_24():
    lines = {line.card: line for line in fit_cards(EIGHT, replace(LORA, batch=1, loss="chunked"))}
    assert lines["RTX 4060"].fits
    assert "streamed layers: 26 of 32" in lines["RTX 4060"].changed
    assert lines["RTX 4090"].changed == ("checkpointing: off -> on",)


def test_a_million_tokens_take_their_flops_over_the_usable_rate():
    h200 = next(line for line in fit_cards(EIGHT, replace(LORA, batch=1)) if line.card == "H200")
    assert h200.changed == ()
    assert h200.seconds_per_million_tokens == pytest.approx(31.87e15 / (0.4 * 989e12), rel=1e-3)


def test_streaming_is_limited_by_the_bus_where_arithmetic_is_faster():
    wanted = replace(LORA, seq=256, batch=1, loss="chunked")
    line = next(line for line in fit_cards(EIGHT, wanted) if line.card == "RTX 4060")
    found = fit_memory(EIGHT, wanted, line.memory_bytes)
    copied = bus_bytes_per_step(EIGHT, found.settings)
    assert copied == 2 * (found.settings.streamed_layers - 2) * 2 * 218_103_808
    assert line.seconds_per_million_tokens == pytest.approx(1e6 * copied / 16e9 / 256)


def test_generation_is_limited_by_reading_the_weights():
    wanted = replace(LORA, method=Inference(), batch=1)
    h200 = fit_cards(EIGHT, wanted)[-1]
    assert h200.seconds_per_million_tokens == pytest.approx(1e6 * (16.06e9 + 2048 * 131_072) / 4.8e12, rel=1e-3)


def test_cards_stand_in_order_of_memory():
    sizes = [card.memory_bytes for card in CARDS]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (8 * 10**9, 141 * 10**9)
