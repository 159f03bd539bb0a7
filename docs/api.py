"Pages of the library's modules: an entry for each public symbol, with its signature, its documentation, and a table of its documented parameters (docments)."
import ast, enum, functools, importlib, inspect, re
from types import SimpleNamespace
from fastcore.docments import docments

def text_of(anno):
    "A type, as one writes it."
    if anno is inspect.Parameter.empty or anno is None: return ''
    s = anno if isinstance(anno, str) else inspect.formatannotation(anno)
    return re.sub(r'\b(?:torch(?:\.\w+)*|typing|pathlib|mae_nb(?:\.\w+)+)\.(?=[A-Z])', '', s)

def default_of(value):
    "A default value, short."
    if value is inspect.Parameter.empty: return ''
    if isinstance(value, enum.Enum): return str(value)
    s = getattr(value, '__name__', None) if callable(value) else repr(value)
    return '...' if s is None or '<' in s or len(s) > 60 else s

def signature(obj):
    "Names and defaults: `(x, mask_ratio=0.75)`; types stand in the table."
    try: sig = inspect.signature(obj)
    except (TypeError, ValueError): return '()'
    ps = [p.replace(annotation=inspect.Parameter.empty) for n,p in sig.parameters.items() if n not in ('self', 'cls')]
    parts,star = [],False
    for p in ps:
        if p.kind is p.KEYWORD_ONLY and not star: parts.append('*')
        star |= p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        d = default_of(p.default)
        parts.append(str(p.replace(default=p.empty)) + (f'={d}' if d else ''))
    return f'({", ".join(parts)})'

def typed(book, anno):
    "A type as code, linked where it is one of the library's."
    anno = 'None' if anno == 'NoneType' else anno
    return f'{{py:obj}}`{anno} <{book.full_names[anno]}>`' if anno in book.full_names else f'`{anno}`' if anno else ''

def cell(text): return re.sub(r'\s*\n\s*', ' ', text.strip()).replace('|', r'\|')

def fields(obj):
    "The fields of a named tuple, with their comments: `docments` reads those of functions and data classes only."
    lines = re.findall(r'^    (\w+):([^=#\n]+?)(?: *= *([^#\n]+?))? *# *(.*)$', inspect.getsource(obj), re.M)
    return {n: SimpleNamespace(anno=a.strip(), default=d or inspect.Parameter.empty, docment=c) for n,a,d,c in lines if n in obj._fields}

def table(obj, where, book):
    "Parameters and result, from the docments."
    try: docs = fields(obj) if hasattr(obj, '_fields') else docments(obj, full=True, returns=True)
    except (TypeError, ValueError, OSError, KeyError): return ''
    rows = []
    for name,d in docs.items():
        if name in ('self', 'cls', 'return'): continue
        kind,default = text_of(d.anno), default_of(d.default)
        rows.append(f'| `{name}` | {cell(typed(book, kind))} | {cell(f"`{default}`" if default else "")} | {cell(book.plain(where, d.docment or ""))} |')
    out = '\n'.join(['| parameter | type | default | meaning |', '|---|---|---|---|', *rows]) if rows else ''
    r = docs.get('return')
    if r and (text_of(r.anno) or r.docment):
        anno = text_of(r.anno)
        out += f'\n\n**Returns** {typed(book, anno)}{": " if anno and r.docment else ""}{book.plain(where, r.docment or "")}'
    return out

def entry(book, chapter, module, full, spot):
    "One symbol, as MyST."
    short = full.removeprefix(module.__name__ + '.')
    parts = short.split('.')
    holder = getattr(module, parts[0])
    static = inspect.getattr_static(holder, parts[1], None) if len(parts) > 1 else None
    if len(parts) > 1 and static is None: return ''  # added to the class from elsewhere
    obj = functools.reduce(getattr, parts, module)
    sig = signature(obj) if callable(obj) else ''
    options = []
    if len(parts) == 1: kind = 'class' if inspect.isclass(obj) else 'function'
    elif isinstance(static, (property, functools.cached_property)): kind,sig = 'property', ''
    else:
        kind = 'method'
        if isinstance(static, classmethod): options.append(':classmethod:')
        if isinstance(static, staticmethod): options.append(':staticmethod:')
    target = static.fget if isinstance(static, property) else static.func if isinstance(static, functools.cached_property) else obj
    where = f'{chapter.where}: {short}'
    doc = inspect.cleandoc(target.__doc__ or '') if not (inspect.isclass(obj) and (obj.__doc__ or '').startswith(f'{obj.__name__}(')) else ''
    up = '../'*(page_of(chapter.module).count('/') + 1)
    back = f'<a class="taught" href="{up}{chapter.doc}.html#{spot}">how it works: chapter {chapter.number}</a>' if len(parts) == 1 else ''
    body = '\n\n'.join(t for t in (book.plain(where, doc), table(target, where, book) if kind != 'property' else '', back) if t)
    return '\n'.join([f'`````{{py:{kind}}} {short}{sig}', *options, '', body, '`````', ''])

