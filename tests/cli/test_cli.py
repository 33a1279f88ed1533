"""The command line as a person meets it: what it prints, what it writes, its exit codes."""

import base64
import hashlib
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch

import encodec_fast
from encodec_fast import cli, decompress, pretrained
from encodec_fast.cli.terminal import progress_line
from encodec_fast.dataset.failures import read_failures
from encodec_fast.dataset.ledger import Ledger
from encodec_fast.dataset.run import Summary
from encodec_fast.dataset.split import parse_shard, shard_of_environment
from encodec_fast.demo import bundled_clips
from encodec_fast.formats.folder import load_codes, read_ids, read_info
from encodec_fast.plan.weights import weights_sha256
from support.command import run
from support.corpora import content
from support.engine import engine
from support.models import audio_like, config_48khz, pair, small_config
from support.venvs import ROOT

SMALL = {"codebook_size": 16, "target_bandwidths": [1.2, 2.4, 4.8]}
SMALL_48KHZ = {"num_filters": 4, "hidden_size": 8, "codebook_size": 16, "target_bandwidths": [3.0, 6.0]}


@pytest.fixture(scope="module")
def model():
    return pair(small_config(**SMALL))[1]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    for index, name in enumerate(["a.wav", "b/a.wav", "b/a.flac"]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, audio_like(1, 1, 4000 + 777 * index, index)[0, 0].numpy(), 2400 * (1 + index))
    return folder


