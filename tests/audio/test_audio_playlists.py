"""ffmpeg opens the file that is named and nothing else: no playlist, script or description in it leads to another one."""

import subprocess

import numpy as np
import pytest
import soundfile

from encodec_fast.audio import AudioError, read_audio
from encodec_fast.audio.ffmpeg import FfmpegFile
from support.encoded_files import RATE, encoded, joined, lively, needed_ffmpeg, quicktime_reference

# What each form takes for the way to the secret file
PLAYLISTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\n{folder}/secret.ts\n#EXT-X-ENDLIST\n",
    "HLS with map": '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXT-X-MAP:URI="{folder}/secret.m4a"\n#EXTINF:2,\nsecret.m4a\n#EXT-X-ENDLIST\n',
    "concat": "ffconcat version 1.0\nfile secret.wav\n",
    "concat by its whole name": "ffconcat version 1.0\nfile 'file:{folder}/secret.wav'\n",
    "DASH": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S" '
    'profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet mimeType="audio/mp4"><Representation id="0" '
    'bandwidth="100000"><BaseURL>secret.m4a</BaseURL><SegmentBase/></Representation></AdaptationSet></Period></MPD>',
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "ASX": '<asx version="3.0"><entry><ref href="{folder}/secret.wav"/></entry></asx>',
    "PLS": "[playlist]\nFile1={folder}/secret.wav\nNumberOfEntries=1\nVersion=2\n",
    "M3U": "{folder}/secret.wav\n",
    "SMIL": '<smil><body><audio src="{folder}/secret.wav"/></body></smil>',
    "IMF": '<?xml version="1.0"?><AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"/>',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    needed_ffmpeg()
    folder = tmp_path_factory.mktemp("secret")
    for name in ("secret.wav", "secret.m4a", "secret.ts", "own.m4a"):
        encoded(folder / name, lively(2), RATE)
    return folder


@pytest.mark.parametrize("suffix", [".wav", ".m3u8", ".mpd"])
@pytest.mark.parametrize("playlist", PLAYLISTS.values(), ids=PLAYLISTS)
def test_a_playlist_does_not_lead_to_another_file(folder, playlist, suffix):
    path = joined(folder / f"list{suffix}", playlist.format(folder=folder).encode())
    with pytest.raises(AudioError, match=r"not audio that libsndfile can read .*, nor ffmpeg"):
        read_audio(path, RATE, 1)
    with pytest.raises(AudioError, match="nor ffmpeg"):
        read_audio(path.read_bytes(), RATE, 1)


def test_the_reason_says_that_it_is_a_playlist(folder):
    with pytest.raises(AudioError, match="a playlist, or a format that is not among those of audio; name the files"):
        read_audio(joined(folder / "a.mp3", b"ffconcat version 1.0\nfile secret.wav\n"), RATE, 1)


def test_a_movie_does_not_lead_to_another_file(folder):
    frames = soundfile.info(folder / "secret.wav").frames
    path = quicktime_reference(folder / "movie.mov", folder / "secret.wav", frames)
    follow = ["-v", "quiet", "-enable_drefs", "1", "-use_absolute_path", "1", "-i", path, "-f", "s16le", "-"]
    followed = subprocess.run([needed_ffmpeg(), *follow], stdout=subprocess.PIPE, check=True).stdout
    assert len(followed) == 2 * frames  # it is one that can be followed
    for source in (path, path.read_bytes()):
        with pytest.raises(AudioError, match=r"0\.00 s there"):
            read_audio(source, RATE, 1)


NAMES = [
    "-i.m4a", "-f.m4a", "concat:secret.wav|secret.wav", "img%03d.m4a", "http:x.m4a", "subfile,,start,0,end,0,,:secret.wav", "pipe:0",
    "file:secret.m4a", "data:audio;base64,AAAA", "tee:a.m4a", "lavfi.m4a", "sine=frequency=440.m4a", "a b'c\".m4a", "@list.m4a", "-",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_looks_like_something_else_is_a_name(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    content = (folder / "own.m4a").read_bytes()
    expected = read_audio(folder / "own.m4a", RATE, 1)[0]
    with pytest.raises(AudioError, match="can't be opened"):
        read_audio(name, RATE, 1)
    (folder / name.replace("/", "_")).write_bytes(content)
    assert np.array_equal(read_audio(name, RATE, 1)[0], expected)


def test_only_files_and_plain_containers_are_allowed_on_ffmpeg_s_command_line(tmp_path, monkeypatch):
    commands = []
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    popen = __import__("subprocess").Popen
    monkeypatch.setattr("subprocess.Popen", lambda command, **options: commands.append(command) or popen(command, **options))
    soundfile.write(tmp_path / "a.wav", np.zeros(10), RATE)
    with pytest.raises(ValueError, match="no reason given"):
        FfmpegFile(str(program), tmp_path / "a.wav")
    (command,) = commands
    before_input = command[: command.index("-i")]
    assert before_input[before_input.index("-protocol_whitelist") + 1] == "file"
    allowed = set(before_input[before_input.index("-format_whitelist") + 1].split(","))
    assert not allowed & {
        "hls",
        "applehttp",
        "concat",
        "dash",
        "sdp",
        "rtsp",
        "image2",
        "lavfi",
        "tedcaptions",
        "imf",
        "vapoursynth",
        "avisynth",
    }
    assert command[command.index("-i") + 1] == f"file:{tmp_path / 'a.wav'}"
