"""Silent wrong answers that users of image classification tools report: each case is a small input and the right
value."""
import json
import shutil
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import cv2
import numpy as np
import paddle
import pytest
import yaml

from ppcls_nb.basics import PPClsError
from ppcls_nb.cli import main
from ppcls_nb.data.folders import make_list_files
from ppcls_nb.data.imaug import RandCropImage
from ppcls_nb.data.resolve import resolve_data
from ppcls_nb.recipe.load import load_config
from ppcls_nb.recipe.data import warn_of_progressive
from ppcls_nb.recipe.trained import image_files
from ppcls_nb.train import load_run

KINDS = ('crocus', 'daisy', 'iris', 'poppy', 'rose')
NORMALIZE = [{'NormalizeImage': {'order': ''}}, {'ToCHWImage': None}]
TRAIN_OPS = [{'DecodeImage': {}}, {'RandCropImage': {'size': 32, 'scale': [0.7, 1.0]}}, *NORMALIZE]
VALID_OPS = [{'DecodeImage': {}}, {'ResizeImage': {'size': [32, 32]}}, *NORMALIZE]
RECIPE = dict(
    ARCHITECTURE={'name': 'MobileNetV1_x0_25'}, epochs=12, image_shape=[3, 32, 32],
    LEARNING_RATE={'function': 'Cosine', 'params': {'lr': 0.02}},
    OPTIMIZER={'function': 'Momentum', 'params': {'momentum': 0.9}},
    TRAIN=dict(batch_size=10, file_list='train_list.txt', data_dir='.', transforms=TRAIN_OPS),
    VALID=dict(batch_size=10, file_list='val_list.txt', data_dir='.', transforms=VALID_OPS))


COLOURS = dict(zip(KINDS, [(255, 40, 40), (40, 255, 40), (40, 40, 255), (255, 255, 40), (40, 255, 255)]))


def draw(folder, kinds=KINDS, count=12, first=0):
    "Write `count` noisy images of one colour for each of `kinds` into sub-folders of `folder`."
    for kind in kinds:
        (folder/kind).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + count):
            noise = np.random.default_rng([KINDS.index(kind), i]).integers(-60, 60, (40, 40, 3))
            image = np.clip(np.array(COLOURS[kind]) + noise, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder/kind/f'{i:02}.png'), image)
    return folder


def ppcls(capsys, *argv):
    "(exit code, standard output, error output) of the command in this process."
    capsys.readouterr()
    code = main([str(a) for a in argv])
    return code, *capsys.readouterr()


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with a run (run/) on five kinds of flowers, its recipe (small.yaml) and other photographs (test/)."
    home = tmp_path_factory.mktemp('reports')
    draw(home/'garden')
    draw(home/'test', count=8, first=50)
    (home/'small.yaml').write_text(yaml.safe_dump(RECIPE))
    assert main(['train', '-c', str(home/'small.yaml'), '--data', str(home/'garden'), '--out', str(home/'run')]) == 0
    assert load_run(home/'run').top1() > 0.7      # so that shifted labels show
    return home


def correct_by_name(home, folder, capsys, tmp_path):
    "How many images of the class folders in `folder` the run names rightly, by the names that `infer` prints."
    ppcls(capsys, 'infer', '-m', home/'run', '-i', folder, '--topk', 1, '--json', tmp_path/'answers.json')
    rows = json.loads((tmp_path/'answers.json').read_text())['predictions']
    return sum(row['top'][0]['name'] == Path(row['file']).parent.name for row in rows), len(rows)


def counted(out):
    "(correct, total) of the accuracy that `eval` prints."
    correct, total = out.partition('top1:')[2].partition('(')[2].partition(')')[0].split('/')
    return int(correct), int(total)


def lists_of(folder, kinds, labels=None):
    "A list file of all images of `kinds` in `folder`, with classes.txt beside it; labels count from 0 by name."
    rows = [(f'{kind}/{file.name}', k) for k, kind in enumerate(kinds) for file in sorted((folder/kind).iterdir())]
    for part in ('train', 'val'):
        (folder/f'{part}_list.txt').write_text(''.join(f'{path} {label}\n' for path, label in rows))
    (folder/'classes.txt').write_text(''.join(f'{k} {kind}\n' for k, kind in enumerate(kinds)))
    return folder


# --- 1. another data set's classes

