"`ppcls search`: trials that are recipes, a search that goes on, the command for the best trial, mistakes in one line."
import json

import pandas as pd, pytest

from ppcls_nb.cli.search import RecipeTrial
from ppcls_nb.recipe.trained import open_recipe
from ppcls_nb.train import load_run
from ppcls_nb.transfer.space import SPACE
from ppcls_nb.transfer.study import Diverged
from small_run import make_recipe, ppcls

POINT = dict(lr=.03, l2_decay=1e-4, label_smoothing=False, mixup=False)


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    "A small recipe and its data."
    return make_recipe(tmp_path_factory.mktemp('flowers'))


@pytest.fixture(scope='module')
def search(flowers):
    "A search of three trials that was continued to six; `given` are its options."
    (flowers.home/'space.yaml').write_text('lr: [1e-1, 1e-2, 1e-4]\nmixup: [false, true]\n')
    flowers.folder = flowers.home/'found'
    flowers.given = ['search', '-c', flowers.recipe, '--data', flowers.garden, '--output', flowers.folder,
                     '--space', flowers.home/'space.yaml', '-o', 'epochs=2']
    assert ppcls(*flowers.given, '--trials', 3)[0] == 0
    code, flowers.printed, err = ppcls(*flowers.given, '--trials', 6)
    assert (code, err) == (0, '')
    return flowers


def test_settings_of_a_point_are_keys_of_the_recipe(flowers):
    trial = RecipeTrial(str(flowers.recipe), ['epochs=2'], str(flowers.garden), SPACE)
    conf = trial.conf(dict(lr=.003, l2_decay=3e-5, label_smoothing=True, mixup=True))
    assert conf.ls_epsilon == .1
    assert conf.use_mix
    assert conf.classes_num == 4


def test_a_finished_trial_is_reported_again_without_training(flowers, tmp_path):
    trial = RecipeTrial(str(flowers.recipe), ['epochs=2'], str(flowers.garden), SPACE)
    first, again = [], []
    accuracy = trial(POINT, tmp_path/'one', lambda *report: first.append(report))
    assert trial(POINT, tmp_path/'one', lambda *report: again.append(report)) == accuracy
    assert again == first


def test_a_loss_that_is_not_finite_ends_the_trial(flowers, tmp_path):
    network = 'ARCHITECTURE.name=EfficientNetB0_small'      # swish keeps a NaN; Paddle's ReLU makes it 0
    trial = RecipeTrial(str(flowers.recipe), [network], str(flowers.garden), {'lr': [1e38]})
    with pytest.raises(Diverged, match='loss is (nan|inf)'):
        trial(dict(lr=1e38), tmp_path/'nan', print)


def test_a_search_goes_on(search):
    table = pd.read_csv(search.folder/'results.csv')
    assert 'goes on, 3 of 6' in search.printed
    assert len(table) == 6 == len(table[['lr', 'mixup']].drop_duplicates())
    assert (search.folder/'search.png').is_file()


def test_the_best_trial_is_a_run_and_a_command(search):
    saved = json.loads((search.folder/'results.json').read_text())['best']
    best = search.folder/'runs'/f"{int(saved['run']):04d}"
    assert (best/'config.yaml').is_file()
    assert abs(load_run(best).top1() - saved['value']) < 1e-9
    assert len([*(search.folder/'runs').glob('*/last.pdparams')]) == 1
    assert 'too high' in search.printed
    again = f'train again    ppcls train -c {search.recipe} -o epochs=2 --data {search.garden} -o '
    line = next(line for line in search.printed.splitlines() if line.startswith(again))
    assert 'LEARNING_RATE.params.lr=' in line
    assert 'use_mix=' in line
    flags = [flag.strip("'") for flag in saved['flags'].removeprefix('-o ').split(' ') if not set(flag) & set('{}')]
    assert open_recipe(search.recipe, flags).LEARNING_RATE.params.lr == saved['params']['lr']


@pytest.mark.parametrize('argv, message', [
    (['--trials', 7], '7 trials in a space of 6'),
    (['--method', 'gird'], "did you mean 'grid'"),
    (['--method', 'random'], 'method is bayes there and random here'),
    (['-o', 'epochs=3'], 'settings: epochs is 2 there and 3 here')])
def test_a_search_that_does_not_fit_its_folder(argv, message, search):
    code, _, err = ppcls(*search.given, *argv)
    assert code == 2
    assert message in err
    assert err.count('\n') == 1


@pytest.mark.parametrize('space, message', [
    ('epoch: [1, 2]\n', "unknown key 'epoch'; did you mean 'epochs'"),
    ('LEARNING_RATE.params.lrr: [0.1, 0.2]\n', "'lrr'"),
    ('', 'it is empty')])
def test_a_space_that_cannot_be_searched(space, message, flowers, tmp_path):
    (tmp_path/'space.yaml').write_text(space)
    code, _, err = ppcls('search', '-c', flowers.recipe, '--data', flowers.garden, '--output', tmp_path/'none',
                         '--space', tmp_path/'space.yaml')
    assert code == 2
    assert message in err
    assert err.count('\n') == 1


@pytest.mark.parametrize('argv, message', [
    (['--trials', 0], '--trials 0'),
    (['-o', 'validate=False'], 'validate: False'),
    (['--workers', 0], '--workers 0')])
def test_numbers_that_cannot_be_searched(argv, message, flowers, tmp_path):
    code, _, err = ppcls('search', '-c', flowers.recipe, '--data', flowers.garden, '--output', tmp_path/'none', *argv)
    assert code == 2
    assert message in err
    assert err.count('\n') == 1
