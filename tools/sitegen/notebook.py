"Turns an executed notebook into the Markdown of a page and the files of its pictures."
import base64, html, re, struct, tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bs4 import BeautifulSoup

from ppcls_nb.course.report import terminal_line

HIDDEN_TAGS = {'exercise-wrong', 'remove-cell'}
IMAGES = {'image/png': 'png', 'image/jpeg': 'jpg', 'image/svg+xml': 'svg'}
FIGURE = re.compile(r'<(Figure size [\dx.]+ with \d+ Axes|IPython\.core\.display\.\w+ object)>')
ANSI = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]')
ROOT = Path(__file__).resolve().parents[2]
TEMPORARY = re.compile(rf'{re.escape(tempfile.gettempdir())}/tmp\w{{8}}(?!\w)/?')
BAR = re.compile(r'\d+%\|[^|]*\| *\d+/\d+ \[')


@dataclass
class Page:
    "The `text` (Markdown) of a page, the first heading, the sentence below it, and `files`, name → bytes."
    title: str = ''
    sentence: str = ''
    text: str = ''
    files: dict = field(default_factory=dict)


def directives(source: str) -> list:
    "The nbdev directives of a code cell: '#| hide' gives 'hide'."
    return re.findall(r'^#\| *([\w:.-]+.*)$', source, flags=re.M)


def without_directives(source: str) -> str:
    "The source of a code cell without the lines that only nbdev reads."
    return re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip('\n')


def is_solution(cell, in_exercise: bool) -> bool:
    "Whether the code cell answers an exercise: by its tag, or hidden below a heading 'Exercise'."
    if 'exercise-solution' in cell.metadata.get('tags', []):
        return True
    return in_exercise and 'hide' in directives(cell.source)


def code_block(source: str, exported: bool = False) -> str:
    "Python code as a fenced block; the fence is longer than any in the code."
    ticks = max([2, *map(len, re.findall(r'`{3,}', source))]) + 1
    return f"{'`'*ticks}{{ .python{' .exported' if exported else ''} }}\n{source}\n{'`'*ticks}"


def details(summary: str, text: str, kind: str = '') -> str:
    "Markdown `text` that a reader unfolds."
    return f'<details class="{kind}" markdown>\n<summary>{summary}</summary>\n\n{text}\n\n</details>'


def stream_text(text: str) -> str:
    "What a terminal shows of a stream, without colours and progress bars."
    lines = [terminal_line(line).rstrip() for line in ANSI.sub('', text).split('\n')]
    return '\n'.join(line for line in lines if not BAR.search(line)).strip('\n')


def own_paths(text: str) -> str:
    "`text` without this machine's paths: those in temporary folders and in the repository are relative to them."
    text = TEMPORARY.sub(lambda found: '' if found[0].endswith('/') else '.', text)
    return text.replace(f'{ROOT}/', '').replace(f'{Path.home()}/', '~/')


def preformatted(text: str) -> str:
    "Text of an output as HTML that the search leaves out."
    return f'<div class="output" data-search-exclude><pre>{html.escape(own_paths(text), quote=False)}</pre></div>'


def clean_html(text: str) -> str:
    "HTML of an output without styles of its own and without borders, in one block that scrolls sideways."
    soup = BeautifulSoup(text, 'html.parser')
    for style in soup.find_all('style'):
        style.decompose()
    for table in soup.find_all('table'):
        del table['border']
    body = own_paths(re.sub(r'\n\s*\n', '\n', str(soup)).strip())
    return f'<div class="output table" data-search-exclude>{body}</div>'


def png_size(data: bytes) -> tuple:
    "(width, height) of a PNG in pixels."
    return struct.unpack('>II', data[16:24])


def picture(mime: str, value, name: str, alt: str) -> tuple:
    "(HTML, bytes) of a picture that the page shows from the file `name`."
    data = value.encode() if mime == 'image/svg+xml' else base64.b64decode(value)
    size = ''
    if mime == 'image/png':
        size = ' width="{}" height="{}"'.format(*png_size(data))
    html_text = f'<div class="output picture"><img src="{name}" alt="{html.escape(alt)}"{size} loading="lazy"></div>'
    return html_text, data


