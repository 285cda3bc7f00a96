"`ppcls finetune`: the plan, options that change it, and mistakes in one line. (The training itself is in the lesson.)"
import re
import shutil

import pytest

from ppcls_nb.data.prepare import prepare_data
from small_run import ppcls


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    "A folder for each of four kinds of flowers."
    home = tmp_path_factory.mktemp('home')
    info = prepare_data('petals', home/'data', dict(classes=4, per_class=(8, 4, 4), size=48, progress=False))
    for line in (info.lists/'train_list.txt').read_text().splitlines():
        path, label = line.rsplit(' ', 1)
        folder = home/'flowers'/f'flower {label}'
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(info.root/path, folder)
    return home/'flowers'


def test_options_change_the_plan(flowers):
    code, out, _ = ppcls('finetune', 'EfficientNet_Lite0_imagenet', flowers, '--plan', '--epochs', 4,
                         '-o', 'lower_scale=0.5', 'lr=0.001')
    plan = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert code == 0
    assert plan['epochs'][0] == '4'
    assert plan['freeze_epochs'][0] == '2'
    assert plan['lower_scale'][0] == '0.5'


@pytest.mark.parametrize('model, argv, message', [
    ('Lite0', [], "unknown network or weights 'Lite0'"),
    ('ResNet18', ['-o', 'epoch=3', '--weights', 'none'], "did you mean 'epochs'?"),
    ('ResNet18', ['-o', 'x'], 'NAME=VALUE'),
    ('ResNet18', ['--lr', '0', '--weights', 'none'], 'expected more than 0')])
def test_a_mistake_is_one_line(model, argv, message, flowers):
    code, _, err = ppcls('finetune', model, flowers, *argv)
    assert code == 2
    assert err.splitlines()[-1].startswith('ppcls: ')
    assert message in err.splitlines()[-1]


def test_images_that_do_not_exist(tmp_path):
    code, _, err = ppcls('finetune', 'ResNet18', tmp_path/'nothing', '--weights', 'none')
    assert code == 2
    assert 'nor is it a folder' in err


def test_the_accuracy_it_prints_as_the_best_is_that_of_eval(flowers, tmp_path):
    run = tmp_path/'run'
    code, out, err = ppcls('finetune', 'MobileNetV3_small_x0_35', flowers, '--weights', 'none', '--epochs', 3,
                           '--size', 32, '--out', run)
    assert code == 0, err
    last, best = re.findall(r'top-1 (\d\.\d{4})', out)
    for which, printed in (('last', last), ('best', best)):
        code, out, err = ppcls('eval', '--run', run, '--weights', which)
        assert code == 0, err
        assert f'top1:{printed}' in out
