"""Planned sizes of compressed folders are what loading them holds; their products are those that a forward pass makes."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from puna.arch.rounding import ROUNDINGS
from puna.compression.embeddings import factor_tables
from puna.compression.low_rank import compress_low_rank, decompose_groups, decompose_linears
from puna.compression.rounding import Residual, round_linears
from puna.compression.sizes import stored_bytes, stored_parameters
from puna.compression.statistics import collect_two_sided_statistics
from puna.errors import UsageError
from puna.jobs.compressed import compressed_sizes
from puna.jobs.load import load
from puna.jobs.plan import plan
from puna.planning.compute import planned_flops
from puna.planning.memory import peak_memory
from puna.planning.settings import FullTraining, Inference, Settings
from puna.weights.folder import save_folder
from puna.weights.headers import read_stored

IDS = torch.randint(0, 512, (2, 32), generator=torch.Generator().manual_seed(0))


def compressed(model, levers: str):
    """The model after some of: factors, or shared factors (groups), tables, a format of few bits, corrected."""
    statistics = collect_two_sided_statistics(model, [IDS])
    decompose = decompose_groups if "groups" in levers else decompose_linears
    if "factors" in levers or "groups" in levers:
        spectra = dict(decompose(model, statistics.grams, statistics.gradients))
        compress_low_rank(model, spectra.items(), {name: 4 + place % 5 for place, name in enumerate(spectra)})
    if "tables" in levers:
        factor_tables(model, 20, None, "plain")
    for to in ROUNDINGS:
        if to in levers:
            residual = Residual(rank=4, grams=statistics.grams) if "corrected" in levers else None
            round_linears(model, to, residual)
    return model


LEVERS = [
    "factors",
    "groups",
    "tables",
    "int8",
    "nf4",
    "q8_0",
    "q4_0",
    "nf4 corrected",
    "factors tables",
    "groups tables int8",
    "factors nf4",
]


def counted_products(model) -> int:
    """FLOPs of all products but attention's over IDS."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(IDS)
    return sum(flops for operation, flops in counter.get_flop_counts()["Global"].items() if "mm" in str(operation))


def planned_products(folder, base) -> int:
    """The same as the planner has it, and a factored table's lookup, which it does not count."""
    stored = read_stored(folder)
    settings = Settings(
        method=Inference(), seq=IDS.shape[1], batch=IDS.shape[0], base=base, compressed=compressed_sizes(stored)
    )
    planned = planned_flops(stored.model, settings)
    lookup = 0 if stored.embedding_rank is None else stored.embedding_rank * stored.model.dim
    return planned.total - planned.attention + 2 * IDS.numel() * lookup


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("levers", LEVERS)
def test_planned_weights_and_products_are_what_loading_holds_and_does(build_llama, tmp_path, levers, tied):
    model = compressed(build_llama(tied_embeddings=tied, ffn_dim=192), levers)
    save_folder(model, tmp_path)
    for base in ("float32", "bfloat16"):
        result = plan(tmp_path, base=base, seq=32)
        assert result.bytes.weights == stored_bytes(load(tmp_path, base=base).llama), base
    assert counted_products(load(tmp_path).llama) == planned_products(tmp_path, "float32")
    assert counted_products(load(tmp_path, base="int8", dtype=torch.float32).llama) == planned_products(
        tmp_path, "int8"
    )


@pytest.mark.parametrize("tables", ["both", "input", "head"])
def test_either_table_is_counted_as_it_stands(build_llama, tmp_path, tables):
    model = build_llama(tied_embeddings=False)
    factor_tables(model, 20, None, "plain", tables)
    save_folder(model, tmp_path)
    result = plan(tmp_path, seq=32, base="float32")
    assert (result.parameters, result.bytes.weights) == (stored_parameters(model), stored_bytes(model))
    assert result.embedding_parameters + result.head_parameters == sum(
        weight.numel() for name, weight in model.named_parameters() if not name.startswith(("layers", "norm"))
    )
    assert counted_products(model) == planned_products(tmp_path, "float32")


