"The notebook runner: every refusal and every way to fail, with tiny notebooks."
import io, json, os, signal, subprocess, sys, time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ppcls_nb import notebooks
from ppcls_nb.basics import PPClsError
from ppcls_nb.notebooks import Screen, main, run_course, run_notebook


@pytest.fixture
def write(tmp_path):
    def _write(name, *cells, parameters='steps = 1', kernel='python3'):
        first = [] if parameters is None else [new_code_cell(parameters, metadata={'tags': ['parameters']})]
        nb = new_notebook(cells=[new_markdown_cell(f'# {name}'), *first, *map(new_code_cell, cells)],
                          metadata={'kernelspec': {'name': kernel, 'display_name': kernel, 'language': kernel}})
        path = tmp_path/f'{name}.ipynb'
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, path)
        return path
    return _write


@pytest.fixture
def log(): return io.StringIO()


def outputs(path): return [o for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code' for o in c.outputs]


def alive(pid):
    "Whether the process `pid` runs (one that has ended and was not yet waited for does not)."
    try: return open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError: return False


def test_refuses_a_notebook_without_parameters_cell(write, tmp_path):
    with pytest.raises(PPClsError, match="plain.ipynb: no cell is tagged 'parameters'"):
        run_notebook(write('plain', 'print(1)', parameters=None), tmp_path/'out.ipynb')
    assert not (tmp_path/'out.ipynb').exists()


def test_refuses_an_unknown_parameter_and_names_the_nearest(write, tmp_path):
    with pytest.raises(PPClsError, match="unknown parameter 'stpes'; did you mean 'steps'?"):
        run_notebook(write('a', 'print(steps)'), tmp_path/'out.ipynb', {'stpes': 2})
    assert not (tmp_path/'out.ipynb').exists()


def test_course_refuses_before_the_first_notebook_runs(write, tmp_path, log):
    write('course/00_good', 'print("ran")', parameters='steps, rate = 1, 2\nrate = 3')
    write('course/01_bad', 'print("ran")')
    (tmp_path/'cpu.yaml').write_text('rate: 3\n')
    with pytest.raises(PPClsError, match="01_bad.ipynb: unknown parameter 'rate'"):
        run_course(tmp_path/'course', tmp_path/'cpu.yaml', tmp_path/'out', screen=Screen(log))
    assert not (tmp_path/'out').exists() and log.getvalue() == ''


def test_wrong_kernel_name_still_runs_in_this_environment(write, tmp_path):
    path = write('a', 'import sys; print(sys.executable, sys.prefix)', kernel='julia-1.9')
    result = run_notebook(path, tmp_path/'out.ipynb')
    assert result.ok and outputs(result.out)[0].text.split() == [sys.executable, sys.prefix]


def test_a_kernelspec_of_another_environment_is_not_used(write, tmp_path, monkeypatch):
    spec = tmp_path/'share'/'kernels'/'python3'
    spec.mkdir(parents=True)
    (spec/'kernel.json').write_text(json.dumps({'argv': ['/bin/false', '{connection_file}'], 'display_name': 'other', 'language': 'python'}))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'share'))
    monkeypatch.setenv('JUPYTER_PREFER_ENV_PATH', '0')
    assert run_notebook(write('a', 'print(1)'), tmp_path/'out.ipynb').ok


def test_cell_timeout_keeps_the_notebook_and_says_where(write, tmp_path, log):
    path = write('slow', 'import os, pathlib; pathlib.Path("pid").write_text(str(os.getpid()))', 'import time; time.sleep(100)')
    result = run_notebook(path, tmp_path/'out.ipynb', cell_timeout=2, screen=Screen(log))
    assert result.status == 'timeout'
    assert 'slow.ipynb: timeout in cell In [3]' in log.getvalue() and '│ import time; time.sleep(100)' in log.getvalue()
    assert 'not finished within 2 s' in log.getvalue() and f'kept: {tmp_path}/out.ipynb' in log.getvalue()
    assert outputs(result.out)[-1].ename == 'CellTimeoutError'
    assert not alive((tmp_path/'pid').read_text())


