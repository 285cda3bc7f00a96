"The notebook runner: reports, errors, time-outs, estimates and seeds, with tiny notebooks."
import asyncio, io, json, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import pytest
import zmq
from jupyter_client.channels import AsyncZMQSocketChannel
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ppcls_nb.basics import PPClsError
from ppcls_nb.course import execute, timing
from ppcls_nb.course.execute import Console, RunResult, declared_parameters, read_notebook, run_notebook
from ppcls_nb.course.notebooks import (
    Course, _absolute, find_notebooks, main, parse_parameters, read_profile, relative_work, run_course, seed_folders)
from ppcls_nb.course.report import merge_streams
from ppcls_nb.course.timing import RunProgress, TrainingBars, earlier_runs, read_bar, record_time, time_left


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


def outputs(path):
    return [o for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code' for o in c.outputs]


def alive(pid):
    "Whether the process `pid` is running (a zombie is not)."
    try:
        return open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_refuses_a_notebook_without_parameters_cell(write, tmp_path):
    with pytest.raises(PPClsError, match="plain.ipynb: no cell is tagged 'parameters'"):
        run_notebook(write('plain', 'print(1)', parameters=None), tmp_path/'out.ipynb')
    assert not (tmp_path/'out.ipynb').exists()


def test_refuses_an_unknown_parameter_and_names_the_nearest(write, tmp_path):
    with pytest.raises(PPClsError, match="unknown parameter 'stpes'; did you mean 'steps'?"):
        run_notebook(write('a', 'print(steps)'), tmp_path/'out.ipynb', {'stpes': 2})
    assert not (tmp_path/'out.ipynb').exists()


def test_read_notebook_explains_what_is_wrong(tmp_path):
    with pytest.raises(PPClsError, match='none.ipynb: no such notebook'):
        read_notebook(tmp_path/'none.ipynb')
    (tmp_path/'junk.ipynb').write_text('{"cells": 3')
    with pytest.raises(PPClsError, match='junk.ipynb: not a Jupyter notebook'):
        read_notebook(tmp_path/'junk.ipynb')


def test_declared_parameters_are_those_of_the_tagged_cell(write):
    assert declared_parameters(write('a', 'other = 3', parameters='steps = 1\nrate = 0.1')) == ['steps', 'rate']


def test_course_refuses_before_the_first_notebook_runs(write, tmp_path, log):
    write('course/00_good', 'print("ran")', parameters='steps, rate = 1, 2\nrate = 3')
    write('course/01_bad', 'print("ran")')
    (tmp_path/'cpu.yaml').write_text('rate: 3\n')
    with pytest.raises(PPClsError, match="01_bad.ipynb: unknown parameter 'rate'"):
        run_course(tmp_path/'course', tmp_path/'cpu.yaml', tmp_path/'out', console=Console(log))
    assert not (tmp_path/'out').exists()
    assert log.getvalue() == ''


def test_wrong_kernel_name_still_runs_in_this_environment(write, tmp_path):
    path = write('a', 'import sys; print(sys.executable, sys.prefix)', kernel='julia-1.9')
    result = run_notebook(path, tmp_path/'out.ipynb')
    assert result.ok
    assert outputs(result.out)[0].text.split() == [sys.executable, sys.prefix]


def test_a_kernelspec_of_another_environment_is_not_used(write, tmp_path, monkeypatch):
    spec = tmp_path/'share'/'kernels'/'python3'
    spec.mkdir(parents=True)
    other = dict(argv=['/bin/false', '{connection_file}'], display_name='other', language='python')
    (spec/'kernel.json').write_text(json.dumps(other))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'share'))
    monkeypatch.setenv('JUPYTER_PREFER_ENV_PATH', '0')
    assert run_notebook(write('a', 'print(1)'), tmp_path/'out.ipynb').ok


