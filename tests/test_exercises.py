"""The exercises of all lessons: every check passes its solution and fails the stub and a typical mistake; every
exercise is complete. Then notebooks without solutions, and grading, with small notebooks."""
import ast
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest
from nbdev.clean import clean_nb
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ppcls_nb.basics import PPClsError
from ppcls_nb.course import exercises as course_exercises
from ppcls_nb.course.execute import read_notebook, run_notebook
from ppcls_nb.course.exercises import (
    KINDS, Grade, defined_names, exercise_faults, exercise_part, find_exercises, grade, grade_folder, judge, main,
    notebooks_in, read_exercises, run_check, summary, without_solutions, write_exercises)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import add_exercise  # noqa: E402  a script, no module of the package

EXERCISES = list(find_exercises(ROOT/'nbs').values())
LESSONS = sorted({exercise.path for exercise in EXERCISES})
every_exercise = pytest.mark.parametrize('exercise', EXERCISES, ids=lambda e: e.name)
every_lesson = pytest.mark.parametrize('lesson', LESSONS, ids=lambda path: f'{path.parent.name}/{path.stem}')


# the exercises of the course

@every_exercise
def test_the_check_passes_the_solution(exercise):
    error = run_check(exercise.sources['solution'], exercise.sources['check'])
    if error:
        raise error


@every_exercise
def test_the_check_fails_the_stub(exercise):
    error = run_check(exercise.sources['stub'], exercise.sources['check'])
    assert isinstance(error, (NotImplementedError, AssertionError)), repr(error)


@every_exercise
def test_the_check_fails_a_typical_mistake(exercise):
    error = run_check(exercise.sources['wrong'], exercise.sources['check'])
    assert isinstance(error, AssertionError), repr(error)
    assert 'NotImplementedError' not in exercise.sources['wrong']


def signatures(source):
    "Name → parameters of the functions and classes defined at the top of `source`; other names → None."
    found = dict.fromkeys(defined_names(source))
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = ast.unparse(node.args)
    return found


@every_exercise
def test_stub_solution_and_mistake_define_the_same(exercise):
    stub = signatures(exercise.sources['stub'])
    assert stub, 'a stub defines what is to be filled in'
    for kind in ('solution', 'wrong'):
        assert stub.items() <= signatures(exercise.sources[kind]).items()
    assert not stub.keys() & defined_names(exercise.sources['check']), 'a check judges what the learner defined'


@every_exercise
def test_a_check_is_short_and_says_what_is_right(exercise):
    assert exercise.sources['check'].count('\n') < 20
    asserts = [node for node in ast.walk(ast.parse(exercise.sources['check'])) if isinstance(node, ast.Assert)]
    calls = 'assert_' in exercise.sources['check']
    assert calls or any(node.msg for node in asserts)
    assert not exercise.sources['wrong'].split() == exercise.sources['solution'].split()
    assert '#' in exercise.sources['wrong'].partition('\n')[2], 'a comment says what is wrong'


@every_lesson
def test_the_cells_of_an_exercise_are_complete_and_in_order(lesson):
    parts = [(exercise_part(cell), cell) for cell in read_notebook(lesson).cells]
    order = ['task', 'stub', 'hint', 'check', 'solution', 'wrong', 'solution']
    for exercise in read_exercises(lesson):
        places = [i for i, ((name, _), _) in enumerate(parts) if name == exercise.name]
        cells = [cell for (name, _), cell in parts if name == exercise.name]
        assert places == list(range(places[0], places[0] + 7))
        assert [kind for (name, kind), _ in parts if name == exercise.name] == order
        kinds = ''.join(cell.cell_type[0] for cell in cells)
        assert kinds == 'mcmcmcc'       # markdown, code
        tags = [cell.metadata.tags for cell in cells]
        assert ['skip-execution' in t for t in tags] == [False, False, False, True, False, True, True]
        assert ['raises-exception' in t for t in tags] == [False, False, False, True, False, False, False]
        assert [cell.source.startswith('#| eval: false\n') for cell in cells if cell.cell_type == 'code'] == [
            False, True, True, True]
        assert cells[0].source.lstrip('#').startswith(' Exercise: ')
        assert cells[2].source.startswith('<details><summary>Hint</summary>\n\n')
        assert cells[2].source.endswith('\n\n</details>')


