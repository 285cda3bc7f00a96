"""`ppcls train`, `eval` and `infer` as users type them: interrupted and resumed, evaluated to the accuracy of the log,
with equal predictions on all paths."""
import csv, json, os, signal, subprocess, sys
from pathlib import Path

import cv2, numpy as np, pytest, yaml

from ppcls_nb.cli import COMMANDS
from ppcls_nb.data.petals import draw_scene, make_species
from ppcls_nb.models import create_model
from ppcls_nb.models.registry import WEIGHTS, Weights
from ppcls_nb.recipe.trained import load_predictor
from ppcls_nb.train import load_run, load_state, save_weights
from small_run import check_refused, ppcls, transforms

SMALL = {
    'ARCHITECTURE': {'name': 'MobileNetV1_x0_25'},
    'classes_num': 1000,
    'epochs': 4,
    'LEARNING_RATE': {'function': 'Cosine', 'params': {'lr': .02}},
    'OPTIMIZER': {
        'function': 'Momentum', 'params': {'momentum': .9}, 'regularizer': {'function': 'L2', 'factor': 1e-4}},
    'TRAIN': {
        'batch_size': 8, 'file_list': './dataset/train_list.txt', 'data_dir': './dataset',
        'transforms': transforms({'RandCropImage': {'size': 32}}, {'RandFlipImage': {}})},
    'VALID': {
        'batch_size': 7, 'file_list': './dataset/val_list.txt', 'data_dir': './dataset',
        'transforms': transforms({'ResizeImage': {'size': [32, 32]}})}}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with the folder `garden` (three kinds of flowers), and the recipe small.yaml."
    home = tmp_path_factory.mktemp('home')
    for kind, name in enumerate(('red lily', 'rose', 'tulip')):
        (home/'garden'/name).mkdir(parents=True)
        for i in range(20):
            cv2.imwrite(str(home/'garden'/name/f'{i:02}.png'),
                        draw_scene(make_species(7*kind + 1), np.random.default_rng(100*kind + i), 40))
    (home/'small.yaml').write_text(yaml.safe_dump({**SMALL, 'model_save_dir': str(home/'output')}))
    return home


