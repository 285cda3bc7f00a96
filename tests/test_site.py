"""The site that `make docs` builds: what becomes of a notebook, links, terms and sections, and a small site in a
browser."""
import inspect, json, pkgutil, re, sys, tempfile
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import nbformat, pytest, yaml
from browser import needs_chromium

pytest.importorskip('mkdocs', reason="needs the extra docs: pip install -e '.[docs]'")
ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT/'tools'))
from bs4 import BeautifulSoup  # noqa: E402
from sitegen import api, check, glossary, hooks, lessons, links, notebook, tutorial  # noqa: E402
from sitegen.build import Site, build  # noqa: E402
from sitegen.execute import execute_all, is_run  # noqa: E402

import ppcls_nb  # noqa: E402
from ppcls_nb.course.online import Repository  # noqa: E402

REPOSITORY = Repository('ada', 'flowers', 'main', ('3.11',))
LESSONS = lessons.all_lessons(ROOT/'nbs')
PAGES = ROOT/'nbs'/'pages'


def code(source, outputs=(), **metadata):
    cell = nbformat.v4.new_code_cell(source, metadata=metadata)
    cell.outputs = [nbformat.v4.new_output('stream', text=text) for text in outputs]
    return cell


def page_of(*cells):
    "The Markdown of a page made from a notebook of these cells; a text is a Markdown cell."
    made = [nbformat.v4.new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    return notebook.to_page(nbformat.v4.new_notebook(cells=made), 'a').text


def soup_of(html):
    return BeautifulSoup(html, 'html.parser')


def test_directives_and_hidden_cells_are_not_shown():
    text = page_of('# A\n\n> B.', code('#| export\ndef shown(): pass'),
                   code('#| hide\nimport hidden', ['hidden output']))
    assert 'def shown(): pass' in text
    assert '#|' not in text
    assert 'hidden' not in text


def test_solutions_are_folded_and_wrong_answers_left_out():
    text = page_of('# A', '## Exercise', code('#| hide\nold_answer = 1'), '## Next',
                   code('new_answer = 2', tags=['exercise-solution']), code('wrong = 3', tags=['exercise-wrong']))
    folded = re.findall(r'<details class="solution" markdown>.*?</details>', text, flags=re.S)
    assert ['old_answer' in folded[0], 'new_answer' in folded[1]] == [True, True]
    assert 'wrong' not in text


def test_progress_bars_are_not_shown():
    bar = 'before\n  0%|          | 0/3 [00:00<?, ?it/s]\r100%|██████████| 3/3 [00:01<00:00, 2.9it/s]\nafter\n'
    shown = page_of('# A', code('run()', [bar]))
    assert 'before\nafter' in shown
    assert 'it/s' not in shown


def test_paths_of_this_machine_are_not_shown():
    root, temporary = notebook.ROOT, tempfile.mkdtemp()
    Path(temporary).rmdir()
    for text, shown in ((f'{temporary}/a/b.jpg: torn', 'a/b.jpg: torn'), (f'in {temporary}', 'in .'),
                        (f'{root}/data/x', 'data/x'), (f'{Path.home()}/.cache/y', '~/.cache/y'),
                        (f'{tempfile.gettempdir()}/tmp/x', f'{tempfile.gettempdir()}/tmp/x')):
        assert shown in notebook.preformatted(text)
        assert f'>{shown}<' in notebook.clean_html(f'<td>{text}</td>')


def test_cells_that_nbdev_does_not_test_are_not_run():
    assert is_run(code('x = 1'))
    assert not is_run(code('#| eval: false\nraise'))


@pytest.mark.parametrize('target,page', [
    ('../03_models/14_resnet.ipynb#why', '../03_models/14_resnet.md#why'),
    ('../../ppcls_nb/data/lists.py', '../api/ppcls_nb.data.lists.md'),
    ('../../Makefile', 'https://github.com/ada/flowers/blob/main/Makefile'),
    ('../images/tutorial.png', '../images/tutorial.png'),
    ('https://arxiv.org/abs/1512.03385', 'https://arxiv.org/abs/1512.03385')])
def test_links_of_a_notebook_lead_to_pages(target, page):
    assert links.rewrite_links(f'[a]({target})', 'nbs/01_data', ROOT, REPOSITORY) == f'[a]({page})'


def test_links_in_code_stay():
    assert links.rewrite_links('`[a](b.ipynb)`', 'nbs/01_data', ROOT, REPOSITORY) == '`[a](b.ipynb)`'


def test_the_first_use_of_a_term_is_linked():
    terms = glossary.read_glossary('stem, stems { #stem }\n:   The first layers. They are few.\n')
    before = '<h2>Stem</h2><p><code>stem</code> <em>A stem</em> <span class="arithmatex">stem</span>'
    soup = soup_of(f'{before} The stem and the stems; systems.</p>')
    glossary.link_terms(soup, terms, '../glossary.html')
    assert [(a.get_text(), a['href'], a['title']) for a in soup.find_all('a')] == [
        ('stem', '../glossary.html#stem', 'The first layers.')]
    assert str(soup).index('<a') > str(soup).index('</span>')


def test_sections_of_the_documents_are_linked():
    documents = links.read_documents(PAGES/'documents.yaml')
    soup = soup_of('<p>Documents 3.2.4 need Paddle 3.2.4 <code>3.2.4</code>.</p><p>Paddle 3.2.4 alone.</p>')
    hooks.link_sections(soup, {number: section.address for number, section in documents.items()})
    first = soup.find('a')
    assert first.get_text() == '3.2.4'
    assert re.search(r'/PaddleClas/blob/[0-9a-f]{40}/docs/en/\S+#\S+$', first['href'])
    assert not soup.find_all('p')[1].find('a')


SECTIONS = {number: section.address for number, section in links.read_documents(PAGES/'documents.yaml').items()}


def linked_sections(html, documents='<p>The documents say it.</p><p>Not here.</p>'):
    "The numbers that become links to the documents in `html`, on a page that names them with the text `documents`."
    soup = soup_of(documents + html)
    hooks.link_sections(soup, SECTIONS)
    return [a.get_text() for a in soup.find_all('a') if a.get('href') == SECTIONS.get(a.get_text())]


@pytest.mark.parametrize('html,numbers', [
    ('<p>What the documents say:</p><ul><li>2.2.9: few images.</li><li>a<ul><li>3.2.4: rates.</li></ul></li></ul>',
     ['2.2.9', '3.2.4']),
    ('<ol><li>The documents do this.</li><li><p>5.1.2 does that.</p></li></ol>', ['5.1.2']),
    ('<table><tr><th></th><th>in the documents</th></tr><tr><td>5.1.1</td><td><code>5.1.3</code></td></tr></table>',
     ['5.1.1']),
    ('<p>Of the documents:</p><table><tr><th>fixed (4.1.2)</th><td>5.1.3</td></tr></table>', ['4.1.2', '5.1.3']),
    ('<p>See documents 3.2 and 3.2.4.</p>', ['3.2', '3.2.4'])])
def test_sections_in_lists_and_tables_are_linked(html, numbers):
    assert linked_sections(html, '') == numbers


@pytest.mark.parametrize('html', [
    '<p>With Paddle 1.3.1.</p>', '<ul><li>version 1.3.1</li></ul>', '<table><tr><td>1.3.1</td></tr></table>',
    '<div class="output"><table><tr><td>the documents, 5.1.1</td></tr></table></div>', '<h2>Paddle 1.3.1</h2>',
    '<p>Documents: Paddle (3.3.1)</p>'])
def test_other_numbers_are_not_linked(html):
    assert linked_sections(html) == []


def test_sections_in_parentheses_are_linked_on_a_page_that_names_the_documents():
    html = '<h2 id="loading">Loading (5.1.1, 5.1.2)</h2><table><tr><th>fixed (4.1.2)</th></tr></table><p>(3.1.2)</p>'
    assert linked_sections(html) == ['5.1.1', '5.1.2', '4.1.2', '3.1.2']
    assert linked_sections(html, '') == []


def test_every_section_that_a_lesson_names_is_known():
    documents = links.read_documents(PAGES/'documents.yaml')
    unknown = set()
    for lesson in LESSONS:
        for cell in json.loads((ROOT/'nbs'/lesson.path).read_text(encoding='utf-8'))['cells']:
            text = ''.join(cell['source'])
            numbers = re.findall(r"ocuments(?:' |’ | \(|: | )([1-8]\.\d(?:\.\d{1,2})?)(?![\d.]*\d)", text)
            if cell['cell_type'] == 'markdown':
                unknown |= {number for number in numbers if not links.find_section(documents, number)}
    assert unknown == set()


NUMBERED = lessons.by_number(LESSONS)


def test_numbers_of_lessons_are_linked():
    pages = {'04/05': ('04_train/05_callbacks.html', 'Callbacks'), '07/03a': ('07_deploy/03a.html', 'Quantization'),
             '05/01': ('https://example.org/01', 'Elsewhere')}
    soup = soup_of('<h2>Lesson 04/05</h2><p>Lessons 05/01 and 07/03a, not lesson 09/99, <code>lesson 04/05</code> or '
                   '<a href="b.html">lesson 04/05</a>; a date, 04/05, and lesson 04/05/2026.</p>')
    hooks.link_lessons(soup, pages, '07_deploy/00_export.html')
    found = [(a.get_text(), a['href'], a.get('title')) for a in soup.find_all('a')]
    assert found == [('04/05', '../04_train/05_callbacks.html', 'Callbacks'),
                     ('05/01', 'https://example.org/01', 'Elsewhere'), ('07/03a', '03a.html', 'Quantization'),
                     ('lesson 04/05', 'b.html', None)]


def test_a_lesson_is_not_linked_to_itself():
    soup = soup_of('<p>lesson 04/05</p>')
    hooks.link_lessons(soup, {'04/05': ('04_train/05_callbacks.html', 'Callbacks')}, '04_train/05_callbacks.html')
    assert not soup.find('a')


def test_a_number_means_one_lesson():
    assert NUMBERED['04/05'].path.as_posix() == '04_train/05_callbacks.ipynb'
    assert NUMBERED['07/03a'].path.as_posix() == '07_deploy/03a_quantization_lesson.ipynb'
    assert '07/00' not in NUMBERED      # two lessons have it


def test_every_lesson_that_is_named_by_its_number_exists():
    wrong = []
    for path in [*(ROOT/'nbs').glob('*/*.ipynb'), ROOT/'nbs'/'index.ipynb']:
        for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
            text = ''.join(cell['source'])
            if cell['cell_type'] != 'markdown': continue
            for number, target in re.findall(r'\[[Ll]esson (\d\d/\d\d[a-z]?)\]\(([^)#]+)[^)]*\)', text):
                file = (path.parent/target).resolve()
                if not file.is_file() or f'{file.parent.name[:2]}/{file.name.partition("_")[0]}' != number:
                    wrong.append(f'{path.name}: {number} is not {target}')
            unlinked = re.sub(r'\[[^\]]*\]\([^)]*\)', '', text)
            numbers = [number for number in hooks.LESSON.findall(unlinked) if number not in NUMBERED]
            wrong += [f'{path.name}: no lesson, or several, have the number {number}' for number in numbers]
    assert not wrong


def test_every_lesson_has_a_goal():
    assert [lesson.page for lesson in LESSONS if not lesson.goal] == []


def test_a_head_says_what_when_and_where():
    lesson = next(lesson for lesson in LESSONS if lesson.path.stem == '04_gridmask')
    soup = soup_of(lessons.head(lesson, LESSONS, REPOSITORY))
    rows = {row.dt.get_text(): row.dd for row in soup.find_all('div')}
    assert soup.p.get_text().startswith('You will be able to use GridMask')
    assert rows['Before'].a['href'] == '03_hide_and_seek.html'
    assert rows['After'].a['href'] == '05_pixel_ops.html'
    assert rows['Makes'].a['href'] == '../api/ppcls_nb.data.imaug.gridmask.html'
    places = {a.get_text(): a['href'] for a in rows['Open in'].find_all('a')}
    assert places['Colab'] == REPOSITORY.colab_url('nbs/02_augment/04_gridmask.ipynb')
    assert set(places) == {'JupyterLab', 'Colab', 'Binder', 'Codespaces'}


def linked(name):
    "The lessons that a page of nbs/pages links in its lists, in order."
    text = (PAGES/f'{name}.md').read_text(encoding='utf-8')
    return re.findall(r'^\d+\. .*?\]\(\.\./(\S+)\.ipynb\)', text, flags=re.M)


def test_a_learner_meets_a_network_after_the_tutorials():
    way = linked('learner')
    tutorials = sorted(file.stem for file in (ROOT/'nbs'/'00_tutorials').glob('0[0-7]*.ipynb'))
    assert way[:8] == [f'00_tutorials/{name}' for name in tutorials]
    order = ['04_train/03a_loop', '03_models/14_resnet', '02_augment/11_gallery', '06_transfer/00_finetune']
    assert [name for name in way if name in order] == order


@pytest.mark.parametrize('name', ['learner', 'user', 'contributor'])
def test_a_way_says_how_long_it_takes(name):
    text = (PAGES/f'{name}.md').read_text(encoding='utf-8')
    estimate = {'contributor': '{hours}'}.get(name, '{minutes}')
    assert estimate in text.split('\n## ')[0]


def test_minutes_are_added_up():
    lesson = SimpleNamespace(page='a/b.md', minutes=5, seconds=120)
    assert lessons.add_minutes('{minutes}, all {hours}\n\n1. [b](a/b.md): c', [lesson]) == (
        '7 minutes, all 5 minutes\n\n1. [b](a/b.md): c *(7 min)*')
    assert lessons.add_minutes('1. Read [b](a/b.md) and [c](a/c.md)', [lesson]) == '1. Read [b](a/b.md) and [c](a/c.md)'


MODULES = [module.name for module in pkgutil.walk_packages(ppcls_nb.__path__, 'ppcls_nb.')
           if not module.name.endswith('__main__') and hasattr(import_module(module.name), '__all__')]


@pytest.mark.parametrize('name', MODULES)
def test_every_public_name_has_a_place_in_the_api(name):
    module = import_module(name)
    text, names = api.module_page(name, None, REPOSITORY, ROOT)
    elsewhere = dict(api.reexported(module))
    assert set(names) | set(elsewhere) == {n for n in module.__all__ if not inspect.ismodule(getattr(module, n))}
    assert all(f'{{ #{own} }}' in text for own in names)
    for other, home in elsewhere.items():
        assert other in [public.name for public in api.public_names(import_module(home))]


GOOD = {'index.html': '<article><h2 id="here">H</h2><a href="a/b.html#there">b</a><img src="p.png"></article>',
        'a/b.html': '<article><a id="there" href="../index.html#here">back</a> <code>$\\frac{1}{2}$</code>'
                    '<code>40%|████  | 4/10</code></article>'}


@pytest.mark.parametrize('text,fault', [
    ('<a href="a/c.html">', 'a/c.html: no such file'),
    ('<a href="a/b.html#nowhere">', 'no such anchor'),
    ('<script src="https://example.org/a.js"></script>', 'loads https://example.org/a.js'),
    ('<link rel="stylesheet" href="//example.org/a.css">', 'loads //example.org/a.css'),
    ('<pre>/lib/a.py:3: UserWarning: old\n  f()</pre>', 'shows'),
    ('<pre> 40%|████  | 4/10 [00:01]</pre>', 'shows'),
    ('<p>half: $\\frac{1}{2}$</p>', 'a formula is not rendered')])
def test_faults_of_files_are_found(tmp_path, text, fault):
    (tmp_path/'a').mkdir()
    (tmp_path/'p.png').touch()
    for name, html in GOOD.items():
        (tmp_path/name).write_text(html)
    assert check.link_faults(check.read_site(tmp_path), tmp_path) == []
    (tmp_path/'index.html').write_text(GOOD['index.html'].replace('</article>', f'{text}</article>'))
    found = check.link_faults(check.read_site(tmp_path), tmp_path)
    assert len(found) == 1 and fault in found[0]


@needs_chromium
@pytest.mark.parametrize('text,fault', [
    ('', None),
    ('<script>console.error("broken")</script>', 'console: broken'),
    ('<img src="none.png">', 'none.png'),
    ('<div style="width: 2000px">wide</div>', 'px wider than the window'),
    ('<span class="arithmatex">\\(x\\)</span>', 'is not rendered')])
def test_faults_in_a_browser_are_found(tmp_path, text, fault):
    html = f'<!doctype html><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">{text}'
    (tmp_path/'index.html').write_text(html)
    browser = check.browser_module().Browser
    with check.Server(tmp_path) as address, browser() as chromium:
        found = check.page_faults(check.open_page(chromium, 390), address, 'index.html', 390)
    assert (found == []) if fault is None else any(fault in line for line in found)


@pytest.fixture(scope='module')
def small_site(tmp_path_factory):
    "A site of one lesson, executed, and the tutorials as if they had been run; the names of its pages."
    folder = tmp_path_factory.mktemp('site')
    run_folder = folder/'run'
    (run_folder/'notebooks').mkdir(parents=True)
    rows = {}
    for file in sorted((ROOT/'nbs'/'00_tutorials').glob('*.ipynb')):
        (run_folder/'notebooks'/file.name).write_bytes(file.read_bytes())
        rows[file.stem] = [dict(status='ok', seconds=60., profile='smoke', started='2026-01-02T03:04:05')]
    (run_folder/'timings.json').write_text(json.dumps(dict(machine={'cores': 2}, notebooks=rows)))
    lesson = ROOT/'nbs'/'02_augment'/'04_gridmask.ipynb'
    site = Site.at(ROOT, folder/'out', folder/'work'/'sources')
    executed = execute_all([lesson], folder/'executed', ROOT/'ppcls_nb')
    run = tutorial.find_run(ROOT, [run_folder])
    build(site, executed, run, ['ppcls_nb.data.imaug.gridmask'], ROOT/'nbs'/'index.ipynb')
    return site.out


def test_the_small_site_has_no_broken_links_and_no_raw_formulas(small_site):
    pages = check.read_site(small_site)
    assert check.link_faults(pages, small_site) == []
    assert {'index.html', 'learner.html', 'glossary.html', 'report.html', '02_augment/04_gridmask.html',
            '00_tutorials/08_your_photographs.html', 'api/ppcls_nb.data.imaug.gridmask.html'} <= set(pages)


def test_a_tutorial_says_which_run_it_shows(small_site):
    text = soup_of((small_site/'00_tutorials'/'01_scratch.html').read_text(encoding='utf-8')).find('article').get_text()
    assert 'Run on 2026-01-02 with the profile smoke: 2 cores; 9:00 for all lessons.' in text
    assert 'its accuracies mean nothing' in text


def test_no_page_has_a_gap_to_be_filled(small_site):
    for name in ('index', 'learner', 'user', 'contributor', 'lessons', 'documents'):
        article = soup_of((small_site/f'{name}.html').read_text(encoding='utf-8')).find('article')
        assert not re.search(r'\{(minutes|hours|lessons|documents)\}', article.get_text()), name


@needs_chromium
def test_the_small_site_in_a_browser(small_site, tmp_path):
    names = ['index.html', 'lessons.html', 'learner.html', 'report.html', 'glossary.html',
             '02_augment/04_gridmask.html', '00_tutorials/02_finetune.html', 'api/ppcls_nb.data.imaug.gridmask.html']
    assert check.browser_faults(small_site, names, tmp_path, tell=lambda text: None) == []
    assert len(list(tmp_path.glob('*.png'))) == 3*len(check.MAIN)


def test_the_way_pages_and_the_goals_are_yaml_and_text():
    assert all(isinstance(goal, str) for goal in lessons.read_goals(PAGES/'goals.yaml').values())
    assert set(yaml.safe_load((PAGES/'goals.yaml').read_text())) >= {lesson.folder for lesson in LESSONS}
