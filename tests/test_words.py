"Prose is in the field's words: none of the book's earlier private words comes back, and the field's own words are there."
import ast, io, json, re, tokenize
from collections import Counter
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
GONE = {  # a word that must not come back -> what to write
    r'\bchances?\b(?! level| accuracy)': 'randomness, random number generator, probability, luck',
    r'\bjudg\w*': 'evaluate, evaluation',
    r'\bon board\b': 'bundled',
    r'\bloading process\w*': 'data-loader worker',
    r'(?<!standard )(?<!absolute )(?<!squared )\bdeviations?\b': 'standard deviation',
    r'\b(rivals?|opponents?|lazy|lazier)\b': 'baseline, trivial baseline',
    r'\bby heart\b': 'memorise, overfit',
    r'\bpaint\w*': 'reconstruct, predict',
    r'\bremoved patch\w*': 'masked patch',
    r'\b(garments?|clothes|clothing)\b': 'Fashion-MNIST images',
    r'\bshares? of\b': 'fraction, proportion',
    r'\b(alike|likeness\w*)\b': 'similar, similarity',
    r'\b(jumble\w*|strangers?|leash|dear|dearer|dearest)\b': 'shuffled; untrusted; clipping; expensive',
    r'\b(spoil\w*|damaged)\b': 'corrupt, corrupted',
    r'\b(in silence|without a word)\b': 'silently, without an error',
    r'\b(bit for bit|to the (last )?bit|(same|equal|very) bits)\b': 'bitwise identical',
    r'\b(go|goes|gone|going|went) on\b': 'continue, resume',
    r'\brefus\w*': 'raise an error, reject',
    r'\bposition embedding\w*': 'positional embedding',
    r'\bmask ratios?\b': 'masking ratio',
    r'\bwhole or not at all\b': 'atomic',
    r'\battack\w*': 'sanity check, stress test; malicious',
    r'\b(shall|mend|mends|mended|for ever|likewise|whoever|by-products?|in two goes)\b': 'plain English'}
PATTERN = re.compile('|'.join(f'({p})' for p in GONE), re.I)
FIELD = ['self-supervised', 'representation', 'positional embedding', 'downstream', 'backbone', 'learning rate', 'pretext task', 'baseline', 'contrastive', 'frozen']

def without_code(text):
    "Markdown without code, links' targets and quotations."
    text = re.sub(r'```.*?```', ' ', text, flags=re.S)
    return re.sub(r'`[^`\n]*`|\]\([^)]*\)|"[^"\n]*"|<[^>]*>', ' ', text)

def prose_of_notebook(path):
    for i,cell in enumerate(json.loads(path.read_text(encoding='utf-8'))['cells']):
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': yield f'{path.name}[{i}]', without_code(source)
        else:
            for line in source.splitlines():
                if line.startswith(('#| fig-', '#| code-summary')): yield f'{path.name}[{i}]', line.partition(':')[2]

def prose_of_module(path):
    "Comments and docstrings."
    source = path.read_text(encoding='utf-8')
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (doc := ast.get_docstring(n)): yield f'{path.name}:{getattr(n, "lineno", 1)}', without_code(doc)
    for t in tokenize.generate_tokens(io.StringIO(source).readline):
        if t.type == tokenize.COMMENT and not t.string.startswith('# %%'): yield f'{path.name}:{t.start[0]}', without_code(t.string)

def prose_of(path):
    if path.suffix == '.ipynb': return prose_of_notebook(path)
    if path.suffix == '.py': return prose_of_module(path)
    return [(path.name, without_code(path.read_text(encoding='utf-8')))]

def files():
    skip = {'.ipynb_checkpoints', 'runs', '_build'}
    for pattern in 'nbs/**/*.ipynb', 'mae_nb/**/*.py', 'docs/*.md', '*.md', 'results/README.md':
        yield from (p for p in sorted(ROOT.glob(pattern)) if not skip & set(p.parts) and p.name not in ('_modidx.py', 'CHANGELOG.md'))

def found(path):
    for where,text in prose_of(path):
        for m in PATTERN.finditer(text): yield f'{where}: {" ".join(text[max(0, m.start() - 30):m.end() + 30].split())!r}'

@pytest.mark.parametrize('path', files(), ids=lambda p: p.name)
def test_no_private_word_is_left(path): assert list(found(path)) == []

@pytest.mark.parametrize('text,word', [('The judges agree', 'judges'), ('What is left to chance', 'chance'), ('the mean deviation', 'deviation'), ('It goes on', 'goes on')])
def test_words_notice(text, word): assert PATTERN.search(text)[0] == word

@pytest.mark.parametrize('text', ['above chance level', 'one standard deviation', 'a random number generator', 'masking ratio', '`mask ratio` in code'])
def test_words_leave(text): assert not PATTERN.search(without_code(text))

def field_counts():
    text = ' '.join(t for p in sorted((ROOT/'nbs/1_paper').glob('*.ipynb')) for _,t in prose_of_notebook(p)).lower()
    return Counter({w: len(re.findall(rf'\b{w}', text)) for w in FIELD})

def test_the_fields_words_are_there():
    counts = field_counts()
    assert all(counts[w] >= 5 for w in FIELD), counts
