"A search that is killed goes on, and workers share it: in processes of their own, which a notebook cannot kill."
import os, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path

import optuna, pytest
from optuna.trial import TrialState

from ppcls_nb.transfer.study import load_search, results, search

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


def test_a_ticket_that_is_there_twice_is_done_once(tmp_path):
    from ppcls_nb.transfer.space import Space
    from ppcls_nb.transfer.study import open_study, requeue, tickets_of, top_up, work
    space, folder = Space(SPACE), tmp_path/'found'
    study = open_study(folder, space, 'grid')
    top_up(study, tickets := tickets_of(space, 'grid'))
    # as by a machine that began at the same moment
    for n, point in enumerate(tickets[:5]):
        study.enqueue_trial(point, dict(ticket=n))
    work(study, lambda point, run, report: .5, space, folder)
    assert each_once(study)
    assert sum(t.state == TrialState.FAIL for t in study.trials) == 5
    failed = study.trials[-1]
    # its ticket is done: nothing happens
    requeue(study, failed)
    assert len(study.trials) == 17
    assert optuna.trial.TrialState.WAITING not in {t.state for t in study.trials}


def test_bayes_after_a_kill_takes_up_the_settings_it_had_chosen(tmp_path):
    from ppcls_nb.transfer.space import Space
    from ppcls_nb.transfer.study import open_study, rescue, tickets_of, top_up, work
    space, folder = Space(SPACE), tmp_path/'found'
    study, count = open_study(folder, space, 'bayes'), []
    top_up(study, tickets_of(space, 'bayes', 10))

    def stops(point, run, report):
        count.append(point)
        if len(count) == 10:
            raise KeyboardInterrupt
        return .5 + point['lr']

    with pytest.raises(KeyboardInterrupt): work(study, stops, space, folder)
    rescue(study, folder)
    work(study, stops, space, folder)
    assert len(count) == 11
    assert count[10] == count[9]
    assert len({tuple(p.values()) for p in count}) == 10
