"""The book's notebooks, as Sphinx reads them: stored cells and outputs in, MyST-NB notebooks out. No code of a notebook runs.

nbdev does what it knows (directives, hidden cells and lines, magics, where symbols are documented); this module writes the rest in MyST:
figures with number, caption and alternative text, numbered equations, call-outs, folded solutions, links, back-ticked symbols.
Whatever a reader would stumble over is told to `problem`, which makes the build fail: a link to nothing, a symbol that nobody knows,
a missing picture or alternative text, an equation out of order.
"""
import ast, builtins, json, keyword, os, posixpath, re, shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from nbdev.doclinks import NbdevLookup
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, hide_, hide_line, rm_header_dash, strip_ansi
from mae_nb.weights.hub import official
from mae_nb.recipes import recipes

PARTS = {'Volume 1': dict(_1_paper='The paper, read and run'),
         'Volume 2': dict(_2_relatives='The relatives'),
         'Volume 3': dict(_3_transfer='Segmentation and detection'),
         'Volume 4: the library': dict(_4a_model='Model', _4b_data='Data', _4c_training='Training', _4d_weights='Weights', _4e_evaluation='Evaluation',
                               _4f_tools='Recipes, benchmarks, commands'),
         'Teach': dict(_teach='Teach')}
FOLDERS = {folder[1:]: name for part in PARTS.values() for folder,name in part.items()}
PAGES = {'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md', 'results/README.md': 'results.md'}  # shown as pages, too
CALLOUTS = {'Key idea': 'important', 'Tip': 'tip', 'Note': 'note', 'Warning': 'warning'}
FENCE = re.compile(r'^(```.*?^```[ \t]*$)', re.M | re.S)

def only_imports(source):
    "Does a cell import, and at most set up plots, seeds and the environment besides?"
    try: lines = ast.parse(source).body
    except SyntaxError: return False
    imports = [x for x in lines if isinstance(x, (ast.Import, ast.ImportFrom))]
    others = [ast.unparse(x) for x in lines if x not in imports]
    return len(imports) > 1 and all(re.match(r'(style\(\)|torch\.(manual_seed|set_num_threads)\(.*\)|os\.environ\[.*)$', x) for x in others)

@dataclass
class Chapter:
    "A notebook of the book: where it is, what it is called, and what of it others may point to."
    root: Path # The project
    path: Path # The notebook

    @cached_property
    def nb(self): return json.loads(self.path.read_text(encoding='utf-8'))
    @property
    def where(self): return self.path.relative_to(self.root).as_posix()
    @property
    def number(self): # '03', '13b', '' for `index`
        m = re.match(r'(\d+[a-z]?)_', self.path.stem)
        return m[1] if m else ''
    @property
    def short(self): return self.number.lstrip('0') or '0'  # as in 'Figure 3.2'
    @property
    def folder(self):
        up = self.path.parent.relative_to(self.root/'nbs').as_posix()
        return '' if up == '.' else up
    @property
    def doc(self): # Sphinx's name of the page; nbdev's own addresses of symbols are these
        stem = self.path.stem.removeprefix(self.number + '_') if self.number else self.path.stem
        return posixpath.join(self.folder, 'start' if stem == 'index' else stem)
    @cached_property
    def head(self): return ''.join(self.nb['cells'][0]['source'])
    @property
    def title(self): return self.head.splitlines()[0].removeprefix('# ')
    @property
    def blurb(self): return next((l[2:] for l in self.head.splitlines() if l.startswith('> ')), '')
    @cached_property
    def figures(self): # How many numbered figures it has
        return sum(bool(re.search(r'^#\|\s*fig-cap:', ''.join(c['source']), re.M)) for c in self.nb['cells'] if c['cell_type'] == 'code')
    @cached_property
    def equations(self):
        return re.findall(r'\\tag\{([^}]*)\}', '\n'.join(''.join(c['source']) for c in self.nb['cells'] if c['cell_type'] == 'markdown'))

