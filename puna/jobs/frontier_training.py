"""What training adds to a compression, and what it does without one: healing, and the same sizes built from scratch.

Both train for as long on the calibration text, from the cut model and from fresh weights: the first to predict what the
dense model predicts, the second what the text says, since who builds from scratch has no other model.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from puna.compression.healing import shared_copy, train_factors
from puna.jobs.healing import heal
from puna.jobs.peak import PeakMemory
from puna.jobs.run_folder import open_run
from puna.model.init import initialise
from puna.model.llama import Llama
from puna.training.config import TrainingConfig
from puna.training.step import Loss, batch_nats

__all__ = ["trained_beside"]


def trained_beside(
    smaller: Llama,
    dense: Llama,
    documents: Sequence[Sequence[int]],
    config: TrainingConfig,
    out: Path,
    *,
    peak: PeakMemory,
    go_on: str,
    observers: tuple[Callable[[Any], None], ...] = (),
    lang: str = "en",
) -> Iterator[tuple[Literal["healing", "scratch"], Llama]]:
    """(`healing` | `scratch`, a model of the sizes of `smaller`), each trained in a run folder of its own below `out`.

    Args:   documents, config, go_on, lang: as for heal.
    Errors: those of heal.
    """
    healed = shared_copy(smaller)
    train_factors(healed)
    fresh = initialise(copy.deepcopy(smaller), config.seed).requires_grad_()
    arms: tuple[tuple[Literal["healing", "scratch"], Llama, Loss | None], ...]
    arms = ("healing", healed, None), ("scratch", fresh, batch_nats)
    for name, model, loss in arms:
        with open_run(out / name, config, resume=True) as folder:
            heal(
                model, dense, documents, config, folder, peak=peak, go_on=go_on, loss=loss, observers=observers, lang=lang
            )  # fmt: skip
        yield name, model
