"A search that is killed goes on, and workers share it: in processes of their own, which a notebook cannot kill."
import json, os, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path

import numpy as np, optuna, pandas as pd, pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from ppcls_nb.basics import PPClsError
from ppcls_nb.transfer.gp_sampler import GP, GPSampler, encode, expected_improvement, observations
from ppcls_nb.transfer.space import Space
from ppcls_nb.transfer.study import (Diverged, best_trial, enqueue_missing, load_search, open_study, requeue,
                                     requeue_stale, results, search, work_items, work)

SPACE = {'lr': [0.1, 0.01, 0.001], 'l2_decay': [1e-4, 1e-5], 'mixup': [False, True]}


def train(point, run, report):
    "Four epochs of a tenth of a second; each is noted in the run folder, which a resumed trial finds."
    run.mkdir(parents=True, exist_ok=True)
    epochs = len(list(run.glob('*.done')))
    for epoch in range(4):
        if epoch >= epochs:
            time.sleep(.05)
            (run/f'{epoch}.done').touch()
        report(epoch, .5 + .1*point['mixup'] + point['lr'] + epoch/100)
    return .53 + .1*point['mixup'] + point['lr']


def each_once(study):
    "Whether every point was finished exactly once and nothing is left over."
    points = Counter(
        tuple(sorted(t.params.items())) for t in study.trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED))
    return (len(points) == 12 and set(points.values()) == {1}
            and not [t for t in study.trials if t.state in (TrialState.RUNNING, TrialState.WAITING)])


