"""Learning from a teacher: the loss, what the teacher is shown, and runs with one."""

from dataclasses import replace

import numpy as np
import pytest
import small
import timm
import torch
from lightning.pytorch import Callback
from timm.data import ImageNetInfo
from torch import nn
from torch.nn.functional import cross_entropy, interpolate

from volution import data, hub, tasks
from volution.train import TrainConfig, distillation, engine, fit
from volution.train.distillation import Teacher, distillation_loss, make_teacher
from volution.train.objective import Objective

INPUT = data.InputConfig(3, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return small.colour_folder(tmp_path_factory.mktemp("data") / "colours", per_class=20)


@pytest.fixture(scope="module")
def known(colours, tmp_path_factory):
    """A run that learned the colours from their labels."""
    config = small.colour_run(colours, tmp_path_factory.mktemp("runs") / "teacher", epochs=8)
    result = fit(config, show_progress=False)
    assert result.best_top1 > 0.9
    return result


@pytest.fixture
def teacher_file(tmp_path):
    """A teacher that knows the colours by heart, its classes in another order than the data's."""
    net = tasks.create_model("test_resnet", num_classes=3)
    path = tmp_path / "teacher.safetensors"
    order = ("red", "blue", "green")
    tasks.save_classifier(path, tasks.Classifier(net.eval(), "test_resnet", order, INPUT))
    return path


class TestLoss:
    def test_soft_is_the_divergence_times_the_squared_temperature(self):
        ours, theirs = torch.randn(2, 6, 4, dtype=torch.float64)
        p, q = (theirs / 3).softmax(1), (ours / 3).softmax(1)
        want = 9 * (p * (p.log() - q.log())).sum(1).mean()
        got = distillation_loss(ours, theirs, kind="soft", temperature=3.0)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)

    def test_its_gradient_hardly_depends_on_a_high_temperature(self):
        ours, theirs = torch.randn(2, 6, 4)
        norms = []
        for temperature in (20.0, 80.0):
            x = ours.clone().requires_grad_()
            distillation_loss(x, theirs, temperature=temperature).backward()
            norms.append(x.grad.norm().item())
        assert norms[0] == pytest.approx(norms[1], rel=0.1)

    def test_hard_takes_the_teachers_decision_for_the_label(self):
        ours, theirs = torch.randn(2, 6, 4)
        got = distillation_loss(ours, theirs, kind="hard")
        torch.testing.assert_close(got, cross_entropy(ours, theirs.argmax(1)))

    def test_another_kind_is_refused(self):
        with pytest.raises(ValueError, match="kind must be soft or hard, got 'gentle'"):
            distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), kind="gentle")


class Seeing(nn.Module):
    """Keeps what it is shown."""

    def forward(self, x):
        self.seen = x.clone()
        return x.mean((2, 3))


class TestTeacher:
    def test_it_sees_images_as_it_was_trained_on_them(self):
        own = data.InputConfig(3, 48, (0.2, 0.4, 0.6), (0.1, 0.2, 0.3))
        given = data.InputConfig(3, 32, (0.5, 0.4, 0.3), (0.25, 0.5, 0.75))
        pixels = torch.rand(2, 3, 32, 32)
        eye = Seeing()

        def normalised(x, config):
            mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
            return (x - mean) / std

        Teacher(eye, own, given)(normalised(pixels, given))
        want = interpolate(normalised(pixels, own), (48, 48), mode="bicubic", antialias=True)
        torch.testing.assert_close(eye.seen, want, rtol=1e-4, atol=1e-4)

    def test_its_classes_come_in_the_students_order(self):
        teacher = Teacher(Seeing(), INPUT, INPUT, order=[2, 0, 1])
        images = torch.ones(1, 3, 32, 32) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
        assert teacher(images).tolist() == [[3.0, 1.0, 2.0]]

    def test_it_neither_learns_nor_counts(self, teacher_file):
        teacher = make_teacher(TrainConfig(teacher=str(teacher_file)), CLASSES, INPUT)
        before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
        x = torch.randn(4, 3, 32, 32, requires_grad=True)
        assert not teacher(x).requires_grad
        assert all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())
        assert not any(p.requires_grad for p in teacher.model.parameters())


