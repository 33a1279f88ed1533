"""The same calls under pytest-benchmark, in one process: `pytest bench --benchmark-group-by=param:case`.

For its statistics, its JSON and its comparison with earlier runs (--benchmark-autosave, --benchmark-compare). The figures of the
documentation come from run.py, which gives each contender a process of its own and interleaves them.
"""

import pytest
import torch

from bench_lib.cases import SETS
from bench_lib.check import check
from bench_lib.contenders import CONTENDERS
from bench_lib.harness import REFERENCE

CPU = torch.device("cpu")
CASES = {str(case): case for case in SETS["quick"]}


@pytest.fixture(scope="module")
def expected():
    """Returns the answers of transformers."""
    stock = CONTENDERS[REFERENCE](CPU)
    with torch.no_grad():
        return {name: stock.answer(case, stock.prepare(case)()) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def loaded():
    """Keeps contenders with their models over the cases."""
    return {}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("contender", [name for name in CONTENDERS if name not in ("compile", "ours-triton")])
def test_a_call_takes(benchmark, contender, case, expected, loaded):
    missing = CONTENDERS[contender].missing(CPU)
    if missing:
        pytest.skip(f"{contender}: {missing}")
    one = loaded.setdefault(contender, CONTENDERS[contender](CPU))
    with torch.no_grad():
        call = one.prepare(CASES[case])
        benchmark.extra_info["check"] = check(CASES[case], one.answer(CASES[case], call()), expected[case])
        benchmark.extra_info["audio_seconds"] = CASES[case].audio_seconds
        benchmark.pedantic(call, rounds=3, warmup_rounds=1)
