"What the head of a page says of a lesson: its place in the course, the time it takes and where it can be run."
import html, json, math, posixpath, re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ppcls_nb.course.lessons import FOLDERS, exported_module, read_lessons
from ppcls_nb.course.online import Repository

from .links import file_address, open_in, relative

WORDS_A_MINUTE = 200
LINES_A_MINUTE = 25     # of code that is read, not studied


@dataclass
class Lesson:
    """A notebook of the course: its `path` relative to nbs/, `title`, `sentence`, the `module` it exports ('' for
    none), `minutes` to read it, `seconds` that it runs (None: unknown), the modules that it `uses`, and its `goal`:
    what a reader is able to do after it ('': not written yet)."""
    path: Path
    title: str
    sentence: str
    module: str
    minutes: int
    seconds: float | None = None
    uses: list = field(default_factory=list)
    goal: str = ''

    @property
    def folder(self) -> str:
        "The name of its folder, such as '01_data'."
        return self.path.parts[0]

    @property
    def page(self) -> str:
        "Its page, relative to the site's sources."
        return self.path.with_suffix('.md').as_posix()


def folder_title(folder: str) -> str:
    "The title of a folder of lessons."
    return FOLDERS[folder][0] if folder in FOLDERS else folder.partition('_')[2].replace('_', ' ').capitalize()


def reading_minutes(nb: dict) -> int:
    "Minutes to read the notebook: its prose, and its code line by line."
    words = lines = 0
    for cell in nb['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            words += len(text.split())
        elif not re.search(r'^#\| *hide', text, flags=re.M):
            lines += sum(bool(line.strip()) for line in text.split('\n'))
    return max(1, math.ceil(words/WORDS_A_MINUTE + lines/LINES_A_MINUTE))


def used_modules(nb: dict) -> list:
    "The modules of the package that the notebook's exported cells import, in order."
    code = '\n'.join(''.join(cell['source']) for cell in nb['cells']
                     if cell['cell_type'] == 'code' and ''.join(cell['source']).startswith(('#| export')))
    return list(dict.fromkeys(re.findall(r'^from (ppcls_nb\.[\w.]+) import', code, flags=re.M)))


def read_sentence(nb: dict) -> str:
    "The quoted sentence below the title."
    first = ''.join(nb['cells'][0]['source'])
    quoted = re.search(r'^> +(.+(?:\n> .+)*)', first, flags=re.M)
    return quoted[1].replace('\n> ', ' ').strip() if quoted else ''


def read_goals(file: Path) -> dict:
    "'FOLDER/NAME' → what a reader is able to do after that lesson."
    folders = yaml.safe_load(file.read_text(encoding='utf-8'))
    return {f'{folder}/{name}': goal for folder, goals in folders.items() for name, goal in goals.items()}


def all_lessons(nbs: Path) -> list:
    "A `Lesson` for each notebook in the sub-folders of `nbs`, in reading order."
    lessons, goals = [], read_goals(nbs/'pages'/'goals.yaml')
    for row in read_lessons(nbs):
        nb = json.loads((nbs/row.path).read_text(encoding='utf-8'))
        seconds = 60*row.minutes if row.minutes else None
        lessons.append(Lesson(row.path, row.title, read_sentence(nb), exported_module(nb), reading_minutes(nb), seconds,
                              used_modules(nb), goals.get(row.path.with_suffix('').as_posix(), '')))
    return lessons


def by_number(lessons: list) -> dict:
    "Number → `Lesson`, such as '04/05' for 04_train/05_callbacks; numbers that several lessons have are left out."
    numbers = {}
    for lesson in lessons:
        number = re.match(r'\d\d[a-z]?(?=_)', lesson.path.name)
        if number:
            numbers.setdefault(f'{lesson.folder[:2]}/{number[0]}', []).append(lesson)
    return {number: same[0] for number, same in numbers.items() if len(same) == 1}


def format_seconds(seconds: float) -> str:
    "'4 s' or '3 min'."
    return f'{max(1, round(seconds))} s' if seconds < 90 else f'{round(seconds/60)} min'


def link(lesson: Lesson, page: str) -> str:
    "A link from `page` to the lesson, as HTML."
    target = relative(page, lesson.page).removesuffix('.md') + '.html'
    return f'<a href="{target}">{html.escape(lesson.title, quote=False)}</a>'


def neighbours(lesson: Lesson, lessons: list) -> tuple:
    "(the lesson before, the lesson after), None at the ends."
    index = lessons.index(lesson)
    before = lessons[index - 1] if index else None
    after = lessons[index + 1] if index + 1 < len(lessons) else None
    return before, after


def head(lesson: Lesson, lessons: list, repository: Repository) -> str:
    "The block below the title of a lesson's page, as HTML."
    page = lesson.page
    before, after = neighbours(lesson, lessons)
    makers = {other.module: other for other in lessons if other.module}
    needs = [makers[module] for module in lesson.uses if module in makers and makers[module] is not lesson]
    time = f'{lesson.minutes} min to read' + (f', runs in {format_seconds(lesson.seconds)}' if lesson.seconds else '')
    rows = {'Time': time}
    if before:
        rows['Before'] = link(before, page)
    if after:
        rows['After'] = link(after, page)
    if needs:
        rows['Builds on'] = ', '.join(link(other, page) for other in needs[:5]) + (' …' if len(needs) > 5 else '')
    if lesson.module:
        rows['Makes'] = f'<a href="{relative(page, f"api/{lesson.module}.html")}"><code>{lesson.module}</code></a>'
    places = open_in(repository, f'nbs/{lesson.path.as_posix()}')
    hints = {'JupyterLab': 'on this computer, while make lab runs',
             'Colab': 'needs two cells before the first: see The course in a browser'}
    rows['Open in'] = ' · '.join(f'<a href="{address}"{title_of(hints.get(name))}>{name}</a>'
                                 for name, address in places.items())
    name = lesson.path.as_posix()
    rows['Source'] = f'<a href="{file_address(repository, f"nbs/{name}")}">{name}</a>'
    cells = ''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in rows.items())
    goal = f'<p class="goal" markdown>You will be able to {lesson.goal}.</p>\n\n' if lesson.goal else ''
    return f'{goal}<dl class="lesson" data-search-exclude>{cells}</dl>'


