"""The torch backend: pushed in pieces equals pushed whole, to rounding, and its tiles and groups change nothing but rounding."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encodec_fast.backends import torch_backend
from encodec_fast.backends.torch_backend import TorchBackend
from encodec_fast.plan import Quantizer
from encodec_fast.plan.reader import read_plan
from support.models import audio_like, config_24khz, pair, small_config

STREAMABLE = [
    small_config(),
    small_config(pad_mode="constant", trim_right_ratio=0.3, upsampling_ratios=[3, 5]),
    small_config(pad_mode="replicate", use_conv_shortcut=False, num_residual_layers=3, num_lstm_layers=1),
    small_config(residual_kernel_size=5, dilation_growth_rate=3, num_residual_layers=2, kernel_size=1, last_kernel_size=9),
    small_config(upsampling_ratios=[1, 2], trim_right_ratio=0.0),
]
PROGRAMS = {}


def program(index: int, part: str):
    if (index, part) not in PROGRAMS:
        stages = getattr(read_plan(pair(STREAMABLE[index])[1]), part).stages
        PROGRAMS[index, part] = TorchBackend().prepare(stages)
    return PROGRAMS[index, part]


def push_in_pieces(runner, x, cuts):
    state = runner.open_batch(x.shape[0])
    bounds = [0, *sorted(cuts), x.shape[-1]]
    pieces = [
        runner.push_batch(x[..., a:b], state, final=b == x.shape[-1] and i == len(bounds) - 2)
        for i, (a, b) in enumerate(itertools.pairwise(bounds))
    ]
    return torch.cat(pieces, -1)


def assert_equal_to_rounding(pieces, whole):
    # sums of at most a few thousand terms in another order
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5 * whole.abs().max().item())


@given(
    st.integers(0, len(STREAMABLE) - 1),
    st.sampled_from(["encoder", "decoder"]),
    st.integers(1, 2),
    st.integers(1, 300),
    st.lists(st.floats(0, 1), max_size=6),
    st.integers(0, 99),
)
def test_pushed_in_any_pieces_equals_pushed_whole(index, part, batch, length, cuts, seed):
    runner = program(index, part)
    channels = runner.sections[0].steps[0].conv.in_channels
    x = audio_like(batch, channels, length, seed)
    whole = runner.run(x)
    assert_equal_to_rounding(push_in_pieces(runner, x, [int(cut * length) for cut in cuts]), whole)


@pytest.fixture(scope="module")
def models_24khz():
    return pair(config_24khz())


@pytest.mark.parametrize("piece", [1, 320, 4096])
def test_24khz_audio_in_pieces_equals_whole(models_24khz, piece):
    reference, model = models_24khz
    audio = audio_like(2, 1, 9_001, 5)
    if piece == 1:
        audio = audio[..., :700]
    plan = read_plan(model)
    with torch.no_grad():
        for stages, x in ((plan.encoder.stages, audio), (plan.decoder.stages, reference.encoder(audio))):
            runner = TorchBackend().prepare(stages)
            step = piece if x is audio else max(1, piece // 320)
            assert_equal_to_rounding(push_in_pieces(runner, x, range(step, x.shape[-1], step)), runner.run(x))


def test_early_output_depends_on_early_input_only():
    runner = program(0, "encoder")
    x = audio_like(1, 1, 200, 1)
    state = runner.open_batch(1)
    early = runner.push_batch(x[..., :120], state, final=False)
    changed = x.clone()
    changed[..., 120:] += 1
    assert early.shape[-1] > 5
    torch.testing.assert_close(runner.run(changed)[..., : early.shape[-1]], early, rtol=1e-4, atol=1e-5)


def test_tiles_of_time_change_nothing_but_rounding(monkeypatch):
    runner = program(0, "decoder")
    x = audio_like(3, 8, 200, 2)
    whole = runner.run(x)
    monkeypatch.setattr(torch_backend, "CPU_TILE_BYTES", 2000)
    assert_equal_to_rounding(runner.run(x), whole)


def test_a_model_that_cannot_stream_says_so():
    runner = TorchBackend().prepare(read_plan(pair(small_config(use_causal_conv=False))[1]).encoder.stages)
    with pytest.raises(ValueError, match="looks ahead"):
        runner.push_batch(torch.zeros(1, 1, 50), runner.open_batch(1), final=False)


def test_equal_entries_give_the_lowest_index():
    entries = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(0))
    entries[0, 11] = entries[0, 3]
    entries[0, 7] = entries[0, 3]
    quantizer = TorchBackend().prepare_quantizer(Quantizer(entries))
    x = entries[0, 3].view(1, 8, 1).expand(2, 8, 5)
    assert quantizer.encode(x, 1).unique().tolist() == [3]


def test_the_search_does_not_write_to_its_input():
    quantizer = TorchBackend().prepare_quantizer(Quantizer(torch.randn(3, 16, 8)))
    x = torch.randn(4, 8, 1)
    kept = x.clone()
    quantizer.encode(x, 3)
    assert torch.equal(x, kept)


def test_the_sum_of_entries_is_bit_equal_to_hf():
    reference, model = pair(small_config())
    codes = torch.randint(0, 16, (len(reference.quantizer.layers), 3, 20))
    with torch.no_grad():
        assert torch.equal(model.quantizer.decode(codes), reference.quantizer.decode(codes))


def test_nothing_is_copied_to_the_host(monkeypatch):
    """Stands in for a GPU's host syncs: item, tolist, bool() and int() of a tensor are refused while a call runs."""
    _, model = pair(small_config())
    audio = audio_like(1, 1, 400, 3)
    with torch.no_grad():
        codes = model.encode(audio).audio_codes

        def refused(*_args, **_kwargs):
            raise AssertionError("a tensor was read by the host")

        for name in ("item", "tolist", "__bool__", "__int__", "__index__", "__float__"):
            monkeypatch.setattr(torch.Tensor, name, refused)
        model.decoder(model.quantizer.decode(model.quantizer.encode(model.encoder(audio), 4.8)))
        model.encode(audio)
    assert codes.shape[-1] == 50
