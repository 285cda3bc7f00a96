"""The tutorials with the smoke profile, as `make tutorial PROFILE=smoke` runs them: every notebook runs, and its
results are complete."""
import csv, json, re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ppcls_nb.course.ledger import CLAIMS, ROLE_TITLES, claim_table, main as ppcls_ledger, read_ledger
from ppcls_nb.course.execute import declared_parameters
from ppcls_nb.course.notebooks import read_profile, relative_work, run_course

NBS = Path(__file__).resolve().parent.parent/'nbs'/'00_tutorials'
NOTEBOOKS = sorted(NBS.glob('*.ipynb'))
STEMS = [
    '00_prepare', '01_scratch', '02_finetune', '03_by_layer', '04_mobile', '05_random_erasing', '06_distill',
    '07_compare', '08_your_photographs']


@pytest.fixture(scope='module')
def tutorial(tmp_path_factory):
    "The output folder of a smoke run, and its results."
    output = tmp_path_factory.mktemp('tutorial')
    return output, run_course(NBS, NBS/'profiles'/'smoke.yaml', output, cell_timeout=600)


class Loads(HTMLParser):
    "Collects what a browser would fetch for the page."
    def __init__(self):
        super().__init__()
        self.urls = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            loads = name in ('src', 'srcset', 'poster', 'data') or (tag == 'link' and name == 'href')
            if loads and value and not value.startswith('data:'):
                self.urls.append(value)


def test_the_nine_notebooks_exist():
    assert [n.stem for n in NOTEBOOKS] == STEMS


@pytest.mark.parametrize('profile', ['smoke', 'cpu', 'gpu'])
def test_every_notebook_declares_what_the_profiles_set(profile):
    values = read_profile(NBS/'profiles'/f'{profile}.yaml')
    assert values['profile'] == profile
    for notebook in NOTEBOOKS:
        assert set(values) <= set(declared_parameters(notebook)), notebook
    if profile != 'gpu':                # which was not measured
        assert set(relative_work(NBS/'profiles'/f'{profile}.yaml', NOTEBOOKS)) == set(STEMS)


def test_all_notebooks_run(tutorial):
    output, results = tutorial
    assert [(r.path.stem, r.status) for r in results] == [(stem, 'ok') for stem in STEMS]
    assert sorted(p.stem for p in (output/'notebooks').glob('*.ipynb')) == STEMS


def test_the_report_has_results_first_and_loads_nothing(tutorial):
    page = (tutorial[0]/'report.html').read_text()
    parser = Loads()
    parser.feed(page)
    assert parser.urls == []
    assert '<script' not in page
    assert '@import' not in page
    results, _, lessons = page.partition('id="00_prepare"')
    assert '<table' in results
    assert 'data:image/png;base64,' in results
    assert 'not measured here' in results
    positions = [lessons.find(f'id="{stem}"') for stem in STEMS[1:]]
    assert positions == sorted(positions)


def test_run_times_are_on_record(tutorial):
    timings = json.loads((tutorial[0]/'timings.json').read_text())
    assert list(timings['notebooks']) == STEMS
    assert all(runs[-1]['status'] == 'ok' for runs in timings['notebooks'].values())
    assert {run['profile'] for runs in timings['notebooks'].values() for run in runs} == {'smoke'}
    assert 'paddlepaddle' in timings['machine']['paddle']


def epochs(output):
    "Run → the text of its metrics.jsonl, a row an epoch with its seconds."
    return {f.parent.name: f.read_text() for f in output.rglob('metrics.jsonl')}


def test_a_second_run_finds_its_training_done(tutorial):
    "No epoch is trained again: the rows of all runs, which include the seconds of each epoch, stay the same."
    output, _ = tutorial
    before = epochs(output)
    trained = [NBS/f'{stem}.ipynb' for stem in ('01_scratch', '05_random_erasing', '06_distill')]
    again = run_course(trained, NBS/'profiles'/'smoke.yaml', output, cell_timeout=600, report=False)
    assert [r.status for r in again] == ['ok']*len(trained)
    assert len(before) >= 6
    assert all('seconds' in rows for rows in before.values())
    assert epochs(output) == before