@every_lesson
def test_only_mistakes_and_solutions_are_folded(lesson):
    cells = read_notebook(lesson).cells
    folded = [cell.id for cell in cells if 'jupyter' in cell.metadata]
    answers = [c for c in cells if exercise_part(c)[1] in ('wrong', 'solution') and c.cell_type == 'code']
    assert folded == [cell.id for cell in answers]
    assert all(cell.metadata.jupyter == {'source_hidden': True} for cell in answers)
    assert len({cell.id for cell in cells}) == len(cells)


def names_in(source):
    "(names that `source` defines, all names in it), both empty for a cell with a magic or of another language."
    try:
        nodes = ast.walk(ast.parse(source))
    except SyntaxError:
        return set(), set()
    return defined_names(source), {node.id for node in nodes if isinstance(node, ast.Name)}


@every_lesson
def test_an_exercise_changes_no_name_of_its_lesson(lesson):
    cells = [(cell.source, *exercise_part(cell)) for cell in read_notebook(lesson).cells if cell.cell_type == 'code']
    taken = set().union(*(names_in(source)[0] for source, _, kind in cells if not kind))
    bound = set()
    for source, _, kind in cells:
        if kind:
            bound |= defined_names(source)
            assert kind == 'check' or not defined_names(source) & taken
        else:
            assert not bound & names_in(source)[1], 'a later cell uses a name that an exercise changes'


@every_lesson
def test_exercises_of_a_lesson_define_different_names(lesson):
    names = [name for exercise in read_exercises(lesson) for name in signatures(exercise.sources['stub'])]
    assert len(set(names)) == len(names)


def test_every_tutorial_has_an_exercise():
    tutorials = ROOT/'nbs'/'00_tutorials'
    assert {path for path in LESSONS if path.parent == tutorials} == set(tutorials.glob('*.ipynb'))


def test_every_lesson_has_an_exercise():
    lessons = [path for path in notebooks_in(ROOT/'nbs') if '01' <= path.parent.name[:2] <= '07']
    assert len({path.parent for path in lessons}) == 7
    without = [str(path.relative_to(ROOT)) for path in lessons if path not in LESSONS]
    assert not without, 'see tools/add_exercise.py'


def test_every_exercise_has_a_check():
    old = []
    for path in notebooks_in(ROOT/'nbs'):
        cells = [cell for cell in read_notebook(path).cells if cell.cell_type == 'markdown']
        old += [str(path.relative_to(ROOT)) for cell in cells
                if re.search(r'^##+ Exercise\b', cell.source, flags=re.M) and exercise_part(cell)[1] != 'task']
    assert not old, 'a heading without the cells of an exercise; see tools/add_exercise.py'


def test_nbdev_clean_keeps_what_an_exercise_needs():
    config = ConfigParser(delimiters=['='], interpolation=None)
    config.read(ROOT/'settings.ini')
    before = json.loads(LESSONS[0].read_text())
    cleaned = json.loads(LESSONS[0].read_text())
    clean_nb(cleaned, allowed_cell_metadata_keys=config['DEFAULT']['allowed_cell_metadata_keys'].split())
    assert [cell['metadata'] for cell in cleaned['cells']] == [cell['metadata'] for cell in before['cells']]


# reading

HALVE = dict(
    task='## Exercise: half\n\nWrite `halve(x)`.', stub='def halve(x):\n    raise NotImplementedError',
    hint='<details><summary>Hint</summary>\n\nDivide.\n\n</details>',
    check='#| eval: false\nassert halve(3) == 1.5, f"half of 3 is 1.5, not {halve(3)}"',
    wrong='#| eval: false\ndef halve(x): return x//2', solution='#| eval: false\ndef halve(x): return x/2')
RIGHT, WRONG = HALVE['solution'], HALVE['wrong']


def exercise_cells(name='halve', leave_out=(), **changed):
    "The cells of a small exercise."
    return [nbformat.from_dict(cell)
            for cell in add_exercise.exercise_cells(name, {**HALVE, **changed})
            if exercise_part(nbformat.from_dict(cell))[1] not in leave_out]


def write_notebook(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[new_markdown_cell('# Numbers'), *cells]), path)
    return path