@pytest.fixture(autouse=True)
def same_threads():
    """--threads holds for the process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tokenize(capsys, corpus, out, model_folder, *more):
    return run(capsys, "tokenize", corpus, "--out", out, "--model", model_folder, "--bandwidth", "2.4", *more)


def test_tokenize_and_decode_give_every_clip_back_at_its_length_and_rate(capsys, corpus, model, model_folder, tmp_path):
    codes, wavs = tmp_path / "codes", tmp_path / "wavs"
    code, out, err = tokenize(capsys, corpus, codes, model_folder, "--threads", "1", "--workers", "1")
    assert (code, err) == (cli.OK, "")
    assert "3 clips" in out and "x real time" in out and str(codes / "part-00000000.parquet") in out
    # longest first
    assert read_ids(codes) == ["a.wav", "b/a.wav", "b/a.flac"]
    info = read_info(codes)
    assert info.model_id == str(model_folder) and info.weights_sha256 == weights_sha256(model)
    assert info.options["bandwidth"] == 2.4 and info.backend

    code, out, err = run(capsys, "decode", codes, "--out", wavs)
    assert (code, err) == (cli.OK, "") and "wrote 3 WAV files" in out
    assert sorted(str(path.relative_to(wavs)) for path in wavs.rglob("*.wav")) == ["a.wav", "b/a.wav", "b/a~2.wav"]
    for row, name in zip(load_codes(codes), ["a.wav", "b/a.wav", "b/a~2.wav"]):
        written = soundfile.info(wavs / name)
        assert (written.frames, written.samplerate) == (row.num_samples, 2400)


def test_a_broken_clip_is_named_with_its_reason_and_costs_only_itself(capsys, corpus, model_folder, tmp_path):
    (corpus / "broken.wav").write_bytes(b"RIFF and nothing")
    (corpus / "empty.flac").write_bytes(b"")
    code, out, err = tokenize(capsys, corpus, tmp_path / "codes", model_folder)
    assert code == cli.CLIPS_FAILED and "3 clips" in out
    assert err.splitlines()[0] == "2 of the clips failed:"
    assert "  empty.flac: the file is empty (0 bytes)." in err.splitlines()
    assert [failure.id for failure in read_failures(tmp_path / "codes")] == ["broken.wav", "empty.flac"]
    assert len(read_ids(tmp_path / "codes")) == 3


def test_a_codes_folder_is_continued_and_replaced_only_when_asked(capsys, corpus, model_folder, tmp_path):
    codes, wavs = tmp_path / "codes", tmp_path / "wavs"
    assert tokenize(capsys, corpus, codes, model_folder)[0] == cli.OK
    code, out, err = tokenize(capsys, corpus, codes, model_folder)
    assert (code, err) == (cli.OK, "") and "done before: 3 clips" in out
    code, _, err = tokenize(capsys, corpus / "b", codes, model_folder)
    assert code == cli.WRONG_ARGUMENT and "holds codes made otherwise: sources was" in err
    assert tokenize(capsys, corpus / "b", codes, model_folder, "--overwrite")[0] == cli.OK
    assert len(read_ids(codes)) == 2
    assert run(capsys, "decode", codes, "--out", wavs)[0] == cli.OK
    code, out, _ = run(capsys, "decode", codes, "--out", wavs)
    assert code == cli.OK and "decoded before: 2 clips" in out and "wrote 0 WAV files" in out
    assert run(capsys, "decode", codes, "--out", wavs, "--overwrite")[0] == cli.OK


def test_decode_refuses_other_weights_and_names_both(capsys, corpus, model_folder, tmp_path):
    tokenize(capsys, corpus, tmp_path / "codes", model_folder)
    other = pair(small_config(**SMALL), seed=7)[1]
    other.save_pretrained(tmp_path / "other")
    code, _, err = run(capsys, "decode", tmp_path / "codes", "--out", tmp_path / "wavs", "--model", tmp_path / "other")
    assert code == cli.WRONG_ARGUMENT and err.count("\n") == 1
    assert read_info(tmp_path / "codes").weights_sha256[:16] in err and weights_sha256(other)[:16] in err
    assert not (tmp_path / "wavs").exists()


WRONG = {
    "unknown command": (["tokenise"], "No such command"),
    "no source": (["tokenize"], "Missing argument"),
    "no --out": (["tokenize", "CORPUS"], "Missing option '--out'"),
    "unknown option": (["tokenize", "CORPUS", "--out", "OUT", "--modle", "x"], "No such option"),
    "missing source": (["tokenize", "nowhere", "--out", "OUT", "--model", "MODEL"], "nowhere: no such file or folder."),
    "pattern without match": (["tokenize", "no*where", "--out", "OUT", "--model", "MODEL"], "matches no audio file"),
    "threads below 0": (["tokenize", "CORPUS", "--out", "OUT", "--threads", "-1"], "--threads"),
    "threads in words": (["tokenize", "CORPUS", "--out", "OUT", "--threads", "two"], "--threads"),
    "no workers": (["tokenize", "CORPUS", "--out", "OUT", "--workers", "0"], "--workers"),
    "batch of nothing": (["tokenize", "CORPUS", "--out", "OUT", "--batch-seconds", "0"], "--batch-seconds is 0"),
    "bandwidth": (["tokenize", "CORPUS", "--out", "OUT", "--model", "MODEL", "--bandwidth", "7"], "are 1.2, 2.4, 4.8 kbps"),
    "device": (["tokenize", "CORPUS", "--out", "OUT", "--model", "MODEL", "--device", "gpu"], "device is 'gpu'"),
    "devices of ray": (["tokenize", "CORPUS", "--out", "OUT", "--engine", "ray", "--devices", "cpu,cpu"], "leave out --devices"),
    "shard of ray": (["tokenize", "CORPUS", "--out", "OUT", "--engine", "ray", "--shard", "1/2"], "this is shard 1/2; leave out"),
    "backend": (["tokenize", "CORPUS", "--out", "OUT", "--model", "MODEL", "--backend", "metal"], "'metal' is not a backend"),
    "model": (["tokenize", "CORPUS", "--out", "OUT", "--model", "a/b/c"], "'a/b/c' is neither a folder"),
    "out is a file": (["tokenize", "CORPUS", "--out", "CORPUS/a.wav", "--model", "MODEL", "-b", "1.2"], "a.wav: File exists"),
    "decode of no codes": (["decode", "CORPUS", "--out", "OUT"], "no part-*.parquet in this folder"),
    "subtype": (["decode", "CORPUS", "--out", "OUT", "--subtype", "MP3"], "allowed are PCM_16, PCM_24, FLOAT"),
    "verify nothing": (["verify", "nowhere"], "nowhere: no such file or folder."),
    "verify bandwidth": (["verify", "CORPUS", "--model", "MODEL", "--bandwidth", "5"], "are 1.2, 2.4, 4.8 kbps"),
}


@pytest.mark.parametrize("arguments, message", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_one_line_and_exit_code_2(capsys, corpus, model_folder, tmp_path, arguments, message):
    places = {"CORPUS": str(corpus), "CORPUS/a.wav": str(corpus / "a.wav"), "OUT": str(tmp_path / "out"), "MODEL": str(model_folder)}
    code, _, err = run(capsys, *(places.get(argument, argument) for argument in arguments))
    assert code == cli.WRONG_ARGUMENT
    assert err.count("\n") == 1 and err.startswith("encodec-fast") and message in err
    assert not (tmp_path / "out").exists()


def test_an_unreachable_hub_names_the_demo(capsys, corpus, tmp_path, monkeypatch):
    def unreachable(name):
        raise pretrained.ModelNotFound(f"{name}: the Hugging Face hub can't be reached; use --model demo")

    monkeypatch.setattr(pretrained, "_from_hub", unreachable)
    code, _, err = run(capsys, "tokenize", corpus, "--out", tmp_path / "codes")
    assert code == cli.WRONG_ARGUMENT and err.count("\n") == 1 and "--model demo" in err


def test_verify_compares_with_hugging_face_and_fails_on_a_clip_it_can_not_read(capsys, corpus, model_folder):
    code, out, err = run(capsys, "verify", corpus, "--model", model_folder)
    assert (code, err) == (cli.OK, "") and "\nPASS" in out and "3 clips at 4.8 kbps" in out
    (corpus / "c.wav").write_bytes(b"")
    code, out, err = run(capsys, "verify", corpus, "--model", model_folder, "--bandwidth", "1.2")
    assert code == cli.CLIPS_FAILED and "3 clips at 1.2 kbps" in out and "c.wav: the file is empty" in err


def test_verify_of_half_precision_is_a_wrong_argument(capsys, corpus, tmp_path):
    pair(small_config(**SMALL))[1].half().save_pretrained(tmp_path / "half")
    code, _, err = run(capsys, "verify", corpus, "--model", tmp_path / "half")
    assert code == cli.WRONG_ARGUMENT and "its weights are torch.float16, and verify needs float32" in err


def test_verify_fails_where_the_codes_are_not_hugging_face_s(capsys, corpus, model, model_folder, monkeypatch):
    search = type(model.quantizer).encode
    monkeypatch.setattr(type(model.quantizer), "encode", lambda self, *call: search(self, *call).flip(0))
    code, out, _ = run(capsys, "verify", corpus, "--model", model_folder)
    assert code == cli.CLIPS_FAILED and "\nFAIL" in out


def test_info_names_versions_and_every_backend_with_yes_or_the_reason(capsys):
    code, out, err = run(capsys, "info")
    assert (code, err) == (cli.OK, "")
    lines = dict(line.split("  ", 1) for line in out.splitlines())
    assert lines["torch"].strip() == torch.__version__
    assert lines["backend torch"].strip() == "yes"
    assert all(value.strip() == "yes" or value.strip().startswith("no: ") for name, value in lines.items() if name.startswith("backend"))
    assert {"CPU", "CPU engine", "ffmpeg", "extra matplotlib", "extra ray", "models from the hub", "offline"} < lines.keys()
    assert lines["offline"].strip() == "no" or "by" in lines["offline"]


def test_demo_tokenizes_decodes_verifies_and_prints_one_table(capsys, tmp_path, monkeypatch):
    # two small models in the place of the real ones: the same way through the command in a tenth of the time
    speech = small_config(sampling_rate=24_000, upsampling_ratios=[8, 5, 4, 2], target_bandwidths=[6.0])
    models = {"demo": pair(speech)[1], "demo-48khz": pair(config_48khz(**SMALL_48KHZ))[1]}
    monkeypatch.setattr(pretrained, "demo_model", models.get)
    monkeypatch.setenv("COLUMNS", "80")
    # another process would load the real ones
    elsewhere = []
    monkeypatch.setattr(
        sys.modules["encodec_fast.cli.demo"],
        "read_elsewhere",
        lambda paths, expected: elsewhere.append((paths, expected)) or ("2 threads", [True, len(elsewhere) < 2]),
    )
    code, out, err = run(capsys, "demo", "--out", tmp_path / "out", "--threads", "1")
    assert (code, err) == (cli.OK, ""), out
    assert out.count("┏") == 1 and "a small stand-in" in out
    assert max(len(line) for line in out.splitlines() if line.startswith(("│", "┃", "┏"))) <= 80
    for path in (line.removeprefix("wrote ") for line in out.splitlines() if line.startswith("wrote ")):
        assert os.path.isfile(path)
    assert len(list((tmp_path / "out").rglob("*.wav"))) == 8
    assert "6.00 to " in out and "the same bits" in out
    ((paths, expected),) = elsewhere
    assert [path.name for path in paths] == ["speech.ecdc", "music.ecdc"]
    for path, name, wanted in zip(paths, models, expected):
        assert hashlib.sha256(decompress(path, models[name])[0].tobytes()).hexdigest() == wanted
    # a second run replaces what the first one wrote; other bits in another process are a failure
    code, out, _ = run(capsys, "demo", "--out", tmp_path / "out", "--threads", "1")
    assert code == cli.CLIPS_FAILED and "OTHER BITS" in out
    # and nothing else
    song = next((tmp_path / "out").rglob("*.wav"))
    song.write_bytes(b"somebody's")
    code, _, err = run(capsys, "demo", "--out", tmp_path / "out", "--threads", "1")
    assert code == cli.WRONG_ARGUMENT and "is not replaced" in err and song.read_bytes() == b"somebody's"


def test_another_process_with_other_threads_and_instructions_reads_the_demos_file(tmp_path, monkeypatch):
    engine()
    # as in a checkout, whose packages are not those that are installed
    (tmp_path / "encodec_fast.py").write_text("raise ImportError('of the current folder')")
    monkeypatch.chdir(tmp_path)
    from encodec_fast.cli.demo import compress_clips, read_elsewhere

    (clip,) = [str(path) for path in bundled_clips() if path.name == "speech_yes.flac"]
    made = compress_clips(pretrained.load_model("demo"), [clip], 6.0, tmp_path / "yes.ecdc")
    assert made.coder == "lm" and "6.00 to " in made.column(6.0)["compressed"]
    how, same = read_elsewhere([made.path, made.path], [made.audio_sha256, "ab" * 32])
    assert same == [True, False] and "thread" in how
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        read_elsewhere([tmp_path / "none.ecdc"], ["ab" * 32])


def command(*arguments):
    return [sys.executable, "-m", "encodec_fast", *map(str, arguments)]


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("name", [(), ("tokenize",), ("decode",), ("verify",), ("info",), ("demo",)], ids=lambda name: name or "top")
def test_help_fits_the_terminal_and_shows_an_example(capsys, monkeypatch, columns, name):
    monkeypatch.setenv("COLUMNS", columns)
    code, out, err = run(capsys, *name, "--help")
    assert (code, err) == (cli.OK, "")
    assert max(map(len, out.splitlines())) <= int(columns)
    assert " encodec-fast demo" in out or f"\n encodec-fast {' '.join(name)}" in out


def test_help_loads_nothing_heavy():
    script = (
        "import sys; from encodec_fast import cli; cli.main(['tokenize', '--help']);"
        "print(sorted({'torch', 'transformers', 'pyarrow', 'soundfile', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, text=True, cwd=ROOT / "tests")
    assert output.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_sigterm_and_hangup_end_the_run_with_130_and_keep_whole_shards(corpus, model_folder, tmp_path, how):
    for index in range(400):
        os.link(corpus / "a.wav", corpus / f"more-{index}.wav")
    codes = tmp_path / "codes"
    options = ["--out", codes, "--model", model_folder, "--bandwidth", "2.4"]
    options += ["--batch-seconds", "0.5", "--rows-per-shard", "2", "--threads", "1"]
    process = subprocess.Popen(command("tokenize", corpus, *options), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 120
    while not list(codes.glob("part-*.parquet")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED, err
    assert "interrupted" in err and "Traceback" not in err
    rows = len(read_ids(codes))
    assert 0 < rows < 403 and not list(codes.glob("*.tmp"))


# Large sets


def test_a_dry_run_tells_clips_and_hours_and_writes_nothing(capsys, corpus, model_folder, tmp_path):
    (corpus / "broken.wav").write_bytes(b"")
    code, out, err = tokenize(capsys, corpus, tmp_path / "codes", model_folder, "--dry-run")
    assert code == cli.CLIPS_FAILED and "3 clips, 0.00 hours, the longest 1.7 s" in out and "broken.wav: the file is empty" in err
    assert not (tmp_path / "codes").exists()
    code, out, _ = tokenize(capsys, corpus, tmp_path / "codes", model_folder, "--dry-run", "--limit", "2")
    assert code == cli.OK and out.startswith("2 clips")


def test_a_changed_option_and_a_folder_of_others_are_refused_in_one_line(capsys, corpus, model_folder, tmp_path):
    codes = tmp_path / "codes"
    assert tokenize(capsys, corpus, codes, model_folder)[0] == cli.OK
    code, _, err = tokenize(capsys, corpus, codes, model_folder, "--format", "npy")
    assert code == cli.WRONG_ARGUMENT and err.count("\n") == 1 and "format was 'parquet', is 'npy'" in err
    shutil.rmtree(codes / ".encodec_fast")
    code, _, err = tokenize(capsys, corpus, codes, model_folder)
    assert code == cli.WRONG_ARGUMENT and err.count("\n") == 1 and "no ledger of them" in err


def test_a_second_process_is_refused_in_one_line(capsys, corpus, model_folder, tmp_path):
    with Ledger(tmp_path / "codes").writing():
        code, _, err = tokenize(capsys, corpus, tmp_path / "codes", model_folder)
    assert code == cli.WRONG_ARGUMENT and err.count("\n") == 1 and "is being written by process" in err


def test_a_full_disk_is_one_line_and_exit_code_3(capsys, corpus, model_folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", full)
        code, _, err = tokenize(capsys, corpus, tmp_path / "codes", model_folder)
    assert code == cli.STOPPED and err.count("\n") == 1 and "No space left on device. What was finished is kept" in err
    assert tokenize(capsys, corpus, tmp_path / "codes", model_folder)[0] == cli.OK


def test_a_lost_gpu_is_one_line_and_exit_code_3(capsys, corpus, model_folder, tmp_path, monkeypatch):
    def fail(*_, **options):
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with `TORCH_USE_CUDA_DSA`")

    with monkeypatch.context() as patch:
        patch.setattr(encodec_fast.EncodecModel, "encode_batch", fail)
        code, _, err = tokenize(capsys, corpus, tmp_path / "codes", model_folder)
    assert code == cli.STOPPED and err.count("\n") == 1 and "launch failure. What was finished is kept" in err
    assert tokenize(capsys, corpus, tmp_path / "codes", model_folder)[0] == cli.OK and len(read_ids(tmp_path / "codes")) == 3


ENVIRONMENTS = {
    "torchrun": {"RANK": "1", "WORLD_SIZE": "2"},
    "srun": {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2"},
    "array": {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_STEP": "3", "SLURM_ARRAY_TASK_COUNT": "2"},
}


@pytest.mark.parametrize("variables", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_the_scheduler_s_environment_splits_the_run(capsys, corpus, model_folder, tmp_path, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, out, _ = tokenize(capsys, corpus, tmp_path / "codes", model_folder, "--batch-seconds", "0.1")
    assert code == cli.OK and "shard 1/2, as" in out and "1 clip," in out and "left to other shards: 2 clips" in out
    code, out, _ = tokenize(capsys, corpus, tmp_path / "codes", model_folder, "--batch-seconds", "0.1", "--shard", "0/2")
    assert code == cli.OK and len(read_ids(tmp_path / "codes")) == 3


@pytest.mark.parametrize("variables", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_a_scheduler_s_environment_that_would_split_a_run_of_ray_is_named(capsys, corpus, model_folder, tmp_path, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = tokenize(capsys, corpus, tmp_path / "codes", model_folder, "--engine", "ray")
    assert code == cli.WRONG_ARGUMENT and err.count("\n") == 1 and "this is shard 1/2; start it once, with --shard 0/1" in err
    assert sum(name in err for name in variables) == 2 and not (tmp_path / "codes").exists()


def test_the_tasks_of_all_jobs_of_an_array_share_the_work():
    shares = []
    for job, task in itertools.product(range(3), range(2)):
        array = {"SLURM_ARRAY_TASK_ID": str(5 + job), "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "3"}
        index, count, said = shard_of_environment({**array, "SLURM_PROCID": str(task), "SLURM_STEP_NUM_TASKS": "2"})
        assert count == 6 and said.count(",") == 2 and said.endswith(" and SLURM_STEP_NUM_TASKS")
        shares.append(index)
    assert shares == list(range(6))


def test_a_batch_script_that_is_one_process_does_all_the_work():
    assert shard_of_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == (0, 1, "")
    assert parse_shard("2/3") == (2, 3)
    for wrong in ("3/3", "1", "-1/2", "a/b"):
        with pytest.raises(ValueError, match="i/n is needed"):
            parse_shard(wrong)


def test_two_groups_of_cores_do_what_one_process_does(capsys, corpus, model_folder, tmp_path):
    assert tokenize(capsys, corpus, tmp_path / "one", model_folder, "--batch-seconds", "0.1")[0] == cli.OK
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    code, out, err = tokenize(capsys, corpus, tmp_path / "two", model_folder, "--batch-seconds", "0.1", "--devices", "cpu,cpu")
    assert (code, err) == (cli.OK, "") and "3 clips" in out
    assert content(tmp_path / "one") == content(tmp_path / "two") and len(list((tmp_path / "two" / ".encodec_fast").glob("ledger-*"))) == 2


def test_devices_run_on_the_backend_of_the_environment(capsys, corpus, model_folder, tmp_path, monkeypatch):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    monkeypatch.setenv("ENCODEC_FAST_BACKEND", "torch")
    code, _, err = tokenize(capsys, corpus, tmp_path / "codes", model_folder, "--devices", "cpu,cpu")
    assert (code, err) == (cli.OK, "")
    assert read_info(tmp_path / "codes").backend == "torch"


def test_a_share_is_verified_and_told(capsys, corpus, model_folder, tmp_path):
    code, out, _ = tokenize(capsys, corpus, tmp_path / "codes", model_folder, "--verify", "1")
    assert code == cli.OK and "verified 3 clips" in out and out.rstrip().count("the same codec") == 1


def test_the_report_shows_four_pictures_the_failures_and_no_link(capsys, corpus, model_folder, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("encodec_fast.dataset.writing.PACE_SECONDS", 0.0)
    (corpus / "<b>.wav").write_bytes(b"")
    tokenize(capsys, corpus, tmp_path / "codes", model_folder, "--batch-seconds", "0.1")
    page = (tmp_path / "codes" / "_report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "http" not in page
    assert "&lt;b&gt;.wav" in page and "<b>.wav" not in page


def test_the_report_lets_clips_be_heard_at_three_bandwidths(capsys, corpus, model_folder, tmp_path):
    (corpus / "broken.wav").write_bytes(b"")
    tokenize(capsys, corpus, tmp_path / "codes", model_folder, "--listen", "2")
    page = (tmp_path / "codes" / "_report.html").read_text()
    found = re.findall(r'src="data:audio/flac;base64,([^"]+)"></audio><figcaption>([^<]+)', page)
    assert [name for _, name in found] == 2 * ["original", "1.2 kbps", "2.4 kbps", "4.8 kbps"]
    sounds = [soundfile.read(io.BytesIO(base64.b64decode(data)))[0] for data, _ in found]
    assert len({len(sound) for sound in sounds[:4]}) == 1 and not np.array_equal(sounds[0], sounds[3])
    np.testing.assert_allclose(sounds[0], soundfile.read(corpus / "a.wav")[0], atol=1e-4)


def test_without_matplotlib_the_extra_is_named_and_all_else_is_done(capsys, corpus, model_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, _ = tokenize(capsys, corpus, tmp_path / "codes", model_folder)
    assert code == cli.OK and "_report.html" in out
    page = (tmp_path / "codes" / "_report.html").read_text()
    assert "pip install &#39;encodec-fast[report]&#39;" in page or "pip install 'encodec-fast[report]'" in page
    assert "data:image" not in page and "<h2>Codebooks</h2>" in page and "perplexity" in page and "Lengths" in page


def test_progress_is_one_line_with_everything_in_it():
    summary = Summary(clips=3, seconds=7200.0, wall_seconds=100.0, busy=90.0, reading=2000.0, planned_clips=8, planned_seconds=14400.0)
    expected = "3/8 clips, 2.00/4.00 h, 72.0 x real time (encoder 80, readers 2000), 0 errors, about 1 min 40 s left"
    assert progress_line(summary) == expected
