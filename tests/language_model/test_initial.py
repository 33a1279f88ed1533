"""A language model that begins with the codec's codebooks takes frames for their quantised values, and like entries for alike."""

import pytest
import torch

from encodec_fast.language_model.initial import begin_with_codebooks
from encodec_fast.language_model.model import LanguageModel, LanguageModelConfig

CONFIG = LanguageModelConfig(codebooks=2, codebook_size=16, dim=8, heads=2, layers=1, hidden=16, past_context=5)
WIDTH = 6


def begun(counts=None, books=None):
    torch.manual_seed(0)
    model = LanguageModel(CONFIG)
    books = [torch.randn(16, WIDTH) * size for size in (3.0, 0.5)] if books is None else books
    begin_with_codebooks(model, books, torch.ones(2, 16, dtype=torch.int64) if counts is None else counts)
    return model, books


def test_embeddings_add_up_to_quantised_values():
    model, (first, second) = begun()
    summed = model.emb[0].weight[1 + 4, :WIDTH] + model.emb[1].weight[1 + 9, :WIDTH]
    torch.testing.assert_close(summed, (first[4] + second[9]) / first.square().mean().sqrt())


def test_equal_entries_begin_with_equal_probabilities():
    model, books = begun()
    twice = [book.clone() for book in books]
    twice[1][7] = twice[1][3]
    model, _ = begun(books=twice)
    # the columns behind the codebook's are drawn
    with torch.no_grad():
        model.linears[1].weight[:, WIDTH:] = 0
        logits = model(torch.randint(16, (1, 2, 9)))[0, 1]
    torch.testing.assert_close(logits[:, 7], logits[:, 3])
    assert (logits[:, 7] - logits[:, 4]).abs().max() > 1e-3


def test_biases_are_how_often_entries_came():
    counts = torch.ones(2, 16, dtype=torch.int64)
    counts[1, 5] = 210
    model, _ = begun(counts)
    assert torch.equal(model.linears[0].bias, model.linears[0].bias[:1].expand(16))
    # 10 more of each: 220 to 11
    assert (model.linears[1].bias[5] - model.linears[1].bias[0]).exp().item() == pytest.approx(20)


@pytest.mark.parametrize(
    ("books", "message"),
    [
        ([torch.ones(16, WIDTH)], "the codec has 1 x 16 entries; the language model predicts 2 x 16"),
        ([torch.ones(8, WIDTH)] * 2, "the codec has 2 x 8 entries"),
        ([torch.ones(16, 9)] * 2, "dim is 8; .* 9 or more is needed"),
    ],
)
def test_codebooks_of_other_sizes_are_refused(books, message):
    with pytest.raises(ValueError, match=message):
        begun(books=books)
