"Weights: layouts there and back, parity with the libraries that own them, names and downloads, refusals."
import argparse, functools, http.server, json, os, pickle, shutil, threading, urllib.error
from pathlib import Path
import pytest, timm, torch, torch.nn.functional as F
from safetensors.torch import load_file, save_file
from mae_nb.weights import hub
from mae_nb.cli import mae_convert
from mae_nb.model.encoder import MAEEncoder
from mae_nb.model.config import vit_sizes
from mae_nb.weights.hub import download, from_pretrained, official, resolve_weights
from mae_nb.model.config import ClassifierConfig, MAEConfig
from mae_nb.model.mae import MaskedAutoencoderViT
from mae_nb.model.classifier import ViTClassifier
from mae_nb.weights.config import ConvertConfig
from mae_nb.weights.export import convert
from mae_nb.weights.adapt import adapt, adapt_input_channels, build_model, resample_patch_embed, resample_positions, select_part
from mae_nb.weights.formats import from_hf, read_weights, to_hf

transformers = pytest.importorskip('transformers')
SIZES = {'base': dict(vit_sizes['base']), 'large': dict(vit_sizes['large'], embed_dim=64), 'huge': dict(vit_sizes['huge'], embed_dim=64)}
NARROW = dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)
quiet = lambda *_: None

def randomised(model):
    "Every parameter other than its neighbour, so that a swap shows."
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters(): p.add_(torch.randn(p.shape, generator=g)*0.02)
    return model.eval()

def same(a, b):
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    for k in a: assert torch.equal(a[k], b[k]), k

@pytest.fixture(scope='module')
def small(): return randomised(MaskedAutoencoderViT(MAEConfig(**NARROW)))

def encoder_of(model): return {k: v for k,v in model.state_dict().items() if not k.startswith(('decoder_', 'mask_token'))}

# -- there and back

@pytest.mark.parametrize('size', [pytest.param('base', marks=pytest.mark.slow), 'large', 'huge'])
def test_there_and_back(size, tmp_path):
    "Official, timm, Hugging Face: bit-identical, with as many tensors as the released files have."
    s = SIZES[size]
    small = {} if size == 'base' else dict(decoder_embed_dim=64)
    cfg = MAEConfig(**s, **small); model = randomised(MaskedAutoencoderViT(cfg)); state = model.state_dict()
    n = s['depth']
    assert (len(encoder_of(model)), len(state), len(to_hf(state))) == (6 + 12*n, 6 + 12*n + 104, 6 + 16*n + 136)
    if size == 'base': assert (len(encoder_of(model)), len(state), len(to_hf(state))) == (150, 254, 334)
    torch.save(dict(model=state), tmp_path/'full.pth')
    known = dict(num_heads=s['num_heads'], decoder_num_heads=16, norm_pix_loss=False)
    got = read_weights(tmp_path/'full.pth', **known)
    same(build_model(got).state_dict(), state)
    (tmp_path/'full.pth').unlink()
    same(from_hf(to_hf(state)), state)
    e = encoder_of(model); same(from_hf(to_hf(e)), e); same(select_part(got, 'encoder').state, e)
    t = timm.create_model('vit_base_patch16_224', num_classes=0, **{k: v for k,v in s.items()})
    t.load_state_dict(e); same(t.state_dict(), e)
    c = ClassifierConfig(**s, num_classes=1000); head = ViTClassifier(c).state_dict()
    assert len(head) == 6 + 12*n + 2 and 'norm.weight' not in head
    t = timm.create_model('vit_base_patch16_224', global_pool='avg', **s)
    t.load_state_dict(head)
    same(t.state_dict(), head)

def written_by_them(small, where, layout):
    "A file of a layout, made by the library that owns it."
    from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel
    c = ViTMAEConfig(hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8, decoder_hidden_size=32,
                     decoder_num_hidden_layers=2, decoder_num_attention_heads=4, decoder_intermediate_size=128, layer_norm_eps=1e-6, norm_pix_loss=True)
    kind = dict(hf=ViTMAEForPreTraining, hf_memory=ViTMAEForPreTraining, hf_bin=ViTMAEForPreTraining, hf_encoder=ViTMAEModel)
    if layout in kind:
        m = randomised(kind[layout](c)); m.save_pretrained(where)
        if layout == 'hf_memory': save_file(m.state_dict(), where/'model.safetensors', {'format': 'pt'})
        if layout == 'hf_bin': torch.save(load_file(where/'model.safetensors'), where/'pytorch_model.bin'); (where/'model.safetensors').unlink()
        return where,m
    t = randomised(timm.create_model('vit_base_patch16_224', img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=5 if layout == 'timm_avg' else 0,
                                     global_pool='avg' if layout == 'timm_avg' else 'token'))
    if layout == 'timm_folder':
        from timm.models.hub import save_for_hf
        save_for_hf(t, where, model_args=dict(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4), safe_serialization=True)
        return where,t
    torch.save(t.state_dict(), where/'t.pth')
    return where/'t.pth',t

