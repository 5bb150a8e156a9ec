import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from action.choices import METHODS, SETTINGS
from action.config import (
    AnatomicalContrastConfig,
    AugmentationConfig,
    CopyPasteConfig,
    DistillationConfig,
    ModelConfig,
    TrainConfig,
    UniMatchConfig,
    fill_in,
)
from action.data.batches import SlicePool, step_generator
from action.model.class_shares import ClassShares
from action.model.heads import Pixels
from action.model.teacher import StudentTeacher
from action.stages import make_learner, make_stages
from action.stages.anatomical_contrast import AnatomicalContrast, sample_pixels
from action.stages.base import TrainingData
from action_kernels import MemoryBank

CLASSES = 4
DISTILLATION = DistillationConfig(labeled=2, unlabeled=2, bank=7, weight=1.0)


@pytest.fixture
def config(loaded_cases):
    settings = TrainConfig(
        augmentation=AugmentationConfig(intensity_probability=1.0),  # so that every strong view differs
        model=ModelConfig(channels=(4, 6, 8), embedding=8, window=16, stride=8, pooled=4),
        global_distillation=DISTILLATION,
        local_distillation=DISTILLATION,
        anatomical_contrast=AnatomicalContrastConfig(
            labeled=2, unlabeled=2, queries=10, keys=8, negatives_per_query=6, pixel_bank=50, weak_threshold=0.0
        ),
        copy_paste=CopyPasteConfig(pretraining=0.0),
        unimatch=UniMatchConfig(threshold=0.3),
    )
    return fill_in(settings, "data", "output", (1.5, 1.5), loaded_cases[0].image.shape[2:])


@pytest.fixture
def learner(config):
    return make_learner(config, CLASSES).train()


@pytest.fixture
def data(loaded_cases):
    return TrainingData(
        SlicePool(loaded_cases[:2], labels=True, seed=0),
        SlicePool(loaded_cases[2:], labels=False, seed=1),
    )


def run_step(stage, learner, data, step=0):
    rng = step_generator(0, 0, step)
    losses, to_push = stage.losses(learner.network, stage.batch(data, step, rng), step, rng)
    losses["loss"].backward()
    push_all(to_push)
    return losses


def push_all(to_push):
    for push in to_push:
        push.bank.push(push.rows, push.labels)


def learner_with(config, name):
    """A learner of the method that has the stage ``name``, and the stage."""
    method = next(method for method, stages in METHODS.items() if name in stages)
    learner = make_learner(dataclasses.replace(config, method=method), CLASSES).train()
    return learner, learner.stages[name]


def contrast_stage(config, **settings):
    """Stage 3 with other settings, and its learner."""
    stage_config = dataclasses.replace(config.anatomical_contrast, **settings)
    return learner_with(dataclasses.replace(config, anatomical_contrast=stage_config), "anatomical_contrast")


ALL = [stage for stages in METHODS.values() for stage in stages]


@pytest.mark.parametrize("name", ALL)
def test_every_stage_logs_what_it_says_and_trains_the_student_alone(name, config, data):
    learner, stage = learner_with(config, name)
    for step in range(2):  # the first step of stages 1 and 2 meets an empty bank
        losses = run_step(stage, learner, data, step)
    assert set(losses) == set(stage.loss_names)
    assert all(torch.isfinite(value) for value in losses.values())
    gradients = [p.grad for p in learner.network.student.parameters() if p.grad is not None]
    assert any(g.abs().sum() > 0 for g in gradients)
    pairs = [module for module in learner.modules() if isinstance(module, StudentTeacher)]
    assert all(p.grad is None for pair in pairs for p in pair.teacher.parameters())
    banks = [module for module in learner.modules() if isinstance(module, MemoryBank)]
    assert not any(bank.features.requires_grad for bank in banks)
    assert (len(pairs), len(banks)) == ((4, 3) if name in METHODS["action"] else (1, 0))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_reads_no_settings_but_those_that_it_names(method, config, data):
    config = copy.copy(dataclasses.replace(config, method=method))
    for group in {group for groups in SETTINGS.values() for group in groups} - set(SETTINGS[method]):
        object.__setattr__(config, group, None)  # as frozen settings are checked whenever they are made
    learner = make_learner(config, CLASSES).train()
    for stage in learner.stages.values():
        run_step(stage, learner, data)