@pytest.mark.parametrize('options', [(), ('-o', 'classes_num=5')])
def test_eval_on_images_that_lack_a_class_counts_by_name(home, tmp_path, capsys, options):
    part = shutil.copytree(home/'test', tmp_path/'part')
    shutil.rmtree(part/'daisy')
    by_name = correct_by_name(home, part, capsys, tmp_path)
    lists_of(part, [kind for kind in KINDS if kind != 'daisy'])
    code, out, err = ppcls(capsys, 'eval', '--run', home/'run', '--data', part, *options)
    assert (code, err) == (0, '')
    assert counted(out) == by_name
    assert 'no images of daisy' in out


def test_eval_on_images_with_an_unknown_class_is_refused(home, tmp_path, capsys):
    other = shutil.copytree(home/'test', tmp_path/'other')
    (other/'daisy').rename(other/'daisies')
    code, out, err = ppcls(capsys, 'eval', '--run', home/'run', '--data', other)
    assert code == 2
    assert "unknown class 'daisies'; did you mean 'daisy'?" in err


def test_eval_on_images_whose_classes_come_in_another_order(home, tmp_path, capsys):
    other = shutil.copytree(home/'test', tmp_path/'other')
    by_name = correct_by_name(home, other, capsys, tmp_path)
    lists_of(other, KINDS[::-1])
    assert counted(ppcls(capsys, 'eval', '--run', home/'run', '--data', other)[1]) == by_name


def test_a_training_that_starts_from_a_run_keeps_its_numbers(home, tmp_path, capsys):
    part = shutil.copytree(home/'garden', tmp_path/'part')
    shutil.rmtree(part/'crocus')
    lists_of(part, KINDS[1:])
    code, out, _ = ppcls(capsys, 'train', '-c', home/'small.yaml', '--data', part, '--out', tmp_path/'run', '-o',
                         f"pretrained_model={home/'run'/'last'}", 'epochs=1', 'LEARNING_RATE.params.lr=0.0001')
    assert code == 0
    assert load_run(tmp_path/'run').top1() > 0.5      # the old classifier, still right
    assert (tmp_path/'run'/'classes.txt').read_text() == (home/'run'/'classes.txt').read_text()


def test_a_training_on_other_classes_says_that_the_classifier_starts_anew(home, tmp_path, capsys):
    other = shutil.copytree(home/'garden', tmp_path/'other')
    (other/'daisy').rename(other/'zinnia')
    lists_of(other, sorted(p.name for p in other.iterdir() if p.is_dir()))
    out = ppcls(capsys, 'train', '-c', home/'small.yaml', '--data', other, '--out', tmp_path/'run', '-o',
                f"pretrained_model={home/'run'/'last'}", 'epochs=1')[1]
    assert 'trained on other classes' in out


def test_quantize_counts_the_labels_of_a_list_by_name(home):
    from ppcls_nb.cli.quantize import labelled_files
    listed = lists_of(home/'test', KINDS[::-1])
    _, labels = labelled_files([listed/'val_list.txt'], None, 5, list(KINDS))
    assert labels[:8] == [4]*8
    for name in ('train_list.txt', 'val_list.txt', 'classes.txt'):
        (listed/name).unlink()


# --- 2. split folders by other names

SPLIT_NAMES = [('Training', 'Testing'), ('Train', 'Test'), ('TRAIN', 'VAL'), ('train', 'dev'),
               ('seg_train', 'seg_test'), ('train', 'valid_data'), ('train_set', 'eval'),
               ('training_data', 'validation-data')]


@pytest.mark.parametrize('train, other', SPLIT_NAMES)
def test_split_folders_are_recognized_by_other_names(tmp_path, train, other):
    draw(tmp_path/'data'/train, count=5)
    draw(tmp_path/'data'/other, count=2, first=50)
    info = resolve_data(tmp_path/'data', tmp_path/'lists')
    assert info.classes == sorted(KINDS)
    assert info.counts['train'] + info.counts['val'] + info.counts.get('test', 0) == 35
    listed = (info.lists/'val_list.txt').read_text()
    assert listed.startswith(f'{other}/' if 'est' not in other else f'{train}/')


def test_what_looks_like_splits_beside_classes_is_a_question(tmp_path):
    draw(tmp_path/'data'/'train', count=2)
    draw(tmp_path/'data'/'test', count=2)
    draw(tmp_path/'data'/'daisies', count=2)
    with pytest.raises(PPClsError, match='look like parts of a split.*daisies'):
        resolve_data(tmp_path/'data', tmp_path/'lists')


def test_a_class_may_be_called_train(tmp_path):
    for name in ('bus', 'car', 'train'):
        draw(tmp_path/'data'/name, kinds=('rose',), count=4)
    assert resolve_data(tmp_path/'data', tmp_path/'lists').classes == ['bus', 'car', 'train']


