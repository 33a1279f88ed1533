"""The cpu backend against transformers in float64, and against itself bit for bit: tiers, batches, pieces, threads, processes."""

from __future__ import annotations

import copy
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import EncodecModel

from encodec_fast.backends.cpu_backend import CpuBackend
from encodec_fast.kernels.cpu import library as native
from encodec_fast.kernels.modes import Activation
from encodec_fast.plan import Conv, GroupNorm
from encodec_fast.plan.reader import read_plan
from support.engine import engine, prepared, pushed
from support.models import assert_close_to_reference, audio_like, config_24khz, config_48khz, small_config

CONFIGS = {
    "24 kHz": config_24khz(),
    "48 kHz": config_48khz(),
    "small": small_config(),
    "odd channels": small_config(num_filters=3, hidden_size=7),
    "looking ahead": small_config(use_causal_conv=False),
    "normed stereo": small_config(use_causal_conv=False, norm_type="time_group_norm", audio_channels=2),
    "dilated": small_config(num_residual_layers=3, dilation_growth_rate=3, residual_kernel_size=5),
    "identity shortcut": small_config(use_conv_shortcut=False, compress=1),
    "one lstm layer": small_config(num_lstm_layers=1),
    "three lstm layers": small_config(num_lstm_layers=3),
    "constant padding": small_config(pad_mode="constant", kernel_size=5),
    "replicated ends": small_config(pad_mode="replicate", use_causal_conv=False),
    "trimmed on both sides": small_config(trim_right_ratio=0.3, upsampling_ratios=[3, 5]),
}
STREAMABLE = [name for name in CONFIGS if name not in ("48 kHz", "looking ahead", "normed stereo", "replicated ends")]


def seeded_model(config):
    """Stock HF. Its codebooks are zeros: these tests end before the quantizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EncodecModel(config).eval()


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return seeded_model(CONFIGS[request.param])


@pytest.fixture(scope="module")
def small():
    return seeded_model(small_config())


@pytest.fixture(autouse=True)
def threads():
    """Sets torch's number of threads, which is 1 at first: the reference spends most of its time on waking others for such small clips."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def inputs(model, batch, samples, seed=0):
    """Audio [B, C, samples] and embeddings [B, D, F] of about its length."""
    audio = audio_like(batch, model.config.audio_channels, samples, seed)
    with torch.no_grad():
        return audio, model.encoder(audio)


def both_networks(model):
    plan = read_plan(model)
    return prepared(plan.encoder), prepared(plan.decoder)


@torch.no_grad()
def test_errs_no_more_than_transformers_against_float64(model):
    exact = copy.deepcopy(model).double()
    encoder, decoder = both_networks(model)
    hop = model.config.hop_length
    for samples in (1, 6, 7, 8, hop - 1, hop, hop + 1, 997):
        audio, embeddings = inputs(model, 2, samples, seed=samples)
        assert_close_to_reference(encoder.run(audio), model.encoder(audio), exact.encoder(audio.double()))
        assert_close_to_reference(decoder.run(embeddings), model.decoder(embeddings), exact.decoder(embeddings.double()))


@pytest.mark.parametrize("clips", [1, 8])
def test_long_sums_err_by_their_short_chains(clips):
    """The last convolution of the 24 kHz encoder sums 3,584 terms; transformers' libraries sum them in blocks."""
    torch.manual_seed(0)
    weight = torch.rand(128, 512, 7)
    conv = Conv("conv", weight, None, 1, 1, 6, 0, "constant", Activation.NONE, None)
    engine()
    x = torch.rand(clips, 512, 12)
    exact = torch.nn.functional.conv1d(torch.nn.functional.pad(x.double(), (6, 0)), weight.double())
    error = ((CpuBackend().prepare((conv,)).run(x) - exact) / exact).square().mean().sqrt()
    assert error < 1.3e-7  # 0.95e-7 in chains of 256 terms, 1.7e-7 in chains of 512, 7.4e-7 in one; torch on AVX-512: 0.8e-7


@pytest.mark.parametrize("name", STREAMABLE)
def test_pieces_equal_the_whole(name):
    model = seeded_model(CONFIGS[name])
    generator = torch.Generator().manual_seed(1)
    for program, x in zip(both_networks(model), inputs(model, 3, 1301)):
        whole = program.run(x)
        for pieces in (2, 3, 9):
            cuts = torch.randint(0, x.shape[-1] + 1, (pieces - 1,), generator=generator).tolist()
            assert torch.equal(pushed(program, x, cuts), whole)


def test_single_samples_equal_the_whole(small):
    for program, x in zip(both_networks(small), inputs(small, 1, 61)):
        assert torch.equal(pushed(program, x, list(range(x.shape[-1]))), program.run(x))


def test_a_batch_equals_each_clip(model):
    for program, x in zip(both_networks(model), inputs(model, 5, 1500)):
        whole = program.run(x)
        for b in range(5):
            assert torch.equal(program.run(x[b : b + 1])[0], whole[b])


