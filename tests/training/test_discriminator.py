"""The discriminator is that of encodec.msstftd, weights and outputs, with the paper's windows as its default."""

import pytest
import torch
from torch.autograd import gradcheck

from encodec_fast.training.discriminator import MultiScaleSTFTDiscriminator
from support.models import audio_like

OLD_NORM = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")


def with_windows(windows):
    return dict(n_ffts=windows, hop_lengths=[width // 4 for width in windows], win_lengths=windows)


CASES = {"its-defaults": ([1024, 2048, 512], 1), "the-papers": ([2048, 1024, 512, 256, 128], 1), "stereo-together": ([64, 128], 2)}


@OLD_NORM
@pytest.mark.parametrize("case", CASES)
def test_weights_and_outputs_are_those_of_encodec(authors, case):
    windows, channels = CASES[case]
    settings = {} if case == "its-defaults" else with_windows(windows)
    torch.manual_seed(0)
    theirs = authors("msstftd").MultiScaleSTFTDiscriminator(4, in_channels=channels, **settings)
    with torch.no_grad():
        for parameter in theirs.parameters():
            # the gain of weight norm starts as the direction's norm, under which a wrong norm would pass
            parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
    ours = MultiScaleSTFTDiscriminator(4, channels, n_ffts=windows)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    audio = audio_like(2, channels, 4000, 0)
    for own, expected in zip(torch.utils._pytree.tree_leaves(ours(audio)), torch.utils._pytree.tree_leaves(theirs(audio)), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)


def test_the_default_has_the_papers_windows_and_filters():
    ours = MultiScaleSTFTDiscriminator()
    assert ours.n_ffts == (2048, 1024, 512, 256, 128)
    assert [tuple(layer.conv.weight_v.shape) for layer in ours.discriminators[0].convs[1:]] == [*[(32, 32, 3, 9)] * 3, (32, 32, 3, 3)]
    assert [layer.conv.dilation[0] for layer in ours.discriminators[0].convs] == [1, 1, 2, 4, 1]


def test_windows_are_as_long_in_time_at_every_rate():
    assert MultiScaleSTFTDiscriminator.for_rate(48_000, 1).n_ffts == (4096, 2048, 1024, 512, 256)
    assert MultiScaleSTFTDiscriminator.for_rate(24_000, 1).n_ffts == (2048, 1024, 512, 256, 128)
    assert MultiScaleSTFTDiscriminator.for_rate(16_000, 1).n_ffts == (1024, 512, 256, 128, 64)


def test_the_channels_of_stereo_are_judged_apart():
    ours, audio = MultiScaleSTFTDiscriminator(2, n_ffts=[32, 64]), audio_like(2, 2, 300, 0)
    (logits, features), (left, _) = ours(audio), ours(audio[:, :1])
    assert [len(logit) for logit in logits] == [4, 4] and all(len(layer) == 4 for layers in features for layer in layers)
    assert all(torch.equal(both[::2], alone) for both, alone in zip(logits, left))


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    ours = MultiScaleSTFTDiscriminator(2, n_ffts=[16], dilations=(1,)).double()
    audio = audio_like(1, 1, 30, 0).double().requires_grad_()
    assert gradcheck(lambda x: tuple(torch.utils._pytree.tree_leaves(ours(x))), audio)


def test_every_weight_gets_a_gradient():
    ours = MultiScaleSTFTDiscriminator(2, n_ffts=[32, 64])
    sum(logit.square().sum() for logit in ours(audio_like(1, 1, 300, 0))[0]).backward()
    assert not [name for name, parameter in ours.named_parameters() if parameter.grad is None or not parameter.grad.any()]


def test_audio_that_does_not_fit_is_refused():
    ours = MultiScaleSTFTDiscriminator(2, in_channels=2, n_ffts=[32, 64])
    with pytest.raises(ValueError, match="63 samples; the widest window is 64"):
        ours(torch.zeros(1, 2, 63))
    with pytest.raises(ValueError, match=r"\[1, 1, 64\]; \[B, C, T\] is needed, with C a multiple of 2"):
        ours(torch.zeros(1, 1, 64))


@pytest.mark.parametrize("arguments, message", [({"kernel_size": (3, 8)}, "must be odd"), ({"n_ffts": [30]}, "multiples of 4")])
def test_a_geometry_that_shifts_frames_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleSTFTDiscriminator(2, **arguments)
