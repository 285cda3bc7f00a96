"""Builds the site of the course into _docs/ and checks it: links, anchors, formulas, and every page in a browser.

Without lessons the whole site is built: the library's lessons are executed (those that have changed since the last
time), the tutorials are shown from their last run, or from one with the smoke profile."""
import argparse, sys
from pathlib import Path

from ppcls_nb.basics import PPClsError

from sitegen import ROOT
from sitegen.build import Site, build
from sitegen.check import browser_faults, has_browser, link_faults, read_site
from sitegen.execute import execute_all
from sitegen.tutorial import find_run, run_smoke


def make(site: Site, names: list, run):
    "Execute the lessons `names` ('FOLDER/STEM'; none: all of the library) and the README's notebook; build the site."
    nbs = site.root/'nbs'
    library = [lesson for lesson in site.lessons if lesson.folder != '00_tutorials']
    known = {lesson.page.removesuffix('.md'): nbs/lesson.path for lesson in library}
    for name in names:
        if name not in known:
            raise PPClsError(f'{name}: no such lesson; expected FOLDER/NAME, such as {next(iter(known))}')
    notebooks = [known[name] for name in names or known]
    index = nbs/'index.ipynb'
    executed = execute_all([*notebooks, index], site.root/'.cache'/'site'/'executed', site.root/'ppcls_nb')
    modules = [lesson.module for lesson in library if lesson.page.removesuffix('.md') in names] if names else None
    build(site, executed, run, modules, home=executed[index])


def check(out: Path, pictures: Path) -> list:
    "What is wrong with the site in `out`, as sentences; screenshots are written to the folder `pictures`."
    pages = read_site(out)
    faults = link_faults(pages, out)
    print(f'{len(pages)} pages: {len(faults)} faults in links and formulas', *faults[:20], sep='\n', flush=True)
    if not has_browser():
        print('Chromium is not installed: the pages have not been looked at (apt-get install chromium)')
        return faults
    return faults + browser_faults(out, list(pages), pictures)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('lessons', nargs='*', metavar='FOLDER/NAME', help='only these lessons and their modules')
    parser.add_argument('--out', type=Path, help='folder of the site (_docs)')
    parser.add_argument('--run', type=Path, metavar='FOLDER', help='output of a run of the tutorials (the last one)')
    args = parser.parse_args()
    site = Site.at(ROOT, args.out)
    run = find_run(ROOT, [args.run] if args.run else None)
    if args.run and run is None:
        raise PPClsError(f'{args.run}: no complete run of the tutorials')
    if run is None and not args.lessons:
        run = run_smoke(ROOT)
    make(site, args.lessons, run)
    faults = check(site.out, ROOT/'output'/'site')
    if faults:
        raise PPClsError('\n'.join([*faults[:100], f'{len(faults)} faults; the site is in {site.out}']))
    print(f'{site.out}/index.html')


if __name__ == '__main__':
    try:
        main()
    except PPClsError as e:
        sys.exit(str(e))