def lessons_that_use(lesson: Lesson, lessons: list) -> str:
    "The end of a lesson's page, as Markdown: at most five lessons that use its module."
    users = [other for other in lessons if lesson.module and lesson.module in other.uses]
    if not users:
        return ''
    more = ' …' if len(users) > 5 else ''
    return '## Lessons that use this one\n\n' + ', '.join(link(other, lesson.page) for other in users[:5]) + more


def title_of(text) -> str:
    "A title attribute."
    return f' title="{html.escape(text)}"' if text else ''


def table(lessons: list) -> str:
    "The table of all lessons as Markdown, a heading a folder."
    parts, folder = [], None
    for lesson in lessons:
        if lesson.folder != folder:
            folder = lesson.folder
            total = sum(other.minutes for other in lessons if other.folder == folder)
            parts.append(f'\n## {folder_title(folder)}\n\n{format_hours(total)} to read.\n\n'
                         '| lesson | what it does | module | minutes |\n|---|---|---|---:|')
        module = f'[`{lesson.module}`](api/{lesson.module}.md)' if lesson.module else '–'
        sentence = lesson.sentence.replace('|', '\\|')
        parts.append(f'| [{lesson.title}]({lesson.page}) | {sentence} | {module} | {lesson.minutes} |')
    return '\n'.join(parts)


def format_hours(minutes: int) -> str:
    "'80 minutes' or '3 hours'."
    return f'{minutes/60:.0f} hours' if minutes >= 150 else f'{minutes} minutes'


def add_minutes(text: str, lessons: list) -> str:
    """Markdown `text` with the minutes behind each list item that begins with a link to a lesson, and in place of
    `{minutes}` their sum; `{hours}` is the time to read all lessons.

    Links are those of the page: 'FOLDER/NAME.md'."""
    known, total = {lesson.page: lesson for lesson in lessons}, 0
    lines = []
    for line in text.split('\n'):
        item = re.match(r'\s*(?:\d+\.|[-*]) +\[[^\]]*\]\(([^)#\s]+)\)', line)
        lesson = known.get(posixpath.normpath(item[1])) if item else None
        if lesson:
            minutes = lesson.minutes + round((lesson.seconds or 0)/60)
            total += minutes
            line = f'{line} *({minutes} min)*'
        lines.append(line)
    everything = sum(lesson.minutes for lesson in lessons)
    return '\n'.join(lines).replace('{minutes}', format_hours(total)).replace('{hours}', format_hours(everything))