@pytest.fixture
def lessons(tmp_path):
    "A course of two lessons, of which one has the exercises 'halve' and 'twice'."
    twice = exercise_cells('twice', stub='def twice(x):\n    raise NotImplementedError',
                           check='assert twice(2) == 4 and twice(3) == 6', wrong='def twice(x): return x*x',
                           solution='def twice(x): return 2*x')
    write_notebook(tmp_path/'nbs'/'01_numbers'/'00_half.ipynb', *exercise_cells(), *twice)
    write_notebook(tmp_path/'nbs'/'01_numbers'/'01_none.ipynb', new_code_cell('1'))
    (tmp_path/'nbs'/'01_numbers'/'table.csv').write_text('a,b\n')
    (tmp_path/'nbs'/'01_numbers'/'.ipynb_checkpoints').mkdir()
    (tmp_path/'nbs'/'01_numbers'/'.ipynb_checkpoints'/'00_half-checkpoint.ipynb').write_text('{')
    return tmp_path/'nbs'


def test_exercises_are_found_by_their_tags(lessons):
    assert list(find_exercises(lessons)) == ['halve', 'twice']
    assert find_exercises(lessons)['halve'].sources == HALVE


@pytest.mark.parametrize('kind', KINDS)
def test_an_incomplete_exercise_is_refused(tmp_path, kind):
    path = write_notebook(tmp_path/'a.ipynb', *exercise_cells(leave_out=[kind]))
    lacking = f"a.ipynb: exercise 'halve' has no {KINDS[kind]} cell tagged 'exercise-{kind}'"
    with pytest.raises(PPClsError, match=lacking):
        read_exercises(path)


def test_wrong_tags_are_refused(lessons, tmp_path):
    def refused(*cells):
        with pytest.raises(PPClsError) as caught:
            read_exercises(write_notebook(tmp_path/'a.ipynb', *cells))
        return str(caught.value)

    assert "exercise 'halve' has two cells tagged 'exercise-stub'" in refused(*exercise_cells(), exercise_cells()[1])
    cells = exercise_cells()
    cells[1].metadata.tags = ['exercise-stup', 'exercise:halve']
    assert "exercise 'halve': a cell has none of the tags exercise-task" in refused(*cells)
    cells[1].metadata.tags = ['exercise-stub']
    assert "a cell tagged 'exercise-stub' has no tag 'exercise:NAME'" in refused(*cells)
    write_notebook(lessons/'02_more'/'00.ipynb', *exercise_cells())
    with pytest.raises(PPClsError, match="exercise 'halve' is in .*00_half.ipynb and in .*00.ipynb"):
        find_exercises(lessons)


def test_a_folder_without_exercises_is_refused(tmp_path):
    with pytest.raises(PPClsError, match="no exercises found; expected the folder of the course's lessons"):
        find_exercises(tmp_path/'none')


# checks

@pytest.mark.parametrize('changed, fault', [
    (dict(solution=WRONG), 'the solution fails: AssertionError: half of 3 is 1.5, not 1'),
    (dict(stub=RIGHT), 'expected NotImplementedError of the stub; it passes'),
    (dict(stub='def halve(y): raise TypeError'), 'expected NotImplementedError of the stub; it TypeError'),
    (dict(wrong=RIGHT), 'expected AssertionError of the mistake; it passes'),
    (dict(wrong='1/0'), 'expected AssertionError of the mistake; it ZeroDivisionError'),
    (dict(wrong='def ('), 'expected AssertionError of the mistake; it SyntaxError')])
def test_a_careless_exercise_has_faults(lessons, changed, fault):
    exercise = find_exercises(lessons)['halve']
    assert exercise_faults(exercise) == []
    exercise.sources |= changed
    assert [fault in text for text in exercise_faults(exercise)] == [True]


def test_a_check_must_import_what_it_uses():
    answer = 'import math\nfrom math import pi\nunit = 1\ndef area(r): return pi*r*r*unit'
    assert run_check(answer, 'assert area(1) == area(-1) and unit') is None
    assert isinstance(run_check(answer, 'assert area(1) == math.pi'), NameError)
    assert isinstance(run_check(answer, 'assert area(1) == pi'), NameError)


def test_a_plain_run_passes_and_skips_checks_and_answers(tmp_path):
    parameters = new_code_cell('steps = 1', metadata={'tags': ['parameters']})
    after = new_code_cell('print(halve.__code__.co_consts)')
    path = write_notebook(tmp_path/'a.ipynb', parameters, *exercise_cells(), after)
    result = run_notebook(path, tmp_path/'out.ipynb')
    assert result.ok
    executed = [c for c in read_notebook(result.out).cells if c.cell_type == 'code' and c.execution_count]
    assert [exercise_part(cell)[1] for cell in executed] == [None, 'stub', None]


# notebooks without solutions

