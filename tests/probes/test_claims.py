"""Claims: each with its verdict and figure, the counter-examples among them, and a page of its own."""

from __future__ import annotations

import interp
from probes.claims import Claims, constructed, of_model
from probes.cli.squash_page import write_page


def test_claims_of_the_constructed_layer(tmp_path):
    found = Claims(tuple(constructed((16, 64, 256))))
    assert [c.holds for c in found.rows] == [True, False, True, True, True, False]
    frame = found.to_frame()
    assert frame["verdict"].tolist()[:2] == ["holds", "does not hold as stated"]
    assert len(found.plot(1).data) == 4
    write_page(tmp_path / "page.html", found)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<article>") == 6
    assert page.count("ALiBi at slope 0.5") == 1


def test_claims_of_a_model(tiny_folder):
    model = interp.load(tiny_folder)
    windows = [[1, *range(10 + i, 26 + i)] for i in range(3)]
    found = Claims(tuple(of_model(model, windows[0][:12], windows, (16, 32))))
    assert len(found.rows) == 9
    told = {c.said.split()[0] + " " + c.said.split()[1]: c.holds for c in found.rows}
    assert told["Sums over"] is True
    assert told["A decoder"] is True
    assert all(c.figure.data for c in found.rows)