@dataclass
class Book:
    "All chapters, all symbols, and everything that was found wrong."
    root: Path # The project
    out: Path # Where Sphinx's sources are written
    problems: list = field(default_factory=list)

    def problem(self, where, text): self.problems.append(f'{where}: {text}')

    @cached_property
    def chapters(self):
        paths = sorted(p for p in (self.root/'nbs').rglob('*.ipynb') if 'runs' not in p.parts and not any(x[0] in '._' for x in p.relative_to(self.root).parts))
        return [Chapter(self.root, p) for p in paths]
    @cached_property
    def by_number(self): return {c.short: c for c in self.chapters if c.number}
    @cached_property
    def syms(self): # {module: {symbol: (address, file)}}, as nbdev_export wrote it
        space = {}
        exec((self.root/'mae_nb/_modidx.py').read_text(encoding='utf-8'), space)
        return space['d']['syms']
    @cached_property
    def rooms(self): return {m.rpartition('.')[0] for m in self.syms}
    @cached_property
    def lookup(self): return NbdevLookup(incl_libs='mae_nb')
    @cached_property
    def full_names(self): # {'MAE.encode': 'mae_nb.model.mae.MAE.encode', ...}, with and without the module
        names = {}
        for module,entries in self.syms.items():
            for full in entries:
                short = full.removeprefix(module + '.')
                if any(p[0] == '_' for p in short.split('.')): continue
                if full in self.lookup.syms: names[full] = names[short] = full
        return names
    @cached_property
    def words(self): # Every word of the project's code: what back-ticks may name without being a symbol of the library
        files = [p for d in ('mae_nb', 'tests', 'tools', 'docs') for p in (self.root/d).rglob('*.py')]
        code = [p.read_text(encoding='utf-8') for p in files]
        code += [''.join(c['source']) for ch in self.chapters for c in ch.nb['cells'] if c['cell_type'] == 'code']
        code += [(self.root/f).read_text(encoding='utf-8') for f in ('settings.ini', 'Makefile', 'docs/words.txt')]
        code += [*recipes, *official]
        return {*re.findall(r'\w+', '\n'.join(code)), *dir(builtins), *keyword.kwlist, *self.by_number}

    def page(self, path, doc):
        "A text that is no notebook, for the functions below."
        return SimpleNamespace(path=path, doc=doc, short='')

    def plain(self, where, text):
        "A docstring or a docment."
        return self.prose(where, self.page(self.root/'README.md', 'api/module'), text)

    # --- text ---
    def symbol(self, where, code):
        "Back-ticked code: a link to the library's documentation where it is one of its symbols."
        name = re.sub(r'\(\)$', '', code)
        if name in self.full_names: return f'{{py:obj}}`{code} <{self.full_names[name]}>`'
        if name in self.syms: return f'{{py:mod}}`{name}`'
        if where != 'CHANGELOG.md' and re.fullmatch(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*', name) and re.search(r'[._]|[a-z][A-Z]|\(\)$', code):
            parts = name.split('.')
            module = next(('.'.join(parts[:k]) for k in range(len(parts), 1, -1) if '.'.join(parts[:k]) in self.syms), None)
            if parts[0] == 'mae_nb' and module: self.problem(where, f'`{code}`: {module} has no such symbol')
            elif name in self.rooms: pass
            elif parts[0] == 'mae_nb' and len(parts) > 1: self.problem(where, f'`{code}`: mae_nb has no such module')
            elif unknown := [p for p in parts if p not in self.words]: self.problem(where, f'`{code}`: unknown symbol (no code of the project has {unknown[0]!r})')
        return f'`{code}`'

    def link(self, where, chapter, url):
        "A link of a notebook, as a link of the site."
        if re.match(r'[a-z]+:|#', url): return url
        path,_,frag = url.partition('#')
        rel = os.path.relpath(chapter.path.parent/path, self.root)
        if rel.startswith('..') or not (self.root/rel).exists(): self.problem(where, f'broken link: {url}'); return url
        frag = f'#{frag}' if frag else ''
        if rel.endswith('.ipynb') and rel.startswith('nbs/'): return f'/{Chapter(self.root, self.root/rel).doc}.ipynb{frag}'
        if rel in PAGES: return f'/{PAGES[rel]}{frag}'
        return f'https://github.com/mae-nb/mae_nb/blob/main/{rel}{frag}'

    def label(self, text, url):
        "The words of a link: a notebook that is called by its file's name gets the chapter's own."
        stem = Path(url.partition('#')[0]).stem
        there = next((c for c in self.chapters if c.path.stem == stem), None)
        return f'[{there.number} · {there.title}]' if there and there.number and text == f'[{stem}]' else text

    def image(self, where, chapter, alt, url):
        "A picture that a text shows."
        if not alt.strip(): self.problem(where, f'{url}: no alternative text')
        source = (chapter.path.parent/url).resolve()
        if not source.exists(): self.problem(where, f'missing figure: {url}'); return ''
        copy = self.out/'_pictures'/f'{source.parent.name}-{source.name}'  # two folders may have pictures of one name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
        return f'![{alt}](/_pictures/{copy.name})'

    def reference(self, where, chapter, m):
        "'Equation (3.1)' and 'Figure 3.2' become links to it."
        kind,of,k = m['kind'][0].lower(), m['of'], int(m['k'])
        there = self.by_number.get(of)
        if there is None or (f'{of}.{k}' not in there.equations if kind == 'e' else k > there.figures): self.problem(where, f'there is no {m[0]}'); return m[0]
        page = '' if there.doc == chapter.doc else posixpath.relpath(f'{there.doc}.html', posixpath.dirname(chapter.doc) or '.')
        return f'<a class="reference" href="{page}#{"eq" if kind == "e" else "fig"}-{of}.{k}">{m[0]}</a>'

    def prose(self, where, chapter, text):
        "Prose outside code fences."
        parts = re.split(r'(\$\$.*?\$\$|(?<!\[)(?<!`)`[^`\n]+`(?!`))', text, flags=re.S)
        for i,p in enumerate(parts):
            if i % 2: parts[i] = self.equation(where, chapter, p) if p[0] == '$' else self.symbol(where, p[1:-1])
            else:
                p = re.sub(r'!\[([^\]]*)\]\(([^)\s]+)\)', lambda m: self.image(where, chapter, m[1], m[2]), p)
                p = re.sub(r'(\[[^\]\n]*\])\((?!/_pictures)([^)\s]+)\)', lambda m: f'{self.label(m[1], m[2])}({self.link(where, chapter, m[2])})', p)
                parts[i] = re.sub(r'(?P<kind>[Ee]quation|Figure) \(?(?P<of>\d+[a-z]?)\.(?P<k>\d+)\)?', lambda m: self.reference(where, chapter, m), p)
        return ''.join(parts)

    def equation(self, where, chapter, tex):
        "Equations on display carry their number in the source, so that it is the same in Jupyter: each chapter counts its own."
        want = f'{chapter.short}.{self.counts["equation"] + 1}'
        self.counts['equation'] += 1
        if f'\\tag{{{want}}}' not in tex: self.problem(where, f'equation {tex[2:40].strip()}... should end in \\tag{{{want}}}')
        return tex

    def markdown(self, where, chapter, text):
        "One markdown cell."
        text = re.sub(r'<details><summary>(.*?)</summary>\n(.*?)</details>', r'::::{dropdown} \1\n\2\n::::', text, flags=re.S)
        def callout(m):
            body = re.sub(r'^> ?', '', m['body'], flags=re.M)
            return f':::{{admonition}} {m["name"]}\n:class: {CALLOUTS[m["name"]]}\n{body}\n:::\n'
        text = re.sub(rf'^> \*\*(?P<name>{"|".join(CALLOUTS)})\.\*\* (?P<body>.*(?:\n>.*)*)', callout, text, flags=re.M)
        if m := re.search(r'^> \*\*([^*]+)\.\*\*', text, re.M): self.problem(where, f'unknown call-out {m[1]!r}: use one of {list(CALLOUTS)}')
        text = ''.join(p if p.startswith('```') else self.prose(where, chapter, p) for p in FENCE.split(text))
        return re.sub(r'^```\{touch\} (\S+) (.+)\n```$', lambda m: self.touched(where, m[1], m[2]), text, flags=re.M)

    def touched(self, where, path, control):
        "A figure to touch, borrowed from the chapter that makes it: the one that has this control."
        found = [''.join(o['data']['text/html']) for c in Chapter(self.root, self.root/path).nb['cells'] for o in c.get('outputs', []) if f': {control}' in ''.join(o.get('data', {}).get('text/plain', '')) and 'text/html' in o['data']]
        if len(found) != 1: self.problem(where, f'{path} has {len(found)} figures to touch with a control {control!r}'); return ''
        return f'```{{raw}} html\n{found[0]}\n```'

    # --- cells ---
    def addresses(self, chapter, src):
        "What an exported cell defines: nbdev's addresses of it (with its methods), and the names that the library makes public."
        module = f'mae_nb.{chapter.module}'
        entries,spans,public = self.syms.get(module, {}), [], []
        for node in ast.parse(src).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            full = f'{module}.{node.name}'
            spans += [e[0].split('#')[1] for n,e in entries.items() if n == full or n.startswith(full + '.')]
            if full in self.full_names: public.append(full)
        return spans, public

    def figure(self, where, chapter, cell, mark):
        "Number, caption and alternative text of a picture that a cell drew."
        alt,cap = mark.get('fig-alt', ''), mark.get('fig-cap', '')
        if not alt: self.problem(where, 'its picture has no alternative text: begin the cell with `#| fig-alt: ...`')
        meta = cell['metadata'].setdefault('mystnb', {})
        meta['image'] = {'alt': alt.replace('"', '”')}
        if not cap: return
        self.counts['figure'] += 1
        no = f'{chapter.short}.{self.counts["figure"]}'
        meta['figure'] = {'caption': f'<span id="fig-{no}">**Figure {no}.**</span> ' + self.prose(where, chapter, cap)}

    def code(self, where, chapter, cell, marks):
        "One code cell, with its outputs."
        mark = {k: v.strip() for k,_,v in (m.partition(':') for m in marks)}
        if only_imports(cell['source']) and 'code-fold' not in mark: mark |= {'code-fold': 'true', 'code-summary': 'Imports'}
        what = mark.get('code-summary', 'Code').strip('"')
        folded = 'hide-cell' if what.startswith('Solution') else 'hide-input'  # a solution with its output
        tags = ['remove-input'] if mark.get('echo') == 'false' else [folded] if mark.get('code-fold') == 'true' else []
        new = dict(cell_type='code', execution_count=None, source=re.sub(r'^#\|.*\n?', '', cell['source'], flags=re.M).strip('\n'), outputs=cell.get('outputs', []), metadata=dict(tags=tags))
        if tags == [folded]:
            new['metadata']['mystnb'] = dict(code_prompt_show=what, code_prompt_hide=what)
        for o in new['outputs']:
            if 'image/png' in o.get('data', {}) and 'text/html' not in o['data']: self.figure(where, chapter, new, mark)
            for img in re.findall(r'<img\b[^>]*>', ''.join(o.get('data', {}).get('text/html', ''))):
                if not re.search(r'\balt="[^"]+"', img): self.problem(where, 'a picture in its HTML has no alternative text')
            if 'text/markdown' in o.get('data', {}): o['data']['text/markdown'] = self.prose(where, chapter, ''.join(o['data']['text/markdown']))
        return new

    def cells(self, chapter):
        "All cells of a chapter's page."
        self.counts = dict(equation=0, figure=0)
        marks = {c['id']: re.findall(r'^#\|\s*(.+?)\s*$', ''.join(c['source']), re.M) for c in chapter.nb['cells']}
        order = {c['id']: i for i,c in enumerate(chapter.nb['cells'])}
        chapter.module = next((m.split()[1] for ms in marks.values() for m in ms if m.startswith('default_exp ')), None)
        proc = NBProcessor(chapter.path, procs=[strip_ansi, hide_line, rm_header_dash, clean_magics, hide_], process=True)
        md = lambda text: dict(cell_type='markdown', metadata={}, source=text)
        for i,cell in enumerate(proc.nb.cells):
            where,mine = f'{chapter.where}: cell {order[cell.id]}', marks[cell.id]
            if any(m.startswith('default_exp') for m in mine) or not cell.source.strip(): continue
            if cell.cell_type == 'markdown':
                text = self.markdown(where, chapter, cell.source)
                if chapter.doc == 'start': text = re.sub(r'^# .*', '# Start here', text, count=1)
                if i == 0 and chapter.number: text = text.replace('# ', f'# {chapter.number} · ', 1)
                yield md(text)
            elif cell.cell_type == 'code':
                if 'export' in mine:
                    spans,public = self.addresses(chapter, cell.source)
                    entry = ' '.join(f'{{py:obj}}`{n.rsplit(".", 1)[1]} <{n}>`' for n in public)
                    text = ''.join(f'<span id="{s}"></span>' for s in spans) + (f'in the library: {entry}' if entry else '')
                    if text: yield md(f':::{{div}} exported\n{text}\n:::')
                yield self.code(where, chapter, cell, mine)

    def write(self, chapter):
        "One chapter as a notebook of MyST-NB."
        cells = list(self.cells(chapter))
        meta = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'), language_info=dict(name='python'))
        path = self.out/f'{chapter.doc}.ipynb'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=4), indent=0), encoding='utf-8')