@pytest.mark.parametrize('layout', ['hf', 'hf_memory', 'hf_bin', 'hf_encoder', 'timm', 'timm_folder', 'timm_avg'])
def test_files_of_the_libraries(layout, small, tmp_path):
    "What transformers and timm write, loads; and scores the same images the same."
    path,theirs = written_by_them(small, tmp_path, layout)
    ours = from_pretrained(path, log=quiet, **(dict(num_heads=4) if layout.startswith('timm') else {}))
    x,noise = torch.randn(2, 3, 32, 32),torch.rand(2, 16)
    with torch.no_grad():
        if layout == 'hf_encoder':
            assert isinstance(ours, MAEEncoder)
            theirs.config.mask_ratio = theirs.embeddings.config.mask_ratio = 0.
            got = theirs(x, noise=torch.arange(16.).expand(2, -1)).last_hidden_state
            torch.testing.assert_close(got, ours.encode(x).tokens, atol=1e-5, rtol=0)
        elif layout.startswith('hf'):
            assert ours.cfg.norm_pix_loss is True and len(theirs.state_dict()) == 6 + 16*3 + 6 + 2 + 16*2
            a,b = theirs(x, noise=noise),ours(x, scores=noise)
            torch.testing.assert_close(a.loss, b.loss, atol=1e-5, rtol=0)
            torch.testing.assert_close(a.logits, b.pred, atol=1e-5, rtol=0)
            torch.testing.assert_close(theirs.vit(x, noise=noise).last_hidden_state, ours.forward_encoder(x, scores=noise)[0], atol=1e-5, rtol=0)
        elif layout == 'timm_avg': torch.testing.assert_close(theirs(x), ours(x), atol=1e-5, rtol=0)
        else: torch.testing.assert_close(theirs.forward_features(x), ours.encode(x).tokens, atol=1e-5, rtol=0)

@pytest.mark.parametrize('kind', ['autoencoder', 'encoder'])
def test_hugging_face_reads_ours(kind, small, home, tmp_path):
    from transformers import ViTImageProcessor, ViTMAEForPreTraining, ViTMAEModel
    out = convert(ConvertConfig(source=home/'small', output=tmp_path/'hf', to='hf', kind=kind), quiet)
    theirs,info = (ViTMAEForPreTraining if kind == 'autoencoder' else ViTMAEModel).from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    same({k: v for k,v in from_hf(theirs.state_dict()).items()}, small.state_dict() if kind == 'autoencoder' else encoder_of(small))
    assert theirs.config.layer_norm_eps == 1e-6 and ViTImageProcessor.from_pretrained(out).size['height'] == 32
    same(from_pretrained(out, log=quiet).state_dict(), small.state_dict() if kind == 'autoencoder' else encoder_of(small))

@pytest.mark.parametrize('pool,bn', [('avg', False), ('token', False), ('token', True)])
def test_timm_reads_ours(pool, bn, tmp_path):
    "Encoders and classifiers; a probe's BatchNorm is folded into its linear map."
    c = ClassifierConfig(img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=7, pool=pool, batch_norm=bn, classes=tuple('abcdefg'))
    m = randomised(ViTClassifier(c))
    if bn: m.head[0].running_mean.normal_(); m.head[0].running_var.uniform_(0.5, 2)
    from dataclasses import asdict
    from mae_nb.core.files import save_weights
    save_weights(m.state_dict(), asdict(c), tmp_path/'run')
    out = convert(ConvertConfig(source=tmp_path/'run', output=tmp_path/'timm', to='timm'), quiet)
    theirs,x = timm.create_model(f'local-dir:{out}', pretrained=True).eval(),torch.randn(2, 3, 32, 32)
    with torch.no_grad(): torch.testing.assert_close(theirs(x), m(x), atol=1e-5, rtol=0)
    if not bn: same(theirs.state_dict(), m.state_dict())
    assert json.loads((out/'config.json').read_text())['label_names'] == list('abcdefg')
    assert list(theirs.pretrained_cfg['label_names']) == list('abcdefg')  # as timm itself has read them