def test_cell_timeout_keeps_the_notebook_and_says_where(write, tmp_path, log):
    path = write('slow', 'import os, pathlib; pathlib.Path("pid").write_text(str(os.getpid()))',
                 'import time; time.sleep(100)')
    result = run_notebook(path, tmp_path/'out.ipynb', cell_timeout=2, console=Console(log))
    assert result.status == 'timeout'
    assert 'slow.ipynb: timeout in cell In [3]' in log.getvalue()
    assert '│ import time; time.sleep(100)' in log.getvalue()
    assert 'not finished within 2 s' in log.getvalue()
    assert f'kept: {tmp_path}/out.ipynb' in log.getvalue()
    assert outputs(result.out)[-1].ename == 'CellTimeoutError'
    assert not alive((tmp_path/'pid').read_text())


def test_kernel_that_never_answers_is_tried_again_then_given_up(write, tmp_path, log, monkeypatch):
    monkeypatch.setattr(execute, 'kernel_command', lambda: [sys.executable, '-c', 'import time; time.sleep(100)'])
    result = run_notebook(write('a', 'print(1)'), tmp_path/'out.ipynb', kernel_timeout=1, console=Console(log))
    assert result.status == 'no kernel'
    assert "didn't respond in 1 seconds" in result.error
    assert 'attempt 1 of 2' in log.getvalue()
    assert 'attempt 2 of 2' in log.getvalue()
    assert 'attempt 3' not in log.getvalue()


def test_kernel_that_cannot_start_says_why(write, tmp_path, log, monkeypatch):
    monkeypatch.setattr(execute, 'kernel_command', lambda: [sys.executable, '-m', 'no_such_kernel'])
    assert run_notebook(write('a', 'print(1)'), tmp_path/'out.ipynb', console=Console(log)).status == 'no kernel'
    assert log.getvalue().count('No module named no_such_kernel') == 1


def test_kernel_that_starts_at_the_second_attempt_is_fine(write, tmp_path, log, monkeypatch):
    commands = iter([[sys.executable, '-c', 'raise SystemExit(1)'], execute.kernel_command()])
    first = next(commands)
    monkeypatch.setattr(execute, 'kernel_command', lambda: first if 'attempt 1' not in log.getvalue() else second)
    second = next(commands)
    result = run_notebook(write('a', 'print("once")'), tmp_path/'out.ipynb', console=Console(log))
    assert result.ok
    assert log.getvalue().count('once') == 1


def test_only_the_start_of_a_kernel_is_tried_again(write, tmp_path, log):
    path = write('dies', 'open("count", "a").write("x")', 'import os; os.abort()')
    result = run_notebook(path, tmp_path/'out.ipynb', console=Console(log))
    assert result.status == 'died'
    assert (tmp_path/'count').read_text() == 'x'
    assert 'dies.ipynb: died in cell In [3]' in log.getvalue()
    assert 'Fatal Python error: Aborted' in log.getvalue()
    assert outputs(result.out)[-1].ename == 'DeadKernelError'


def test_failing_cell_is_printed_and_the_notebook_kept(write, tmp_path, log):
    path = write('bad', 'print("before")', 'x = {}\nx["colour"]', 'print("after")')
    result = run_notebook(path, tmp_path/'deep'/'out.ipynb', console=Console(log))
    text = log.getvalue()
    assert result.status == 'failed'
    assert 'before\n─' in text
    assert 'after' not in text.replace('after ', '')
    for part in ('bad.ipynb: failed in cell In [3]', '  │ x["colour"]', "KeyError: 'colour'",
                 f'kept: {tmp_path}/deep/out.ipynb'):
        assert part in text
    assert '\x1b' not in text
    assert [o.output_type for o in outputs(result.out)] == ['stream', 'error']


def test_own_errors_are_one_line(write, tmp_path, log):
    path = write('own', 'from ppcls_nb.basics import PPClsError\nraise PPClsError("a.txt line 3: no label")')
    result = run_notebook(path, tmp_path/'out.ipynb', console=Console(log))
    assert result.error == 'PPClsError: a.txt line 3: no label'
    assert 'Traceback' not in log.getvalue()


