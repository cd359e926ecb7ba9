"""Checkpointed blocks: the same gradients to the bit, less memory kept, and no trace afterwards."""

import copy

import torch

from puna.model.batch import Batch
from puna.training.activations import checkpointed_blocks
from puna.training.step import batch_nats


def gradients(model, batch: Batch, *, is_on: bool) -> tuple[list[torch.Tensor], int]:
    """The gradients of a batch, and the bytes that autograd kept for them."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with checkpointed_blocks(model, is_on=is_on), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        nats = batch_nats(model, batch)
        before = sum(kept.values())
        nats.sum.backward()
    return [weight.grad for weight in model.parameters()], before


def test_gradients_are_the_same_to_the_bit_and_less_is_kept(tiny) -> None:
    other = copy.deepcopy(tiny)
    ids = torch.randint(512, (4, 33), generator=torch.Generator().manual_seed(0))
    documents = torch.arange(32).div(10, rounding_mode="floor").expand(4, -1)
    batch = Batch(ids_BT=ids[:, :-1], targets_BT=ids[:, 1:], documents_BT=documents)
    plain, all_kept = gradients(tiny, batch, is_on=False)
    formed_again, few_kept = gradients(other, batch, is_on=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, formed_again, strict=True))
    assert few_kept < all_kept / 3


def test_nothing_of_it_stays_on_the_model(tiny) -> None:
    with checkpointed_blocks(tiny):
        assert "forward" in vars(tiny.layers[0])
    assert "forward" not in vars(tiny.layers[0])
