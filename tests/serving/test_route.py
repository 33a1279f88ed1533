"""Backends are chosen as asked, refusals raise or are shown, and nothing leaks between threads."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace

import pytest
import torch

import encodec_fast
from encodec_fast import BackendError, use_backend, use_precision
from encodec_fast.backends import registry
from encodec_fast.backends.torch_backend import TorchBackend
from encodec_fast.backends.triton_backend import interpreter_problem
from encodec_fast.compression.coders import RawCoder
from encodec_fast.serving import request
from encodec_fast.serving.functions import normalize as normalize_volume
from encodec_fast.serving.route import route_function
from support.models import audio_like, pair, small_config


@pytest.fixture
def model():
    return pair(small_config())[1]


class Picky(TorchBackend):
    """A backend that runs everything but LSTMs."""

    name = "picky"

    def refusal(self, stage, dtype, device):
        return "no LSTM here" if type(stage).__name__ == "LSTM" else None


class Absent(TorchBackend):
    """A backend that this machine lacks."""

    name = "absent"

    def unavailable(self):
        return "no such chip"


ASKED: list[str] = []


class Coarse(TorchBackend):
    """A backend with two precisions that notes what it was asked for."""

    name = "coarse"
    precisions = ("parity", "fast")

    def prepare(self, stages, precision="parity"):
        ASKED.append(precision)
        return super().prepare(stages)

    def products(self, stage, dtype, device, precision):
        return f"{precision} products"


@pytest.fixture
def extra_backends(monkeypatch):
    extra = {name.lower(): (__name__, name) for name in ("Picky", "Absent", "Coarse")}
    backends = {**registry.BACKENDS, **extra}
    monkeypatch.setattr(registry, "BACKENDS", backends)
    monkeypatch.setattr(registry, "PREFERENCE", {"cpu": ("absent", "picky", "torch")})
    registry.get_backend.cache_clear()
    ASKED.clear()
    yield
    registry.get_backend.cache_clear()


def test_an_unknown_backend_is_refused_with_the_choices(monkeypatch, model):
    with pytest.raises(ValueError, match=r"use_backend: 'gpu' is not a backend. Choose one of auto, cpu"), use_backend("gpu"):
        pass
    monkeypatch.setenv("ENCODEC_FAST_BACKEND", "gpu")
    with pytest.raises(ValueError, match="ENCODEC_FAST_BACKEND: 'gpu'"):
        model.encode(torch.zeros(1, 1, 100))


def test_each_stage_runs_on_the_first_backend_that_can(extra_backends, model):
    audio = audio_like(1, 1, 400, 0)
    with torch.no_grad():
        codes = model.encode(audio).audio_codes
    rows = encodec_fast.explain(model, audio).rows
    backends = {row.stage.split("  ")[1].split(" ")[0]: (row.backend, row.reason) for row in rows if row.stage.startswith("encoder")}
    assert backends["Conv"] == ("picky", "absent: no such chip")
    assert backends["LSTM"] == ("torch", "absent: no such chip; picky: no LSTM here")
    with use_backend("torch"), torch.no_grad():
        assert torch.equal(model.encode(audio).audio_codes, codes)


def test_a_demanded_backend_that_is_absent_raises(extra_backends, model):
    with pytest.raises(BackendError, match="'absent' was asked for but is not available: no such chip"), use_backend("absent"):
        model.encode(torch.zeros(1, 1, 100))


def test_a_demanded_backend_that_cannot_run_the_call_raises(extra_backends, model):
    with pytest.raises(BackendError, match="'picky' was asked for but can't run this call: no LSTM here"), use_backend("picky"):
        model.encode(torch.zeros(1, 1, 100))


def test_the_environment_names_a_preference(extra_backends, model, monkeypatch, caplog):
    request._logged.clear()
    monkeypatch.setenv("ENCODEC_FAST_BACKEND", "picky")
    model.encode(torch.zeros(1, 1, 100))
    assert "picky: no LSTM here" in caplog.text
    monkeypatch.setenv("ENCODEC_FAST_BACKEND", "absent")
    with pytest.raises(BackendError, match="no such chip"):
        model.encode(torch.zeros(1, 1, 100))


def test_a_demanded_backend_does_not_give_way_to_hooks(model):
    model.encoder.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(BackendError, match="hook"), use_backend("torch"):
        model.encode(torch.zeros(1, 1, 100))


def test_use_backend_holds_for_its_thread_and_block_only(model):
    seen = {}
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.update(other=request.requested().backend))
        thread.start()
        thread.join()
        with use_backend("torch"):
            seen["inner"] = request.requested().backend
        seen["outer"] = request.requested().backend
    seen["after"] = request.requested().backend
    assert seen == {"other": "auto", "inner": "torch", "outer": "reference", "after": "auto"}


def test_precision_is_the_models_own_unless_a_block_says_otherwise(extra_backends, model):
    audio = audio_like(1, 1, 400, 0)
    with use_backend("coarse"), torch.no_grad():
        model.encode(audio)
        model.precision = "fast"
        model.encode_batch(list(audio))
        model.encode(audio)
        with use_precision("parity"):
            model.encode(audio)
            assert encodec_fast.explain(model, audio).rows[0].products == "parity products"
        table = encodec_fast.explain(model, audio)
    assert ASKED[:2] == ["parity", "fast"], "a precision is prepared once"
    assert table.rows[0].products == "fast products"
    assert "precision fast: codes may differ from those of Hugging Face's float32" in table.notes
    assert copy.deepcopy(model).precision == "fast"


def test_a_backend_without_the_precision_computes_as_for_parity_and_says_so(model, caplog):
    request._logged.clear()
    audio = audio_like(1, 1, 400, 0)
    with use_backend("torch"), torch.no_grad():
        exact = model.encoder(audio)
        with use_precision("fast"):
            assert torch.equal(model.encoder(audio), exact)
            notes = encodec_fast.explain(model, audio).notes
    assert "precision 'fast': the torch backend computes as for parity" in caplog.text
    assert "precision fast: the torch backend computes as for parity" in notes
    assert not any("may differ from those" in note for note in notes)


def test_an_unknown_precision_is_refused_with_the_choices(model):
    choices = r"use_precision: 'bf16' is not a precision\. Choose one of parity, tf32x3, fast"
    with pytest.raises(ValueError, match=choices), use_precision("bf16"):
        pass
    with pytest.raises(ValueError, match="precision: 'half' is not a precision"):
        model.precision = "half"
    assert model.precision == "parity"


def test_threads_share_a_model(model):
    audio = [audio_like(1, 1, 300 + i, i) for i in range(8)]
    with torch.no_grad():
        expected = [model.encode(clip).audio_codes for clip in audio]
        model.encoder.layers[0].conv.bias.add_(0)
        results = [None] * len(audio)

        def encode(index):
            with torch.no_grad():
                results[index] = model.encode(audio[index]).audio_codes

        threads = [threading.Thread(target=encode, args=(index,)) for index in range(len(audio))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(results, expected))


@pytest.mark.parametrize("context", ["autocast", "vmap"])
def test_calls_that_only_the_reference_can_serve_reach_it(model, context):
    audio = audio_like(1, 1, 400, 0)
    with torch.no_grad():
        if context == "autocast":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert encodec_fast.explain(model, audio).rows[0].reason == "autocast is on"
                assert model.encoder(audio).shape == (1, 8, 50)
        else:
            doubled = torch.func.vmap(lambda codes: model.quantizer.decode(codes))(torch.zeros(3, 2, 1, 5, dtype=torch.int64))
            assert doubled.shape == (3, 1, 8, 5)


def test_explain_names_stage_shape_backend_and_prints_a_table(model):
    table = str(encodec_fast.explain(model, torch.zeros(2, 1, 800)))
    lines = table.splitlines()
    assert lines[0].split() == ["stage", "output", "backend", "products", "reason"]
    assert "LSTM 16 -> 16, 2 layers" in table
    assert "[2, 8, 100]" in table
    with pytest.raises(ValueError, match="input_values"):
        encodec_fast.explain(model, torch.zeros(800))
    with pytest.raises(TypeError, match="model"):
        encodec_fast.explain(torch.nn.Linear(1, 1), torch.zeros(1, 1, 8))


def test_explain_says_that_a_language_model_codes_in_the_engine_also_where_the_codec_runs_elsewhere(model):
    def neighbours(device, coder):
        rows = encodec_fast.explain(model.to(device), torch.zeros(2, 1, 800, device=device), coder).rows
        (index,) = (index for index, row in enumerate(rows) if row.stage == f"coder {coder.name}")
        return rows[index - 1 : index + 2]

    lm = SimpleNamespace(name="lm")
    search, row, lookup = neighbours("cpu", lm)
    assert (search.stage.split()[0], lookup.stage.split()[0]) == ("quantizer.encode", "quantizer.decode")
    assert (row.shape, row.backend, row.reason) == (search.shape, "cpu", "")
    away = neighbours("meta", lm)[1]
    assert away.backend == "cpu" and away.reason.startswith("no sums on meta have the engine's order")
    raw = neighbours("meta", RawCoder(16))[1]
    assert (raw.backend, raw.reason) == ("python", "")


@pytest.mark.parametrize("triton, numpy, works", [("3.6.0", "2.4.0", False), ("3.6.0", "2.3.5", True), ("3.7.1", "2.5.5", True)])
def test_an_interpreter_that_fails_with_this_numpy_is_named_with_the_remedy(triton, numpy, works):
    problem = interpreter_problem(triton, numpy)
    assert (problem is None) == works
    assert works or (problem.endswith("pip install 'triton>=3.7' or 'numpy<2.4'") and "3.6.0" in problem and "2.4.0" in problem)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("chunk", [0.1, None])
def test_explain_names_what_runs_the_functions_without_weights(normalize, chunk):
    model = pair(small_config(normalize=normalize, chunk_length_s=chunk, overlap=chunk and 0.1))[1]
    with use_backend("torch"):
        stages = {row.stage: row.backend for row in encodec_fast.explain(model, torch.zeros(1, 1, 900)).rows}
    assert ("volume" in stages, "overlap-add" in stages) == (normalize, chunk is not None)
    assert set(stages.values()) == {"torch"}


def test_a_function_without_weights_gives_way_with_a_line(caplog):
    request._logged.clear()
    with use_backend("cpu"):
        clean, scale = normalize_volume(torch.ones(1, 1, 4, dtype=torch.float64))
        assert route_function("normalize", [clean]).reason == "cpu: runs in float32 on the CPU"
    assert (clean.dtype, scale.item()) == (torch.float64, 1 + 1e-8)
    assert "normalize runs on the torch backend (cpu: runs in float32 on the CPU)" in caplog.text


def test_functions_without_weights_carry_gradients():
    audio = torch.ones(1, 1, 4, requires_grad=True)
    assert route_function("normalize", [audio]).reason == "gradients are asked for"
    assert normalize_volume(audio)[1].requires_grad
    with torch.no_grad():
        assert not normalize_volume(audio)[1].requires_grad


def test_frames_of_somebodys_own_are_called_in_every_batch():
    class Louder(encodec_fast.EncodecModel):
        def _encode_frame(self, input_values, bandwidth, *mask):
            return super()._encode_frame(2 * input_values, bandwidth, *mask)

    plain = pair(small_config())[1]
    louder = Louder(plain.config)
    louder.load_state_dict(plain.state_dict())
    audio = audio_like(1, 1, 400, 0)
    with torch.no_grad():
        expected = plain.encode(2 * audio, bandwidth=12.0).audio_codes
        assert not torch.equal(plain.encode(audio, bandwidth=12.0).audio_codes, expected)
        assert torch.equal(louder.encode(audio, bandwidth=12.0).audio_codes, expected)
        assert torch.equal(louder.encode_batch([audio[0]], 12.0)[0].codes, expected[:, 0])
