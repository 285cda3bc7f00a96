"""The rules of nbs/: imports point one way, one notebook exports one module, lines, cells and modules stay small, and
every exported cell is introduced."""
import ast
import inspect
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from ppcls_nb.cli import COMMANDS, FUNCTIONS, command_parser

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').glob('*/*.ipynb') if '.ipynb_checkpoints' not in p.parts)
SCRIPTS = sorted(p for folder in ('tests', 'benchmarks', 'tools') for p in (ROOT/folder).rglob('*.py'))
COLUMNS = 120
EXPORTS = ('#| export\n', '#| exporti\n')


def name_of(path):
    "Folder and file, for the ids of tests."
    return f'{path.parent.name}/{path.stem}'


def cells(notebook):
    "(kind, source) of the cells."
    return [(c['cell_type'], ''.join(c['source'])) for c in json.loads(notebook.read_text(encoding='utf-8'))['cells']]


def code_cells(notebook):
    "Sources of the code cells."
    return [source for kind, source in cells(notebook) if kind == 'code']


def exported_cells(notebook):
    "Sources of the cells that nbdev exports."
    return [source for source in code_cells(notebook) if source.startswith(EXPORTS)]


def module_of(notebook):
    "The dotted module a notebook exports, or None."
    names = [source.split()[-1] for source in code_cells(notebook) if source.startswith('#| default_exp')]
    assert len(names) <= 1, f'{notebook.name}: one notebook, one module'
    return f'ppcls_nb.{names[0]}'.removesuffix('.__init__') if names else None


EXPORTED = [(module_of(notebook), notebook) for notebook in NOTEBOOKS]
MODULES = {module: notebook for module, notebook in EXPORTED if module}
LIBRARY = list(MODULES.values())
every_notebook = pytest.mark.parametrize('notebook', NOTEBOOKS, ids=name_of)
every_module = pytest.mark.parametrize('notebook', LIBRARY, ids=name_of)


def syntax(notebook):
    "The syntax nodes of the exported cells."
    return [node for source in exported_cells(notebook) for node in ast.walk(ast.parse(source))]


def imported(notebook):
    "Modules of the package that the exported cells import."
    found = set()
    for node in syntax(notebook):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = f'{node.module}.{alias.name}'
                found.add(module if module in MODULES else node.module)
    return found & MODULES.keys() - {'ppcls_nb'}


def dynamic_imports(notebook):
    "Names of the functions called in exported cells that import a module by a string."
    called = [node.func for node in syntax(notebook) if isinstance(node, ast.Call)]
    names = [getattr(function, 'id', getattr(function, 'attr', '')) for function in called]
    return [name for name in names if name in ('import_module', '__import__')]


def test_every_module_has_its_own_notebook():
    count = Counter(module for module, _ in EXPORTED if module)
    assert [module for module, notebooks in count.items() if notebooks > 1] == []


@every_module
def test_nothing_imports_upwards(notebook):
    above = [module for module in imported(notebook) if MODULES[module] >= notebook]
    assert not above, f'{notebook.name} imports {above}, which a reader meets later'


# an optional package that is named by what the user has; commands, whose table says in which module each is
DYNAMIC = {'ppcls_nb.cli'}


@every_module
def test_imports_are_ordinary_ones(notebook):
    if module_of(notebook) not in DYNAMIC:
        assert dynamic_imports(notebook) == []


def test_an_import_by_a_string_is_seen(tmp_path):
    cell = {'cell_type': 'code', 'source': ["#| export\nfrom importlib import import_module\nx = import_module('y')"]}
    (tmp_path/'a.ipynb').write_text(json.dumps({'cells': [cell]}))
    assert dynamic_imports(tmp_path/'a.ipynb') == ['import_module']


@every_module
def test_exported_cells_and_modules_stay_small(notebook):
    sizes = [source.count('\n') + 1 for source in exported_cells(notebook)]
    assert max(sizes) <= 60
    assert sum(sizes) <= 400


def too_long(text):
    "Lines with more than `COLUMNS` characters, but for addresses, which cannot be broken."
    return [line for line in text.split('\n') if len(line) > COLUMNS and '://' not in line]


@every_notebook
def test_code_is_not_wider_than_120_columns(notebook):
    assert [line for source in code_cells(notebook) for line in too_long(source)] == []


@pytest.mark.parametrize('script', SCRIPTS, ids=name_of)
def test_scripts_are_not_wider_than_120_columns(script):
    assert too_long(script.read_text(encoding='utf-8')) == []


def shares_its_line(statement, source):
    "Whether something else is on the line on which a statement begins."
    return bool(source.split('\n')[statement.lineno - 1].encode()[:statement.col_offset].strip())


@every_notebook
def test_a_raise_has_its_own_line(notebook):
    for source in code_cells(notebook):
        try:
            nodes = ast.walk(ast.parse(source))
        except SyntaxError:      # a cell of another language, or one with a magic
            continue
        assert [n.lineno for n in nodes if isinstance(n, ast.Raise) and shares_its_line(n, source)] == []


@every_module
def test_a_network_is_computed_without_super(notebook):
    "Paddle 2.6 cannot compile a `forward` with `super()`."
    forwards = [node for node in syntax(notebook) if isinstance(node, ast.FunctionDef) and node.name == 'forward']
    names = [node.id for forward in forwards for node in ast.walk(forward) if isinstance(node, ast.Name)]
    assert 'super' not in names


@every_module
def test_a_module_is_described_in_one_sentence(notebook):
    first = cells(notebook)[0][1]
    quoted = [line for line in first.split('\n') if line.startswith('> ')]
    assert len(quoted) == 1, 'nbdev takes one line as the docstring of the module'
    assert quoted[0].endswith('.')
    assert len(quoted[0]) <= COLUMNS


def assertions(source):
    "How many statements of a cell check something."
    return sum(line.lstrip().startswith(('assert ', 'with pytest.raises')) for line in source.split('\n'))


@every_notebook
def test_cells_of_assertions_are_short(notebook):
    lengths = [source.count('\n') + 1 for source in code_cells(notebook) if assertions(source) > 3]
    assert [length for length in lengths if length > 10] == []


DRAW = re.compile(r'\bpaddle\.(rand|randn|randint|uniform|normal|randperm|standard_normal)\(')
SEED = re.compile(r'\bseed\(\d')


@every_notebook
def test_a_lesson_that_draws_is_seeded_first(notebook):
    "An assertion about numbers that are drawn without a seed fails once in many runs."
    source = '\n'.join(source for source in code_cells(notebook) if not source.startswith(EXPORTS))
    draw, seed = DRAW.search(source), SEED.search(source)
    assert draw is None or (seed and seed.start() < draw.start()), 'expected paddle.seed(0) after the imports'


def has_only_imports(source):
    "Whether a cell imports and sets names, and defines nothing."
    allowed = ast.Import, ast.ImportFrom, ast.Assign, ast.If, ast.Try
    return all(isinstance(node, allowed) for node in ast.parse(source).body)


@every_module
def test_an_exported_cell_is_introduced(notebook):
    before, bare = '', []
    for kind, source in cells(notebook):
        if source.startswith(EXPORTS) and before != 'markdown' and not has_only_imports(source):
            bare.append(source.split('\n')[1])
        before = kind
    assert bare == []


@every_notebook
def test_a_lesson_ends_in_a_summary(notebook):
    "Three points, and a link to what to read next."
    end = [source for kind, source in cells(notebook) if kind == 'markdown'][-1]
    assert end.startswith('## Summary\n')
    assert len(re.findall('^- ', end, re.M)) == 3
    target = re.search(r'^\*\*Next\*\*: \[[^]]+\]\(([^)]+)\)', end, re.M)
    assert (notebook.parent/target[1]).is_file()


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', 'data/README.md'])
def test_links_of_a_page_of_the_repository_lead_to_files(page):
    file = ROOT/page
    text = file.read_text(encoding='utf-8')
    targets = [target.partition('#')[0] for target in re.findall(r']\(([^)\s]+)\)', text)]
    assert [t for t in targets if t and not re.match(r'\w+:', t) and not (file.parent/t).exists()] == []
    paths = re.findall(r'`((?:nbs|tests|tools|benchmarks)/[\w./-]+\.\w+)', text)
    example = 'nbs/FOLDER/NN_name.ipynb'
    assert [path for path in paths if path != example and not (ROOT/path).exists()] == []


@every_notebook
def test_committed_without_outputs(notebook):
    code = [c for c in json.loads(notebook.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    assert all(not c['outputs'] and c['execution_count'] is None for c in code)


@pytest.mark.parametrize('script', [s for s in SCRIPTS if s.parent.name == 'tests'], ids=name_of)
def test_no_test_imports_a_test(script):
    nodes = ast.walk(ast.parse(script.read_text(encoding='utf-8')))
    names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    assert [name for name in names if name.startswith('test_')] == []


@pytest.mark.parametrize('name', COMMANDS)
def test_an_option_is_a_parameter_of_its_command(name):
    parser = command_parser(name)
    options = {action.dest for action in parser._actions} - {'help'}
    assert options == inspect.signature(FUNCTIONS[name]).parameters.keys()
    required = {action.dest for action in parser._actions if action.required}
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    assert required == {key for key, parameter in parameters.items() if parameter.default is parameter.empty}
