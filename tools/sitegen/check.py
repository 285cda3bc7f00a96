"Checks a built site: links and anchors by reading its files, and what a browser says of every page."
import re, sys, threading
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from importlib import import_module
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse

from . import ROOT

WIDTHS = (1280, 390)        # pixels: a desk and a phone
MAIN = ('index.html', 'lessons.html', 'learner.html', 'report.html', '02_augment/04_gridmask.html')     # screenshots
LOADS = {'script': 'src', 'img': 'src', 'iframe': 'src', 'source': 'src', 'link': 'href'}
NOISE = re.compile(r'\.py:\d+: \w*Warning: .{0,60}|\d+%\|[^|]*\| *\d+/\d+')
NAMES_A_PAGE = {'canonical', 'next', 'prev'}     # rel of links that load nothing
VOID = set('area base br col embed hr img input link meta source track wbr'.split())
NO_TEXT = {'code', 'pre', 'script', 'style'}
RAW_FORMULA = re.compile(r'\\\(|\\\[|\$\\|\\(?:frac|tfrac|sum|alpha|lambda|mathrm|sqrt)\b')


@dataclass
class Html:
    """What the checks need of a page: `ids`, `links`, what it `loads`, formulas in `raw` LaTeX, and
    `noise`: warnings of libraries and progress bars."""
    ids: set = field(default_factory=set)
    links: list = field(default_factory=list)
    loads: list = field(default_factory=list)
    raw: list = field(default_factory=list)
    noise: list = field(default_factory=list)


class HtmlReader(HTMLParser):
    "Reads a page into the `Html` `page`; formulas are looked for in the article's text that is no code."
    def __init__(self):
        super().__init__()
        self.page, self.opened = Html(), []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get('id'):
            self.page.ids.add(attributes['id'])
        if tag == 'a' and attributes.get('href'):
            self.page.links.append(attributes['href'])
        address = attributes.get(LOADS.get(tag))
        if address and not NAMES_A_PAGE & set((attributes.get('rel') or '').split()):
            self.page.loads.append(address)
        if tag not in VOID:
            self.opened.append((tag, tag in NO_TEXT or 'arithmatex' in (attributes.get('class') or '')))

    def handle_endtag(self, tag):
        if tag in [name for name, _ in self.opened]:
            while self.opened.pop()[0] != tag: pass

    def handle_data(self, data):
        in_article = any(tag == 'article' for tag, _ in self.opened)
        is_source = any(tag == 'code' for tag, _ in self.opened)
        if in_article and not is_source and NOISE.search(data):
            self.page.noise.append(NOISE.search(data)[0])
        if in_article and not any(skipped for _, skipped in self.opened) and RAW_FORMULA.search(data):
            self.page.raw.append(data.strip()[:60])


def read_html(file: Path) -> Html:
    "The `Html` of a file."
    reader = HtmlReader()
    reader.feed(file.read_text(encoding='utf-8'))
    reader.close()
    return reader.page


def read_site(out: Path) -> dict:
    "Path relative to `out` → `Html` of every page; those of the theme itself, such as 404.html, are left out."
    files = [file for file in sorted(out.rglob('*.html')) if file.name != '404.html']
    return {file.relative_to(out).as_posix(): read_html(file) for file in files}


def is_foreign(url: str) -> bool:
    "Whether an address leads out of the site."
    return bool(re.match(r'[a-zA-Z][\w+.-]*:|//', url)) and not url.startswith('data:')


def link_faults(pages: dict, out: Path) -> list:
    "Links without a file or anchor, files that a page would load from elsewhere, and raw formulas, as sentences."
    faults = []
    for name, page in pages.items():
        for url in [*page.links, *page.loads]:
            if is_foreign(url) or url.startswith('data:'): continue
            target, _, anchor = unquote(url).partition('#')
            place = urlparse(urljoin('http://site/' + name, target or name.rpartition('/')[2])).path.lstrip('/')
            file = out/unquote(place)
            if file.is_dir():
                file, place = file/'index.html', f'{place.rstrip("/")}/index.html'.lstrip('/')
            if not file.is_file():
                faults.append(f'{name}: {url}: no such file')
            elif anchor and place in pages and anchor not in pages[place].ids:
                faults.append(f'{name}: {url}: no such anchor')
        faults += [f'{name}: loads {url}' for url in page.loads if is_foreign(url)]
        faults += [f'{name}: shows {text!r}' for text in page.noise]
        faults += [f'{name}: a formula is not rendered: {text}' for text in page.raw]
    return faults


class Quiet(SimpleHTTPRequestHandler):
    "A handler that prints nothing."
    def log_message(self, *_): pass


