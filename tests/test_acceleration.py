"""`accelerate` exchanges classes in place and back, and leaves everything else as it was."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import encodec_fast
from encodec_fast import accelerate
from support.models import audio_like, reference_model, small_config


class SpeechModel(nn.Module):
    """Holds a codec as MusicGen (audio_encoder) and Bark (codec_model) do, with a second name for it."""

    def __init__(self):
        super().__init__()
        self.audio_encoder = reference_model(small_config())
        self.tower = nn.ModuleDict({"codec_model": reference_model(small_config(), seed=1)})
        self.alias = self.audio_encoder


def test_every_codec_inside_is_ours_and_gives_the_same_codes():
    model, audio = SpeechModel(), audio_like(1, 1, 400, 0)
    with torch.no_grad():
        before = model.audio_encoder.encode(audio).audio_codes
        parameters = dict(model.named_parameters())
        fired = []
        model.audio_encoder.register_forward_hook(lambda *_: fired.append(1))
        acceleration = accelerate(model)
        assert type(model.audio_encoder) is encodec_fast.EncodecModel
        assert type(model.tower["codec_model"].decoder).__module__ == "encodec_fast.model"
        assert dict(model.named_parameters()).keys() == parameters.keys()
        assert all(value is parameters[name] for name, value in model.named_parameters())
        assert torch.equal(model.audio_encoder.encode(audio).audio_codes, before)
        model.audio_encoder(audio)
    assert fired == [1]
    assert "audio_encoder.encoder" in repr(acceleration)
    assert "tower.codec_model" in {change.name for change in acceleration.changes}


def test_restore_gives_every_class_back():
    model = SpeechModel()
    before = {name: type(module) for name, module in model.named_modules()}
    acceleration = accelerate(model)
    acceleration.restore()
    acceleration.restore()
    assert {name: type(module) for name, module in model.named_modules()} == before
    with accelerate(model):
        assert type(model.audio_encoder) is encodec_fast.EncodecModel
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_parts_called_directly_run_on_the_plan():
    """Bark calls quantizer.decode and decoder of its codec, never decode."""
    model = reference_model(small_config())
    codes = torch.randint(0, 16, (2, 1, 9))
    with torch.no_grad():
        expected = model.decoder(model.quantizer.decode(codes))
        accelerate(model)
        with encodec_fast.use_backend("torch"):
            torch.testing.assert_close(model.decoder(model.quantizer.decode(codes)), expected, rtol=1e-4, atol=1e-5)


def test_ours_and_foreign_subclasses_are_left_alone():
    class Own(transformers.EncodecModel):
        pass

    own = Own(small_config())
    assert {change.name for change in accelerate(own).changes} == {"encoder", "decoder", "quantizer"}
    assert accelerate(encodec_fast.EncodecModel(small_config())).changes == ()
    assert accelerate(nn.Linear(1, 1)).changes == ()


def test_something_else_is_refused_by_name():
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.Module, got str"):
        accelerate("model")


def test_the_codec_inside_musicgen_is_found():
    config = transformers.MusicgenConfig(
        text_encoder={"model_type": "t5", "d_model": 16, "d_ff": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "vocab_size": 20},
        audio_encoder={"model_type": "encodec", **small_config().to_diff_dict()},
        decoder={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16, "num_codebooks": 4, "vocab_size": 16},
    )
    music = transformers.MusicgenForConditionalGeneration(config)
    names = {change.name for change in accelerate(music).changes}
    assert names == {"audio_encoder", "audio_encoder.encoder", "audio_encoder.decoder", "audio_encoder.quantizer"}
