"The pages of the tutorials, from the notebooks of the last real run, and of their report."
from dataclasses import dataclass
from pathlib import Path

import nbformat

from ppcls_nb.basics import PPClsError
from ppcls_nb.course.notebooks import find_notebooks, run_course
from ppcls_nb.course.report import notebook_title, report_cells
from ppcls_nb.course.timing import format_clock, read_timings

from .notebook import to_page

OUTPUTS = ('tutorial', 'tutorial-gpu', 'tutorial-smoke')     # folders of output/, the first with all notebooks is shown


@dataclass
class TutorialRun:
    "A run of the tutorials in the folder `output`: `executed` maps the notebooks of the course to executed ones."
    output: Path
    executed: dict
    profile: str
    machine: dict
    date: str
    seconds: dict

    @property
    def facts(self) -> str:
        "Profile, machine and date, for the pages."
        names = ('processor', 'cores', 'python', 'paddle')
        units = {'cores': '{} cores', 'python': 'Python {}'}
        machine = ', '.join(units.get(n, '{}').format(self.machine[n]) for n in names if n in self.machine)
        total = format_clock(sum(self.seconds.values()))
        return f'Run on {self.date} with the profile **{self.profile}**: {machine}; {total} for all lessons.'


def read_run(output: Path, notebooks: list):
    "The `TutorialRun` in the folder `output`; None unless the last run of every notebook ended well there."
    timings = read_timings(output/'timings.json')
    rows = {notebook: timings.get('notebooks', {}).get(notebook.stem, [{}])[-1] for notebook in notebooks}
    executed = {notebook: output/'notebooks'/notebook.name for notebook in notebooks}
    if not all(row.get('status') == 'ok' for row in rows.values()):
        return None
    if not all(file.is_file() for file in executed.values()):
        return None
    profiles = {row.get('profile') or 'unknown' for row in rows.values()}
    if len(profiles) > 1:
        return None
    last = max(rows.values(), key=lambda row: row['started'])
    seconds = {notebook.stem: row['seconds'] for notebook, row in rows.items()}
    return TutorialRun(output, executed, profiles.pop(), last.get('machine', timings['machine']), last['started'][:10],
                       seconds)


def find_run(root: Path, outputs=None):
    "The `TutorialRun` to show: the first complete one of the folders `outputs` (default: `OUTPUTS`), or None."
    notebooks = find_notebooks([root/'nbs'/'00_tutorials'])
    for output in outputs or [root/'output'/name for name in OUTPUTS]:
        run = read_run(Path(output), notebooks)
        if run:
            return run
    return None


def run_smoke(root: Path) -> TutorialRun:
    "Run the tutorials with the smoke profile, which takes minutes; a failure is a `PPClsError`."
    folder = root/'nbs'/'00_tutorials'
    output = root/'output'/'tutorial-smoke'
    results = run_course([folder], folder/'profiles'/'smoke.yaml', output)
    run = read_run(output, find_notebooks([folder]))
    if run is None:
        raise PPClsError(f'{results[-1].path}: {results[-1].status}; the site needs a run of the tutorials')
    return run


def code_sources(file: Path) -> list:
    "The sources of the code cells, without the parameters that papermill adds."
    nb = nbformat.read(file, as_version=4)
    return [cell.source for cell in nb.cells
            if cell.cell_type == 'code' and 'injected-parameters' not in cell.metadata.get('tags', [])]


def note(run: TutorialRun, notebook: Path) -> str:
    "The lines below a tutorial's head: which run the page shows, and whether the notebook has changed since."
    text = run.facts
    if run.profile == 'smoke':
        text += ' That profile uses drawn flowers and the smallest networks, to test the lessons in minutes: its '
        text += 'accuracies mean nothing. `make tutorial` runs the lessons on photographs.'
    if code_sources(notebook) != code_sources(run.executed[notebook]):
        text += ' The code of the lesson has changed since.'
    return f'!!! note "Which run this is"\n\n    {text}'


def report_page(run: TutorialRun) -> tuple:
    "(Markdown, files) of the report: what the tutorials say of their results."
    files, parts = {}, ['# Report of the tutorials', run.facts]
    for notebook, executed in run.executed.items():
        nb = nbformat.read(executed, as_version=4)
        cells = report_cells(nb)
        if not cells.cells: continue
        for cell in cells.cells:
            cell.metadata.tags = [*cell.metadata.get('tags', []), 'hide-input']
            cell.source = cell.source.replace('#| hide\n', '')
        page = to_page(cells, f'report_{notebook.stem}')
        parts += [f'## {notebook_title(nb, notebook.stem)}', page.text]
        files.update(page.files)
    return '\n\n'.join(parts), files
