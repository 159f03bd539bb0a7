"""Write README.md from nbs/index.ipynb: text, code and outputs; `--check` fails when it is stale.

Links of the notebook become links from the top folder; cells marked `#| hide` are left out, those marked `#| echo: false` show their output only.
"""
import argparse, json, posixpath, re, sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOTE = '<!-- Made from nbs/index.ipynb by tools/readme.py: edit that notebook. -->\n\n'

def relink(text):
    "Make relative links, seen from nbs/, relative to the top folder."
    def one(m):
        url = m[2]
        if re.match(r'[a-z]+:|#|/', url): return m[0]
        return m[1] + posixpath.normpath(posixpath.join('nbs', url)) + m[3]
    text = re.sub(r'(\]\()([^)\s]+)(\))', one, text)
    return re.sub(r'((?:src|href)=")([^"]+)(")', one, text)

def output(o):
    "One output as Markdown."
    if o['output_type'] == 'stream': return f'```\n{"".join(o["text"]).rstrip()}\n```'
    data = o['data']
    if 'text/markdown' in data: return relink(''.join(data['text/markdown']))
    if 'image/png' in data: raise SystemExit('index.ipynb: pictures must be files, linked from Markdown')
    return f'```\n{"".join(data["text/plain"])}\n```'

def cell(c):
    "One cell as Markdown, or nothing."
    src = ''.join(c['source'])
    if c['cell_type'] == 'markdown': return relink(src)
    marks = re.findall(r'^#\|\s*(.+?)\s*$', src, re.M)
    if c['cell_type'] != 'code' or 'hide' in marks: return ''
    code = re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip()
    parts = [] if 'echo: false' in marks else [f'```python\n{code}\n```']
    return '\n\n'.join(parts + [output(o) for o in c['outputs']])

def readme():
    "The whole page."
    nb = json.loads((ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8'))
    return NOTE + '\n\n'.join(t for c in nb['cells'] if (t := cell(c).strip())) + '\n'

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true', help='write nothing; fail when README.md is stale')
    check,path,text = p.parse_args().check,ROOT/'README.md',readme()
    if check and path.read_text(encoding='utf-8') != text: sys.exit('README.md is stale: run `make notebooks`')
    if not check: path.write_text(text, encoding='utf-8')
