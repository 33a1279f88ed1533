"""Many threads, forks and exits while the engine is at work: nothing crashes, waits for ever or gives other codes."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from encodec_fast import StreamingDecoder, StreamingEncoder, use_backend
from encodec_fast.backends.cpu_backend import CpuBackend
from support.models import audio_like, pair, small_config
from support.venvs import ROOT

pytestmark = pytest.mark.skipif(CpuBackend().unavailable() is not None, reason="the cpu engine is not built")


@pytest.fixture(scope="module")
def model():
    return pair(small_config())[1]


@pytest.mark.parametrize("call", ["push", "flush", "reset", "state_dict", "load_state_dict"])
@pytest.mark.parametrize("kind", [StreamingEncoder, StreamingDecoder])
def test_streams_that_another_thread_is_using_refuse_a_call_and_say_so(model, monkeypatch, kind, call):
    streams, piece = kind(model), torch.zeros(1, 500)
    if kind is StreamingDecoder:
        piece = torch.zeros(4, 3, dtype=torch.int64)
    saved = streams.state_dict()
    inside, leave = threading.Event(), threading.Event()
    network = type(streams._codec.network)
    push = network.push

    def slow(*arguments, **options):
        inside.set()
        assert leave.wait(60)
        return push(*arguments, **options)

    monkeypatch.setattr(network, "push", slow)
    thread = threading.Thread(target=streams.push, args=(piece,))
    thread.start()
    assert inside.wait(60)
    arguments = {"push": (piece,), "load_state_dict": (saved,)}.get(call, ())
    try:
        with pytest.raises(ValueError, match="one StreamingEncoder or StreamingDecoder for each thread"):
            getattr(streams, call)(*arguments)
    finally:
        leave.set()
        thread.join()
    monkeypatch.undo()
    getattr(streams, call)(*arguments)


def run_script(script, *arguments, seconds=120):
    """Exit code and standard output of a program that has tests/ on its path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=seconds, env=environment
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


FOUR_THREADS = """
import sys, threading, torch
from encodec_fast.backends.cpu_backend import CpuBackend
from encodec_fast.kernels.cpu.library import EngineError
from encodec_fast.plan.reader import read_plan
from support.models import pair, small_config

model = pair(small_config())[1]
program = CpuBackend().prepare(read_plan(model).encoder.stages)
state, counts = program.open(), {"done": 0, "refused": 0}

def work():
    for _ in range(300):
        try:
            program.push([torch.randn(1, 997)], [state], [False])
            counts["done"] += 1
        except (ValueError, EngineError) as error:
            assert "another call" in str(error) or "as long as encodec_ready says" in str(error), error
            counts["refused"] += 1

threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(counts["done"] > 0, counts["done"] + counts["refused"])
"""


def test_four_threads_on_one_state_of_the_engine_are_refused_and_never_crash():
    assert run_script(FOUR_THREADS) == "True 1200\n"


FORKS = """
import os, sys, threading, time, torch
from support.models import pair, small_config

torch.set_num_threads(int(sys.argv[1]))
model, x, stop = pair(small_config())[1], torch.randn(1, 1, 3000), False
with torch.no_grad():
    wanted = model.encode(x).audio_codes

def work():
    with torch.no_grad():
        while not stop:
            if sys.argv[1] == "1":
                # every call then reads the plan anew, under the cache's lock; with two threads torch's own products, which
                # that takes, don't survive a fork
                model.encoder.layers[0].conv.bias.add_(0.0)
            model.encode(x)

threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
[thread.start() for thread in threads]
ended = []
for number in range(int(sys.argv[2])):
    time.sleep(0.0007 * (number % 13))
    child = os.fork()
    if child == 0:
        with torch.no_grad():
            os._exit(0 if torch.equal(model.encode(x).audio_codes, wanted) else 3)
    deadline = time.monotonic() + 20
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.002)
    if found == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    ended.append("waits for ever" if found == (0, 0) else os.waitstatus_to_exitcode(found[1]))
stop = True
[thread.join() for thread in threads]
print({how: ended.count(how) for how in ended})
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_forked_while_threads_encode_gives_their_codes(threads):
    assert run_script(FORKS, threads, 25) == "{0: 25}\n"


# In the engine alone: torch's own operations abort where a daemon thread is ended in them.
EXIT = """
import os, sys, threading, time, torch
from encodec_fast.backends.cpu_backend import CpuBackend, _Call
from encodec_fast.plan.reader import read_plan
from support.models import pair, small_config

torch.set_num_threads(2)
stages, x = read_plan(pair(small_config())[1]).encoder.stages, torch.randn(1, 20_000)
# a child for each delay, which ends as this program would: at its last line
delay = next((delay for delay in map(float, sys.argv[1:]) if os.fork() == 0), None)
if delay is None:
    sys.exit(any(os.wait()[1] for _ in sys.argv[1:]))
program, ready = CpuBackend().prepare(stages), threading.Semaphore(0)

def work():
    (length,) = _Call(program.library, [x], [program.open()], [True]).ready()
    y = torch.empty(program.out_channels, length)
    ready.release()
    while True:
        _Call(program.library, [x], [program.open()], [True]).push([y])

for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
# each thread is past its one operation of torch
assert all(ready.acquire(timeout=60) for _ in range(3))
time.sleep(delay)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_interpreter_ends_while_daemon_threads_are_in_the_engine():
    assert run_script(EXIT, 0.0, 0.01, 0.02, 0.03) == ""


def test_a_stream_in_each_thread_gives_the_codes_of_the_whole_clip(model):
    x = audio_like(1, 1, 6000, 0)
    with torch.no_grad(), use_backend("cpu"):
        wanted = model.encode(x).audio_codes[0, 0]
    found = []

    def work():
        with use_backend("cpu"):
            encoder = StreamingEncoder(model)
            pieces = [codes for start in range(0, 6000, 700) for codes in encoder.push(x[0, :, start : start + 700])]
            found.append(torch.cat([*pieces, *encoder.flush()], -1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(torch.equal(codes, wanted) for codes in found)
