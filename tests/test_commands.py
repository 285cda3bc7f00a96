"""`ppcls train`, `eval` and `infer` as users type them: interrupted and resumed, evaluated to the very number of the
log, answers equal on all paths."""
import csv, json, os, signal, subprocess, sys, time
from pathlib import Path

import cv2, numpy as np, pytest, yaml

from ppcls_nb.cli import COMMANDS, main
from ppcls_nb.data.petals import draw_scene, make_species
from ppcls_nb.models import create_model
from ppcls_nb.models.registry import WEIGHTS, Weights
from ppcls_nb.train import load_run, load_state, save_weights

OPS = [{
    'DecodeImage': {}}, {
        'ResizeImage': {
            'size': [32, 32]}}, {
                'NormalizeImage': {
                    'order': ''}}, {
                        'ToCHWImage': None}]
SMALL = dict(
    ARCHITECTURE={'name': 'MobileNetV1_x0_25'}, classes_num=1000, epochs=4, LEARNING_RATE={
        'function': 'Cosine',
        'params': {
            'lr': .02}}, OPTIMIZER={
                'function': 'Momentum',
                'params': {
                    'momentum': .9},
                'regularizer': {
                    'function': 'L2',
                    'factor': 1e-4}},
    TRAIN=dict(batch_size=8, file_list='./dataset/train_list.txt', data_dir='./dataset',
               transforms=[OPS[0], {
                   'RandCropImage': {
                       'size': 32}}, {
                           'RandFlipImage': {}}, *OPS[2:]]),
    VALID=dict(batch_size=7, file_list='./dataset/val_list.txt', data_dir='./dataset', transforms=OPS))


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


def ppcls(capsys, *argv):
    "(exit code, standard output, error output) of the command in this process."
    capsys.readouterr()
    code = main([str(a) for a in argv])
    return code, *capsys.readouterr()


@pytest.fixture(scope='module')
def run(home):
    "A run that was stopped with Ctrl-C in another process and then finished by the same command here."
    argv = ['train', '-c', str(home/'small.yaml'), '--data', str(home/'garden')]
    process = subprocess.Popen([sys.executable, '-W', 'ignore', '-m', 'ppcls_nb', *argv], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, env={
                                   **os.environ, 'OMP_NUM_THREADS': '1'})
    lines = []
    for line in process.stdout:
        lines.append(line)
        if 'epoch:0 ' in line: break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    run = home/'output'/'small'
    kept = load_state(run/'last.pdstate')['epoch'] if (run/'last.pdstate').exists() else 0
    assert (process.returncode == 130 and f'keeps {kept} of 4 epochs' in rest) or kept == 4, ''.join(lines) + rest
    said = ''.join(lines)
    for part in ('3 classes', '48 images to train on, 12 to validate on', '4 epochs of 6 steps of 8 images',
                 '0.02 at first, Momentum', 'from a random start'):
        assert part in said, said
    assert main(argv) == 0
    return run


def test_the_run_is_whole_and_knows_its_classes(run, home):
    rows = load_run(run).rows
    assert [r['epoch'] for r in rows] == [0, 1, 2, 3]
    assert rows[-1]['valid_total'] == 12
    assert (run/'classes.txt').read_text() == '0 red lily\n1 rose\n2 tulip\n' == (home/'garden'/
                                                                                  'classes.txt').read_text()


@pytest.mark.parametrize('which', ['last', 'best'])
def test_eval_gives_the_number_of_the_log(run, home, which, capsys, tmp_path):
    rows = load_run(run).rows
    row = rows[-1] if which == 'last' else max(rows, key=lambda r: r['valid_top1_correct'])
    code, out, err = ppcls(capsys, 'eval', '--run', run, '--weights', which, '--report', tmp_path/'report')
    report = json.loads((tmp_path/'report'/'report.json').read_text(encoding='utf-8'))
    assert code == 0
    assert not err
    assert 'the same' in out
    assert (report['total'], report['top1_correct'], report['loss']) == (12, row['valid_top1_correct'],
                                                                         row['valid_loss'])
    assert report['classes'] == ['red lily', 'rose', 'tulip']
    assert all(Path(t['file']).is_file() for t in report['top_losses'])
    figures = {'classes', 'confusion', 'reliability', 'top_losses', 'predictions', 'confused_pairs', 'grad_cam'}
    assert {f.stem for f in (tmp_path/'report').glob('*.png')} == figures
    assert all(f'{name}.png\n' in out for name in figures)
    code, out, err = ppcls(capsys, 'eval', '-c', home/'small.yaml', '--data', home/'garden', '-o',
                           f'pretrained_model={run/which}')
    assert code == 0
    assert f"({row['valid_top1_correct']}/12)" in out
    assert f"loss:{row['valid_loss']:.4f}" in out