def output_html(output, name: str, alt: str) -> tuple:
    "(Markdown or HTML, file name or None, bytes) of one output; `name` is the file's name without its ending."
    if output.output_type == 'stream':
        text = stream_text(output.text)
        return preformatted(text) if text else '', None, None
    if output.output_type == 'error':
        return preformatted(f'{output.ename}: {ANSI.sub("", output.evalue)}'), None, None
    data = output.data
    for mime, ending in IMAGES.items():
        if mime in data:
            text, content = picture(mime, data[mime], f'{name}.{ending}', alt)
            return text, f'{name}.{ending}', content
    if 'text/html' in data:
        return clean_html(data['text/html']), None, None
    if 'text/markdown' in data:
        return own_paths(data['text/markdown']), None, None
    text = ANSI.sub('', data.get('text/plain', ''))
    return '' if FIGURE.fullmatch(text.strip()) or not text.strip() else preformatted(text), None, None


def cell_outputs(cell, number: int, stem: str, heading: str) -> tuple:
    "(Markdown, files) of the outputs of a code cell."
    parts, files = [], {}
    for count, output in enumerate(cell.get('outputs', [])):
        alt = f'Figure {number}, {heading}' if heading else f'Figure {number}'
        text, file, data = output_html(output, f'{stem}_{number}_{count}', alt)
        if text:
            parts.append(text)
        if file:
            files[file] = data
    return '\n\n'.join(parts), files


def code_cell(cell, in_exercise: bool) -> str:
    "The Markdown of a code cell's source: nothing, the code, or a folded solution."
    tags, words = set(cell.metadata.get('tags', [])), directives(cell.source)
    source = without_directives(cell.source)
    if not source or tags & {'hide-input', 'injected-parameters'}:
        return ''
    if is_solution(cell, in_exercise):
        return details('Solution', code_block(source), 'solution')
    if 'hide' in words:
        return ''
    return code_block(source, bool({'export', 'exporti'} & set(words)))


def markdown_cell(source: str) -> str:
    "The text of a Markdown cell with what Python-Markdown needs: Markdown in details, a blank line above a list."
    source = re.sub(r'<details(?![^>]*markdown)([^>]*)>', r'<details\1 markdown>', source)
    lines, fenced = [], False
    for line in source.split('\n'):
        fenced ^= line.lstrip().startswith('```')
        item = re.match(r'([-*+]|\d+\.) ', line)
        if item and lines and lines[-1].strip() and not fenced and not re.match(r'\s|[-*+] |\d+\. ', lines[-1]):
            lines.append('')
        lines.append(line)
    return '\n'.join(lines)


def read_head(source: str) -> tuple:
    "(title, sentence, the rest) of the first Markdown cell: '# title', then '> sentence'."
    title = re.match(r'\s*# +(.+)\n*', source)
    if not title:
        return '', '', source
    rest = source[title.end():]
    quote = re.match(r'((?:>.*\n?)+)', rest)
    if not quote:
        return title[1].strip(), '', rest
    sentence = ' '.join(line.lstrip('> ').strip() for line in quote[1].strip().split('\n'))
    return title[1].strip(), sentence, rest[quote.end():].strip('\n')


def last_heading(source: str, default: str) -> str:
    "The last heading in a Markdown text, without marks."
    found = re.findall(r'^#+ +(.+)$', re.sub(r'```.*?```', '', source, flags=re.S), flags=re.M)
    return re.sub(r'[`*$]', '', found[-1]).strip() if found else default


def to_page(nb, stem: str) -> Page:
    "The page of the executed notebook node `nb`; its pictures are named after `stem`."
    page, parts, heading, in_exercise = Page(), [], '', False
    for number, cell in enumerate(nb.cells):
        tags = set(cell.metadata.get('tags', []))
        is_note = cell.cell_type == 'markdown' and 'exercise-solution' in tags     # tells how to unfold it in Jupyter
        if tags & HIDDEN_TAGS or is_note: continue
        if cell.cell_type == 'markdown':
            source = cell.source
            if not page.title:
                page.title, page.sentence, source = read_head(source)
            heading = last_heading(source, heading)
            if re.search(r'^#+ ', source, flags=re.M):
                in_exercise = heading.startswith('Exercise')
            parts.append(markdown_cell(source))
        elif cell.cell_type == 'code':
            parts.append(code_cell(cell, in_exercise))
            hidden = 'hide' in directives(cell.source) and not is_solution(cell, in_exercise)
            text, files = cell_outputs(cell, number, stem, heading)
            if not hidden or files:
                parts.append(text)
                page.files.update(files)
    page.text = '\n\n'.join(part for part in parts if part.strip())
    return page
