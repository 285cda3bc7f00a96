"The table of requirements (facts/requirements.csv) against the code: what a row names exists."
import ast
from collections import Counter
from importlib import import_module
from pathlib import Path

import ppcls_nb  # before paddle: sets the threads
import pytest

from ppcls_nb.basics import PPClsError, fact_rows
from ppcls_nb.cli import COMMANDS, command_parser
from ppcls_nb.models.registry import WEIGHTS
from ppcls_nb.recipe.load import find_config
from ppcls_nb.recipe.schema import declared_keys

ROOT = Path(__file__).resolve().parent.parent
ROWS = fact_rows('requirements')
STATUS = ('done', 'differently', 'not here', 'open')
# sections of the documents; each has a row, all but their overviews and lists of contents
SECTIONS = """1.1.2 1.1.3 1.2.1 1.2.2 1.2.3 1.3.2 1.4.2 1.5.1 1.5.2 1.5.3 2.1.1 2.1.2 2.1.3 2.1.4 2.2.1 2.2.2 2.2.3
    2.2.4 2.2.5 2.2.6 2.2.7 2.2.8 2.2.9 2.2.10 3.1.2 3.1.3 3.1.4 3.1.5 3.1.6 3.1.7 3.2.1 3.2.2 3.2.3 3.2.4 3.2.5 3.2.6
    4.1.1 4.1.2 4.1.3 4.2.1 4.2.2 5.1.1 5.1.2 5.1.3 5.1.4 5.1.5 5.2.2 5.3 5.4 5.5 5.6.2 6 7 8""".split()
SECTIONS += [f'2.{family}.{part}' for family in range(3, 11) for part in range(1, 5)]


def option_exists(name):
    "Whether COMMAND/--option is an option of a command."
    command, _, option = name.partition('/')
    return command in COMMANDS and option in command_parser(command)._option_string_actions


def attribute_exists(name):
    "Whether module.attribute can be imported."
    module, _, attribute = name.rpartition('.')
    try:
        return hasattr(import_module(module), attribute)
    except ModuleNotFoundError:
        return False


def fact_exists(name):
    try:
        return bool(fact_rows(name))
    except FileNotFoundError:
        return False


def recipe_exists(name):
    try:
        return find_config(name).is_file()
    except PPClsError:
        return False


def test_exists(name):
    "Whether a test file exists, and defines the function after ::, if any."
    file, _, function = name.partition('::')
    path = ROOT/'tests'/file
    if not path.is_file():
        return False
    defined = {node.name for node in ast.parse(path.read_text(encoding='utf-8')).body
               if isinstance(node, ast.FunctionDef)}
    return not function or function in defined


test_exists.__test__ = False      # a helper, no test
KINDS = {
    'nb': lambda name: (ROOT/'nbs'/f'{name}.ipynb').is_file(),
    'file': lambda name: (ROOT/name).is_file(),
    'test': test_exists,
    'cmd': lambda name: name in COMMANDS,
    'opt': option_exists,
    'api': attribute_exists,
    'key': lambda name: name in declared_keys(),
    'recipe': recipe_exists,
    'weights': lambda name: name in WEIGHTS,
    'fact': fact_exists}


def references(row):
    "(kind, name) of everything that a row names."
    return [reference.split(':', 1) for reference in row['where'].split()]


@pytest.mark.parametrize('kind', KINDS)
def test_what_a_requirement_names_exists(kind):
    names = {(row['requirement'], name) for row in ROWS for found, name in references(row) if found == kind}
    assert len(names) > 5
    assert [pair for pair in sorted(names) if not KINDS[kind](pair[1])] == []


@pytest.mark.parametrize('kind, name', [
    ('nb', '05_distill/00_sslx'), ('file', 'setup.pyx'), ('test', 'test_zoo.py::test_nothing'), ('cmd', 'trian'),
    ('opt', 'train/--confix'), ('api', 'ppcls_nb.data.imaug.Cutoff'), ('api', 'ppcls_nb.nothing.at_all'),
    ('key', 'TRAIN.batch'), ('recipe', 'ResNet/ResNet51'), ('weights', 'ResNet51'), ('fact', 'nothing')])
def test_what_does_not_exist_is_found(kind, name):
    assert not KINDS[kind](name)


def test_rows_are_complete():
    assert all(row['requirement'] and row['where'] and row['status'] in STATUS for row in ROWS)
    assert {kind for row in ROWS for kind, _ in references(row)} == set(KINDS)
    assert [row['requirement'] for row in ROWS if row['status'] != 'done' and not row['note']] == []


def test_no_requirement_is_there_twice():
    pairs = Counter((row['section'], row['requirement']) for row in ROWS)
    assert [pair for pair, count in pairs.items() if count > 1] == []


def test_every_section_of_the_documents_has_a_row():
    assert {row['section'] for row in ROWS} == set(SECTIONS)


def test_every_official_weight_key_and_recipe_of_the_quick_start_is_named():
    named = Counter(reference for row in ROWS for reference in row['where'].split())
    # those of the documents have an archive of 2020
    assert [tag for tag, record in WEIGHTS.items() if f'weights:{tag}' not in named and record.legacy_url] == []
    documented = {row['key'] for row in fact_rows('documents_keys') if row['section'] == 'basic'}
    assert documented == {row['requirement'].removeprefix('Key ') for row in ROWS if row['section'] == '1.5.1'}
    recipes = {row['recipe'].removesuffix('.yaml') for row in fact_rows('documents_quick_start')}
    assert {f'recipe:quick_start/{recipe}' for recipe in recipes} <= set(named)


def test_every_printed_table_is_named():
    tables = {path.stem for path in (ROOT/'ppcls_nb'/'facts').glob('documents_*.csv')}
    assert tables <= {name for row in ROWS for kind, name in references(row) if kind == 'fact'}
