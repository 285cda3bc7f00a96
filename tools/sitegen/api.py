"Writes a page for each module: the signature and docstring of every public name, its source and its lesson."
import inspect, pkgutil, re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ppcls_nb.course.online import Repository

from .links import file_address, relative


@dataclass
class Name:
    "A public name of a module: `kind` is class, function or value; `line` is that of its source, or None."
    name: str
    kind: str
    value: object
    line: int | None


def modules(package) -> list:
    "The dotted names of the package and all its modules, but for those that start with '_'."
    found = [package.__name__]
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):
        if not info.name.rpartition('.')[2].startswith('_'):
            found.append(info.name)
    return sorted(found)


def kind_of(value) -> str:
    "class, function or value; a value is also what another library defines, under a name of this package."
    if not (getattr(value, '__module__', None) or '').startswith('ppcls_nb'):
        return 'value'
    if inspect.isclass(value):
        return 'class'
    return 'function' if callable(value) and hasattr(value, '__name__') else 'value'


def line_of(value):
    "The line at which a class or function is defined; None for other values."
    try:
        return inspect.getsourcelines(inspect.unwrap(value))[1]
    except (TypeError, OSError):
        return None


def home_of(value, module) -> str:
    "The name of the module that defines a public name of `module`: classes and functions know theirs."
    return module.__name__ if kind_of(value) == 'value' else value.__module__


def public_names(module) -> list:
    "The names in the module's `__all__` that it defines itself, as `Name`, in order."
    found = []
    for name in getattr(module, '__all__', []):
        value = getattr(module, name)
        if inspect.ismodule(value) or home_of(value, module) != module.__name__: continue
        found.append(Name(name, kind_of(value), value, line_of(value) if kind_of(value) != 'value' else None))
    return found


def shown_value(value) -> str:
    "The text of a value, at most 300 characters."
    text = re.sub(r' at 0x[0-9a-f]+', '', repr(value))
    return text if len(text) <= 300 else text[:300] + ' …'


def annotation_text(annotation) -> str:
    "An annotation as it is written."
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def signature(name: str, value) -> str:
    "The signature of a class or function as code, one parameter a line where it is longer than 90 characters."
    try:
        sig = inspect.signature(value)
    except (ValueError, TypeError):
        return f'{name}(…)'
    parts = []
    for parameter in sig.parameters.values():
        text = re.sub(r' at 0x[0-9a-f]+', '', str(parameter))
        parts.append(text)
    returns = ''
    if sig.return_annotation not in (sig.empty, None) and not inspect.isclass(value):
        returns = f' -> {annotation_text(sig.return_annotation)}'
    short = f"{name}({', '.join(parts)}){returns}"
    if len(short) <= 90:
        return short
    return f'{name}(\n    ' + ',\n    '.join(parts) + f'){returns}'


def docstring(value) -> str:
    "The docstring as Markdown: paragraphs and `code` are, the rest is escaped."
    text = inspect.getdoc(value) or ''
    parts = re.split(r'(`[^`\n]+`)', text)
    for number in range(0, len(parts), 2):
        escaped = re.sub(r'([*_#$\[\]])', r'\\\1', parts[number])
        parts[number] = escaped.replace('<', '&lt;').replace('>', '&gt;')
    return ''.join(parts)


def methods(cls) -> list:
    "(name, function or property) of the public methods that the class defines itself and that have a docstring."
    found = []
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        is_method = inspect.isfunction(function) or isinstance(function, property)
        if is_method and not name.startswith('_') and inspect.getdoc(function):
            found.append((name, function))
    return found


def method_text(cls: str, name: str, function) -> str:
    "The Markdown of one method."
    if isinstance(function, property):
        code = f'{cls}.{name}'
    else:
        code = signature(f'{cls}.{name}', function)
    return f'```python\n{code}\n```\n\n{docstring(function)}'


