"docs/paper.md maps each section, table and figure of the paper to chapters, and each of these chapters names it."
import ast, io, json, re, tokenize
from functools import cache
from pathlib import Path
import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT/'docs/paper.md'
SECTIONS = ('1', '2', '3', '4', '4.1', '4.2', '4.3', '5', '6', 'A.1', 'A.2', 'A.3', 'A.4', 'A.5', 'B', 'C')
PARTS = ('masking', 'encoder', 'decoder', 'reconstruction target', 'simple implementation')  # of section 3
TABLES = ('1a', '1b', '1c', '1d', '1e', '1f', *map(str, range(2, 14)))
FIGURES = tuple(map(str, range(1, 12)))
PAPER = dict(section=SECTIONS, table=TABLES, figure=FIGURES)

# What counts as a mention. One thing: "Table 1c", "Fig. 5", "section 4.1", "appendix A.1", "section A.1".
# Several, after a plural: "Tables 1a and 1b", "Tables 1a, b", "Tables 4 to 7 and 13", "Figs 5, 7", "sections 1, 3 and 4", "appendices A.3 to A.5".
KINDS = dict(table='table', tables='table', fig='figure', figs='figure', section='section', sections='section', appendix='section', appendices='section')
REF = r'(?:[A-C](?:\.\d)?|\d+(?:\.\d)?[a-f]?)\b'
MENTION = re.compile(rf'\b(?:(?P<one>[Tt]able|[Ff]ig\.|[Ss]ection|[Aa]ppendix)\s+(?P<ref>{REF})'
                     rf'|(?P<many>[Tt]ables|[Ff]igs\.?|[Ss]ections|[Aa]ppendices)\s+(?P<refs>{REF}(?:(?:\s*,\s*and\s+|\s*,\s*|\s+and\s+|\s+to\s+)(?:{REF}|[a-f]\b))*))')

def listed(kind, refs):
    "The items of a list such as '4 to 7 and 13' or '1a, b'."
    order,found,to = PAPER[kind],[],False
    for word in re.findall(rf'\b(?:to\b|{REF}|[a-f]\b)', refs):
        if word == 'to': to = True; continue
        if re.fullmatch('[a-f]', word): word = found[-1][:-1] + word if found else word
        if to and found[-1] in order and word in order: found += order[order.index(found[-1]) + 1:order.index(word)]
        found.append(word)
        to = False
    return found

def mentions(text):
    "All that a text names of the paper, as pairs of kind and number."
    found = set()
    for m in MENTION.finditer(text):
        kind = KINDS[(m['one'] or m['many']).lower().rstrip('.')]
        found |= {(kind, x) for x in ([m['ref']] if m['one'] else listed(kind, m['refs']))}
    return found

def comments(code):
    "Comments, captions and docstrings of a cell of code."
    code = re.sub(r'^(\s*)[%!].*$', r'\1pass', code, flags=re.M)
    yield from (t.string for t in tokenize.generate_tokens(io.StringIO(code).readline) if t.type == tokenize.COMMENT)
    for n in ast.walk(ast.parse(code)):
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)): yield ast.get_docstring(n) or ''

@cache
def named_in(path):
    "What a notebook names in its prose, captions and comments."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    texts = ([''.join(c['source'])] if c['cell_type'] == 'markdown' else comments(''.join(c['source'])) for c in cells if c['cell_type'] != 'raw')
    return {x for text in texts for part in text for x in mentions(part)}

def keys(kind, cell):
    "The numbers in a row's first cell: '2, 3' or '4.1 Main properties'."
    return cell.split(' ')[:1] if kind == 'section' else [x.strip() for x in cell.split(',')]

def rows(text):
    "Rows of the map: kind, first cell, the cell of the chapters that name it, the cell of those that only build or run it."
    kind = None
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip('|').split('|')] if line.startswith('|') else []
        if not cells: kind = None
        elif kind is None: kind = cells[0]
        elif not set(cells[0]) <= set('-:'): yield kind, cells[0], cells[-2], cells[-1]

def links(cell): return [(PAGE.parent/url).resolve() for url in re.findall(r'\]\(([^)#\s]+\.ipynb)', cell)]

