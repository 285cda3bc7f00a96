"Where the links of a page lead: to other pages, to the repository, to the 2020 manual of PaddleClas."
import os.path, posixpath, re
from dataclasses import dataclass
from pathlib import Path

import yaml

from ppcls_nb.course.online import Repository

PICTURES = ('.png', '.jpg', '.svg', '.gif')
CODE = re.compile(r'(^(`{3,}).*?^\2`*\s*$|`[^`\n]+`)', flags=re.S | re.M)


def file_address(repository: Repository, path: str) -> str:
    "The address of the file `path` (relative to the repository) on GitHub."
    return f'{repository.url}/blob/{repository.branch}/{path}'


def open_in(repository: Repository, notebook: str) -> dict:
    "Name → address of the places where a notebook, such as 'nbs/01_data/01_basics.ipynb', can be run."
    return {'JupyterLab': 'http://localhost:8888/lab/tree/' + notebook.removeprefix('nbs/'),
            'Colab': repository.colab_url(notebook),
            'Binder': repository.binder_url(notebook),
            'Codespaces': repository.codespaces_url}


def outside_code(text: str, change) -> str:
    "Markdown `text` with `change(part)` in place of every part that is not code."
    parts, last = [], 0
    for code in CODE.finditer(text):
        parts += [change(text[last:code.start()]), code[0]]
        last = code.end()
    return ''.join([*parts, change(text[last:])])


def page_link(target: str, folder: str, root: Path, repository: Repository) -> str:
    """The link of a page for `target`, the link of a source in `folder` (relative to `root`, such as 'nbs/01_data').

    Notebooks and Markdown in nbs/ are pages, pictures in nbs/ lie beside them, and modules have a page of the API;
    other files are in the repository."""
    path, mark, anchor = target.partition('#')
    if not path or re.match(r'\w+:|/', target):
        return target
    place = posixpath.normpath(posixpath.join(folder, path))
    here = posixpath.relpath(folder, 'nbs')
    if place.startswith('nbs/') and place.endswith(('.ipynb', '.md')):
        page = place.removeprefix('nbs/').removeprefix('pages/')
        page = re.sub(r'\.ipynb$', '.md', page)
    elif place.startswith('nbs/') and place.endswith(PICTURES):
        page = place.removeprefix('nbs/')
    elif place.startswith('ppcls_nb/') and place.endswith('.py'):
        module = place.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
        page = f'api/{module}.md'
    else:
        return file_address(repository, place) if (root/place).exists() else target
    here = '.' if here in ('pages', '.') else here
    return posixpath.relpath(page, here) + mark + anchor


def rewrite_links(text: str, folder: str, root: Path, repository: Repository) -> str:
    "Markdown `text` from `folder` with the links of its page."
    def change(part):
        def link(found):
            return f']({page_link(found[1], folder, root, repository)})'
        return re.sub(r'\]\(([^)\s]+)\)', link, part)
    return outside_code(text, change)


def github_anchor(heading: str) -> str:
    "The anchor that GitHub gives a heading."
    return re.sub(r'[^\w\- ]', '', heading.strip().lower()).replace(' ', '-')


@dataclass
class Section:
    "A section of the documents: its number, title and address."
    number: str
    title: str
    address: str


def read_documents(file: Path) -> dict:
    "Number → `Section` of the documents, from the table in `file`."
    table = yaml.safe_load(file.read_text(encoding='utf-8'))
    found = {}
    for chapter in table['pages']:
        address = f"{table['repository']}/blob/{chapter['commit']}/{chapter['path']}"
        number = str(chapter['number'])
        found[number] = Section(number, chapter['title'], address)
        for end, heading in enumerate(chapter.get('headings', []), 1):
            anchored = f'{address}#{github_anchor(heading)}'
            found[f'{number}.{end}'] = Section(f'{number}.{end}', re.sub(r'^[\d一二三四五六七八九.、 ]+', '', heading), anchored)
    return found


def find_section(documents: dict, number: str):
    "The `Section` of a number such as '3.2.4', or of the chapter above it, or None."
    while number:
        if number in documents:
            return documents[number]
        number = number.rpartition('.')[0]
    return None


def relative(page: str, target: str) -> str:
    "The link from the file `page` to the file `target`, both relative to the site."
    return os.path.relpath(target, os.path.dirname(page) or '.').replace(os.sep, '/')