def test_the_copies_hold_no_answers(tmp_path):
    written = write_exercises(tmp_path/'out', ROOT/'nbs')
    assert [path.relative_to(tmp_path/'out') for path in written] == [p.relative_to(ROOT/'nbs') for p in LESSONS]
    for path, lesson in zip(written, LESSONS):
        metadata = json.dumps([cell.metadata for cell in read_notebook(path).cells])
        assert 'exercise-wrong' not in metadata
        assert 'exercise-solution' not in metadata
        assert 'source_hidden' not in metadata
        assert 'skip-execution' not in metadata
        kinds = [exercise_part(cell)[1] for cell in read_notebook(path).cells]
        assert [kind for kind in kinds if kind] == ['task', 'stub', 'hint', 'check']*len(read_exercises(lesson))
        nbformat.validate(read_notebook(path))
    assert (tmp_path/'out'/'00_tutorials'/'profiles'/'cpu.yaml').is_file()


def test_only_the_answer_can_be_edited(lessons):
    nb = without_solutions(read_notebook(lessons/'01_numbers'/'00_half.ipynb'))
    locked = {exercise_part(c)[1]: (c.metadata.deletable, c.metadata.editable) for c in nb.cells if exercise_part(c)[1]}
    assert locked == dict(task=(False, False), stub=(False, True), hint=(False, False), check=(False, False))
    assert nb.cells[4].source.startswith('assert halve(3)')
    assert 'deletable' not in nb.cells[0].metadata


def test_other_files_of_a_lesson_are_copied_and_nothing_is_overwritten(lessons, tmp_path):
    (tmp_path/'out').mkdir()
    assert [p.name for p in write_exercises(tmp_path/'out', lessons)] == ['00_half.ipynb']
    assert sorted(p.name for p in (tmp_path/'out'/'01_numbers').iterdir()) == ['00_half.ipynb', 'table.csv']
    answer = tmp_path/'out'/'01_numbers'/'00_half.ipynb'
    answer.write_text('work')
    with pytest.raises(PPClsError, match='out: already exists and may hold answers'):
        write_exercises(tmp_path/'out', lessons)
    assert answer.read_text() == 'work'
    with pytest.raises(PPClsError, match='/01_numbers/out: is inside '):
        write_exercises(lessons/'01_numbers'/'out', lessons)
    with pytest.raises(PPClsError, match='table.csv: '):
        write_exercises(lessons/'01_numbers'/'table.csv', lessons)
    assert (lessons/'01_numbers'/'table.csv').read_text() == 'a,b\n'


# judging

CHECK = HALVE['check']


@pytest.mark.parametrize('answer, check, result, reason', [
    (RIGHT, CHECK, 'passed', ''),
    (WRONG, CHECK, 'failed', 'AssertionError: half of 3 is 1.5, not 1'),
    ('def twice(x): return 5', 'n = 2\nassert twice(n) == 4\nn = 3', 'failed',
     'AssertionError in assert twice(n) == 4'),
    ('def halve(x) return x', CHECK, 'error', 'SyntaxError'),
    ('import sys; sys.exit(0)', CHECK, 'error', 'SystemExit'),
    ('%time half = 0.5\ndef halve(x): return half*x', CHECK, 'passed', ''),
    ('def halve(x):\n    raise NotImplementedError  # later', CHECK, 'not started', ''),
    ('import os\ndef halve(x): os._exit(0)', CHECK, 'died', 'the kernel process ended')])
def test_an_answer_is_judged(answer, check, result, reason):
    found = judge(answer, check)
    assert found[0] == result
    assert found[1].startswith(reason) if reason else found[1] == ''


def test_an_answer_that_never_ends_is_stopped():
    assert judge('def halve(x):\n    while True: pass', CHECK, seconds=1) == ('time limit', 'not finished within 1 s')


# grading

@pytest.fixture
def judged(monkeypatch):
    "Judges in this process; the answers that were judged."
    answers = []

    def in_process(answer, check, seconds):
        answers.append(answer)
        error = run_check(answer, check)
        return ('failed', str(error)) if error else ('passed', '')
    monkeypatch.setattr(course_exercises, 'judge', in_process)
    return answers


def answered(*answers):
    "The cells that a student hands in for the answers (name, code)."
    return [cell for name, code in answers for cell in exercise_cells(name, stub=code)]


def results(*args):
    return [(g.student, g.notebook, g.exercise, g.result) for g in grade_folder(*args)]


