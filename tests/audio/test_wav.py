"""WAV files that can't be written: the system's own error, and no file."""

import errno
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encodec_fast.audio.wav import write_wav


class FullDisk:
    """A file of a disk that holds so many bytes."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self._file.close()

    def write(self, data):
        if self._file.tell() + len(data) > self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)


# in the header, in the samples, and in the last of them
@pytest.mark.parametrize("room", [10, 20_000, 40_000])
def test_a_full_disk_is_its_own_error_and_leaves_no_file(monkeypatch, tmp_path, room):
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(opened(path, mode), room))
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_wav(tmp_path / "a.wav", np.zeros((1, 10_000), np.float32), 24_000, "FLOAT")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_a_disk_with_room_keeps_every_sample(tmp_path):
    samples = np.random.default_rng(0).uniform(-1, 1, (2, 10_000)).astype(np.float32)
    write_wav(tmp_path / "a.wav", samples, 24_000, "FLOAT")
    assert np.array_equal(soundfile.read(tmp_path / "a.wav", dtype="float32")[0].T, samples)
