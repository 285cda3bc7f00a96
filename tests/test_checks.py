"Each check of `make test` finds its errors in a small project, and changes no file."
import hashlib, json, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from execnb.nbio import nb2str

import checks
from ppcls_nb.basics import fact_rows

ROOT = Path(__file__).resolve().parent.parent


def cell(kind, source, **metadata):
    "A cell whose id depends only on its source."
    made = dict(cell_type=kind, id=hashlib.sha1(source.encode()).hexdigest()[:8], metadata=metadata,
                source=source.splitlines(keepends=True))
    return made | dict(execution_count=None, outputs=[]) if kind == 'code' else made


def notebook(*cells):
    kernelspec = dict(display_name='python3', language='python', name='python3')
    return nb2str(dict(cells=list(cells), metadata={'kernelspec': kernelspec}, nbformat=4, nbformat_minor=5))


@pytest.fixture
def project(tmp_path):
    "A project with one library notebook, an index and a tutorial that would fail, exported and with a README."
    shutil.copy(ROOT/'settings.ini', tmp_path)
    library = notebook(cell('markdown', '# Adding'), cell('code', '#| default_exp adding'),
                       cell('code', '#| export\ndef add(a, b): return a + b'),
                       cell('code', 'assert add(1, 2) == 3', tags=['x']))
    links = '[a lesson](01_data/00_adding.ipynb), [licence](../LICENSE), [far](https://x.org)'
    index = notebook(cell('markdown', f'# Title\n\n{links}'), cell('code', '6*7', tags=['hide-input']),
                     cell('code', 'print("shown")'))
    files = {
        'nbs/01_data/00_adding.ipynb': library,
        'nbs/00_lessons/00_prepare.ipynb': notebook(cell('code', '1/0')),
        'nbs/00_lessons/.notest': '',
        'nbs/.notest': '',
        'nbs/index.ipynb': index}
    for name, text in files.items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text(text)
    export = 'from nbdev.doclinks import nbdev_export; nbdev_export()'
    subprocess.run([sys.executable, '-c', export], cwd=tmp_path, check=True)
    return tmp_path


def edit(file, old, new):
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return file.read_text()


def test_a_tidy_project_passes(project, capsys):
    assert checks.write_readme(project)
    assert checks.check_clean(project)
    assert checks.check_export(project)
    assert checks.check_readme(project)
    assert capsys.readouterr().out == ''


def test_run_counts_and_metadata_are_found_and_left_alone(project, capsys):
    file = project/'nbs'/'01_data'/'00_adding.ipynb'
    text = edit(file, '"execution_count": null', '"execution_count": 7')
    assert not checks.check_clean(project)
    printed = capsys.readouterr().out
    assert '-   "execution_count": 7,' in printed
    assert '+   "execution_count": null,' in printed
    assert 'make clean' in printed
    assert file.read_text() == text


def test_a_stale_module_is_found_and_left_alone(project, capsys):
    text = edit(project/'ppcls_nb'/'adding.py', 'a + b', 'a - b')
    assert not checks.check_export(project)
    printed = capsys.readouterr().out
    assert '-def add(a, b): return a - b' in printed
    assert '+def add(a, b): return a + b' in printed
    assert 'make export' in printed
    assert (project/'ppcls_nb'/'adding.py').read_text() == text


@pytest.mark.parametrize('change', ['module without notebook', 'notebook without module'])
def test_an_extra_or_missing_module_is_found(project, change, capsys):
    if change == 'module without notebook':
        (project/'ppcls_nb'/'gone.py').write_text('x = 1\n')
    else:
        (project/'ppcls_nb'/'adding.py').unlink()
    assert not checks.check_export(project)
    assert ('gone.py' if 'without notebook' in change else 'adding.py') in capsys.readouterr().out


def test_export_ignores_files_that_are_not_modules(project):
    (project/'ppcls_nb'/'configs').mkdir()
    (project/'ppcls_nb'/'configs'/'a.yaml').write_text('x: 1\n')
    assert checks.check_export(project)


def test_readme_is_rendered_with_links_from_the_top(project):
    text = checks.render_readme(project)
    assert '[a lesson](nbs/01_data/00_adding.ipynb), [licence](LICENSE), [far](https://x.org)' in text
    assert '```\n42\n```' in text
    assert '6*7' not in text
    assert '```python\nprint("shown")\n```' in text
    assert '```\nshown\n```' in text


