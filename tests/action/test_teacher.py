import torch
from torch import nn

from action.config import InputConfig, ModelConfig, TrainConfig
from action.model.learner import Learner
from action.model.teacher import make_teacher, update_teacher

SMALL = TrainConfig(
    input=InputConfig(size=(32, 32)), model=ModelConfig(channels=(4, 6, 8), embedding=8, window=16, stride=8, pooled=4)
)


def test_weights_and_buffers_are_averaged_and_counters_copied():
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = make_teacher(student)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with torch.no_grad():
        for value in student.state_dict().values():
            value.add_(torch.full_like(value, 2))
    update_teacher(teacher, student, momentum=0.75)
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, before[name] + 0.5)
        else:
            assert value == before[name] + 2


def test_teacher_has_every_head_is_never_trained_and_stays_in_evaluation_mode():
    learner = Learner(SMALL, classes=3)
    assert learner.teacher.state_dict().keys() == learner.student.state_dict().keys()
    assert not any(p.requires_grad for p in learner.teacher.parameters())
    learner.train()
    assert learner.student.training and not any(module.training for module in learner.teacher.modules())


def test_every_head_and_buffer_of_the_teacher_moves_towards_the_student():
    learner = Learner(SMALL, classes=3)
    with torch.no_grad():
        for value in learner.student.state_dict().values():
            if value.is_floating_point():
                value.add_(1.0)
    before = {name: value.clone() for name, value in learner.teacher.state_dict().items()}
    learner.update_teacher(step=10**6)  # long after the warm-up: the configured momentum
    for name, value in learner.teacher.state_dict().items():
        if value.is_floating_point():
            moved = value - before[name]
            torch.testing.assert_close(moved, torch.full_like(value, 0.01), msg=name, rtol=1e-3, atol=1e-4)


def test_student_and_teacher_share_no_memory():
    learner = Learner(SMALL, classes=3)
    ours = {value.data_ptr() for value in learner.student.state_dict().values()}
    assert not ours & {value.data_ptr() for value in learner.teacher.state_dict().values()}
