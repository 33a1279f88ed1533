"""The quantizer in training: gradients, moving codebooks, dead entries, and buffers that transformers reads."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch.autograd import gradcheck

import encodec_fast
from encodec_fast.training.quantization import QuantizerTrainer, kmeans, nearest
from support.models import reference_model, small_config

BUFFERS = ("inited", "cluster_size", "embed", "embed_avg")
LEVELS = 4


def embeddings(seed, frames=50, batch=3):
    return torch.randn(batch, 8, frames, generator=torch.Generator().manual_seed(seed))


def fresh_model():
    return encodec_fast.EncodecModel(small_config())


def books(model):
    return [layer.codebook for layer in model.quantizer.layers]


def state(model):
    return {name: tensor.clone() for name, tensor in model.quantizer.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_codes_and_sum_are_those_of_the_model_to_the_bit(model):
    z = embeddings(0)
    expected = model.quantizer.encode(z, None)[:LEVELS]
    audio_in = model.quantizer.decode(expected)
    found = QuantizerTrainer(model.quantizer)(z.requires_grad_(), LEVELS)
    assert torch.equal(found.codes, expected.transpose(0, 1)) and torch.equal(found.quantized, audio_in)


def test_the_gradient_passes_as_it_comes(model):
    z = embeddings(0).requires_grad_()
    gradient = embeddings(1)
    QuantizerTrainer(model.quantizer)(z, LEVELS).quantized.backward(gradient)
    assert torch.equal(z.grad, gradient)


def walk(model, z, levels):
    """Naively: codes [K][R] and inputs [K + 1][R] of each level in float64, vector by vector."""
    rows = z.detach().double().permute(0, 2, 1).reshape(-1, z.shape[1]).numpy()
    codes, inputs = [], [rows]
    for book in books(model)[:levels]:
        entries = book.embed.double().numpy()
        codes.append([int(np.argmin([((row - entry) ** 2).sum() for entry in entries])) for row in inputs[-1]])
        inputs.append(np.stack([row - entries[code] for row, code in zip(inputs[-1], codes[-1])]))
    return codes, inputs


def test_the_commitment_loss_and_its_gradient_are_their_formula(model):
    z = embeddings(0).double()
    _, inputs = walk(model, z, LEVELS)
    found = QuantizerTrainer(model.double().quantizer)(z.requires_grad_(), LEVELS, update=False).commitment
    assert found.item() == pytest.approx(sum((level**2).mean() for level in inputs[1:]), rel=1e-12)
    found.backward()
    expected = 2 * sum(inputs[1:]) / inputs[0].size
    np.testing.assert_allclose(z.grad.permute(0, 2, 1).reshape(expected.shape).numpy(), expected, rtol=1e-10, atol=1e-15)


def test_the_commitment_gradient_equals_finite_differences(model):
    trainer = QuantizerTrainer(model.double().quantizer)
    assert gradcheck(lambda z: trainer(z, LEVELS, update=False).commitment, embeddings(0, 4, 1).double().requires_grad_())


def gradient_of_level(losses_of, level):
    """The gradient that level `level` adds; losses_of: the loss of so many levels for embeddings."""
    found = []
    for levels in (level, level + 1):
        z = embeddings(0).requires_grad_()
        losses_of(z, levels).backward()
        found.append(z.grad)
    return found[1] - found[0]


@pytest.mark.parametrize("level", range(1, LEVELS))
def test_every_level_commits_the_encoder(model, level):
    trainer = QuantizerTrainer(model.quantizer)
    assert gradient_of_level(lambda z, levels: trainer(z, levels, update=False).commitment, level).abs().max() > 1e-4


def test_in_encodec_no_level_but_the_first_commits_the_encoder(authors):
    theirs = authors("quantization.vq").ResidualVectorQuantizer(8, LEVELS, 16)
    theirs.vq(embeddings(0))
    for level in range(1, LEVELS):
        # codes of the levels before stay, for the codebooks are copied
        added = gradient_of_level(lambda z, levels: copy.deepcopy(theirs).vq(z, levels)[2].sum(), level)
        assert added.abs().max() < 1e-7


def test_codebooks_move_by_their_formula(model):
    trainer = QuantizerTrainer(model.quantizer, decay=0.9, dead_share=0.0)
    trainer(embeddings(0), LEVELS)
    for seed in (1, 2):
        before = copy.deepcopy(books(model))
        codes, inputs = walk(model, embeddings(seed), LEVELS)
        trainer(embeddings(seed), LEVELS)
        for book, old, own, rows in zip(books(model), before, codes, inputs):
            size, average = old.cluster_size.double().numpy() * 0.9, old.embed_avg.double().numpy() * 0.9
            for code, row in zip(own, rows):
                size[code] += 0.1
                average[code] += 0.1 * row
            smoothed = (size + 1e-5) / (size.sum() + 16 * 1e-5) * size.sum()
            np.testing.assert_allclose(book.cluster_size.numpy(), size, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(book.embed_avg.numpy(), average, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(book.embed.numpy(), average / smoothed[:, None], rtol=1e-4, atol=1e-4)


def test_levels_that_are_not_used_stay_as_they_are(model):
    trainer, before = QuantizerTrainer(model.quantizer), state(model)
    trainer(embeddings(0), 2)
    changed = {name.split(".")[1] for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    assert changed == {"0", "1"}


@pytest.mark.parametrize("start", ["fitted", "fresh"])
def test_without_update_nothing_moves(model, start):
    model = model if start == "fitted" else fresh_model()
    trainer, before = QuantizerTrainer(model.quantizer), state(model)
    trainer(embeddings(0), LEVELS, update=False)
    assert same(state(model), before)


def moved_without_vectors(model):
    """How far a step of few vectors moves the entries of level 1 that none of them is nearest to, in units of the largest value."""
    book = books(model)[0]
    before = book.embed.clone()
    found = QuantizerTrainer(model.quantizer, dead_share=0.0)(0.1 * embeddings(0, frames=2), LEVELS)
    unused = [entry for entry in range(16) if entry not in found.codes[:, 0]]
    assert len(unused) > 8
    return ((book.embed - before)[unused].abs().max() / before.abs().max()).item()


def test_codebooks_that_were_fitted_without_statistics_are_kept(model):
    # averages of zero would draw each entry to zero
    assert not books(model)[0].embed_avg.any()
    assert moved_without_vectors(model) < 1e-5


def test_entries_that_were_edited_since_are_kept(model):
    QuantizerTrainer(model.quantizer, dead_share=0.0)(embeddings(0), LEVELS)
    books(model)[0].embed.neg_()
    assert moved_without_vectors(model) < 1e-5


def clusters(seed, count=16, each=20):
    """Embeddings [1, D, count * each] around `count` points far apart, and the means of each cluster [count, D]."""
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.randn(count, 1, 8, generator=generator)
    rows = centres + 0.1 * torch.randn(count, each, 8, generator=generator)
    return rows.flatten(0, 1).T[None], rows.mean(1)


def test_codebooks_of_zeros_start_at_the_means_of_clusters_and_stay_there():
    # encodec's first move divides them by their clusters' sizes
    model = fresh_model()
    z, _ = clusters(0)
    trainer = QuantizerTrainer(model.quantizer, dead_share=0.0)
    for _ in range(2):
        found = trainer(z, 1)
        rows = z[0].T
        for code in found.codes.unique():
            mean = rows[(found.codes[0, 0] == code)].mean(0)
            torch.testing.assert_close(books(model)[0].embed[code], mean, rtol=1e-3, atol=1e-3)
    assert books(model)[0].inited == 1 and not books(model)[1].embed.any()


def test_kmeans_settles_at_means():
    z, _ = clusters(0)
    rows = z[0].T
    entries, counts = kmeans(rows, 16, 10, torch.Generator().manual_seed(0))
    codes = nearest(rows, entries)
    assert torch.equal(counts, torch.bincount(codes, minlength=16).float()) and counts.sum() == 320
    for code in codes.unique():
        torch.testing.assert_close(entries[code], rows[codes == code].mean(0))


def test_kmeans_of_fewer_vectors_than_entries_takes_each():
    rows = embeddings(0)[0].T[:10]
    entries, counts = kmeans(rows, 16, 3, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in entries.tolist()} == {tuple(row) for row in rows.tolist()} and counts.sum() == 10


def test_entries_that_kmeans_gave_no_vector_wait_for_the_next_batch():
    # this batch's vectors have all got an entry
    trainer = QuantizerTrainer(fresh_model().quantizer)
    found = [trainer(embeddings(seed, 10, 1), 1).replaced.item() for seed in range(2)]
    assert found == [0, 6]


def test_a_dead_entry_becomes_a_vector_of_the_batch_in_all_buffers(model):
    trainer = QuantizerTrainer(model.quantizer)
    trainer(embeddings(0), 1)
    book, rows = books(model)[0], embeddings(1).permute(0, 2, 1).reshape(-1, 8)
    book.embed_avg[[3, 7]] *= 1e-6
    book.cluster_size[[3, 7]] *= 1e-6
    book.embed[[3, 7]] = 100.0
    found = trainer(embeddings(1), 1)
    assert found.replaced.tolist() == [2]
    drawn = [int((rows == book.embed[entry]).all(1).nonzero()) for entry in (3, 7)]
    assert drawn[0] != drawn[1]
    assert (book.cluster_size[[3, 7]] > 0.1 * 150 / 16).all()
    averages = book.embed_avg / book.cluster_size[:, None]
    torch.testing.assert_close(averages[[3, 7]], book.embed[[3, 7]], rtol=1e-4, atol=1e-5)
    # encodec's next step takes the entry back to where it was
    kept = book.embed[[3, 7]].clone()
    trainer(book.embed[:1].T[None].repeat(1, 1, 150), 1)
    torch.testing.assert_close(book.embed[[3, 7]], kept, rtol=1e-4, atol=1e-4)


def test_more_dead_entries_than_vectors_take_each_vector_once(model):
    trainer = QuantizerTrainer(model.quantizer)
    trainer(embeddings(0), 1)
    book = books(model)[0]
    book.cluster_size.fill_(1e-9)
    book.embed_avg.copy_(book.embed * 1e-9)
    assert trainer(embeddings(1, frames=5, batch=1), 1).replaced.tolist() == [5]
    rows = {tuple(row) for row in embeddings(1, 5, 1)[0].T.tolist()}
    assert rows < {tuple(row) for row in book.embed.tolist()}


ENTRIES, DRIFTING_STEPS = 128, 500


def drifting(step):
    """A batch [1, 8, 300] of an encoder that begins at a point and spreads out elsewhere within 200 steps."""
    way = min(1.0, step / 200)
    return 0.01 * embeddings(step, 300, 1) + way * (embeddings(step + 10_000, 300, 1) + 3)


def dead_share_after_drifting(step_of):
    """The share of entries per level that no vector of the last 50 of 500 batches took; step_of: codes [K, ...] of embeddings."""
    used = []
    for step in range(DRIFTING_STEPS):
        codes = step_of(drifting(step))
        if step >= DRIFTING_STEPS - 50:
            used.append(codes.flatten(1))
    return [1 - codes.unique().numel() / ENTRIES for codes in torch.cat(used, dim=1)]


def test_under_one_percent_are_dead_after_500_steps_of_a_drifting_encoder():
    config = small_config(codebook_size=ENTRIES, target_bandwidths=[100.0])
    trainer = QuantizerTrainer(encodec_fast.EncodecModel(config).quantizer)
    shares = dead_share_after_drifting(lambda z: trainer(z, 2).codes.transpose(0, 1))
    assert max(shares) < 0.01, shares


def test_in_encodec_over_90_percent_are_dead_after_the_same_steps(authors):
    torch.manual_seed(0)
    theirs = authors("quantization.vq").ResidualVectorQuantizer(8, 2, ENTRIES)
    shares = dead_share_after_drifting(lambda z: theirs.vq(z)[1])
    assert shares[0] > 0.9, shares


def test_transformers_reads_what_was_trained(model, tmp_path):
    trainer = QuantizerTrainer(model.quantizer)
    for seed in range(3):
        trainer(embeddings(seed), LEVELS)
    model.save_pretrained(tmp_path)
    stock = transformers.EncodecModel.from_pretrained(tmp_path)
    assert same(state(stock), state(model))
    codes, ours = (each.quantizer.encode(embeddings(9), None)[:LEVELS] for each in (stock, model))
    assert torch.equal(codes, ours) and codes.unique().numel() > 8
    assert list(stock.state_dict()) == list(transformers.EncodecModel(model.config).state_dict())


def test_a_run_that_was_cut_goes_on_to_the_same_bits(tmp_path):
    model = fresh_model()
    trainer = QuantizerTrainer(model.quantizer, dead_share=0.5)
    # levels 2 to 4 start behind the cut
    trainer(embeddings(0), 1)
    weights, position = copy.deepcopy(model.state_dict()), trainer.state_dict()
    resumed = fresh_model()
    resumed.load_state_dict(weights)
    other = QuantizerTrainer(resumed.quantizer, dead_share=0.5)
    other.load_state_dict(position)
    replaced = 0
    for seed in range(1, 5):
        one, two = trainer(embeddings(seed), LEVELS), other(embeddings(seed), LEVELS)
        assert torch.equal(one.codes, two.codes) and torch.equal(one.replaced, two.replaced)
        replaced += int(one.replaced.sum())
    assert replaced > 0 and same(state(model), state(resumed))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("start", ["fitted", "fresh"])
def test_embeddings_that_are_not_finite_are_refused_before_anything_is_written(model, start, value):
    model = model if start == "fitted" else fresh_model()
    trainer, before, z = QuantizerTrainer(model.quantizer), state(model), embeddings(0)
    z[1, 2, 3] = value
    with pytest.raises(ValueError, match="embeddings hold NaN or infinity"):
        trainer(z, LEVELS)
    assert same(state(model), before)


def test_the_perplexity_is_that_of_the_batch(model):
    found = QuantizerTrainer(model.quantizer)(embeddings(0), LEVELS)
    for level, own in enumerate(found.codes.transpose(0, 1)):
        shares = np.bincount(own.flatten().numpy()) / own.numel()
        expected = np.exp(-sum(share * np.log(share) for share in shares if share))
        assert found.perplexity[level].item() == pytest.approx(expected, rel=1e-5)


def test_a_half_precision_encoder_moves_codebooks_of_float32(model):
    z = embeddings(0).bfloat16().requires_grad_()
    found = QuantizerTrainer(model.quantizer)(z, LEVELS)
    (found.quantized.sum() + found.commitment).backward()
    assert found.quantized.dtype == z.grad.dtype == torch.bfloat16 and books(model)[0].embed.dtype == torch.float32


def test_stock_transformers_is_trained_alike():
    stock = reference_model(small_config())
    ours = encodec_fast.EncodecModel(stock.config)
    ours.load_state_dict(stock.state_dict())
    trainers = [QuantizerTrainer(each.quantizer) for each in (stock, ours)]
    for seed in range(3):
        one, two = (trainer(embeddings(seed), LEVELS) for trainer in trainers)
        assert torch.equal(one.codes, two.codes)
    assert same(state(stock), state(ours))


@pytest.mark.parametrize(
    "z, levels, message",
    [
        (torch.zeros(1, 7, 5), 1, r"shape \[1, 7, 5\]; \[B, 8, F\] is needed"),
        (torch.zeros(1, 8, 0), 1, "at least one frame"),
        (torch.zeros(1, 8, 5), 0, "num_quantizers is 0; the model has the levels 1 ... "),
        (torch.zeros(1, 8, 5), 99, "num_quantizers is 99"),
    ],
)
def test_what_does_not_fit_is_refused(model, z, levels, message):
    with pytest.raises(ValueError, match=message):
        QuantizerTrainer(model.quantizer)(z, levels)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"dead_below": -1.0}, {"dead_share": 1.0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="allowed"):
        QuantizerTrainer(SimpleNamespace(layers=[]), **options)