class Server:
    "Serves a folder on a free port of this computer; a context manager that gives the address."
    def __init__(self, folder: Path):
        self.server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(folder)))

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{self.server.server_port}/'

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def page_faults(page, address: str, name: str, width: int) -> list:
    "What is wrong with the page `name` in an open browser page `width` pixels wide, as sentences."
    page.goto(address + name)
    where = f'{name} at {width} px'
    formulas = page.evaluate(NOT_RENDERED)
    faults = [f'{where}: the formula {text!r} is not rendered' for text in formulas]
    faults += [f'{where}: console: {text}' for text in page.errors]
    faults += [f'{where}: requests {url}' for url in page.requests
               if not url.startswith((address, 'data:', 'blob:', 'about:'))]
    over = page.overflow()
    if over > 0:
        faults.append(f'{where}: {over} px wider than the window: {page.evaluate(WIDEST)}')
    broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth && i.loading != 'lazy')"
                           ".map(i => i.src)")
    return faults + [f'{where}: the picture {url} is not shown' for url in broken]


NOT_RENDERED = """(async () => { const marked = [...document.querySelectorAll('.arithmatex')];
  if (marked.length) await window.MathJax?.startup?.promise;
  const shown = e => { const math = e.querySelector('mjx-container');
    return math && !math.querySelector('mjx-merror') &&
      (e.closest('details:not([open])') || math.getBoundingClientRect().height > 5) };
  return marked.filter(e => !shown(e)).map(e => e.textContent.slice(0, 60)) })()"""
WIDEST = """(() => { const w = document.documentElement.clientWidth;
  const inside = e => { for (let p = e.parentElement; p; p = p.parentElement) {
    if (getComputedStyle(p).overflowX != 'visible') return true } return false };
  const wide = [...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > w + 1 &&
    !inside(e)); return wide.slice(0, 3).map(e => e.tagName + '.' + e.className + ': ' +
    e.textContent.trim().slice(0, 40)).join(' | ') })()"""


def search(page, address: str, text: str) -> list:
    "(title, link) of what the site's search finds."
    page.goto(address + 'index.html')
    page.evaluate(f"""(() => {{ const box = document.querySelector('[data-md-component=search-query]');
      document.querySelector('#__search').checked = true; box.focus(); box.value = {text!r};
      for (const kind of ['keyup', 'input']) box.dispatchEvent(new Event(kind, {{bubbles: true}}));
      return 1 }})()""")
    page.wait_for("document.querySelectorAll('.md-search-result__item').length")
    return page.evaluate("[...document.querySelectorAll('.md-search-result__item a')]"
                         ".map(a => [a.textContent.trim(), a.getAttribute('href')])")


def has_browser() -> bool:
    "Whether Chromium is installed."
    return browser_module().CHROMIUM is not None


def browser_module():
    "The module tests/browser.py."
    folder = str(ROOT/'tests')
    if folder not in sys.path:
        sys.path.append(folder)
    return import_module('browser')


def open_page(browser, width: int, dark: bool = False):
    "A page of the browser without scroll bars, which phones lay over the text."
    page = browser.page(width, 900, dark)
    page.send('Emulation.setScrollbarsHidden', hidden=True)
    return page


def take_picture(page, folder: Path, name: str, kind):
    "Write a picture of the whole page `name` to `folder`, with the pictures that load when one scrolls to them."
    page.evaluate("""(async () => { for (const picture of document.images) { picture.loading = 'eager';
                     await picture.decode().catch(() => 0) } await document.fonts.ready; return 1 })()""")
    page.screenshot(folder/f"{name.removesuffix('.html').replace('/', '-')}-{kind}.png")


def browser_faults(out: Path, names: list, pictures: Path, tell=print, main=MAIN) -> list:
    "What a browser finds wrong with the pages `names` at both widths; screenshots of the `main` ones in `pictures`."
    pictures.mkdir(parents=True, exist_ok=True)
    faults = []
    with Server(out) as address, browser_module().Browser() as browser:
        for width in WIDTHS:
            page = open_page(browser, width)
            for number, name in enumerate(names, 1):
                faults += page_faults(page, address, name, width)
                if name in main:
                    take_picture(page, pictures, name, width)
                if number % 50 == 0 or number == len(names):
                    tell(f'{number} of {len(names)} pages looked at, {width} px')
            if width == WIDTHS[0]:
                found = search(page, address, 'GridMask')
                if not any('GridMask' in title and 'gridmask' in link.lower() for title, link in found):
                    faults.append(f'the search for GridMask finds {found[:3]}')
            page.close()
        page = open_page(browser, WIDTHS[0], dark=True)
        for name in [name for name in main if name in names]:
            faults += page_faults(page, address, name, WIDTHS[0])
            take_picture(page, pictures, name, 'dark')
    return faults
