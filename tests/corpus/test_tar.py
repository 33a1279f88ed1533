"""Damaged, cut and odd tars: what is lost is named."""

import io
import random
import tarfile

import pytest

from encodec_fast.corpus.tar import BLOCK, Damage, Member, tar_members

NAMES = ["a.wav", "folder/b.wav", f"{'c' * 60}/{'c' * 60}.wav", "é.wav"]


def packed(format, *extra):
    """A tar of a few files, and (TarInfo, data) besides."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for index, name in enumerate(NAMES):
            member = tarfile.TarInfo(name)
            member.size = 700 + index
            tar.addfile(member, io.BytesIO(bytes([index + 1]) * member.size))
        for member in extra:
            tar.addfile(member)
    return file.getvalue()


def read(data):
    """({name: data} of what can be read, the reasons of what can't)."""
    clips, reasons = {}, []
    for found in tar_members(io.BytesIO(data)):
        if isinstance(found, Member) and found.problem is None:
            clips[found.name] = data[found.offset : found.offset + found.size]
        else:
            reasons.append(found.reason if isinstance(found, Damage) else found.problem)
    return clips, reasons


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def tars():
    return [packed(format) for format in FORMATS]


def link(name, target, kind=tarfile.SYMTYPE):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def headers(data):
    """Offsets of the blocks with the magic of a header."""
    return [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]


def with_field(data, at, first, value):
    """The tar with a field of a header replaced, its checksum right again."""
    block = bytearray(data[at : at + BLOCK])
    block[first : first + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:at] + bytes(block) + data[at + BLOCK :]


@pytest.mark.parametrize("data", tars(), ids=["ustar", "gnu", "pax"])
def test_every_format_gives_its_members(data):
    clips, reasons = read(data)
    assert not reasons and list(clips) == NAMES
    assert [len(clip) for clip in clips.values()] == [700, 701, 702, 703]


@pytest.mark.parametrize("data", tars(), ids=["ustar", "gnu", "pax"])
def test_a_flipped_bit_in_any_byte_of_any_header_is_named_and_costs_one_member_at_most(data):
    truth, _ = read(data)
    rng = random.Random(0)
    for header in headers(data):
        for at in range(header, header + BLOCK):
            damaged = bytearray(data)
            damaged[at] ^= 1 << rng.randrange(8)
            clips, reasons = read(bytes(damaged))
            assert clips == truth or reasons, at
            right = [name for name, clip in truth.items() if clip in clips.values()]
            assert len(right) >= len(truth) - 1, at
            assert set(clips.values()) <= set(truth.values()), at


@pytest.mark.parametrize("data", tars(), ids=["ustar", "gnu", "pax"])
def test_a_cut_at_any_byte_before_the_end_mark_is_named(data):
    truth, _ = read(data)
    content = len(data.rstrip(b"\0"))
    end = -(-content // BLOCK) * BLOCK
    for at in range(end + 2 * BLOCK + 1):
        clips, reasons = read(data[:at])
        assert reasons or (clips == truth and at >= end + BLOCK), at
        assert clips.items() <= truth.items(), at


def test_members_behind_missing_bytes_are_found_wherever_they_begin():
    data = packed(tarfile.USTAR_FORMAT)
    clips, reasons = read(data[:100] + data[177:])
    assert reasons and list(clips) == NAMES[1:]


def test_a_header_of_zeros_is_named_and_later_members_are_found():
    data = packed(tarfile.USTAR_FORMAT)
    at = headers(data)[1]
    for zeros in (BLOCK, 2 * BLOCK):
        clips, reasons = read(data[:at] + bytes(zeros) + data[at + zeros :])
        assert reasons and set(clips) == {*NAMES} - {NAMES[1]}


def test_an_archive_behind_another_one_is_named_and_read():
    data = packed(tarfile.USTAR_FORMAT)
    second = data.replace(b"a.wav", b"z.wav", 1)
    clips, reasons = read(data + with_field(second, 0, 0, b"z.wav"))
    assert "z.wav" in clips and reasons == ["something stands behind the end of the archive"]


@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\x80\0\0" + b"\xff" * 9, b"77777777777\0", b"-0000000001\0", b"0000000_001\0"]
)
def test_a_size_that_is_a_lie_is_named_and_later_members_are_found(size):
    data = packed(tarfile.USTAR_FORMAT)
    clips, reasons = read(with_field(data, 0, 124, size))
    assert reasons and list(clips) == NAMES[1:]


def test_two_sizes_that_disagree_are_named():
    member = tarfile.TarInfo("x.wav")
    member.pax_headers = {"size": "1024"}
    data = packed(tarfile.PAX_FORMAT, member)
    clips, reasons = read(with_field(data, headers(data)[-1], 124, b"00000000777\0"))
    assert list(clips) == NAMES and "two headers announce 1024 and 511 bytes" in reasons[0]


@pytest.mark.parametrize("format", FORMATS)
def test_links_are_what_they_lead_to(format):
    links = [link("folder/s.wav", "b.wav"), link("h.wav", "a.wav", tarfile.LNKTYPE), link("folder/t.wav", "../h.wav")]
    clips, reasons = read(packed(format, *links))
    assert not reasons
    assert clips["folder/s.wav"] == clips["folder/b.wav"] and clips["h.wav"] == clips["folder/t.wav"] == clips["a.wav"]


def test_links_to_elsewhere_and_round_in_circles_are_named():
    links = [link("s.wav", "/etc/passwd"), link("x.wav", "y.wav"), link("y.wav", "x.wav"), link("h.wav", "gone", tarfile.LNKTYPE)]
    clips, reasons = read(packed(tarfile.PAX_FORMAT, *links))
    assert list(clips) == NAMES and reasons == ["a link to what is not in this archive."] * 4


@pytest.mark.parametrize(
    "headers", [{"GNU.sparse.major": "1", "GNU.sparse.name": "x.wav"}, {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}]
)
def test_a_sparse_member_is_named(headers):
    member = tarfile.TarInfo("x.wav")
    member.pax_headers = headers
    clips, reasons = read(packed(tarfile.PAX_FORMAT, member))
    assert list(clips) == NAMES and len(reasons) == 1 and "sparse" in reasons[0]


def test_a_sparse_member_of_old_gnu_and_a_device_are_named():
    clips, reasons = read(packed(tarfile.GNU_FORMAT, link("f.wav", "", tarfile.FIFOTYPE), link("s.wav", "", tarfile.GNUTYPE_SPARSE)))
    assert list(clips) == NAMES and "device" in reasons[0] and "sparse" in reasons[1]


@pytest.mark.parametrize("digits", [b"xxx", b"999", b"000", b" -1"])
def test_a_damaged_pax_record_is_named_and_later_members_are_found(digits):
    data = packed(tarfile.PAX_FORMAT)
    at = data.index(b" path=")
    clips, reasons = read(data[: at - 3] + digits + data[at:])
    assert reasons and {"a.wav", "folder/b.wav"} <= set(clips)


def test_any_bytes_end():
    rng = random.Random(1)
    data = packed(tarfile.PAX_FORMAT)
    truth, _ = read(data)
    for _ in range(2000):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        clips, reasons = read(bytes(damaged))
        assert reasons or len(clips) == len(truth)
