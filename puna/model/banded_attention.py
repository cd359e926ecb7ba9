"""Local attention by blocks of queries, forward and backward, without a tensor of n x n.

A row's whole blocks (arch/bands.py) all see alike, so that one call of the kernels does many as a batch: its queries and keys are
views of the row, the keys overlapping ones, and one small mask serves every block, head and row.

On a CPU the way back is written out (`_OnCpu`): torch's own would fill a row of zeros for each piece, and all blocks' key
gradients at once are three rows more, whose first touch took two fifths of the time (docs/findings.md 43).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from puna.arch.attention_pattern import HeadPattern, SlidingWindow
from puna.arch.bands import Bands, Piece, cut_bands
from puna.model.attention import Attend, addend, attend_where

__all__ = ["BandedAttention", "HeadParts", "banded_attention"]

_SPAN_TOKENS = 2048  # queries of a call on a CPU: what a call makes stays small and is used again
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """Blocks of a row that see alike, from the query `start` on.

    mask: (B or 1, blocks or 1, 1, queries, keys), added to the scores; None: causal.
    """

    start: int
    blocks: int
    queries: int
    back: int
    sinks: int
    mask: Tensor | None

    def queries_of(self, row_HTE: Tensor) -> Tensor:
        """(blocks, H, queries, E), a view."""
        end = self.start + self.blocks * self.queries
        return row_HTE[:, self.start : end].unflatten(1, (self.blocks, self.queries)).transpose(0, 1)

    def keys_of(self, row_GTE: Tensor) -> Tensor:
        """(blocks, G, sinks + back + queries, E), a view where there are no sinks."""
        near_NGWE = self.near(row_GTE, 0, self.back + self.queries)
        if not self.sinks:
            return near_NGWE
        return torch.cat((row_GTE[None, :, : self.sinks].expand(self.blocks, -1, -1, -1), near_NGWE), dim=2)

    def near(self, row_GTE: Tensor, first: int, width: int) -> Tensor:
        """The keys `first` ... `first` + `width` of each block, counted from `back` before it, (blocks, G, width, E), a view."""
        start = self.start - self.back + first
        end = start + (self.blocks - 1) * self.queries + width
        return row_GTE[:, start:end].unfold(1, width, self.queries).permute(1, 0, 3, 2)

    def mask_of(self, row: int) -> Tensor | None:
        """(blocks, 1, queries, keys) of a row."""
        return None if self.mask is None else self.mask[row % len(self.mask)].expand(self.blocks, -1, -1, -1)

    def cut(self, tokens: int) -> Iterator["_Span"]:
        """The same in spans of about so many queries."""
        most = max(1, tokens // self.queries)
        for done in range(0, self.blocks, most):
            mask = self.mask
            if mask is not None and mask.shape[1] > 1:
                mask = mask[:, done : done + most]
            start, blocks = self.start + done * self.queries, min(most, self.blocks - done)
            yield replace(self, start=start, blocks=blocks, mask=mask)


@dataclass(frozen=True, slots=True)
class BandedAttention:
    """Attend over a call's own tokens, span by span."""

    spans: Sequence[_Span]
    on_cpu: bool

    @property
    def masks(self) -> list[Tensor]:
        """What is held for the call."""
        return [span.mask for span in self.spans if span.mask is not None]

    def __call__(self, q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, sink_H: Tensor | None = None) -> Tensor:
        """As Attend."""
        if self.on_cpu:
            return _OnCpu.apply(q_BHTE, k_BGSE, v_BGSE, self.spans)
        rows = enumerate(zip(q_BHTE.unbind(), k_BGSE.unbind(), v_BGSE.unbind(), strict=True))
        return torch.stack([self._row(number, *row, sink_H) for number, row in rows]).transpose(1, 2)

    def _row(self, row: int, q_HTE: Tensor, k_GTE: Tensor, v_GTE: Tensor, sink_H: Tensor | None) -> Tensor:
        """y_THE."""
        parts = []
        for span in self.spans:
            q, k, v = span.queries_of(q_HTE), span.keys_of(k_GTE), span.keys_of(v_GTE)
            parts.append(attend_where(q, k, v, sink_H, mask=span.mask_of(row)).transpose(1, 2).flatten(0, 1))
        return torch.cat(parts)


