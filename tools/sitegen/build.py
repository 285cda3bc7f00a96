"Writes the sources of the site from the executed lessons, and builds it with MkDocs."
import json, logging, posixpath, re, shutil
from dataclasses import dataclass, field
from pathlib import Path

import mathjax, nbformat
from mkdocs.commands.build import build as mkdocs_build
from mkdocs.config import load_config
from mkdocs.exceptions import MkDocsException

import ppcls_nb
from ppcls_nb.basics import PPClsError, write_text
from ppcls_nb.course.online import Repository, read_repository

from . import ROOT, api, tutorial
from .glossary import read_glossary
from .lessons import add_minutes, all_lessons, by_number, folder_title, head, lessons_that_use, table
from .links import file_address, read_documents, rewrite_links
from .notebook import to_page

WAYS = ('learner', 'user', 'contributor')


@dataclass
class Site:
    "What a build reads and where it writes: the repository's `root`, the pages' `sources` and the built `out`."
    root: Path
    sources: Path
    out: Path
    repository: Repository
    lessons: list
    pages: dict = field(default_factory=dict)

    @classmethod
    def at(cls, root: Path = ROOT, out=None, sources=None):
        "The site of the repository at `root`."
        lessons = all_lessons(root/'nbs')
        return cls(root, Path(sources or root/'.cache'/'site'/'sources'), Path(out or root/'_docs'),
                   read_repository(root/'settings.ini'), lessons)

    def add(self, page: str, text: str, files: dict = None):
        "Add a page's Markdown; `files` (name → bytes) are written beside it."
        self.pages[page] = text
        folder = (self.sources/page).parent
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in (files or {}).items():
            (folder/name).write_bytes(data)

    def source_of(self, page: str):
        "The file of the repository that the page 'FOLDER/NAME.md' or 'api/MODULE.md' is made from, or None."
        stem = page.removesuffix('.md')
        places = [f'nbs/{stem}.ipynb']
        if stem.startswith('api/'):
            module = stem.removeprefix('api/').replace('.', '/')
            places = [f'{module}.py', f'{module}/__init__.py']
        return next((place for place in places if (self.root/place).is_file()), None)

    def write_pages(self):
        "Write all pages. In a site of some pages, links to those that it lacks lead to their source in the repository."
        def change(page):
            def link(found):
                before, target, anchor, after = found.groups()
                place = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
                place = re.sub(r'\.html$', '.md', place)
                source = None if place in self.pages else self.source_of(place)
                return f'{before}{file_address(self.repository, source)}{after}' if source else found[0]
            return link
        for page, text in self.pages.items():
            text = re.sub(r'(\]\()([\w./-]+\.md)(#[^)\s]*)?(\))', change(page), text)
            text = re.sub(r'(href=")([\w./-]+\.html)(#[^"]*)?(")', change(page), text)
            write_text(self.sources/page, text + '\n')
            self.copy_pictures(page, text)

    def copy_pictures(self, page: str, text: str):
        "Copy the pictures of nbs/ that the Markdown `text` shows."
        for target in re.findall(r'!\[[^\]]*\]\(([^)\s]+)\)', text):
            place = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            file = self.root/'nbs'/place
            if file.is_file():
                (self.sources/place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.sources/place)


def lesson_page(site: Site, lesson, executed: Path, note: str = ''):
    "Write the page of a lesson from its executed notebook."
    nb = nbformat.read(executed, as_version=4)
    lesson.seconds = nb.metadata.get('seconds') or lesson.seconds
    page = to_page(nb, lesson.path.stem)
    folder = posixpath.join('nbs', lesson.folder)
    text = rewrite_links(page.text, folder, site.root, site.repository)
    sentence = f'<p class="lead" markdown>{page.sentence}</p>' if page.sentence else ''
    parts = [f'# {page.title or lesson.title}', sentence, head(lesson, site.lessons, site.repository), note, text,
             lessons_that_use(lesson, site.lessons)]
    site.add(lesson.page, '\n\n'.join(part for part in parts if part), page.files)


def documents_table(documents: dict) -> str:
    "The sections of the documents as a Markdown table."
    rows = [f'| {section.number} | [{section.title}]({section.address}) |' for section in documents.values()]
    return '\n'.join(['| section | in the repository of PaddleClas |', '|---|---|', *rows])


def hand_written_pages(site: Site, documents: dict):
    "Write the pages of nbs/pages, with minutes, the table of lessons and that of the documents filled in."
    for file in sorted((site.root/'nbs'/'pages').glob('*.md')):
        text = rewrite_links(file.read_text(encoding='utf-8'), 'nbs/pages', site.root, site.repository)
        text = text.replace('{lessons}', table(site.lessons)).replace('{documents}', documents_table(documents))
        site.add(file.name, add_minutes(text, site.lessons))


def home_page(site: Site, executed: Path):
    "Write the first page: the README, with the ways through the course after its first paragraphs."
    page = to_page(nbformat.read(executed, as_version=4), 'index')
    text = rewrite_links(page.text, 'nbs', site.root, site.repository)
    ways = '<div class="ways" markdown>\n\n' + '\n\n'.join(
        f'[**{title}**<br>{line}]({name}.md)' for name, title, line in way_titles(site)) + '\n\n</div>'
    site.add('index.md', '\n\n'.join([f'# {page.title}', f'> {page.sentence}', ways, text]), page.files)