def test_braces_in_paths_are_only_braces(write, tmp_path):
    out = tmp_path/'{out}'/'a.ipynb'
    assert run_notebook(write('odd {name}', 'print(steps)'), out, {'steps': 2}).out == out
    assert outputs(out)[0].text == '2\n'


def test_timings_hold_every_run_and_how_it_ended(write, tmp_path, log):
    course = write('course/00_a', 'if steps == 2: raise ValueError').parent
    for steps in (1, 2):
        run_course(course, output=tmp_path/'out', parameters={'steps': steps}, report=False, console=Console(log))
    timings = json.loads((tmp_path/'out'/'timings.json').read_text())
    assert [r['status'] for r in timings['notebooks']['00_a']] == ['ok', 'failed']
    assert all(0 < r['seconds'] < 60 for r in timings['notebooks']['00_a'])
    assert timings['machine']['cores'] >= 1
    assert not list((tmp_path/'out').glob('.*'))


def test_paths_reach_the_notebook_absolute(write, tmp_path, log, monkeypatch):
    write('course/00_a', 'print([output, data])', parameters='output = data = ""\noutput = ""\ndata = ""')
    (tmp_path/'mine').mkdir()
    monkeypatch.chdir(tmp_path)
    run_course('course', output='out', parameters={'data': 'mine'}, report=False, console=Console(log))
    assert str([str(tmp_path/'out'), str(tmp_path/'mine')]) in log.getvalue()


def test_progress_bar_is_seen_while_the_cell_runs(write, tmp_path):
    class TimedTerminal(Terminal):
        times = []

        def write(self, text):
            if '%' in text: self.times.append(time.monotonic())
            return super().write(text)
    shown = TimedTerminal()
    slow = 'from tqdm import tqdm\nimport time\nfor _ in tqdm(range(4)): time.sleep(0.4)'
    run_notebook(write('bar', slow), tmp_path/'out.ipynb', console=Console(shown))
    assert '\r' in shown.getvalue()
    assert '100%' in shown.getvalue()
    assert shown.times[-1] - shown.times[0] > 1


