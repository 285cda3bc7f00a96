"""Distillation as users start it: from a recipe, on lists with and without labels, by one teacher and by several; what
is kept, and what is refused."""
import cv2, numpy as np, paddle, pytest, yaml
from paddle import nn

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli import main
from ppcls_nb.recipe.build import Trainer, build_models, find_config, load_config
from ppcls_nb.data.petals import draw_scene, make_species
from ppcls_nb.distill import ssld
from ppcls_nb.distill.ssld import Teacher, TeacherNetwork
from ppcls_nb.models import create_model
from ppcls_nb.train import CELoss, Data, load_run, save_weights
from ppcls_nb.train import Trainer as PlainTrainer
from ppcls_nb.train.losses import JSDivLoss
from ppcls_nb.train.optim import Momentum

STUDENT, TEACHER = 'MobileNetV1_x0_25', 'MobileNetV3_small_x0_35'
OPS = [{'DecodeImage': {}}, {'ResizeImage': {'size': [32, 32]}}, {'NormalizeImage': {'order': ''}},
       {'ToCHWImage': None}]
RECIPE = dict(ARCHITECTURE={'name': f'{TEACHER}_distill_{STUDENT}'}, pretrained_model=['teacher.pdparams'],
              classes_num=3, data_name='drawn', epochs=2, use_distillation=True, save_interval=0,
              image_shape=[3, 32, 32], LEARNING_RATE={'function': 'Cosine', 'params': {'lr': .02}},
              OPTIMIZER={'function': 'Momentum', 'params': {'momentum': .9}},
              TRAIN=dict(batch_size=4, file_list='mixed.txt', data_dir='.', transforms=OPS),
              VALID=dict(batch_size=5, file_list='val.txt', data_dir='.', transforms=OPS))


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with 18 drawn flowers, lists of all kinds, weights of two teachers and the recipe distill.yaml."
    home = tmp_path_factory.mktemp('distill')
    for i in range(18):
        cv2.imwrite(str(home/f'a flower {i}.png'), draw_scene(make_species(7*(i % 3) + 1), np.random.default_rng(i),
                                                              40))
    lines = [f'a flower {i}.png {i % 3}\n' for i in range(18)]
    bare = [line.rsplit(' ', 1)[0] + '\n' for line in lines]
    for name, content in dict(labelled=lines[:10], mixed=lines[:5] + bare[5:10], bare=bare[:10],
                              val=lines[10:]).items():
        (home/f'{name}.txt').write_text(''.join(content), encoding='utf-8')
    for n, name in enumerate(('teacher', 'other')):
        paddle.seed(n)
        model = create_model(TEACHER, class_num=3)
        classifier = model.state_dict()[f'{model.classifier}.weight']
        classifier.set_value(20_000*classifier)                        # untrained, it is sure of nothing
        save_weights(home/f'{name}.pdparams', model)
    (home/'distill.yaml').write_text(yaml.safe_dump(RECIPE))
    return home


@pytest.fixture
def here(home, monkeypatch):
    "The folder, with it as the working directory."
    monkeypatch.chdir(home)
    return home


def weights_after(*changes):
    "The student's weights after training by the recipe with changes."
    conf = load_config('distill.yaml', *changes)
    return [p.numpy() for p in Trainer.from_config(conf, bar=False).fit(1).model.parameters()]


def test_labelled_unlabelled_and_mixed_lists_are_one_and_the_same(here):
    labelled, mixed, bare = (weights_after({'TRAIN.file_list': f'{kind}.txt', 'epochs': 1})
                             for kind in ('labelled', 'mixed', 'bare'))
    assert all((a == b).all() and (a == c).all() for a, b, c in zip(labelled, mixed, bare, strict=True))


def test_the_student_alone_is_kept_and_evaluated(here, capsys):
    assert main(['train', '-c', 'distill.yaml', '--output', 'run']) == 0
    saved, student = paddle.load('run/best.pdparams'), create_model(STUDENT, class_num=3).state_dict()
    saved.pop('StructuredToParameterName@@', None)
    assert {k: list(v.shape) for k, v in saved.items()} == {k: list(v.shape) for k, v in student.items()}
    assert len(load_run('run').rows) == 2
    capsys.readouterr()
    assert main(['eval', '--run', 'run']) == 0
    assert 'the same' in capsys.readouterr().out
    assert main(['eval', '-c', 'distill.yaml', '-o', 'pretrained_model=run/best']) == 0
    assert 'the same' in capsys.readouterr().out


