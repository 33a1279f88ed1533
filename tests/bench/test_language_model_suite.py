"""The suite `lm`: its codes are drawn from the model, wrong codes get no time, and its rows become a table."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def suite():
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("suites.language_model")
    sys.path.remove(str(BENCH))


def test_a_coder_that_reads_other_codes_gets_no_time(suite):
    class Wrong(suite.RawCoder):
        def decode(self, payloads, frames, levels):
            return [codes ^ 1 for codes in super().decode(payloads, frames, levels)]

    segments = [np.arange(12).reshape(3, 4)]
    assert suite._coder_calls(suite.RawCoder(1024), segments)[1]()[0].tolist() == segments[0].tolist()
    with pytest.raises(suite.WrongAnswer, match="not those that were written"):
        suite._coder_calls(Wrong(1024), segments)


def test_the_codes_are_those_that_the_model_expects(suite):
    geometry = suite.Geometry("24 kHz", 1)
    (drawn,) = geometry.clip(0)
    other = np.random.default_rng(0).integers(0, 1024, drawn.shape)
    assert drawn.shape == (8, 75) and len(np.unique(drawn)) > 50
    own, flat = (len(payload) for payload in geometry.coder.encode([drawn, other]))
    assert own < 0.9 * flat


def test_contenders_take_turns_and_their_rows_become_a_line_for_each_direction(suite):
    order = []
    calls = {name: tuple((lambda name=name, way=way: order.append((name, way))) for way in (0, 1)) for name in ("ours-cpu", "encodec")}
    rows = suite.measure(suite.Case("LM coder", "24 kHz", 2, 10), calls, 1)
    assert list(dict.fromkeys(order)) == [("ours-cpu", 0), ("ours-cpu", 1), ("encodec", 0), ("encodec", 1)]
    for row in rows:
        row.update(environment={"threads": 1}, disturbed=None, median=2.0 if row["contender"] == "encodec" else 0.1)
        row["x_real_time"] = 20 / row["median"]
    table = importlib.import_module("bench_lib.tables").coding_table(rows)
    assert "| LM coder, 24 kHz, 2 x 10 s, encode | 1 | 10.0 | 200.0 | 20 |" in table and table.count("\n") == 3