def test_the_first_stages_take_the_momentum_that_is_configured(config):
    assert [stage.nesterov for stage in make_stages(config, CLASSES).values()] == [True, True, True]
    plain = dataclasses.replace(DISTILLATION, nesterov=False)
    published = dataclasses.replace(config, global_distillation=plain, local_distillation=plain)
    assert [stage.nesterov for stage in make_stages(published, CLASSES).values()] == [False, False, True]


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("supervised", "unimatch")])
def test_the_teacher_sees_weak_views_and_the_student_strong_ones(name, config, data):
    learner, stage = learner_with(config, name)
    seen = {"student": [], "teacher": []}
    for role in ("student", "teacher"):
        network = getattr(learner.network, role)
        network.encoder[0].register_forward_pre_hook(lambda _, x, role=role: seen[role].append(x[0].clone()))
    batch = stage.batch(data, 0, step_generator(0, 0, 0))
    before = {key: value.clone() for key, value in batch.items()}
    stage.losses(learner.network, batch, 0, step_generator(0, 0, 0))
    (weak,) = seen["teacher"]
    assert torch.equal(weak, before["weak"])
    assert not any(torch.equal(image, other) for images in seen["student"] for image in images for other in weak)
    assert torch.equal(batch["weak"], before["weak"])


def test_stage_1_follows_the_formula_and_fills_its_bank_afterwards(config, learner, data):
    stage = learner.stages["global_distillation"]
    for step in range(3):  # 4 slices a step into a bank of 7: wraps around
        rows = stage.bank.rows.double().clone()
        rng = step_generator(0, 0, step)
        batch = stage.batch(data, step, rng)
        torch.manual_seed(step)  # dropout
        losses, to_push = stage.losses(learner.network, batch, step, rng)
        loss = losses["loss"]
        teacher, student = learner.network.teacher, learner.network.student
        torch.manual_seed(step)
        prediction = stage.predictor(stage.head.student(student.encode(batch["strong"])[-1])).double()
        target = stage.head.teacher(teacher.encode(batch["weak"])[-1]).double()
        if len(rows):
            p = (F.normalize(target) @ F.normalize(rows).T / 0.01).softmax(1)
            log_q = (F.normalize(prediction) @ F.normalize(rows).T / 0.1).log_softmax(1)
            expected = F.kl_div(log_q, p, reduction="batchmean")
            torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=1e-5)
        assert len(stage.bank) == min(7, 4 * step)
        push_all(to_push)
        assert len(stage.bank) == min(7, 4 * (step + 1))
        stored = F.normalize(stage.bank.rows.double())
        similarity = F.normalize(target) @ stored.T
        assert (similarity.max(dim=1).values > 1 - 1e-5).all()


