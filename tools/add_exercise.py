"""Adds an exercise to a notebook from a text file, or replaces the one of the same name.

    python tools/add_exercise.py nbs/04_train/00_losses.ipynb smoothed-target.txt [--replace ID ...] [--before ID]

The file starts with the lines `name: NAME` and `title: TITLE`; then each part follows a line `=== PART`, where PART is
task, stub, hint, check, wrong or solution. Nothing is written unless the solution passes the check, and the stub and
the typical mistake (wrong) fail it."""
import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

from ppcls_nb.basics import PPClsError, suggest, write_text
from ppcls_nb.course.exercises import KINDS, Exercise, exercise_faults, read_exercises

HEADERS = ('name', 'title')
NOTE = 'Folded below: a typical mistake, then a solution. Click on the three dots to see one.'
CHECK_TAGS = ('skip-execution', 'raises-exception')
ENDINGS = r'(\*\*Take away|#+ (Summary|What to read))'      # a notebook's last cells, after its exercises


def read_text_file(path) -> dict:
    "The parts of an exercise in the text file `path`: name, title and every kind of cell → text."
    head, *sections = re.split(r'^=== *', Path(path).read_text(encoding='utf-8'), flags=re.M)
    parts = {}
    for line in filter(str.strip, head.splitlines()):
        key, _, value = line.partition(':')
        if key.strip() not in HEADERS:
            raise PPClsError(f"{path}: {suggest(key.strip(), HEADERS, 'line before the first part')}")
        parts[key.strip()] = value.strip()
    for section in sections:
        kind, _, text = section.partition('\n')
        if kind.strip() not in KINDS:
            raise PPClsError(f"{path}: {suggest(kind.strip(), KINDS, 'part')}")
        parts[kind.strip()] = text.strip('\n')
    missing = [key for key in (*HEADERS, *KINDS) if not parts.get(key)]
    if missing:
        raise PPClsError(f"{path}: no {', '.join(missing)}")
    if not re.fullmatch(r'[a-z0-9]+(-[a-z0-9]+)*', parts['name']):
        raise PPClsError(f"{path}: name '{parts['name']}': expected lower-case words joined by '-', "
                         'such as top-k-accuracy')
    return parts


def exercise_sources(parts: dict, level: str = '##') -> dict:
    "The text of each kind of cell; `level` is that of the heading."
    return {
        **{kind: parts[kind] for kind in KINDS},
        'task': f"{level} Exercise: {parts['title']}\n\n{parts['task']}",
        'hint': f"<details><summary>Hint</summary>\n\n{parts['hint']}\n\n</details>",
        'check': f"#| eval: false\n{parts['check']}\nprint('Correct.')",
        'wrong': f"#| eval: false\n{parts['wrong']}",
        'solution': f"#| eval: false\n{parts['solution']}"}


def exercise_cells(name: str, sources: dict) -> list:
    "The seven cells of an exercise as JSON."
    def cell(kind, cell_type, source, more=()):
        digest = hashlib.sha1(f'{name} {kind} {cell_type}'.encode()).hexdigest()[:8]
        metadata = {'tags': [f'exercise-{kind}', f'exercise:{name}', *more]}
        if cell_type == 'code' and kind in ('wrong', 'solution'):
            metadata = {'jupyter': {'source_hidden': True}, **metadata}
        code = {'execution_count': None, 'outputs': []} if cell_type == 'code' else {}
        return {'cell_type': cell_type, 'id': digest, 'metadata': metadata, **code,
                'source': source.splitlines(keepends=True)}

    more = dict(check=CHECK_TAGS, wrong=CHECK_TAGS[:1], solution=CHECK_TAGS[:1])
    cells = {kind: cell(kind, KINDS[kind], sources[kind], more.get(kind, ())) for kind in KINDS}
    note = cell('solution', 'markdown', NOTE)
    return [*(cells[kind] for kind in ('task', 'stub', 'hint', 'check')), note, cells['wrong'], cells['solution']]


def is_ending(cell: dict) -> bool:
    "Whether `cell` belongs after the exercises: the summary, or a hidden cell that removes files."
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'code':
        return source.startswith('#| hide')
    return bool(re.match(ENDINGS, source))


def insert(nb: dict, parts: dict, replace=(), before: str | None = None, path='the notebook') -> dict:
    "Insert the exercise into the notebook `nb` (JSON), in place of one with its name or of the cells `replace`."
    ids = [cell.get('id') for cell in nb['cells']]
    for wanted in (*replace, *([before] if before else [])):
        if wanted not in ids:
            raise PPClsError(f'{path}: no cell has the id {wanted}')
    tag = f"exercise:{parts['name']}"
    old = [i for i, cell in enumerate(nb['cells'])
           if tag in cell['metadata'].get('tags', []) or cell.get('id') in replace]
    if old:
        place = old[0]
    elif before:
        place = ids.index(before)
    else:
        place = len(nb['cells'])
        while place and is_ending(nb['cells'][place - 1]):
            place -= 1
    heading = re.match('#{2,4}(?= )', ''.join(nb['cells'][old[0]]['source'])) if old else None
    cells = exercise_cells(parts['name'], exercise_sources(parts, heading.group() if heading else '##'))
    rest = [cell for i, cell in enumerate(nb['cells']) if i not in old]
    return {**nb, 'cells': rest[:place] + cells + rest[place:]}


def main(argv=None) -> int:
    "Returns the exit code."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('notebook')
    parser.add_argument('text')
    parser.add_argument('--replace', nargs='+', default=[], metavar='ID', help='cells that the exercise replaces')
    parser.add_argument('--before', metavar='ID', help='the cell before which to insert it (default: at the end)')
    args = parser.parse_args(argv)
    try:
        parts = read_text_file(args.text)
        faults = exercise_faults(Exercise(parts['name'], Path(args.text), exercise_sources(parts)))
        if faults:
            raise PPClsError('; '.join(faults))
        nb = json.loads(Path(args.notebook).read_text(encoding='utf-8'))
        nb = insert(nb, parts, args.replace, args.before, args.notebook)
        write_text(args.notebook, json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n')
        print(f"{args.notebook}: exercises {', '.join(e.name for e in read_exercises(args.notebook))}")
    except (PPClsError, OSError) as e:
        print(f'add_exercise: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