@pytest.mark.parametrize('file, student', [
    ('in/anna/00_half.ipynb', 'anna'),
    ('in/anna/01_numbers/00_half.ipynb', 'anna'),
    ('in/anna/work/half (copy).ipynb', 'anna'),
    ('in/anna.ipynb', 'anna'),
    ('in/00_half.ipynb', 'in'),
    ('in/01_numbers/00_half.ipynb', 'in')])
def test_whose_notebook_it_is(lessons, tmp_path, judged, file, student):
    write_notebook(tmp_path/file, *answered(('halve', RIGHT), ('twice', 'def twice(x): return x + x')))
    file = file.removeprefix('in/')
    assert results(tmp_path/'in', lessons) == [(student, file, 'halve', 'passed'), (student, file, 'twice', 'passed')]


def test_one_notebook_is_graded_too(lessons, tmp_path, judged):
    path = write_notebook(tmp_path/'anna'/'00_half.ipynb', *answered(('halve', RIGHT)))
    assert results(path, lessons)[0] == ('anna', '00_half.ipynb', 'halve', 'passed')


def test_one_failure_hides_no_other_result(lessons, tmp_path, judged):
    write_notebook(tmp_path/'in'/'anna'/'a.ipynb', *answered(('halve', '1/0'), ('twice', 'def twice(x): return 2*x')))
    (tmp_path/'in'/'ben').mkdir()
    (tmp_path/'in'/'ben'/'b.ipynb').write_text('{"cells": 3')
    write_notebook(tmp_path/'in'/'cleo'/'c.ipynb', *answered(('halve', HALVE['stub'] + '\n')))
    write_notebook(tmp_path/'in'/'dora'/'d.ipynb', new_code_cell(RIGHT))
    assert results(tmp_path/'in', lessons) == [
        ('anna', 'anna/a.ipynb', 'halve', 'failed'), ('anna', 'anna/a.ipynb', 'twice', 'passed'),
        ('ben', 'ben/b.ipynb', '', 'unreadable'),
        ('cleo', 'cleo/c.ipynb', 'halve', 'not started'), ('cleo', 'cleo/c.ipynb', 'twice', 'missing'),
        ('dora', 'dora/d.ipynb', '', 'unreadable')]
    assert judged == ['1/0', 'def twice(x): return 2*x']


def test_the_check_of_the_lessons_counts(lessons, tmp_path, judged):
    cells = exercise_cells(stub=WRONG, check='pass')
    write_notebook(tmp_path/'in'/'anna.ipynb', *cells)
    assert results(tmp_path/'in', lessons)[0] == ('anna', 'anna.ipynb', 'halve', 'failed')


def test_an_answer_may_be_split_over_cells(lessons, tmp_path, judged):
    cells = exercise_cells(stub='def half_of(x): return x/2', leave_out=['wrong', 'solution'])
    second = exercise_cells(stub='def halve(x): return half_of(x)')[1]
    write_notebook(tmp_path/'in'/'anna.ipynb', *cells[:2], second, *cells[2:])
    assert results(tmp_path/'in', lessons)[0] == ('anna', 'anna.ipynb', 'halve', 'passed')


def test_nothing_to_grade_is_an_error(lessons, tmp_path):
    with pytest.raises(PPClsError, match='none: no notebooks found; expected those that students handed in'):
        next(grade_folder(tmp_path/'none', lessons))


# the commands

