"""Whole networks: the real models against transformers, and small ones for the laws that hold bit for bit."""

import dataclasses
from pathlib import Path

import pytest
import torch
from bounds import CODE_MARGIN, NETWORK_RATIO, assert_same_bits
from torch._dynamo.utils import counters
from transformers import EncodecConfig
from transformers import EncodecModel as Reference

from bench_lib.drawn import fit_codebooks
from encodec_fast import EncodecModel, explain, use_backend, use_precision
from encodec_fast.audio import read_audio
from encodec_fast.backends.triton_backend import TritonBackend
from encodec_fast.backends.triton_layers import LibraryLSTMLayer
from encodec_fast.kernels.modes import Activation
from encodec_fast.plan import Conv
from encodec_fast.plan.reader import PAD_MODES, read_plan
from support.models import audio_like, config_24khz, config_48khz, pair

SPEECH = Path(__file__).parents[2] / "encodec_fast" / "assets" / "speech_en_us_f.flac"
SMALL = dict(num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=32, upsampling_ratios=[3, 2], target_bandwidths=[160.0])


def small_plan(**changes):
    torch.manual_seed(1)
    model = Reference(EncodecConfig(**{**SMALL, **changes})).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    return model, read_plan(model)


def speech(config, samples):
    audio, _ = read_audio(SPEECH, config.sampling_rate, config.audio_channels)
    audio = torch.as_tensor(audio)[:, config.sampling_rate // 2 :][:, :samples]
    return audio[None].contiguous()


def relative_error(y, exact):
    return ((y.double() - exact).abs().max() / exact.abs().max()).item()


def relative_rms(y, exact):
    return ((y.double() - exact).norm() / exact.norm()).item()


def unexplained_codes(codes, embeddings, model):
    """Codes that float64 refutes by more than CODE_MARGIN, and those it finds too close to call; after a frame's first flip
    its deeper levels are not compared."""
    residual = embeddings.transpose(1, 2)
    alive = torch.ones(residual.shape[:2], dtype=torch.bool)
    wrong = close = 0
    for level, chosen in enumerate(codes):
        entries = model.quantizer.layers[level].codebook.embed.double()
        distance = torch.cdist(residual, entries).square()
        nearest = distance.argmin(2)
        flipped = alive & (chosen != nearest)
        excess = (distance.gather(2, chosen[..., None])[..., 0] - distance.amin(2)) / residual.square().sum(2)
        wrong += int((flipped & (excess > CODE_MARGIN)).sum())
        close += int((flipped & (excess <= CODE_MARGIN)).sum())
        alive &= ~flipped
        residual = residual - entries[nearest]
    return wrong, close


@pytest.mark.parametrize(
    ("config", "samples"), [(config_24khz(), 4_800), (config_48khz(), 4_800)], ids=["24 kHz, a fifth of a second", "48 kHz, a tenth of one"]
)
def test_real_models_err_no_more_than_transformers_in_float32(config, samples):
    torch.manual_seed(0)
    model = Reference(config).eval()
    audio = speech(config, samples)
    with torch.no_grad():
        # a fresh model has all-zero codebooks
        fit_codebooks(model, audio, torch.Generator().manual_seed(0))
    plan, backend = read_plan(model), TritonBackend()
    with torch.no_grad():
        embeddings = backend.prepare(plan.encoder.stages).run(audio)
        quantizer = backend.prepare_quantizer(plan.quantizer)
        codes = quantizer.encode(embeddings, 8)
        quantized = quantizer.decode(codes)
        sound = backend.prepare(plan.decoder.stages).run(quantized)
        assert_same_bits(quantized, model.quantizer.decode(codes))
        theirs = model.encoder(audio), model.decoder(quantized)
        model.double()
        exact = model.encoder(audio.double()), model.decoder(quantized.double())
    for name, ours, float32, truth in zip(("encoder", "decoder"), (embeddings, sound), theirs, exact, strict=True):
        error, allowed = relative_rms(ours, truth), relative_rms(float32, truth)
        print(f"{name}: error {error:.2e}, transformers' own {allowed:.2e}")
        assert error <= NETWORK_RATIO * allowed
    wrong, close = unexplained_codes(codes, exact[0], model)
    print(f"{close} of {codes.numel()} codes differ where float64 is too close to call")
    assert codes.unique().numel() > 50, "the codebooks are not used: the comparison shows nothing"
    assert wrong == 0 and close <= 0.01 * codes.numel()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("changes", [{}, dict(pad_mode="constant"), dict(num_residual_layers=2)], ids=["reflect", "constant", "deep"])
def test_pushed_in_any_pieces_is_pushed_whole(part, changes):
    _, plan = small_plan(**changes)
    network = getattr(plan, part)
    program = TritonBackend().prepare(network.stages)
    generator = torch.Generator().manual_seed(3)
    for length in (1, 5, 61) if part == "encoder" else (1, 2, 13):
        x = torch.randn(2, network.stages[0].in_channels, length)
        whole = program.run(x)
        assert whole.shape[2] == network.output_length(length)
        state, at, parts = program.open_batch(2), 0, []
        while at < length:
            step = int(torch.randint(0, 2 + length // 2, (), generator=generator))
            parts.append(program.push_batch(x[..., at : at + step], state, final=False))
            at += step
        parts.append(program.push_batch(x[..., :0], state, final=True))
        assert_same_bits(torch.cat(parts, 2), whole)


@pytest.mark.parametrize("pad_mode", PAD_MODES)
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(4, 3, 1), (3, 3, 1), (3, 1, 3), (7, 2, 1)])
def test_any_causal_convolution_can_be_pushed(kernel, stride, dilation, pad_mode):
    # the models' own kernels are twice the stride; a shorter one shows older steps again at the right end
    span = (kernel - 1) * dilation + 1
    conv = Conv("conv", torch.randn(5, 3, kernel), None, stride, dilation, span - stride, 0, pad_mode, Activation.ELU, norm=None)
    program = TritonBackend().prepare((conv,))
    for length in (1, 2, 5, 10, 11):
        x = torch.randn(1, 3, length)
        state = program.open_batch(1)
        parts = [program.push_batch(step, state, final=False) for step in x.split(1, 2)]
        parts.append(program.push_batch(x[..., :0], state, final=True))
        assert_same_bits(torch.cat(parts, 2), program.run(x))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("kind", ["24 kHz", "48 kHz"])
def test_a_clip_has_the_same_bits_alone_and_among_longer_ones(part, kind):
    changes = {} if kind == "24 kHz" else dict(norm_type="time_group_norm", use_causal_conv=False)
    _, plan = small_plan(**changes)
    network = getattr(plan, part)
    program = TritonBackend().prepare(network.stages)
    lengths = [37, 2, 50]
    x = torch.full((3, network.stages[0].in_channels, 50), float("nan"))
    for clip, length in enumerate(lengths):
        x[clip, :, :length] = torch.randn(x.shape[1], length)
    together = program.run(x, lengths)
    for clip, length in enumerate(lengths):
        alone = program.run(x[clip : clip + 1, :, :length].contiguous())
        assert_same_bits(together[clip : clip + 1, :, : alone.shape[2]], alone)


@pytest.mark.parametrize("kind", ["24 kHz", "48 kHz"])
def test_clips_of_any_lengths_run_in_few_batches_with_the_bits_of_each_alone(kind, monkeypatch):
    changes = {} if kind == "24 kHz" else dict(norm_type="time_group_norm", use_causal_conv=False)
    _, plan = small_plan(**changes)
    program = TritonBackend().prepare(plan.encoder.stages)
    clips = [torch.randn(1, length) for length in (37, 2, 50, 41, 50, 9)]
    alone = [program.run(clip[None])[0] for clip in clips]
    batches, run = [], program.run
    monkeypatch.setattr(program, "run", lambda x, lengths: batches.append((x.shape[0], x.shape[2], lengths)) or run(x, lengths))
    for mine, own in zip(program.run_clips(clips), alone, strict=True):
        assert_same_bits(mine, own)
    # no batch has more than a fifth of padding; clips of one length need none
    assert batches == [(3, 50, [50, 50, 41]), (1, 37, None), (1, 9, None), (1, 2, None)]


@pytest.mark.parametrize(
    "changes",
    [
        dict(use_conv_shortcut=False),
        dict(num_lstm_layers=3),
        dict(trim_right_ratio=0.5),
        dict(pad_mode="replicate"),
        dict(use_causal_conv=False, norm_type="time_group_norm", use_conv_shortcut=False),
        dict(compress=1, residual_kernel_size=5, dilation_growth_rate=3, num_residual_layers=2),
        dict(num_filters=5, audio_channels=2, last_kernel_size=3),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_configs_match_transformers(changes):
    model, plan = small_plan(**changes)
    x = torch.randn(2, model.config.audio_channels, 61)
    backend = TritonBackend()
    with torch.no_grad():
        embeddings = backend.prepare(plan.encoder.stages).run(x)
        sound = backend.prepare(plan.decoder.stages).run(embeddings)
        model.double()
        exact = model.encoder(x.double())
        assert relative_error(embeddings, exact) < 5e-6
        assert relative_error(sound, model.decoder(embeddings.double())) < 5e-6


def test_half_precision_models_sum_in_float32():
    model, _ = small_plan()
    x = torch.randn(1, 1, 60)
    plan = read_plan(model.half())
    embeddings = TritonBackend().prepare(plan.encoder.stages).run(x.half())
    assert embeddings.dtype == torch.float16
    with torch.no_grad():
        assert relative_error(embeddings, model.double().encoder(x.half().double())) < 2e-2


def test_fast_mode_leaves_the_recurrence_to_the_library():
    model, plan = small_plan()
    x = torch.randn(2, 1, 60)
    program = TritonBackend().prepare(plan.encoder.stages, "fast")
    assert not program.exact
    with torch.no_grad():
        assert relative_error(program.run(x), model.double().encoder(x.double())) < 2e-2


def test_the_library_runs_the_recurrence_without_a_reserve_for_training():
    program = TritonBackend().prepare(small_plan()[1].encoder.stages, "fast")
    assert [layer.lstm.training for layer in program.layers if isinstance(layer, LibraryLSTMLayer)] == [False]


def test_a_model_computes_in_its_own_precision_or_that_of_the_block():
    torch.manual_seed(1)
    model = EncodecModel(EncodecConfig(**SMALL)).eval()
    x = torch.randn(1, 1, 60)
    with torch.no_grad(), use_backend("triton"):
        parity = model.encoder(x)
        assert [row.products for row in explain(model, x).rows[:1]] == ["3 x tf32"]
        with use_precision("fast"):
            fast = model.encoder(x)
            products = {row.products for row in explain(model, x).rows}
        assert products - {""} == {"tf32", "the library's recurrence", "float16, proven equal to float32"}
        model.precision = "fast"
        assert_same_bits(model.encoder(x), fast)
    assert not torch.equal(parity, fast)


@pytest.mark.parametrize("precision", ["parity", "tf32x3"])
def test_every_product_of_float32_is_split_or_thin_unless_asked_otherwise(precision):
    _, plan = small_plan(num_filters=16)
    program = TritonBackend().prepare(plan.encoder.stages, precision)
    assert program.exact
    assert {getattr(layer, "mode", "split") for layer in program.layers} == {"split", "thin"}


def test_lengths_that_do_not_fit_are_named():
    _, plan = small_plan()
    program = TritonBackend().prepare(plan.encoder.stages)
    with pytest.raises(ValueError, match=r"lengths must be 2 integers in \[1, 9\]"):
        program.run(torch.randn(2, 1, 9), [9, 10])


def test_codes_outside_the_codebook_are_an_error():
    _, plan = small_plan()
    quantizer = TritonBackend().prepare_quantizer(plan.quantizer)
    with pytest.raises(IndexError, match=r"codes must be in \[0, 32\), got values from 0 to 32"):
        quantizer.decode(torch.tensor([[[0, 32]]]))


def test_what_the_backend_refuses_it_names():
    _, plan = small_plan()
    backend, stage = TritonBackend(), plan.encoder.stages[0]
    assert backend.unavailable() is None
    assert backend.refusal(stage, torch.float32, torch.device("cpu")) is None
    assert "float64" in backend.refusal(stage, torch.float64, torch.device("cpu"))
    assert "bfloat16" in backend.refusal(stage, torch.bfloat16, torch.device("cpu"))
    assert "meta" in backend.refusal(stage, torch.float32, torch.device("meta"))
    wide = dataclasses.replace(plan.quantizer, codebooks=torch.zeros(1, 4, 1024))
    assert "1024" in backend.refusal(wide, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_a_whole_model_compiles_without_a_break_and_equals_eager(part):
    torch._dynamo.reset()
    counters.clear()
    _, model = pair(EncodecConfig(**SMALL))

    def call(x):
        return model.encode(x).audio_codes if part == "encode" else model.decode(x, [None]).audio_values

    whole = torch.compile(call, fullgraph=True, backend="aot_eager")
    with use_backend("triton"), torch.no_grad():
        for length in (24, 31, 50):
            x = audio_like(2, 1, length, length)
            x = x if part == "encode" else model.encode(x).audio_codes
            assert_same_bits(whole(x), call(x))
    # one for the first length, one for any other
    assert counters["stats"]["unique_graphs"] == 2
