"""torch.compile(fullgraph=True) takes encode and decode whole, once for changing lengths, with the results of eager mode."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from encodec_fast import use_backend
from encodec_fast.serving import compiled
from support.models import audio_like, config_48khz, is_error, outcome, pair, small_config

LENGTHS = (400, 401, 555, 720)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_one_dynamic_graph_serves_every_length(part):
    _, model = pair(small_config())

    def call(x):
        if part == "encode":
            return model.encode(x, bandwidth=4.8).audio_codes
        return model.decode(x, [None]).audio_values

    whole = torch.compile(call, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for length in LENGTHS:
            audio = audio_like(1, 1, length, length)
            x = audio if part == "encode" else model.encode(audio, bandwidth=4.8).audio_codes
            assert torch.equal(whole(x), call(x))
    # one for the first length, one for any other
    assert counters["stats"]["unique_graphs"] == 2


def test_a_chunked_model_compiles_whole():
    _, model = pair(config_48khz(num_filters=4, hidden_size=8, codebook_size=16, target_bandwidths=[2.4]))
    audio = audio_like(1, 2, 47_520 + 48_000, 0)
    whole = torch.compile(lambda x: model.encode(x).audio_codes, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(whole(audio), model.encode(audio).audio_codes)


def test_weights_edited_after_compilation_are_honoured():
    _, model = pair(small_config())
    audio = audio_like(1, 1, 400, 0)
    whole = torch.compile(lambda x: model.encoder(x), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        before = whole(audio)
        model.encoder.layers[0].conv.bias.add_(1.0)
        assert torch.equal(whole(audio), model.encoder(audio))
        assert not torch.equal(whole(audio), before)


def test_a_copied_model_has_a_number_of_its_own():
    _, model = pair(small_config())
    number = compiled.number_of(model.encoder)
    assert compiled.number_of(model.encoder) == number
    twin = outcome(lambda: copy.deepcopy(model))
    if is_error(twin):
        pytest.skip(f"torch's old weight norm can't be copied: {twin[1]}")
    assert compiled.number_of(twin.encoder) != number


def test_the_ops_keep_the_rules_of_torch_library():
    _, model = pair(small_config())
    audio = audio_like(2, 1, 400, 0)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(compiled.run_network, (audio, compiled.number_of(model.encoder)), test_utils=tests)
    with torch.no_grad():
        embeddings = model.encoder(audio)
    torch.library.opcheck(
        compiled.run_search, (embeddings, len(model.quantizer.layers), compiled.number_of(model.quantizer)), test_utils=tests
    )
    codes = torch.randint(0, 16, (4, 2, 50))
    torch.library.opcheck(compiled.run_lookup, (codes, compiled.number_of(model.quantizer)), test_utils=tests)
    torch.library.opcheck(compiled.run_network, (embeddings, compiled.number_of(model.decoder)), test_utils=tests)


def test_a_hook_on_the_encoder_fires_once():
    _, model = pair(small_config())
    audio = audio_like(1, 1, 400, 0)
    model.encoder.register_forward_hook(lambda module, args, output: 2 * output)
    whole = torch.compile(lambda x: model.encoder(x), backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(whole(audio), model.encoder(audio))


def test_the_reference_backend_compiles_too():
    _, model = pair(small_config())
    audio = audio_like(1, 1, 400, 0)
    whole = torch.compile(lambda x: model.encode(x, bandwidth=4.8).audio_codes, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), use_backend("reference"):
        assert torch.equal(whole(audio), model.encode(audio, bandwidth=4.8).audio_codes)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="this torch does not tell that it exports")
def test_an_exported_program_needs_nothing_of_this_process(caplog):
    caplog.set_level("ERROR")  # the compiler's own trace is long
    theirs, ours = pair(small_config())
    audio = audio_like(1, 1, 400, 0)
    with torch.no_grad():
        stock, own = (outcome(lambda m=m: torch.export.export(m.encoder, (audio,), strict=False)) for m in (theirs, ours))
    # what torch takes of HF it takes of ours, and an op of ours would name a module of this process
    assert is_error(stock) or not is_error(own)
    assert is_error(own) or not [node for node in own.graph.nodes if "encodec_fast" in str(node.target)]


def test_a_strict_export_fails_as_that_of_hf(caplog):
    caplog.set_level("CRITICAL")
    audio = audio_like(1, 1, 400, 0)
    stock, own = (outcome(lambda m=m: torch.export.export(m, (audio,), strict=True)) for m in pair(small_config()))
    if not is_error(stock):
        pytest.skip("transformers can be exported")
    # the words, without the lines of code they come from
    assert (own[0], own[1].partition("\n")[0]) == (stock[0], stock[1].partition("\n")[0])


class Adapted(nn.Module):
    """A convolution and what is learnt beside it, as LoRA puts it in a convolution's place."""

    def __init__(self, conv):
        super().__init__()
        torch.manual_seed(0)  # the same in both models
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0])
        self.base_layer, self.beside = conv, nn.Conv1d(*shape, dilation=conv.dilation[0])

    def forward(self, x):
        return self.base_layer(x) + 0.5 * self.beside(x)


@pytest.mark.parametrize("part, index", [("encoder", 0), ("encoder", 3), ("encoder", -1), ("decoder", -1)])
def test_a_model_whose_convolution_was_replaced_compiles_as_hf_does(part, index):
    models = pair(small_config())
    given = {"encoder": audio_like(1, 1, 400, 0), "decoder": torch.randn(1, models[0].config.hidden_size, 25)}[part]
    results = []
    for model in models:
        network = getattr(model, part)
        network.layers[index].conv = Adapted(network.layers[index].conv)
        torch.compiler.reset()
        with torch.no_grad():
            if model is models[0] and is_error(stock := outcome(lambda network=network: network(given))):
                pytest.skip(f"transformers reads what the layer lacks ({stock[1]})")
            results.append((torch.compile(lambda x, network=network: network(x), backend="aot_eager")(given), network(given)))
    (theirs, _), (compiled_ours, ours) = results
    assert torch.equal(compiled_ours, ours) and torch.equal(ours, theirs)
