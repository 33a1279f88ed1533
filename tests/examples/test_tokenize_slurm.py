"""examples/tokenize_slurm.sh as SLURM runs it: two ranks of a step, by an `srun` that stands in for SLURM's."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from encodec_fast.formats.folder import read_ids
from support.corpora import put_clip, put_three, small_model
from support.venvs import ROOT

SCRIPT = ROOT / "examples" / "tokenize_slurm.sh"
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")

# Starts its command as so many tasks at once, each with what SLURM tells a task, and returns the highest exit code, as srun does.
SRUN = """#!/bin/bash
[[ $1 == --kill-on-bad-exit=0 ]] || { echo "srun: unknown option $1" >&2; exit 9; }
shift
echo "$SRUN_CPUS_PER_TASK cores a task: ${@:2}" >> "$SRUN_LOG"
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_STEP_NUM_TASKS=$SLURM_NTASKS "$@" &
    tasks+=($!)
done
highest=0
for task in "${tasks[@]}"; do
    wait "$task"
    code=$?
    ((code > highest)) && highest=$code
done
exit $highest
"""


@pytest.fixture
def submit(tmp_path):
    """Runs the script's body in a folder of its own, with an environment of SLURM's."""
    programs = tmp_path / "programs"
    programs.mkdir()
    put_program(programs / "srun", SRUN)
    put_program(programs / "encodec-fast", f'#!/bin/bash\nexec "{sys.executable}" -m encodec_fast "$@"\n')
    # SLURM runs a copy of the script, so nothing beside it can be found
    copied = shutil.copy(SCRIPT, tmp_path / "slurm_script")
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    own |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "SRUN_LOG": str(tmp_path / "srun.log"), "PYTHONSAFEPATH": "1"}

    def run(*arguments, **slurm):
        command = ["bash", copied, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env={**own, **slurm}, capture_output=True, text=True, timeout=300)

    return run


def put_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_two_ranks_share_a_folder_and_a_job_that_is_submitted_again_does_the_rest(submit, tmp_path):
    small_model().save_pretrained(tmp_path / "model")
    clips, codes = put_three(tmp_path / "clips"), tmp_path / "codes"
    (clips / "d.wav").write_bytes(b"no audio")
    # each clip is a batch of its own, so that both ranks have some
    job = ["clips", "codes", "--model", "model", "--bandwidth", 2.4, "--batch-seconds", 0.5]
    done = submit(*job, SLURM_NTASKS="2", SLURM_CPUS_PER_TASK="2")
    # a clip that failed, in one rank, ends neither
    assert done.returncode == 1 and "errors.jsonl" in done.stdout, done.stdout + done.stderr
    assert sorted(read_ids(codes)) == ["a.wav", "b.wav", "c.wav"]
    # of both writers
    assert len(list(codes.glob("part-*.parquet"))) == 2
    assert re.search(r"audio +3 clips", done.stdout), done.stdout

    put_clip(clips / "d.wav", 2400)
    array = {
        "SLURM_NTASKS": "1",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_ARRAY_TASK_MIN": "3",
        "SLURM_ARRAY_TASK_COUNT": "1",
    }
    done = submit(*job, "--retry-failed", **array)
    assert done.returncode == 0 and "this job's share is done" in done.stdout, done.stdout + done.stderr
    assert sorted(read_ids(codes)) == ["a.wav", "b.wav", "c.wav", "d.wav"]
    command = "2 cores a task: tokenize clips --out codes --no-report --model model --bandwidth 2.4 --batch-seconds 0.5"
    assert (tmp_path / "srun.log").read_text().splitlines() == [command, f"{command} --retry-failed"]


@pytest.mark.parametrize(
    "arguments, slurm, message",
    [
        ([], {}, "usage: sbatch"),
        (["clips", "codes"], {"PATH": "/usr/bin:/bin"}, "activate its environment before sbatch"),
    ],
)
def test_what_can_not_work_is_said_before_a_task_starts(submit, tmp_path, arguments, slurm, message):
    done = submit(*arguments, **slurm)
    assert done.returncode == 2 and message in done.stderr and not (tmp_path / "srun.log").exists()


def test_all_options_of_sbatch_stand_before_the_first_command():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    lines = SCRIPT.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert [number for number, line in enumerate(lines) if line.startswith("#SBATCH")] and not any(
        "#SBATCH" in line for line in lines[first:]
    )