def faults(row):
    "What is wrong with a row."
    kind,first,here,also = row
    for path in links(here) + links(also):
        if not path.exists(): yield f'{kind} {first}: no file {path.name}'
    if not links(here): yield f'{kind} {first}: no chapter'
    for number in keys(kind, first):
        if number not in PAPER[kind]: yield f'{kind} {first}: the paper has no {kind} {number}'
        for path in links(here):
            if path.exists() and (kind, number) not in named_in(path): yield f'{kind} {first}: {path.stem} does not name {kind} {number}'

ROWS = list(rows(PAGE.read_text(encoding='utf-8')))

@pytest.mark.parametrize('row', ROWS, ids=lambda r: f'{r[0]}-{r[1]}')
def test_chapters_name_what_the_map_says(row): assert list(faults(row)) == []

@pytest.mark.parametrize('kind', PAPER)
def test_the_map_is_complete(kind):
    found = [x for k,first,*_ in ROWS if k == kind for x in keys(kind, first)]
    assert list(dict.fromkeys(found)) == list(PAPER[kind])  # all of them, in the paper's order
    if kind == 'section': assert [f.split(': ')[1] for k,f,*_ in ROWS if f.startswith('3 ')] == list(PARTS)
    else: assert len(found) == len(set(found))

@pytest.mark.parametrize('row,fault', [
    (('table', '13', '[03 masking](../nbs/1_paper/03_masking.ipynb)', ''), '03_masking does not name table 13'),
    (('table', '1f', '[03 masking](../nbs/1_paper/03_masks.ipynb)', ''), 'no file 03_masks.ipynb'),
    (('table', '1f', '[03 masking](../nbs/1_paper/03_masking.ipynb)', '[x](../nbs/x.ipynb)'), 'no file x.ipynb'),
    (('table', '14', '[03 masking](../nbs/1_paper/03_masking.ipynb)', ''), 'no table 14'),
    (('figure', '5, 9', '[03 masking](../nbs/1_paper/03_masking.ipynb)', ''), 'does not name figure 9'),
    (('section', 'C Robustness', '[03 masking](../nbs/1_paper/03_masking.ipynb)', ''), 'does not name section C'),
    (('figure', '1', 'in every chapter', ''), 'no chapter')])
def test_a_planted_wrong_row_is_noticed(row, fault): assert any(fault in x for x in faults(row))

@pytest.mark.parametrize('text,kind,want', [
    ('as Table 1c shows', 'table', '1c'), ('Tables 1a and 1b', 'table', '1a 1b'), ('Tables 1a, b', 'table', '1a 1b'), ('Tables 4 to 7 and 13', 'table', '4 5 6 7 13'),
    ('Tables 1, 2, 3 and 7', 'table', '1 2 3 7'), ('Table 3, 1600 epochs', 'table', '3'), ('Table 12 and 73.5', 'table', '12'), ('Figs 5, 7', 'figure', '5 7'),
    ('Fig. 9', 'figure', '9'), ('Figs 10 and 11 are', 'figure', '10 11'), ('Section 4.1 and', 'section', '4.1'), ('sections 1, 3 and 4 of', 'section', '1 3 4'),
    ('appendix A.1', 'section', 'A.1'), ('section A.1', 'section', 'A.1'), ('appendices A.3 to A.5, B', 'section', 'A.3 A.4 A.5 B'), ('a section of 4', 'section', ''), ('the table 1a', 'table', '1a'),
    ('Fig 5', 'figure', ''), ('Section 3 Approach', 'section', '3'), ('sections 4 and 5.', 'section', '4 5'), ('section A', 'section', 'A')])
def test_mentions(text, kind, want): assert mentions(text) == {(kind, x) for x in want.split()}

def test_only_prose_captions_and_comments_count():
    code = "#| fig-cap: The paper's Fig. 5.\nx = 'Table 13'  # Table 9\ndef f():\n    \"Section 3\"\n    return x\n%time f()"
    assert {x for text in comments(code) for x in mentions(text)} == {('figure', '5'), ('table', '9'), ('section', '3')}
