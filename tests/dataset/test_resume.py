"""Runs that end at any moment: killed, interrupted, without space. What they leave is whole, and the next run ends as one run would."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from encodec_fast.dataset.failures import read_failures
from encodec_fast.dataset.ledger import FOLDER, Ledger, LedgerError
from encodec_fast.formats import FORMATS
from encodec_fast.formats.folder import shard_paths
from support.corpora import content, put_corpus, small_model, tokenize

# No process of these tests works for longer.
LONGEST_S = 300
# Small shards and batches: a kill falls between any two steps
STEPS = {"batch_seconds": 1.5, "rows_per_shard": 3, "embeddings": True}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes by signals")


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = put_corpus(tmp_path_factory.mktemp("many") / "corpus", [random.Random(index).randrange(50, 3000) for index in range(600)])
    (folder / "broken.wav").write_bytes(b"RIFF and nothing")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(model, corpus, tmp_path_factory):
    """(rows, failures) of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("uninterrupted")
    tokenize(model, [corpus], out, **STEPS)
    return content(out), read_failures(out)


@contextlib.contextmanager
def in_a_process(call):
    """The id of a process of its own group that runs call(); forked, so that torch need not be imported again."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        # anew: a library that has handled it in this process may have made waiting calls go on after it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 1
        try:
            torch.set_num_threads(1)
            call()
            code = 0
        except KeyboardInterrupt:
            code = 130
        except OSError as error:
            code = error.errno
        finally:
            os._exit(code)
    try:
        yield child
    finally:
        with contextlib.suppress(ChildProcessError):
            deadline = time.monotonic() + LONGEST_S
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    raise TimeoutError(f"process {child} did not end in {LONGEST_S} s")
                time.sleep(0.001)


def killed_after(seconds, call, how=signal.SIGKILL):
    """Whether the process running call() was still there to be killed."""
    with in_a_process(call) as child:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                return False
            time.sleep(0.001)
        os.kill(child, how)
        return True


@pytest.mark.parametrize("workers, format, kills_needed", [(0, "parquet", 20), (1, "parquet", 5), (0, "npy", 4), (0, "webdataset", 4)])
def test_kill_9_at_random_moments_ends_with_the_rows_of_an_undisturbed_run(
    model, corpus, uninterrupted, tmp_path, workers, format, kills_needed
):
    moments = random.Random(f"{workers} {format}")
    kills = runs = shards_at_kills = 0
    # processes that read headers, and clips, take about a second to start
    longest = 3.0 if workers else 1.6
    while kills < kills_needed or not shards_at_kills:
        out = tmp_path / str(runs)
        killed = killed_after(
            moments.uniform(0.02, longest), lambda out=out: tokenize(model, [corpus], out, workers=workers, format=format, **STEPS)
        )
        kills, runs = kills + killed, runs + (not killed)
        shards_at_kills += killed and len(shard_paths(out))
        # on a machine so busy that a kill comes before the first shard, the moments move apart
        longest *= 1.0 if shards_at_kills else 1.2
    for out in tmp_path.iterdir():
        tokenize(model, [corpus], out, format=format, **STEPS)
        assert (content(out), read_failures(out)) == uninterrupted
        assert not [*out.glob("*.tmp"), *out.glob(".*.tmp")]


def reading_processes(parent):
    """The ids of the reading processes of this parent; None: of all."""
    # ww: not cut at the terminal's width, before the module's name
    found = subprocess.run(["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in found.splitlines() if "corpus.worker" in line]
    return {int(pid) for pid, ppid, _ in lines if parent in (None, int(ppid))}


def test_a_killed_process_leaves_no_reading_process_behind(model, corpus, tmp_path):
    with in_a_process(lambda: tokenize(model, [corpus], tmp_path, workers=2, batch_seconds=0.1, rows_per_shard=1)) as child:
        deadline = time.monotonic() + LONGEST_S
        while not (shard_paths(tmp_path) and (ours := reading_processes(child))) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
    assert ours
    deadline = time.monotonic() + 20
    while reading_processes(None) & ours and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not reading_processes(None) & ours


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_another_process_is_kept_out_until_the_first_one_ends(tmp_path, kill):
    holds, held = os.pipe()

    def hold():
        with Ledger(tmp_path).writing():
            os.write(held, b"x")
            while True:  # not one long wait, which a signal may leave asleep
                time.sleep(0.05)

    with in_a_process(hold) as child:
        os.read(holds, 1)
        with pytest.raises(LedgerError, match=f"is being written by process {child} on"):
            with Ledger(tmp_path).writing():
                pass
        os.kill(child, kill)
    with Ledger(tmp_path).writing():
        pass


def test_processes_that_begin_together_plan_once_and_share_the_work(model, corpus, uninterrupted, tmp_path):
    with contextlib.ExitStack() as stack:
        for index in range(3):
            stack.enter_context(in_a_process(lambda index=index: tokenize(model, [corpus], tmp_path, index=index, count=3, **STEPS)))
    assert len(list((tmp_path / FOLDER).glob("schedule-*.arrow"))) == 1
    assert (content(tmp_path), read_failures(tmp_path)) == uninterrupted


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("mount") is None, reason="needs Linux's mount")
@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_stops_the_run_and_more_space_lets_it_end_as_if_nothing_had_been(model, corpus, uninterrupted, small_disk, format):
    out = small_disk / "codes"
    with pytest.raises(OSError, match="No space left"):
        tokenize(model, [corpus], out, format=format, **STEPS)
    before = content(out)
    assert 0 < len(before) < len(uninterrupted[0])
    with pytest.raises(OSError, match="No space left"):
        tokenize(model, [corpus], out, format=format, **STEPS)
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    tokenize(model, [corpus], out, format=format, **STEPS)
    assert (content(out), read_failures(out)) == uninterrupted
