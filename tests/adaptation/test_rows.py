"""Rows: every record whole and once, and none sees another."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.adaptation.encoding import EncodedRecord
from puna.adaptation.rows import RecordSource, collate, pack_records
from puna.errors import BadData


def encoded(*lengths: int) -> list[EncodedRecord]:
    """Records of ids that count up, the first half given, the rest learned."""
    return [
        EncodedRecord(
            file="a",
            place=f"a:{i}",
            kind="pair",
            is_chat=False,
            ids=np.arange(n, dtype=np.int32) + 100 * i,
            learn=np.arange(n) >= n // 2,
        )
        for i, n in enumerate(lengths)
    ]


@given(st.lists(st.integers(2, 9), min_size=1, max_size=20))
def test_packing_keeps_every_record_whole_and_once(lengths: list[int]) -> None:
    records = encoded(*lengths)
    rows = pack_records(records, seq=8)
    found = []
    for row in rows:
        for number in range(row.documents.max() + 1):
            here = row.documents == number
            found.append((*row.ids[here].tolist(), int(row.targets[here][-1])))
            index = found[-1][0] // 100
            assert row.keep[here].tolist() == records[index].learn[1:].tolist()
        assert not row.keep[row.documents < 0].any()
    assert sorted(found) == sorted(tuple(record.ids.tolist()) for record in records)
    assert pack_records([], seq=8) == []


def test_packed_records_do_not_see_each_other(tiny) -> None:
    rows = pack_records(encoded(5, 4, 3), seq=16)
    packed = collate(rows)
    assert len(rows) == 1
    hidden_TD = tiny.hidden(packed.ids_BT, None, packed.documents_BT)[0]
    for number in range(3):
        here = packed.documents_BT[0] == number
        alone_TD = tiny.hidden(packed.ids_BT[:, here])[0]
        assert (hidden_TD[here] - alone_TD).abs().max() <= 1e-5 * alone_TD.abs().max()


def test_rows_of_one_record_need_no_documents() -> None:
    assert collate(pack_records(encoded(9, 9), seq=8)).documents_BT is None


def test_each_epoch_visits_every_row_once_from_wherever_one_starts() -> None:
    rows = pack_records(encoded(*[9] * 6), seq=8)
    source = RecordSource(rows, batch=2, micro_batch=1, seed=3)
    steps = [[int(batch.ids_BT[0, 0]) for batch in source.batches(step)] for step in range(9)]
    for epoch in range(3):
        assert sorted(start for step in steps[3 * epoch : 3 * epoch + 3] for start in step) == [
            0,
            100,
            200,
            300,
            400,
            500,
        ]
    assert steps[:3] != steps[3:6]
    [jumped] = RecordSource(rows, batch=2, micro_batch=2, seed=3).batches(7)
    assert jumped.ids_BT[:, 0].tolist() == steps[7]
    assert jumped.keep_BT.dtype == torch.bool
    with pytest.raises(BadData, match="no record is left"):
        RecordSource([], batch=1, micro_batch=1, seed=0)
