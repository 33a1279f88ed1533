"""The benchmark suite in its quick form: it runs, compares answers before it prints a speed, and keeps what it measured.

No time is asserted.
"""

import dataclasses
import importlib
import json
import subprocess
import sys

import pytest
import torch

from encodec_fast.audio import read_audio
from encodec_fast.demo import bundled_clips
from support.venvs import ROOT

BENCH = ROOT / "bench"


@pytest.fixture(scope="module", autouse=True)
def bench_on_path():
    """The commands of bench/ import its packages by their bare names."""
    paths = [str(BENCH), str(BENCH / "tools")]
    sys.path[:0] = paths
    yield
    for path in paths:
        sys.path.remove(path)


def module(name):
    return importlib.import_module(name)


def run(*arguments):
    done = subprocess.run([sys.executable, BENCH / "run.py", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def quick_rows(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "cpu.jsonl"
    run("--quick", "--against", "hf,ours", "--out", out)
    return out, [json.loads(line) for line in out.read_text().splitlines()]


def test_the_quick_set_times_every_contender_on_every_case(quick_rows):
    _, rows = quick_rows
    assert not [row for row in rows if "failed" in row]
    assert len({json.dumps(row["case"]) for row in rows}) == 4
    assert {row["contender"] for row in rows} >= {"hf", "ours-torch"}
    assert all(len(row["seconds"]) >= 3 for row in rows)


def test_a_row_says_what_machine_versions_revision_and_command_it_comes_from(quick_rows):
    _, rows = quick_rows
    about = rows[0]["environment"]
    assert about["machine"]["cpu"] and about["versions"]["torch"] == torch.__version__ and "--quick" in about["command"]
    assert {"flops", "copy", "floor_seconds", "share_of_floor", "others_share", "check"} <= set(rows[0])


def test_a_second_run_measures_nothing_again(quick_rows):
    out, rows = quick_rows
    assert "done before" in run("--quick", "--against", "hf,ours", "--out", out)
    assert len(out.read_text().splitlines()) == len(rows)


def test_a_wrong_answer_gets_no_time():
    checks, case = module("bench_lib.check"), module("bench_lib.cases").SETS["quick"][0]
    codes = torch.zeros(1, 1, 8, 75, dtype=torch.int64)
    with pytest.raises(checks.WrongAnswer, match="75 of 75 frames"):
        checks.check(case, codes + 1, codes)
    with pytest.raises(checks.WrongAnswer, match="shape"):
        checks.check(case, codes[..., 1:], codes)
    decode, audio = module("bench_lib.cases").SETS["quick"][1], torch.ones(1, 1, 24_000)
    with pytest.raises(checks.WrongAnswer, match="the values"):
        checks.check(decode, audio * 1.01, audio)
    with pytest.raises(checks.WrongAnswer, match="the values"):
        checks.check(decode, audio * float("nan"), audio)


def test_one_code_that_float64_refutes_gets_no_time():
    checks, cases = module("bench_lib.check"), module("bench_lib.cases")
    case = cases.SETS["quick"][0]
    with torch.no_grad():
        codes = cases.stock_model(case.model).encode(cases.audio_of(case), bandwidth=case.bandwidth).audio_codes
    other = codes.clone()
    # few enough to pass as rounding
    other[0, 0, 3, 40] = (other[0, 0, 3, 40] + 1) % 1024
    with pytest.raises(checks.WrongAnswer, match=r"1 frames have codes that float64 refutes: margin .*, bound 2"):
        checks.check(case, other, codes)
    assert checks.check(case, codes, codes) == {"frames": 75, "flips": 0}


def test_few_codes_that_float64_can_hardly_tell_apart_are_counted():
    from encodec_fast.verify import Flip

    checks, codes = module("bench_lib.check"), torch.zeros(1, 1, 8, 750, dtype=torch.int64)
    other = codes.clone()
    other[0, 0, 2:, 9] = 1
    tie, refuted = (Flip(0, 0, 9, 2, 1, 0, margin, bound=2e-5) for margin in (1e-5, 3e-5))
    assert checks.check_codes(other, codes, lambda: [tie]) == {"frames": 750, "flips": 1}
    with pytest.raises(checks.WrongAnswer, match="1 frames have codes that float64 refutes"):
        checks.check_codes(other, codes, lambda: [tie, refuted])
    with pytest.raises(checks.WrongAnswer, match="1 of 750 frames"):
        checks.check_codes(other, codes, lambda: [tie], checks.STRICT_SHARE, slack=0)


def test_a_data_set_without_a_clip_or_with_other_codes_gets_no_time():
    dataset, checks = module("suites.dataset"), module("bench_lib.check")
    codes = torch.zeros(1, 8, 75, dtype=torch.int16).numpy()
    assert dataset.compare({"a": codes}, {"a": codes}, None, 0.0, 0) == {"frames": 75, "flips": 0}
    with pytest.raises(checks.WrongAnswer, match="1 of 2 clips"):
        dataset.compare({"a": codes}, {"a": codes, "b": codes}, None, 0.0, 0)
    with pytest.raises(checks.WrongAnswer, match="shape"):
        dataset.compare({"a": codes[..., 1:]}, {"a": codes}, None, 0.0, 0)
    # one clip's flips count against the frames of all
    with pytest.raises(checks.WrongAnswer, match="75 of 150 frames"):
        dataset.compare({"a": codes, "b": codes + 1}, {"a": codes, "b": codes}, None, 0.4, 0)


def test_a_clip_of_a_data_set_with_a_refuted_code_gets_no_time():
    dataset, cases, checks = module("suites.dataset"), module("bench_lib.cases"), module("bench_lib.check")
    clip = torch.from_numpy(read_audio(bundled_clips()[-1], 24_000, 1)[0])
    with torch.no_grad():
        codes = cases.stock_model("demo").encode(clip[None], bandwidth=dataset.BANDWIDTH).audio_codes[:, 0].numpy()
    other = codes.copy()
    other[0, 5, 20] = (other[0, 5, 20] + 1) % 1024
    with pytest.raises(checks.WrongAnswer, match="float64 refutes"):
        dataset.compare({"a": codes, "b": other}, {"a": codes, "b": codes}, lambda name: {"b": clip}[name], 0.0, 1)


def test_a_search_by_itself_with_a_refuted_code_gets_no_time():
    kernels, checks = module("suites.kernels"), module("bench_lib.check")
    with torch.no_grad():
        *_, search = kernels.stages(module("bench_lib.cases").STAGE_SETS["quick"][0], [])
        codes = search.calls["hf"]()
        other = codes.clone()
        other[5, 0, 20] = (other[5, 0, 20] + 1) % 1024
        with pytest.raises(checks.WrongAnswer, match=r"quantizer search: ours: .* float64 refutes"):
            kernels._prepare(dataclasses.replace(search, calls={**search.calls, "ours": lambda: other}))


def test_a_bar_is_met_by_the_factor_and_by_the_share_of_the_floor():
    bars, case = module("suites.bars"), module("bench_lib.cases").Case("demo", "decode", 1, 1, 6)
    from encodec_fast.backends.registry import get_backend

    if get_backend("cpu").unavailable():
        pytest.skip(f"cpu backend: {get_backend('cpu').unavailable()}")
    threads = torch.get_num_threads()
    with torch.no_grad():
        for factor, share, met in ((0.0, 0.0, True), (1e9, 0.0, False), (0.0, 1e9, False)):
            row = bars.measure(bars.Bar(case, {threads: factor}, {threads: share}), "ours-cpu", threads, 1)
            assert row["met"] is met and row["against"] == "hf"
            assert ("missed" in bars.sentence(bars.Bar(case, {}), threads, row)) is not met


def test_the_canary_marks_a_run_beside_other_work():
    disturbance = module("bench_lib.machine").disturbance
    assert disturbance(0.01, [1e9, 1.05e9, 0.98e9]) is None
    assert "30%" in disturbance(0.3, [1e9])
    assert "matrix product" in disturbance(0.0, [1e9, 1e9, 0.5e9])


def test_the_arithmetic_of_a_second_of_audio_is_what_torch_counts():
    roofline, case = module("bench_lib.roofline"), module("bench_lib.cases").Case("demo", "encode", 1, 1, 6)
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import EncodecConfig, EncodecModel

    model = EncodecModel(EncodecConfig()).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        embeddings = model.encoder(torch.zeros(1, 1, 24_000))
        model.quantizer.encode(embeddings, 6.0)
    counted = counter.get_total_flops()
    lstm = sum(2 * 75 * weight.numel() for name, weight in model.encoder.named_parameters() if "lstm.weight" in name)
    work = {stage.name.split(" ")[0]: stage.flops for stage in roofline.stage_work(case)}
    # torch's counter has no rule for the LSTM on CPUs
    assert sum(work.values()) == pytest.approx(counted + (0 if counted > 2.9e9 else lstm), rel=1e-3)
    assert roofline.whole_work(case).flops == sum(work.values())


def test_an_unknown_contender_is_named():
    with pytest.raises(ValueError, match="nobody"):
        module("bench_lib.contenders").chosen(["nobody"], torch.device("cpu"))


def test_the_authors_model_gets_the_weights_of_transformers():
    contenders, case = module("bench_lib.contenders"), module("bench_lib.cases").SETS["quick"][0]
    missing = contenders.Original.missing(torch.device("cpu"))
    if missing:
        pytest.skip(f"encodec: {missing}")
    with torch.no_grad():
        answers = []
        for kind in (contenders.Stock, contenders.Original):
            contender = kind(torch.device("cpu"))
            answers.append(contender.answer(case, contender.prepare(case)()))
    assert torch.equal(*answers)


def test_two_revisions_of_equal_speed_are_noise_and_a_tenth_is_not():
    verdict = module("suites.base").verdict
    base = [1.0, 1.02, 0.98, 1.01, 0.99, 1.0, 1.03, 0.97, 1.0]
    assert verdict(base, base[::-1]).word == "noise"
    assert verdict(base, [0.9 * time for time in base]).word == "faster"
    assert verdict(base, [1.1 * time for time in base]).word == "slower"
    # one wild round says nothing
    assert verdict(base, [*[time * 1.002 for time in base[:8]], 9.0]).word == "noise"
    with pytest.raises(ValueError, match="at least 6"):
        verdict(base[:3], base[:3])


@pytest.mark.parametrize(("rounds", "cut"), [(6, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5)])
def test_the_interval_of_the_median_leaves_out_what_the_tables_say(rounds, cut):
    assert module("suites.base").outside(rounds) == cut


def test_energy_is_read_in_joules_from_the_gpu_that_torch_uses(monkeypatch):
    from types import SimpleNamespace

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: {"GPU-abc": 5000}[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    assert module("bench_lib.worker").energy_meter(torch.device("cuda"))() == 5.0
    assert module("bench_lib.worker").energy_meter(torch.device("cpu"))() is None


def test_the_gpu_suite_says_where_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, BENCH / "run.py", "--suite", "gpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "sees no GPU" in done.stderr


@pytest.mark.parametrize(
    ("kind", "value", "nearest"), [("tf32", 1 + 2**-11, 1.0), ("tf32", 1 + 3 * 2**-11, 1 + 2**-9), ("bfloat16", 1.003, 1.0)]
)
def test_operands_are_rounded_to_the_nearest_even(kind, value, nearest):
    assert module("precision").rounded(torch.tensor([value, -value]), kind).tolist() == [nearest, -nearest]


def test_a_flip_is_counted_once_with_the_margin_of_its_first_level():
    margins_of, entries = module("bench_lib.margins"), torch.randn(3, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = margins_of.Truth(torch.randn(1, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), entries)
    codes = truth.codes.clone()
    codes[1, 2] = codes[2, 2] = (codes[1, 2] + 1) % 8
    differs, first, margins = truth.flips(codes)
    assert first.tolist() == [3, 3, 1, 3, 3] and int(differs.sum()) >= 1
    assert margins[2] >= truth.margins[1, 2] and margins[[0, 1, 3, 4]].eq(0).all()
    # moving the embedding by the margin along the line between both entries meets the plane between them
    residual = truth.x[2] - entries[0, truth.codes[0, 2]]
    a, b = entries[1, codes[1, 2]], entries[1, truth.codes[1, 2]]
    moved = residual + (a - b) / (a - b).norm() * margins[2] * truth.x[2].norm()
    assert (moved - a).norm() == pytest.approx((moved - b).norm())


def test_sound_that_is_equal_is_at_no_distance():
    precision, audio = module("precision"), torch.randn(1, 1, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert precision.stft_distance(audio, audio) == 0 and precision.finite(precision.snr_db(audio, audio)) is None
    assert precision.snr_db(1.1 * audio, audio) == pytest.approx(20)


def test_the_documentation_is_what_the_results_say():
    done = subprocess.run([sys.executable, BENCH / "report.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
