"A training process that is interrupted or killed at any moment goes on, and ends with the very weights of an undisturbed one."
import os, random, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pytest

from ppcls_nb.data.prepare import prepare_data
from ppcls_nb.train import load_run, load_state

SCRIPT = '''
import sys
from ppcls_nb.config import Trainer, load_config, use_data
from ppcls_nb.data.prepare import prepare_data
info = prepare_data(sys.argv[1], sys.argv[1])
small = {'ARCHITECTURE.name': 'EfficientNetB0_small', 'epochs': 4, 'TRAIN.batch_size': 8, 'TRAIN.num_workers': 0, 'VALID.num_workers': 0,
         'LEARNING_RATE.params.lr': 0.01, 'ls_epsilon': 0.1,
         'TRAIN.transforms': [{'DecodeImage': {}}, {'RandCropImage': {'size': 32}}, {'RandFlipImage': {}}, {'NormalizeImage': {'order': ''}}, {'RandomErasing': {}}, {'ToCHWImage': None}],
         'VALID.transforms': [{'DecodeImage': {}}, {'ResizeImage': {'size': [32, 32]}}, {'NormalizeImage': {'order': ''}}, {'ToCHWImage': None}]}
conf = use_data(load_config('ResNet50_vd', small), info)
Trainer.from_config(conf, run=sys.argv[2], bar=False).fit(conf.epochs)
'''


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Drawn flowers: 4 classes, 48 training images."
    return prepare_data('petals', tmp_path_factory.mktemp('data'), dict(classes=4, per_class=[12, 6, 1], size=40, progress=False)).root


def start(data, run):
    "The training process; its output goes to a pipe."
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', SCRIPT, str(data), str(run)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env={**os.environ, 'OMP_NUM_THREADS': '1'})


def finish(process):
    "Wait; returns the output."
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    return out


@pytest.fixture(scope='module')
def straight(data, tmp_path_factory):
    "The run that nobody disturbed."
    run = tmp_path_factory.mktemp('runs')/'straight'
    finish(start(data, run))
    return run


def same_weights(a, b):
    one, two = (load_state(run/'last.pdparams') for run in (a, b))
    return one.keys() == two.keys() and all(np.array_equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_of_a_fit_then_the_same_command(how, data, straight, tmp_path):
    run, process = tmp_path/'run', start(data, tmp_path/'run')
    for line in process.stdout:
        if 'epoch:1 ' in line: break
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(how)
    process.wait(timeout=60)
    assert process.returncode != 0 and not (run/'predictions.npz').exists() and (run/'last.pdstate').exists()
    out = finish(start(data, run))
    assert 'resumed' in out and 'epoch:0 ' not in out
    assert same_weights(straight, run)
    assert [r['valid_top1_correct'] for r in load_run(run).rows] == [r['valid_top1_correct'] for r in load_run(straight).rows]


def test_killed_before_the_first_epoch_starts_over(data, straight, tmp_path):
    process = start(data, tmp_path/'run')
    while not (tmp_path/'run'/'config.yaml').exists(): time.sleep(0.02)
    process.kill(); process.wait(timeout=60)
    finish(start(data, tmp_path/'run'))
    assert same_weights(straight, tmp_path/'run')
