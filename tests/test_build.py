"""What a recipe builds: mixing, schedule, callbacks, a trainer that resumes, and distillations; what contradicts itself
is reported."""
from pathlib import Path

import cv2, numpy as np, paddle, pytest

from ppcls_nb.basics import PPClsError
from ppcls_nb.data.prepare import DataInfo
from ppcls_nb.recipe.build import Trainer, build_mixing, callbacks_of_recipe
from ppcls_nb.recipe.data import build_data, build_transforms
from ppcls_nb.recipe.build import leakage_of_recipe, load_config, optimizer_of_recipe
from ppcls_nb.recipe.data import use_data
from ppcls_nb.models.weights import weights_of_recipe

NETWORK = 'MobileNetV3_small_x0_35'
SMALL = {
    'ARCHITECTURE.name': NETWORK,
    'pretrained_model': '',
    'epochs': 1,
    'TRAIN.batch_size': 4,
    'TRAIN.num_workers': 0,
    'VALID.num_workers': 0}
EVERYTHING = dict(use_fp16=True, use_ema=True, accumulate=2, clip=dict(norm=1.), early_stopping=dict(patience=5))


def make_pictures(folder: Path) -> DataInfo:
    "Eight plain pictures in two classes, with list files."
    for i in range(8):
        colour = (20, 20, 220) if i % 2 else (220, 20, 20)
        cv2.imwrite(str(folder/f'{i}.png'), np.full((40, 40, 3), colour, np.uint8))
    for part in ('train', 'val', 'extra', 'train_extra'):
        (folder/f'{part}_list.txt').write_text(''.join(f'{i}.png {i % 2}\n' for i in range(8)))
    return DataInfo('colours', folder, folder, 'made in a test', 2, {})


@pytest.fixture(scope='module')
def info(tmp_path_factory):
    "The eight pictures."
    return make_pictures(tmp_path_factory.mktemp('colours'))


@pytest.fixture(scope='module')
def run(info, tmp_path_factory):
    "The folder of a run of one epoch."
    folder = tmp_path_factory.mktemp('run')/'run'
    Trainer.from_config(use_data(load_config('quick_start/ResNet50_vd', SMALL), info), run=folder, bar=False).fit(1)
    return folder


@pytest.fixture
def distillation(info, run):
    "A function that gives a distillation recipe with changes."
    def make(**changes):
        names = {**SMALL, 'ARCHITECTURE.name': f'{NETWORK}_distill_{NETWORK}',
                 'pretrained_model': [str(run/'last'), '']}
        return use_data(load_config('quick_start/R50_vd_distill_MV3_large_x1_0', names, changes), info)
    return make


@pytest.fixture
def two_teachers(run):
    "The changes for two teachers."
    return {
        'ARCHITECTURE.name': f'{NETWORK}+{NETWORK}_distill_{NETWORK}',
        'pretrained_model': [str(run/which) for which in ('last', 'best')],
        'ARCHITECTURE.teacher_size': [None, 48],
        'ARCHITECTURE.teacher_weights': [1, 3],
        'distill.temperature': 2}


def test_a_path_that_does_not_exist_may_name_official_weights():
    assert weights_of_recipe('') is None
    assert weights_of_recipe('./mine/ppcls') == './mine/ppcls'


@pytest.mark.parametrize('name, change, message', [
    ('ResNet50_Mixup', {'use_mix': False}, 'write use_mix: True'),
    ('ResNet50_Baseline', {'use_mix': True}, 'write an operation, such as mix: \\[{MixupOperator'),
    ('ResNet50_Mixup', {'VALID.mix': [{'MixupOperator': None}]}, 'move it to TRAIN.mix')])
def test_mixing_needs_both_switches(name, change, message):
    with pytest.raises(PPClsError, match=message):
        build_mixing(load_config(name, change))


def test_an_optimizer_must_be_named():
    with pytest.raises(PPClsError, match='OPTIMIZER.function is missing in the recipe'):
        optimizer_of_recipe(load_config('VGG/VGG11', {'OPTIMIZER': {}}), paddle.nn.Linear(2, 2), 20)


@pytest.mark.parametrize('keys, expected', [
    ({}, []),
    (EVERYTHING, ['AMP', 'GradientAccumulation', 'GradientClip', 'EMA', 'EarlyStopping']),
    ({'AMP': {}}, ['AMP']),
    ({'AMP': {'level': 'O2'}, 'use_fp16': False}, []),
    ({'amp_scale_loss': 128.}, [])])
def test_callbacks_are_switched_on_by_keys(keys, expected):
    callbacks = callbacks_of_recipe(load_config('VGG/VGG11', keys))
    assert [type(callback).__name__ for callback in callbacks] == ['Timer', *expected]


def test_early_stopping_needs_a_patience():
    with pytest.raises(PPClsError, match='early_stopping.patience is missing in the recipe'):
        callbacks_of_recipe(load_config('VGG/VGG11', {'early_stopping': {}}))


