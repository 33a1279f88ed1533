"""The processes of `tokenize --devices`: how they end, and how their parent learns why."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from encodec_fast import cli, processes
from encodec_fast.dataset.devices import DeviceError, _portable, run_on_devices
from encodec_fast.dataset.ledger import Ledger, LedgerError
from encodec_fast.formats.folder import read_ids
from encodec_fast.serving.request import BackendError
from support.corpora import BANDWIDTH, put_corpus, small_model

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")

CLIPS = 400


@pytest.fixture
def processes_that(tmp_path, monkeypatch):
    """Has the devices' processes do `work(job, tell)` of this text; gives the function that starts one."""

    def install(text, *, finishes=True):
        begin = "    finish = devices.FinishOnSigterm()\n" if finishes else ""
        (tmp_path / "other_device.py").write_text(
            "import os, time, encodec_fast.dataset.devices as devices\n"
            f"def work(job, tell):\n{begin}{text}\n"
            "devices.work = work\n"
            "main = devices.main\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        start = processes.start
        monkeypatch.setattr(processes, "start", lambda module, environment: start("other_device", environment))
        return processes.start

    return install


def job(**changes):
    return SimpleNamespace(cores=None, threads=1, device="cpu", **changes)


@contextmanager
def at_work(start, message):
    """A process that was given its job and has told this message."""
    with start("", {}) as process:
        pickle.dump(job(), process.stdin)
        process.stdin.flush()
        assert pickle.load(process.stdout) == message
        yield process


def test_ctrl_c_is_the_parent_s_and_what_asks_for_the_end_is_heard_once(tmp_path, processes_that):
    finish = tmp_path / "finish"
    start = processes_that(
        "    try:\n"
        "        tell('at work')\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        tell('asked to end')\n"
        f"        while not os.path.exists({str(finish)!r}):\n"
        "            time.sleep(0.01)\n"
        "        tell('shard finished')"
    )
    with at_work(start, "at work") as process:
        process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert pickle.load(process.stdout) == "asked to end"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        finish.touch()
        assert pickle.load(process.stdout) == "shard finished"
        assert process.wait() == cli.INTERRUPTED


def test_an_end_that_was_lost_is_heard_at_the_next_batch(processes_that):
    start = processes_that(
        "    try:\n"
        "        tell('at work')\n"
        "        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        tell('lost')\n"
        "    finish.check()\n"
        "    tell('next batch')"
    )
    with at_work(start, "at work") as process:
        process.stdin.close()
        assert pickle.load(process.stdout) == "lost"
        assert process.wait() == cli.INTERRUPTED and not process.stdout.read()


def test_before_there_is_anything_to_finish_the_end_is_at_once(processes_that):
    start = processes_that("    tell('loading')\n    time.sleep(60)", finishes=False)
    with at_work(start, "loading") as process:
        process.stdin.close()
        assert process.wait() == -signal.SIGTERM


ERRORS = [
    (LedgerError("codes is being written by process 7"), LedgerError, "codes is being written by process 7"),
    (OSError(errno.ENOSPC, "No space left on device", "codes/x"), OSError, "[Errno 28] No space left on device: 'codes/x'"),
    (OSError("the hub is away"), OSError, "the hub is away"),
    (UnicodeDecodeError("utf-8", b"x", 0, 1, "nonsense"), ValueError, "'utf-8' codec can't decode byte 0x78 in position 0: nonsense"),
    (BackendError("no GPU"), BackendError, "no GPU"),
]


@pytest.mark.parametrize("error, kind, message", ERRORS, ids=lambda value: value.__name__ if isinstance(value, type) else None)
def test_an_error_is_in_the_parent_what_it_was_in_the_process(error, kind, message):
    told = pickle.loads(pickle.dumps(_portable(error)))
    assert type(told) is kind and str(told) == message


@pytest.mark.parametrize("error, kind", [("OSError(28, 'No space left', 'x')", OSError), ("ZeroDivisionError()", DeviceError)])
def test_an_error_of_one_process_is_raised_and_ends_the_others(processes_that, error, kind):
    processes_that(f"    if job.fails:\n        raise {error}\n    time.sleep(60)")
    start = time.monotonic()
    with pytest.raises(kind, match="No space left: 'x'" if kind is OSError else "the process on cpu ended with exit code 1"):
        run_on_devices([job(fails=True), job(fails=False)])
    assert time.monotonic() - start < 50


# The command


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small_model().save_pretrained(folder)
    return folder


def command(corpus, codes, model_folder):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    command = [sys.executable, "-m", "encodec_fast", "tokenize", corpus, "--out", codes, "--model", model_folder]
    return [*map(str, command), "-b", str(BANDWIDTH), "--devices", "cpu,cpu", "--batch-seconds", "0.5", "--rows-per-shard", "2"]


def test_sigterm_ends_a_run_that_a_script_started_in_the_background(tmp_path, model_folder):
    corpus, codes = put_corpus(tmp_path / "corpus", [2000] * CLIPS), tmp_path / "codes"
    # a shell without job control has its background processes ignore SIGINT
    process = subprocess.Popen(
        command(corpus, codes, model_folder),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    deadline = time.monotonic() + 120
    while not list(codes.glob("part-*.parquet")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED, err
    assert "interrupted" in err and "Traceback" not in err
    assert 0 < len(read_ids(codes)) < CLIPS and not list(codes.glob(".*.tmp"))


def test_another_writer_is_refused_in_one_line_and_exit_code_2(tmp_path, model_folder):
    corpus, codes = put_corpus(tmp_path / "corpus", [2000] * 4), tmp_path / "codes"
    with Ledger(codes).writing():
        done = subprocess.run(command(corpus, codes, model_folder), capture_output=True, text=True)
    assert done.returncode == cli.WRONG_ARGUMENT and done.stderr.count("\n") == 1, done.stderr
    assert "is being written by process" in done.stderr