NOISE = re.compile(r'Warning|OMP_NUM_THREADS|ccache|IProgress|GREP_OPTIONS|^[WIE]\d{4} |interpolation mode|OneDNN|'
                   r'\d%\|', flags=re.M)


def outputs(output):
    "(notebook, cell, output) of all outputs of the executed notebooks."
    for file in sorted((output/'notebooks').glob('*.ipynb')):
        for cell in json.loads(file.read_text())['cells']:
            for shown in cell.get('outputs', []):
                yield file.stem, ''.join(cell['source']), shown


def test_nothing_but_the_lesson_is_printed(tutorial):
    for stem, source, shown in outputs(tutorial[0]):
        text = ''.join(shown.get('text', ''))
        assert not NOISE.search(text), f'{stem}: {source[:60]} printed {text[:200]}'
        assert '\r' not in text, f'{stem}: a progress bar is left in the notebook'


def test_neighbouring_streams_are_one(tutorial):
    for file in (tutorial[0]/'notebooks').glob('*.ipynb'):
        for cell in json.loads(file.read_text())['cells']:
            kinds = [shown['output_type'] for shown in cell.get('outputs', [])]
            neighbours = list(zip(kinds, kinds[1:]))
            assert ('stream', 'stream') not in neighbours, f'{file.stem}: {"".join(cell["source"])[:60]}'


def test_the_lessons_have_their_figures(tutorial):
    drawn = [(stem, source) for stem, source, shown in outputs(tutorial[0]) if 'image/png' in shown.get('data', {})]
    for stem in STEMS[1:]:
        assert any(s == stem and 'plot_predictions' in source for s, source in drawn), f'{stem}: no grid of predictions'
    for stem, call in (('05_random_erasing', 'plot_top_losses'), ('05_random_erasing', 'plot_confused_pairs'),
                       ('07_compare', 'grad_cam')):
        assert any(s == stem and call in source for s, source in drawn), f'{stem}: no figure of {call}'
    assert sum(s == '00_prepare' for s, _ in drawn) >= 2


def test_the_report_opens_with_figures_and_one_table(tutorial):
    results = (tutorial[0]/'report.html').read_text().partition('id="00_prepare"')[0].partition('id="results"')[2]
    assert results.count('data:image/png;base64,') == 3
    assert results.count('class="dataframe"') == 1
    assert results.index('class="dataframe"') < results.index('not measured here'), 'a footnote'


def test_a_seed_becomes_a_ledger(tutorial):
    output, _ = tutorial
    assert ppcls_ledger([str(output), '--profile', 'smoke']) == 0
    ledger = read_ledger(output/'ledger.json')
    assert list(ledger['roles']) == list(ROLE_TITLES)
    assert ledger['seeds'] == [0]
    assert set(claim_table(ledger).verdict) <= {'gains', 'loses', 'undecided'}
    shown = json.loads((output/'results.json').read_text())
    assert shown['roles'] == ledger['roles']
    assert shown['claims'] == ledger['claims']


def test_the_ledger_of_the_repository_is_complete():
    ledger = read_ledger(NBS/'ledger_cpu.json')
    assert len(set(ledger['seeds'])) >= 3
    assert ledger['profile'] == 'cpu'
    assert ledger['data'] == 'flowers102'
    assert list(ledger['roles']) == list(ROLE_TITLES)
    for role in ledger['roles'].values():
        assert len(role['correct']) == len(ledger['seeds'])
        assert role['images'] == 1020
    assert all(ledger[key] for key in ('processor', 'cores', 'paddle', 'date', 'ppcls_nb'))
    steps = {role: ledger['roles'][role]['steps'] for role in ('mobile_alone', 'mobile_distilled')}
    assert abs(steps['mobile_alone'] - steps['mobile_distilled']) <= 16
    readme = (NBS.parent.parent/'README.md').read_text()
    assert all(f'| {claim.change} |' in readme for claim in CLAIMS)


def test_the_search_is_on_record():
    with open(NBS/'search.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len({row['trial'] for row in rows}) >= 10
    assert all(0 < int(row['correct']) <= int(row['images']) < 1020 for row in rows)
