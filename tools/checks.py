"""The checks of `make test`. `all` runs every part, also after a failure; clean, export, readme, lint and notebooks run
one part; `write-readme` writes README.md.

The checks change neither the notebooks nor the package: the tools run on a copy, and the differences are printed. So
they work with uncommitted edits and without git."""
import argparse, difflib, os, posixpath, re, shutil, signal, subprocess, sys, tempfile, threading, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NB_TIMEOUT = 20*60     # seconds for all library notebooks together


def run_on_copy(root: Path, command: str, into: Path):
    "Copy settings.ini and nbs/ of `root` to `into`, and run the nbdev `command`, 'MODULE:FUNCTION', there."
    shutil.copy(root/'settings.ini', into)
    shutil.copytree(root/'nbs', into/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', '_proc'))
    module, function = command.split(':')
    code = f'from {module} import {function}; {function}()'
    done = subprocess.run([sys.executable, '-c', code], cwd=into, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{function} failed:\n{done.stdout}{done.stderr}')
    if 'Warning' in done.stderr:
        print(done.stderr.strip())


def differences(have: Path, want: Path, pattern: str, label: str) -> list:
    "Unified diffs, as text, of the files that match `pattern` in two folders, also of files that one of them lacks."
    paths = [path.relative_to(folder) for folder in (have, want) for path in folder.rglob(pattern)]
    diffs = []
    for name in sorted(set(path for path in paths if '.ipynb_checkpoints' not in path.parts)):
        old, new = ((folder/name).read_text(encoding='utf-8').splitlines() if (folder/name).exists() else None
                    for folder in (have, want))
        if old == new: continue
        names = f'{label}/{name}', f'{label}/{name} (fresh)'
        diff = '\n'.join(difflib.unified_diff(old or [], new or [], *names, lineterm='', n=1))
        diffs.append(diff or f'{label}/{name}: empty')
    return diffs


def report_differences(diffs: list, remedy: str, limit: int = 80) -> bool:
    "Print at most `limit` lines of each diff, and the `remedy`; true when there are no diffs."
    for diff in diffs:
        lines = diff.split('\n')
        print(*lines[:limit], sep='\n')
        if len(lines) > limit:
            print(f'… {len(lines) - limit} more lines')
    if diffs:
        print(f'{len(diffs)} {"file" if len(diffs) == 1 else "files"} to update: {remedy}')
    return not diffs


def check_clean(root: Path = ROOT) -> bool:
    "nbdev_clean would change no notebook."
    with tempfile.TemporaryDirectory() as tmp:
        run_on_copy(root, 'nbdev.clean:nbdev_clean', Path(tmp))
        diffs = differences(root/'nbs', Path(tmp)/'nbs', '*.ipynb', 'nbs')
    return report_differences(diffs, 'run `make clean` (it runs nbdev_clean)')


def check_export(root: Path = ROOT) -> bool:
    "nbdev_export into an empty folder gives the modules of ppcls_nb/."
    with tempfile.TemporaryDirectory() as tmp:
        run_on_copy(root, 'nbdev.doclinks:nbdev_export', Path(tmp))
        diffs = differences(root/'ppcls_nb', Path(tmp)/'ppcls_nb', '*.py', 'ppcls_nb')
    return report_differences(diffs, 'run `make export`; remove modules that no notebook exports by hand')


def links_from_root(markdown: str) -> str:
    "`markdown` with links that are relative to nbs/ made relative to the folder above."
    def rewrite(link):
        target = link.group(1)
        if re.match(r'\w+:|#|/', target):
            return link.group(0)
        return f"]({posixpath.normpath(posixpath.join('nbs', target))})"
    return re.sub(r'\]\(([^)\s]+)\)', rewrite, markdown)


def render_readme(root: Path = ROOT) -> str:
    "The executed nbs/index.ipynb as Markdown; a cell tagged hide-input shows only its output."
    from nbclient import NotebookClient
    from ppcls_nb.course.execute import VenvKernel, read_notebook
    nb = read_notebook(root/'nbs'/'index.ipynb')
    resources = {'metadata': {'path': str(root/'nbs')}}
    NotebookClient(nb, timeout=600, iopub_timeout=600, raise_on_iopub_timeout=True,      # no output is lost
                   kernel_manager_class=VenvKernel, resources=resources).execute()
    parts = ['<!-- Made from nbs/index.ipynb by `make export`; edit that. -->']
    for cell in nb.cells:
        if cell.cell_type == 'markdown':
            parts.append(cell.source)
        if cell.cell_type != 'code': continue
        if 'hide-input' not in cell.metadata.get('tags', []):
            parts.append(f'```python\n{cell.source}\n```')
        for output in cell.outputs:
            data = output.get('data', {})
            text = output.get('text') or data.get('text/plain', '')
            parts.append(data.get('text/markdown') or f'```\n{text.rstrip()}\n```')
    return links_from_root('\n\n'.join(p.strip('\n') for p in parts)) + '\n'


def check_readme(root: Path = ROOT) -> bool:
    "README.md is what nbs/index.ipynb renders to."
    with tempfile.TemporaryDirectory() as have, tempfile.TemporaryDirectory() as want:
        if (root/'README.md').exists():
            shutil.copy(root/'README.md', have)
        (Path(want)/'README.md').write_text(render_readme(root), encoding='utf-8')
        diffs = differences(Path(have), Path(want), 'README.md', '.')
    return report_differences(diffs, 'run `make export`')


def write_readme(root: Path = ROOT) -> bool:
    "Write README.md."
    from ppcls_nb.basics import write_text
    write_text(root/'README.md', render_readme(root))
    return True


def check_lint(root: Path = ROOT) -> bool:
    "The linter (ruff, rules in pyproject.toml) finds nothing in the notebooks and scripts."
    return subprocess.run([sys.executable, '-m', 'ruff', 'check', '--quiet', str(root)]).returncode == 0


def check_notebooks(root: Path = ROOT, timeout: float = NB_TIMEOUT) -> bool:
    """nbdev_test passes for every library notebook within 20 minutes.

    Folders with a .notest file are skipped; the tutorials run in pytest."""
    from ppcls_nb import set_mkl_path
    code = 'from nbdev.test import nbdev_test; nbdev_test(do_print=True, timing=True)'
    # nbdev_test runs one notebook on each core
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1', 'MPLBACKEND': 'agg'}
    set_mkl_path(env)       # before Paddle, which many notebooks import first
    process = subprocess.Popen([sys.executable, '-c', code], cwd=root, env=env, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    timed_out, running, seconds = threading.Event(), {}, {}

    def stop():
        timed_out.set()
        os.killpg(process.pid, signal.SIGKILL)
    timer = threading.Timer(timeout, stop)
    timer.start()
    try:
        for line in process.stdout:
            print(line, end='', flush=True)
            state, _, file = line.strip().rpartition(' ')
            name = Path(file).name
            if state == 'Starting':
                running[name] = time.monotonic()
            if state == '- Completed' and name in running:
                seconds[name] = time.monotonic() - running.pop(name)
        failed = process.wait() != 0
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if timed_out.is_set():
        print(f"not finished within {timeout:g} s: {', '.join(sorted(running)) or 'nbdev_test itself'}")
    elif not running and not seconds:
        print('nbdev_test found no notebook to run')
    slowest = sorted(seconds, key=seconds.get, reverse=True)[:10]
    print('slowest:', ', '.join(f'{name} {seconds[name]:.0f} s' for name in slowest))
    return not failed and not timed_out.is_set() and bool(running or seconds)


def parts(root: Path = ROOT) -> dict:
    "Name → (command, environment) of each part of `make test`, in order."
    check = [sys.executable, str(root/'tools'/'checks.py')]
    # the tests of a file share a process, and so its fixtures (xdist_group has no effect with pytest 9.2); three
    # processes for two cores, since tests wait for services, browsers and processes; in the order of tests/conftest.py
    pytest = [sys.executable, '-m', 'pytest', '-n', '3', '--dist', 'loadfile', '--no-loadscope-reorder']
    return {**{name: ([*check, name], {}) for name in ('clean', 'export', 'readme', 'lint', 'notebooks')},
            'pytest': (pytest, {'OMP_NUM_THREADS': '1'})}


def check_all(root: Path = ROOT, todo: dict | None = None) -> bool:
    "Run every part, also after a failure, and print a summary; true when all passed."
    results = []
    for name, (command, env) in (parts(root) if todo is None else todo).items():
        print(f'── {name}', flush=True)
        since = time.monotonic()
        code = subprocess.run(command, cwd=root, env=os.environ | env).returncode
        results.append((name, code, time.monotonic() - since))
    print('── summary')
    for name, code, seconds in results:
        result = 'ok' if code == 0 else f'FAILED (exit status {code})'
        print(f'{name:10s} {result:26s} {seconds/60:5.1f} min')
    return all(code == 0 for _, code, _ in results)


STEPS = {
    'all': check_all,
    'lint': check_lint,
    'clean': check_clean,
    'export': check_export,
    'readme': check_readme,
    'notebooks': check_notebooks,
    'write-readme': write_readme}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('step', choices=STEPS)
    step = parser.parse_args().step
    print(f'── {step}: {STEPS[step].__doc__}', flush=True)
    raise SystemExit(0 if STEPS[step]() else 1)


if __name__ == '__main__': main()
