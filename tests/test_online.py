"""The workflows, the dev container, Binder and the cells for Colab agree with settings.ini and the Makefile, and the
workflows follow the rules that keep a repository safe."""
import json, os, re, runpy, shutil, subprocess, sys
from pathlib import Path
from unittest import mock

import pytest, yaml
from browser import BROWSERS

from ppcls_nb._modidx import d as nbdev_index
from ppcls_nb.course.online import COLAB_EXTRAS, read_repository

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT/'.github'/'workflows').glob('*.yml'))
MAKEFILE = (ROOT/'Makefile').read_text(encoding='utf-8')
TARGETS = set(re.findall(r'^([a-z][\w-]*):', MAKEFILE, flags=re.M))
REPOSITORY = read_repository(ROOT/'settings.ini')
PYTHONS = list(REPOSITORY.pythons)
_EXTRAS = re.search(r'^EXTRAS +:= \$\(if .*,\$\(PADDLE\),\)(\S+)$', MAKEFILE, flags=re.M).group(1)
EXTRAS = set(_EXTRAS.split(',')) | {'cpu'}
every_workflow = pytest.mark.parametrize('file', WORKFLOWS, ids=lambda file: file.stem)


def read_workflow(text):
    "A workflow, with its events under 'on', which YAML 1.1 reads as true."
    workflow = yaml.safe_load(text)
    workflow['on'] = workflow.pop(True)
    return workflow


def read(file):
    return read_workflow(file.read_text(encoding='utf-8'))


def steps(workflow):
    return [step for job in workflow['jobs'].values() for step in job['steps']]


def make_calls(text):
    "(target, {variable: value}) of each call of make in a script."
    calls = re.findall(r'\bmake +([\w-]+)((?: +[A-Z]+=\S+)*)', text)
    return [(target, dict(pair.split('=', 1) for pair in pairs.split())) for target, pairs in calls]


def looks_for_browser(steps):
    "Whether one of `steps` fails where the runner has no browser that the tests use."
    return any(step.get('run') in {f'{browser} --version' for browser in BROWSERS} for step in steps)


def job_faults(job, events):
    "What is wrong with one job of a workflow that runs on `events`."
    found = []
    deploys = any('deploy-pages' in step.get('uses', '') for step in job['steps'])
    if job.get('permissions', {}) != ({'pages': 'write', 'id-token': 'write'} if deploys else {}):
        found.append('permissions')
    if not 1 <= job.get('timeout-minutes', 0) <= 360:
        found.append('timeout')
    if 'latest' in job['runs-on']:
        found.append('runner')
    if 'self-hosted' in job['runs-on'] and not events <= {'schedule', 'workflow_dispatch'}:
        found.append('self-hosted')
    for index, step in enumerate(job['steps']):
        targets = {target for target, _ in make_calls(step.get('run', ''))}
        if targets & {'test', 'docs'} and not looks_for_browser(job['steps'][:index]):
            found.append('browser')
    return found


def step_faults(step):
    "What is wrong with one step."
    found = []
    uses, script = step.get('uses', ''), step.get('run', '')
    if uses and not re.fullmatch(r'[\w.-]+/[\w./-]+@v\d+\.\d+\.\d+|docker://[\w./-]+:\d+\.\d+\.\d+', uses):
        found.append('pin')
    if 'checkout' in uses and step.get('with', {}).get('persist-credentials') is not False:
        found.append('credentials')
    if '${{' in script:
        found.append('injection')
    if ' | ' in script and step.get('shell') != 'bash':      # only then a failure on the left counts
        found.append('pipe')
    for target, variables in make_calls(script):
        profile = variables.get('PROFILE', 'cpu')
        if target not in TARGETS or not (ROOT/'nbs/00_tutorials/profiles'/f'{profile}.yaml').is_file():
            found.append('make')
    return found


def faults(workflow):
    "The names of the rules that a workflow breaks."
    found = [fault for job in workflow['jobs'].values() for fault in job_faults(job, set(workflow['on']))]
    found += [fault for step in steps(workflow) for fault in step_faults(step)]
    if workflow.get('permissions') != {'contents': 'read'}:
        found.append('permissions')
    if workflow.get('concurrency', {}).keys() != {'group', 'cancel-in-progress'}:
        found.append('concurrency')
    return found


