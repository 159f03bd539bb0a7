"The page of mae_export: its forward pass beside PyTorch's, in Node and in a browser; painting, bad files, hostile names. And the ONNX graphs."
import importlib.util, json, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from mae_nb.core.files import save_weights
from mae_nb.data.datasets import normalise
from mae_nb.demo.config import ExportConfig
from mae_nb.demo.graphs import AutoencoderGraph, EncoderGraph, largest_difference, trace
from mae_nb.demo.export import build_page, example_images, export, first_frame, model_record, rounded
from mae_nb.model.blocks import attention_weights
from mae_nb.model.mae import mae_model
from mae_nb.model.masking import grid_scores, mask_from_scores, random_scores
from mae_nb.model.masks import scores_from_mask
from mae_nb.model.patches import unpatchify
from mae_nb.plots.images import reconstruct
from mae_nb.weights.hub import from_pretrained

ROOT = Path(__file__).parent.parent
DEMO = ROOT/'mae_nb/demo'
BOUND = 1e-4  # of pixels in [0, 1], beside PyTorch with the weights that the page has
COST = dict(fp32=1e-4, fp16=1e-3, int8=0.06)  # beside the bundled model with its own weights
node = pytest.mark.skipif(not shutil.which('node'), reason='no Node.js here: the forward pass in JavaScript is not run')

# --- the WebAssembly ---
def test_webassembly_is_made_of_its_source():
    pytest.importorskip('wasmtime', reason='no wasmtime here: matmul.wat is not assembled')
    sys.path.insert(0, str(ROOT/'tools'))
    from wasm import assemble
    code = assemble()
    assert code == (DEMO/'matmul.wasm').read_bytes(), 'run `python tools/wasm.py`'
    assert len(code) < 700

