"""Make mae_nb/demo/matmul.wasm of matmul.wat: `python tools/wasm.py`; with --check, only compare.

Needs wasmtime (a dev requirement) for its assembler. Names of parts, which it stores for debuggers, are left out.
"""
import argparse, sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent/'mae_nb'/'demo'

def size_at(code, i):
    "A size as WebAssembly writes it (LEB128, 7 bits a byte), and where it ends."
    size = shift = 0
    while True:
        byte = code[i]
        size |= (byte & 127) << shift
        i,shift = i + 1, shift + 7
        if byte < 128: return size, i

def without_names(code):
    "A module without its custom sections (number 0)."
    out,i = code[:8], 8
    while i < len(code):
        size,start = size_at(code, i + 1)
        if code[i]: out += code[i:start + size]
        i = start + size
    return bytes(out)

def assemble():
    "The bytes of the module."
    from wasmtime import wat2wasm
    return without_names(wat2wasm((FOLDER/'matmul.wat').read_text(encoding='utf-8')))

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--check', action='store_true', help='write nothing; exit status 1 if the file would change')
    code = assemble()
    if p.parse_args().check: sys.exit(code != (FOLDER/'matmul.wasm').read_bytes())
    (FOLDER/'matmul.wasm').write_bytes(code)
    print(f'{FOLDER/"matmul.wasm"}: {len(code)} bytes')