def start(folder, code='search(train, SPACE, {!r}, "grid", pruning=False, bar=False)'):
    "A process that searches."
    return subprocess.Popen([sys.executable, '-c', f'from test_search import *; {code.format(str(folder))}'],
                            cwd=Path(__file__).parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(folder, condition, seconds=300):
    "Wait until `condition(study)`; polls."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (folder/'journal.log').is_file():
            try:
                if condition(study := load_search(folder)): return study
            except Exception: pass                                     # not made yet
        time.sleep(.05)
    raise TimeoutError(folder)


@pytest.mark.skipif(os.name == 'nt', reason='there is no SIGKILL on Windows')
def test_a_killed_search_goes_on_where_it_was(tmp_path):
    folder = tmp_path/'found'
    process = start(folder)
    wait_for(
        folder, lambda s: any(t.state == TrialState.RUNNING and len(t.intermediate_values) > 1 and t.number > 1
                              for t in s.trials))
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = load_search(folder)
    stuck, = [t for t in before.trials if t.state == TrialState.RUNNING]
    run = folder/'runs'/stuck.user_attrs['run']
    done = len(list(run.glob('*.done')))
    after = search(train, SPACE, folder, 'grid', pruning=False, bar=False)
    assert each_once(after)
    assert 0 < done <= 4
    assert after.trials[stuck.number].state == TrialState.FAIL
    again, = [t for t in after.trials if t.user_attrs.get('run') == run.name and t.state == TrialState.COMPLETE]
    assert again.params == stuck.params
    assert again.number > stuck.number
    assert len(list(run.glob('*.done'))) == 4
    assert results(after).value.max() == pytest.approx(.73)
    assert not list((folder/'workers').glob('.*.lock'))


def test_workers_share_a_grid(tmp_path):
    folder = tmp_path/'found'
    study = search(train, SPACE, folder, 'grid', pruning=False, workers=2, bar=False)
    workers = {t.user_attrs['worker'] for t in study.trials if t.state == TrialState.COMPLETE}
    assert each_once(study)
    assert len(workers) > 1


def test_a_work_item_that_is_there_twice_is_done_once(tmp_path):
    space, folder = Space(SPACE), tmp_path/'found'
    study = open_study(folder, space, 'grid')
    items = work_items(space, 'grid')
    enqueue_missing(study, items)
    # as by a machine that began at the same moment
    for n, point in enumerate(items[:5]):
        study.enqueue_trial(point, dict(ticket=n))
    work(study, lambda point, run, report: .5, space, folder)
    assert each_once(study)
    assert sum(t.state == TrialState.FAIL for t in study.trials) == 5
    failed = study.trials[-1]
    # its work item is done: nothing happens
    requeue(study, failed)
    assert len(study.trials) == 17
    assert optuna.trial.TrialState.WAITING not in {t.state for t in study.trials}


def test_bayes_after_an_interruption_tries_the_same_settings_again(tmp_path):
    space, folder = Space(SPACE), tmp_path/'found'
    study, count = open_study(folder, space, 'bayes'), []
    enqueue_missing(study, work_items(space, 'bayes', 10))

    def stops(point, run, report):
        count.append(point)
        if len(count) == 10:
            raise KeyboardInterrupt
        return .5 + point['lr']

    with pytest.raises(KeyboardInterrupt): work(study, stops, space, folder)
    requeue_stale(study, folder)
    work(study, stops, space, folder)
    assert len(count) == 11
    assert count[10] == count[9]
    assert len({tuple(p.values()) for p in count}) == 10


def quick(point, run, report):
    "A training without epochs."
    return .5 + .1*point['mixup'] - abs(point['lr'] - .01)


def test_an_error_in_a_training_is_raised_and_the_search_continues(tmp_path):
    calls, errors = [], {6: KeyboardInterrupt, 9: PPClsError('the disk is full')}
    def unlucky(point, run, report):
        error = errors.pop(len(calls), None)
        if error is not None:
            raise error
        calls.append(tuple(point.values()))
        return quick(point, run, report)

    def start(): return search(unlucky, SPACE, tmp_path/'grid', 'grid', pruning=False, bar=False)
    with pytest.raises(KeyboardInterrupt): start()
    with pytest.raises(PPClsError, match='disk is full'): start()
    study = start()
    assert len(calls) == 12 == len(set(calls))
    assert each_once(study)


def test_a_diverged_training_counts_as_0_in_a_database_too(tmp_path):
    def explodes(point, run, report):
        if point['lr'] == .1:
            raise Diverged('loss is nan')
        return quick(point, run, report)
    study = search(explodes, SPACE, tmp_path/'explodes', 'random', 8, bar=False,
                   storage=f"sqlite:///{(tmp_path/'db.sqlite').as_posix()}")
    assert set(results(study).query('lr == 0.1').value) == {0.}
    assert 'diverged: loss is nan' in set(results(study).note)
    assert best_trial(study).params['lr'] == .01


def test_the_files_of_a_search(tmp_path, capsys):
    study = search(quick, SPACE, tmp_path/'found', trials=8, bar=False)
    saved = json.loads((tmp_path/'found'/'results.json').read_text())
    assert saved['best']['params'] == best_trial(study).params
    assert saved['best']['flags'] == Space(SPACE).cli_args(best_trial(study).params)
    assert len(saved['trials']) == 8 == len(pd.read_csv(tmp_path/'found'/'results.csv'))
    assert (tmp_path/'found'/'search.png').is_file()
    capsys.readouterr()
    assert len(results(search(quick, SPACE, tmp_path/'found', trials=10, bar=False))) == 10
    assert 'goes on, 8 of 10' in capsys.readouterr().out


def test_pruned_trials_stop_early(tmp_path):
    def curve(point, run, report):
        for epoch in range(6): report(epoch, quick(point, run, report)*(1 - .5**(epoch + 1)))
        return quick(point, run, report)
    table = results(search(curve, folder=tmp_path/'found', trials=16, bar=False))
    assert (table.state == 'pruned').any()
    assert (table.epochs[table.state == 'pruned'] < 6).all()


@pytest.mark.parametrize('options, message', [
    (dict(space=dict(SPACE, lr=[.1])), 'holds another search: space: lr is'),
    (dict(method='random'), 'method is grid there and random here'),
    (dict(settings=dict(epochs=3)), 'settings: epochs is not set there and 3 here')])
def test_another_search_in_the_folder(tmp_path, options, message):
    open_study(tmp_path/'grid', Space(SPACE), 'grid')
    with pytest.raises(PPClsError, match=message):
        search(quick, **{'space': SPACE, 'method': 'grid', 'folder': tmp_path/'grid', 'bar': False, **options})


@pytest.mark.parametrize('options, message', [
    (dict(method='gird'), "did you mean 'grid'"), (dict(trials=0), '0 trials'), (dict(workers=0), '0 workers'),
    (dict(space={}), 'it is empty'), (dict(pruning='medium'), "did you mean 'median'"),
    (dict(storage='nodb'), 'expected a URL')])
def test_wrong_arguments_of_a_search(tmp_path, options, message):
    with pytest.raises(PPClsError, match=message):
        search(quick, **{'folder': tmp_path/'wrong', 'bar': False, **options})


# work items

RANGES = {'lr': [.1, .02], 'OPTIMIZER.regularizer.factor': dict(low=1e-6, high=1e-3, log=True),
          'TRAIN.batch_size': dict(low=8, high=64), 'mixup': [True]}


def test_random_settings_of_ranges_and_seeds():
    assert all(8 <= p['TRAIN.batch_size'] <= 64 for p in work_items(Space(RANGES), 'random'))
    assert work_items(Space(), 'random', 10) != work_items(Space(), 'random', 10, seed=1)


@pytest.mark.parametrize('arguments, message', [
    (('baies',), "unknown method 'baies'; did you mean 'bayes'"), (('bayes', 0), '0 trials, expected 1 or more'),
    (('random', 197), 'space of 196'), (('grid', 20), 'tries all of its 196')])
def test_a_number_of_trials_that_does_not_fit(arguments, message):
    with pytest.raises(PPClsError, match=message): work_items(Space(), *arguments)


def test_a_grid_needs_lists():
    with pytest.raises(PPClsError, match='a grid needs a list'): work_items(Space(RANGES), 'grid')


# the space

def test_what_a_setting_sets():
    assert Space().overrides(dict(lr=.01, l2_decay=1e-4, label_smoothing=True, mixup=False)) == {
        'LEARNING_RATE.params.lr': .01, 'OPTIMIZER.regularizer.factor': 1e-4, 'ls_epsilon': .1, 'use_mix': False,
        'TRAIN.mix': None}


def test_a_space_from_a_file(tmp_path):
    (tmp_path/'own.yaml').write_text('lr: [1e-1, 0.02]\nOPTIMIZER.regularizer.factor: {low: 1e-6, high: 1e-3, log: '
                                     'true}\nTRAIN.batch_size: {low: 8, high: 64}\nmixup: [true]\n')
    own = Space(tmp_path/'own.yaml')
    assert own.size is None
    assert own['lr'].distribution.choices == (.1, .02)
    assert own.overrides(dict.fromkeys(own, .5) | dict(mixup=True))['use_mix'] is True
    assert type(own.distributions['TRAIN.batch_size']) is IntDistribution
    (tmp_path/'empty.yaml').write_text('')
    with pytest.raises(PPClsError, match='it is empty'): Space(tmp_path/'empty.yaml')
    with pytest.raises(PPClsError, match='cannot be read'): Space(tmp_path/'nothing.yaml')


@pytest.mark.parametrize('space, message', [
    ({}, 'it is empty'), ({'lr': []}, 'there is no value'), ({'lr': 3}, 'expected a list'),
    ({'lr': {'lo': 1, 'high': 2}}, "did you mean 'low'"), ({'lr': {'low': 2, 'high': 1}}, 'the lower first'),
    ({'lr': {'low': 0., 'high': 1., 'log': True}}, 'no logarithm'), ({'mixup': ['yes']}, "unknown choice 'yes'"),
    ({'TRAIN.mix': [[1]]}, 'give it a name'), ({'lr': [.1, .1]}, 'twice')])
def test_spaces_that_cannot_be_searched(space, message):
    with pytest.raises(PPClsError, match=message): Space(space)


# the Gaussian process

def test_encoding_of_single_values_and_ranges():
    assert encode([dict(a=3)], dict(a=CategoricalDistribution([3]))).tolist() == [[0]]
    assert encode([], dict(a=CategoricalDistribution([3]), b=IntDistribution(0, 1))).shape == (0, 2)
    assert np.isclose(encode([dict(a=1e-4)], dict(a=FloatDistribution(1e-6, 1e-2, log=True)))[0, 0], .5)


def test_equal_accuracies_give_finite_deviations():
    x = np.random.default_rng(1).random((30, 2))
    assert np.isfinite(GP(x[:3], np.ones(3)).predict(x)[1]).all()


def test_improvement_without_deviation():
    assert expected_improvement(2, 0, 1.5) == pytest.approx(.5)
    assert expected_improvement(1, 0, 1.5) < 1e-12


def test_trials_without_the_parameters_are_no_observations():
    trial = optuna.trial.create_trial(value=.5, params=dict(lr=.1),
                                      distributions=dict(lr=CategoricalDistribution([.1, .01])))
    assert observations([trial], ['lr', 'other']) == ([], [], [])


def test_a_minimum_is_found_too():
    study = optuna.create_study(sampler=GPSampler(dict(x=CategoricalDistribution(range(10))), 3))
    study.optimize(lambda t: (t.suggest_categorical('x', range(10)) - 6)**2, n_trials=7)
    assert study.best_params == dict(x=6)


def test_wrong_samplers():
    with pytest.raises(PPClsError, match='the space is empty'): GPSampler({})
    with pytest.raises(PPClsError, match='startup 0, expected 1 or more'): GPSampler(Space().distributions, 0)
