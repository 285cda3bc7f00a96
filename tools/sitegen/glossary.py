"Links the first use of each term of the glossary on a page."
import re
from dataclasses import dataclass

from bs4 import BeautifulSoup

NOT_IN = set('a code pre h1 h2 h3 h4 h5 h6 summary script style th dl button'.split())


@dataclass
class Term:
    "A term of the glossary: its `anchor`, the `forms` that are linked, and the first sentence of its explanation."
    anchor: str
    forms: list
    sentence: str


def read_glossary(text: str) -> list:
    "The terms of the glossary's Markdown: 'form, form { #anchor }', and an explanation that starts with ':'."
    found = []
    for forms, anchor, meaning in re.findall(r'^(\S.*?) *\{ *#([\w-]+) *\}\n: +(.+)', text, flags=re.M):
        plain = re.sub(r'\[([^\]]+)\]\([^)]*\)', r'\1', meaning)
        sentence = re.match(r'.*?[.](?= |$)', plain)
        found.append(Term(anchor, [form.strip() for form in forms.split(',')], sentence[0] if sentence else plain))
    return found


def is_prose(node, not_in=NOT_IN) -> bool:
    "Whether a text node is in the prose of a page, not in code, headings, links, formulas or outputs."
    for parent in node.parents:
        if parent.name in not_in or {'output', 'arithmatex'} & set(parent.get('class') or []):
            return False
    return True


def form_pattern(form: str) -> str:
    "The regular expression of a form; only forms in small letters may begin with a capital."
    if form != form.lower():
        return re.escape(form)
    return f'[{form[0].upper()}{form[0]}]{re.escape(form[1:])}' if form[0].isalpha() else re.escape(form)


def pattern_of(terms: list):
    "(compiled pattern of all forms, form in small letters → term)."
    forms = {form: term for term in terms for form in term.forms}
    ordered = sorted(forms, key=len, reverse=True)
    pattern = '|'.join(form_pattern(form) for form in ordered)
    return re.compile(rf'(?<![\w/-])(?:{pattern})(?![\w/-])'), {form.lower(): term for form, term in forms.items()}


def link_terms(soup: BeautifulSoup, terms: list, glossary: str):
    "Link the first use of each term in the prose of `soup` to its place on the page `glossary`."
    if not terms:
        return
    pattern, by_form = pattern_of(terms)
    seen = set()
    for node in soup.find_all(string=pattern):
        if is_prose(node, NOT_IN | {'em'}):      # titles of papers stand in italics
            replace(soup, node, pattern, lambda found: term_link(soup, by_form, seen, glossary, found))


def term_link(soup, by_form: dict, seen: set, glossary: str, found):
    "The link for a match, or None when its term has been linked before."
    term = by_form[found[0].lower()]
    if term.anchor in seen:
        return None
    seen.add(term.anchor)
    link = soup.new_tag('a', href=f'{glossary}#{term.anchor}', title=term.sentence)
    link['class'] = 'term'
    link.string = found[0]
    return link


def replace(soup, node, pattern, make):
    "Replace the matches in a text node by `make(match)`, where that is not None."
    text, last, parts = str(node), 0, []
    for found in pattern.finditer(text):
        tag = make(found)
        if tag is None: continue
        parts += [soup.new_string(text[last:found.start()]), tag]
        last = found.end()
    if parts:
        node.replace_with(*parts, soup.new_string(text[last:]))