def test_without_distillation_a_line_needs_its_label(here):
    plain = {'use_distillation': False, 'ARCHITECTURE.name': STUDENT, 'pretrained_model': ''}
    with pytest.raises(PPClsError, match=r"mixed.txt:6: .*expected 'path label'"):
        Trainer.from_config(load_config('distill.yaml', plain), bar=False)


def test_two_teachers_are_their_mean(here):
    two = {'ARCHITECTURE.name': f'{TEACHER}+{TEACHER}_distill_{STUDENT}',
           'pretrained_model': ['teacher', 'other.pdparams', '']}
    conf = load_config('distill.yaml', two, {'ARCHITECTURE.teacher_weights': [3, 1], 'TRAIN.batch_size': 5,
                                             'epochs': 1})
    t = Trainer.from_config(conf, bar=False).fit(1)
    (teacher,) = (cb for cb in t.callbacks if isinstance(cb, Teacher))
    p, q = (paddle.nn.functional.softmax(f(t.images)).numpy() for f in teacher.frozen)
    assert np.abs(p - q).max() > .01
    np.testing.assert_allclose(paddle.nn.functional.softmax(t.target).numpy(), .75*p + .25*q, rtol=1e-4, atol=1e-6)
    with pytest.raises(PPClsError, match='pretrained_model lists 1 weights for 3 networks'):
        build_models(load_config('distill.yaml', two, {'pretrained_model': ['teacher']}))


def test_the_engine_teaches_as_the_eager_network_does(here, monkeypatch, capsys):
    if paddle.device.get_device() != 'cpu': pytest.skip('the engine is for CPUs')
    # so that 'auto' compiles for three batches, of which the last is smaller
    monkeypatch.setattr(ssld, 'MIN_BATCHES_TO_COMPILE', 1)
    t = Trainer.from_config(load_config('distill.yaml', {'epochs': 1}), bar=False).fit(1)
    (teacher,) = (cb for cb in t.callbacks if isinstance(cb, Teacher))
    assert f'teacher {TEACHER}: paddle.inference' in capsys.readouterr().out
    assert len(t.images) == 2
    expected = teacher.frozen[0].eager(t.images).numpy()
    np.testing.assert_allclose(t.target.numpy(), expected, atol=1e-4*np.abs(expected).max())


@pytest.mark.parametrize('change,words', [
    ({'ls_epsilon': .1}, 'ls_epsilon'),
    ({'classes_num': 4}, 'the teacher .* classes'),
    ({'pretrained_model': ''}, f'trained weights for the teacher {TEACHER}'),
    ({'use_distillation': False, 'TRAIN.file_list': 'labelled.txt'}, 'distillation needs both'),
    ({'ARCHITECTURE.name': STUDENT}, 'distillation needs both')])
def test_refused(here, change, words):
    with pytest.raises(PPClsError, match=words):
        Trainer.from_config(load_config('distill.yaml', change), bar=False)


def small_net(classes=6, width=4):
    "A network of one convolution: (N, 3, H, W) → (N, classes)."
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, width, 3, 2, 1, bias_attr=False), nn.BatchNorm2D(width), nn.ReLU(),
                        nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(width, classes))
    net.class_num, net.name = classes, 'small_net'
    return net


def images(n=7): return paddle.to_tensor(np.random.default_rng(0).normal(size=(n, 3, 32, 32)).astype('float32'))


class TwoHeads(nn.Layer):
    def forward(self, x): return x.mean([2, 3]), None


class Untraceable(nn.Layer):
    "A network that leaves Paddle in its forward pass."
    class_num, name = 2, 'Untraceable'
    def forward(self, x): return paddle.to_tensor(x.numpy().mean((2, 3))[:, :2])


def test_of_several_outputs_the_first_is_the_teachers():
    assert TeacherNetwork(TwoHeads())(images()).shape == [7, 3]


def hrnet():
    net = small_net()
    net.name = 'HRNet_W18_C'
    return net


@pytest.mark.parametrize('make, x, reason', [
    (Untraceable, images(), 'compiling it failed'), (hrnet, images(), 'oneDNN cannot resize'),
    (lambda: nn.Linear(2, 2), paddle.zeros([4, 2]), 'its inputs are not images')])
def test_what_cannot_be_compiled_runs_eagerly(make, x, reason):
    frozen = TeacherNetwork(make())
    frozen.prepare(x)
    assert frozen.engine is None
    assert reason in frozen.how or not x.place.is_cpu_place()
    with pytest.raises(PPClsError, match='cannot run by paddle.inference'): frozen.prepare(x, engine='inference')


