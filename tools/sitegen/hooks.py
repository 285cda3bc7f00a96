"Hooks of MkDocs: pages with formulas load MathJax; sections of the documents, public names and terms become links."
import json, re, sys
from functools import cache
from pathlib import Path

from bs4 import BeautifulSoup

sys.path.append(str(Path(__file__).resolve().parents[1]))
from sitegen.glossary import NOT_IN, Term, is_prose, link_terms, replace  # noqa: E402
from sitegen.links import relative  # noqa: E402

NO_TERMS = ('glossary.html', 'api/', 'lessons.html', 'documents.html')
THREE = re.compile(r'(?<![\d.])[1-8]\.\d{1,2}\.\d{1,2}(?![\d.]*\d)')
TWO = re.compile(r'(?<=ocuments )[1-8]\.\d(?![\d.]*\d)|(?<=ocuments \()[1-8]\.\d(?![\d.]*\d)|'
                 r'(?<=ocuments: )[1-8]\.\d(?![\d.]*\d)')
BLOCKS = ['p', 'li', 'td', 'dd', 'blockquote']


@cache
def read_data(file: str) -> dict:
    "The addresses that the build has written for the hooks."
    return json.loads(Path(file).read_text(encoding='utf-8'))


def formulas(soup, page: str):
    "Let a page with formulas load MathJax from the site's assets."
    if soup.find(class_='arithmatex'):
        for name in ('assets/formulas.js', 'assets/mathjax/tex-chtml.js'):
            soup.append(soup.new_tag('script', src=relative(page, name), defer=''))


def section_link(soup, sections: dict, found):
    "The link of a section's number; None for another number."
    address = sections.get(found[0])
    if not address:
        return None
    link = soup.new_tag('a', href=address, title='the documents of PaddleClas, June 2020')
    link.string = found[0]
    return link


def link_sections(soup, sections: dict):
    "Link the numbers of sections of the documents, in paragraphs that name the documents."
    for block in soup.find_all(BLOCKS):
        if 'ocument' not in block.get_text(): continue
        for node in block.find_all(string=True):
            for pattern in (THREE, TWO):
                if node.parent and pattern.search(node) and is_prose(node, NOT_IN - {'th', 'dl'}):
                    replace(soup, node, pattern, lambda found: section_link(soup, sections, found))


def link_names(soup, symbols: dict, page: str):
    "Link public names that stand as `code` in prose to their place in the API."
    for code in soup.find_all('code'):
        name = code.get_text().removesuffix('()')
        target = symbols.get(name)
        is_name = '_' in name or name != name.lower() or code.get_text().endswith('()')
        if target and is_name and is_prose(code):
            link = soup.new_tag('a', href=relative(page, target))
            link['class'] = 'name'
            code.wrap(link)


def wrap_tables(soup):
    "Let tables scroll sideways on their own."
    for table in soup.find_all('table'):
        inside = any('output' in (parent.get('class') or []) for parent in table.parents)
        if not inside and 'highlighttable' not in (table.get('class') or []):
            table.wrap(soup.new_tag('div', attrs={'class': 'wide'}))


def on_page_content(html, page, config, files):
    "Called by MkDocs with the HTML of each page's content."
    data = read_data(config.extra['site_data'])
    soup = BeautifulSoup(html, 'html.parser')
    url = page.file.dest_uri
    formulas(soup, url)
    if url != 'documents.html':
        link_sections(soup, data['sections'])
    link_names(soup, data['symbols'], url)
    if not url.startswith(NO_TERMS):
        link_terms(soup, [Term(**term) for term in data['terms']], relative(url, 'glossary.html'))
    wrap_tables(soup)
    return str(soup)
