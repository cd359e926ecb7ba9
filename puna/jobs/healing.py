"""Healing as a part of a compression: rows from its calibration text, the one loop, and the best step of the held-out rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from puna.adaptation.encoding import EncodedRecord, cut_record
from puna.adaptation.rows import RecordSource, Row, collate, pack_records, rows_sha256
from puna.compression.healing import Distillation
from puna.errors import BadData, UsageError
from puna.jobs.peak import PeakMemory
from puna.jobs.run_folder import RunFolder, run_training, take_best
from puna.jobs.run_report import learning_sections, write_unfinished_report
from puna.model.llama import Llama
from puna.model.loss import Nats
from puna.training.config import TrainingConfig
from puna.training.events import HeldOut, Observer
from puna.training.optimizer import trainable
from puna.training.step import Loss

__all__ = ["Healed", "heal", "healing_rows"]

_HELD_OUT = 16  # one row in 16 judges which step is the best, of at most 32
_JUDGES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Healed:
    """What healing did. kl_before, kl_after: KL(dense || compressed) on held-out calibration rows, in nats a token.

    step: the best one, whose factors stay; 0 where none was better than the beginning.
    """

    steps: int
    step: int
    tokens: int
    kl_before: float
    kl_after: float
    parameters: int
    seconds: float


def heal(
    model: Llama,
    dense: Llama,
    documents: Sequence[Sequence[int]],
    config: TrainingConfig,
    folder: RunFolder,
    *,
    peak: PeakMemory,
    go_on: str,
    loss: Loss | None = None,
    observers: tuple[Observer, ...] = (),
    lang: str = "en",
) -> Healed:
    """Train what is trainable of a model, in place, to predict what `dense` predicts; from the latest checkpoint.

    Args:   documents: ids of calibration text; one row in 16 is held out.
            go_on: the command that the page of a stopped run names. loss: None: the divergence from `dense`. lang: that page's.
    Errors: BadData for too little text; UsageError where nothing is trainable; Interrupted after saving.
    """
    config = replace(config, seq=min(config.seq, model.config.max_seq_len))
    rows = healing_rows(documents, config.seq)
    learned, held_out = _held_out(rows)
    config = config.for_rows(len(learned))
    judges = _Judges(Distillation(dense) if loss is None else loss, model, held_out, config)
    before, learning = judges().nats, trainable(model)
    if not learning:
        raise UsageError("--heal: every matrix stayed dense", "keep less, or leave out --heal")
    start = {name: weight.detach().clone() for name, weight in learning.items()}
    state = run_training(
        folder, model, config, RecordSource(learned, config.batch, config.micro_batch, config.seed), judges, observers,
        peak=peak, data={"the calibration text": rows_sha256(rows)}, loss=judges.loss, tensorboard=False,
        show=lambda state, is_stopped: write_unfinished_report(
            folder, "compress", state, config, learning_sections(lang, folder), is_stopped=is_stopped, go_on=go_on,
            lang=lang,
        ),
    )  # fmt: skip
    step, after = take_best(folder, model, state)
    if after >= before:
        for name, weight in learning.items():
            weight.data.copy_(start[name])
        step, after = 0, before
    return Healed(
        steps=state.done.steps,
        step=step,
        tokens=state.done.tokens,
        kl_before=before,
        kl_after=after,
        parameters=sum(weight.numel() for weight in learning.values()),
        seconds=state.done.seconds,
    )


def healing_rows(documents: Sequence[Sequence[int]], seq: int) -> list[Row]:
    """All documents in rows of `seq` tokens, of which each sees its own document alone. Args: documents: ids."""
    records: list[EncodedRecord] = []
    for number, document in enumerate(documents):
        ids = np.array(document, np.int32)
        learn = np.arange(len(ids)) > 0
        record = EncodedRecord(file="", place=f"document {number}", kind="text", is_chat=False, ids=ids, learn=learn)
        records += cut_record(record, seq)
    return pack_records(records, seq)


def _held_out(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """(learned from, judged by), evenly spread. Errors: BadData for fewer than two rows."""
    if len(rows) < 2:
        raise BadData(f"calibration: expected at least 2 rows to heal with, got {len(rows)}", "give more text")
    held_out = rows[:: max(_HELD_OUT, -(-len(rows) // _JUDGES))]
    chosen = {id(row) for row in held_out}
    return [row for row in rows if id(row) not in chosen], list(held_out)


class _Judges:
    """The held-out rows, and what a step is judged by on them: the loss that is learned."""

    def __init__(self, loss: Loss, model: Llama, rows: Sequence[Row], config: TrainingConfig) -> None:
        self.loss, self._model = loss, model
        size, device = min(config.batch, config.micro_batch), model.device
        self._batches = [collate(rows[start : start + size]).to(device) for start in range(0, len(rows), size)]

    @torch.no_grad()
    def __call__(self) -> HeldOut:
        """Mean over the kept tokens of all rows."""
        nothing = Nats(torch.zeros((), dtype=torch.float64, device=self._model.device), 0)
        return HeldOut(nats=sum((self.loss(self._model, batch) for batch in self._batches), start=nothing).mean)