def test_kernel_that_never_answers_is_tried_again_then_given_up(write, tmp_path, log, monkeypatch):
    monkeypatch.setattr(notebooks, 'kernel_command', lambda: [sys.executable, '-c', 'import time; time.sleep(100)'])
    result = run_notebook(write('a', 'print(1)'), tmp_path/'out.ipynb', kernel_timeout=1, screen=Screen(log))
    assert result.status == 'no kernel' and "didn't respond in 1 seconds" in result.error
    assert 'attempt 1 of 2' in log.getvalue() and 'attempt 2 of 2' in log.getvalue() and 'attempt 3' not in log.getvalue()


def test_kernel_that_cannot_start_says_why(write, tmp_path, log, monkeypatch):
    monkeypatch.setattr(notebooks, 'kernel_command', lambda: [sys.executable, '-m', 'no_such_kernel'])
    assert run_notebook(write('a', 'print(1)'), tmp_path/'out.ipynb', screen=Screen(log)).status == 'no kernel'
    assert log.getvalue().count('No module named no_such_kernel') == 1


def test_kernel_that_starts_at_the_second_attempt_is_fine(write, tmp_path, log, monkeypatch):
    commands = iter([[sys.executable, '-c', 'raise SystemExit(1)'], notebooks.kernel_command()])
    first = next(commands)
    monkeypatch.setattr(notebooks, 'kernel_command', lambda: first if 'attempt 1' not in log.getvalue() else second)
    second = next(commands)
    result = run_notebook(write('a', 'print("once")'), tmp_path/'out.ipynb', screen=Screen(log))
    assert result.ok and log.getvalue().count('once') == 1


def test_only_the_start_of_a_kernel_is_tried_again(write, tmp_path, log):
    path = write('dies', 'open("count", "a").write("x")', 'import os; os.abort()')
    result = run_notebook(path, tmp_path/'out.ipynb', screen=Screen(log))
    assert result.status == 'died' and (tmp_path/'count').read_text() == 'x'
    assert 'dies.ipynb: died in cell In [3]' in log.getvalue() and 'Fatal Python error: Aborted' in log.getvalue()
    assert outputs(result.out)[-1].ename == 'DeadKernelError'


def test_failing_cell_is_printed_and_the_notebook_kept(write, tmp_path, log):
    path = write('bad', 'print("before")', 'x = {}\nx["colour"]', 'print("after")')
    result = run_notebook(path, tmp_path/'deep'/'out.ipynb', screen=Screen(log))
    text = log.getvalue()
    assert result.status == 'failed' and 'before\n─' in text and 'after' not in text.replace('after ', '')
    for part in ('bad.ipynb: failed in cell In [3]', '  │ x["colour"]', "KeyError: 'colour'", f'kept: {tmp_path}/deep/out.ipynb'): assert part in text
    assert '\x1b' not in text and [o.output_type for o in outputs(result.out)] == ['stream', 'error']


def test_own_errors_are_one_line(write, tmp_path, log):
    path = write('own', 'from ppcls_nb.basics import PPClsError\nraise PPClsError("a.txt line 3: no label")')
    result = run_notebook(path, tmp_path/'out.ipynb', screen=Screen(log))
    assert result.error == 'PPClsError: a.txt line 3: no label' and 'Traceback' not in log.getvalue()


def test_braces_in_paths_are_only_braces(write, tmp_path):
    assert run_notebook(write('odd {name}', 'print(steps)'), tmp_path/'{out}'/'a.ipynb', {'steps': 2}).out == tmp_path/'{out}'/'a.ipynb'
    assert outputs(tmp_path/'{out}'/'a.ipynb')[0].text == '2\n'