def test_stage_2_has_one_bank_a_window_and_means_over_windows_and_slices(config, learner, data):
    stage = learner.stages["local_distillation"]
    run_step(stage, learner, data, 0)
    positions = ((config.input.size[0] - 16) // 8 + 1) * ((config.input.size[1] - 16) // 8 + 1)
    rows = stage.bank.rows.double().clone()
    assert rows.shape == (positions, 4, CLASSES * 16)
    rng = step_generator(0, 0, 1)
    batch = stage.batch(data, 1, rng)
    torch.manual_seed(9)
    losses, _ = stage.losses(learner.network, batch, 1, rng)
    torch.manual_seed(9)
    student = stage.head.student(learner.network.student(batch["strong"]).logits).double()
    teacher = stage.head.teacher(learner.network.teacher(batch["weak"]).logits).double()
    expected = []
    for n in range(positions):
        bank = F.normalize(rows[n])
        p = (F.normalize(teacher[n]) @ bank.T / 0.01).softmax(1)
        log_q = (F.normalize(student[n]) @ bank.T / 0.1).log_softmax(1)
        expected.append((p * (p.clamp_min(1e-300).log() - log_q)).sum(1))
    torch.testing.assert_close(losses["local"].double(), torch.stack(expected).mean(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(losses["loss"], losses["supervised"] + losses["global"] + losses["local"])


def test_stage_3_moves_image_pseudo_label_and_confidence_together(config):
    config = dataclasses.replace(
        config, augmentation=AugmentationConfig(intensity_probability=0.0, deformation=6.0, deformation_probability=1.0)
    )
    _, stage = contrast_stage(config)
    image = torch.zeros(3, 1, *config.input.size)
    image[:, :, 8:20, 10:24] = 1.0
    image += torch.arange(3)[:, None, None, None] * 0.1
    pseudo = {"image": image, "label": (image > 0.5).float(), "confidence": 0.5 + image / 4}
    partner = {key: value.roll(1, dims=0) for key, value in pseudo.items()}
    strong = stage.strong_view(pseudo, partner, np.random.default_rng(0))
    inside = strong["confidence"] > 0
    agrees = (strong["image"] > 0.5) == (strong["label"] > 0.5)
    assert not torch.equal(strong["label"], pseudo["label"])
    assert agrees[inside].float().mean() > 0.95
    close = ((strong["confidence"] - 0.5) * 4 - strong["image"]).abs() < 0.15
    assert close[inside].float().mean() > 0.85  # all but interpolated edges


def pseudo_labels(stage, learner, data, monkeypatch):
    """The batch of a step, the pseudo-labelled slices before they are mixed, and the slices mixed into them."""
    seen = []
    original = AnatomicalContrast.strong_view
    monkeypatch.setattr(AnatomicalContrast, "strong_view", lambda *a: seen.extend(a[1:3]) or original(*a))
    rng = step_generator(0, 0, 0)
    batch = stage.batch(data, 0, rng)
    stage.losses(learner.network, batch, 0, rng)
    return batch, *seen


def test_pseudo_labels_are_the_teachers_classes_of_the_unlabelled_slices(config, data, monkeypatch):
    learner, stage = contrast_stage(config, pseudo_label_alignment=False)
    batch, seen, _ = pseudo_labels(stage, learner, data, monkeypatch)
    with torch.no_grad():
        probability = learner.network.teacher(batch["weak"][2:]).logits.softmax(1)
        confidence, label = probability.max(1, keepdim=True)
    torch.testing.assert_close(seen["confidence"], confidence, rtol=1e-4, atol=1e-5)
    assert (seen["label"] == label).float().mean() > 0.999
    assert len(seen["label"]) == 2


def test_pseudo_labels_are_aligned_to_the_labels_shares_of_the_classes(learner, data, monkeypatch):
    stage = learner.stages["anatomical_contrast"]
    batch, seen, _ = pseudo_labels(stage, learner, data, monkeypatch)
    with torch.no_grad():
        probability = learner.network.teacher(batch["weak"][2:]).logits.softmax(1)
    share = torch.bincount(batch["weak_label"].long().flatten(), minlength=CLASSES) / batch["weak_label"].numel()
    odds = probability * (share / probability.mean(dim=(0, 2, 3)))[:, None, None]
    confidence, label = (odds / odds.sum(1, keepdim=True)).max(1, keepdim=True)
    torch.testing.assert_close(seen["confidence"], confidence, rtol=1e-4, atol=1e-5)
    assert (seen["label"] == label).float().mean() > 0.999
    assert not torch.equal(label, probability.argmax(1, keepdim=True))


def test_pseudo_labels_alone_are_stage_3_without_its_contrast(config, data):
    settings = {"contrast_weight": 0.0, "strong_threshold": 0.3, "pseudo_label_threshold": 0.0, "ramp_up": 0.0}
    changed = dataclasses.replace(config.anatomical_contrast, **settings)
    config = dataclasses.replace(config, anatomical_contrast=changed)
    found = []
    for name in ("anatomical_contrast", "pseudo_labels"):
        torch.manual_seed(0)
        learner, stage = learner_with(config, name)
        losses = run_step(stage, learner, data)
        found.append((losses, [p.grad for p in learner.network.student.parameters()]))
    (stage_3, gradients), (alone, others) = found
    assert alone["unsupervised"] > 0 and all(torch.equal(stage_3[name], alone[name]) for name in alone)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients, others, strict=True))


def test_class_shares_are_running_means_whose_first_batches_count_alike():
    shares = ClassShares(2, momentum=0.75)
    labels = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]  # one class fills each batch
    for number, value in enumerate(labels, 1):
        shares.align(torch.full((1, 2, 4, 4), 0.5), torch.full((1, 1, 4, 4), value))
        if number <= 4:
            torch.testing.assert_close(shares.labeled[1], torch.tensor(labels[:number]).mean())
    torch.testing.assert_close(shares.labeled[1], torch.tensor((0.5 * 0.75 + 0.25) * 0.75 + 0.25))
    torch.testing.assert_close(shares.unlabeled, torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("mix_with", ["unlabeled", "labeled"])
def test_partners_of_unlabelled_slices(config, data, mix_with, monkeypatch):
    learner, stage = contrast_stage(config, mix_with=mix_with)
    batch, pseudo, partner = pseudo_labels(stage, learner, data, monkeypatch)
    assert partner["image"].shape == pseudo["image"].shape
    if mix_with == "unlabeled":
        for key, value in pseudo.items():
            assert torch.equal(partner[key], value.roll(1, dims=0))
    else:
        assert (partner["confidence"] == 1).all()
        truth = batch["weak_label"]  # of the first slices of "weak"
        for image, label in zip(partner["image"], partner["label"], strict=True):
            source = [torch.equal(image, other) for other in batch["weak"]].index(True)
            assert torch.equal(label, truth[source].to(label))


def outputs(learner, images):
    return learner.network.student(images), learner.network.teacher(images)


def test_contrast_with_fewer_than_two_classes_is_zero_with_a_graph(config, learner):
    stage = learner.stages["anatomical_contrast"]
    student, teacher = outputs(learner, torch.rand(2, 1, *config.input.size))
    for only in (-1, 2):  # no valid pixel at all; a single class
        labels = torch.full((2, *config.input.size), only)
        loss, _ = stage.contrast(student, labels, teacher, labels, 0, np.random.default_rng(0))
        assert loss.item() == pytest.approx(0.0, abs=1e-6) and loss.device == student.logits.device
        loss.backward(retain_graph=True)


@pytest.mark.parametrize("negatives", ["bank", "batch"])
@pytest.mark.parametrize("selection", ["relation", "hardest"])
def test_contrast_follows_the_formula(config, negatives, selection, monkeypatch):
    learner, stage = contrast_stage(config, negatives=negatives, selection=selection)
    stage.pixel_bank.push(F.normalize(torch.randn(40, 8)), torch.arange(40) % CLASSES)
    student, teacher = outputs(learner, torch.rand(2, 1, *config.input.size))
    label = torch.randint(0, CLASSES, (2, *config.input.size))
    seen = {}
    import action.stages.anatomical_contrast as module

    original = module.anatomical_contrast
    monkeypatch.setattr(
        module,
        "anatomical_contrast",
        lambda q, p, b, i, **k: seen.update(q=q, p=p, b=b, i=i) or original(q, p, b, i, **k),
    )
    loss, (_, keys, key_labels) = stage.contrast(student, label, teacher, label, 0, np.random.default_rng(0))
    labels = {"bank": stage.pixel_bank.labels, "batch": key_labels}[negatives]
    rows = {"bank": stage.pixel_bank.rows, "batch": keys}[negatives]
    assert torch.equal(seen["b"], rows)
    for name in ("q", "p", "b"):  # once, and not again in the kernels
        torch.testing.assert_close(seen[name].norm(dim=1), torch.ones(len(seen[name])))
    # Which class each query has follows from its positive: the mean key of its class.
    means = torch.stack([F.normalize(keys[key_labels == c].mean(0), dim=0) for c in range(CLASSES)])
    query_class = torch.cdist(seen["p"], means).argmin(1)
    torch.testing.assert_close(seen["p"], means[query_class])
    assert (labels[seen["i"]] != query_class[:, None]).all()  # every negative is of another class
    q, p, b = seen["q"].double(), seen["p"].double(), rows.double()
    positive = (q * p).sum(1, keepdim=True) / 0.5
    negative = torch.einsum("nd,nkd->nk", q, b[seen["i"]]) / 0.5
    each = torch.cat([positive, negative], 1).logsumexp(1) - positive[:, 0]
    expected = torch.stack([each[query_class == c].mean() for c in query_class.unique()]).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    if selection == "hardest":
        masked = (q @ b.T).masked_fill(labels[None] == query_class[:, None], -9)
        torch.testing.assert_close((negative * 0.5), masked.topk(6, dim=1).values, rtol=1e-4, atol=1e-6)


def test_action_plus_plus_adds_the_anchors_pull_and_changes_the_temperature(config, monkeypatch):
    learner, stage = contrast_stage(config, variant="action++", temp_range=(0.2, 0.8), anchor_weight=0.3)
    stage.iterations = 8
    student, teacher = outputs(learner, torch.rand(2, 1, *config.input.size))
    label = torch.randint(0, CLASSES, (2, *config.input.size))
    label[label == 2] = 1  # a class is absent
    calls = []
    original = stage.info_nce
    monkeypatch.setattr(stage, "info_nce", lambda *a: calls.append(a) or original(*a))
    loss, (_, keys, key_labels) = stage.contrast(student, label, teacher, label, 2, np.random.default_rng(0))
    (query, anchor, bank, index, temp), (same, positive, _, others, again) = calls
    assert temp == again == pytest.approx(0.5) and torch.equal(query, same) and torch.equal(index, others)
    present = [0, 1, 3]
    means = torch.stack([F.normalize(keys[key_labels == c].mean(0), dim=0) for c in present])
    query_class = torch.cdist(positive, means).argmin(1)
    best = max(  # of all ways to give the three classes different anchors
        itertools.permutations(range(CLASSES), 3), key=lambda way: (means * stage.anchors[list(way)]).sum().item()
    )
    torch.testing.assert_close(anchor, stage.anchors[list(best)][query_class])

    def each(target):
        q, b = query.double(), bank.double()
        positive = (q * target.double()).sum(1, keepdim=True) / 0.5
        negative = torch.einsum("nd,nkd->nk", q, b[index]) / 0.5
        return torch.cat([positive, negative], 1).logsumexp(1) - positive[:, 0]

    both = each(positive) + 0.3 * each(anchor)
    expected = torch.stack([both[query_class == c].mean() for c in range(3)]).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-6)
    assert "anchors" not in "".join(stage.state_dict())  # they follow from the settings


