"""CRC-32C against its definition, bit by bit."""

import random

import pytest

from encodec_fast.compression.crc32c import crc32c


def by_definition(data, crc=0xFFFFFFFF):
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_check_value_is_that_of_the_catalogue():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("size", [*range(10), 1023, 1024, 1025, 1027, 2500])
def test_it_is_that_of_the_definition_whole_and_in_parts(size):
    data = random.Random(size).randbytes(size)
    assert crc32c(data) == by_definition(data)
    for cut in (0, 1, 3, size // 2, size):
        assert crc32c(data[cut:], crc32c(data[:cut])) == by_definition(data)