# --- 6. lists that are older than the folder

def test_new_images_and_classes_come_into_lists_that_a_command_made(tmp_path, capsys):
    data = draw(tmp_path/'data', kinds=KINDS[:3])
    before = resolve_data(data)
    draw(data, kinds=('poppy',))
    draw(data, kinds=('rose',), count=2)
    now = resolve_data(data)
    assert now.classes == sorted([*KINDS[:3], 'poppy', 'rose'])
    assert sum(now.counts.values()) == sum(before.counts.values()) + 14
    assert 'made anew' in capsys.readouterr().out


def test_lists_that_a_person_made_are_kept_and_what_is_new_is_said(tmp_path, capsys):
    data = draw(tmp_path/'data', kinds=KINDS[:3])
    lists_of(data, KINDS[:3])
    kept = (data/'train_list.txt').read_text()
    draw(data, kinds=('poppy',))
    resolve_data(data)
    assert (data/'train_list.txt').read_text() == kept
    assert '12 images' in (said := capsys.readouterr().out) and 'in none of the lists' in said


# --- 3. logits that are not numbers

class Broken(paddle.nn.Layer):
    "Gives the right class for bright images, and NaN for dark ones."
    def forward(self, x):
        dark = x.mean([1, 2, 3]) < 0
        logits = paddle.nn.functional.one_hot(paddle.zeros([len(x)], 'int64'), 3)
        return paddle.where(dark.unsqueeze(1).expand_as(logits), paddle.full_like(logits, float('nan')), logits)


def test_not_a_number_is_a_wrong_answer_and_is_said():
    from ppcls_nb.train import evaluate
    images = paddle.concat([paddle.ones([3, 3, 8, 8]), -paddle.ones([2, 3, 8, 8])])
    result = evaluate(Broken(), [(images, paddle.zeros([5], 'int64'))], ks=(1, 2))
    assert result.metric.correct == {1: 3, 2: 3}
    assert result.metric.total == 5
    assert result.nonfinite == 2


def test_infer_reports_images_whose_outputs_are_not_numbers(home, tmp_path, capsys):
    run = shutil.copytree(home/'run', tmp_path/'run')
    state = paddle.load(str(run/'best.pdparams'))
    state['fc.bias'] = state['fc.bias']*float('nan')
    paddle.save(state, str(run/'best.pdparams'))
    image = next((home/'test'/'rose').iterdir())
    code, out, err = ppcls(capsys, 'infer', '-m', run, '-i', image, '--json', tmp_path/'a.json')
    assert code == 1
    assert 'not finite' in err
    assert 'NaN' not in (tmp_path/'a.json').read_text()
    code, out, _ = ppcls(capsys, 'eval', '--run', run)
    assert counted(out)[0] == 0
    assert 'not finite' in out


# --- 4. image_shape

def test_image_shape_changes_the_operations_that_a_recipe_lists():
    conf = load_config('ResNet50_vd_finetune', ['image_shape=[3, 64, 64]'])
    ops = {name: args for op in [*conf.TRAIN.transforms, *conf.VALID.transforms] for name, args in op.items()}
    assert ops['RandCropImage']['size'] == ops['CropImage']['size'] == 64
    assert ops['ResizeImage']['resize_short'] == round(256*64/224)


def test_image_shape_and_operations_of_another_size_are_an_error():
    change = ['TRAIN.transforms=[{DecodeImage: {}}, {RandCropImage: {size: 96}}]', 'image_shape=[3, 64, 64]']
    with pytest.raises(PPClsError, match='image_shape.*64.*96'):
        load_config('ResNet50_vd_finetune', change)


def test_an_image_that_is_wider_than_high(home):
    from ppcls_nb.recipe.data import build_transforms
    conf = load_config(home/'small.yaml', ['TRAIN.transforms=[]', 'VALID.transforms=[]', 'image_shape=[3, 48, 192]'])
    for part, train in ((conf.TRAIN, True), (conf.VALID, False)):
        image = cv2.imencode('.png', np.zeros((100, 400, 3), np.uint8))[1].tobytes()
        for operation in build_transforms(part, conf, train):
            image = operation(image, np.random.default_rng(0))
        assert image.shape == (3, 48, 192)


# --- 5. files that are left out

@pytest.mark.parametrize('suffix', ['.jfif', '.JPE', '.jfi', '.mpo', '.png', '.gif', '.webp'])
def test_whatever_can_be_decoded_is_an_image(tmp_path, suffix):
    (tmp_path/'a'/'b').mkdir(parents=True)
    (tmp_path/'a'/'b'/f'x{suffix}').write_bytes(b'x')
    assert [Path(f).suffix for f in image_files([tmp_path/'a'])] == [suffix]


