"""The processes that read clips ahead of the encoder: their order, their bounds and their ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encodec_fast import processes
from encodec_fast.audio import AudioError
from encodec_fast.corpus import reader as reader_module
from encodec_fast.corpus import sources
from encodec_fast.corpus.reader import LongClip, Reader
from encodec_fast.corpus.reading_process import TABLE_TIMEOUT
from encodec_fast.corpus.sources import find_tasks, scan_seconds
from encodec_fast.corpus.tables import TableError
from encodec_fast.corpus.tasks import Clip, Task
from support.corpora import RATE, THREE, by_processes, put_clip, put_table, put_three, samples_of

KILLED = "reading it ended the reading process (signal 9)."


@pytest.fixture
def folder(tmp_path):
    return put_three(tmp_path / "audio")


@pytest.mark.parametrize("prefetch_seconds", [0.001, 1000.0])
def test_clips_come_in_the_order_of_their_tasks(folder, prefetch_seconds):
    tasks = find_tasks([folder]) * 10
    with by_processes(prefetch_seconds=prefetch_seconds) as reader:
        clips = list(reader.read(tasks))
        assert [clip.task for clip in clips] == tasks
        assert all(np.array_equal(clip.samples, samples_of(folder, clip.task.id[0])) for clip in clips)
        assert reader.rates.audio_seconds == pytest.approx(10 * sum(THREE.values()) / RATE) and reader.rates.busy_seconds > 0


def test_a_long_clip_comes_in_blocks_between_others(folder):
    tasks = scan_seconds(find_tasks([folder]))
    tasks = [tasks[0], tasks[1], tasks[2]] * 3
    with by_processes(long_seconds=1.5, block_seconds=0.2) as reader:
        for clip in reader.read(tasks):
            blocks = list(clip) if isinstance(clip, LongClip) else [clip.samples]
            assert (len(blocks) > 5) == isinstance(clip, LongClip) == (clip.task.id == "b.wav")
            assert np.array_equal(np.concatenate(blocks, 1), samples_of(folder, clip.task.id[0]))


def test_a_long_clip_that_turns_out_damaged_raises_where_it_is_read(tmp_path):
    path = put_clip(tmp_path / "long.wav", 24_000)
    (task,) = scan_seconds(find_tasks([path]))
    samples, _ = soundfile.read(path, dtype="float32")
    samples[20_000] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    with by_processes(long_seconds=1.0, block_seconds=1.0) as reader:
        clips = reader.read([task])
        with pytest.raises(AudioError, match="1 samples are NaN or infinite"):
            list(next(clips))
        clips = reader.read(scan_seconds(find_tasks([put_clip(path, 24_000)])))
        clip = next(clips)
        clips.close()
        with pytest.raises(RuntimeError, match="before this clip was read to its end"):
            list(clip)


@pytest.mark.parametrize("seconds", [1.0, 0.0])
def test_the_reader_stops_reading_when_enough_waits_also_where_no_length_is_known(folder, seconds):
    taken = []

    def tasks():
        for index in range(1000):
            taken.append(index)
            yield Task(str(index), str(folder / "a.wav"), seconds=seconds)

    with by_processes(prefetch_seconds=3.0) as reader:
        clips = reader.read(tasks())
        for _ in range(10):
            next(clips)
        assert len(taken) <= 10 + 5
        clips.close()


def test_closing_ends_threads_and_processes_also_in_a_long_clip(folder):
    reader = by_processes(long_seconds=0.1, block_seconds=0.01)
    clips = reader.read(scan_seconds(find_tasks([folder])))
    next(iter(next(clips)))
    clips.close()
    processes = [process._popen for process in reader._processes]
    reader.close()
    assert all(process.poll() is not None for process in processes)
    assert not [thread for thread in threading.enumerate() if thread.name == reader_module.THREAD_NAME]


@pytest.fixture
def workers_that(tmp_path, monkeypatch):
    """Has the reading processes run an expression where they would read b.wav; or where a function of a module is given that path."""

    def install(expression, module="worker", function="read", path="request.task.path"):
        (tmp_path / "other_worker.py").write_text(
            f"import os, time, encodec_fast.corpus.worker as worker, encodec_fast.corpus.{module} as module\n"
            f"function, main = module.{function}, worker.main\n"
            "def instead(request, *more):\n"
            f"    return {expression} if os.path.basename({path}).startswith('b.') else function(request, *more)\n"
            f"module.{function} = instead\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        start = processes.start
        monkeypatch.setattr(processes, "start", lambda module, environment: start("other_worker", environment))

    return install


def test_a_file_that_kills_the_reading_process_costs_itself_only(folder, workers_that):
    # as a decoder that crashes would
    workers_that("os.kill(os.getpid(), 9)")
    with Reader(RATE, 1, workers=1) as reader:
        clips = list(reader.read(find_tasks([folder])))
    assert [isinstance(clip, Clip) for clip in clips] == [True, False, True]
    assert clips[1].reason == KILLED


def test_a_header_that_kills_the_reading_process_costs_itself_only(folder, workers_that):
    workers_that("os.kill(os.getpid(), 9)", "scanning", "_scanned", "request.path")
    scanned = scan_seconds(find_tasks([folder]))
    assert [task.problem for task in scanned] == [None, KILLED, None]
    assert all(task.seconds == THREE[task.id[0]] / RATE for task in scanned if task.problem is None)


def test_a_header_that_takes_too_long_costs_itself_only(folder, workers_that):
    workers_that("time.sleep(60)", "scanning", "_scanned", "request.path")
    scanned = scan_seconds(find_tasks([folder]), timeout=1.0)
    assert [task.problem for task in scanned] == [None, "reading it, or a block of it, took longer than 1 s (clip_timeout).", None]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_an_interrupt_waits_for_no_header(folder, workers_that):
    workers_that("time.sleep(60)", "scanning", "_scanned", "request.path")

    start = time.monotonic()
    # to the process, as a terminal does
    threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        scan_seconds(find_tasks([folder]))
    assert time.monotonic() - start < 30


def test_a_table_that_kills_the_reading_process_costs_itself_only(folder, tmp_path, workers_that):
    paths = [put_table(tmp_path / name, folder) for name in ("a.parquet", "b.parquet", "c.parquet")]
    named = find_tasks(paths)
    workers_that("os.kill(os.getpid(), 9)", "tables", "_open_table", "request")
    found = {task.id: task.problem for task in find_tasks(paths)}
    assert [id for id, problem in found.items() if problem is None] == [f"{name}.parquet#{row}" for name in "ac" for row in range(3)]
    assert found["b.parquet"] == f"not a table that can be read ({KILLED[:-1]})."
    with pytest.raises(TableError, match="ended the reading process"):
        find_tasks([paths[1]])
    # and where its rows are read
    with by_processes() as reader:
        clips = {clip.task.id: clip for clip in reader.read(named)}
    assert {id for id, clip in clips.items() if not isinstance(clip, Clip)} == {f"b.parquet#{row}" for row in range(3)}
    assert clips["b.parquet#0"].reason == KILLED


@pytest.mark.parametrize("first", ["clips", "reader"])
def test_closing_does_not_wait_for_a_file_that_never_answers(folder, workers_that, first):
    # as a URL that stalls would; not for ever, so that a reader that waits for it fails here, and later
    workers_that("time.sleep(60)")
    reader = by_processes()
    clips = reader.read(find_tasks([folder]))
    next(clips)
    start = time.monotonic()
    {"clips": clips, "reader": reader}[first].close()
    assert time.monotonic() - start < 30
    assert not [thread for thread in threading.enumerate() if thread.name == reader_module.THREAD_NAME]
    if first == "clips":
        # another reading has processes that answer
        assert [clip.task.id for clip in reader.read(find_tasks([folder / "a.wav", folder / "c.wav"]))] == ["a.wav", "c.wav"]
    else:
        with pytest.raises(RuntimeError, match="the reader was closed"):
            list(clips)
    processes = [process._popen for process in reader._processes]
    reader.close()
    assert all(process.poll() is not None for process in processes)


def test_closing_does_not_wait_for_a_table_that_never_answers(folder, tmp_path, workers_that):
    tasks = find_tasks([put_table(tmp_path / "b.parquet", folder, names=("a", "b", "c") * 4)])
    workers_that("time.sleep(60)", "tables", "_open_table", "request")
    reader = Reader(RATE, 1, workers=4)
    clips = reader.read(tasks)
    threading.Timer(2.0, reader.close).start()
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="the reader was closed"):
        list(clips)
    reader.close()
    assert time.monotonic() - start < 30
    assert not [thread for thread in threading.enumerate() if thread.name == reader_module.THREAD_NAME]


@pytest.mark.skipif(os.name != "posix", reason="kills the parent by a signal")
def test_a_reading_process_ends_with_its_parent_also_in_the_midst_of_a_file(folder, tmp_path, workers_that):
    busy = tmp_path / "busy"
    workers_that(f"open({str(busy)!r}, 'w').close() or time.sleep(600)", "scanning", "_scanned", "request.path")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from encodec_fast import processes\n"
        "start = processes.start\n"
        "def noted(module, environment):\n"
        "    child = start('other_worker', environment)\n"
        "    print(child.pid, flush=True)\n"
        "    return child\n"
        "processes.start = noted\n"
        "from encodec_fast.corpus.sources import find_tasks, scan_seconds\n"
        "scan_seconds(find_tasks([sys.argv[2]]))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(folder)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    deadline = time.monotonic() + 60
    while not busy.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    assert busy.exists()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.parametrize("timeout", [1e300, float("inf")])
def test_a_time_limit_may_be_as_long_as_one_likes(folder, timeout):
    assert [task.problem for task in scan_seconds(find_tasks([folder]), timeout=timeout)] == [None] * 3


def test_an_error_of_a_library_costs_its_own_clip_and_no_process(folder, workers_that):
    workers_that("(_ for _ in ()).throw(EOFError('its end'))")
    with Reader(RATE, 1, workers=1) as reader:
        process = reader._processes[0]._popen
        clips = list(reader.read(find_tasks([folder])))
        assert clips[1].reason == "the file can't be read (EOFError: its end)." and reader._processes[0]._popen is process
    assert [isinstance(clip, Clip) for clip in clips] == [True, False, True]


def test_an_error_in_the_tasks_is_raised_where_the_reader_is_iterated(folder):
    def tasks():
        yield Task("a", str(folder / "a.wav"))
        raise ZeroDivisionError

    with by_processes() as reader:
        with pytest.raises(ZeroDivisionError):
            list(reader.read(tasks()))


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_is_left_to_the_parent(folder):
    with Reader(RATE, 1, workers=1) as reader:
        clips = reader.read(find_tasks([folder]))
        first = next(clips)
        reader._processes[0]._popen.send_signal(signal.SIGINT)
        assert [first, *clips][2].task.id == "c.wav"


def test_a_row_has_the_time_of_its_row_group():
    seen = []

    class Process:
        given_up = False

        def ask(self, request):
            seen.append(request.timeout)
            yield from request.tasks

    for task in (Task("a", "a.wav"), Task("a", "t.parquet", row=0)):
        assert sources._scan_part(Process(), [task], "audio", 1, 5.0) == [task]
    assert seen == [5.0, TABLE_TIMEOUT]
