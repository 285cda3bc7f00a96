"Reads name, version and requirements from settings.ini; every `NAME_requirements` there becomes the extra NAME."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
pythons = cfg['pythons'].split()
next_minor = int(pythons[-1].partition('.')[2]) + 1

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8') if (here/'README.md').exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    keywords=cfg['keywords'].split(),
    license='Apache-2.0',
    classifiers=[
        'Development Status :: 3 - Alpha', 'Intended Audience :: Developers', 'Intended Audience :: Education',
        'Natural Language :: English'] + [f'Programming Language :: Python :: {v}' for v in pythons],
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
    package_data={cfg['lib_path']: ['configs/**/*.yaml', 'facts/*', 'pages/*']},
    include_package_data=False,
    python_requires=f">={pythons[0]},<3.{next_minor}",
    install_requires=cfg['requirements'].split(),
    extras_require={k.removesuffix('_requirements'): cfg[k].split()
                    for k in cfg
                    if k.endswith('_requirements')},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False,
)
