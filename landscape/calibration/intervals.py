"""How sure is a calibration error: intervals that hold near zero, bands for each bin, a test of calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaincinv, gammaincinv, ndtr, stdtrit

from .bins import Bins, right_closed
from .totals import Atoms, Groups

#: Normal quantile of a two-sided 95% interval.
Z = 1.959963984540054
#: Simulated label sets behind the consistency band and the test (chosen by us: p-values to 0.001).
SIMULATIONS = 1000
# Samples of a bin up to which its labels are drawn one by one (chosen by us).
_SINGLY = 100


@dataclass(frozen=True)
class Spread:
    """How the signed errors of the bins scatter: over the filled bins, `mean` (m,) and its covariance (m, m).

    `error` (m,) are careful standard errors, never below those of a calibrated model; `quantile` is that of a
    two-sided 95% interval, Student's t with one degree of freedom less than there are groups, the normal one without.
    `filled` (bins,) marks the bins.
    """

    filled: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    error: np.ndarray
    quantile: float


def spread(bins: Bins, groups: Groups | None = None) -> Spread:
    """Return the scatter of D_b, the mean over all samples of (confidence - correct) inside bin b.

    For independent samples the covariance is diagonal: s_b^2 = (mean of (c - y)^2 1_b - D_b^2) / n. For groups it is
    the sandwich estimate over them, sum_g (d_g - n_g D)(d_g - n_g D)^T / n^2 times G / (G - 1) (Liang and Zeger 1986,
    doi:10.1093/biomet/73.1.13). The careful standard errors are the largest of three: that, the one of a calibrated
    model's labels, and that of an accuracy with z^2/2 more successes and failures (Agresti and Coull 1998,
    doi:10.1080/00031305.1998.10480550), so that a bin without a single mistake does not look certain.
    """
    n, filled = bins.samples, bins.counts > 0
    mean = bins.signed_errors
    variance = np.maximum(bins.squared_errors / n - mean**2, 0.0) / n
    smoothed = (bins.correct + Z**2 / 2) / (bins.counts + Z**2)
    careful = np.maximum.reduce(
        [variance, bins.label_variances / n / n, bins.counts / n * smoothed * (1 - smoothed) / n]
    )
    covariance, quantile = np.diag(variance), Z
    if groups is not None:
        size = len(groups)
        each = groups.confidence_sums - groups.correct - groups.counts.sum(axis=1, keepdims=True) * mean
        covariance = each.T @ each * (size / (size - 1)) / n**2
        careful = np.maximum(careful, np.diag(covariance))
        quantile = float(stdtrit(size - 1, 0.975))
    return Spread(filled, mean[filled], covariance[np.ix_(filled, filled)], np.sqrt(careful[filled]), quantile)


def mean_interval(
    powers: np.ndarray, n: int, sums: np.ndarray | None = None, groups: Groups | None = None
) -> tuple[float, np.ndarray]:
    """Return the standard error of a mean and its 95% interval (2,); NaN for fewer than two samples.

    `powers` (3,) are the sums of x, x^2 and x^3 over the n samples; for groups `sums` (G,) those of x in each, and the
    mean is a ratio of sums over groups, linearized. Scores are skewed (one confident mistake weighs as much as
    hundreds of good answers), and mean +- 1.96 standard errors then misses high truths: measured coverage down to 90%.
    The interval is that of Hall's cubic transformation of the studentized mean (Hall 1992, "On the removal of skewness
    by transformation", J. R. Stat. Soc. B 54, 221-228), with Student's quantile for groups.
    """
    if groups is not None and sums is not None:
        return ratio_interval(sums, groups.sizes)
    mean = float(powers[0]) / n
    second = max(0.0, float(powers[1]) / n - mean**2)
    third = float(powers[2]) / n - 3 * mean * float(powers[1]) / n + 2 * mean**3
    return _hall(mean, second, third, n, Z)


def ratio_interval(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the standard error of sum(sums) / sum(sizes) over groups (G,), and its 95% interval (2,).

    The groups are independent of each other, what is in one is not; see `mean_interval`.
    """
    count, mean = len(sums), float(np.sum(sums)) / float(np.sum(sizes))
    off, scale = sums - sizes * mean, float(np.sum(sizes)) / count
    second, third = float((off**2).mean()) / scale**2, float((off**3).mean()) / scale**3
    return _hall(mean, second, third, count, float(stdtrit(count - 1, 0.975)) if count > 1 else math.nan)


