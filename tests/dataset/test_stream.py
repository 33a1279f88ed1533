"""CodesDataset: every row once per epoch, however it is shared; stored order, or random orders that differ."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import encodec_fast
from encodec_fast.dataset.stream import CodesDataset
from encodec_fast.formats import FormatError
from encodec_fast.formats.folder import read_ids
from support.rows import row, write


@pytest.fixture
def folder(tmp_path):
    for shard in range(7):
        write(tmp_path, [row(10 * shard + index) for index in range(5)], name=f"part-{shard:08d}")
    return tmp_path


def ids(dataset):
    return [each["id"] for each in dataset]


def test_rows_come_as_tensors_in_stored_order(folder):
    rows = list(encodec_fast.CodesDataset(folder))
    assert [each["id"] for each in rows] == read_ids(folder) == ids(CodesDataset(folder))
    assert rows[0]["audio_codes"].dtype == torch.int64 and rows[0]["audio_scales"] is None
    assert np.array_equal(rows[3]["audio_codes"].numpy(), row(3).codes) and rows[3]["num_samples"] == 24_003


@pytest.mark.parametrize("buffer_size, open_shards", [(1, 1), (4, 2), (1000, 8)])
def test_a_random_order_holds_every_row_once_and_differs_between_epochs_and_seeds(folder, buffer_size, open_shards):
    dataset = CodesDataset(folder, shuffle=True, buffer_size=buffer_size, open_shards=open_shards)
    first, second = ids(dataset), ids(dataset)
    assert sorted(first) == sorted(second) == sorted(read_ids(folder))
    assert first != second and first != read_ids(folder)
    dataset.set_epoch(0)
    assert ids(dataset) == first
    assert ids(CodesDataset(folder, shuffle=True, seed=1, buffer_size=buffer_size, open_shards=open_shards)) != first


@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_and_workers_share_the_rows(folder, shuffle):
    seen = []
    for rank in range(2):
        dataset = CodesDataset(folder, shuffle=shuffle, rank=rank, world_size=2)
        seen += ids(DataLoader(dataset, batch_size=None, num_workers=2))
    assert sorted(seen) == sorted(read_ids(folder))


def test_a_folder_without_codes_is_named(tmp_path):
    with pytest.raises(FormatError, match="no shards in this folder"):
        CodesDataset(tmp_path)
    with pytest.raises(ValueError, match="buffer_size and open_shards are 0 and 8"):
        CodesDataset(tmp_path, buffer_size=0)
