"""Build the site from the stored notebooks: `python docs/build.py`, then open _build/site/index.html.

Strict: whatever the converter, nbdev or Sphinx complains of makes it fail (`--look` builds all the same).
"""
import argparse, gc, json, shutil, sys, time
from pathlib import Path

gc.set_threshold(200_000, 20, 50)  # Sphinx keeps millions of objects: to search them as often as usual takes a third of the time

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
from api import write_api
from convert import FOLDERS, PAGES, PARTS, Book

def toctree(caption, entries, hidden=True):
    return '\n'.join(['```{toctree}', *([':hidden:'] if hidden else []), *([f':caption: {caption}'] if caption else []), *entries, '```', ''])

def write_parts(book):
    "A page for each folder of chapters, and the contents of the book."
    trees = []
    for part,folders in PARTS.items():
        entries = ['start'] if part == 'Volume 1' else []
        for folder in (f[1:] for f in folders):
            chapters = [c for c in book.chapters if c.folder == folder]
            if not chapters: continue
            rows = [f'| [{c.number} · {c.title}](/{c.doc}.ipynb) | {c.blurb} |' for c in chapters]
            text = [f'# {FOLDERS[folder]}', '', '| chapter | in a line |', '|---|---|', *rows, '', toctree('', [c.doc.split('/')[-1] for c in chapters])]
            (book.out/folder/'index.md').write_text('\n'.join(text), encoding='utf-8')
            entries.append(f'{folder}/index')
        if entries: trees.append(toctree(part, entries))
    trees.append(toctree('Reference', ['paper', 'api/index', 'glossary', 'results', 'changelog', 'contributing']))
    return '\n'.join(trees)

def write_pages(book):
    "The pages that are texts: ours of docs/, and those of the project that readers look for."
    front = write_parts(book)
    for name in ('index.md', 'paper.md', 'glossary.md'):
        path = book.root/'docs'/name
        text = book.markdown(f'docs/{name}', book.page(path, name.removesuffix('.md')), path.read_text(encoding='utf-8'))
        (book.out/name).write_text(text + ('\n' + front if name == 'index.md' else ''), encoding='utf-8')
    for source,name in PAGES.items():
        path = book.root/source
        (book.out/name).write_text(book.markdown(source, book.page(path, name.removesuffix('.md')), path.read_text(encoding='utf-8')), encoding='utf-8')

def write_demo(folder):
    "The page of the bundled model, as `mae_export` makes it, a file to take away; and one with earlier states of it and another target (tools/demo_models.py)."
    from mae_nb.demo.config import ExportConfig
    from mae_nb.demo.export import export
    models = tuple(str(HERE/'models'/name) for name in ('pixels-epoch-1', 'pixels-epoch-10', 'normalised-pixels-epoch-100'))
    quiet = lambda line: None
    export(ExportConfig('fashion_nano', str(folder/'demo.html')), quiet)
    export(ExportConfig('fashion_nano', str(folder/'demo_training.html'), compare=models, title='Watch it learn'), quiet)

def convert(book):
    "Everything that Sphinx reads, or copies."
    shutil.rmtree(book.out, ignore_errors=True)
    extra = book.out/'_extra/_notebooks'
    extra.mkdir(parents=True)
    for chapter in book.chapters:
        book.write(chapter)
        shutil.copy(chapter.path, extra)
    write_demo(book.out/'_extra')
    (book.out/'notebooks.json').write_text(json.dumps({c.doc: c.where for c in book.chapters}), encoding='utf-8')
    write_api(book)
    write_pages(book)
    return book.problems

def sphinx(source, site, strict):
    "Sphinx's own build: unknown references and every warning count."
    from sphinx.cmd.build import main
    flags = ['-W', '--keep-going'] if strict else []
    return main(['-b', 'html', '-n', '-q', '-j', '2', *flags, '-c', str(HERE), '-D', f'html_extra_path={source}/_extra', '-d', str(site.parent/'doctrees'), str(source), str(site)])

def build(root, output, look=False):
    "Convert and build; the exit status, 1 if anything was complained of."
    start,book = time.time(), Book(root.resolve(), output.resolve()/'source')
    shutil.rmtree(output/'site', ignore_errors=True)
    shutil.rmtree(output/'doctrees', ignore_errors=True)
    problems = convert(book)
    for line in problems: print(line, file=sys.stderr)
    rc = sphinx(book.out, output.resolve()/'site', not look)
    print(f'{output/"site"/"index.html"}: {len(book.chapters)} chapters, {len(problems)} problems, {time.time() - start:.0f} s')
    return 0 if look else int(bool(rc or problems))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--look', action='store_true', help='build in spite of warnings')
    p.add_argument('--root', type=Path, default=ROOT, help='the project whose notebooks are read')
    p.add_argument('--output', type=Path, default=ROOT/'_build', help='where source, site and cache are written')
    args = p.parse_args()
    sys.exit(build(args.root, args.output, args.look))