def js(code, *args):
    "What a script prints, as JSON; it has the forward pass as `MAE`."
    head = f'const fs = require("fs"); const MAE = new Function(fs.readFileSync({json.dumps(str(DEMO/"demo.js"))}, "utf8") + "; return MAE")();\n'
    done = subprocess.run(['node', '-', *map(str, args)], input=head + code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

@node
def test_both_products_are_right():
    "Of every shape that blocks of 4 and 8 may leave something over of, with what is left from before in the memory."
    worst = js('''
      const wasm = fs.readFileSync(process.argv[2]), worst = [0, 0];
      for (const [M, K, N] of [[4, 1, 8], [4, 3, 16], [8, 96, 24], [52, 50, 32], [12, 7, 40]]) for (const way of [0, 1]) {
        const memory = new WebAssembly.Memory({initial: 4}), f = new Float32Array(memory.buffer), A = 0, B = M*K, C = B + K*N;
        f.forEach((_, i) => { f[i] = Math.sin(i + 1); });
        const g = Float64Array.from(f);
        if (way) MAE.plainProduct(f, A, B, C, M, K, N);
        else new WebAssembly.Instance(new WebAssembly.Module(wasm), {page: {memory}}).exports.multiply(4*A, 4*B, 4*C, M, K, N);
        for (let m = 0; m < M; m++) for (let n = 0; n < N; n++) {
          let s = 0;
          for (let k = 0; k < K; k++) s += g[A + m*K + k]*g[B + k*N + n];
          worst[way] = Math.max(worst[way], Math.abs(s - f[C + m*N + n]));
        }
      }
      console.log(JSON.stringify(worst));''', DEMO/'matmul.wasm')
    assert max(worst) < 1e-5

# --- the forward pass ---
def masks(h, w):
    "Three masks: random, a grid, and a painted one that leaves a single patch."
    painted = torch.ones(1, h*w)
    painted[0,h*w//2] = 0
    grid = grid_scores(1, (h, w), lambda *s: torch.rand(*s, generator=torch.Generator().manual_seed(3)))
    return [(random_scores(1, h*w, torch.Generator().manual_seed(2)), 0.75), (grid, 0.5), scores_from_mask(painted)]

PASS = '''
  const {page, cases, plain} = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
  const data = JSON.parse(fs.readFileSync(page, "utf8").match(/id="data">(.*?)<\\/script>/s)[1]);
  const model = MAE.load(data.models[0], plain ? null : MAE.decode(data.wasm)), L = model.c.grid[0]*model.c.grid[1];
  console.log(JSON.stringify(cases.map(({image, mask, honest}) => {
    const r = MAE.reconstruct(model, Float32Array.from(MAE.decode(data.images[image].pixels), v => v/255), Uint8Array.from(mask), honest);
    const looks = !mask.includes(0) ? [] : [...r.encoder, ...r.decoder].map((_, b) => MAE.attention(r, b, mask.indexOf(0), L));
    return {fast: model.shop.fast, painted: [...r.painted], loss: r.loss, looks: looks.map(a => [...a]), none: MAE.attention(r, 0, mask.indexOf(1), L)};
  })));'''

def write_page(folder, model, dtype, data=None):
    "A page of one model with examples; where it is, and the examples."
    examples = example_images(model.cfg, data)
    path = folder/'page.html'
    path.write_text(build_page([model_record(model, 'm', dtype)], examples, *first_frame(model, examples[0][1]), 'A page'), encoding='utf-8')
    return path, [t for _,t in examples]

def run_page(page, folder, cases, plain=False):
    (folder/'cases.json').write_text(json.dumps(dict(page=str(page), cases=cases, plain=plain)))
    return js(PASS, folder/'cases.json')

def shaken(model):
    "A model whose biases, norms and tokens are no longer zeros and ones, so that forgetting one shows."
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for k,p in model.named_parameters():
            if 'pos_embed' not in k: p.add_(0.05*torch.randn(p.shape, generator=g))
    return model.eval()

def models():
    yield 'bundled', from_pretrained('fashion_nano'), 'fashion', False
    colour = dict(img_size=(16, 24), patch_size=4, in_chans=3, embed_dim=36, depth=2, num_heads=3, decoder_embed_dim=20, decoder_depth=2, decoder_num_heads=2, mlp_ratio=2.5)
    yield 'colour', shaken(mae_model('mae_vit_nano_patch4', **colour, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))), None, False
    yield 'normalised', shaken(mae_model('mae_vit_nano_patch4', **colour, norm_pix_loss=True)), None, False
    yield 'honest', shaken(mae_model('mae_vit_nano_patch4', **colour, norm_pix_loss=True)), None, True

@pytest.mark.slow
@node
@pytest.mark.parametrize('dtype', ['fp32', 'fp16', 'int8'])
@pytest.mark.parametrize('what', ['bundled', 'colour', 'normalised', 'honest'])
def test_reconstructions_are_pytorchs(tmp_path, what, dtype):
    "Three images under three masks, with WebAssembly and without."
    _,model,data,honest = next(m for m in models() if m[0] == what)
    page,imgs = write_page(tmp_path, model, dtype, data)
    oracle = rounded(model, dtype)
    wanted,cases = [], []
    for i in range(3):
        for scores,ratio in masks(*model.grid):
            x = normalise(imgs[i][None], model.cfg.mean, model.cfg.std)
            r,own = (reconstruct(m, x, ratio, scores, 'visible' if honest else 'true').reconstruction for m in (oracle, model))
            with torch.no_grad(): out = oracle(x, ratio, scores)
            wanted.append((r, own, out.loss.item()))
            cases.append(dict(image=i, mask=out.mask[0].int().tolist(), honest=honest))
    for plain in (False, True):
        for got,(picture,own,loss) in zip(run_page(page, tmp_path, cases, plain), wanted):
            assert got['fast'] != plain and got['none'] is None
            ours = torch.tensor(got['painted']).view_as(picture)
            assert (ours - picture).abs().max() < BOUND and abs(got['loss'] - loss) < BOUND*max(1, loss)
            if what == 'bundled': assert (ours - own).abs().max() < COST[dtype]

@node
def test_attention_is_pytorchs(tmp_path):
    "Of every block of encoder and decoder, from a visible patch to all patches that are there."
    _,model,data,_ = next(models())
    page,imgs = write_page(tmp_path, model, 'fp32', data)
    m = mask_from_scores(random_scores(1, 49, torch.Generator().manual_seed(2)), 0.75)
    mask = m.mask[0].int().tolist()
    seen,hooks = [], []
    for block in [*model.blocks, *model.decoder_blocks]:
        hooks.append(block.attn.register_forward_pre_hook(lambda attn, args: seen.append(attention_weights(attn, args[0]).mean(1)[0])))
    with torch.no_grad(): model(normalise(imgs[0][None], model.cfg.mean, model.cfg.std), 0.75, m.ids_restore.float())
    for h in hooks: h.remove()
    got = run_page(page, tmp_path, [dict(image=0, mask=mask, honest=False)])[0]['looks']
    first = mask.index(0)
    keep = m.ids_keep[0].tolist()
    for b,(map_,row) in enumerate(zip(seen, got)):
        want = torch.zeros(49)
        if b < len(model.blocks): want[keep] = map_[1 + keep.index(first),1:]
        else: want = map_[1 + first,1:]
        torch.testing.assert_close(torch.tensor(row), want, atol=1e-5, rtol=0)

@node
def test_nothing_and_all_masked(tmp_path):
    "What PyTorch's side refuses the hand can paint: nothing masked has no loss; all masked is what the decoder makes of the class token."
    model = from_pretrained('fashion_nano')
    page,imgs = write_page(tmp_path, model, 'fp32', 'fashion')
    none,everything = run_page(page, tmp_path, [dict(image=0, mask=[0]*49, honest=False), dict(image=0, mask=[1]*49, honest=True)])
    assert none['loss'] is None and np.isfinite(none['painted']).all()
    x = normalise(imgs[0][None], model.cfg.mean, model.cfg.std)
    with torch.no_grad(): pred = AutoencoderGraph(model)(x, torch.zeros(1, 0, dtype=torch.long))
    picture = unpatchify(pred, 4)*model.cfg.std[0] + model.cfg.mean[0]
    assert (torch.tensor(everything['painted']).view(1, 1, 28, 28) - picture).abs().max() < BOUND

def test_what_8_bits_cost():
    "The bundled model's pictures in 8 bits, beside those of its own weights: the bound that chapter 73a states."
    from mae_nb.data.bundled import fashion
    model = from_pretrained('fashion_nano')
    x = normalise(fashion('test').imgs[:50], model.cfg.mean, model.cfg.std)
    scores = random_scores(50, 49, torch.Generator().manual_seed(1))
    far = (reconstruct(rounded(model, 'int8'), x, scores=scores).reconstruction - reconstruct(model, x, scores=scores).reconstruction).abs()
    assert far.max() < COST['int8'] and far.mean() < 2e-3

def test_half_precision_fits_into_3_mb(tmp_path):
    "The bundled model and its untrained twin; in 8 bits it is half as much."
    assert export(ExportConfig('fashion_nano', str(tmp_path/'half.html'), dtype='fp16'), lambda line: None).stat().st_size < 3e6

# --- what is refused ---
def error_of(capsys, *args):
    from mae_nb.cli import mae_export
    assert mae_export([str(a) for a in args]) == 2
    return ' '.join(capsys.readouterr().err.split())

def test_what_is_refused(tmp_path, capsys):
    out = tmp_path/'demo.html'
    small = mae_model('mae_vit_nano_patch4', img_size=32)
    save_weights(small.state_dict(), vars(small.cfg), tmp_path/'other')
    (tmp_path/'notes.txt').write_text('no picture')
    cases = [(('--model', 'fashion_nan'), 'no weights'), (('--model', 'fashion_nano', '--images', tmp_path/'notes.txt'), 'cannot be read as an image'),
             (('--model', 'fashion_nano', '--compare', tmp_path/'other'), 'takes other images than fashion_nano'), (('--model', 'fashion_nano', '--dtype', 'int4'), 'int4')]
    for args,says in cases: assert says in error_of(capsys, *args, '--output', out), args
    assert 'must end in .html' in error_of(capsys, '--model', 'fashion_nano', '--output', tmp_path/'demo')
    assert not out.exists()
    out.write_text('mine')
    assert 'is there already' in error_of(capsys, '--model', 'fashion_nano', '--output', out) and out.read_text() == 'mine'

# --- graphs ---
@pytest.mark.slow
def test_graphs_are_pytorchs(tmp_path, capsys):
    "Encoder and autoencoder, for two sizes of image and two batches, none of them those of the tracing; and what stands beside them."
    for name in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(name, reason=f'no {name} here: graphs are not written')
    import onnxruntime
    from mae_nb.cli import mae_export
    colour = dict(img_size=(16, 24), patch_size=4, in_chans=3, embed_dim=36, depth=2, num_heads=3, decoder_embed_dim=20, decoder_depth=2, decoder_num_heads=2)
    model = shaken(mae_model('mae_vit_nano_patch4', **colour, norm_pix_loss=True, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)))
    save_weights(model.state_dict(), vars(model.cfg), tmp_path/'run')
    assert mae_export(['--model', str(tmp_path/'run'), '--to', 'onnx', '--output', str(tmp_path/'graphs')]) == 0
    about = json.loads((tmp_path/'graphs/about.json').read_text())
    assert about['any_size'] and about['norm_pix_loss'] and about['mean'] == [0.5, 0.4, 0.3]
    encoder,autoencoder = (onnxruntime.InferenceSession(tmp_path/f'graphs/{k}.onnx', providers=['CPUExecutionProvider']) for k in ('encoder', 'autoencoder'))
    for B,H,W,K in [(1, 16, 24, 1), (5, 32, 20, 13)]:
        imgs = torch.randn(B, 3, H, W, generator=torch.Generator().manual_seed(B))
        L = H*W//16
        m = mask_from_scores(random_scores(B, L, torch.Generator().manual_seed(1)), 1 - (K + 0.5)/L)
        assert m.ids_keep.shape == (B, K)
        with torch.no_grad(): tokens,pred = model.encode(imgs).tokens, model(imgs, 1 - (K + 0.5)/L, m.ids_restore.float()).pred
        got, = encoder.run(None, dict(imgs=imgs.numpy()))
        assert np.abs(got - tokens.numpy()).max() < 1e-4
        got, = autoencoder.run(None, dict(imgs=imgs.numpy(), ids_keep=m.ids_keep.numpy()))
        assert np.abs(got - pred.numpy()).max() < 1e-4
    assert 'is there already' in error_of(capsys, '--model', tmp_path/'run', '--to', 'onnx', '--output', tmp_path/'graphs')
    assert 'title: for a page' in error_of(capsys, '--model', tmp_path/'run', '--to', 'onnx', '--output', tmp_path/'more', '--title', 'Mine')