class TestMaking:
    def test_of_a_file_with_the_classes_in_another_order(self, teacher_file):
        teacher = make_teacher(TrainConfig(teacher=str(teacher_file)), CLASSES, INPUT)
        x = torch.randn(4, 3, 32, 32)
        red, blue, green = teacher.model(x).detach().unbind(1)
        torch.testing.assert_close(teacher(x), torch.stack([blue, green, red], 1))

    def test_of_a_name(self, monkeypatch):
        made = []

        def create(name, *, in_chans, pretrained):
            made.append((name, in_chans, pretrained))
            return timm.create_model("test_resnet", num_classes=1000, in_chans=in_chans)

        monkeypatch.setattr(distillation.tasks, "create_model", create)
        # ImageNet's classes, backwards.
        classes = ImageNetInfo().label_names()[::-1]
        config = TrainConfig(teacher="resnet18.a1_in1k")
        teacher = make_teacher(config, classes, INPUT)
        assert made == [("resnet18.a1_in1k", 3, True)]
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(teacher(x).flip(1), teacher.model(teacher._prepare(x)))

    def test_classes_without_known_names_are_taken_in_order_and_that_is_said(
        self, monkeypatch, capsys
    ):
        net = timm.create_model("test_resnet", num_classes=1000)
        monkeypatch.setattr(distillation.tasks, "create_model", lambda *a, **k: net)
        classes = [f"class {i}" for i in range(1000)]
        make_teacher(TrainConfig(teacher="resnet18"), classes, INPUT)
        said = " ".join(capsys.readouterr().err.split())
        assert "taken in the order of the data's, the first for class 0" in said

    @pytest.mark.parametrize(
        ("teacher", "message"),
        [
            ("resnet18", "resnet18 was published with 1000 classes, the data has 3"),
            ("rednet50", "rednet50"),
        ],
    )
    def test_published_ones_with_other_classes_are_refused_unfetched(self, teacher, message):
        with pytest.raises(ValueError, match=message):
            make_teacher(TrainConfig(teacher=teacher), CLASSES, INPUT)

    def test_without_network_it_says_what_to_do(self, monkeypatch):
        def create(*args, **kwargs):
            raise OSError("no route")

        monkeypatch.setattr(distillation.tasks, "create_model", create)
        with pytest.raises(ConnectionError, match=r"resnet18: .* cannot be fetched \(OSError: no"):
            make_teacher(TrainConfig(teacher="resnet18"), [str(i) for i in range(1000)], INPUT)

    def test_a_file_with_other_classes_is_refused(self, teacher_file):
        message = r"knows 3 classes, the data has 2, .* teacher has green, red; only the data has y"
        with pytest.raises(ValueError, match=message):
            make_teacher(TrainConfig(teacher=str(teacher_file)), ("blue", "yellow"), INPUT)

    def test_a_file_for_other_channels_is_refused(self, teacher_file):
        grey = data.InputConfig(1, 32, (0.5,), (0.5,))
        with pytest.raises(ValueError, match="takes images of 3 channels, the data has 1"):
            make_teacher(TrainConfig(teacher=str(teacher_file)), CLASSES, grey)

    def test_a_file_of_bare_weights_is_refused(self, teacher_file):
        hub.write_checkpoint(teacher_file, {"fc.bias": torch.zeros(3)})
        with pytest.raises(ValueError, match=r"teacher must be the file of a trained network"):
            make_teacher(TrainConfig(teacher=str(teacher_file)), CLASSES, INPUT)


class Fixed:
    """A teacher that says the same of every image."""

    def __init__(self, logits):
        self.logits, self.seen = logits, None

    def __call__(self, images):
        self.seen = images
        return self.logits.expand(len(images), -1)


@pytest.mark.parametrize("distill", ["soft", "hard"])
@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_the_loss_is_shared_by_alpha(distill, mixup):
    config = TrainConfig(
        teacher="x", distill=distill, distill_alpha=0.3, mixup=mixup,
        distill_temperature=2.0 if distill == "soft" else 1.0,
    )  # fmt: skip
    teacher = Fixed(torch.tensor([1.0, 0.0, -1.0]))
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    shown = []

    def student(x):
        shown.append(x)
        return x.mean((2, 3))

    losses = []
    for alpha in (0.0, 1.0, 0.3):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - what timm mixes with
        objective = Objective(replace(config, distill_alpha=alpha), 3, teacher)
        losses.append(objective(student, images.clone(), labels))
        # It judges what the student was shown, mixed or not.
        assert teacher.seen is shown[-1]
    assert losses[2].item() == pytest.approx(0.7 * losses[0].item() + 0.3 * losses[1].item())


class Watch(Callback):
    def on_train_start(self, trainer, module):
        self.parameters = {k for k, _ in module.named_parameters()}
        groups = trainer.optimizers[0].param_groups
        self.learning = {id(p) for group in groups for p in group["params"]}


@pytest.mark.parametrize("distill", ["soft", "hard"])
def test_a_student_learns_from_the_teacher_alone(known, colours, tmp_path, distill):
    """With labels left out of the loss it can only have the colours from the teacher."""
    watch = Watch()
    config = small.colour_run(
        colours, tmp_path / "student", epochs=8, teacher=str(known.best),
        distill=distill, distill_alpha=1.0, ema_decay=0.5, mixup=0.1, precision="bf16",
        seed=3,
    )  # fmt: skip
    before = known.best.read_bytes()
    result = fit(config, show_progress=False, callbacks=[watch])
    assert result.best_top1 > 0.8
    run = engine.Run.build(config)
    teacher = run.module.objective.teacher
    assert not {id(p) for p in teacher.model.parameters()} & {
        id(p) for p in run.module.parameters()
    }
    assert all(name.startswith(("model.", "average.")) for name in watch.parameters)
    assert set(hub.read_checkpoint(result.best)) == set(hub.read_checkpoint(known.best))
    assert known.best.read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"teacher": "resnet1"}, ValueError, "unknown teacher 'resnet1'; nearest: resnet"),
        ({"teacher": "runs/none.safetensors"}, FileNotFoundError, "no file runs/none.safetensors"),
        ({"distill": "hard"}, ValueError, "distill is about a teacher; give one, got hard alone"),
        ({"distill_alpha": 0.7}, ValueError, "distill_alpha is about a teacher"),
        ({"distill_alpha": 1.5, "teacher": "resnet18"}, ValueError, "from 0 to 1, got 1.5"),
        ({"distill_temperature": 0.0, "teacher": "resnet18"}, ValueError, "above 0 and finite"),
        (
            {"teacher": "resnet18", "distill": "hard", "distill_temperature": 2.0},
            ValueError,
            "distill_temperature goes with distill soft, got 2.0 with hard",
        ),
    ],
)
def test_settings_that_cannot_be_are_told(settings, error, message):
    with pytest.raises(error, match=message):
        TrainConfig(**settings).check()


def test_a_run_with_a_teacher_of_other_classes_leaves_no_folder(colours, tmp_path):
    with pytest.raises(ValueError, match="1000 classes, the data has 3"):
        fit(small.colour_run(colours, tmp_path / "run", teacher="resnet18"))
    assert not (tmp_path / "run").exists()
