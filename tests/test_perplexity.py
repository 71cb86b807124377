"""Perplexity is exp of the mean NLL of a token, whatever the loss, and its interval counts sequences, not tokens."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import Task, next_token
from landscape.comparison.conditions import parse_condition
from landscape.errors import ObjectiveError
from landscape.evaluation import evaluate_checkpoint
from landscape.perplexity import likelihood
from landscape.report.measures import measures
from landscape.report.pairs import compare_runs
from landscape.report.runs import make_run
from landscape.tokens import cross_entropies

WORDS = 11


class Speaker(nn.Module):
    """Predicts the next token from the last one and the mean of all before."""

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.table = nn.Embedding(WORDS, 6)
            self.head = nn.Linear(6, WORDS)

    def forward(self, input_ids):
        return self.head(torch.tanh(self.table(input_ids).cumsum(1)))


def _batches(n: int = 24, length: int = 7, seed: int = 1):
    ids = torch.randint(0, WORDS, (n, length), generator=torch.Generator().manual_seed(seed))
    found = []
    for i, part in enumerate(ids.split(5)):
        labels = part.clone()
        labels[:, length - i :] = -100  # texts of several lengths
        found.append({"input_ids": part, "labels": labels})
    return found


def _oracle(model, batches):
    """Return the mean NLL of the next tokens and the sums and counts of each sequence, in float64."""
    sums, counts = [], []
    with torch.no_grad():
        for batch in batches:
            logits, labels = model(batch["input_ids"])[:, :-1].double(), batch["labels"][:, 1:]
            nll = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
            sums += nll.sum(1).tolist()
            counts += (labels != -100).sum(1).tolist()
    return sum(sums) / sum(counts), np.array(sums), np.array(counts)


def _smoothed(outputs, target):
    labels = target["labels"][:, 1:]
    kept = (labels != -100).sum()
    return F.cross_entropy(outputs[:, :-1].transpose(1, 2), labels, label_smoothing=0.1), kept


FORMS = {
    "next_token": lambda m, d: Task(m, F.cross_entropy, train=d, test=d, forward=next_token),
    "own loss": lambda m, d: Task(
        m,
        _smoothed,
        train=d,
        test=d,
        forward=lambda model, batch: (model(batch["input_ids"]), batch),
        predict=lambda model, batch: (model(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_perplexity_is_that_of_the_tokens_whatever_the_loss(form):
    model, batches = Speaker(), _batches()
    mean, sums, counts = _oracle(model, batches)
    found = evaluate_checkpoint(FORMS[form](model, batches))
    assert found.splits == ("train", "test")
    np.testing.assert_allclose(found.perplexity, np.exp(mean), rtol=1e-6)
    assert found.tokens.tolist() == [counts.sum()] * 2
    off = sums - counts * mean
    error = np.sqrt(len(sums) / (len(sums) - 1) * np.sum(off**2)) / counts.sum()
    low, high = np.log(found.perplexity_interval[0])
    assert (high - low) / 2 == pytest.approx(2.069 * error, rel=0.1)  # Student's quantile at 23; the rest is skewness
    assert found.summary()["perplexity"] == {"train": found.perplexity[0], "test": found.perplexity[1]}


def test_a_loss_that_shifts_by_itself_is_of_a_language_model_without_any_table():
    class OneHot(Speaker):
        def __init__(self):
            super().__init__()
            self.table = nn.Linear(WORDS, 6, bias=False)

        def forward(self, input_ids):
            return self.head(self.table(F.one_hot(input_ids, WORDS).float()))

    def shifted(outputs, target):
        mean = cross_entropies(outputs, target, -100)[1]
        return F.cross_entropy(outputs[:, :-1].transpose(1, 2), target[:, 1:]) + 0 * mean, (target[:, 1:] != -100).sum()

    model, batches = OneHot(), _batches()
    task = Task(model, shifted, train=batches, forward=lambda m, b: (m(b["input_ids"]), b["labels"]))
    np.testing.assert_allclose(evaluate_checkpoint(task).perplexity, np.exp(_oracle(model, batches)[0]), rtol=1e-6)


def test_images_pixels_and_kinds_of_words_have_no_perplexity():
    x, y = torch.randn(8, 3), torch.randint(0, 4, (8,))
    assert evaluate_checkpoint(Task(nn.Linear(3, 4), nn.CrossEntropyLoss(), train=(x, y))).perplexity is None
    pixels = torch.randn(8, 1, 4, 4), torch.randint(0, 3, (8, 4, 4))
    assert evaluate_checkpoint(Task(nn.Conv2d(1, 3, 1), nn.CrossEntropyLoss(), train=pixels)).perplexity is None
    tagger = nn.Sequential(nn.Embedding(WORDS, 6), nn.Linear(6, 4))
    words = [(torch.randint(0, WORDS, (5, 7)), torch.randint(0, 4, (5, 7)))]
    task = Task(tagger, F.cross_entropy, train=words, forward=lambda m, b: (m(b[0]).transpose(1, 2), b[1]))
    assert evaluate_checkpoint(task).perplexity is None


def test_one_sequence_has_a_perplexity_and_no_interval():
    batches = [{k: v[:1] for k, v in _batches()[0].items()}]
    found = evaluate_checkpoint(FORMS["next_token"](Speaker(), batches))
    assert np.isfinite(found.perplexity).all()
    assert np.isnan(found.perplexity_interval).all()


def _covered(sequences: int, repeats: int, clustered: bool) -> float:
    """Return how often the interval holds the true perplexity, of sequences whose tokens share half their variance."""
    rng = np.random.default_rng(0)
    hits = 0
    # NLL of a token: topic (gamma, of mean 1.5, one a sequence) plus its own (exponential, of mean 1.5).
    for _ in range(repeats):
        counts = rng.integers(20, 60, sequences)
        topics = rng.gamma(1.0, 1.5, sequences)
        sums = np.array([t * n + rng.exponential(1.5, n).sum() for t, n in zip(topics, counts, strict=True)])
        if not clustered:
            sums, counts = rng.permutation(np.concatenate([
                t + rng.exponential(1.5, n) for t, n in zip(topics, counts, strict=True)
            ])), np.ones(counts.sum())  # fmt: skip
        found = likelihood([(torch.as_tensor(sums), torch.as_tensor(counts))], ())
        assert found is not None
        low, high = found.perplexity_interval
        hits += low <= np.exp(3.0) <= high
    return hits / repeats


@pytest.mark.parametrize("sequences", [30, 200])
def test_the_interval_covers_the_truth_where_tokens_of_a_sequence_go_together(sequences):
    # 600 repeats: a standard error of 0.009 at 95%.
    assert 0.92 <= _covered(sequences, 600, clustered=True) <= 0.98


def test_tokens_taken_as_independent_would_not_cover():
    assert _covered(60, 100, clustered=False) < 0.6


def _louder(seed: int) -> Speaker:
    model = Speaker(seed)
    with torch.no_grad():
        model.head.weight.mul_(1 + seed)
    return model


@functools.cache
def _runs():
    batches = _batches(64)
    runs, truth = [], []
    for seed in (0, 1):
        model = _louder(seed)
        found = evaluate_checkpoint(FORMS["next_token"](model, batches))
        runs.append(make_run(f"seed {seed}", [found]))
        truth.append(_oracle(model, batches))
    return runs, truth


def test_a_report_has_a_column_of_each_split_where_a_run_speaks():
    runs, _ = _runs()
    keys = [m.key for m in measures(runs)]
    assert {"train_perplexity", "test_perplexity"} < set(keys)
    other = make_run("x", [evaluate_checkpoint(Task(nn.Linear(3, 4), F.cross_entropy, train=[
        (torch.randn(8, 3), torch.randint(0, 4, (8,)))
    ]))])  # fmt: skip
    assert not any("perplexity" in m.key for m in measures([other]))
    column = next(m for m in measures([*runs, other]) if m.key == "test_perplexity")
    assert column.read(other).text() == ("no language model", "")


def test_two_runs_are_compared_in_pairs_and_a_share_is_that_of_their_likelihoods():
    runs, ((first, sums, counts), (second, others, _)) = _runs()
    found = compare_runs(*runs)["test_perplexity"]
    assert found.how == "paired"
    assert found.difference.value == pytest.approx(np.exp(second) - np.exp(first), rel=1e-5)
    assert found.share is not None
    assert found.share.value == pytest.approx(np.exp(second - first) - 1, rel=1e-4)
    off = others - sums - counts * (second - first)
    error = np.sqrt(len(off) / (len(off) - 1) * np.sum(off**2)) / counts.sum()
    half = (np.log1p(found.share.high) - np.log1p(found.share.low)) / 2
    assert half == pytest.approx(1.998 * error, rel=0.02)  # 64 blocks of one sequence, or few more
    alone = {"test_perplexity": found.sides}
    verdict = parse_condition("perplexity > +1%").judge(alone)
    assert verdict.holds == (second - first > np.log(1.01))
    assert verdict.told[0].startswith("test_perplexity ")
    assert parse_condition("perplexity > 5").judge(alone).holds == (np.exp(second) > 5)


def test_runs_on_other_draws_are_compared_as_independent():
    runs, _ = _runs()
    other = make_run("other", [evaluate_checkpoint(FORMS["next_token"](_louder(1), _batches(64, seed=5)))])
    paired, found = (compare_runs(runs[0], r)["test_perplexity"] for r in (runs[1], other))
    assert found.how == "independent"
    assert found.share is not None
    assert found.share.high - found.share.low > paired.share.high - paired.share.low


def _in_a_line(length: int = 7):
    """Return batches with shifted labels, and a forward that gives the tokens of all sequences in a line."""
    batches = [{"input_ids": b["input_ids"], "labels": b["input_ids"].roll(-1, 1)} for b in _batches(40, length=length)]
    return batches, lambda m, b: (m(b["input_ids"]).reshape(-1, WORDS), b["labels"].reshape(-1))


def test_tokens_in_a_line_leave_the_batches_as_what_is_independent():
    batches, forward = _in_a_line()
    model = Speaker()
    found = evaluate_checkpoint(Task(model, F.cross_entropy, train=batches, forward=forward))
    with torch.no_grad():
        means = np.array([float(F.cross_entropy(*forward(model, b))) for b in batches])
    assert found.loss_stderr[0] == pytest.approx(means.std(ddof=1) / np.sqrt(len(means)), rel=1e-4)
    low, high = np.log(found.perplexity_interval[0])
    assert (high - low) / 2 == pytest.approx(2.365 * found.loss_stderr[0], rel=0.1)


def test_a_masked_mean_of_tokens_in_a_line_without_its_weight_is_refused():
    batches, forward = _in_a_line()
    for i, batch in enumerate(batches):
        batch["labels"][0, : 2 + i % 3] = -100

    def own(outputs, target):
        return F.cross_entropy(outputs, target)

    with pytest.raises(ObjectiveError, match=r"can't say its weight"):
        evaluate_checkpoint(Task(Speaker(), own, train=batches, forward=forward))