def _hall(mean: float, second: float, third: float, count: int, quantile: float) -> tuple[float, np.ndarray]:
    if count < 2:
        return math.nan, np.full(2, math.nan)
    error = math.sqrt(second / (count - 1))
    if error == 0:
        return 0.0, np.full(2, mean)
    a = third / second**1.5 / 3
    shifted = np.array([quantile, -quantile]) / math.sqrt(count) - a / 2 / count
    root = math.sqrt(count) * shifted if abs(a) < 1e-06 else math.sqrt(count) / a * (np.cbrt(1 + 3 * a * shifted) - 1)
    return error, mean - error * root


def ece_interval(bins: Bins, groups: Groups | None = None) -> np.ndarray:
    """Return a 95% interval (2,) for the population's ECE at these bins: sum_b |mu_b|, mu_b = E[(c - y) 1_b].

    The plug-in ECE is biased upward: each |D_b| of a bin with mu_b = 0 adds sqrt(2/pi) s_b. Resampling repeats
    that bias, so a percentile bootstrap misses the truth where it is near zero. Here each bin's mean D_b is taken
    as normal about mu_b with standard error s_b, so that |D_b| is a folded normal with mean s_b g(|mu_b|/s_b),
    g(a) = 2 phi(a) + a (2 Phi(a) - 1) (Leone, Nelson and Nottingham 1961, doi:10.1080/00401706.1961.10489974), and
    the interval inverts the test of a given ECE by the plug-in ECE T:
    - lower end: T - z sd - the bias that T can have: that of every |mu_b| at |D_b| - s_b, or 0 if that is negative
      (one standard error: chosen by us by simulation; the bias itself is rigorously bounded with 0 everywhere);
    - upper end: the ECE whose least biased form, mu_b proportional to s_b, puts T at its 2.5% quantile; never
      below T itself.
    Seen, not proved: it holds 0 wherever `calibration_p_value` does not reject at 5% (4,000 calibrated data sets of
    200 samples; the standard errors here are the larger ones).
    The s_b are the careful standard errors of `spread`. For groups the quantile is Student's, and sd is that of bins
    that move together: the larger of the ones along the signs of D and of the direction in which D scatters most.

    Covers: the ECE of the population at exactly these bins, for independent samples. Measured with 15 bins, 1,000
    data sets for each of 24 pairs of a confidence distribution and a fault (calibrated, slight, strong, local,
    oscillating, within bins): 97.0 to 99.9% at n = 500 and 2,000 (tests/test_calibration_coverage.py holds 93%).
    With every confidence at 0.999, where mistakes are rare, 94% at n = 500 and 2,000, 92% at n = 100.
    Does not cover: the binning itself (the ECE without bins), samples that depend on each other beyond their groups,
    or the choice of equal-mass edges. It is conservative (often 98 to 99%) rather than short.
    Cost: O(bins), from the accumulated sums alone.
    """
    found = spread(bins, groups)
    s, size, z = found.error, np.abs(found.mean), found.quantile
    t, total, sd = float(size.sum()), float(s.sum()), float(np.sqrt((s**2).sum()))
    if groups is not None:
        # What the errors of bins have in common adds up; its direction shows where they scatter most.
        signs = np.stack([np.sign(found.mean), np.sign(np.linalg.eigh(found.covariance)[1][:, -1])])
        joint = float(np.einsum("kb,bc,kc->k", signs, found.covariance, signs).max())
        z *= max(1.0, joint / max(float(np.trace(found.covariance)), 1e-300)) ** 0.5

    surely = np.maximum(size - s, 0.0)
    bias = float((s * _folded_mean(surely / s) - surely).sum())
    low = max(0.0, t - bias - z * sd)

    def above(a: float) -> float:
        g = float(_folded_mean(np.array(a)))
        return total * g - z * sd * np.sqrt(max(0.0, 1 + a * a - g * g)) - t

    a: Any = 0.0 if above(0.0) >= 0 else brentq(above, 0.0, (t + z * sd) / total + 1)
    return np.array([low, min(1.0, max(t, a * total))])