@pytest.fixture(scope='module')
def home(tmp_path_factory, small):
    "Small weights in several files."
    from dataclasses import asdict
    from mae_nb.core.files import save_weights
    home = tmp_path_factory.mktemp('weights')
    save_weights(small.state_dict(), asdict(small.cfg), home/'small')
    torch.save(dict(model=small.state_dict(), optimizer={}, epoch=3, args=argparse.Namespace(lr=1.)), home/'full.pth')
    torch.save(dict(model=encoder_of(small)), home/'encoder.pth')
    return home

def test_timm_reads_our_encoder(small, home, tmp_path):
    out = convert(ConvertConfig(source=home/'small', output=tmp_path/'timm', to='timm'), quiet)
    same(timm.create_model(f'local-dir:{out}', pretrained=True).state_dict(), encoder_of(small))

@pytest.mark.parametrize('to', ['official', 'hf', 'mae_nb'])
def test_convert_loses_nothing(to, small, home, tmp_path):
    "Everything that is known of the model comes back: shapes, heads, target, normalisation."
    out = convert(ConvertConfig(source=home/'small', output=tmp_path/'x', to=to), quiet)
    back = from_pretrained(out/'model.pth' if to == 'official' else out, log=quiet)
    same(back.state_dict(), small.state_dict())
    assert back.cfg == small.cfg

# -- adapted on request