def test_infer_walks_like_lists(tmp_path):
    (tmp_path/'a'/'.ipynb_checkpoints').mkdir(parents=True)
    (tmp_path/'a'/'.ipynb_checkpoints'/'x.png').write_bytes(b'x')
    (tmp_path/'elsewhere').mkdir()
    (tmp_path/'elsewhere'/'y.png').write_bytes(b'x')
    (tmp_path/'a'/'link').symlink_to(tmp_path/'elsewhere')
    (tmp_path/'a'/'notes.txt').write_text('x')
    left_out = []
    assert [Path(f).name for f in image_files([tmp_path/'a'], None, left_out)] == ['y.png']
    assert [file.name for file in left_out] == ['notes.txt']


# --- 8. options by their first letters

def test_no_option_is_matched_by_its_beginning(capsys):
    code, _, err = ppcls(capsys, 'train', '--conf', 'ResNet18')
    assert code == 2 and 'unrecognized arguments: --conf' in err or 'required: -c' in err


def test_the_documents_short_and_long_forms_mean_the_same(home, tmp_path, capsys):
    image = next((home/'test'/'rose').iterdir())
    assert ppcls(capsys, 'export', '--m', home/'run', '--o', tmp_path/'out')[0] == 0
    for form in (('-i', image, '-m', tmp_path/'out'), (f'--i={image}', f"--d={tmp_path/'out'}"),
                 (f'--image_file={image}', f"--model_dir={tmp_path/'out'}"), (f'--i={image}', f"--m={tmp_path/'out'}")):
        code, out, err = ppcls(capsys, 'predict', *form)
        assert (code, err) == (0, '') and 'rose' in out


def test_infer_says_what_it_left_out(home, tmp_path, capsys):
    folder = shutil.copytree(home/'test'/'rose', tmp_path/'photos')
    (folder/'notes.txt').write_text('x')
    code, out, err = ppcls(capsys, 'infer', '-m', home/'run', '-i', folder)
    assert (code, out.count('\n')) == (0, 8)
    assert err == 'ppcls: left out, without the suffix of an image: 1 (notes.txt)\n'


def test_a_training_without_validation_needs_no_validation_list(home, tmp_path, capsys):
    data = shutil.copytree(home/'garden', tmp_path/'data', ignore=shutil.ignore_patterns('*.txt'))
    for source in ('folders', 'a list'):
        code, out, err = ppcls(capsys, 'train', '-c', home/'small.yaml', '--data', data, '--out', tmp_path/source, '-o',
                               'validate=False', 'epochs=1')
        assert (code, err) == (0, '')
        assert '60 images to train on, none to validate on' in out
        assert not (data/'val_list.txt').exists()


def test_labels_that_are_ids_are_refused(home, tmp_path):
    data = lists_of(shutil.copytree(home/'test', tmp_path/'data'), KINDS)
    (data/'classes.txt').unlink()
    for part in ('train', 'val'):
        file = data/f'{part}_list.txt'
        file.write_text(file.read_text().replace(' 4\n', ' 10024000\n'))
    with pytest.raises(PPClsError, match='labels up to 10,024,000 for 80 images with 5 different labels; are they ids'):
        resolve_data(data)


def test_runs_with_fewer_than_five_classes_are_compared(tmp_path):
    from ppcls_nb.train import compare
    row = dict(data='x', epoch=0, step=3, seconds=1., valid_total=10, valid_top1_correct=6, valid_top3_correct=10)
    for name in 'ab':
        (tmp_path/name).mkdir()
        (tmp_path/name/'metrics.jsonl').write_text(json.dumps(row) + '\n')
        (tmp_path/name/'config.yaml').write_text('epochs: 1\n')
    table = compare({name: load_run(tmp_path/name) for name in 'ab'})
    assert table.top5.tolist() == [1., 1.]


@pytest.mark.parametrize('epochs, said', [(2, True), (5, True), (6, False)])
def test_sizes_of_the_first_epochs_that_last_for_the_whole_run(epochs, said, capsys):
    "With fewer epochs than `progressive` has sizes for, the network never sees images of its size: that is said."
    warn_of_progressive([RandCropImage(32, progressive=[[3, 16], [5, 24]]), RandCropImage(32)], epochs)
    assert (f'the run has {epochs}, so none has the size 32' in capsys.readouterr().out) == said
