"The whole tutorial with the smoke profile, as `make tutorial PROFILE=smoke` runs it: every notebook executes, and what it leaves is complete."
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ppcls_nb.notebooks import declared_parameters, expected_seconds, read_profile, run_course

NBS = Path(__file__).resolve().parent.parent/'nbs'/'00_tutorials'
NOTEBOOKS = sorted(NBS.glob('*.ipynb'))
STEMS = ['00_prepare', '01_scratch', '02_finetune', '03_by_layer', '04_mobile', '05_random_erasing', '06_distill', '07_compare',
         '08_your_photographs']


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
            if loads and value and not value.startswith('data:'): self.urls.append(value)


def test_the_nine_notebooks_are_there(): assert [n.stem for n in NOTEBOOKS] == STEMS


@pytest.mark.parametrize('profile', ['smoke', 'cpu', 'gpu'])
def test_every_notebook_declares_what_the_profiles_set(profile):
    values = read_profile(NBS/'profiles'/f'{profile}.yaml')
    assert values['profile'] == profile
    for notebook in NOTEBOOKS: assert set(values) <= set(declared_parameters(notebook)), notebook
    if profile != 'gpu': assert set(expected_seconds(NBS/'profiles'/f'{profile}.yaml', NOTEBOOKS)) == set(STEMS)     # measured here


def test_all_notebooks_run(tutorial):
    output, results = tutorial
    assert [(r.path.stem, r.status) for r in results] == [(stem, 'ok') for stem in STEMS]
    assert sorted(p.stem for p in (output/'notebooks').glob('*.ipynb')) == STEMS


def test_the_report_has_results_first_and_loads_nothing(tutorial):
    page = (tutorial[0]/'report.html').read_text()
    parser = Loads()
    parser.feed(page)
    assert parser.urls == [] and '<script' not in page and '@import' not in page
    results, _, lessons = page.partition('id="00_prepare"')
    assert '<table' in results and 'data:image/png;base64,' in results and 'not measured here' in results
    assert [lessons.find(f'id="{stem}"') for stem in STEMS[1:]] == sorted(lessons.find(f'id="{stem}"') for stem in STEMS[1:])


def test_run_times_are_on_record(tutorial):
    ledger = json.loads((tutorial[0]/'timings.json').read_text())
    assert list(ledger['notebooks']) == STEMS and all(runs[-1]['status'] == 'ok' for runs in ledger['notebooks'].values())
    assert {run['profile'] for runs in ledger['notebooks'].values() for run in runs} == {'smoke'}
    assert 'paddlepaddle' in ledger['machine']['paddle']


def epochs(output):
    "{run: its epochs' rows as they stand in the file}, each with the seconds that it took."
    return {f.parent.name: f.read_text() for f in output.rglob('metrics.jsonl')}


def test_a_second_run_finds_its_training_done(tutorial):
    "No epoch is trained again: the rows of all runs, with the seconds that each epoch took, stay what they were."
    output, _ = tutorial
    before = epochs(output)
    again = run_course(NBS, NBS/'profiles'/'smoke.yaml', output, cell_timeout=600, report=False)
    assert [r.status for r in again] == ['ok']*len(STEMS)
    assert len(before) >= 6 and all('seconds' in rows for rows in before.values())
    assert epochs(output) == before