@pytest.fixture(scope='module')
def run(home):
    "A run that was stopped with Ctrl-C in another process and then finished by the same command here."
    argv = ['train', '-c', str(home/'small.yaml'), '--data', str(home/'garden')]
    process = subprocess.Popen([sys.executable, '-W', 'ignore', '-m', 'ppcls_nb', *argv], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    printed = ''
    for line in process.stdout:
        printed += line
        if 'epoch:0 ' in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    run = home/'output'/'small'
    kept = load_state(run/'last.pdstate')['epoch'] if (run/'last.pdstate').exists() else 0
    stopped = process.returncode == 130 and f'keeps {kept} of 4 epochs' in rest
    assert stopped or kept == 4, printed + rest
    for part in ('MobileNetV1_x0_25, 0.', '3 classes', 'from a random start', '4 epochs of 6 steps of 8 images',
                 '48 images to train on, 12 to validate on', '0.02 at first, Momentum'):
        assert part in printed
    code, out, _ = ppcls(*argv)
    assert code == 0
    assert f'ppcls eval --run {run}' in out
    return run


def test_the_run_is_complete_and_has_its_class_names(run, home):
    rows = load_run(run).rows
    assert [r['epoch'] for r in rows] == [0, 1, 2, 3]
    assert rows[-1]['valid_total'] == 12
    assert (run/'classes.txt').read_text() == '0 red lily\n1 rose\n2 tulip\n'
    assert (home/'garden'/'classes.txt').read_text() == '0 red lily\n1 rose\n2 tulip\n'
    files = {file.name for file in run.iterdir()}
    assert {'config.yaml', 'metrics.jsonl', 'last.pdparams', 'best.pdparams', 'last.pdstate'} <= files


def test_a_finished_run_is_not_trained_again(run, home):
    rows = load_run(run).rows
    code, out, err = ppcls('train', '-c', home/'small.yaml', '--data', home/'garden')
    assert (code, err) == (0, '')
    assert 'which holds a run' in out
    assert 'epoch:' not in out
    assert load_run(run).rows == rows


def test_a_dry_run_prints_the_plan_and_makes_no_run(home, tmp_path):
    for more in ([], ['--fresh'], ['-o', 'TRAIN.batch_size=1']):
        code, out, err = ppcls('train', '-c', home/'small.yaml', '--data', home/'garden', '--out', tmp_path/'run',
                               '--dry-run', *more)
        assert (code, err) == (0, '')
        for part in ('MobileNetV1_x0_25, 0.', '3 classes', '48 images to train on', 'memory         about ', ' maps ',
                     'dry run: nothing was trained'):
            assert part in out
        assert 'epoch:' not in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('change, message', [
    ('checkpoints=nowhere', 'checkpoints: nowhere is no saved state'),
    ('pretrained_model=nowhere', 'nowhere: no file'),
    ('TRAIN.file_list=nowhere.txt', 'nowhere.txt')])
def test_a_dry_run_finds_what_is_missing(home, change, message, tmp_path):
    code, _, err = ppcls('train', '-c', home/'small.yaml', '--data', home/'garden', '--out', tmp_path/'run',
                         '--dry-run', '-o', change)
    assert code == 2
    assert message in err


def test_the_documents_scripts_are_the_commands(home, run, tmp_path):
    tools = Path(__file__).resolve().parents[1]/'tools'
    train = [tools/'train.py', '-c', home/'small.yaml', '--data', home/'garden', '--out', tmp_path/'run', '--dry-run']
    scripts = {'train': train, 'eval': [tools/'eval.py', '--run', run]}
    for name, argv in scripts.items():
        done = subprocess.run([sys.executable, '-W', 'ignore', *map(str, argv)], capture_output=True, text=True,
                              cwd=tmp_path, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        assert done.returncode == 0, done.stderr
        assert ('dry run: nothing' if name == 'train' else 'the same') in done.stdout


@pytest.mark.parametrize('which', ['last', 'best'])
def test_eval_gives_the_accuracy_of_the_log(run, home, which, tmp_path):
    rows = load_run(run).rows
    row = rows[-1] if which == 'last' else max(rows, key=lambda r: r['valid_top1_correct'])
    code, out, err = ppcls('eval', '--run', run, '--weights', which, '--report', tmp_path/'report')
    report = json.loads((tmp_path/'report'/'report.json').read_text(encoding='utf-8'))
    assert code == 0
    assert not err
    assert 'the same' in out
    assert report['total'] == 12
    assert report['top1_correct'] == row['valid_top1_correct']
    assert report['loss'] == row['valid_loss']
    assert report['classes'] == ['red lily', 'rose', 'tulip']
    assert all(Path(t['file']).is_file() for t in report['top_losses'])
    figures = {'classes', 'confusion', 'reliability', 'top_losses', 'predictions', 'confused_pairs', 'grad_cam'}
    assert {f.stem for f in (tmp_path/'report').glob('*.png')} == figures
    assert all(f'{name}.png\n' in out for name in figures)
    code, out, err = ppcls('eval', '-c', home/'small.yaml', '--data', home/'garden', '-o',
                           f'pretrained_model={run/which}')
    assert code == 0
    assert f"({row['valid_top1_correct']}/12)" in out
    assert f"loss:{row['valid_loss']:.4f}" in out


def test_eval_uses_the_arguments_of_the_first_weights_and_the_average_of_weights(home, tmp_path, monkeypatch):
    args, tag = dict(act='relu6', padding='SAME'), 'weights_with_arguments'
    save_weights(tmp_path/'first.pdparams', create_model('EfficientNetB0_small', class_num=5, **args))
    monkeypatch.setitem(
        WEIGHTS, tag,
        Weights(tag, 'EfficientNetB0_small', file=str(tmp_path/'first.pdparams'), args=args, classifier='_fc',
                class_num=5, crop_size=32, resize_short=36))
    argv = [
        '-c', home/'small.yaml', '--data', home/'garden', '-o', 'ARCHITECTURE.name=EfficientNetB0_small', 'epochs=1',
        'VALID.transforms=[]', 'use_ema=True', 'ema_decay=0.5']
    assert ppcls('train', *argv, '--output', tmp_path/'run', '-o', f'pretrained_model={tag}')[0] == 0
    line = f"loss:{load_run(tmp_path/'run').rows[0]['valid_loss']:.4f}"
    for how in (['--run', tmp_path/'run'], [*argv, '-o', f"pretrained_model={tmp_path/'run'/'last'}"]):
        code, out, _ = ppcls('eval', *how)
        assert code == 0
        assert line in out
        assert 'the same' in out
    assert ppcls('infer', '-m', tmp_path/'run', '-i', home/'garden'/'rose')[0] == 0


def test_infer_has_the_accuracy_of_eval(run, home, tmp_path):
    listed = [line.rsplit(' ', 1) for line in (home/'garden'/'val_list.txt').read_text().splitlines()]
    code, out, err = ppcls('infer', '-m', run/'last.pdparams', '-i', *(home/'garden'/p for p, _ in listed),
                           '--topk', 9, '--csv', tmp_path/'predictions.csv')
    rows = list(csv.DictReader((tmp_path/'predictions.csv').open(encoding='utf-8')))
    assert code == 0
    assert not err
    assert len(rows) == 12*3
    assert abs(sum(float(r['score']) for r in rows) - 12) < 1e-4
    first = [r['label'] for r in rows if r['rank'] == '1']
    assert sum(a == b for a, (_, b) in zip(first, listed)) == load_run(run).rows[-1]['valid_top1_correct']
    assert {r['name'] for r in rows} == {'red lily', 'rose', 'tulip'}


def test_eval_does_not_depend_on_the_batch_size(run):
    row = load_run(run).rows[-1]
    code, out, err = ppcls('eval', '--run', run, '--weights', 'last', '-o', 'VALID.batch_size=5')
    assert (code, err) == (0, '')
    assert f"({row['valid_top1_correct']}/12)" in out
    assert 'the same' in out


def test_eval_reports_a_difference_from_the_log(run, home):
    out = ppcls('eval', '--run', run, '-o', f"VALID.file_list={home/'garden'/'train_list.txt'}")[1]
    assert 'which differs' in out


def test_infer_writes_json_and_csv(run, home, tmp_path):
    pictures = sorted((home/'garden'/'rose').glob('*.png'))[:3]
    (tmp_path/'broken.jpg').write_bytes(b'no image')
    (tmp_path/'names.txt').write_text('Daisy\nPoppy\nGreat mullein\n')
    code, out, err = ppcls('infer', '-m', run, '-i', *pictures, tmp_path/'broken.jpg', '--topk', 2,
                           '--classes', tmp_path/'names.txt', '--json', tmp_path/'saved.json',
                           '--csv', tmp_path/'saved.csv')
    saved = json.loads((tmp_path/'saved.json').read_text())
    table = list(csv.reader((tmp_path/'saved.csv').open()))
    files = [row['file'] for row in saved['predictions']]
    assert code == 1
    assert err.count('\n') == 1
    assert 'broken.jpg' in err
    assert [line.split('  ')[0] for line in out.splitlines()] == files == [str(file) for file in pictures]
    assert len(saved['failed']) == 1
    assert len(table) == 1 + 3*2
    assert table[1][:2] == [files[0], '1']
    assert table[1][3] == saved['predictions'][0]['top'][0]['name'] in ('Daisy', 'Poppy', 'Great mullein')


def test_infer_takes_the_documents_options(run, home, tmp_path):
    save_weights(tmp_path/'flowers.pdparams', load_predictor(run)[0])
    image = home/'garden'/'rose'/'00.png'
    code, out, _ = ppcls('infer', f'--i={image}', '--m=MobileNetV1_x0_25', f"--p={tmp_path/'flowers'}",
                         '--use_gpu=False')
    assert code == 0
    assert out.count('  ') == 3      # the file, and all three classes
    assert out.startswith(str(image))


def test_an_image_that_does_not_exist_is_reported(run, tmp_path):
    assert ppcls('infer', '-m', run, '-i', tmp_path/'no.jpg')[0] == 1


def test_infer_needs_a_name_for_each_class(run, home, tmp_path):
    (tmp_path/'two.txt').write_text('rose\ntulip\n')
    check_refused('two.txt: 2 names for a network with 3 classes', 'infer', '-m', run,
                  '-i', home/'garden'/'rose'/'00.png', '--classes', tmp_path/'two.txt')


def test_infer_names_damaged_images_and_goes_on(run, home, tmp_path):
    (tmp_path/'a folder').mkdir()
    for i, data in enumerate([b'', (home/'garden'/'rose'/'00.png').read_bytes(), b'nonsense']):
        (tmp_path/'a folder'/f'image {i}.png').write_bytes(data)
    code, out, err = ppcls('infer', '-m', run, '-i', tmp_path)
    assert code == 1
    assert out.startswith(str(tmp_path/'a folder'/'image 1.png'))
    assert out.count('\n') == 1
    assert [n in err for n in ('image 0', 'image 1', 'image 2')] == [True, False, True]


def test_fresh_keeps_the_old_run_under_another_name(run, home, tmp_path):
    argv = [
        'train', '-c', home/'small.yaml', '--data', home/'garden', '--output', tmp_path/'run', '-o', 'epochs=1',
        'TRAIN.batch_size=24', '-o', 'ARCHITECTURE.name="ShuffleNetV2_x0_25"', 'use_mix=1',
        'TRAIN.mix=[{MixupOperator: {alpha: 0.2}}]']
    assert ppcls(*argv)[0] == 0
    code, out, _ = ppcls(*argv, '--fresh')
    assert code == 0
    assert 'moved to run.old-1' in out
    assert 'epoch:0 ' in out
    assert 'ShuffleNetV2_x0_25' in out
    assert ' Mix\n' in out
    first, second = (load_run(tmp_path/name).rows[0] for name in ('run.old-1', 'run'))
    assert first['valid_top1_correct'] == second['valid_top1_correct']


@pytest.mark.parametrize('argv, message', [
    (['train'], 'the following arguments are required: -c/--config (see ppcls train --help)'),
    (['train', '-c', 'ResNet50_v'], 'did you mean'),
    (['train', '-c', 'SMALL', '-o', 'TRAIN.batchsize=3'], "did you mean 'batch_size'"),
    (['train', '-c', 'SMALL', '-o', 'TRAIN.batch_size=no'], 'TRAIN.batch_size'),
    (['train', '-c', 'SMALL', '--data', 'nowhere'], 'nor is it a folder'),
    (['train', '-c', 'SMALL', '-o', 'epochs'], 'expected KEY=VALUE'),
    (['eval'], 'expected one of -c RECIPE'),
    (['eval', '--run', 'nowhere'], 'nowhere: not a run folder'),
    (['eval', '-c', 'SMALL'], 'ppcls: pretrained_model: no weights are named'),
    (['eval', '--run', 'RUN', '-o', 'classes_num=4'], 'of MobileNetV1_x0_25 with 4 classes'),
    (['eval', '--run', 'RUN', '-o', 'ARCHITECTURE.name=ResNet18'], 'fits ResNet18, except the classifier'),
    (['infer'], 'required: -i'),
    (['infer', '-m', 'RUN', '-i', 'x.png', '--topk', '0'], '--topk 0'),
    (['infer', '-m', 'RUN', '-i', 'RUN'], 'no images in this folder'),
    (['infer', '-m', 'nowhere', '-i', 'x.png'], 'no run folder'),
    (['infer', '-m', 'ResNet18', '-p', 'nowhere', '-i', 'x.png'], 'no file')])
def test_a_mistake_is_one_line_and_exit_code_2(argv, message, run, home):
    files = dict(SMALL=home/'small.yaml', RUN=run)
    check_refused(message, *(files.get(argument, argument) for argument in argv))


WITHOUT_PADDLE = """
import sys
from ppcls_nb.cli import main
assert main([]) == 0
assert 'paddle' not in sys.modules
assert 'matplotlib' not in sys.modules
"""


def test_help_names_the_commands_without_paddle():
    done = subprocess.run([sys.executable, '-c', WITHOUT_PADDLE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f'\n  {name} ' in done.stdout for name in COMMANDS)
