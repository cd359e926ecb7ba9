"""Batch counts what it trains on and moves as one."""

import torch

from puna.model.batch import Batch


def test_every_target_counts_unless_a_mask_says_otherwise() -> None:
    ids = torch.arange(12).view(3, 4)
    assert Batch(ids_BT=ids, targets_BT=ids + 1).targets == 12
    assert Batch(ids_BT=ids, targets_BT=ids + 1, keep_BT=ids % 4 == 0).targets == 3


def test_moving_a_batch_moves_every_tensor_it_has() -> None:
    ids = torch.arange(6).view(2, 3)
    moved = Batch(ids_BT=ids, targets_BT=ids, keep_BT=ids > 0, documents_BT=ids).to(torch.device("meta"))
    assert {moved.ids_BT.device.type, moved.targets_BT.device.type} == {"meta"}
    assert moved.keep_BT is not None and moved.keep_BT.is_meta  # noqa: PT018
    assert moved.documents_BT is not None and moved.documents_BT.is_meta  # noqa: PT018
    assert moved.positions_BT is None
