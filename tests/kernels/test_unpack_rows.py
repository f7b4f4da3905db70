"""Every form of `unpack_rows` gives the bits of the formula, group by group."""

from __future__ import annotations

import pytest
import torch

from interp.kernels import counted, unpack_rows
from interp.store import StoreWriter, open_store


@pytest.mark.parametrize("form", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "width"), [(1, 1), (37, 130), (9, 256), (0, 5), (3, 300), (3000, 200)])
def test_codes_times_scales(form, dtype, n, width, monkeypatch):
    """Written over NaN, in float32 and others; every code from -127 to 127."""
    torch.manual_seed(n + width)
    codes = torch.randint(-127, 128, (n, width), dtype=torch.int8)
    scales, pivot = torch.randn(n, -(-width // 128)).bfloat16(), torch.randn(width)
    rows = torch.full((n, width), torch.nan, dtype=dtype)
    unpack_rows.forms[form](codes, scales, pivot, rows)
    wide = scales.to(dtype).repeat_interleave(128, 1)[:, :width]
    exact = torch.addcmul(pivot.to(dtype), codes.to(dtype), wide)
    assert torch.equal(rows, exact)
    if dtype == torch.float32:
        double = pivot.double() + codes.double() * wide.double()
        assert ((rows - double).abs() <= 6e-8 * double.abs() + 1e-300).all()


def test_int8_rows_of_a_store_are_read_through_it(tmp_path):
    x = torch.randn(300, 40)
    with StoreWriter(tmp_path, widths={"a": 40}, dtype="int8", expected_rows=300) as store:
        store.append({"a": x}, torch.zeros(300).long())
    with counted() as calls:
        next(open_store(tmp_path).batches(100))
    assert [op for op, _ in calls] == ["unpack_rows"]