def test_only_hard_pixels_are_queries(config, learner, monkeypatch):
    stage = learner.stages["anatomical_contrast"]
    student, teacher = outputs(learner, torch.rand(2, 1, *config.input.size))
    label = torch.randint(0, CLASSES, (2, *config.input.size))
    easy = F.one_hot(label, CLASSES).permute(0, 3, 1, 2).float() * 20
    easy[0, :, :4] = 0.0  # the first rows of the first slice are uncertain
    asked = []
    head = stage.representation.student
    monkeypatch.setattr(head, "forward", lambda f, pixels: asked.append(pixels) or type(head).forward(head, f, pixels))
    stage.contrast(student._replace(logits=easy), label, teacher, label, 0, np.random.default_rng(0))
    (pixels,) = asked
    assert len(pixels.y) > 0 and (pixels.image == 0).all() and (pixels.y < 4).all()


def drawn_pixels(labels, count, seed=0):
    pixels, classes = sample_pixels(labels, CLASSES, count, np.random.default_rng(seed))
    assert torch.equal(labels[pixels.image, pixels.y, pixels.x], classes)
    places = list(zip(*map(torch.Tensor.tolist, pixels), strict=True))
    return [places[c * count : (c + 1) * count] for c in range(CLASSES)], classes.view(CLASSES, count)