ROOMS = dict(core='What everything else stands on', model='The masked autoencoder and its parts', data='From files to batches', train='One engine for all training',
             weights='Files of weights, in and out', plots='Pictures', evaluate='What a model knows', transfer='Segmentation and detection', demo='Models for a browser',
             tasks='What can be trained', relatives='Other methods, on the same engine', bench='Measurements of speed',
             ablations='Grids of runs, and what came out')

def page_of(module): return module.replace('.', '/')  # 'model.masking': its page is api/model/masking

def write_module(book, chapter):
    "The page of one module."
    name = f'mae_nb.{chapter.module}'
    module,entries = importlib.import_module(name), book.syms.get(name, {})
    text = (book.root/entries[next(iter(entries))][1]).read_text(encoding='utf-8') if entries else ''
    order = {n.name: n.lineno for n in ast.walk(ast.parse(text)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    mine = [f for f in entries if f in book.full_names and f != name]
    def key(full): return [order.get(p, 0) for p in full.removeprefix(name + '.').split('.')]
    body = [entry(book, chapter, module, full, entries[full][0].split('#')[1]) for full in sorted(mine, key=key)]
    head = f'# {name}\n\n*{chapter.blurb}.* Built and tested in chapter [{chapter.number} · {chapter.title}](/{chapter.doc}.ipynb).\n\n```{{py:module}} {name}\n```\n\n'
    path = book.out/'api'/f'{page_of(chapter.module)}.md'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + '\n'.join(body), encoding='utf-8')

def rows_of(chapters):
    return [f'| [`mae_nb.{c.module}`](/api/{page_of(c.module)}.md) | {cell(c.blurb)} | [{c.number}](/{c.doc}.ipynb) |' for c in chapters]

def write_api(book):
    "A page for each module, one for each room, and their index."
    chapters = [c for c in book.chapters if c.module]
    for c in chapters: write_module(book, c)
    front = [c for c in chapters if '.' not in c.module]
    rooms = [r for r in ROOMS if any(c.module.startswith(f'{r}.') for c in chapters)]
    head = ['| module | what it is | chapter |', '|---|---|---|']
    tree = lambda pages: ['', '```{toctree}', ':hidden:', *pages, '```', '']
    text = ['# Library', '', 'What the chapters export, room by room; a room knows only those before it. {ref}`All names from A to Z <genindex>`.', '']
    for room in rooms:
        mine = [c for c in chapters if c.module.startswith(f'{room}.')]
        (book.out/'api'/room/'index.md').write_text('\n'.join([f'# mae_nb.{room}', '', f'{ROOMS[room]}.', '', *head, *rows_of(mine), *tree(c.module.split('.')[1] for c in mine)]), encoding='utf-8')
        text += [f'## [{ROOMS[room]}](/api/{room}/index.md)', '', *head, *rows_of(mine), '']
    if front: text += ['## Front doors' if rooms else '## Modules', '', *head, *rows_of(front), '']
    (book.out/'api/index.md').write_text('\n'.join([*text, *tree([*(f'{r}/index' for r in rooms), *(c.module for c in front)])]), encoding='utf-8')

def lines(project, module, fullname):
    "Where a symbol stands in the project: file and line, for the link to its source."
    try:
        obj = functools.reduce(lambda o, n: inspect.getattr_static(o, n), fullname.split('.'), importlib.import_module(module))
        obj = getattr(obj, 'fget', None) or getattr(obj, 'func', None) or getattr(obj, '__func__', None) or obj
        line = inspect.getsourcelines(inspect.unwrap(obj))[1]
    except (AttributeError, TypeError, OSError): return None
    return f'https://github.com/mae-nb/mae_nb/blob/main/{module.replace(".", "/")}.py#L{line}'