def way_titles(site: Site) -> list:
    "(file stem, title, first sentence) of the pages that lead through the course."
    found = []
    for name in WAYS:
        text = site.pages[f'{name}.md']
        title = re.search(r'^# (.+)$', text, flags=re.M)[1]
        sentence = re.search(r'^> (.+)$', text, flags=re.M)[1]
        found.append((name, title, sentence))
    return found


def navigation(site: Site, shown: list, modules: list) -> list:
    "MkDocs' `nav`: the ways, the lessons by folder, the report, the API and the rest."
    ways = [{title: f'{name}.md'} for name, title, _ in way_titles(site)]
    folders = {}
    for lesson in shown:
        folders.setdefault(lesson.folder, []).append({lesson.title: lesson.page})
    lessons = [{folder_title(folder): pages} for folder, pages in folders.items() if folder != '00_tutorials']
    nav = [{'Home': 'index.md'}, {'Ways through': ways}]
    if '00_tutorials' in folders:
        report = [{'Report': 'report.md'}] if 'report.md' in site.pages else []
        nav.append({'Tutorials': folders['00_tutorials'] + report})
    more = [{title: page} for title, page in (('Glossary', 'glossary.md'), ('The documents', 'documents.md'))
            if page in site.pages]
    everything = [{'All lessons': 'lessons.md'}] if 'lessons.md' in site.pages else []
    nav += [{'Lessons': everything + lessons}, {'API': ['api/index.md', *({m: f'api/{m}.md'} for m in modules)]}]
    return [*nav, {'Reference': more}] if more else nav


def run_mkdocs(site: Site, nav: list):
    "Build the site from its sources; a broken link or any other warning of MkDocs is a `PPClsError`."
    logging.getLogger('mkdocs').setLevel(logging.WARNING)
    try:
        config = load_config(str(site.root/'mkdocs.yml'), docs_dir=str(site.sources), site_dir=str(site.out), nav=nav,
                             strict=True)
        config.extra['site_data'] = str(site.sources.parent/'site_data.json')
        mkdocs_build(config)
    except MkDocsException as e:
        raise PPClsError(f'mkdocs: {e}') from e


def lesson_address(site: Site, lesson) -> str:
    "The page of a lesson, relative to the site; where the site lacks it, the address of its notebook."
    if lesson.page in site.pages:
        return re.sub(r'\.md$', '.html', lesson.page)
    return file_address(site.repository, f'nbs/{lesson.path.as_posix()}')


def write_site_data(site: Site, documents: dict, symbols: dict):
    "Write what the hooks of MkDocs need: terms, sections of the documents, lessons and public names, with addresses."
    glossary = site.root/'nbs'/'pages'/'glossary.md'
    terms = read_glossary(glossary.read_text(encoding='utf-8')) if glossary.exists() else []
    sections = {number: section.address for number, section in documents.items()}
    numbered = by_number(site.lessons).items()
    lessons = {number: (lesson_address(site, lesson), lesson.title) for number, lesson in numbered}
    data = dict(terms=[vars(term) for term in terms], sections=sections, lessons=lessons, symbols=symbols)
    write_text(site.sources.parent/'site_data.json', json.dumps(data))


def copy_assets(folder: Path):
    "Copy the style sheet and MathJax, from its Python package, to `folder`."
    shutil.copytree(Path(__file__).with_name('assets'), folder)
    package = Path(mathjax.__file__).parent/'static'/'mathjax'/'es5'
    for name in ('tex-chtml.js', 'output/chtml/fonts/woff-v2'):
        target = folder/'mathjax'/name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (package/name).is_dir():
            shutil.copytree(package/name, target)
        else:
            shutil.copy(package/name, target)


def build(site: Site, executed: dict, run, modules=None, home: Path = None):
    """Build the site. `executed` maps notebooks to executed ones; `run` is the `TutorialRun` or None; `modules`: those
    with a page (None: all); `home`: the executed nbs/index.ipynb."""
    shutil.rmtree(site.sources, ignore_errors=True)
    documents = read_documents(site.root/'nbs'/'pages'/'documents.yaml')
    shown = []
    for lesson in site.lessons:
        notebook = site.root/'nbs'/lesson.path
        if run and notebook in run.executed:
            lesson.seconds = run.seconds[notebook.stem]
            lesson_page(site, lesson, run.executed[notebook], tutorial.note(run, notebook))
        elif notebook in executed:
            lesson_page(site, lesson, executed[notebook])
        else: continue
        shown.append(lesson)
    if run:
        text, files = tutorial.report_page(run)
        site.add('report.md', text, files)
    hand_written_pages(site, documents)
    if home:
        home_page(site, home)
    pages, symbols = api.all_pages(ppcls_nb, site.lessons, site.repository, site.root, modules)
    for page, text in pages.items():
        site.add(page, text)
    write_site_data(site, documents, symbols)
    site.write_pages()
    copy_assets(site.sources/'assets')
    names = sorted(page.removeprefix('api/').removesuffix('.md') for page in pages if page != 'api/index.md')
    run_mkdocs(site, navigation(site, shown, names))