def debiased_l2_interval(bins: Bins, groups: Groups | None = None) -> np.ndarray:
    """Return a 95% interval (2,) for the population's squared L2 calibration error at these bins, valid at 0.

    With w_b = N / n_b, T = sum_b w_b D_b^2 has the mean theta + tr M and the further cumulants
    kappa_2 = 2 tr M^2 + 4 m^T M m, kappa_3 = 8 tr M^3 + 24 m^T M^2 m, where m_b = sqrt(w_b) E D_b, |m|^2 = theta and M
    is the covariance of sqrt(w_b) D_b (D_b normal). The interval holds every theta at which T is neither in the upper
    nor the lower 2.5% of the gamma distribution with these three cumulants. m is taken along what is seen of it,
    m_b^2 ~ max(w_b D_b^2 - M_bb, 0); for groups along the direction in which the bins scatter most, the careful choice,
    and M is scaled for Student's quantile. At theta = 0 that is the test of calibration by T: 0 belongs to the interval
    unless it rejects. (Cumulants of quadratic forms: Mathai and Provost 1992, "Quadratic forms in random variables",
    theorem 3.2b.2; a gamma distribution for them: Imhof 1961, doi:10.1093/biomet/48.3-4.419.)

    Covers: 94.4 to 99% in 24 regimes of 500 data sets with n = 500 and 5,000; 95 to 99% in groups
    (tests/test_calibration_coverage.py). Cost: O(bins^3), a millisecond.
    """
    found = spread(bins, groups)
    weight = np.sqrt(bins.samples / bins.counts[found.filled])
    seen = (weight * found.mean) ** 2
    m = weight[:, None] * found.covariance * weight
    careful = (weight * found.error) ** 2
    scale = (found.quantile / Z) ** 2
    t = float(seen.sum()) - float(np.trace(m))  # minus the bias
    excess = np.diag(careful - np.diag(m))
    m = (m + excess) * scale
    square = m @ m
    at_zero = 2 * float(np.trace(square)), 8 * float(np.trace(square @ m))
    if groups is None:
        unbiased = np.maximum(seen - np.diag(m), 0.0)
        weights = next(x for x in (unbiased, seen, np.diag(m)) if x.any())
        along = np.diag(m) @ weights / weights.sum(), np.diag(square) @ weights / weights.sum()
    else:
        # What the errors of dependent samples have in common scatters most, and may be all that there is.
        along = np.linalg.eigvalsh(m)[-1] ** np.array([1, 2])
    rise = 4 * float(along[0]), 24 * float(along[1])

    def quantile(theta: float, share: float) -> float:
        variance, third = (a + b * theta for a, b in zip(at_zero, rise, strict=True))
        shape = 4 * variance**3 / third**2
        return theta + np.sqrt(variance) * (gammaincinv(shape, share) - shape) / np.sqrt(shape)

    def end(share: float) -> float:
        """Return the largest theta whose quantile is not above t, 0 if there is none."""
        high = max(t, float(np.trace(m)))
        while quantile(high, share) < t:
            high *= 2
        # The lower quantile first falls as theta grows, where few directions carry the noise: come from above.
        low = high
        while quantile(low, share) > t:
            high, low = low, low * 0.8
            if low < 1e-6 * np.trace(m):
                return 0.0
        found: Any = brentq(lambda theta: quantile(theta, share) - t, low, high, xtol=1e-15)
        return found

    return np.array([end(0.975), min(1.0, end(0.025))])


def _folded_mean(a: np.ndarray) -> np.ndarray:
    """Return E|a + Z| for a standard normal Z."""
    return np.sqrt(2 / np.pi) * np.exp(-(a**2) / 2) + a * (2 * ndtr(a) - 1)