class _OnCpu(torch.autograd.Function):
    """y_BHTE, laid out as o_proj reads it, of q_BHTE, k_BGTE and v_BGTE."""

    @staticmethod
    def forward(ctx: Any, q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor, spans: Sequence[_Span]) -> Tensor:
        ctx.spans = [part for span in spans for part in span.cut(_SPAN_TOKENS)]
        y_BHTE, sums = (
            torch.empty_like(q_BHTE.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2),
            [],
        )
        for row, (q_HTE, k_GTE, v_GTE, y_HTE) in enumerate(zip(q_BHTE, k_BGTE, v_BGTE, y_BHTE, strict=True)):
            for span in ctx.spans:
                q, k, v, mask = span.queries_of(q_HTE), span.keys_of(k_GTE), span.keys_of(v_GTE), span.mask_of(row)
                y, log_sum_exp = _forward(q, k, v, 0.0, mask is None, attn_mask=mask)
                span.queries_of(y_HTE).copy_(y)
                sums.append(log_sum_exp)
        ctx.save_for_backward(q_BHTE, k_BGTE, v_BGTE, y_BHTE, *sums)
        return y_BHTE

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        *kept, y_BHTE = ctx.saved_tensors[:4]
        dq_BHTE, dk_BGTE, dv_BGTE = torch.empty_like(kept[0]), *(torch.zeros_like(each) for each in kept[1:])
        sums = iter(ctx.saved_tensors[4:])
        rows = zip(*kept, y_BHTE, upstream[0], dq_BHTE, dk_BGTE, dv_BGTE, strict=True)
        for row, (q_HTE, k_GTE, v_GTE, y_HTE, dy_HTE, dq_HTE, dk_GTE, dv_GTE) in enumerate(rows):
            for span in ctx.spans:
                q, k, v, mask = span.queries_of(q_HTE), span.keys_of(k_GTE), span.keys_of(v_GTE), span.mask_of(row)
                y, dy = span.queries_of(y_HTE), span.queries_of(dy_HTE)
                dq, dk, dv = _backward(dy, q, k, v, y, next(sums), 0.0, mask is None, attn_mask=mask)
                span.queries_of(dq_HTE).copy_(dq)
                _add_back(span, dk_GTE, dk)
                _add_back(span, dv_GTE, dv)
        return dq_BHTE, dk_BGTE, dv_BGTE, None


def _add_back(span: _Span, row_GTE: Tensor, d_NGWE: Tensor) -> None:
    """Add the gradients of each block's keys where the keys stand: `queries` columns at a time, which never overlap."""
    if span.sinks:
        row_GTE[:, : span.sinks] += d_NGWE[:, :, : span.sinks].sum(0)
    for first in range(0, span.back + span.queries, span.queries):
        columns = d_NGWE[:, :, span.sinks + first :][:, :, : span.queries]
        span.near(row_GTE, first, columns.shape[2]).add_(columns)


def banded_attention(
    pattern: HeadPattern, tokens: int, documents_BT: Tensor | None, device: torch.device, dtype: torch.dtype
) -> BandedAttention:
    """For so many tokens, which see only tokens of their own document; dtype: that of the queries."""
    bands = cut_bands(pattern, tokens)
    is_plain = not (isinstance(pattern, SlidingWindow) and pattern.learnable_sink)
    starts = ((0, bands.first), (bands.prefix, bands.body), (bands.end, bands.last))
    spans = []
    for start, piece in starts:
        if piece.blocks:
            has_mask = documents_BT is not None or (start > 0 and bands.back > 0)
            mask = _mask(pattern, bands, start, piece, documents_BT, device, dtype) if has_mask else None
            back, sinks = (bands.back, bands.sinks) if start else (0, 0)
            spans.append(
                _Span(start=start, blocks=piece.blocks, queries=piece.queries, back=back, sinks=sinks, mask=mask)
            )
    return BandedAttention(spans, on_cpu=is_plain and device.type == "cpu")


def _mask(
    pattern: HeadPattern,
    bands: Bands,
    start: int,
    piece: Piece,
    documents_BT: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Of a piece whose queries begin at `start`. Without documents all its blocks have the first one's: distances decide."""
    blocks = 1 if documents_BT is None else piece.blocks
    moved_N1 = start + piece.queries * torch.arange(blocks, device=device)[:, None]
    queries_Nb = moved_N1 + torch.arange(piece.queries, device=device)
    sinks_Ns = torch.arange(bands.sinks if start else 0, device=device).expand(blocks, -1)
    near = torch.arange(piece.queries - piece.keys + sinks_Ns.shape[1], piece.queries, device=device)
    keys_NW = torch.cat((sinks_Ns, moved_N1 + near), dim=1)
    seen = pattern.allows(queries_Nb[:, :, None], keys_NW[:, None, :])[None]
    if documents_BT is not None:
        seen = seen & (documents_BT[:, queries_Nb][..., None] == documents_BT[:, keys_NW][..., None, :])
    return addend(seen[:, :, None], dtype)


@dataclass(frozen=True, slots=True)
class HeadParts:
    """Equal shares of the heads, each with a way to attend of its own."""

    ways: Sequence[Attend]

    def __call__(self, q_BHTE: Tensor, k_BGSE: Tensor, v_BGSE: Tensor, sink_H: Tensor | None = None) -> Tensor:
        """As Attend."""
        assert sink_H is None, "no pattern has both"
        if k_BGSE.shape[1] % len(self.ways):  # heads of different parts share one
            each = q_BHTE.shape[1] // k_BGSE.shape[1]
            k_BGSE, v_BGSE = (kept.repeat_interleave(each, dim=1) for kept in (k_BGSE, v_BGSE))
        shares = (kept.chunk(len(self.ways), dim=1) for kept in (q_BHTE, k_BGSE, v_BGSE))
        return torch.cat([way(*share, None) for way, *share in zip(self.ways, *shares, strict=True)], dim=1)
