"""The page in examples/browser, in headless Chromium, with onnxruntime-web from npm."""

import base64
import functools
import getpass
import io
import os
import re
import runpy
import shutil
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from encodec_fast.graphs import check
from encodec_fast.graphs.export import export
from encodec_fast.plan.geometry import chunks_of, encoded_length
from support.models import audio_like, config_48khz, pair, small_config
from support.venvs import ROOT, run

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

EXAMPLE = ROOT / "examples" / "browser"
CONFIGS = {
    "24khz": small_config(sampling_rate=24_000, upsampling_ratios=[8, 5, 4, 2], target_bandwidths=[1.5, 6.0]),
    "48khz": config_48khz(num_filters=4, hidden_size=8, codebook_size=16, target_bandwidths=[3.0, 6.0]),
}
# Arrays travel as text, since playwright takes seconds for a list of as many numbers.
PACKING = """
    const pack = (array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength).toBase64();
    const unpack = (text, Kind) => new Kind(Uint8Array.fromBase64(text).buffer);
"""


def skip_for(missing):
    """Skips for want of something, which it names."""
    pytest.skip(f"{missing} is missing")


@pytest.fixture(scope="module")
def node_modules():
    """The folder with what the example's package.json asks for, kept between runs."""
    version = re.search(r'"onnxruntime-web": "([\d.]+)"', (EXAMPLE / "package.json").read_text()).group(1)
    folder = Path(tempfile.gettempdir()) / f"encodec_fast-tests-{getpass.getuser()}" / f"onnxruntime-web-{version}"
    if not folder.exists():
        if shutil.which("npm") is None:
            skip_for("npm, which Node.js brings,")
        # renamed when whole, so that an interrupted or a second run never leaves half of it
        making = folder.with_name(f"{folder.name}.{os.getpid()}")
        making.mkdir(parents=True)
        shutil.copy(EXAMPLE / "package.json", making)
        try:
            run(["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"], making)
            making.rename(folder)
        except AssertionError as error:
            skip_for(f"onnxruntime-web from npm ({str(error).splitlines()[-1]})")
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder / "node_modules"


@pytest.fixture(scope="module")
def site(node_modules, tmp_path_factory):
    """The example served with two small models: url, folder, and models by the names of their folders."""
    folder = tmp_path_factory.mktemp("site")
    for path in EXAMPLE.glob("*.*"):
        (folder / path.name).symlink_to(path)
    (folder / "node_modules").symlink_to(node_modules)
    models = {name: pair(config)[0] for name, config in CONFIGS.items()}
    for name, model in models.items():
        export(model, folder / name)
    example = runpy.run_path(str(EXAMPLE / "serve.py"))
    example["Isolated"].log_message = lambda *_: None
    with example["server"](folder, 0) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield SimpleNamespace(url=f"http://localhost:{http.server_port}/", folder=folder, models=models)
        http.shutdown()


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium whose microphone beeps."""
    try:
        from playwright import sync_api
    except ImportError:
        skip_for("playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=program, args=["--use-fake-device-for-media-stream"])
        except sync_api.Error as error:
            skip_for(f"Chromium ({str(error).splitlines()[0]})")
        # one profile, which keeps the compiled onnxruntime
        yield chromium.new_context()
        chromium.close()


@pytest.fixture(scope="module")
def visit(browser, site):
    """Opens the page with a query, once for each; fails at the end for errors of a page and for requests to elsewhere."""
    wrong = []

    @functools.cache
    def open_page(query):
        page = browser.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith((site.url, f"blob:{site.url}")) or wrong.append(request.url))
        page.goto(site.url + query)
        return page

    yield open_page
    assert not wrong


class BrowserCodec:
    """A page's codec, with the methods of `check.Codec`."""

    def __init__(self, page):
        page.locator("#file:enabled").wait_for()
        self._page = page

    def _run(self, script, arguments):
        return self._page.evaluate(f"async (given) => {{ {PACKING} {script} }}", arguments)

    def parts(self, config, samples):
        return chunks_of(config, samples)

    def encode(self, audio, num_quantizers):
        script = """
            const audio = given.channels.map((channel) => unpack(channel, Float32Array));
            const { codes, scale } = await encodec.codec.encodeChunk(audio, given.levels);
            return [pack(codes), scale && pack(scale)];
        """
        return _chunk(*self._run(script, {"channels": [*map(_packed, audio[0])], "levels": num_quantizers}), num_quantizers)

    def decode(self, codes, scale=None):
        script = """
            const chunk = { codes: unpack(given.codes, BigInt64Array), frames: given.frames };
            if (given.scale) chunk.scale = unpack(given.scale, Float32Array);
            return (await encodec.codec.decodeChunk(chunk, given.levels)).map(pack);
        """
        _, levels, frames = codes.shape
        given = {"codes": _packed(codes), "levels": levels, "frames": frames, "scale": None if scale is None else _packed(scale)}
        return _audio(self._run(script, given))[None]

    def last_clip(self):
        """(audio [C, T], [(codes [1, K, F], scale [1, 1])] of the chunks, audio by kbps) of the clip that the page coded."""
        audio, chunks, decodes, levels = self._run(
            """
            const { audio, chunks, decodes, codec } = encodec;
            const heard = Object.entries(decodes).map(([kbps, decode]) => [kbps, decode.audio.map(pack)]);
            const stored = chunks.map(({ codes, scale }) => [pack(codes), scale && pack(scale)]);
            return [audio.map(pack), stored, Object.fromEntries(heard), Math.max(...Object.values(codec.quantizers))];
            """,
            None,
        )
        return _audio(audio), [_chunk(*chunk, levels) for chunk in chunks], {kbps: _audio(heard) for kbps, heard in decodes.items()}


