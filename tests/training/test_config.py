"""A config is read from TOML as it is written, and what is wrong with it is named."""

import pytest

from encodec_fast.training.config import TrainingConfig, default_toml, read_config


@pytest.fixture
def tables():
    return pytest.importorskip("tomllib", reason="Python 3.11")


def written(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_config_comes_back_from_its_own_file(tmp_path, tables):
    changes = {"audio": ['a/ä "b".wav'], "gain_db": [-3, 0], "weights": {"mel": 2}, "architecture": {"upsampling_ratios": [4, 2]}}
    config = TrainingConfig(steps=7, learning_rate=1e-5, **changes)
    assert read_config(written(tmp_path, config.to_toml())) == config
    assert config.gain_db == (-3.0, 0.0) and config.weights == {"mel": 2.0}


def test_the_default_file_lacks_the_audio_alone(tmp_path, tables):
    with pytest.raises(ValueError, match=r"run\.toml: audio is empty"):
        read_config(written(tmp_path, default_toml()))
    text = default_toml().replace("audio = []", 'audio = ["x"]', 1)
    assert read_config(written(tmp_path, text)) == TrainingConfig(audio=("x",))


def test_the_rate_is_constant_unless_it_warms_up_or_falls():
    assert {TrainingConfig(audio=("x",)).rate_of(step) for step in (0, 5, 599_999)} == {3e-4}
    warmed = TrainingConfig(audio=("x",), learning_rate=1.0, warmup_steps=4)
    assert [warmed.rate_of(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    falling = TrainingConfig(audio=("x",), learning_rate=1.0, steps=100, schedule="cosine")
    assert [falling.rate_of(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])


def test_steps_that_a_rate_depends_on_may_not_change():
    assert "steps" in TrainingConfig(audio=("x",)).changeable()
    assert "steps" not in TrainingConfig(audio=("x",), schedule="cosine").changeable()


@pytest.mark.parametrize(
    "line, message",
    [
        ("stepz = 3", r"'stepz' is no key; there are audio, validation_audio, "),
        ("steps = 0", "steps is 0; allowed is more than 0"),
        ('steps = "many"', "steps is 'many'; a whole number is needed"),
        ("steps = 1.5", "steps is 1.5; a whole number is needed"),
        ("steps = true", "steps is True; a whole number is needed"),
        ("learning_rate = nan", "learning_rate is nan; a finite number"),
        ("gain_db = [6, -10]", r"gain_db is \[6.0, -10.0\]; allowed is two, the lower one first"),
        ('gain_db = ["loud", 1]', r"gain_db\[0\] is 'loud'; a number is needed"),
        ('schedule = "linear"', "schedule is linear; allowed is constant or cosine"),
        ("mix_share = 1.1", "mix_share is 1.1; allowed is 0 to 1"),
        ('audio = "x"', "audio is 'x'; a list is needed"),
        ("weights = 3", r"weights is 3; a table \[weights\] is needed"),
        ('model = "demo"\n[architecture]\nnum_filters = 4', "model is 'demo' and architecture has settings"),
        ('model = "demo"\nfrozen = ["lstm"]', r"frozen is \['lstm'\]; allowed is encoder, quantizer and decoder"),
        ('frozen = ["encoder"]', r"frozen is \['encoder'\] without a model"),
        ("steps =", "not a TOML file"),
    ],
)
def test_an_error_names_the_key_and_what_is_allowed(tmp_path, tables, line, message):
    audio = "" if line.startswith("audio") else 'audio = ["x"]\n'
    with pytest.raises(ValueError, match=message):
        read_config(written(tmp_path, audio + line))
