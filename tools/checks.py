"""What `make test` checks: `all` runs every part, whatever fails. One part a sub-command: clean, export, readme,
notebooks; `write-readme` writes README.md.

Nothing here changes a notebook or the package: they are copied, the tools run on the copy, and the difference is
printed. So it works with uncommitted edits and without git."""
import argparse, difflib, os, posixpath, re, shutil, signal, subprocess, sys, tempfile, threading, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NB_TIMEOUT = 20*60     # seconds for all library notebooks together


def run_on_copy(root: Path, command: str, into: Path):
    "Copy settings.ini and nbs/ of `root` to `into` and run the nbdev `command` there with the present interpreter."
    shutil.copy(root/'settings.ini', into)
    shutil.copytree(root/'nbs', into/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', '_proc'))
    module, function = command.split(':')
    code = f'from {module} import {function}; {function}()'
    done = subprocess.run([sys.executable, '-c', code], cwd=into, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f'{function} failed:\n{done.stdout}{done.stderr}')
    if 'Warning' in done.stderr: print(done.stderr.strip())


def differences(have: Path, want: Path, pattern: str, label: str) -> list:
    "Unified diffs, as text, between the files of `pattern` under two folders; a file missing on either side counts."
    names = sorted({
        p.relative_to(f)
        for f in (have, want)
        for p in f.rglob(pattern)
        if '.ipynb_checkpoints' not in p.parts})
    diffs = []
    for name in names:
        old, new = ((f/name).read_text(encoding='utf-8').splitlines() if (f/name).exists() else []
                    for f in (have, want))
        if old != new or not ((have/name).exists() and (want/name).exists()):
            diffs.append('\n'.join(
                difflib.unified_diff(old, new, f'{label}/{name}', f'{label}/{name} (fresh)', lineterm='', n=1))
                         or f'{label}/{name}: empty')
    return diffs


def verdict(diffs: list, remedy: str, limit: int = 80) -> bool:
    "Print the diffs, each cut to `limit` lines, and what to do; true when there are none."
    for diff in diffs:
        lines = diff.split('\n')
        print('\n'.join(lines[:limit] + [f'… {len(lines) - limit} more lines']*(len(lines) > limit)))
    if diffs: print(f'{len(diffs)} file{"s"*(len(diffs) > 1)} to update: {remedy}')
    return not diffs


def check_clean(root: Path = ROOT) -> bool:
    "nbdev_clean would change no notebook."
    with tempfile.TemporaryDirectory() as tmp:
        run_on_copy(root, 'nbdev.clean:nbdev_clean', Path(tmp))
        return verdict(differences(root/'nbs', Path(tmp)/'nbs', '*.ipynb', 'nbs'), 'run `make clean` (it runs '
                                                                                   'nbdev_clean)')


def check_export(root: Path = ROOT) -> bool:
    "nbdev_export into an empty folder gives the modules of ppcls_nb/."
    with tempfile.TemporaryDirectory() as tmp:
        run_on_copy(root, 'nbdev.doclinks:nbdev_export', Path(tmp))
        return verdict(differences(root/'ppcls_nb', Path(tmp)/'ppcls_nb', '*.py', 'ppcls_nb'),
                       'run `make export`; a module that no notebook exports has to be removed by hand')


def from_top(markdown: str) -> str:
    "`markdown` with the relative links of nbs/ rewritten for a file in the folder above."
    def moved(link):
        target = link.group(1)
        if re.match(r'\w+:|#|/', target):
            return link.group(0)
        return f'](' + posixpath.normpath(posixpath.join('nbs', target)) + ')'
    return re.sub(r'\]\(([^)\s]+)\)', moved, markdown)


def render_readme(root: Path = ROOT) -> str:
    "README.md as Markdown: nbs/index.ipynb, executed; a cell tagged hide-input shows only its output."
    import nbformat
    from nbclient import NotebookClient
    from ppcls_nb.course.notebooks import VenvKernel, read_notebook
    nb = read_notebook(root/'nbs'/'index.ipynb')
    NotebookClient(nb, timeout=120, kernel_manager_class=VenvKernel, resources={
        'metadata': {
            'path': str(root/'nbs')}}).execute()
    parts = ['<!-- Made from nbs/index.ipynb by `make export`; edit that. -->']
    for cell in nb.cells:
        if cell.cell_type == 'markdown': parts.append(cell.source)
        if cell.cell_type != 'code': continue
        if 'hide-input' not in cell.metadata.get('tags', []): parts.append(f'```python\n{cell.source}\n```')
        for output in cell.outputs:
            data = output.get('data', {})
            text = output.get('text') or data.get('text/plain', '')
            parts.append(data.get('text/markdown') or f'```\n{text.rstrip()}\n```')
    return from_top('\n\n'.join(p.strip('\n') for p in parts)) + '\n'


def check_readme(root: Path = ROOT) -> bool:
    "README.md is what nbs/index.ipynb renders to."
    with tempfile.TemporaryDirectory() as have, tempfile.TemporaryDirectory() as want:
        if (root/'README.md').exists(): shutil.copy(root/'README.md', have)
        (Path(want)/'README.md').write_text(render_readme(root), encoding='utf-8')
        return verdict(differences(Path(have), Path(want), 'README.md', '.'), 'run `make export`')


def write_readme(root: Path = ROOT) -> bool:
    "Write README.md."
    from ppcls_nb.basics import atomic_path
    text = render_readme(root)
    with atomic_path(root/'README.md') as tmp: tmp.write_text(text, encoding='utf-8')
    return True


def check_notebooks(root: Path = ROOT, timeout: float = NB_TIMEOUT) -> bool:
    """nbdev_test passes for every library notebook, all within 20 minutes (tutorials are pytest's; a .notest file keeps
    a folder out)."""
    code = 'from nbdev.test import nbdev_test; nbdev_test(do_print=True, timing=True)'
    from ppcls_nb import set_mkl_path
    # notebooks run side by side, one a core
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1', 'MPLBACKEND': 'agg'}
    # many of them import Paddle first
    set_mkl_path(env)
    process = subprocess.Popen([sys.executable, '-c', code], cwd=root, env=env, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    late, under_way, seen = threading.Event(), set(), 0

    def stop():
        late.set()
        os.killpg(process.pid, signal.SIGKILL)
    timer = threading.Timer(timeout, stop)
    timer.start()
    try:
        for line in process.stdout:
            print(line, end='', flush=True)
            state, _, file = line.strip().rpartition(' ')
            if state == 'Starting': under_way.add(Path(file).name); seen += 1
            if state == '- Completed': under_way.discard(Path(file).name)
        failed = process.wait() != 0
    finally:
        timer.cancel()
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
    if late.is_set(): print(f"not finished within {timeout:g} s: {', '.join(sorted(under_way)) or 'nbdev_test itself'}")
    elif not seen: print('nbdev_test found no notebook to run')
    return not failed and not late.is_set() and seen > 0


def parts(root: Path = ROOT) -> dict:
    "Name → (command, environment) of each part of `make test`, in order."
    check, pytest = [sys.executable, str(root/'tools'/'checks.py')], [sys.executable, '-m', 'pytest']
    zoo = ['tests/test_zoo.py', '-n', '2', '--dist', 'loadgroup']
    return {**{name: ([*check, name], {}) for name in ('clean', 'export', 'readme', 'notebooks')},
            'pytest': ([*pytest, '--ignore', 'tests/test_zoo.py'], {}),
            'zoo': ([*pytest, *zoo], {'OMP_NUM_THREADS': '1'})}


def check_all(root: Path = ROOT, todo: dict | None = None) -> bool:
    "Every part, whatever fails before it; a line for each at the end."
    results = []
    for name, (command, env) in (parts(root) if todo is None else todo).items():
        print(f'── {name}', flush=True)
        since = time.monotonic()
        code = subprocess.run(command, cwd=root, env=os.environ | env).returncode
        results.append((name, code, time.monotonic() - since))
    print('── summary')
    for name, code, seconds in results:
        print(f'{name:10s} {"ok" if code == 0 else f"FAILED (exit status {code})":26s} {seconds/60:5.1f} min')
    return all(code == 0 for _, code, _ in results)


STEPS = {
    'all': check_all,
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
