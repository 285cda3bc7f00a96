"""Distillation as users start it: from a recipe, on lists with and without labels, by one teacher and by several; what
is kept, and what is refused."""
import cv2, numpy as np, paddle, pytest, yaml

from ppcls_nb.cli import main
from ppcls_nb.recipe.build import Trainer, build_models, find_config, load_config
from ppcls_nb.data.petals import draw_scene, make_species
from ppcls_nb.distill import ssld
from ppcls_nb.models import create_model
from ppcls_nb.train import load_run, save_weights

STUDENT, TEACHER = 'MobileNetV1_x0_25', 'MobileNetV3_small_x0_35'
OPS = [{
    'DecodeImage': {}}, {
        'ResizeImage': {
            'size': [32, 32]}}, {
                'NormalizeImage': {
                    'order': ''}}, {
                        'ToCHWImage': None}]
RECIPE = dict(ARCHITECTURE={'name': f'{TEACHER}_distill_{STUDENT}'}, pretrained_model=['teacher.pdparams'],
              classes_num=3, data_name='drawn', epochs=2, use_distillation=True, save_interval=0,
              image_shape=[3, 32, 32], LEARNING_RATE={
                  'function': 'Cosine',
                  'params': {
                      'lr': .02}}, OPTIMIZER={
                          'function': 'Momentum',
                          'params': {
                              'momentum': .9}}, TRAIN=dict(batch_size=4, file_list='mixed.txt', data_dir='.',
                                                           transforms=OPS),
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
    labelled, mixed, bare = (weights_after({
        'TRAIN.file_list': f'{kind}.txt',
        'epochs': 1}) for kind in ('labelled', 'mixed', 'bare'))
    assert all((a == b).all() and (a == c).all() for a, b, c in zip(labelled, mixed, bare, strict=True))


def test_the_student_alone_is_kept_and_evaluated(here, capsys):
    assert main(['train', '-c', 'distill.yaml', '--output', 'run']) == 0
    saved, student = paddle.load('run/best.pdparams'), create_model(STUDENT, class_num=3).state_dict()
    assert {
        k: list(v.shape)
        for k, v in saved.items()
        if k != 'StructuredToParameterName@@'} == {
            k: list(v.shape)
            for k, v in student.items()}
    assert len(load_run('run').rows) == 2
    capsys.readouterr()
    assert main(['eval', '--run', 'run']) == 0
    assert 'the same' in capsys.readouterr().out
    assert main(['eval', '-c', 'distill.yaml', '-o', 'pretrained_model=run/best']) == 0
    assert 'the same' in capsys.readouterr().out


def test_without_distillation_a_line_needs_its_label(here):
    plain = {'use_distillation': False, 'ARCHITECTURE.name': STUDENT, 'pretrained_model': ''}
    with pytest.raises(ssld.PPClsError, match=r"mixed.txt:6: .*expected 'path label'"):
        Trainer.from_config(load_config('distill.yaml', plain), bar=False)


def test_two_teachers_are_their_mean(here):
    two = {
        'ARCHITECTURE.name': f'{TEACHER}+{TEACHER}_distill_{STUDENT}',
        'pretrained_model': ['teacher', 'other.pdparams', '']}
    t = Trainer.from_config(
        load_config('distill.yaml', two, {
            'ARCHITECTURE.teacher_weights': [3, 1],
            'TRAIN.batch_size': 5,
            'epochs': 1}), bar=False).fit(1)
    (teacher,) = (cb for cb in t.callbacks if isinstance(cb, ssld.Teacher))
    p, q = (paddle.nn.functional.softmax(f(t.images)).numpy() for f in teacher.frozen)
    assert np.abs(p - q).max() > .01
    np.testing.assert_allclose(paddle.nn.functional.softmax(t.target).numpy(), .75*p + .25*q, rtol=1e-4, atol=1e-6)
    with pytest.raises(ssld.PPClsError, match='pretrained_model lists 1 weights for 3 networks'):
        build_models(load_config('distill.yaml', two, {'pretrained_model': ['teacher']}))


def test_the_engine_teaches_as_the_eager_network_does(here, monkeypatch, capsys):
    if paddle.device.get_device() != 'cpu': pytest.skip('the engine is for CPUs')
    # so that 'auto' compiles for three batches, of which the last is smaller
    monkeypatch.setattr(ssld, 'SHORT', 1)
    t = Trainer.from_config(load_config('distill.yaml', {'epochs': 1}), bar=False).fit(1)
    (teacher,) = (cb for cb in t.callbacks if isinstance(cb, ssld.Teacher))
    assert f'teacher {TEACHER}: paddle.inference' in capsys.readouterr().out
    assert len(t.images) == 2
    expected = teacher.frozen[0].eager(t.images).numpy()
    np.testing.assert_allclose(t.target.numpy(), expected, atol=1e-4*np.abs(expected).max())


@pytest.mark.parametrize('change,words',
                         [({
                             'ls_epsilon': .1}, 'smoothing them again loses what it knows'),
                          ({
                              'classes_num': 4}, 'the teacher .* its classes must be those of the student, 4'),
                          ({
                              'pretrained_model': ''}, f'trained weights for the teacher {TEACHER}'),
                          ({
                              'use_distillation': False,
                              'TRAIN.file_list': 'labelled.txt'}, 'distillation needs both'),
                          ({
                              'ARCHITECTURE.name': STUDENT}, 'distillation needs both')])
def test_refused(here, change, words):
    with pytest.raises(ssld.PPClsError, match=words):
        Trainer.from_config(load_config('distill.yaml', change), bar=False)


def test_leakage_is_reported_before_training(here, capsys):
    (here/'leaky.txt').write_text('a flower 3.png\na flower 12.png\na flower 4.png 1\n')
    lines = lambda **change: (Trainer.from_config(
        load_config('distill.yaml', {
            'TRAIN.file_list': 'leaky.txt',
            **change}), bar=False), capsys.readouterr().out)[1]
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
    both = load_config('ResX101_32x16d_wsl_distill_R50_vd', {
        'pretrained_model': ['./pretrained/ResNeXt101_32x16d_wsl_pretrained/', './pretrained/ResNet50_vd_pretrained/']})
    build_models(both)
    assert made[4:] == [('ResNet50_vd', 'ResNet50_vd'), ('ResNeXt101_32x16d_wsl', 'ResNeXt101_32x16d_wsl')]