def _packed(array):
    return base64.b64encode(array.numpy().tobytes()).decode()


def _audio(channels):
    return torch.tensor(np.stack([np.frombuffer(base64.b64decode(channel), np.float32) for channel in channels]))


def _chunk(codes, scale, levels):
    codes = torch.tensor(np.frombuffer(base64.b64decode(codes), np.int64)).view(1, levels, -1)
    return codes, None if scale is None else _audio([scale])


def put_wav(path, audio, rate=24_000):
    """A WAV file of audio [C, T], whose samples a browser reads as they are."""
    soundfile.write(path, audio.numpy().T, rate, subtype="FLOAT")
    return path


def coded(page, path):
    """The page's codec, once the page has played the file at its highest rate."""
    page.locator("#file:enabled").wait_for()
    page.evaluate("document.querySelector('#players').replaceChildren()")
    page.get_by_label("Audio file").set_input_files(path)
    page.get_by_label("6 kbps", exact=True).wait_for()
    return BrowserCodec(page)


@pytest.mark.parametrize("name", CONFIGS)
def test_codes_and_audio_of_a_browser_are_those_of_transformers(visit, site, name):
    reference, codec = site.models[name], BrowserCodec(visit(f"?models={name}"))
    lengths = [1, 2, 319, 320, 321, 5000, 48_000]
    report = check.check_export(codec, reference, [audio_like(1, reference.config.audio_channels, n, n)[0] for n in lengths])
    print(report)
    assert report.passed and report.codes > 500


@pytest.mark.parametrize("name", CONFIGS)
def test_the_page_cuts_a_file_into_chunks_and_joins_them_as_transformers_does(visit, site, tmp_path, name):
    reference, onnx = site.models[name], check.OnnxCodec(site.folder / name)
    config = reference.config
    audio = audio_like(1, config.audio_channels, 2 * config.sampling_rate + 345, 7)
    codec = coded(visit(f"?models={name}"), put_wav(tmp_path / "clip.wav", audio[0], config.sampling_rate))
    read, chunks, decodes = codec.last_clip()
    assert torch.equal(read, audio[0])

    parts, most = chunks_of(config, audio.shape[2]), max(onnx.quantizers_of_bandwidth.values())
    assert len(chunks) == len(parts) == (3 if config.chunk_length else 1)
    for (codes, scale), (length, start) in zip(chunks, parts, strict=True):
        expected, expected_scale = codec.encode(audio[:, :, start : start + length], most)
        assert codes.shape[2] == encoded_length(config, length) and torch.equal(codes, expected) and len(codes.unique()) > 8
        assert scale == expected_scale
    for bandwidth, levels in onnx.quantizers_of_bandwidth.items():
        decoded = [onnx.decode(codes[:, :levels].contiguous(), scale) for codes, scale in chunks]
        whole = reference._linear_overlap_add(decoded, config.chunk_stride or 1)[0, :, : audio.shape[2]]
        torch.testing.assert_close(decodes[bandwidth], whole, rtol=0, atol=1e-5 * whole.abs().max().item())


def test_the_players_have_each_rate_and_its_numbers(visit, tmp_path):
    page = visit("?models=24khz")
    _, _, decodes = coded(page, put_wav(tmp_path / "clip.wav", audio_like(1, 1, 24_000, 0)[0])).last_clip()
    rows = page.get_by_role("listitem")
    assert [row.split("\n")[0] for row in rows.all_inner_texts()] == ["Original", "1.5 kbps", "6 kbps"]
    # 75 frames of 20 codes of 4 bits
    assert "20 quantizers · 750 B · 64 : 1 · decoded" in rows.nth(2).inner_text()
    assert page.locator("#facts").inner_text().split()[:7] == "clip 1.00 s frames 75 quantizers 20".split()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save 6 kbps").click()
    played, rate = soundfile.read(io.BytesIO(download.value.path().read_bytes()), dtype="int16")
    expected = (32767 * decodes["6"][0].clamp(-1, 1)).round().numpy()
    assert rate == 24_000 and np.abs(played - expected).max() <= 1 and np.ptp(played) > 100