def name_text(item: Name, source: str) -> str:
    "The Markdown of one public name; `source` is the address of its module's file."
    parts = [f'## {item.name} {{ #{item.name} }}']
    if item.kind == 'value':
        parts += [f'```python\n{item.name} = {shown_value(item.value)}\n```', f'[source]({source})']
        return '\n\n'.join(parts)
    parts += [f'```python\n{"class " if item.kind == "class" else ""}{signature(item.name, item.value)}\n```',
              docstring(item.value), f"[source]({source}{f'#L{item.line}' if item.line else ''})"]
    if item.kind == 'class':
        parts += [method_text(item.name, *method) for method in methods(item.value)]
    return '\n\n'.join(parts)


def reexported(module) -> list:
    "(name, module) of the public names that the module has from others."
    found = []
    for name in getattr(module, '__all__', []):
        value = getattr(module, name)
        home = home_of(value, module)
        if not inspect.ismodule(value) and home != module.__name__ and home.startswith('ppcls_nb'):
            found.append((name, home))
    return found


def module_page(name: str, lesson, repository: Repository, root: Path) -> tuple:
    "(Markdown, names defined there) of the page api/NAME.md; `lesson` is the `Lesson` that makes the module, or None."
    module = import_module(name)
    file = Path(inspect.getsourcefile(module)).relative_to(root).as_posix()
    names = public_names(module)
    head = [f'[source]({file_address(repository, file)})']
    if lesson:
        head.insert(0, f"made in the lesson [{lesson.title}]({relative(f'api/{name}.md', lesson.page)})")
    parts = [f'# {name}', docstring(module), ' · '.join(head)]
    if names:
        parts.append('\n'.join(f'- [`{item.name}`](#{item.name}){first_line(item)}' for item in names))
    more = reexported(module)
    if more:
        parts.append('From other modules: ' + ', '.join(f'[`{item}`]({home}.md#{item})' for item, home in more))
    parts += [name_text(item, file_address(repository, file)) for item in names]
    return '\n\n'.join(part for part in parts if part), [item.name for item in names]


def first_line(item: Name) -> str:
    "': ' and the first sentence of the docstring of a class or function."
    text = docstring(item.value).split('\n\n')[0].replace('\n', ' ') if item.kind != 'value' else ''
    sentence = re.match(r'.*?[.:](?= |$)', text)
    return f': {sentence[0].rstrip(":.")}' if sentence else (f': {text}' if text else '')


def index_page(pages: dict) -> str:
    "The page of all modules: `pages` maps module → (first line of its docstring, names)."
    parts = ['# API', 'Every public name, by module. A name in `code` on any page of this site leads here.']
    for module, (text, names) in pages.items():
        links = ' · '.join(f'[`{name}`]({module}.md#{name})' for name in names)
        parts.append(f'**[{module}]({module}.md)**' + (f': {text}' if text else '') + (f'\n\n{links}' if links else ''))
    return '\n\n'.join(parts)


def all_pages(package, lessons: list, repository: Repository, root: Path, only=None) -> dict:
    "'api/NAME.md' → Markdown for the modules of the package (or those in `only`), and the index; sets `symbols`."
    makers = {lesson.module: lesson for lesson in lessons if lesson.module}
    pages, index = {}, {}
    for name in modules(package):
        if only is not None and name not in only: continue
        text, names = module_page(name, makers.get(name), repository, root)
        pages[f'api/{name}.md'] = text
        doc = docstring(import_module(name)).split('\n')[0].rstrip('.')
        index[name] = (doc, names)
    pages['api/index.md'] = index_page(index)
    return pages, symbols(index)


def symbols(index: dict) -> dict:
    "Name → 'api/MODULE.html#NAME' for the names that one module alone defines."
    count, found = {}, {}
    for module, (_, names) in index.items():
        for name in names:
            count[name] = count.get(name, 0) + 1
            found[name] = f'api/{module}.html#{name}'
    return {name: target for name, target in found.items() if count[name] == 1}