def test_a_run_with_all_callbacks_continues_from_a_state(info, tmp_path):
    conf = use_data(load_config('quick_start/ResNet50_vd', SMALL, EVERYTHING, {'epochs': 2}), info)
    first = Trainer.from_config(conf, run=tmp_path/'first', bar=False).fit(2)
    assert first.accumulate == 2
    assert 'data_s' in first.history[0]
    conf.checkpoints = str(tmp_path/'first'/'0')
    second = Trainer.from_config(conf, run=tmp_path/'second', bar=False).fit(2)
    assert len(second.history) == 2
    with pytest.raises(PPClsError, match='needs a run folder'):
        Trainer.from_config(conf, bar=False)


def test_mixing_without_transforms_uses_the_standard_operations(info):
    changes = {'TRAIN.transforms': [], 'VALID.transforms': [], 'image_shape': [3, 32, 32]}
    conf = use_data(load_config('DataAugment/ResNet50_Cutmix', SMALL, changes), info)
    trainer = Trainer.from_config(conf, bar=False).fit(1)
    assert trainer.valid.metric.total == 8
    operations = [type(operation).__name__ for operation in trainer.data.train.dataset.transforms]
    assert operations == ['DecodeImage', 'RandCropImage', 'RandFlipImage', 'NormalizeImage', 'ToCHWImage']


def test_operations_of_official_weights():
    conf = load_config('ResNet50_vd_finetune', {'pretrained_model': 'EfficientNetB3', 'VALID.transforms': []})
    resize, crop = build_transforms(conf.VALID, conf, False)[1:3]
    assert (resize.resize_short, resize.interpolation, crop.size) == (332, 2, 300)


def test_a_distillation_from_one_teacher(distillation):
    student = Trainer.from_config(distillation(**{'ARCHITECTURE.teacher_size': 48}), bar=False).fit(1)
    assert student.step == 2


def test_a_distillation_from_two_teachers(distillation, two_teachers):
    student = Trainer.from_config(distillation(**two_teachers), bar=False).fit(1)
    assert student.target.shape == [4, 2]


def test_stored_answers_of_a_teacher_are_kept_in_the_run(distillation, tmp_path):
    conf = distillation(**{'ARCHITECTURE.teacher_answers': 'stored'})
    student = Trainer.from_config(conf, run=tmp_path/'run', bar=False).fit(1)
    assert student.step == 2
    assert student.target.shape == [4, 2]
    assert (tmp_path/'run'/'teacher_answers'/'0'/'manifest.json').is_file()


def test_stored_answers_have_their_size_in_the_operations(distillation):
    conf = distillation(**{'ARCHITECTURE.teacher_answers': 'stored', 'ARCHITECTURE.teacher_size': 48})
    with pytest.raises(PPClsError, match='write the size there'):
        Trainer.from_config(conf, bar=False)


def test_images_in_both_lists_of_a_distillation_are_found(distillation):
    conf = distillation(leakage='same')
    assert leakage_of_recipe(conf, build_data(conf)).same
    conf.leakage = False
    assert leakage_of_recipe(conf, build_data(conf)) is None


def test_a_damaged_image_ends_the_search_for_near_duplicates_unless_it_is_skipped(distillation, tmp_path):
    for i in range(4):
        image = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
        cv2.imwrite(str(tmp_path/f'{i}.png'), image)
    (tmp_path/'first.txt').write_text('0.png\n1.png 1\n')
    (tmp_path/'second.txt').write_text('2.png 0\n3.png 1\n')
    conf = distillation(leakage='same')
    for reader, name in ((conf.TRAIN, 'first.txt'), (conf.VALID, 'second.txt')):
        reader.data_dir, reader.file_list = str(tmp_path), str(tmp_path/name)
    assert not leakage_of_recipe(conf, build_data(conf))
    (tmp_path/'3.png').write_bytes(b'damaged')
    conf.leakage = 'near'
    with pytest.raises(PPClsError, match='3.png'):
        leakage_of_recipe(conf, build_data(conf))
    conf.VALID.skip_bad = True
    assert not leakage_of_recipe(conf, build_data(conf))


@pytest.mark.parametrize('teachers, change, message', [
    (1, {'use_distillation': False}, 'distillation needs both'),
    (1, {'ls_epsilon': 0.1}, 'ls_epsilon with use_distillation'),
    (1, {'pretrained_model': ''}, 'needs trained weights for the teacher'),
    (1, {'pretrained_model': ['a', 'b', 'c']}, '3 weights for 2 networks'),
    (2, {'pretrained_model': 'a'}, f'1 weights for 3 networks, expected those of {NETWORK}, {NETWORK} in this order'),
    (2, {'ARCHITECTURE.teacher_size': [48]}, 'teacher_size has 1 entries, expected one for each teacher: 2'),
    (1, {'ARCHITECTURE.teacher_size': 'big'}, "'big', expected a number of pixels"),
    (2, {'ARCHITECTURE.teacher_weights': [1]}, 'a positive number for each of 2'),
    (1, {'ARCHITECTURE.teacher_params': [3]}, "expected a teacher's arguments by name")])
def test_contradictions_in_a_distillation(teachers, change, message, distillation, two_teachers):
    given = {**two_teachers, **change} if teachers == 2 else change
    with pytest.raises(PPClsError, match=message):
        Trainer.from_config(distillation(**given), bar=False)


def test_teacher_and_student_have_the_same_classes(distillation):
    conf = distillation()
    conf.classes_num = 3
    with pytest.raises(PPClsError, match='its classes must be those of the student, 3'):
        Trainer.from_config(conf, bar=False)
