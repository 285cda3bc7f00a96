"Hooks of MkDocs: pages with formulas load MathJax; sections of the documents, lessons, names and terms become links."
import json, re, sys
from functools import cache
from pathlib import Path

from bs4 import BeautifulSoup

sys.path.append(str(Path(__file__).resolve().parents[1]))
from sitegen.glossary import NOT_IN, Term, is_prose, link_terms, replace  # noqa: E402
from sitegen.links import relative  # noqa: E402

NO_TERMS = ('glossary.html', 'api/', 'lessons.html', 'documents.html')
SECTION = re.compile(r'(?<![\d.])[1-8]\.\d{1,2}\.\d{1,2}(?![\d.]*\d)|(?<=ocuments )[1-8]\.\d(?![\d.]*\d)|'
                     r'(?<=ocuments \()[1-8]\.\d(?![\d.]*\d)|(?<=ocuments: )[1-8]\.\d(?![\d.]*\d)')
IN_PARENTHESES = re.compile(r'(?:(?<=\()|(?<=\d\.\d, ))[1-8]\.\d{1,2}\.\d{1,2}(?=(?:, [1-8]\.\d{1,2}\.\d{1,2})*\))')
HEADINGS = ['h2', 'h3', 'h4']
BLOCKS = ['p', 'li', 'td', 'th', 'dd', 'blockquote', *HEADINGS]
WHOLES = ['ul', 'ol', 'table']
NO_SECTIONS = NOT_IN - {'th', 'dl', *HEADINGS}
LESSON = re.compile(r'(?:(?<=esson\s)|(?<=essons\s)|(?<=/\d\d\sand\s)|(?<=/\d\d[a-z]\sand\s))'
                    r'\d\d/\d\d[a-z]?(?![\w/]|[.-]\d)')


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


def says_documents(element) -> bool:
    "Whether a part of a page names the documents; part of a word is enough, since \"documents'\" is one, too."
    return element is not None and 'ocument' in element.get_text()


def context_says_documents(block) -> bool:
    "Whether a block names the documents; for one in a list or table, whether that does, or the paragraph before it."
    wholes = block.find_parents(WHOLES)
    if not wholes:
        return says_documents(block)
    before = wholes[-1].find_previous_sibling()
    is_text = before is not None and before.name in ('p', *HEADINGS)
    return says_documents(wholes[-1]) or is_text and says_documents(before)


def link_sections(soup, sections: dict):
    """Link the numbers of sections of the documents: in blocks, lists and tables that name the documents, and on a page
    that names them also those alone in parentheses, as in headings."""
    on_page = says_documents(soup)
    for node in soup.find_all(string=SECTION):
        block = node.find_parent(BLOCKS)
        if not block or not is_prose(node, NO_SECTIONS): continue
        if block.name not in HEADINGS and context_says_documents(block):
            replace(soup, node, SECTION, lambda found: section_link(soup, sections, found))
        elif on_page:
            replace(soup, node, IN_PARENTHESES, lambda found: section_link(soup, sections, found))


def link_lessons(soup, lessons: dict, page: str):
    "Link numbers such as 'lesson 04/05' to the lesson: `lessons` maps numbers to (page or address, title)."
    def make(found):
        target, title = lessons.get(found[0], (page, ''))
        if target == page:
            return None
        address = target if target.startswith('http') else relative(page, target)
        link = soup.new_tag('a', href=address, title=title)
        link.string = found[0]
        return link

    for node in soup.find_all(string=LESSON):
        if is_prose(node, NO_SECTIONS):
            replace(soup, node, LESSON, make)


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
    link_lessons(soup, data['lessons'], url)
    link_names(soup, data['symbols'], url)
    if not url.startswith(NO_TERMS):
        link_terms(soup, [Term(**term) for term in data['terms']], relative(url, 'glossary.html'))
    wrap_tables(soup)
    return str(soup)