@pytest.mark.parametrize("levers", ["", "factors", "groups"])
def test_rounding_leaves_the_numbers_as_many(build_llama, tmp_path, levers):
    models = {
        to: compressed(build_llama(ffn_dim=192), f"{levers} {to}") for to in ("tables", "tables int8", "tables q8_0")
    }
    found = set()
    for name, model in models.items():
        save_folder(model, tmp_path / name)
        found.add(plan(tmp_path / name, seq=32).parameters)
    assert found == {stored_parameters(models["tables"])}


def test_an_int8_base_is_planned_with_dense_linears(tiny, tmp_path):
    save_folder(compressed(tiny, "factors"), tmp_path)
    smaller, anew = plan(tmp_path, base="bfloat16", seq=32), plan(tmp_path, base="int8", seq=32)
    assert smaller.parameters < anew.parameters == plan(tiny.config, seq=32).parameters


def test_codes_are_made_wide_for_their_product(tiny, tmp_path):
    save_folder(compressed(tiny, "int8"), tmp_path)
    stored = plan(tmp_path, base="bfloat16", seq=32).bytes
    assert stored.activations == plan(tiny.config, base="int8", seq=32).bytes.activations
    assert stored.activations > plan(tiny.config, base="bfloat16", seq=32).bytes.activations


def test_a_factored_table_is_not_offered_to_the_host(build_llama, tmp_path):
    model = build_llama(tied_embeddings=False)
    save_folder(model, tmp_path / "dense")
    factor_tables(model, 20, None, "plain")
    save_folder(model, tmp_path / "factored")
    for name in ("dense", "factored"):
        given = {"train": "lora", "seq": 32, "checkpointing": True}
        result = plan(tmp_path / name, **given, fit=plan(tmp_path / name, **given).bytes.total - 1000)
        assert result.settings.streamed_embedding == (name == "dense")


def test_a_dense_folder_is_planned_as_its_configuration(tiny, tmp_path):
    save_folder(tiny, tmp_path)
    assert compressed_sizes(read_stored(tmp_path)) is None
    assert replace(plan(tmp_path, seq=32), model="config") == plan(tiny.config, seq=32)


def test_full_training_counts_what_is_trained(tiny, tmp_path):
    save_folder(compressed(tiny, "factors tables"), tmp_path)
    result, trained = plan(tmp_path, train="full", seq=32), stored_parameters(load(tmp_path).llama)
    assert (result.parameters, result.trainable_parameters, result.bytes.optimizer) == (trained, trained, 8 * trained)


def test_few_bits_cannot_be_trained(tiny, tmp_path):
    save_folder(compressed(tiny, "int8"), tmp_path)
    with pytest.raises(UsageError, match="floating point"):
        plan(tmp_path, train="full", seq=32)


def test_on_an_int8_base_the_linears_are_those_of_the_dense_model(tiny, tmp_path):
    save_folder(compressed(tiny, "factors tables"), tmp_path)
    assert plan(tmp_path, base="int8", seq=32, train="lora").bytes.weights == stored_bytes(
        load(tmp_path, base="int8", dtype=torch.bfloat16).llama
    )


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_smaller_tables_are_smaller(build_llama, tmp_path, tied):
    save_folder(compressed(build_llama(tied_embeddings=tied), "tables"), tmp_path)
    stored = read_stored(tmp_path)
    sizes, config = compressed_sizes(stored), stored.model
    settings = Settings(method=FullTraining(), seq=64, batch=64, base="float32", compressed=sizes)
    first = peak_memory(config, settings).gradients  # the head's: everything kept stands beside it
    assert first == 4 * (sizes.table if tied else sizes.head)
    assert peak_memory(config, replace(settings, compressed=None)).gradients == 4 * config.vocab_size * config.dim