def official_interpolation(table, new):
    "The rule of the release, restated: bicubic, corners not aligned, no antialias, CLS apart."
    D,side = table.shape[-1],int((table.shape[1] - 1)**0.5)
    grid = table[:,1:].reshape(1, side, side, D).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=new, mode='bicubic', align_corners=False)
    return torch.cat([table[:,:1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

@pytest.mark.parametrize('grid', [(14, 20), (28, 28), (7, 7)])
def test_positions_as_the_release(grid):
    table = torch.randn(1, 197, 32)
    assert torch.equal(resample_positions(table, (14, 14), grid), official_interpolation(table, grid))

def test_patches_and_channels():
    "A patch that is enlarged is embedded as before; a grey patch as its RGB was."
    kernel = torch.randn(8, 3, 8, 8)
    large,patch = resample_patch_embed(kernel, 16),torch.randn(5, 3, 8, 8)
    grown = F.interpolate(patch, (16, 16), mode='bicubic', antialias=True)
    torch.testing.assert_close(F.conv2d(grown, large).flatten(1), F.conv2d(patch, kernel).flatten(1), atol=1e-3, rtol=1e-3)
    grey = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(F.conv2d(grey, adapt_input_channels(kernel, 1)), F.conv2d(grey.expand(-1, 3, -1, -1), kernel), atol=1e-4, rtol=1e-4)
    assert torch.equal(adapt_input_channels(kernel, 6)[:,3:], kernel/2)
    torch.testing.assert_close(F.conv2d(grey.expand(-1, 3, -1, -1), adapt_input_channels(kernel[:,:1], 3)), F.conv2d(grey, kernel[:,:1]), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match='have 2'): adapt_input_channels(kernel[:,:2], 3)

def test_fit_only_when_asked(home, tmp_path):
    w = select_part(read_weights(home/'small'), 'encoder')
    assert adapt(w) is w
    new = adapt(w, img_size=(32, 64), patch_size=16, in_chans=1)
    assert new.state['pos_embed'].shape == (1, 1 + 2*4, 48) and new.state['patch_embed.proj.weight'].shape == (48, 1, 16, 16) and len(new.notes) == 4
    assert from_pretrained(home/'small', 'encoder', img_size=48, log=quiet).encode(torch.randn(1, 3, 48, 48)).tokens.shape == (1, 37, 48)
    whole = from_pretrained(home/'small', img_size=48, patch_size=16, in_chans=1, log=quiet)
    assert whole(torch.randn(1, 1, 48, 48)).pred.shape == (1, 9, 256) and "the decoder's predictions resized, too" in whole.load_message
    with pytest.raises(ValueError, match='patch'): adapt(w, img_size=33)

# -- refusals

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (Path(self.path),)

def spoil(home, where, how):
    "A file with something wrong."
    state = torch.load(home/'encoder.pth')['model']
    p = where/'x.pth'
    if how == 'truncated': p.write_bytes((home/'encoder.pth').read_bytes()[:-5000])
    if how == 'truncated safetensors': p = where/'x.safetensors'; save_file(state, p); p.write_bytes(p.read_bytes()[:-99])
    if how == 'empty': p.write_bytes(b'')
    if how == 'code': torch.save(dict(model=state, evil=Evil(where/'executed')), p)
    if how == 'plain pickle': p.write_bytes(pickle.dumps(Evil(where/'executed')))
    if how == 'numbers': torch.save(dict(model={'a': 1}), p)
    if how == 'extra': torch.save(dict(model=state | {'more.weight': torch.ones(1)}), p)
    if how == 'missing': torch.save(dict(model={k: v for k,v in state.items() if k != 'blocks.1.norm1.bias'}), p)
    if how == 'width': torch.save(dict(model=state | {'blocks.1.norm1.bias': torch.ones(47)}), p)
    if how == 'foreign': torch.save(dict(model={'conv1.weight': torch.ones(3)}), p)
    if how == 'extra hf': p = where/'x.safetensors'; save_file(to_hf(state) | {'pooler.weight': torch.ones(1)}, p)
    if how == 'half qkv': p = where/'x.safetensors'; save_file({k: v for k,v in to_hf(state).items() if 'layer.0.attention.attention.key.bias' not in k}, p)
    return p

@pytest.mark.parametrize('how,says', [('truncated', 'cannot be read as a file of tensors'), ('truncated safetensors', 'is corrupted'), ('empty', 'cannot be read'),
    ('code', 'nothing else is unpickled'), ('plain pickle', 'nothing else is unpickled'), ('numbers', 'no dictionary of tensors'), ('extra', 'more.weight'),
    ('missing', 'blocks.1.norm1.bias'), ('width', r'blocks.1.norm1.bias.*47'), ('foreign', 'no encoder in it'), ('extra hf', 'pooler.weight'), ('half qkv', 'needs query, key and value')])
def test_spoilt_files(how, says, home, tmp_path):
    with pytest.raises(ValueError, match=f'(?s)x.(pth|safetensors).*{says}'): from_pretrained(spoil(home, tmp_path, how), num_heads=4, log=quiet)
    assert not (tmp_path/'executed').exists()

@pytest.mark.parametrize('change,says', [
    (lambda v: v.int(), 'norm.weight has no ordinary numbers .torch.int32'), (lambda v: v.to(torch.complex64), 'no ordinary numbers .torch.complex64'),
    (lambda v: v.to_sparse(), 'no ordinary numbers .*sparse'), (lambda v: v.to('meta'), 'no ordinary numbers .*meta')])
def test_tensors_without_ordinary_numbers(change, says, home, tmp_path):
    state = torch.load(home/'encoder.pth')['model']
    torch.save(state | {'norm.weight': change(state['norm.weight'])}, tmp_path/'x.pth')
    with pytest.raises(ValueError, match=says): from_pretrained(tmp_path/'x.pth', num_heads=4, log=quiet)

@pytest.mark.parametrize('name,shape', [('pos_embed', (17, 48)), ('patch_embed.proj.weight', (48, 192)), ('cls_token', (48,))])
def test_tensors_of_other_dimensions(name, shape, home, tmp_path):
    torch.save(torch.load(home/'encoder.pth')['model'] | {name: torch.zeros(shape)}, tmp_path/'x.pth')
    with pytest.raises(ValueError, match=f'{name} has shape .*, not . dimensions'): from_pretrained(tmp_path/'x.pth', num_heads=4, log=quiet)

def test_a_file_torn_near_its_beginning(home, tmp_path):
    for n in 1, 30, 999, 5000:
        (tmp_path/'x.pth').write_bytes((home/'encoder.pth').read_bytes()[:n])
        with pytest.raises(ValueError, match='cannot be read as a file of tensors'): from_pretrained(tmp_path/'x.pth', num_heads=4, log=quiet)

def test_a_note_that_is_no_dictionary(home, tmp_path):
    save_file(torch.load(home/'encoder.pth')['model'], tmp_path/'x.safetensors', {'mae_nb': '[1]'})
    with pytest.raises(ValueError, match='its note mae_nb should be a dictionary'): from_pretrained(tmp_path/'x.safetensors', num_heads=4, log=quiet)

@pytest.mark.parametrize('name,kw,error,says', [
    ('encoder.pth', dict(num_heads=4, kind='autoencoder'), ValueError, 'no decoder in it, so it cannot predict pixels'),
    ('encoder.pth', dict(num_heads=4, kind='classifier'), ValueError, 'no head: make one with mae_finetune'),
    ('encoder.pth', {}, ValueError, 'does not store num_heads'),
    ('full.pth', dict(num_heads=4), ValueError, 'does not store decoder_num_heads'),
    ('full.pth', dict(num_heads=4, decoder_num_heads=4), ValueError, 'does not store norm_pix_loss.*_full'),
    ('small', dict(norm_pix_loss=True), ValueError, 'has norm_pix_loss: False, but True was requested'),
    ('small', dict(use_ema=True), FileNotFoundError, 'has no EMA weights'),
    ('full.pth', dict(use_ema=True), ValueError, 'is a file'),
    ('small', dict(kind='decoder'), ValueError, "kind must be .* got 'decoder'"),
    ('small', dict(colour=3), ValueError, 'colour'),
    ('nosuch/thing/here.pth', {}, FileNotFoundError, 'no such file or folder')])
def test_wrong_questions(name, kw, error, says, home):
    with pytest.raises(error, match=f'(?s){says}'): from_pretrained(home/name, log=quiet, **kw)

def test_names():
    with pytest.raises(FileNotFoundError, match='did you mean mae_pretrain_vit_base'): resolve_weights('mae_pretrain_vit_bse', quiet)
    with pytest.raises(FileNotFoundError, match='did you mean vit_base_patch16_224.mae'): resolve_weights('vit_base_patch16_224', quiet)
    assert len(official) == 13 and sum(k.md5 is not None for k in official.values()) == 6
    assert official['mae_pretrain_vit_base_full'].norm_pix_loss and official['mae_visualize_vit_large'].norm_pix_loss is False
    assert resolve_weights('fashion_nano', quiet)[0].is_dir()

def test_official_file_name_tells_the_target(home, tmp_path):
    "A file that bears an official name was trained as that name says."
    for name,target in ('mae_pretrain_vit_base_full', True), ('mae_visualize_vit_large', False):
        shutil.copy(home/'full.pth', tmp_path/f'{name}.pth')
        assert from_pretrained(tmp_path/f'{name}.pth', num_heads=4, decoder_num_heads=4, log=quiet).cfg.norm_pix_loss is target

# -- fetched

class Shelf(http.server.SimpleHTTPRequestHandler):
    "Serves files, and breaks the next answer off when it is told to."
    cut,asked = False,0
    def log_message(self, *_): pass
    def do_GET(self):
        data = (Path(self.directory)/self.path.lstrip('/')).read_bytes()
        Shelf.asked += 1
        self.send_response(200)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data[:2_000_000] if Shelf.cut else data)
        Shelf.cut = False

@pytest.fixture()
def server(tmp_path):
    (tmp_path/'there').mkdir(); (tmp_path/'there'/'w.pth').write_bytes(os.urandom(5_000_000))
    s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Shelf, directory=str(tmp_path/'there')))
    threading.Thread(target=s.serve_forever, daemon=True).start()
    Shelf.cut,Shelf.asked = False,0
    yield f'http://127.0.0.1:{s.server_address[1]}/w.pth', tmp_path/'there'/'w.pth'
    s.shutdown(); s.server_close()

