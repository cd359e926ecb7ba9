"""Planned sizes of compressed folders are what loading them holds; their products are those that a forward pass makes."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from puna.compression.embeddings import factor_tables
from puna.compression.low_rank import compress_low_rank, decompose_groups, decompose_linears
from puna.compression.rounding import Residual, round_linears
from puna.compression.sizes import stored_bytes, stored_parameters
from puna.compression.statistics import collect_two_sided_statistics
from puna.errors import UsageError
from puna.jobs.compressed import compressed_sizes
from puna.jobs.load import load
from puna.jobs.plan import plan
from puna.planning.memory import peak_memory
from puna.planning.settings import FullTraining, Settings
from puna.weights.folder import save_folder
from puna.weights.headers import read_stored

IDS = torch.randint(0, 512, (2, 32), generator=torch.Generator().manual_seed(0))


def compressed(model, levers: str):
    """The model after some of: factors, or shared factors (groups), tables, int8, nf4, corrected."""
    statistics = collect_two_sided_statistics(model, [IDS])
    decompose = decompose_groups if "groups" in levers else decompose_linears
    if "factors" in levers or "groups" in levers:
        spectra = dict(decompose(model, statistics.grams, statistics.gradients))
        compress_low_rank(model, spectra.items(), {name: 8 + 2 * place for place, name in enumerate(spectra)})
    if "tables" in levers:
        factor_tables(model, 20, None, "plain")
    if "int8" in levers or "nf4" in levers:
        residual = Residual(rank=4, grams=statistics.grams) if "corrected" in levers else None
        round_linears(model, "int8" if "int8" in levers else "nf4", residual)
    return model


LEVERS = [
    "factors",
    "groups",
    "tables",
    "int8",
    "nf4",
    "nf4 corrected",
    "factors tables",
    "groups tables int8",
    "factors nf4",
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("levers", LEVERS)
def test_planned_weights_are_what_loading_holds(build_llama, tmp_path, levers, tied):
    save_folder(compressed(build_llama(tied_embeddings=tied), levers), tmp_path)
    for base in ("float32", "bfloat16"):
        result = plan(tmp_path, base=base, seq=32)
        assert result.bytes.weights == stored_bytes(load(tmp_path, base=base).llama), base
    loaded = load(tmp_path).llama
    if "int8" not in levers and "nf4" not in levers:
        assert result.parameters == stored_parameters(loaded)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        loaded(IDS)
    counted = sum(flops for operation, flops in counter.get_flop_counts()["Global"].items() if "mm" in str(operation))
    stored = read_stored(tmp_path)
    sizes = compressed_sizes(stored)
    lookup = 0 if stored.embedding_rank is None else stored.embedding_rank * stored.model.dim
    assert counted == 2 * IDS.numel() * (sum(sizes.products.values()) + sizes.head_products + lookup)


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
