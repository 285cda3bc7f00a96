"Losses and learning rate schedules: closed forms, several outputs, all schedules, and what is refused."
import numpy as np, paddle, pytest
from paddle.nn import functional as F

from ppcls_nb.basics import PPClsError
from ppcls_nb.train.losses import CELoss, JSDivLoss, divergence
from ppcls_nb.train.schedules import SCHEDULES, Cosine, CosineWarmup, Piecewise, build_schedule, scaled_lr

LOGITS = paddle.to_tensor([[4., 1., 0.], [0., 3., 1.]])
LABELS = paddle.to_tensor([0, 1])


def random_logits(seed): return paddle.to_tensor(np.random.default_rng(seed).normal(size=(4, 10)).astype('float32')*3)


# -- losses


def test_negative_epsilon_turns_smoothing_off():
    assert CELoss(-1)(LOGITS, LABELS).item() == CELoss()(LOGITS, LABELS).item() == CELoss(None)(LOGITS, LABELS).item()


@pytest.mark.parametrize('eps', [0, .1])
def test_one_hot_labels_have_the_loss_of_their_classes(eps):
    one_hot = F.one_hot(LABELS, 3)
    assert abs(CELoss(eps)(LOGITS, one_hot).item() - CELoss(eps)(LOGITS, LABELS).item()) < 1e-6


@pytest.mark.parametrize('soft', [False, True])
def test_several_outputs_count_with_their_weight(soft):
    labels = F.one_hot(LABELS, 3) if soft else LABELS
    outputs = LOGITS, LOGITS*2, LOGITS.flip(0)
    main, *others = (CELoss(.1)(o, labels).item() for o in outputs)
    assert abs(CELoss(.1)(outputs, labels).item() - (main + .3*sum(others))) < 1e-5
    assert abs(CELoss(.1, aux_weight=0)(list(outputs), labels).item() - main) < 1e-6


def test_a_loss_of_one_output_is_a_scalar_with_or_without_a_list():
    assert CELoss()(LOGITS, LABELS).shape == CELoss()([LOGITS], LABELS).shape == []
    assert CELoss()([LOGITS], LABELS).item() == CELoss()(LOGITS, LABELS).item()


@pytest.mark.parametrize('make, message', [
    (lambda: CELoss(1.5), 'ls_epsilon is 1.5'), (lambda: CELoss(1), 'ls_epsilon is 1'),
    (lambda: CELoss(aux_weight=-1), 'aux_weight is -1'), (lambda: JSDivLoss(temperature=0), 'temperature is 0'),
    (lambda: JSDivLoss('jefreys'), "did you mean 'jeffreys'"),
    (lambda: divergence(LOGITS, LOGITS, 'jefreys'), "did you mean 'jeffreys'"),
    # a single column would be broadcast to all classes
    (lambda: divergence(LOGITS, LOGITS[:, :1]), 'expected the same shape')])
def test_wrong_arguments_of_losses(make, message):
    with pytest.raises(PPClsError, match=message): make()


def test_a_student_with_several_outputs():
    a, b = random_logits(0), random_logits(1)
    assert abs(JSDivLoss()((a, a, b), b).item() - 1.3*divergence(a, b).mean().item()) < 1e-6


def test_no_gradient_for_the_teacher():
    a, b = random_logits(0), random_logits(1)
    a.stop_gradient = b.stop_gradient = False
    JSDivLoss('kl', 2.)(a, b).backward()
    assert a.grad is not None
    assert b.grad is None


# -- schedules


def trace(schedule, steps):
    "Learning rates of the next `steps` steps."
    rates = []
    for _ in range(steps):
        rates.append(schedule())
        schedule.step()
    return np.array(rates)


@pytest.mark.parametrize('epochs, steps', [(3, 4), (1, 10), (1, 2)])
def test_a_run_shorter_than_its_warmup_reaches_the_full_rate(epochs, steps, capsys):
    rates = trace(CosineWarmup(.4, epochs, steps), epochs*steps + 1)
    assert rates.max() == .4
    assert rates.argmax() == epochs*steps//2
    assert rates[-1] < 1e-9
    assert 'it is shortened to half of the run' in capsys.readouterr().out


def test_runs_of_one_step_and_of_none(capsys):
    assert trace(CosineWarmup(.4, 1, 1), 1) == [.4]
    assert Cosine(.4, 0, 10)() == .4
    assert not capsys.readouterr().out


def test_a_cosine_ignores_the_arguments_of_steps_and_says_so(capsys):
    rates = trace(CosineWarmup(.4, 9, 10, decay_epochs=[3, 6], gamma=.1), 90)
    np.testing.assert_array_equal(rates, trace(CosineWarmup(.4, 9, 10), 90))
    assert capsys.readouterr().out.count('decay_epochs and gamma') == 1


@pytest.mark.parametrize('name', SCHEDULES)
def test_every_schedule_resumes_exactly_at_every_step(name):
    params = dict(lr=.1, **({'decay_epochs': [3, 6]} if name == 'Piecewise' else {}))
    make = lambda: build_schedule(name, 8, 3, **params)
    whole = trace(make(), 24)
    for at in range(24):
        first, second = make(), make()
        trace(first, at)
        second.set_state_dict(first.state_dict())
        np.testing.assert_array_equal(trace(second, 24 - at), whole[at:])


@pytest.mark.parametrize('arguments, message', [
    (dict(function='Cosin', lr=.1), "LEARNING_RATE.function: unknown schedule 'Cosin'; did you mean 'Cosine'"),
    (dict(function='Cosine', rate=.1), "LEARNING_RATE.params of Cosine: unknown parameter 'rate'"),
    (dict(function='CosineWarmup', lr=.1, warmup_epochs=5), "did you mean 'warmup_epoch'"),
    (dict(function='Cosine'), 'LEARNING_RATE.params of Cosine: lr, the initial learning rate, is missing'),
    (dict(function='Linear', lr='high'), "LEARNING_RATE.params.lr is 'high'; expected a number")])
def test_wrong_schedules(arguments, message):
    with pytest.raises(PPClsError, match=message): build_schedule(epochs=2, steps_per_epoch=10, **arguments)


@pytest.mark.parametrize('make, message', [
    (lambda: Cosine(.1, 5, 20, warmup_epoch=-1), 'warmup_epoch is -1'),
    (lambda: Piecewise(.1, 90, 10, [60, 30]), r'decay_epochs is \[60, 30\]; expected increasing'),
    (lambda: scaled_lr(.1, 0), 'batch size 0')])
def test_wrong_numbers(make, message):
    with pytest.raises(PPClsError, match=message): make()