def test_download_that_broke_off_is_begun_again(server, tmp_path):
    "Without a checksum, too; and a file that is replaced meanwhile is never mixed with the old one."
    url,source = server
    Shelf.cut = True
    with pytest.raises(FileNotFoundError, match='the connection broke: 3000000 bytes are missing'): download(url, tmp_path/'cache')
    assert {p.suffix for p in (tmp_path/'cache').iterdir()} == {'.lock'}
    source.write_bytes(os.urandom(4_000_000))
    part = tmp_path/'cache'/(hub._cached(url) + '.part')
    part.write_bytes(os.urandom(6_000_000))  # left by a process that was killed: more than the whole file has
    path = download(url, tmp_path/'cache')
    assert path.read_bytes() == source.read_bytes() and not part.exists()
    assert download(url, tmp_path/'cache', hub.checksum(source)[:6]) == path and Shelf.asked == 2  # it is there

def test_download_of_two_files_with_one_name(server, tmp_path):
    url,source = server
    for who in 'alice', 'bob':
        (source.parent/who).mkdir()
        (source.parent/who/'w.pth').write_bytes(who.encode())
    alice,bob = [download(url.replace('w.pth', f'{who}/w.pth'), tmp_path/'cache') for who in ('alice', 'bob')]
    assert (alice.read_bytes(), bob.read_bytes(), alice.suffix) == (b'alice', b'bob', '.pth')