@pytest.mark.slow
def test_a_strangers_positions_fix_the_size_of_a_graph(tmp_path):
    "A table that follows no formula goes into the graph as it is."
    pytest.importorskip('onnxruntime', reason='no onnxruntime here: graphs are not written')
    pytest.importorskip('onnxscript', reason='no onnxscript here: graphs are not written')
    model = mae_model('mae_vit_nano_patch4', img_size=16, embed_dim=12, depth=1, num_heads=1, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=1)
    with torch.no_grad(): model.pos_embed.normal_(generator=torch.Generator().manual_seed(0))
    path = trace(EncoderGraph(model.eval()), tmp_path/'encoder.onnx')
    assert not EncoderGraph(model).pos.free and largest_difference(path, EncoderGraph(model), torch.rand(3, 1, 16, 16)) < 1e-4
    with pytest.raises(Exception, match='(?i)dimension'): largest_difference(path, EncoderGraph(model), torch.rand(1, 1, 32, 16))

def test_without_onnx_one_is_told_what_to_install(tmp_path, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'onnxscript' else there(name, *a))
    with pytest.raises(ValueError, match=r"need onnxscript: pip install 'mae_nb\[onnx\]'"): export(ExportConfig('fashion_nano', str(tmp_path/'graphs'), to='onnx'))
    assert not (tmp_path/'graphs').exists()