def test_a_file_is_mixed_and_resampled(visit, tmp_path):
    page, stereo = visit("?models=24khz"), audio_like(1, 2, 2400, 1)[0]
    mixed, _, _ = coded(page, put_wav(tmp_path / "stereo.wav", stereo)).last_clip()
    assert torch.allclose(mixed, stereo.mean(0, keepdim=True), atol=1e-6)
    tone = torch.sin(torch.arange(44_100) * (440 * 6.28319 / 44_100))[None]
    resampled, _, _ = coded(page, put_wav(tmp_path / "tone.wav", tone, 44_100)).last_clip()
    assert resampled.shape == (1, 24_000) and torch.fft.rfft(resampled).abs().argmax() == 440


def test_the_server_s_headers_allow_threads(visit):
    page = visit("?models=24khz")
    page.locator("#file:enabled").wait_for()
    assert page.evaluate("crossOriginIsolated") and re.search(r"24 kHz · mono · \d+ threads?$", page.locator("#model").inner_text())


def test_a_link_names_a_clip_and_a_rate(visit, site):
    put_wav(site.folder / "linked.wav", audio_like(1, 1, 2400, 2)[0])
    page = visit("?models=24khz&audio=linked.wav&bandwidth=1.5")
    page.get_by_label("1.5 kbps", exact=True).wait_for()
    assert page.get_by_role("listitem").count() == 2


def test_a_file_is_dropped(visit):
    page, file = visit("?models=24khz"), io.BytesIO()
    page.locator("#file:enabled").wait_for()
    soundfile.write(file, audio_like(1, 1, 1234, 3)[0, 0].numpy(), 24_000, format="FLAC")
    script = """(text) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.fromBase64(text)], "dropped.flac"));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
    }"""
    page.evaluate(script, base64.b64encode(file.getvalue()).decode())
    page.wait_for_function("encodec.audio?.[0].length === 1234")


def test_the_microphone_is_recorded(visit, browser):
    browser.grant_permissions(["microphone"])
    page = visit("?models=24khz")
    page.evaluate("document.querySelector('#players').replaceChildren()")
    page.get_by_role("button", name="Record", disabled=False).press("Enter")
    page.get_by_text("Recording").wait_for()
    # it beeps once a second
    page.wait_for_function("document.querySelector('progress').value > 1.1 / 60")
    page.get_by_role("button", name="Stop").press("Enter")
    page.get_by_label("6 kbps", exact=True).wait_for()
    browser.clear_permissions()
    assert page.evaluate("Math.max(...encodec.audio[0])") > 0.1


@pytest.mark.parametrize(
    ["query", "words"],
    [
        ("?models=absent", "No model in absent/. Write one with: encodec-fast export"),
        ("?models=24khz&audio=gone.wav", "gone.wav is not there"),
    ],
)
def test_what_is_missing_is_told_in_words(visit, query, words):
    visit(query).get_by_role("alert").filter(has_text=words).wait_for()


def test_a_missing_onnxruntime_is_told_in_words(visit, browser):
    browser.route("**/ort.wasm.min.mjs", lambda route: route.fulfill(status=404))
    visit("?models=without").get_by_role("alert").filter(has_text="onnxruntime-web is not here. Run npm install").wait_for()
    browser.unroute("**/ort.wasm.min.mjs")


def test_what_can_not_be_coded_is_told_in_words_and_the_next_file_is_coded(visit, tmp_path):
    page = visit("?models=24khz")
    page.locator("#file:enabled").wait_for()
    for name, content, words in (
        ("notes.txt", b"only words", "notes.txt is no audio that this browser reads"),
        ("empty.wav", b"", "empty.wav is empty"),
        ("long.wav", put_wav(tmp_path / "long.wav", torch.zeros(1, 485_000), 8000).read_bytes(), "long.wav is 61 s long, 60 s are allowed"),
    ):
        (tmp_path / name).write_bytes(content)
        page.get_by_label("Audio file").set_input_files(tmp_path / name)
        page.get_by_role("alert").filter(has_text=words).wait_for()
    page.get_by_role("button", name="Record").click()
    page.get_by_role("alert").filter(has_text="The microphone was refused").wait_for()
    coded(page, put_wav(tmp_path / "short.wav", audio_like(1, 1, 1, 0)[0]))
    assert page.get_by_role("alert").inner_text() == ""