def test_a_lesson_is_given_out_filled_in_and_graded(lessons, tmp_path, capsys):
    handout = tmp_path/'handed_in'/'anna'
    assert main(['exercises', str(handout), '--lessons', str(lessons)]) == 0
    assert capsys.readouterr().out == f'{handout}: 2 exercises in 1 notebooks\n'
    path = handout/'01_numbers'/'00_half.ipynb'
    path.write_text(path.read_text().replace('raise NotImplementedError', 'return x/2', 1))
    out = tmp_path/'grades.json'
    assert main(['grade', str(tmp_path/'handed_in'), '--lessons', str(lessons), '--out', str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ['anna', 'halve', 'passed'], ['anna', 'twice', 'not', 'started'], [], ['anna', '1', 'of', '2', 'passed']]
    assert [(row['exercise'], row['result']) for row in json.loads(out.read_text())] == [
        ('halve', 'passed'), ('twice', 'not started')]


def test_grades_as_csv(lessons, tmp_path, judged):
    write_notebook(tmp_path/'in'/'anna.ipynb', *answered(('halve', RIGHT)))
    grade(tmp_path/'in', lessons, out=tmp_path/'grades.csv')
    assert (tmp_path/'grades.csv').read_text().splitlines()[:2] == [
        'student,notebook,exercise,result,reason', 'anna,anna.ipynb,halve,passed,']


def test_the_summary_counts_per_student():
    grades = [Grade(student, 'a.ipynb', name, result) for student, name, result in [
        ('anna', 'x', 'passed'), ('anna', 'y', 'failed'), ('ben', 'x', 'missing'), ('ben', 'y', 'error')]]
    assert [line.split() for line in summary(grades).splitlines()] == [
        ['anna', '1', 'of', '2', 'passed'], ['ben', '0', 'of', '2', 'passed']]


def test_wrong_options_are_refused_before_anything_runs(lessons, tmp_path, judged, capsys):
    write_notebook(tmp_path/'in'/'anna.ipynb', *answered(('halve', RIGHT)))
    command = ['grade', str(tmp_path/'in'), '--lessons', str(lessons)]
    assert main([*command, '-o', 'grades.xlsx']) == 2
    assert main([*command, '--seconds', '0']) == 2
    assert main(['grade', str(tmp_path/'in'), '--lessons', str(tmp_path/'in2')]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == 'ppcls-run grade: --out grades.xlsx: expected a file name that ends with .csv or .json'
    assert errors[1] == 'ppcls-run grade: --seconds 0: expected more than 0'
    assert errors[2].endswith("in2: no exercises found; expected the folder of the course's lessons")
    assert judged == []


def test_other_arguments_of_the_command_run_notebooks(tmp_path, capsys):
    assert main([str(tmp_path/'none.ipynb'), '-o', str(tmp_path/'out')]) == 2
    assert 'none.ipynb: no such notebook' in capsys.readouterr().err


# adding one

TEXT = '''name: halve
title: half

=== task
Write `halve(x)`.

=== stub
def halve(x):
    raise NotImplementedError

=== hint
Divide.

=== check
assert halve(3) == 1.5

=== wrong
def halve(x): return x//2       # without the rest

=== solution
def halve(x): return x/2
'''


@pytest.fixture
def add(tmp_path, capsys):
    "Add the exercise in a text to a notebook with a summary at its end; (exit code, error, ids of the cells)."
    path = tmp_path/'a.ipynb'
    write_notebook(path, new_code_cell('1'), new_markdown_cell('**Take away.** Numbers.'), new_code_cell('#| hide\n2'))

    def _add(text, *options):
        (tmp_path/'a.txt').write_text(text)
        code = add_exercise.main([str(path), str(tmp_path/'a.txt'), *options])
        cells = read_notebook(path).cells
        return code, capsys.readouterr().err, [exercise_part(c)[1] or c.source for c in cells]
    return _add


PARTS = ['task', 'stub', 'hint', 'check', 'solution', 'wrong', 'solution']


def test_an_exercise_goes_before_the_summary_and_can_be_changed(add, tmp_path):
    expected = ['# Numbers', '1', *PARTS, '**Take away.** Numbers.', '#| hide\n2']
    assert add(TEXT) == (0, '', expected)
    assert add(TEXT.replace('Divide.', 'Divide by 2.')) == (0, '', expected)
    assert 'Divide by 2.' in read_exercises(tmp_path/'a.ipynb')[0].sources['hint']


def test_an_exercise_takes_the_place_of_other_cells(add, tmp_path):
    ids = [cell.id for cell in read_notebook(tmp_path/'a.ipynb').cells]
    assert add(TEXT, '--replace', ids[1], ids[2]) == (0, '', ['# Numbers', *PARTS, '#| hide\n2'])
    code, error, _ = add(TEXT, '--before', 'nowhere')
    assert code == 2
    assert 'a.ipynb: no cell has the id nowhere' in error


@pytest.mark.parametrize('change, message', [
    (('return x//2', 'return x/2'), 'expected AssertionError of the mistake; it passes'),
    (('return x/2', 'return x'), 'the solution fails'),
    (('=== hint', '=== hind'), "unknown part 'hind'; did you mean 'hint'?"),
    (('title: half', ''), 'a.txt: no title'),
    (('title:', 'titel:'), "unknown line before the first part 'titel'; did you mean 'title'?"),
    (('name: halve', 'name: Half of it'), "name 'Half of it': expected lower-case words joined by '-'")])
def test_a_wrong_text_changes_nothing(add, change, message):
    code, error, cells = add(TEXT.replace(*change))
    assert code == 2
    assert message in error
    assert len(cells) == 4
