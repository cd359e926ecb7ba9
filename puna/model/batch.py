"""Batch: what one micro-batch of training or evaluation is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["Batch", "join_batches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Token ids and what to predict at each of them.

    ids_BT, targets_BT: int64; the target of position t is the id at t + 1.
    keep_BT:      bool, which targets count; None: all of them.
    positions_BT: int64, absolute positions; None: 0 ... T - 1.
    documents_BT: int64, tokens see only tokens of their own document; None: one document a row.
    """

    ids_BT: Tensor
    targets_BT: Tensor
    keep_BT: Tensor | None = None
    positions_BT: Tensor | None = None
    documents_BT: Tensor | None = None

    @property
    def targets(self) -> int:
        """How many targets count."""
        return self.targets_BT.numel() if self.keep_BT is None else int(self.keep_BT.sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        moved = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in moved.items() if value is not None})


def join_batches(parts: Sequence[Batch]) -> Batch:
    """The rows of several batches that say the same things about their tokens, in one."""
    columns = {item.name: [getattr(part, item.name) for part in parts] for item in fields(Batch)}
    return Batch(**{name: torch.cat(values) for name, values in columns.items() if values[0] is not None})