def clopper_pearson(correct: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the exact 95% interval of each bin's accuracy, (bins, 2); NaN where a bin is empty.

    Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404. It takes the labels of a bin as draws with one
    probability; where that varies within the bin, it is conservative.
    """
    wrong = counts - correct
    with np.errstate(invalid="ignore"):  # betaincinv gives NaN at a parameter of 0, replaced next
        low = np.where(correct == 0, 0.0, betaincinv(correct, wrong + 1, 0.025))
        high = np.where(wrong == 0, 1.0, betaincinv(correct + 1, wrong, 0.975))
    found = np.stack([low, high], axis=1)
    found[counts == 0] = np.nan
    return found


def accuracy_interval(bins: Bins, groups: Groups | None = None) -> np.ndarray:
    """Return the 95% interval of each bin's accuracy, (bins, 2); NaN where a bin is empty.

    Clopper and Pearson's for independent samples. For groups theirs at the effective sample size, p (1 - p) over the
    variance that the groups show, at most the samples, and less by the square of Z over Student's quantile (Korn and
    Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts estimated from
    survey data", Survey Methodology 24, 193-201). Where all are right or all wrong nothing shows how a group's labels
    go together: there a group counts as one sample (chosen by us).
    """
    if groups is None:
        return clopper_pearson(bins.correct, bins.counts)
    share = bins.correct / np.maximum(bins.counts, 1)
    scatter = ((groups.correct - groups.counts * share) ** 2).sum(axis=0) / np.maximum(bins.counts, 1) ** 2
    members = (groups.counts > 0).sum(axis=0)
    freedom = np.maximum(members - 1, 1)
    variance = scatter * members / freedom
    apart = variance > 0
    size = np.where(apart, share * (1 - share) / np.where(apart, variance, 1.0), members)
    size = np.minimum(size, bins.counts) * np.where(members > 1, (Z / stdtrit(freedom, 0.975)) ** 2, 1.0)
    return clopper_pearson(share * size, size)


def gap_interval(bins: Bins, groups: Groups | None = None) -> np.ndarray:
    """Return the 95% interval (2,) of mean confidence less accuracy, over all samples; NaN for fewer than two.

    The normal one for independent samples, `ratio_interval` for groups.
    """
    if groups is not None:
        return ratio_interval((groups.confidence_sums - groups.correct).sum(axis=1), groups.sizes)[1]
    n, gap = bins.samples, float(bins.signed_errors.sum())
    if n < 2:
        return np.full(2, math.nan)
    half = Z * math.sqrt(max(float(bins.squared_errors.sum()) / n - gap**2, 0.0) / (n - 1))
    return np.array([gap - half, gap + half])


def simulate_correct(
    bins: Bins, rng: np.random.Generator, atoms: Atoms | None = None, draws: int = SIMULATIONS
) -> np.ndarray:
    """Return how many labels are right in each bin when the confidences are true, (draws, bins) int64.

    The number of right labels in a bin is a sum of Bernoulli(confidence). It is drawn as the binomial with the same
    mean and variance, n' = (sum c)^2 / sum c^2, p' = sum c / n', which is within O(1/n) of it in total variation
    (Barbour, Holst and Janson 1992, "Poisson approximation", section 9; n' is rounded, which keeps the mean). In bins
    of at most 100 samples labels are drawn one by one, where `atoms` are exact. Cost: O(bins x draws).
    """
    mean = bins.confidence_sums
    squares = np.maximum(mean - bins.label_variances, 0.0)
    trials = np.divide(mean**2, squares, out=np.zeros(len(bins)), where=squares > 0)
    trials = np.minimum(np.maximum(np.rint(trials), np.ceil(mean)), bins.counts).astype(np.int64)
    share = np.divide(mean, trials, out=np.zeros(len(bins)), where=trials > 0)
    found = rng.binomial(trials, np.clip(share, 0.0, 1.0), size=(draws, len(bins)))
    if atoms is None or not atoms.exact:
        return found
    index = right_closed(atoms.confidence, bins.edges)
    few = (bins.counts > 0) & (bins.counts <= _SINGLY)
    for b in np.flatnonzero(few):
        here = slice(*np.searchsorted(index, [b, b + 1]))
        chance = np.repeat(atoms.confidence[here], atoms.counts[here])
        if len(chance) == bins.counts[b]:  # a named convention may have put others here
            found[:, b] = (rng.random((draws, len(chance))) < chance).sum(axis=1)
    return found


def consistency_band(simulated: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the central 95% of each bin's simulated accuracies, (bins, 2); NaN where a bin is empty.

    What a perfectly calibrated model would show with these confidences (Bröcker and Smith 2007, "Increasing the
    reliability of reliability diagrams", doi:10.1175/WAF993.1). Each bin on its own: of 15 bins, one in 20 falls
    outside by chance alone.
    """
    found = np.full((len(counts), 2), np.nan)
    filled = counts > 0
    shares = simulated[:, filled] / counts[filled]
    found[filled] = np.quantile(shares, [0.025, 0.975], axis=0, method="inverted_cdf").T
    return found


def calibration_p_value(simulated: np.ndarray, bins: Bins) -> float:
    """Return the p-value of "the confidences are true" by the ECE at these bins.

    The share of simulated label sets (the observed one counted in) whose ECE is at least the observed one
    (consistency resampling, Vaicenavicius et al. 2019, arXiv:1902.06977). It sees only faults that are left
    after averaging within the bins.
    """
    ece = np.abs(bins.confidence_sums - simulated).sum(axis=1) / bins.samples
    # Equal label sets must count as equal, whatever order their float sums were taken in.
    return (1 + int(np.count_nonzero(ece >= bins.ece - 1e-12))) / (1 + len(simulated))


def simulate_grouped(bins: Bins, groups: Groups, rng: np.random.Generator, draws: int = SIMULATIONS) -> np.ndarray:
    """Return right labels in each bin as for a calibrated model whose samples depend within groups, (draws, bins).

    Normal with the expected numbers as mean and the groups' own scatter about them, sum_g d_g d_g^T, as covariance, in
    no bin less than that of independent labels: few groups show a bin's scatter too small about as often as too large,
    and a p-value is then too small (40 groups of one sample: 14% below 5%).
    """
    each = groups.confidence_sums - groups.correct
    size = len(groups)
    covariance = each.T @ each * (size / (size - 1))
    covariance += np.diag(np.maximum(bins.label_variances - np.diag(covariance), 0.0))
    values, vectors = np.linalg.eigh(covariance)
    noise = rng.standard_normal((draws, len(bins))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return np.clip(bins.confidence_sums + noise, 0.0, bins.counts)


def bootstrap_ece(
    bins: Bins, rng: np.random.Generator, groups: Groups | None = None, draws: int = SIMULATIONS
) -> np.ndarray:
    """Return the plug-in ECE of resampled data sets, (draws,): of samples, or of whole groups.

    For samples the numbers of right and wrong ones in each bin are exactly multinomial, and their summed confidences
    are drawn from a normal distribution with the moments of those seen: no sample is touched again. Percentiles of
    these are a usual interval, which fails where it matters (see `ece_interval`): here for comparison with others.
    """
    n = bins.samples
    if groups is not None:
        each, sizes = groups.confidence_sums - groups.correct, groups.counts.sum(axis=1)
        found = np.empty(draws)
        for i in range(draws):
            weights = np.bincount(rng.integers(len(sizes), size=len(sizes)), minlength=len(sizes)).astype(np.float64)
            found[i] = np.abs(weights @ each).sum() / (weights @ sizes)
        return found
    wrong = bins.counts - bins.correct
    squares = bins.confidence_sums - bins.label_variances
    right_sums = (squares + bins.correct - bins.squared_errors) / 2
    sums = np.stack([bins.confidence_sums - right_sums, right_sums])
    counts = np.stack([wrong, bins.correct])
    means = np.divide(sums, counts, out=np.zeros(sums.shape), where=counts > 0)
    # One variance of the confidence about its two means for each bin.
    within = np.maximum(squares - (counts * means**2).sum(axis=0), 0.0) / np.maximum(bins.counts, 1)
    shares = np.append(counts.reshape(-1), bins.outside) / n
    drawn = rng.multinomial(n, shares / shares.sum(), size=draws)[:, :-1].reshape(draws, 2, -1)
    noise = rng.standard_normal(drawn.shape) * np.sqrt(drawn * within)
    gaps = (drawn * means + noise).sum(axis=1) - drawn[:, 1]
    return np.abs(gaps).sum(axis=1) / n