def test_timings_hold_every_run_and_how_it_ended(write, tmp_path, log):
    course = write('course/00_a', 'if steps == 2: raise ValueError').parent
    for steps in (1, 2): run_course(course, output=tmp_path/'out', parameters={'steps': steps}, report=False, screen=Screen(log))
    ledger = json.loads((tmp_path/'out'/'timings.json').read_text())
    assert [r['status'] for r in ledger['notebooks']['00_a']] == ['ok', 'failed']
    assert all(0 < r['seconds'] < 60 for r in ledger['notebooks']['00_a']) and ledger['machine']['cores'] >= 1
    assert not list((tmp_path/'out').glob('.*'))


def test_paths_reach_the_notebook_absolute(write, tmp_path, log, monkeypatch):
    write('course/00_a', 'print([output, data])', parameters='output = data = ""\noutput = ""\ndata = ""')
    (tmp_path/'mine').mkdir()
    monkeypatch.chdir(tmp_path)
    run_course('course', output='out', parameters={'data': 'mine'}, report=False, screen=Screen(log))
    assert str([str(tmp_path/'out'), str(tmp_path/'mine')]) in log.getvalue()


def test_progress_bar_is_seen_while_the_cell_runs(write, tmp_path):
    class Terminal(io.StringIO):
        times = []
        def isatty(self): return True
        def write(self, text):
            if '%' in text: self.times.append(time.monotonic())
            return super().write(text)
    seen = Terminal()
    run_notebook(write('bar', 'from tqdm import tqdm\nimport time\nfor _ in tqdm(range(4)): time.sleep(0.4)'), tmp_path/'out.ipynb', screen=Screen(seen))
    assert '\r' in seen.getvalue() and '100%' in seen.getvalue() and seen.times[-1] - seen.times[0] > 1


def test_exit_codes(write, tmp_path, capsys):
    good, bad = write('good', 'print(steps)'), write('bad', '1/0')
    assert main([str(good), '-p', 'steps=4', '-o', str(tmp_path/'o')]) == 0 and (tmp_path/'o'/'report.html').exists()
    assert main([str(good), str(bad), '-o', str(tmp_path/'p')]) == 1 and not (tmp_path/'p'/'report.html').exists()
    assert main([str(good), '-p', 'stebs=4', '-o', str(tmp_path/'q')]) == 2
    assert main([str(good), '-f', str(tmp_path/'none.yaml'), '-o', str(tmp_path/'q')]) == 2
    errors = capsys.readouterr().err.strip().split('\n')
    assert len(errors) == 2 and "did you mean 'steps'?" in errors[0] and 'none.yaml' in errors[1]


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_no_kernel_and_says_how_to_go_on(write, tmp_path, signum):
    course = write('course/00_long', 'import os, pathlib, subprocess, time\nchild = subprocess.Popen(["sleep", "100"])\n'
                   'pathlib.Path("pids.tmp").write_text(f"{os.getpid()} {child.pid}"); os.rename("pids.tmp", "pids")\ntime.sleep(100)').parent
    code = 'import sys; from ppcls_nb.notebooks import main; sys.exit(main())'
    run = subprocess.Popen([sys.executable, '-c', code, str(course), '-o', str(tmp_path/'out')], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        for _ in range(300):
            if (course/'pids').exists(): break
            time.sleep(0.1)
        pids = (course/'pids').read_text().split()
        assert all(map(alive, pids))
        run.send_signal(signum)
        _, errors = run.communicate(timeout=30)
    finally: run.kill()
    assert run.returncode == 130
    assert 'ppcls-run: stopped. The same command goes on where this one was' in errors and 'Traceback' not in errors
    assert not any(map(alive, pids))
    assert (tmp_path/'out'/'notebooks'/'00_long.ipynb').exists()
    assert [r['status'] for r in json.loads((tmp_path/'out'/'timings.json').read_text())['notebooks']['00_long']] == ['stopped']