def test_clips_of_any_lengths_equal_each_clip(model):
    for program, x in zip(both_networks(model), inputs(model, 1, 1500)):
        clips = [x[0, :, :length] for length in (x.shape[-1], 1, 40, 2, x.shape[-1] // 2)]
        for clip, result in zip(clips, program.run_clips(clips)):
            assert torch.equal(program.run(clip[None])[0], result)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_thread_counts_agree(model, threads, batch):
    # long enough for a lone clip to be cut in time
    for program, x in zip(both_networks(model), inputs(model, batch, 150 * model.config.hop_length + 3)):
        threads(1)
        alone = program.run(x)
        for count in (2, 3, 8):
            threads(count)
            assert torch.equal(program.run(x), alone), f"{count} threads"


def test_tiers_agree(model, monkeypatch):
    for network, x in zip((read_plan(model).encoder, read_plan(model).decoder), inputs(model, 2, 700)):
        expected = None
        for tier in native.tiers(engine()):
            monkeypatch.setenv(native.ISA_VARIABLE, tier)
            result = prepared(network).run(x)
            expected = result if expected is None else expected
            assert torch.equal(result, expected), tier


def test_a_sliced_input_equals_its_copy(small):
    program = prepared(read_plan(small).encoder)
    audio = audio_like(6, 1, 1200, 3)
    for view in (audio[::2, :, 5:900], audio[..., ::3], audio.transpose(0, 1).transpose(0, 1)):
        assert torch.equal(program.run(view), program.run(view.contiguous()))


def test_nan_reaches_the_outputs_that_it_reaches_in_transformers(model):
    encoder, decoder = both_networks(model)
    audio, embeddings = inputs(model, 1, 1500)
    audio[..., 700] = float("nan")
    embeddings[0, 1, embeddings.shape[-1] // 2] = float("inf")
    with torch.no_grad():
        for program, module, x in ((encoder, model.encoder, audio), (decoder, model.decoder, embeddings)):
            assert torch.equal(program.run(x).isnan(), module(x).isnan())


def test_flushed_subnormals_of_the_caller_change_nothing(small):
    program = prepared(read_plan(small).encoder)
    audio = audio_like(1, 1, 400, 0) * 1e-38
    expected = program.run(audio)
    torch.set_flush_denormal(True)
    try:
        assert torch.equal(program.run(audio), expected)
    finally:
        torch.set_flush_denormal(False)


# a normed clip's blocks are shared with threads that other clips leave idle
@pytest.mark.parametrize("name, samples", [("small", 3000), ("normed stereo", 12000)])
@pytest.mark.parametrize("count", [2, 3])
def test_calls_from_many_threads_agree(threads, name, samples, count):
    threads(count)
    model = seeded_model(CONFIGS[name])
    program = prepared(read_plan(model).encoder)
    audio = audio_like(16, model.config.audio_channels, samples, 4)
    expected = program.run(audio)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda b: program.run(audio[b : b + 1]), range(16)))
    assert torch.equal(torch.cat(results), expected)


def _run_in_child(program, audio, answers):
    torch.set_num_threads(2)
    answers.put(program.run(audio).numpy())


def test_a_forked_child_gets_the_same_bits(small, threads):
    threads(2)
    program = prepared(read_plan(small).encoder)
    audio = audio_like(3, 1, 3000, 5)
    expected = program.run(audio)
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    child = fork.Process(target=_run_in_child, args=(program, audio, answers))
    child.start()
    result = torch.from_numpy(answers.get(timeout=60))
    child.join()
    assert torch.equal(result, expected)


def test_an_empty_batch_and_an_empty_piece_give_nothing(small):
    program = prepared(read_plan(small).encoder)
    assert program.run(torch.empty(0, 1, 100)).shape[:2] == (0, 8)
    assert [y.shape for y in program.push([torch.empty(1, 0)], [program.open()], [False])] == [(8, 0)]


def test_a_push_after_the_end_is_an_error(small):
    program = prepared(read_plan(small).encoder)
    states = [program.open()]
    program.push([torch.zeros(1, 100)], states, [True])
    with pytest.raises(native.EngineError, match="has ended"):
        program.push([torch.zeros(1, 100)], states, [False])


def test_a_constant_clip_normalises_to_the_bias_alone():
    # x * scale + shift would leave the rounding of x * scale, blown up by 1 / sqrt(eps)
    weight, norm = torch.full((2, 1, 1), 0.7), GroupNorm(torch.ones(2), torch.tensor([0.0, 0.25]), 1e-5)
    conv = Conv("conv", weight, None, 1, 1, 0, 0, "constant", Activation.NONE, norm=norm)
    engine()
    normalised = CpuBackend().prepare((conv,)).run(torch.full((1, 1, 50), 0.7))
    assert torch.equal(normalised, norm.bias[:, None].expand(1, 2, 50))


def test_a_piece_of_a_clip_is_an_error_under_group_norm():
    program = prepared(read_plan(seeded_model(CONFIGS["normed stereo"])).encoder)
    with pytest.raises(native.EngineError, match="whole clips"):
        program.push([torch.zeros(2, 100)], [program.open()], [False])


@pytest.mark.parametrize("x", [torch.zeros(2, 2, 9), torch.zeros(1, 9), torch.zeros(1, 1, 9).double()])
def test_a_foreign_input_is_an_error(small, x):
    program = prepared(read_plan(small).encoder)
    with pytest.raises(ValueError, match="the cpu backend takes"):
        program.run(x)


def test_refuses_other_dtypes_and_devices(small):
    stage = read_plan(small).encoder.stages[0]
    backend = CpuBackend()
    assert backend.refusal(stage, torch.float32, torch.device("cpu")) is None
    assert "float64" in backend.refusal(stage, torch.float64, torch.device("cpu"))
    assert "cuda" in backend.refusal(stage, torch.float32, torch.device("cuda"))


def test_an_unknown_tier_makes_the_backend_unavailable(monkeypatch):
    engine()
    monkeypatch.setenv(native.ISA_VARIABLE, "sse9")
    assert "sse9" in CpuBackend().unavailable()
    monkeypatch.delenv(native.ISA_VARIABLE)
    assert CpuBackend().unavailable() is None