def test_pixels_are_drawn_of_each_class():
    labels = torch.full((2, 8, 8), -1)
    labels[0, :2, :3] = 1  # 6 pixels, fewer than are asked for
    labels[1, 5:, :] = 2  # 24, more
    places, classes = drawn_pixels(labels, 10)
    assert (classes[1] == 1).all() and (classes[2] == 2).all()
    assert len(set(places[1])) == 6 and max(map(places[1].count, places[1])) == 2
    assert len(set(places[2])) == 10  # without repetition
    assert set(classes[0].tolist()) == {1, 2}  # the places of an absent class
    for present in (0, 16, 17, 128):  # as many as are asked for, one more, and every pixel
        labels = torch.full((2, 8, 8), -1)
        labels.view(-1)[torch.randperm(128)[:present]] = 2
        places, classes = drawn_pixels(labels, 16)
        assert len(set(places[2])) == min(16, max(present, 1))
        assert (classes == (2 if present else -1)).all()


def test_all_pixels_of_a_class_are_as_likely_to_be_drawn():
    labels = torch.full((1, 4, 8), 1)
    labels[0, 0, :3] = 0  # 29 pixels of class 1: runs of 2 and of 3
    times = torch.zeros(4, 8)
    for seed in range(2000):
        for _, y, x in drawn_pixels(labels, 12, seed)[0][1]:
            times[y, x] += 1
    share = times[labels[0] == 1] / 2000
    expected = 12 / 29
    assert (share - expected).abs().max() < 4.5 * (expected * (1 - expected) / 2000) ** 0.5


