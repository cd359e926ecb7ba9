"""Folding an adapter into its base, with the proof that both say the same."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from puna.adaptation.merge import merge as merge_into_base
from puna.adaptation.targets import attach_adapter, named_loras
from puna.arch.modules import LINEARS
from puna.errors import UsageError, unknown_name
from puna.evaluation.agreement import compare_logits
from puna.jobs.load import LoadedModel, find_base, find_model, load, load_adapter_for
from puna.jobs.proof_texts import PROOF_TEXTS
from puna.jobs.run_folder import check_replaceable
from puna.model.linears.kind import dense_linear, dense_weight
from puna.model.surgery import get_linear, replace_linears
from puna.planning.settings import BASES, Base
from puna.weights.folder import save_folder
from puna.weights.headers import read_header
from puna.weights.names import entry_of_each

__all__ = ["MergeResult", "merge"]

_PROOF_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """What `puna adapt merge --json` prints: merged against attached, on a fixed text.

    dense_logit_difference: merged against the adapter on the base as it is stored, where it was merged into a rounded one.
    made_dense: Linears that the base stores as factors or codes, and the merged model as one matrix.
    unties: the head was the embedding, and is now a weight of its own.
    """

    max_logit_difference: float
    largest_logit: float
    kl_nats: float
    base_type: Base
    dense_logit_difference: float | None
    made_dense: int
    unties: bool
    model: str


def merge(
    adapter: str | Path,
    out: Path,
    *,
    base_model: str | Path | None = None,
    base_type: Base | None = None,
    text: str = "",
    must_change: bool = True,
) -> MergeResult:
    """Fold an adapter into its base in float32, prove it on a text, save the merged model in `out`.

    Args:   base_type: what the base's Linears are rounded to before; None: what the adapter was trained on, where it says.
            must_change: refuse an adapter that changes nothing.
    Errors: UsageError: no base, something else stands at `out`, an adapter that changes nothing. CheckpointMismatch: another
            base. FormatError. Nothing is written then.
    """
    check_replaceable(out)
    base = find_base(adapter) if base_model is None else find_model(base_model)
    if out.resolve() == base.resolve():
        raise UsageError(f"{out} is the base itself", "choose another --out: the adapter belongs to this base")
    header = read_header(base)
    parts = load_adapter_for(header, Path(adapter))
    held = _known(base_type or parts.base_type or "float32")
    attached, merged = (_rounded(base, held) for _ in range(2))
    for each in (attached, merged):
        attach_adapter(each.llama, parts)
    if must_change and all(
        torch.equal(lora.dense_weight(), lora.base_weight()) for _, lora in named_loras(merged.llama)
    ):
        raise UsageError(f"{adapter} changes nothing: merged, it would be the base", "train it first (puna adapt)")
    unties = merge_into_base(merged.llama)
    ids = torch.tensor([attached.tokenizer.encode(text or PROOF_TEXTS[0] + PROOF_TEXTS[1], bos=True)[:_PROOF_TOKENS]])
    agreement, difference = compare_logits(attached.llama, merged.llama, ids), None
    if held != "float32":
        difference = compare_logits(load(base, adapter=adapter).llama, merged.llama, ids).max_logit_difference
    save_folder(merged.llama, out, merged.tokenizer, base=header)
    return MergeResult(
        max_logit_difference=agreement.max_logit_difference,
        largest_logit=agreement.largest_logit,
        kl_nats=agreement.kl_nats,
        base_type=held,
        dense_logit_difference=difference,
        made_dense=sum(
            isinstance(get_linear(merged.llama, path), nn.Linear) for path in entry_of_each(header.stored.linears)
        ),
        unties=unties,
        model=str(out),
    )


def _known(name: str) -> Base:
    for base in BASES:
        if base == name:
            return base
    raise unknown_name("base", name, BASES)


def _rounded(base: Path, held: Base) -> LoadedModel:
    """A model of float32 Linears that say what those of a base type say, exactly."""
    if held in ("float32", "bfloat16"):
        loaded = load(base, dtype=torch.float32)
        if held == "bfloat16":
            loaded.llama.bfloat16().float()
        return loaded
    loaded = load(base, base=held, dtype=torch.float32)
    replace_linears(loaded.llama, LINEARS, lambda _, linear: dense_linear(dense_weight(linear)))
    return loaded
