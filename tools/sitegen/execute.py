"Executes the lessons, two at a time, and keeps the results until a notebook or the package changes."
import hashlib, os, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from ppcls_nb import QUIET_WARNINGS, quiet_logs, set_mkl_path
from ppcls_nb.basics import PPClsError, atomic_path
from ppcls_nb.course.execute import VenvKernel, read_notebook
from ppcls_nb.course.report import merge_streams
from ppcls_nb.course.timing import format_clock

WORKERS = 2
CELL_TIMEOUT = 600      # seconds
NOT_RUN = ('#| eval: false', '#|eval: false', '#| slow')


def package_digest(package: Path) -> str:
    "A digest of the files of the package that lessons import or read."
    digest = hashlib.sha256()
    for file in sorted(p for p in package.rglob('*') if p.is_file() and '__pycache__' not in p.parts):
        digest.update(file.relative_to(package).as_posix().encode() + b'\0' + file.read_bytes())
    return digest.hexdigest()


def executed_path(notebook: Path, cache: Path, package: str) -> Path:
    "Where the executed `notebook` is kept: the name holds a digest of its text and of the `package`."
    digest = hashlib.sha256(package.encode() + notebook.read_bytes()).hexdigest()[:16]
    return cache/f'{notebook.parent.name}-{notebook.stem}-{digest}.ipynb'


def is_run(cell) -> bool:
    "Whether a cell is executed: a code cell that nbdev_test would run."
    return cell.cell_type == 'code' and not any(line.strip() in NOT_RUN for line in cell.source.split('\n'))


def kernel_environment() -> dict:
    """The environment of the kernels: one thread each, MKL's path and the filters of messages, as `import ppcls_nb`
    sets them; many lessons import Paddle before the package."""
    warnings = ','.join(f'ignore:{message}' for message in QUIET_WARNINGS if ',' not in message)
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': warnings}
    set_mkl_path(env)
    quiet_logs(env)
    return env


def execute(notebook: Path, out: Path):
    "Execute the notebook in its folder and write it to `out`, with the seconds it took; a failure is a `PPClsError`."
    nb, start = read_notebook(notebook), time.monotonic()
    client = NotebookClient(nb, timeout=CELL_TIMEOUT, kernel_manager_class=VenvKernel,
                            resources={'metadata': {'path': str(notebook.parent)}})
    try:
        with client.setup_kernel(env=kernel_environment()):
            for index, cell in enumerate(nb.cells):
                if is_run(cell):
                    client.execute_cell(cell, index)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as e:
        raise PPClsError(f'{notebook}: {type(e).__name__}: {str(e).strip()[-2000:]}') from e
    nb = merge_streams(nb)
    nb.metadata['seconds'] = round(time.monotonic() - start, 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as tmp:
        nbformat.write(nb, tmp)


def earlier_seconds(cache: Path) -> dict:
    "Seconds of the last execution of each notebook, folder and stem → seconds."
    found = {}
    for file in sorted(cache.glob('*.ipynb'), key=lambda file: file.stat().st_mtime):
        seconds = nbformat.read(file, as_version=4).metadata.get('seconds')
        if seconds:
            found[file.stem.rpartition('-')[0]] = seconds
    return found


def seconds_left(waiting: dict, done: list, workers: int = WORKERS):
    """Seconds until the notebooks in `waiting` (name → seconds of an earlier execution, or None) are done; `done` are
    seconds of those that ended in this one. None before the first."""
    known = [seconds for seconds in waiting.values() if seconds]
    if not done and not known:
        return None
    usual = sum(done + known)/len(done + known)
    return sum(seconds or usual for seconds in waiting.values())/workers


def execute_all(notebooks: list, cache: Path, package: Path, tell=print) -> dict:
    """Execute the notebooks that the folder `cache` does not hold yet; notebook → executed file.

    `tell` gets a line for each that ends, with the time left. Failures do not stop the others; then `PPClsError`."""
    digest = package_digest(package)
    executed = {notebook: executed_path(notebook, cache, digest) for notebook in notebooks}
    todo = [notebook for notebook in notebooks if not executed[notebook].exists()]
    known = earlier_seconds(cache) if todo else {}
    name = {notebook: f'{notebook.parent.name}-{notebook.stem}' for notebook in todo}
    waiting = {notebook: known.get(name[notebook]) for notebook in todo}
    if todo:
        tell(f'{len(notebooks) - len(todo)} of {len(notebooks)} lessons are up to date; executing {len(todo)}')
    failures, done, start = [], [], time.monotonic()
    pool = ThreadPoolExecutor(WORKERS)
    try:
        tasks = {pool.submit(timed, execute, notebook, executed[notebook]): notebook for notebook in todo}
        for task in as_completed(tasks):
            notebook = tasks[task]
            del waiting[notebook]
            seconds, error = task.result()
            done.append(seconds)
            if error:
                failures.append(str(error))
            left = seconds_left(waiting, done)
            tell(f'[{len(done)}/{len(todo)}] {name[notebook]} {"FAILED" if error else "ok"} in {seconds:.0f} s · '
                 f'{format_clock(time.monotonic() - start)} elapsed, about {format_clock(left)} left')
    finally:
        pool.shutdown(cancel_futures=True)
    if failures:
        raise PPClsError('\n'.join([*failures, f'{len(failures)} lessons failed']))
    remove_old(cache, executed.values())
    return executed


def timed(function, *args) -> tuple:
    "(seconds, the `PPClsError` or None) of a call."
    start = time.monotonic()
    try:
        function(*args)
        error = None
    except PPClsError as e:
        error = e
    return time.monotonic() - start, error


def remove_old(cache: Path, keep):
    "Remove executed notebooks of earlier texts of those to `keep`."
    keep = set(keep)
    names = {file.stem.rpartition('-')[0] for file in keep}
    for file in cache.glob('*.ipynb'):
        if file not in keep and file.stem.rpartition('-')[0] in names:
            file.unlink()


