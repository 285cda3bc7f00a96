"The house rules of nbs/: arrows point one way, one notebook exports one module, cells and modules stay small."
import ast, json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').glob('*/*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def cells(notebook):
    "Sources of the code cells."
    return [
        ''.join(c['source'])
        for c in json.loads(notebook.read_text(encoding='utf-8'))['cells']
        if c['cell_type'] == 'code']


def exports(notebook): return [s for s in cells(notebook) if s.startswith(('#| export\n', '#| exporti\n'))]


def module_of(notebook):
    "The dotted module a notebook exports, or None."
    names = [s.split()[-1] for s in cells(notebook) if s.startswith('#| default_exp')]
    assert len(names) <= 1, f'{notebook.name}: one notebook, one module'
    return f'ppcls_nb.{names[0]}'.removesuffix('.__init__') if names else None


MODULES = {m: n for n in NOTEBOOKS if (m := module_of(n))}
LIBRARY = list(MODULES.values())


def imported(notebook):
    "Modules of the package that the exported cells import."
    found = set()
    for node in (n for source in exports(notebook) for n in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {sub if (sub := f'{node.module}.{a.name}') in MODULES else node.module for a in node.names}
    return found & MODULES.keys() - {'ppcls_nb'}


def test_every_module_has_its_own_notebook():
    assert len(MODULES) == len({m for n in NOTEBOOKS if (m := module_of(n))}) == len(LIBRARY)


@pytest.mark.parametrize('notebook', LIBRARY, ids=lambda n: f'{n.parent.name}/{n.stem}')
def test_nothing_imports_upwards(notebook):
    above = [m for m in imported(notebook) if MODULES[m] >= notebook]
    assert not above, f'{notebook.name} imports {above}, which a reader meets later'


@pytest.mark.parametrize('notebook', LIBRARY, ids=lambda n: f'{n.parent.name}/{n.stem}')
def test_exported_cells_and_modules_stay_small(notebook):
    sizes = [s.count('\n') + 1 for s in exports(notebook)]
    assert max(sizes) <= 60
    assert sum(sizes) <= 400


@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda n: f'{n.parent.name}/{n.stem}')
def test_committed_without_outputs(notebook):
    assert all(not c['outputs'] and c['execution_count'] is None
               for c in json.loads(notebook.read_text(encoding='utf-8'))['cells']
               if c['cell_type'] == 'code')