def test_a_stale_or_missing_readme_is_found(project, capsys):
    assert not checks.check_readme(project)
    checks.write_readme(project)
    edit(project/'README.md', '# Title', '# Old title')
    assert not checks.check_readme(project)
    assert '-# Old title' in capsys.readouterr().out


def test_library_notebooks_are_run_and_tutorials_are_not(project, capfd):
    assert checks.check_notebooks(project)
    printed = capfd.readouterr().out
    assert '00_adding.ipynb' in printed
    assert '00_prepare' not in printed
    assert 'index' not in printed


def test_a_failing_notebook_fails_the_check(project, capfd):
    edit(project/'nbs'/'01_data'/'00_adding.ipynb', 'add(1, 2) == 3', 'add(1, 2) == 4')
    assert not checks.check_notebooks(project)
    assert 'AssertionError' in capfd.readouterr().err


def test_a_notebook_that_hangs_is_stopped_and_named(project, capfd):
    edit(project/'nbs'/'01_data'/'00_adding.ipynb', 'assert add(1, 2) == 3', 'import time; time.sleep(100)')
    assert not checks.check_notebooks(project, timeout=10)
    assert 'not finished within 10 s: 00_adding.ipynb' in capfd.readouterr().out


def test_no_notebook_at_all_is_a_failure(project):
    (project/'nbs'/'01_data'/'00_adding.ipynb').unlink()
    assert not checks.check_notebooks(project)


def test_all_parts_run_and_one_failure_is_enough(tmp_path, capfd):
    def python(code, **env): return [sys.executable, '-c', code], env

    todo = {
        'first': python('print("one"); raise SystemExit(3)'),
        'second': python('import os; print(os.environ["WORD"])', WORD='two'),
        'third': python('1/0')}
    assert not checks.check_all(tmp_path, todo)
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[-3:]] == [['first', 'FAILED'], ['second', 'ok'], ['third', 'FAILED']]
    assert 'two' in lines
    assert '(exit status 3)' in lines[-3]
    assert checks.check_all(tmp_path, {'second': todo['second']})


def test_a_part_that_a_signal_ends_has_failed(tmp_path):
    command = [sys.executable, '-c', 'import os; os.kill(os.getpid(), 9)']
    assert not checks.check_all(tmp_path, {'killed': (command, {})})


def test_contributing_describes_all_parts():
    page = (ROOT/'CONTRIBUTING.md').read_text()
    assert [name for name in checks.parts() if f'**{name}**' not in page] == []


def test_readme_opens_with_the_two_commands_and_its_links_exist():
    text = (ROOT/'README.md').read_text()
    assert text.index('make tutorial') < text.index('make test') < text.index('ppcls finetune')
    folders = {notebook.parent.name for notebook in (ROOT/'nbs').glob('*/*.ipynb')}
    assert [name for name in sorted(folders) if f'](nbs/{name})' not in text] == []
    links = set(checks.re.findall(r'\]\((?!\w+:|#)([^)\s]+)\)', text))
    assert links
    assert all((ROOT/link).exists() for link in links)


def test_readme_has_one_small_picture():
    text = (ROOT/'README.md').read_text()
    picture, = checks.re.findall(r'!\[[^]]+\]\(([^)]+)\)', text)
    data = (ROOT/picture).read_bytes()
    assert data.startswith(b'\x89PNG')
    assert len(data) <= 150_000


def test_readme_has_a_row_for_each_extra():
    settings = ConfigParser(delimiters=['='], interpolation=None)
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    extras = [key.removesuffix('_requirements') for key in settings['DEFAULT'] if key.endswith('_requirements')]
    assert sorted(row['extra'] or '' for row in fact_rows('extras')) == sorted(['', *extras])
    text = (ROOT/'README.md').read_text()
    assert [extra for extra in extras if f'| `{extra}` |' not in text] == []


def test_titles_are_plain():
    for notebook in (ROOT/'nbs').glob('*/*.ipynb'):
        first = next(c for c in json.loads(notebook.read_text())['cells'] if c['cell_type'] == 'markdown')
        title = ''.join(first['source'])
        assert title.startswith('# '), notebook
        assert not title.startswith('# #'), notebook