class ReadsNothingBack(TorchDispatchMode):
    """Refuses operations for which the host waits until a device has computed something."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition("::")[2]
        masks = [a for a in args if isinstance(a, (list, tuple))] if name.startswith("index") else []
        if name.startswith(self.names) or any(
            isinstance(mask, torch.Tensor) and mask.dtype == torch.bool for group in masks for mask in group
        ):
            raise AssertionError(f"{function} reads a value back to the host")
        return function(*args, **(kwargs or {}))


def test_the_instrument_that_refuses_reading_back_works():
    for reads in (lambda x: int(x[0]), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x.unique()):
        with pytest.raises(AssertionError, match="reads a value back"), ReadsNothingBack():
            reads(torch.arange(3))


@pytest.mark.parametrize("changed", [{}, {"negatives": "batch"}, {"selection": "hardest"}, {"mix_with": "labeled"}])
def test_no_step_reads_a_value_back_to_the_host(config, data, changed):
    learner, _ = contrast_stage(config, **changed)
    reads_nothing_back(learner, data)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "action"])
def test_no_step_of_a_baseline_reads_a_value_back_to_the_host(method, config, data):
    reads_nothing_back(make_learner(dataclasses.replace(config, method=method), CLASSES).train(), data)


def reads_nothing_back(learner, data):
    for stage in learner.stages.values():
        for step in range(3):  # with an empty bank, and with rows in it
            rng = np.random.default_rng(step)
            with ReadsNothingBack():
                result = stage.losses(learner.network, stage.batch(data, step, rng), step, rng)
                result.losses["loss"].backward()
                for push in result.to_push:
                    push.bank.push(push.rows, push.labels)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_the_contrast_never_makes_a_representation_of_the_whole_map(config):
    config = dataclasses.replace(
        config,
        input=dataclasses.replace(config.input, size=(64, 64)),
        model=ModelConfig(channels=(4, 6, 8), embedding=64, window=16, stride=8, pooled=4),
        anatomical_contrast=dataclasses.replace(config.anatomical_contrast, negatives_per_query=256),
    )
    learner = make_learner(config, CLASSES)
    stage = learner.stages["anatomical_contrast"]
    student, teacher = outputs(learner, torch.rand(4, 1, 64, 64))
    stage.pixel_bank.push(F.normalize(torch.randn(50, 64)), torch.arange(50) % CLASSES)
    label = torch.randint(0, CLASSES, (4, 64, 64))
    with LargestTensor() as largest:
        stage.contrast(student, label, teacher, label, 0, np.random.default_rng(0))[0].backward()
    queries = 10 * CLASSES
    assert largest.elements < 4 * 64 * 64 * 64 / 4  # images x height x width x embedding
    assert largest.elements < queries * 256 * 64 / 4  # queries x negatives x embedding
    assert largest.elements >= 4 * 64 * 64  # and the instrument works


def test_sampling_at_the_border_stays_inside(learner, config):
    height, width = config.input.size
    corner = Pixels(torch.tensor([0, 1]), torch.tensor([0, height - 1]), torch.tensor([0, width - 1]))
    student, _ = outputs(learner, torch.rand(2, 1, height, width))
    assert torch.isfinite(learner.stages["anatomical_contrast"].representation.student(student.features, corner)).all()