def test_wrong_checksum(server, tmp_path):
    url,source = server
    with pytest.raises(ValueError, match='checksum is .*123456... was published. Fetch it again'): download(url, tmp_path/'cache', '123456')
    assert {p.suffix for p in (tmp_path/'cache').iterdir()} == {'.lock'}
    download(url, tmp_path/'cache')
    with pytest.raises(ValueError, match='Remove it'): download(url, tmp_path/'cache', '123456')

@pytest.mark.parametrize('name', ['mae_visualize_vit_large', 'facebook/vit-mae-base', 'vit_base_patch16_224.mae'])
def test_no_network(name, tmp_path, monkeypatch):
    "What to do is said, and the licence comes first."
    import huggingface_hub
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    def unreachable(*a, **k): raise urllib.error.URLError('no route')
    def offline(*a, **k): raise huggingface_hub.errors.LocalEntryNotFoundError('no connection')
    monkeypatch.setattr(hub.urllib.request, 'urlopen', unreachable)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', offline)
    said = []
    with pytest.raises(FileNotFoundError, match='Without a network'): from_pretrained(name, log=said.append)
    assert 'CC BY-NC' in said[0]

# -- the command

def command(args): return mae_convert([str(a) for a in args])

def test_a_conversion_that_failed_is_not_in_the_way(home, tmp_path, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    cfg = ConvertConfig(source=str(home/'small'), output=str(tmp_path/'out'), to='hf')
    with monkeypatch.context() as m:
        m.setattr('mae_nb.weights.export.save_tensors', full)
        with pytest.raises(OSError): convert(cfg, quiet)
    assert list((tmp_path/'out').iterdir()) == []
    assert convert(cfg, quiet)

def test_convert_command(home, tmp_path, capsys):
    assert command(['--source', home/'small', '--output', tmp_path/'hf', '--to', 'hf', '--licence', 'apache-2.0']) == 0
    card = (tmp_path/'hf'/'README.md').read_text()
    assert 'license: apache-2.0' in card and 'ViTMAEForPreTraining.from_pretrained' in card and '| embed_dim | 48 |' in card
    assert command(['--source', home/'small', '--output', tmp_path/'hf', '--to', 'hf']) == 2 and 'is there already' in capsys.readouterr().err
    assert command(['--source', home/'small', '--output', tmp_path/'t', '--to', 'timm', '--kind', 'autoencoder']) == 2
    assert command(['--source', home/'small', '--output', tmp_path/'t', '--to', 'onnx']) == 2 and not (tmp_path/'t').exists()
    assert command(['--source', home/'full.pth', '--output', tmp_path/'t', '--num_heads', 4, '--decoder_num_heads', 4, '--norm_pix_loss', '--to', 'mae_nb']) == 0
    assert json.loads((tmp_path/'t'/'model.json').read_text())['norm_pix_loss'] is True

def test_card_of_a_run(tmp_path):
    "Job, log and results of the run that made the weights are told."
    from mae_nb.tasks.config import PretrainConfig
    from mae_nb.tasks.pretrain import pretrain
    run = pretrain(PretrainConfig(output_dir=tmp_path/'run', max_steps=2, log_every=1, mask_ratio=0.6, device='cpu'), quiet)
    (run/'results.json').write_text(json.dumps(dict(rows=[dict(features='pre-trained encoder', knn=12.345, linear=50.)])))
    out = convert(ConvertConfig(source=run, output=tmp_path/'out', to='hf'), quiet)
    card = (out/'README.md').read_text()
    assert '| mask_ratio | 0.6 |' in card and '| pre-trained encoder | 12.3 | 50.0 |' in card and 'Trained: step 2, epoch 0.025641, loss ' in card and str(tmp_path) not in card
    assert json.loads((out/'config.json').read_text())['mask_ratio'] == 0.6
