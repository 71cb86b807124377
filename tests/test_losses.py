"""Losses against worked numbers, to their printed precision, and against what each is defined to be."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import Objective, Task, losses
from landscape.errors import ObjectiveError, TrainingError
from landscape.reduction import split_value
from landscape.training.loss import bind
from landscape.training.losses.calibrated import soft_ece
from landscape.training.losses.classification import sparsemax_probabilities
from landscape.training.losses.evidence import vacuity
from landscape.training.losses.imbalance import class_balanced_weights
from landscape.training.losses.margins import CosineHead
from landscape.training.losses.metric import circle_of, multi_similarity_of
from landscape.training.losses.segmentation import jaccard_metric_of


def tensor(*values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def printed(value: torch.Tensor, number: str) -> None:
    """Hold a value to every digit of a printed number: half a unit in its last place."""
    digits = len(number.partition(".")[2])
    assert abs(float(value) - float(number)) <= 0.5000001 * 10**-digits, f"{float(value):.12g} is not {number}"


ERRORS = tensor(2, -3, 1, -2, -20)
LOGITS, LABEL = tensor([2.0, 1.0, 0.0]), torch.tensor([0])
#: Five predictions of three classes, and their labels.
PREDICTIONS = tensor([0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2], [0.2, 0.5, 0.3])
LABELS = torch.tensor([1, 0, 2, 1, 0])

# ------------------------------------------------------------------------------------------ worked numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("mse", "83.6"),
        ("mae", "5.6"),
        ("huber(delta=5)", "19.3"),
        ("huber", "5.1"),
        ("smooth_l1(beta=5)", "3.86"),
        ("pseudo_huber(delta=5)", "17.315829"),
        ("log_cosh", "4.939994"),
        ("rmse", "9.14330"),
    ],
)
def test_regression(text, number):
    printed(losses.build(text)(ERRORS, torch.zeros(5, dtype=torch.float64)), number)


def test_terms_of_the_huber_loss():
    each = [float(losses.get("huber", delta=5.0)(e, torch.zeros_like(e))) for e in ERRORS]
    assert each == [2, 4.5, 0.5, 2, 87.5]


def test_binary_cross_entropy_and_brier():
    p = tensor(0.95, 0.7, 0.9, 0.5, 0.2)
    ones = torch.ones_like(p)
    each = [losses.get("bce")(z, torch.ones_like(z)) for z in p.logit()]
    for value, number in zip(each, ["0.051293", "0.356675", "0.105361", "0.693147", "1.609438"], strict=True):
        printed(value, number)
    printed(losses.get("bce")(p.logit(), ones), "0.563183")
    printed(losses.get("binary_brier")(p.logit(), ones), "0.1985")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("cross_entropy", ["0.223144", "0.356675", "0.510826", "0.916291", "1.609438"]),
        ("focal", ["0.008926", "0.032101", "0.081732", "0.329865", "1.030040"]),
    ],
)
def test_classification_of_each_prediction(text, numbers):
    loss = losses.build(text)
    for p, y, number in zip(PREDICTIONS, LABELS, numbers, strict=True):
        printed(loss(p.log()[None], y[None]), number)


def test_classification_means_and_the_ends_of_poly1():
    logits = PREDICTIONS.log()
    printed(losses.get("cross_entropy")(logits, LABELS), "0.723275")
    printed(losses.get("brier")(logits, LABELS), "0.396")
    poly = losses.get("poly1", epsilon=2.0)
    printed(poly(logits[:1], LABELS[:1]), "0.623144")
    printed(poly(logits[-1:], LABELS[-1:]), "3.209438")


@pytest.mark.parametrize(("p", "weight", "balanced"), [(0.9, "0.01", "0.000263401"), (0.2, "0.64", "0.257510")])
def test_focal_weights(p, weight, balanced):
    z, one = tensor(p).logit(), tensor(1.0)
    plain = losses.get("binary_focal", alpha=None)(z, one)
    printed(plain / losses.get("bce")(z, one), weight)
    printed(losses.get("binary_focal", alpha=0.25)(z, one), balanced)
    two = torch.stack([torch.zeros_like(z), z], dim=1)
    printed(losses.get("focal", alpha=0.25)(two, torch.tensor([1])), balanced)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("cross_entropy", "0.4076060"),
        ("focal(gamma=2)", "0.0456778"),
        ("poly1_focal(epsilon=1)", "0.0831921"),
        ("squentropy", "0.9076060"),
        ("label_smoothing(0.1)", "0.5076060"),
        ("gce(0.7)", "0.3546136"),
        ("class_mae", "0.6695181"),
        ("rce(log_zero=-4)", "1.3390362"),
        ("nce", "0.0965246"),
        ("nfl(gamma=0.5)", "0.0627919"),
        ("z_loss(a=1, b=0)", "0.2576089"),
        ("one_vs_rest", "2.1333369"),
        ("evidential", "0.4761905"),
        ("evidential_likelihood", "0.6931472"),
        ("ldr(temperature=1, margin=0)", "-0.6910063"),
        ("sparsemax", "0.0000000"),
    ],
)
def test_logits_2_1_0(text, number):
    printed(losses.build(text)(LOGITS, LABEL), number)


def test_poly1_of_logits_2_1_0():
    # Worked out as .4076060 + .3347591 = .7423651, which adds a rounding of its own: the sum is .74236501.
    value = losses.get("poly1", epsilon=1.0)(LOGITS, LABEL)
    printed(value, "0.7423650")
    assert float(value) == pytest.approx(0.7423651, abs=1e-7)


def test_vacuity_and_the_other_label_of_sparsemax():
    printed(vacuity(LOGITS), "0.5")
    printed(losses.get("sparsemax")(LOGITS, torch.tensor([1])), "1.0000000")


def test_sparsemax_of_close_logits():
    z = tensor([0.5, 0.2, -0.1])
    for value, number in zip(sparsemax_probabilities(z)[0], ["0.6333", "0.3333", "0.0333"], strict=True):
        printed(value, number)
    printed(losses.get("sparsemax")(z, torch.tensor([0])), "0.123333")
    printed(losses.get("sparsemax")(z, torch.tensor([2])), "0.723333")


def test_pair_similarities():
    s, positive = tensor([0.8, 0.3]), torch.tensor([[True, False]])
    printed(circle_of(s, positive, ~positive, margin=0.25, gamma=256), "1.525326")
    printed(multi_similarity_of(s, positive, ~positive, alpha=2, beta=50, base=0.5), "0.218745")


@pytest.mark.parametrize(
    ("name", "target", "number"),
    [
        ("giou", [1, 1, 3, 3], "1.079365"),
        ("diou", [1, 1, 3, 3], "0.968254"),
        ("diou", [0, 0, 4, 2], "0.55"),
        ("ciou", [0, 0, 4, 2], "0.553248"),
    ],
)
def test_boxes(name, target, number):
    printed(losses.get(name)(tensor([0, 0, 2, 2]), tensor(target)), number)


def test_intersection_over_union():
    overlap = 1 - losses.get("iou")(tensor([0, 0, 2, 2]), tensor([1, 1, 3, 3]))
    assert float(overlap) == pytest.approx(1 / 7, abs=1e-14)


def test_jaccard_metric():
    p, y = tensor(0.9, 0.6, 0.2), tensor(1, 1, 0)
    printed(jaccard_metric_of(p, y), "0.318182")
    assert float(jaccard_metric_of(p, p)) == 0
    assert float(jaccard_metric_of(torch.zeros(3), torch.zeros(3))) == 0


# --------------------------------------------------------------------------------- definitions and their traps


def test_contrastive_takes_0_for_similar():
    a, b = tensor([0.0, 0.0]), tensor([0.3, 0.4])
    assert float(losses.get("contrastive")((a, b), tensor(0))) == pytest.approx(0.5 * 0.25)
    assert float(losses.get("contrastive")((a, b), tensor(1))) == pytest.approx(0.5 * 0.25)  # (1 - 0.5)^2 / 2
    assert float(losses.get("contrastive", margin=2.0)((a, b), tensor(1))) == pytest.approx(0.5 * 1.5**2)


def test_l2_is_weight_decay_of_torch():
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    loss = losses.build("mse + 0.3*l2").bind(model)
    split_value(loss(model(x), y))[0].backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    F.mse_loss(twin(x), y).backward()
    torch.optim.SGD(twin.parameters(), lr=0.1, weight_decay=0.3).step()
    assert torch.allclose(model.weight, twin.weight, atol=1e-14)
    assert torch.allclose(model.bias, twin.bias, atol=1e-14)


def test_penalties_of_a_known_model():
    model = nn.Linear(2, 1).double()
    with torch.no_grad():
        model.weight.copy_(tensor([3.0, -4.0]))
        model.bias.fill_(2.0)
    values = {t: losses.build(t).bind(model)().item() for t in ("l1", "l2", "elastic_net(0.25)", "norm_loss")}
    assert values == {
        "l1": 9,
        "l2": 14.5,
        "elastic_net(0.25)": pytest.approx(0.25 * 9 + 0.75 * 14.5),
        "norm_loss": pytest.approx(16),
    }
    assert losses.get("l1", biases=False).bind(model)().item() == 7


def test_a_penalty_without_a_model_says_what_to_call():
    with pytest.raises(TrainingError, match=r"call loss\.bind\(model\)"):
        losses.get("l2")()
    model = nn.Linear(1, 1)
    assert bind(losses.build("mse + l2"), model).parts["l2"].model is model


def test_a_bound_model_is_no_part_of_the_loss():
    assert list(losses.get("l2").bind(nn.Linear(2, 2)).parameters()) == []


def test_class_balanced_weights_are_the_papers():
    weights = class_balanced_weights([1000, 10], beta=0.99)
    ratio = (1 - 0.99**1000) / (1 - 0.99**10)
    assert float(weights[1] / weights[0]) == pytest.approx(ratio)
    assert float(weights.sum()) == pytest.approx(2)
    assert torch.equal(class_balanced_weights([7, 3], beta=0.0), tensor(1, 1))


def test_logit_adjustment_cancels_the_prior():
    # A model whose softmax is the prior itself is the constant classifier: adjusted by 1, its logits double.
    counts = (8, 2)
    prior = tensor([0.8, 0.2]).log()
    value = losses.get("logit_adjusted", counts=counts)(prior, torch.tensor([1]))
    assert float(value) == pytest.approx(-math.log(0.2**2 / (0.8**2 + 0.2**2)))


def test_ohem_keeps_the_hardest():
    each = -PREDICTIONS[torch.arange(5), LABELS].log()
    value = losses.get("ohem", share=0.4)(PREDICTIONS.log(), LABELS)
    assert float(value) == pytest.approx(float(each.sort().values[-2:].mean()))
    assert float(losses.get("ohem", share=0.01)(PREDICTIONS.log(), LABELS)) == pytest.approx(float(each.max()))


def test_sovr_switches_the_samples_with_small_margins():
    z, y = tensor([3.0, 0.0], [0.1, 0.0], [2.0, 0.0]), torch.tensor([0, 0, 0])
    ce = F.cross_entropy(z, y, reduction="none")
    switched = F.softplus(-z[1, 0]) + F.softplus(z[1, 1])
    value = losses.get("sovr", share=1 / 3, weight=2.0)(z, y)
    assert float(value) == pytest.approx(float((ce[0] + 2 * switched + ce[2]) / 3))
    assert float(losses.get("sovr", share=0.0)(z, y)) == pytest.approx(float(ce.mean()))


def test_margins_of_cosines():
    cosines, y = tensor([0.6, 0.2]), torch.tensor([0])
    moved = tensor([math.cos(math.acos(0.6) + 0.5), 0.2])
    assert float(losses.get("arcface")(cosines, y)) == pytest.approx(float(F.cross_entropy(64 * moved, y)))
    lowered = tensor([0.25, 0.2])
    assert float(losses.get("cosface")(cosines, y)) == pytest.approx(float(F.cross_entropy(64 * lowered, y)))


@pytest.mark.parametrize("name", ["arcface", "cosface"])
def test_without_a_margin_they_are_cross_entropy(name):
    cosines, y = tensor([0.6, 0.2], [-0.9, 0.3]), torch.tensor([0, 0])
    value = losses.get(name, margin=0.0, scale=3.0)(cosines, y)
    assert float(value) == pytest.approx(float(F.cross_entropy(3 * cosines, y)), abs=1e-12)


def test_adaface_is_arcface_for_small_norms_and_cosface_for_large_ones():
    # With h = 10 the smaller norm stands at -1, where the margin is all in the angle (arcface with the angle
    # enlarged), the larger at +1, where the angle shrinks by m and 2 m are taken off.
    cosines, y = tensor([0.5, 0.1], [0.5, 0.1]), torch.tensor([0, 0])
    value = losses.get("adaface", margin=0.4, concentration=10.0)((cosines, tensor(1.0, 9.0)), y)
    angle = math.acos(0.5)
    expected = [
        F.cross_entropy(64 * tensor([math.cos(angle + 0.4), 0.1]), y[:1]),
        F.cross_entropy(64 * tensor([math.cos(angle - 0.4) - 0.8, 0.1]), y[:1]),
    ]
    assert float(value) == pytest.approx(float(sum(expected)) / 2, rel=1e-9)


def test_the_cosine_head_gives_cosines_and_norms():
    torch.manual_seed(0)
    head = CosineHead(5, 3, norms=True).double()
    features = torch.randn(4, 5).double()
    cosines, norms = head(features)
    assert torch.allclose(cosines[1, 2], F.cosine_similarity(features[1], head.weight[2], dim=0))
    assert torch.allclose(norms, features.norm(dim=1))


def test_evidential_divergence_is_torchs_dirichlet():
    z, y = tensor([2.0, 1.0, 0.5]), torch.tensor([0])
    with_kl = losses.get("evidential", kl=0.5)(z, y) - losses.get("evidential")(z, y)
    misled = torch.distributions.Dirichlet(tensor(1.0, 2.0, 1.5))
    flat = torch.distributions.Dirichlet(tensor(1.0, 1.0, 1.0))
    assert float(with_kl) == pytest.approx(0.5 * float(torch.distributions.kl_divergence(misled, flat)))


def test_soft_ece_with_hard_bins_is_the_binned_error():
    p = tensor([0.92, 0.08], [0.95, 0.05], [0.65, 0.35], [0.68, 0.32])
    y = torch.tensor([0, 1, 0, 0])
    # Two bins of five (centers .7 and .9) hold two samples each: gaps |.5 - .935| and |1 - .665|.
    value = soft_ece(p.log(), y, bins=5, temperature=1e-6, norm=1)
    assert float(value) == pytest.approx(0.5 * abs(0.5 - 0.935) + 0.5 * abs(1 - 0.665))
    value = soft_ece(p.log(), y, bins=5, temperature=1e-6, norm=2)
    assert float(value) == pytest.approx(math.sqrt(0.5 * 0.435**2 + 0.5 * 0.335**2))


def test_mmce_of_two_samples_by_hand():
    p, y = tensor([0.9, 0.1], [0.6, 0.4]), torch.tensor([0, 1])
    a, b, k = 0.1, -0.6, math.exp(-0.3 / 0.4)
    expected = math.sqrt((a * a + b * b + 2 * a * b * k) / 4)
    assert float(losses.get("mmce")(p.log(), y)) == pytest.approx(expected)


def test_anyloss_of_decided_predictions_is_one_minus_the_metric():
    z, y = tensor(9.0, 9.0, -9.0, -9.0, 9.0), tensor(1, 0, 1, 0, 1)  # 2 hits, 1 false alarm, 1 missed
    expected = {"accuracy": 2 / 5, "f1": 1 / 3, "balanced_accuracy": 1 - (2 / 3 + 1 / 2) / 2, "g_mean": 1 - 1 / 3**0.5}
    for metric, value in expected.items():
        assert float(losses.get("anyloss", metric=metric)(z, y)) == pytest.approx(value, abs=1e-9)


def test_mined_triplets_against_every_triplet_tried():
    torch.manual_seed(3)
    x, y = torch.randn(8, 2).double(), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    hard, semi = [], []
    for a in range(8):
        positives = [i for i in range(8) if y[i] == y[a] and i != a]
        negatives = [i for i in range(8) if y[i] != y[a]]
        hard.append(max(float(max(d[a, p] for p in positives) - min(d[a, n] for n in negatives)) + 1, 0))
        for p in positives:
            beyond = [float(d[a, n]) for n in negatives if d[a, n] > d[a, p]]
            chosen = min(beyond) if beyond else max(float(d[a, n]) for n in negatives)
            semi.append(max(float(d[a, p]) - chosen + 1, 0))
    assert float(losses.get("triplet_hard")(x, y)) == pytest.approx(sum(hard) / len(hard))
    assert float(losses.get("triplet_semi_hard")(x, y)) == pytest.approx(sum(semi) / len(semi))


def test_given_triplets_are_torchs():
    torch.manual_seed(0)
    parts = [torch.randn(4, 3) for _ in range(3)]
    assert torch.equal(losses.get("triplet", margin=0.3)(parts), nn.TripletMarginLoss(margin=0.3)(*parts))


def test_nt_xent_and_info_nce_against_loops():
    torch.manual_seed(1)
    a, b = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    z = F.normalize(torch.cat([a, b]), dim=1)
    value = 0.0
    for i in range(6):
        j = (i + 3) % 6
        others = sum(math.exp(float(z[i] @ z[k]) / 0.5) for k in range(6) if k != i)
        value -= math.log(math.exp(float(z[i] @ z[j]) / 0.5) / others) / 6
    assert float(losses.get("nt_xent")((a, b))) == pytest.approx(value)
    one_way = 0.0
    for i in range(3):
        all_ = sum(math.exp(float(z[i] @ z[3 + k]) / 0.07) for k in range(3))
        one_way -= math.log(math.exp(float(z[i] @ z[3 + i]) / 0.07) / all_) / 3
    assert float(losses.get("info_nce")((a, b))) == pytest.approx(one_way)


def test_circle_and_multi_similarity_on_embeddings_use_each_anchors_pairs():
    torch.manual_seed(2)
    x, y = torch.randn(5, 3).double(), torch.tensor([0, 0, 1, 1, 1])
    z = F.normalize(x, dim=1)
    expected = 0.0
    for i in range(5):
        sp = torch.stack([z[i] @ z[j] for j in range(5) if j != i and y[j] == y[i]])
        sn = torch.stack([z[i] @ z[j] for j in range(5) if y[j] != y[i]])
        p = (torch.exp(-8 * (1.25 - sp).clamp(min=0) * (sp - 0.75))).sum()
        n = (torch.exp(8 * (sn + 0.25).clamp(min=0) * (sn - 0.25))).sum()
        expected += float(torch.log(1 + p * n)) / 5
    assert float(losses.get("circle", gamma=8.0)(x, y)) == pytest.approx(expected)
    everything = losses.get("multi_similarity", epsilon=None)(x, y)
    mined = losses.get("multi_similarity", epsilon=10.0)(x, y)
    assert float(everything) == pytest.approx(float(mined))
    assert float(losses.get("multi_similarity", epsilon=-10.0)(x, y)) == 0


def test_a_batch_without_triplets_is_a_line():
    with pytest.raises(TrainingError, match="finds no triplet in a batch of 2"):
        losses.get("triplet_hard")(torch.randn(2, 3), torch.tensor([0, 0]))


def test_dice_and_jaccard_of_perfect_and_opposite_masks():
    y = torch.tensor([[[0, 1], [1, 1]]])
    right = 100 * F.one_hot(y, 2).movedim(-1, 1).double()
    for name in ("dice", "jaccard", "jaccard_metric"):
        assert float(losses.get(name)(right, y)) == pytest.approx(0, abs=1e-9)
    half = torch.zeros(1, 2, 2, 2, dtype=torch.float64)  # p = 1/2 everywhere: sizes 2 and 2, truth 1 and 3
    assert float(losses.get("dice", smooth=0.0)(half, y)) == pytest.approx(1 - (1 / 3 + 3 / 5) / 2)
    assert float(losses.get("jaccard", smooth=0.0)(half, y)) == pytest.approx(1 - (0.5 / 2.5 + 1.5 / 3.5) / 2)


def test_total_variation_of_a_step():
    z = torch.zeros(1, 2, 2, 4, dtype=torch.float64)
    z[:, 0, :, 2:], z[:, 1, :, :2] = 60, 60  # shares jump from (0, 1) to (1, 0) in the middle: 1 of 3 steps
    assert float(losses.get("total_variation")(z)) == pytest.approx(1 / 3)
    assert float(losses.get("total_variation")(torch.zeros(1, 2, 3, 3))) == 0


def test_coral_and_mmd():
    a = tensor([0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0])
    assert float(losses.get("coral")((a, a + 5))) == pytest.approx(0, abs=1e-14)
    # The covariance is 4/3 I and, of the doubled set, 16/3 I: 2 * 4^2 / (4 * 2^2).
    assert float(losses.get("coral")((a, 2 * a))) == pytest.approx(2.0)
    assert float(losses.get("mmd")((a, a))) == pytest.approx(0, abs=1e-14)
    one, other = tensor([0.0]), tensor([1.0])
    assert float(losses.get("mmd", widths=(1.0,))((one, other))) == pytest.approx(2 - 2 * math.exp(-0.5))


def test_consistency_holds_the_teacher_fixed():
    student, teacher = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    losses.get("consistency", measure="kl")((student, teacher)).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_detection_is_the_sum_of_its_recorded_terms():
    outputs = {
        "cls": tensor([1.0, 0.0], [5.0, 1.0]),
        "box": tensor([0, 0, 2, 2], [0, 0, 1, 1]),
        "obj": tensor(0.0, 0.0),
    }
    target = {"cls": torch.tensor([0, -1]), "box": tensor([0, 0, 4, 2], [9, 9, 9, 9]), "obj": tensor(1, 0)}
    terms = losses.get("detection", l1=2.0, l2=3.0, l3=4.0)(outputs, target)
    assert set(terms) == {"cls", "box", "obj"}
    assert float(terms["cls"]) == pytest.approx(2 * math.log(1 + math.exp(-1)) / 2)
    printed(terms["box"] / 3 * 2, "0.553248")
    assert float(terms["obj"]) == pytest.approx(4 * math.log(2))


def test_vat_finds_the_direction_that_changes_the_predictions_most():
    model = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(tensor([1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]))
    loss = losses.get("vat", epsilon=1.0, iterations=2).bind(model)
    x = torch.zeros(4, 3, dtype=torch.float64)
    direction = loss.direction(model(x), x)
    assert torch.allclose(direction.abs(), tensor([1.0, 0.0, 0.0]).expand(4, 3), atol=1e-6)
    p = 1 / (1 + math.exp(-2))
    assert loss((model(x), x)).item() == pytest.approx(-0.5 * math.log(4 * p * (1 - p)), abs=1e-9)
    assert torch.equal(loss((model(x), x)), loss((model(x), x)))


def test_scheduled_pseudo_huber_runs_from_delta_1_to_its_own():
    e = tensor([3.0, -1.0])
    for time, delta in ((0.0, 1.0), (1.0, 0.2), (0.5, math.sqrt(0.2))):
        value = losses.get("scheduled_pseudo_huber", delta=0.2)((e, tensor(time)), torch.zeros_like(e))
        assert float(value) == pytest.approx(float(losses.get("pseudo_huber", delta=delta)(e, torch.zeros_like(e))))


def test_apl_is_the_sum_of_its_parts():
    value = losses.get("apl", alpha=2.0, beta=3.0, active="nfl", passive="mae")(LOGITS, LABEL)
    printed(value, f"{2 * 0.06279191474 + 3 * 0.66951808846:.7f}")
    with pytest.raises(TrainingError, match="no part 'gce'; expected one of nce, nfl"):
        losses.get("apl", active="gce")(LOGITS, LABEL)


# ------------------------------------------------------------------------------------------ inside the toolkit


@pytest.mark.parametrize(
    "text", ["focal", "0.9*cross_entropy + 0.1*brier", "cross_entropy + 0.01*l2", "class_balanced([9, 5, 2])"]
)
def test_an_objective_takes_them_whatever_the_batches(text):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(10, 4).double(), torch.randint(3, (10,))
    values = []
    for size in (10, 4):
        loss = bind(losses.build(text), model)
        with Objective(Task(model, loss, (x, y), batch_size=size)) as objective:
            values.append(objective.evaluate().loss)
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_a_loss_that_couples_samples_says_so_to_its_task():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(9, 4).double(), torch.randint(3, (9,))
    loss = losses.get("mmce")
    with pytest.raises(ObjectiveError, match="rebatch=False"), Objective(Task(model, loss, (x, y))):
        pass
    with Objective(Task(model, loss, [(x, y)], rebatch=loss.rebatch)) as objective:
        assert objective.evaluate().loss == pytest.approx(loss(model(x), y).item())


def test_outputs_that_do_not_fit_are_a_line():
    message = (
        r"focal takes logits \(n, classes, \.\.\.\) and integer labels \(n, \.\.\.\); got outputs float32 \(4, 1\)"
    )
    with pytest.raises(ObjectiveError, match=message):
        losses.get("focal")(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ObjectiveError, match="cross_entropy takes logits"):
        losses.check("0.9*cross_entropy + 0.1*soft_ece", torch.zeros(4, 1), torch.zeros(4))
    losses.check("focal", torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("temperature_ce(0)", "temperature=0 must be above 0"),
        ("class_balanced([3, 0])", "at least 1 each"),
        ("class_balanced([3, 1], beta=1)", r"beta=1 must lie in \[0, 1\)"),
        ("elastic_net(2)", r"ratio=2 must lie in \[0, 1\]"),
        ("gce(0)", r"q=0 must lie in \(0, 1\]"),
        ("ohem(share=0)", "share=0 must lie in"),
        ("focal(alpha=[1, 2])", "2 weights alpha for 3 classes"),
        ("logit_adjusted([1, 2])", "2 entries for 3 classes"),
        ("anyloss('auc')", "no metric 'auc'"),
        ("evidential('tanh')", "evidence='tanh' is not one of"),
        ("soft_ece(bins=0)", "bins >= 1"),
    ],
)
def test_settings_that_make_no_sense_are_a_line(text, message):
    y = torch.ones(1) if text.startswith("anyloss") else LABEL
    z = torch.ones(1) if text.startswith("anyloss") else LOGITS
    with pytest.raises(TrainingError, match=message):
        losses.build(text)(z, y)