@pytest.mark.parametrize('change, reason', [
    (lambda logits: logits*1.001, 'its logits differ by 1.0e-03'), (lambda logits: logits*np.nan, 'differ by inf'),
    (lambda logits: np.zeros((7, 3, 32, 32)), r'its output has shape \(7, 3, 32, 32\) instead of \(7, 6\)')])
def test_an_engine_with_other_outputs_is_not_used(monkeypatch, change, reason):
    frozen, x = TeacherNetwork(small_net()), images()
    expected = frozen.eager(x).numpy()
    monkeypatch.setattr(ssld, 'compile_model', lambda model, shape: lambda batch: change(expected))
    with pytest.raises(PPClsError, match=reason if x.place.is_cpu_place() else 'it runs on'):
        frozen.prepare(x, engine='inference')
    assert frozen.engine is None


def test_a_short_training_is_not_worth_compiling():
    frozen = TeacherNetwork(small_net())
    frozen.prepare(images(), batches=ssld.MIN_BATCHES_TO_COMPILE - 1)
    assert frozen.engine is None
    assert frozen.how.startswith('eager: ')


@pytest.mark.parametrize('loss, teachers, options, message', [
    (JSDivLoss(), [3], {}, 'has 3 classes and the student 6'),
    (JSDivLoss(), [6, 'student'], {}, 'shares parameters with the student'),
    (CELoss(0.1), [6], {}, 'label smoothing cannot be combined'),
    (CELoss(), [6], {}, "take the teacher's logits"),
    (JSDivLoss(temperature=2), [6], dict(temperature=3), 'temperature 3 and the loss 2')])
def test_what_a_student_cannot_learn_from(loss, teachers, options, message):
    student = small_net()
    teacher = Teacher([student if n == 'student' else small_net(n) for n in teachers], **options)
    data = Data([(images(), paddle.zeros([7], 'int64'))], None, 6, 'noise')
    with pytest.raises(PPClsError, match=message):
        PlainTrainer(student, data, loss, Momentum(student.parameters(), 0.1), [teacher], topk=(1,)).fit(1)


@pytest.mark.parametrize('options, message', [
    (dict(models=[]), 'no network'), (dict(models=[None, None], size=[3]), '1 sizes for 2'),
    (dict(models=[None, None], weights=[1, 0]), 'a positive number for each of 2'),
    (dict(models=None, engine='fast'), 'expected one of auto, eager'),
    (dict(models=None, temperature=0), 'temperature is 0')])
def test_wrong_options_of_a_teacher(options, message):
    with pytest.raises(PPClsError, match=message): Teacher(**options)


def test_leakage_is_reported_before_training(here, capsys):
    (here/'leaky.txt').write_text('a flower 3.png\na flower 12.png\na flower 4.png 1\n')
    def lines(**change):
        Trainer.from_config(load_config('distill.yaml', {'TRAIN.file_list': 'leaky.txt', **change}), bar=False)
        return capsys.readouterr().out
    assert 'a flower 12.png' in lines()
    assert 'a flower 12.png' in lines(leakage='same')
    assert 'a flower' not in lines(leakage='off') + lines(**{'TRAIN.file_list': 'mixed.txt', 'leakage': 'same'})


def test_the_documents_fused_names(here, monkeypatch):
    """Both recipes make their networks, in the order of the name, each with its weights. The names are looked up, the
    networks are small ones in their place: one of the four has 194 million parameters."""
    made = []
    def small(name, pretrained=None, class_num=1000, **kw):
        made.append((name, pretrained))
        model = create_model(STUDENT, class_num=class_num)
        model.load_report = type('Report', (), {'complete': True})
        return model
    monkeypatch.setattr('ppcls_nb.recipe.build.create_model', small)
    for name in ('Distillation/R50_vd_distill_MV3_large_x1_0', 'Distillation/ResX101_32x16d_wsl_distill_R50_vd'):
        student, teachers = build_models(load_config(find_config(name)))
        assert len(teachers) == 1
        assert student is not teachers[0]
    assert made == [('MobileNetV3_large_x1_0', None), ('ResNet50_vd', 'ResNet50_vd_ssld'), ('ResNet50_vd', None),
                    ('ResNeXt101_32x16d_wsl', 'ResNeXt101_32x16d_wsl')]
    # as documents 3.2.5 print it
    weights = ['./pretrained/ResNeXt101_32x16d_wsl_pretrained/', './pretrained/ResNet50_vd_pretrained/']
    build_models(load_config('ResX101_32x16d_wsl_distill_R50_vd', {'pretrained_model': weights}))
    assert made[4:] == [('ResNet50_vd', 'ResNet50_vd'), ('ResNeXt101_32x16d_wsl', 'ResNeXt101_32x16d_wsl')]