GOOD = """
on: {pull_request: }
permissions: {contents: read}
concurrency: {group: a, cancel-in-progress: true}
jobs:
  test:
    runs-on: ubuntu-24.04
    timeout-minutes: 90
    steps:
      - {uses: actions/checkout@v6.0.2, with: {persist-credentials: false}}
      - run: google-chrome --version
      - run: make test
"""


@pytest.mark.parametrize('fault,old,new', [
    ('permissions', 'contents: read', 'contents: write'),
    ('permissions', 'permissions: {contents: read}', ''),
    ('permissions', 'timeout-minutes', 'permissions: {id-token: write}\n    timeout-minutes'),
    ('concurrency', 'concurrency: {group: a, cancel-in-progress: true}', ''),
    ('timeout', 'timeout-minutes: 90', ''),
    ('timeout', '90', '361'),
    ('runner', 'ubuntu-24.04', 'ubuntu-latest'),
    ('self-hosted', 'ubuntu-24.04', '[self-hosted, gpu]'),
    ('browser', 'google-chrome --version', 'firefox --version'),
    ('browser', '      - run: google-chrome --version\n', ''),
    ('pin', '@v6.0.2', '@main'),
    ('pin', '@v6.0.2', '@v6'),
    ('pin', 'actions/checkout@v6.0.2', 'docker://rhysd/actionlint:latest'),
    ('credentials', 'false', 'true'),
    ('injection', 'make test', 'make test ${{ github.head_ref }}'),
    ('pipe', 'make test', 'make test | tee log'),
    ('make', 'make test', 'make tests'),
    ('make', 'make test', 'make tutorial PROFILE=tpu')])
def test_a_fault_is_found(fault, old, new):
    assert faults(read_workflow(GOOD)) == []
    assert old in GOOD
    assert fault in faults(read_workflow(GOOD.replace(old, new)))


@every_workflow
def test_workflows_have_no_faults(file):
    assert faults(read(file)) == []


def test_an_action_has_one_version_everywhere():
    used = {step['uses'] for file in WORKFLOWS for step in steps(read(file)) if 'uses' in step}
    assert len(used) == len({re.split('@|:(?=[^/])', action)[0] for action in used})


@every_workflow
def test_pushes_to_the_branch_of_the_repository_start_it(file):
    push = read(file)['on'].get('push')
    if push:
        assert push['branches'] == [REPOSITORY.branch]


def test_every_supported_python_is_tested():
    job = read(ROOT/'.github'/'workflows'/'test.yml')['jobs']['test']
    matrix = job['strategy']['matrix']
    assert matrix['python'] == PYTHONS
    assert {*matrix['paddle'], *(job['paddle'] for job in matrix['include'])} == {'cpu', 'cpu26'}
    assert [step['run'] for step in job['steps'] if 'run' in step][-1] == 'make test'


@every_workflow
def test_workflows_use_a_supported_python(file):
    for step in steps(read(file)):
        version = step.get('with', {}).get('python-version', PYTHONS[0])
        assert version in [*PYTHONS, '${{ matrix.python }}']


def package():
    "The arguments of `setup` in setup.py; setuptools itself need not be installed."
    setuptools = mock.MagicMock()
    with mock.patch.dict(sys.modules, setuptools=setuptools):
        runpy.run_path(str(ROOT/'setup.py'))
    return setuptools.setup.call_args.kwargs


def test_package_and_makefile_accept_the_same_pythons():
    newest = int(PYTHONS[-1].split('.')[1])
    assert package()['python_requires'] == f'>={PYTHONS[0]},<3.{newest + 1}'
    limits = re.search(r'\((\d+), (\d+)\) <= v <= \((\d+), (\d+)\)', MAKEFILE).groups()
    assert ['.'.join(limits[:2]), '.'.join(limits[2:])] == [PYTHONS[0], PYTHONS[-1]]


def output_folder(*variables):
    "Where `make tutorial` writes with these variables."
    env = {'PATH': os.environ['PATH']}           # without the variables of a make that runs the tests
    out = subprocess.run(['make', '--dry-run', 'tutorial', *variables], cwd=ROOT, env=env, capture_output=True,
                         text=True, check=True)
    return re.search(r"-o '([^']+)'", out.stdout).group(1)


