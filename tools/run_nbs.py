"""Run notebooks from a fresh kernel and store their outputs; or check that stored outputs belong to the stored code.

    python tools/run_nbs.py                    every notebook under nbs/ whose code changed since it was last run
    python tools/run_nbs.py -f nbs/1_paper/00_tour.ipynb     this one, changed or not
    python tools/run_nbs.py --check            run nothing; fail when outputs are older than the code
    python tools/run_nbs.py --flags slow ...   run the cells marked `#| slow`, too

Cells marked `#| eval: false`, and those that carry a flag of `tst_flags` in settings.ini, are not run and keep their outputs.
"""
import argparse, hashlib, io, re, sys, base64, os
from configparser import ConfigParser
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
cfg = ConfigParser(delimiters=['=']); cfg.read(ROOT/'settings.ini')
TST_FLAGS = cfg['DEFAULT']['tst_flags'].split()
FIGURES = "{'bbox_inches': 'tight', 'metadata': {'Software': None}}"

def skipped(src, flags):
    "Is this cell not to be run?"
    marks = re.findall(r'^#\|\s*(.+?)\s*$', src, re.M)
    return 'eval: false' in marks or any(m in TST_FLAGS and m not in flags for m in marks)

def code_hash(nb):
    "Name the code of a notebook; a figure's caption and alternative text are no code, and what is done on Colab alone is not run."
    code = [re.sub(r'^#\| fig-.*\n', '', c.source, flags=re.M) for c in nb.cells if c.cell_type == 'code' and "if 'google.colab' in sys.modules" not in c.source]
    return hashlib.sha1('\0'.join(code).encode()).hexdigest()[:12]

def small_png(b64, most=60_000):
    "Reduce the colours of a picture until it is small."
    raw = base64.b64decode(b64)
    for colours in 256, 128, 64, 32:
        if len(raw) <= most: break
        out = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(b64))).convert('RGB').quantize(colours).save(out, 'png', optimize=True)
        raw = out.getvalue()
    return base64.b64encode(raw).decode()

def tidy(outputs):
    "Drop what goes to stderr (progress bars, warnings), join split streams, shrink pictures."
    kept = []
    for o in outputs:
        if o.get('name') == 'stderr': continue
        if o.output_type == 'stream' and kept and kept[-1].get('name') == o.name: kept[-1].text += o.text; continue
        if 'execution_count' in o: o.execution_count = None
        if 'image/png' in o.get('data', {}): o.data['image/png'] = small_png(o.data['image/png'])
        kept.append(o)
    for o in kept:
        if o.output_type == 'stream': o.text = re.sub(r'[^\n]*\r(?!\n)', '', o.text)
    return kept

def fold(nb):
    "Hide the source of folded cells in JupyterLab, too, and the output of solutions."
    for cell in nb.cells:
        if cell.cell_type != 'code' or '#| code-fold: true' not in cell.source: continue
        cell.metadata['jupyter'] = {'source_hidden': True}
        if '#| code-summary: "Solution' in cell.source: cell.metadata['jupyter']['outputs_hidden'] = True

class Client(NotebookClient):
    "Runs a notebook's cells but the skipped ones."
    flags = ()
    async def async_execute_cell(self, cell, cell_index, *args, **kw):
        if cell.cell_type != 'code' or skipped(cell.source, self.flags): return cell
        cell.outputs = []
        await super().async_execute_cell(cell, cell_index, *args, **kw)
        cell.outputs, cell.execution_count = tidy(cell.outputs), None
        cell.metadata.pop('execution', None)
        return cell

def run(path, flags):
    "Run one notebook in place."
    nb = nbformat.read(path, 4)
    client = Client(nb, timeout=900, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}},
                    extra_arguments=['--IPKernelApp.log_level=40', f'--InlineBackend.print_figure_kwargs={FIGURES}'])
    client.flags = flags
    client.execute()
    nb.metadata['mae_nb'] = {'ran': code_hash(nb)}
    fold(nb)
    for k in 'language_info', 'widgets': nb.metadata.pop(k, None)
    nbformat.write(nb, path)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('notebooks', nargs='*', type=Path, help='default: all under nbs/')
    p.add_argument('-f', '--force', action='store_true', help='run unchanged ones, too')
    p.add_argument('--check', action='store_true', help='only tell which outputs are stale')
    p.add_argument('--flags', nargs='*', default=[], help='flags of cells to run, such as slow')
    args = p.parse_args()
    os.environ.update(MPLBACKEND='module://matplotlib_inline.backend_inline', PYTHONHASHSEED='0')
    paths = args.notebooks or sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if not any(x[0] in '._' for x in p.relative_to(ROOT).parts))
    nbs = {p: nbformat.read(p, 4) for p in paths}
    stale = [p for p,nb in nbs.items() if nb.metadata.get('mae_nb', {}).get('ran') != code_hash(nb)]
    if args.check:
        for p in stale: print(f'{p}: its outputs are older than its code; run `make notebooks`')
        sys.exit(bool(stale))
    for path in tqdm(paths if args.force else stale, disable=None):
        print(f'running {path}', flush=True)
        run(path, args.flags)

if __name__ == '__main__': main()