def test_exit_codes(write, tmp_path, capsys):
    good, bad = write('good', 'print(steps)'), write('bad', '1/0')
    assert main([str(good), '-p', 'steps=4', '-o', str(tmp_path/'o')]) == 0
    assert (tmp_path/'o'/'report.html').exists()
    assert main([str(good), str(bad), '-o', str(tmp_path/'p')]) == 1
    assert not (tmp_path/'p'/'report.html').exists()
    assert main([str(good), '-p', 'stebs=4', '-o', str(tmp_path/'q')]) == 2
    assert main([str(good), '-f', str(tmp_path/'none.yaml'), '-o', str(tmp_path/'q')]) == 2
    errors = capsys.readouterr().err.strip().split('\n')
    assert len(errors) == 2
    assert "did you mean 'steps'?" in errors[0]
    assert 'none.yaml' in errors[1]


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_no_kernel_and_can_be_continued(write, tmp_path, signum):
    source = '''
import os, pathlib, subprocess, time
child = subprocess.Popen(["sleep", "100"])
pathlib.Path("pids.tmp").write_text(f"{os.getpid()} {child.pid}")
os.rename("pids.tmp", "pids")
time.sleep(100)'''
    course = write('course/00_long', source).parent
    code = 'import sys; from ppcls_nb.course.notebooks import main; sys.exit(main())'
    run = subprocess.Popen([sys.executable, '-c', code, str(course), '-o', str(tmp_path/'out')], text=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while run.poll() is None and not (course/'pids').exists():
            time.sleep(0.1)
        pids = (course/'pids').read_text().split()
        assert all(map(alive, pids))
        run.send_signal(signum)
        _, errors = run.communicate()
    finally:
        run.kill()
    assert run.returncode == 130
    assert 'ppcls-run: stopped. Run the same command to continue' in errors
    assert 'Traceback' not in errors
    assert not any(map(alive, pids))
    assert (tmp_path/'out'/'notebooks'/'00_long.ipynb').exists()
    rows = json.loads((tmp_path/'out'/'timings.json').read_text())['notebooks']['00_long']
    assert [row['status'] for row in rows] == ['stopped']


# ── outputs that come late, or never

def print_lines(n): return f'import sys\nfor i in range({n}): print("line", i, flush=True)'


def saved_lines(path): return ''.join(o.text for o in outputs(path) if o.output_type == 'stream').split('\n')[:-1]


@pytest.fixture
def change_messages(monkeypatch):
    "A function: `change(message)`, async, is applied to every message about outputs; None: it is lost."
    def set_change(change):
        get_msg = AsyncZMQSocketChannel.get_msg
        async def changed(self, *args, **options):
            while True:
                message = await get_msg(self, *args, **options)
                if self.socket.type != zmq.SUB or await change(message):
                    return message
        monkeypatch.setattr(AsyncZMQSocketChannel, 'get_msg', changed)
    return set_change


def is_end(message):
    return message['parent_header'].get('msg_type') == 'execute_request' and \
        message['content'].get('execution_state') == 'idle'


def test_no_line_is_lost_while_nobody_reads(write, tmp_path):
    class Slow(io.StringIO):
        def write(self, text):
            while 'line 0' in text and not (tmp_path/'printed').exists():
                time.sleep(.01)
            return super().write(text)
    # more than the queues hold that drop messages by default, and the buffers of the sockets
    source = print_lines(20_000) + '\nopen("printed", "w").close()'
    result = run_notebook(write('many', source), tmp_path/'out.ipynb', console=Console(Slow()))
    assert result.ok
    assert saved_lines(result.out) == [f'line {i}' for i in range(20_000)]


def test_late_messages_are_waited_for(write, tmp_path, log, change_messages):
    async def delay(message):
        if 'text' in message['content'] or is_end(message):
            await asyncio.sleep(.2)
        return True
    change_messages(delay)
    result = run_notebook(write('late', print_lines(3)), tmp_path/'out.ipynb', console=Console(log))
    assert result.ok
    assert saved_lines(result.out) == log.getvalue().split('\n')[:-1] == ['line 0', 'line 1', 'line 2']


def test_a_lost_message_is_no_timeout_of_the_cell(write, tmp_path, log, monkeypatch, change_messages):
    async def lose(message):
        return not is_end(message)
    change_messages(lose)
    monkeypatch.setattr(execute, 'OUTPUT_TIMEOUT', 1)
    result = run_notebook(write('lost', print_lines(2)), tmp_path/'out.ipynb', console=Console(log))
    assert result.ok
    assert 'lost.ipynb: In [2]: some output may be missing' in log.getvalue()
    assert saved_lines(result.out) == ['line 0', 'line 1']


def test_modules_beside_the_notebook_do_not_replace_those_of_python(write, tmp_path):
    for name in ('runpy', 'faulthandler', 'ipykernel'):
        (tmp_path/f'{name}.py').write_text('raise RuntimeError')
    assert run_notebook(write('beside', 'print(1)'), tmp_path/'out.ipynb', console=Console(io.StringIO())).ok


# ── the console and what is saved

class Terminal(io.StringIO):
    def isatty(self): return True


def test_a_terminal_shows_the_bar_below_the_lines():
    shown, erase = Terminal(), '\r\x1b[K'
    with Console(shown) as console:
        console.err.write('\rtraining 50 %')
        console.write('epoch 1\n')
        console.print('-- 3 of 8 --')
        console.err.write('\r             \r')
    bar = 'training 50 %'
    assert shown.getvalue() == f'{bar}{erase}epoch 1\n{bar}{erase}-- 3 of 8 --\n{bar}{erase}'


def test_a_bar_alone_leaves_no_output():
    bar = new_code_cell('', outputs=[new_output('stream', name='stderr', text='\r 50%\r    \r')])
    nb = new_notebook(cells=[bar])
    assert merge_streams(nb).cells[0].outputs == []
    assert len(nb.cells[0].outputs) == 1


def test_bars_leave_no_trace_in_the_saved_notebook(write, tmp_path, log):
    bar = ('from tqdm import tqdm\n'
           'for n in tqdm(range(3), "scratch", leave=False, mininterval=0): print("epoch", n, flush=True)')
    failing = 'import sys; print("one", flush=True); print("two", file=sys.stderr, flush=True); print("three"); 1/0'
    result = run_notebook(write('bar', bar, failing), tmp_path/'out.ipynb', console=Console(log))
    first, second, error = outputs(result.out)
    assert (first.name, first.text) == ('stdout', 'epoch 0\nepoch 1\nepoch 2\n')
    assert second.text == 'one\ntwo\nthree\n'
    assert error.ename == 'ZeroDivisionError'


# ── time left, in simulated time

@pytest.mark.parametrize('text, expected', [
    ('server:  45%|####5     | 460/1020 [00:12<00:15, 35.2 images/s, epoch 0 loss 2.301]', ('server', 460, 1020, True)),
    ('server:   0%|          | 0/1020 [00:00<?, ? images/s]', ('server', 0, 1020, False)),
    ('100%|##########| 3/3 [00:00<00:00]', ('', 3, 3, False)),
    ('flowers:  12%|#1        | 41.2M/345M [00:12<01:15, 4.02MB/s]', None),
    ('epoch 3: 45% of the images', None),
    ('', None)])
def test_bars_are_read(text, expected): assert read_bar(text) == expected


def bar(title, done, total):
    return f'{title}: {100*done//total}%|##   | {done}/{total} [00:12<00:15, 35.2 images/s, epoch 0 loss 2.301]'


class Machine:
    "Runs a course in simulated time at `rate` images a second; `status` has (time, estimated seconds left, line)."
    def __init__(self, work, rate, **options):
        self.now, self.rate, self.status = 0., rate, []
        self.progress = RunProgress([Path(f'{n}.ipynb') for n in work], work, timer=lambda: self.now, **options)

    def wait(self, seconds):
        for _ in range(int(seconds)):
            self.now += 1
            self.status.append((self.now, self.progress.seconds_left(), self.progress()))

    def notebook(self, name, *trainings, before=5, after=5):
        self.progress.begin(Path(f'{name}.ipynb'), 9)
        self.wait(before)
        for n, images in enumerate(trainings):
            for done in range(0, images + 1, self.rate):
                self.progress.add_output([], bar(f'run {n}', done, images))
                self.wait(1)
            self.progress.add_output([], '     ')
            self.wait(after)
        self.progress.finish(RunResult(None, None, 0., 'ok'))


WORK = {'00_prepare': 20, '01_scratch': 150, '02_finetune': 150, '06_distill': 600}


def lessons(machine):
    machine.notebook('00_prepare', before=30)
    machine.notebook('01_scratch', 15000)
    machine.notebook('02_finetune', 15000)
    machine.notebook('06_distill', 20000, 20000, 20000)
    return machine.status, machine.now


@pytest.mark.parametrize('rate', [25, 100, 500])
def test_estimate_comes_from_this_machine(rate):
    "Unknown before the first step; from the second notebook on near the truth, on slow and on fast machines."
    status, end = lessons(Machine(WORK, rate))
    first = next(n for n, (_, left, _) in enumerate(status) if left is not None)
    assert all('unknown until the first steps are measured' in line for _, _, line in status[:first])
    assert 30 < status[first][0] < 45
    second = next(n for n, (_, _, line) in enumerate(status) if '02_finetune' in line)
    for now, left, line in status[second:]:
        if end - now > 60:
            assert 0.75*(end - now) < left < 1.35*(end - now) + 30, (now, end - now, left)
    assert all(end - now <= 35 for now, _, line in status if 'nearly done' in line)


def test_without_relative_work_the_time_left_is_unknown():
    progress = RunProgress([Path('a.ipynb')], {})
    progress.begin(Path('a.ipynb'), 1)
    assert progress().endswith('time left unknown')


def test_a_training_that_hangs_is_not_nearly_done():
    machine = Machine({'a': 100}, 100)
    machine.progress.begin(Path('a.ipynb'), 3)
    for done in (0, 900):
        machine.progress.add_output([], bar('run', done, 1000))
        machine.wait(10)
    before = machine.progress.seconds_left()
    machine.wait(1000)
    assert machine.progress.seconds_left() > 10*before
    machine.progress.add_output([], '    ')
    machine.wait(500)
    assert 'nearly done' not in machine.progress()


def test_a_resumed_training_shows_the_speed_of_the_whole():
    bars = TrainingBars()
    for now, done in ((100, 600), (120, 800)):
        bars.add_bar(bar('run', done, 1000), now)
    assert bars.times(120) == (60, 20)
    assert not bars.resumed
    bars.add_line('run: resumed, 3 of 5 epochs are done')
    assert bars.resumed
    assert not bars.finished
    bars.add_line('other: resumed, 5 of 5 epochs are done')
    assert bars.finished


def test_finished_trainings_are_no_measurements():
    machine = Machine({'a': 100, 'b': 100}, 100)
    machine.progress.begin(Path('a.ipynb'), 3)
    machine.progress.add_output(['run: resumed, 20 of 20 epochs are done'])
    machine.wait(5)
    machine.progress.finish(RunResult(None, None, 0., 'ok'))
    assert machine.progress.measurements == []


def test_notebooks_without_training_and_further_seeds_count():
    work, measured = {'a': 100, 'b': 100}, [(200, 100)]
    assert time_left(work, measured, [], 'a', 10, without_training={'a': 30, 'b': 40}) == 60
    assert time_left(work, measured, [], 'a', 10, more_courses=2) == 190 + 200 + 800
    # a training shows up all the same
    assert time_left(work, measured, [], 'a', 10, times=(0, 150), without_training={'a': 30}) == 190 + 200
    assert time_left({}, [], [], 'a', 10) is None


def test_a_download_is_not_a_training():
    bars = TrainingBars()
    for now, done in ((0, 0), (10, 50)):
        bars.add_bar(f'petals: 20%|##   | {done}/240 [00:03<00:10, 79 images/s]', now)
    assert bars.times(10) is None
    assert bars.training_seconds() == 0


def test_only_rows_of_this_machine_with_these_settings_count(tmp_path, monkeypatch):
    file, row = tmp_path/'timings.json', dict(settings='s', resumed=False, training=8)

    def add(stem, seconds, status='ok', **more):
        record_time(file, RunResult(tmp_path/f'{stem}.ipynb', None, seconds, status), **{**row, **more})
    monkeypatch.setattr(timing, 'machine_facts', lambda: {'cores': 64})
    add('a', 1)
    monkeypatch.setattr(timing, 'machine_facts', lambda: {'cores': 2})
    for args in (('b', 10), ('b', 11), ('b', 3, 'failed')):
        add(*args)
    add('c', 2, resumed=True)
    add('d', 2, settings='other')
    assert {stem: r['seconds'] for stem, r in earlier_runs(file, 's').items()} == {'b': 11}
    assert json.loads(file.read_text())['notebooks']['a'][0]['machine'] == {'cores': 64}
    assert earlier_runs(tmp_path/'none.json', 's') == {}


# ── the parameters of a notebook

LESSON = 'profile = "cpu"\nseed = None\ncommon = None\nrecipes = None\noutput = ""'


def test_a_lesson_gets_the_name_of_the_profile_and_not_its_contents(write, tmp_path, log):
    lesson = write('course/00_a', 'print([profile, seed, common, recipes])', parameters=LESSON)
    own, mine = lesson.parent/'profiles'/'tiny.yaml', tmp_path/'mine.yaml'
    own.parent.mkdir()
    own.write_text('profile: tiny\nseed: 0\ncommon: {epochs: 1}\nrecipes: {a: {b: 1}}\n')
    mine.write_text(own.read_text().replace('tiny', 'mine'))
    run_course(lesson, own, tmp_path/'out', report=False, console=Console(log))
    assert "['tiny', None, None, None]" in log.getvalue()
    injected = nbformat.read(tmp_path/'out'/'notebooks'/'00_a.ipynb', as_version=4).cells[2].source
    assert 'epochs' not in injected
    assert 'output = ' in injected
    run_course(lesson, mine, tmp_path/'out', {'recipes': {'a': {'c': 2}}}, report=False, console=Console(log))
    assert str([str(mine), None, None, {'a': {'c': 2}}]) in log.getvalue()


@pytest.mark.parametrize('text, message', [
    ('- 1\n', 'cpu.yaml: expected a mapping of parameter names to values'),
    ('a: [1\n', 'cpu.yaml: not valid YAML')])
def test_a_profile_is_a_mapping_in_yaml(tmp_path, text, message):
    (tmp_path/'cpu.yaml').write_text(text)
    with pytest.raises(PPClsError, match=message):
        read_profile(tmp_path/'cpu.yaml')


def test_a_missing_profile_without_neighbours(tmp_path):
    with pytest.raises(PPClsError, match='cpu.yaml: no such profile file'):
        read_profile(tmp_path/'cpu.yaml')


@pytest.mark.parametrize('pair, message', [
    ('seed 3', "parameter 'seed 3': expected NAME=VALUE"),
    ('a=[1', 'not valid YAML')])
def test_a_parameter_is_a_name_and_a_value_in_yaml(pair, message):
    with pytest.raises(PPClsError, match=message):
        parse_parameters([pair])


def test_only_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {'output': 'o', 'data': 'petals', 'seed': 1}
    assert _absolute(values) == {**values, 'output': str(tmp_path/'o')}
    assert _absolute({'data': '.'}) == {'data': str(tmp_path)}
    assert _absolute({'data': 'no-such'}) == {'data': 'no-such'}


def test_a_course_without_notebooks_is_refused(tmp_path):
    with pytest.raises(PPClsError, match='no notebooks found'):
        find_notebooks([tmp_path])
    assert relative_work(None, []) == {}


def test_the_digest_of_the_settings_leaves_the_output_out(write, tmp_path):
    def digest(output, parameters): return Course([], None, Path(output), parameters).settings_digest()
    assert digest('o', {'seed': 4}) != digest('o', {}) == digest('p', {})


def test_a_profile_without_a_name_is_passed_in_full(write, tmp_path):
    path = write('a', '1', parameters='steps, rate = 1, 2\nrate = 1')
    (tmp_path/'cpu.yaml').write_text('rate: 3\n')
    assert Course([path], tmp_path/'cpu.yaml', tmp_path/'out', {}).notebook_parameters(path) == {'rate': 3}


def test_a_relative_data_folder_becomes_absolute(write, tmp_path, monkeypatch):
    path = write('a', '1', parameters='profile = ""\ndata = None')
    (tmp_path/'mine.yaml').write_text('profile: mine\ndata: photos\n')
    (tmp_path/'photos').mkdir()
    monkeypatch.chdir(tmp_path)
    parameters = Course([path], 'mine.yaml', tmp_path/'out', {}).notebook_parameters(path)
    assert parameters == {'profile': str(tmp_path/'mine.yaml'), 'data': str(tmp_path/'photos')}


# ── seeds

@pytest.fixture
def seeded(write, tmp_path):
    "A function that runs a course of two notebooks, the last of which writes `results.json`, and returns its output."
    first = 'import os\nprint("first", seed)\nif os.path.exists("broken") and seed == 1: 1/0'
    write('course/00_a', first, parameters='seed = 0\noutput = ""')
    last = 'print("second", seed)\nopen(f"{output}/results.json", "w").write("{}")'
    course = write('course/01_b', last, parameters='seed = 0\noutput = ""').parent

    def run(*options, seeds=3):
        log = io.StringIO()
        run_course(course, None, tmp_path/'out', dict(options), console=Console(log), seeds=seeds)
        return log.getvalue()
    run.course, run.output = course, tmp_path/'out'
    return run


def test_seeds_have_their_folders_and_are_run_once(seeded):
    shown = seeded()
    folders = seed_folders(seeded.output, 3, 0)
    assert [n for n in range(3) if f'first {n}' in shown and f'second {n}' in shown] == [0, 1, 2]
    assert '[seed 2 of 3] [1/2] 00_a, cell 0 of' in shown
    assert shown.endswith(''.join(f'seed {n}: {f}\n' for n, f in enumerate(folders)))
    assert all((f/'timings.json').is_file() and (f/'notebooks'/'01_b.ipynb').is_file() for f in folders)
    assert [(f/'report.html').is_file() for f in folders] == [True, False, False]
    again = seeded()
    assert 'first' not in again
    assert again.count('is complete') == 3


def test_seeds_continue_where_they_failed(seeded):
    (seeded.course/'broken').touch()
    shown = seeded()
    assert 'second 0' in shown
    assert 'ZeroDivisionError' in shown
    assert 'first 2' not in shown
    (seeded.course/'broken').unlink()
    shown = seeded()
    assert 'first 0' not in shown
    assert 'second 1' in shown
    assert 'second 2' in shown


def test_one_seed_is_continued_by_more(seeded):
    assert 'seed 0' not in seeded(seeds=1)
    (seeded.output/'report.html').unlink()
    shown = seeded(seeds=2)
    assert '[seed 1 of 2] seed 0 is complete' in shown
    assert 'second 1' in shown
    assert 'first 0' not in shown
    assert (seeded.output/'report.html').is_file()
    assert 'first 0' in seeded(seeds=1)                  # a single seed is always run


@pytest.mark.parametrize('change', ['notebook', 'parameter', 'results'])
def test_what_has_changed_is_run_again(seeded, change):
    seeded(seeds=2)
    if change == 'notebook':
        path = seeded.course/'00_a.ipynb'
        path.write_text(path.read_text().replace('first', 'other'))
    if change == 'results':
        (seeded.output/'results.json').unlink()
    shown = seeded(('seed', 4), seeds=2) if change == 'parameter' else seeded(seeds=2)
    assert {'notebook': 'other 1', 'parameter': 'second 5', 'results': 'second 0'}[change] in shown


def test_wrong_seeds_are_refused(write, tmp_path, capsys):
    course = write('course/00_a', '1', parameters='seed = 0\noutput = ""')
    plain = write('plain', '1')

    def refused(*args):
        assert main([*map(str, args), '-o', str(tmp_path/'out')]) == 2
        return capsys.readouterr().err.strip()
    assert refused(course, '--seeds', 0) == 'ppcls-run: --seeds 0: expected a whole number of 1 or more'
    assert "unknown parameter 'seed'" in refused(plain, '--seeds', 2)
    assert 'parameter output: several seeds would all write there' in refused(course, '--seeds', 2, '-p', 'output=x')
    assert "seed is 'many': expected a whole number" in refused(course, '--seeds', 2, '-p', 'seed=many')
    assert not (tmp_path/'out').exists()


def test_notebooks_of_one_name_keep_their_folders(write, tmp_path):
    first, second = write('a/train', 'print("first")'), write('b/train', 'print("second")')
    assert main([str(first), str(second), '-o', str(tmp_path/'out')]) == 0
    saved = sorted((tmp_path/'out'/'notebooks').iterdir())
    assert [path.name for path in saved] == ['a-train.ipynb', 'b-train.ipynb']
    assert [outputs(path)[0].text for path in saved] == ['first\n', 'second\n']
    assert set(timing.read_timings(tmp_path/'out'/'timings.json')['notebooks']) == {'a-train', 'b-train'}