def test_eval_remembers_what_the_first_weights_asked_of_the_network_and_takes_the_mean_of_weights(
        home, capsys, tmp_path, monkeypatch):
    args, tag = dict(act='relu6', padding='SAME'), 'weights_with_arguments'
    save_weights(tmp_path/'first.pdparams', create_model('EfficientNetB0_small', class_num=5, **args))
    monkeypatch.setitem(
        WEIGHTS, tag,
        Weights(tag, 'EfficientNetB0_small', file=str(tmp_path/'first.pdparams'), args=args, classifier='_fc',
                class_num=5, crop_size=32, resize_short=36))
    argv = [
        '-c', home/'small.yaml', '--data', home/'garden', '-o', 'ARCHITECTURE.name=EfficientNetB0_small', 'epochs=1',
        'VALID.transforms=[]', 'use_ema=True', 'ema_decay=0.5']
    assert ppcls(capsys, 'train', *argv, '--output', tmp_path/'run', '-o', f'pretrained_model={tag}')[0] == 0
    line = f"loss:{load_run(tmp_path/'run').rows[0]['valid_loss']:.4f}"
    for how in (['--run', tmp_path/'run'], [*argv, '-o', f"pretrained_model={tmp_path/'run'/'last'}"]):
        code, out, _ = ppcls(capsys, 'eval', *how)
        assert code == 0
        assert line in out
        assert 'the same' in out
    assert ppcls(capsys, 'infer', '-m', tmp_path/'run', '-i', home/'garden'/'rose')[0] == 0


def test_infer_answers_as_eval_does(run, home, capsys, tmp_path):
    listed = [line.rsplit(' ', 1) for line in (home/'garden'/'val_list.txt').read_text().splitlines()]
    code, out, err = ppcls(capsys, 'infer', '-m', run/'last.pdparams', '-i', *(home/'garden'/p for p, _ in listed),
                           '--topk', 9, '--csv', tmp_path/'told.csv')
    rows = list(csv.DictReader((tmp_path/'told.csv').open(encoding='utf-8')))
    assert code == 0
    assert not err
    assert len(rows) == 12*3
    assert abs(sum(float(r['score']) for r in rows) - 12) < 1e-4
    first = [r['label'] for r in rows if r['rank'] == '1']
    assert sum(a == b for a, (_, b) in zip(first, listed)) == load_run(run).rows[-1]['valid_top1_correct']
    assert {r['name'] for r in rows} == {'red lily', 'rose', 'tulip'}


def test_infer_names_damaged_images_and_goes_on(run, home, capsys, tmp_path):
    (tmp_path/'a folder').mkdir()
    for i, data in enumerate([b'', (home/'garden'/'rose'/'00.png').read_bytes(), b'nonsense']):
        (tmp_path/'a folder'/f'image {i}.png').write_bytes(data)
    code, out, err = ppcls(capsys, 'infer', '-m', run, '-i', tmp_path)
    assert code == 1
    assert out.startswith(str(tmp_path/'a folder'/'image 1.png'))
    assert out.count('\n') == 1
    assert [n in err for n in ('image 0', 'image 1', 'image 2')] == [True, False, True]


def test_fresh_keeps_the_old_run_under_another_name(run, home, capsys, tmp_path):
    argv = [
        'train', '-c', home/'small.yaml', '--data', home/'garden', '--output', tmp_path/'run', '-o', 'epochs=1',
        'TRAIN.batch_size=24', '-o', 'ARCHITECTURE.name="ShuffleNetV2_x0_25"', 'use_mix=1',
        'TRAIN.mix=[{MixupOperator: {alpha: 0.2}}]']
    assert ppcls(capsys, *argv)[0] == 0
    code, out, _ = ppcls(capsys, *argv, '--fresh')
    assert code == 0
    assert 'moved to run.old-1' in out
    assert 'epoch:0 ' in out
    assert 'ShuffleNetV2_x0_25' in out
    assert ' Mix\n' in out
    assert load_run(tmp_path/'run').rows[0]['valid_top1_correct'] == load_run(tmp_path/
                                                                              'run.old-1').rows[0]['valid_top1_correct']

@pytest.mark.parametrize('argv, message', [
    (['train', '-c', 'ResNet50_v'], "did you mean"),
    (['train', '-c', 'SMALL', '-o', 'TRAIN.batchsize=3'], "did you mean 'batch_size'"),
    (['train', '-c', 'SMALL', '--data', 'nowhere'], 'nor is it a folder'),
    (['train', '-c', 'SMALL', '-o', 'epochs'], 'KEY=VALUE was expected'), (['eval'], 'expected one of -c RECIPE'),
    (['eval', '--run', 'nowhere'], 'no run here'), (['eval', '-c', 'SMALL'], 'no weights are named'),
    (['eval', '--run', 'RUN', '-o', 'classes_num=4'], 'do not fill'),
    (['eval', '--run', 'RUN', '-o', 'ARCHITECTURE.name=ResNet18'], 'fits ResNet18, but for the classifier'),
    (['infer', '-m', 'RUN', '-i', 'RUN'], 'no images in this folder'),
    (['infer', '-m', 'nowhere', '-i', 'x.png'], 'no run folder'),
    (['infer', '-m', 'ResNet18', '-p', 'nowhere', '-i', 'x.png'], 'no file')])
def test_a_mistake_is_one_line_and_exit_code_2(argv, message, run, home, capsys):
    code, out, err = ppcls(capsys, *(dict(SMALL=home/'small.yaml', RUN=run).get(a, a) for a in argv))
    assert code == 2 and err.count('\n') == 1 and err.startswith('ppcls: ') and message in err, err


def test_help_names_the_commands_without_paddle():
    done = subprocess.run([sys.executable, '-c', "import sys; from ppcls_nb.cli import main\nassert main([]) == "
                                                 "0\nassert 'paddle' not in sys.modules and 'matplotlib' not in "
                                                 "sys.modules"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f'\n    {name} ' in done.stdout for name in ('train', 'eval', 'infer'))
    assert {'train', 'eval', 'infer'} <= COMMANDS.keys()
