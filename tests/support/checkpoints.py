"""Original checkpoints of random weights in their three forms, and the comparison that their tests end in."""

import torch
import yaml

from support.models import audio_like
from support.original_model import OriginalModel

SMALL = {"n_filters": 4, "dimension": 48}
STEREO = {"channels": 2, "norm": "time_group_norm", "causal": False, "n_q": 16}
# Two float32 runs of one network, with the sums of its convolutions in another order; of the peak of the audio
AUDIO_TOLERANCE = 1e-5
# Two entries as near to each other's distance as this: float32 can't tell them apart. Of the frames, so many may have such a pair.
NEAR_TIE, NEAR_TIES = 1e-3, 0.05


def fill(model, audio):
    """Gives every level entries that lie among its residuals: codes then depend on every weight of the encoder."""
    with torch.no_grad():
        residual = model.encoder.model(audio).transpose(1, 2).flatten(0, 1)
        for embed in model.embeds:
            embed.copy_(residual.mean(0) + 0.5 * residual.std(0) * torch.randn(embed.shape))
            residual = residual - embed[torch.cdist(residual, embed).argmin(1)]
    return model


def noisy(channels, samples):
    """[1, channels, samples]: tones and noise without pauses, whose frames all differ, as loud as normalized audio."""
    audio = audio_like(1, channels, samples, 1) + 0.2 * torch.randn(1, channels, samples)
    return audio / audio.mean(1, keepdim=True).pow(2).mean().sqrt()


def original(seconds=1.0, rate=24_000, **settings):
    """(model, audio that it takes): random weights, filled codebooks."""
    model = OriginalModel(**settings).eval()
    audio = noisy(model.settings["channels"], int(seconds * rate))
    return fill(model, audio), audio


def assert_codes(ours, theirs, embeds, embeddings):
    """Codes [K, F] vary and are equal, but for NEAR_TIES of the frames, whose first difference is between equally near entries.

    embeds: of all levels.  embeddings: [D, F] in float64.
    """
    assert ours.shape == theirs.shape
    differing = (ours != theirs).any(0).nonzero().flatten().tolist()
    for frame in differing:
        level = (ours[:, frame] != theirs[:, frame]).nonzero()[0].item()
        before = sum(embed[code].double() for embed, code in zip(embeds, theirs[:level, frame]))
        residual = embeddings[:, frame] - before
        distances = [(residual - embeds[level][codes[level, frame]].double()).pow(2).sum() for codes in (ours, theirs)]
        assert abs(distances[0] - distances[1]) <= NEAR_TIE * distances[1], f"level {level}, frame {frame}"
    assert len(differing) <= NEAR_TIES * ours.shape[1]
    assert min(len(level.unique()) for level in theirs) > ours.shape[1] / 4


def exact_embeddings(model, audio):
    """[D, F] in float64."""
    try:
        with torch.no_grad():
            return model.double().encoder.model(audio.double())[0]
    finally:
        # nothing is lost on the way back
        model.float()


def assert_same(model, source, audio, scale=1.0):
    """Codes equal the original's; audio is within AUDIO_TOLERANCE of its.  scale: of the audio that the model normalizes."""
    with torch.no_grad():
        codes = source.encode(audio)
        encoded = model.encode(scale * audio, bandwidth=model.config.target_bandwidths[-1])
        decoded = model.decode(codes[None], encoded.audio_scales).audio_values
        expected = scale * source.decode(codes)
    assert_codes(encoded.audio_codes[0, 0], codes[0], source.embeds, exact_embeddings(source, audio))
    peak = expected.abs().max()
    assert peak > 0 and (decoded - expected).abs().max() <= AUDIO_TOLERANCE * peak


def saved(path, content):
    torch.save(content, path)
    return str(path)


def audiocraft_yaml(settings, **changes):
    """The config as audiocraft's export writes it, with references to other keys."""
    decoder = ("trim_right_ratio", "n_q", "bins")
    config = {
        "compression_model": "encodec",
        "sample_rate": 32_000,
        "channels": settings["channels"],
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": "${sample_rate}",
            "channels": "${channels}",
            "causal": settings["causal"],
            "renormalize": False,
        },
        "seanet": {
            **{key: value for key, value in settings.items() if key not in decoder},
            "channels": "${channels}",
            "causal": "${encodec.causal}",
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm_params": {},
            "disable_norm_outer_blocks": 0,
            "encoder": {},
            "decoder": {"trim_right_ratio": settings["trim_right_ratio"], "final_activation": None, "final_activation_params": None},
        },
        "rvq": {"n_q": settings["n_q"], "bins": settings["bins"], "q_dropout": False, "decay": 0.99, "kmeans_init": True},
        "optim": {"lr": 3e-4},
    }
    for key, value in changes.items():
        *path, last = key.split(".")
        part = config
        for name in path:
            part = part[name]
        part[last] = value
    return yaml.safe_dump(config)


MUSICGEN = {
    **SMALL,
    "ratios": [8, 5, 4, 4],
    "causal": False,
    "pad_mode": "constant",
    "true_skip": True,
    "n_q": 4,
}
CAUSAL = {**SMALL, "n_residual_layers": 2, "dilation_base": 3, "trim_right_ratio": 0.5, "n_q": 4, "pad_mode": "replicate"}


def package(source, **changes):
    return {
        "best_state": source.weights(),
        "xp.cfg": audiocraft_yaml(source.settings, **changes),
        "version": "1.4.0a2",
        "exported": True,
    }
