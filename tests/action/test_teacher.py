import pytest
import torch
from torch import nn

from action.config import ModelConfig, TrainConfig, fill_in
from action.model.teacher import StudentTeacher, update_teachers
from action.stages import make_learner

MODEL = ModelConfig(channels=(4, 6, 8), embedding=8, window=16, stride=8, pooled=4)
SMALL = fill_in(TrainConfig(model=MODEL), "data", "output", (1.5, 1.5), (32, 32))


def pairs_of(learner):
    return [module for module in learner.modules() if isinstance(module, StudentTeacher)]


@pytest.fixture
def learner():
    return make_learner(SMALL, classes=3)


def test_weights_and_buffers_are_averaged_and_counters_copied():
    pair = StudentTeacher(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    before = {name: value.clone() for name, value in pair.teacher.state_dict().items()}
    with torch.no_grad():
        for value in pair.student.state_dict().values():
            value.add_(torch.full_like(value, 2))
    update_teachers([pair], momentum=0.75)
    for name, value in pair.teacher.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, before[name] + 0.5)
        else:
            assert value == before[name] + 2


def test_network_and_heads_have_teachers_that_are_never_trained_and_stay_in_evaluation_mode(learner):
    assert len(pairs_of(learner)) == 4
    for pair in pairs_of(learner):
        assert pair.teacher.state_dict().keys() == pair.student.state_dict().keys()
        assert not any(p.requires_grad for p in pair.teacher.parameters())
        learner.train()
        assert pair.student.training and not any(module.training for module in pair.teacher.modules())
    teachers = {id(p) for pair in pairs_of(learner) for p in pair.teacher.parameters()}
    assert not teachers & {id(p) for p in learner.trained()}


def test_every_head_and_buffer_of_the_teacher_moves_towards_the_student(learner):
    with torch.no_grad():
        for pair in pairs_of(learner):
            for value in pair.student.state_dict().values():
                if value.is_floating_point():
                    value.add_(1.0)
    before = [{name: value.clone() for name, value in pair.teacher.state_dict().items()} for pair in pairs_of(learner)]
    learner.update_teachers(step=10**6)  # long after the warm-up: the configured momentum
    for pair, values in zip(pairs_of(learner), before, strict=True):
        for name, value in pair.teacher.state_dict().items():
            if value.is_floating_point():
                moved = value - values[name]
                torch.testing.assert_close(moved, torch.full_like(value, 0.01), msg=name, rtol=1e-3, atol=1e-4)


def test_student_and_teacher_share_no_memory(learner):
    for pair in pairs_of(learner):
        ours = {value.data_ptr() for value in pair.student.state_dict().values()}
        assert not ours & {value.data_ptr() for value in pair.teacher.state_dict().values()}