def artifacts(name):
    "The paths that the artifact of a workflow contains."
    workflow = read(ROOT/'.github'/'workflows'/f'{name}.yml')
    paths = [step['with']['path'] for step in steps(workflow) if 'upload-artifact' in step.get('uses', '')]
    return [path for text in paths for path in text.split()]


@pytest.mark.skipif(not shutil.which('make'), reason='needs make')
@pytest.mark.parametrize('name,profile,files', [
    ('tutorial', 'cpu', ['report.html', 'ledger.json', 'timings.json']),
    ('gpu', 'gpu', ['report.html', 'timings.json'])])
def test_the_report_is_looked_for_where_make_writes_it(name, profile, files):
    folder = output_folder(f'PROFILE={profile}')
    assert [path for path in artifacts(name) if path.startswith(f'{folder}/')] == [f'{folder}/{f}' for f in files]
    log = next(path for path in artifacts(name) if path.endswith('.log'))
    assert any(f'tee {log}' in step.get('run', '') for step in steps(read(ROOT/'.github/workflows'/f'{name}.yml')))


def test_the_ledger_needs_several_seeds():
    inputs = read(ROOT/'.github'/'workflows'/'tutorial.yml')['on']['workflow_dispatch']['inputs']
    assert min(map(int, inputs['seeds']['options'])) > 1
    assert inputs['seeds']['default'] in inputs['seeds']['options']


def test_the_site_is_published_from_where_make_builds_it():
    upload = [step for step in steps(read(ROOT/'.github'/'workflows'/'docs.yml')) if 'pages-artifact' in
              step.get('uses', '')]
    site = re.search(r'^doc_path = (.+)$', (ROOT/'settings.ini').read_text(), flags=re.M).group(1)
    assert [step['with']['path'] for step in upload] == [site]


def test_gpu_tests_are_run_on_the_gpu():
    script = '\n'.join(step.get('run', '') for step in steps(read(ROOT/'.github'/'workflows'/'gpu.yml')))
    called = {target for target, _ in make_calls(script)}
    assert called == {'tutorial', 'test-gpu'} & TARGETS


def test_the_dev_container_makes_the_environment_that_its_editor_uses():
    container = json.loads((ROOT/'.devcontainer'/'devcontainer.json').read_text())
    assert re.search(r':1-([\d.]+)-', container['image']).group(1) in PYTHONS
    assert make_calls(container['postCreateCommand']) == [('venv', {})]
    editor = container['customizations']['vscode']
    assert editor['settings']['python.defaultInterpreterPath'] == '${workspaceFolder}/.venv/bin/python'
    assert 'ms-toolsai.jupyter' in editor['extensions']
    assert {str(port) for port in container['forwardPorts']} == container['portsAttributes'].keys()


def test_binder_installs_what_the_lessons_need():
    binder = ROOT/'binder'
    requirements = [line for line in (binder/'requirements.txt').read_text().splitlines() if line[:1] != '#']
    assert len(requirements) == 1
    extras = re.fullmatch(r'--editable=\.\[([\w,]+)\]', requirements[0]).group(1).split(',')
    assert set(extras) == EXTRAS - {'dev'}
    assert (binder/'runtime.txt').read_text().strip().removeprefix('python-') in PYTHONS
    assert os.access(binder/'postBuild', os.X_OK)
    assert subprocess.run(['bash', '-n', binder/'postBuild']).returncode == 0


def test_colab_keeps_its_own_jupyter():
    assert set(COLAB_EXTRAS.split(',')) == EXTRAS - {'dev', 'notebook'}
    assert EXTRAS <= package()['extras_require'].keys()


def test_the_address_stands_in_settings_alone():
    assert nbdev_index['settings']['git_url'] == REPOSITORY.url
    files = [*ROOT.glob('*.md'), *(ROOT/'nbs').glob('**/*.ipynb'), *(ROOT/'.github').glob('**/*'),
             *(ROOT/'binder').glob('*'), *(ROOT/'.devcontainer').glob('*')]
    address = re.compile(rf'\b{re.escape(REPOSITORY.user)}(/|\.github\.io)')
    assert [f for f in files if f.is_file() and address.search(f.read_text(encoding='utf-8'))] == []
