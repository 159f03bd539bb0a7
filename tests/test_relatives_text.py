"Words beside patches: texts, BERT and its run, predictions from neighbours, and the tool that compares them."
import csv, json, re, runpy, shutil, subprocess, sys
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path
import numpy as np, pytest, torch
from launch import launch
from mae_nb.core.files import read_json, read_jsonl, read_tensors, save_json
from mae_nb.core.rng import SampleRandom
from mae_nb.data.bundled import fashion
from mae_nb.model.masking import mask_from_scores, random_scores
from mae_nb.model.patches import patchify, unpatchify
from mae_nb.relatives.bert import Bert, BertModelConfig, corrupt_words, load_bert, predict_masked, text_features
from mae_nb.relatives.bert_run import BertTask, train_bert
from mae_nb.relatives.config import BertConfig
from mae_nb.relatives.neighbours import Bigrams, autocovariance, copy_nearest, harmonic_fill, linear_fill, nearest_words
from mae_nb.relatives.text import Vocabulary, explained_words, load_text, specials, split_text, split_words, unigram, word_errors
from mae_nb.train.checkpoint import checkpoints

ROOT = Path(__file__).parent.parent
QUIET = dict(log=lambda line: None)

@pytest.fixture(scope='module')
def story(tmp_path_factory):
    "A text of four chapters, in which each noun is followed by its verb."
    rng = np.random.default_rng(0)
    pairs = [(f'noun{a}', f'verb{a}') for a in 'abcdefghijklmnopqrst']
    def chapter(k): return ' '.join(f'the {n} {v} .' for n,v in (pairs[(5*k + i) % 20] for i in rng.integers(0, 8, 900)))
    path = tmp_path_factory.mktemp('text')/'story.txt'
    path.write_text('\n'.join(f'# Chapter {k}\n{chapter(k)}' for k in range(4)))
    return str(path)

@pytest.fixture(scope='module')
def tiny(story): return BertConfig(data=story, seq_len=16, vocab_size=40, embed_dim=16, depth=2, num_heads=2, batch_size=32, epochs=2, save_every=5, max_steps=12, eval_every=None, device='cpu')

# --- text ---
def test_no_word_of_the_text_is_on_both_sides(story):
    "Every word gets a number of its own, so that places can be told apart."
    words = iter(range(10**6))
    parts = {k: ' '.join(str(next(words)) for _ in split_words(t)) for k,t in load_text(story).items()}
    train,test = split_text(parts, seq_len=16, vocab_size=10**6)
    seen = set(train.vocab.words) - set(specials)
    assert len(seen) == train.ids.numel() and (test.ids == 0).all()  # what is tested is unknown to training
    assert 0.05 < len(test)/(len(train) + len(test)) < 0.15 and set(test.labels.tolist()) == set(train.labels.tolist()) == {0, 1, 2, 3}

def test_blocks_lie_where_they_should():
    parts = dict(a=' '.join(map(str, range(400))), b=' '.join(map(str, range(1000, 1403))))
    train,test = split_text(parts, seq_len=10, vocab_size=10**4, block=4, every=5)
    vocab = Vocabulary.most_frequent(split_words(' '.join(parts.values())), 10**4)
    rows = [parts['a'].split()[i:i + 10] for i in range(0, 400, 10)] + [parts['b'].split()[i:i + 10] for i in range(0, 400, 10)]
    kept = [r for i,r in enumerate(rows) if i//4 % 5 != 4]
    assert [train.vocab.decode(r) for r in train.ids] == kept and len(test) == 16 and len(vocab) == 806

def test_vocabulary_is_of_training_text_alone():
    train,test = split_text({'x': 'a b '*700 + 'zebra '*200}, seq_len=10, vocab_size=50, block=8, every=2)
    first = {w for i in range(160) if i//8 % 2 == 0 for w in ('a b '*700 + 'zebra '*200).split()[i*10:i*10 + 10]}
    assert set(train.vocab.words[3:]) == first

def test_the_novels_are_clean():
    "Six openings of 25 000 words each, a paragraph a line, without what editors and typesetters added."
    parts = load_text('austen')
    assert [*parts] == ['Sense and Sensibility', 'Pride and Prejudice', 'Mansfield Park', 'Emma', 'Northanger Abbey', 'Persuasion']
    paragraphs = [line for p in parts.values() for line in p.removesuffix('\n').split('\n')]
    assert all(25_000 <= len(p.replace('—', ' ').split()) < 25_300 for p in parts.values())
    assert {c for c in ''.join(paragraphs) if not (c.isascii() and c.isalnum())} <= set(' !"&\'(),-.:;?—')
    assert not [p for p in paragraphs if not p.strip() or re.search(r'^(chapter|volume) |gutenberg|jane austen|--|  ', p, re.I)]

def test_a_novel_is_cut_at_a_paragraph():
    tool = runpy.run_path(str(ROOT/'tools/austen.py'))
    lines = ['TITLE', '', 'By Nobody', '', 'CHAPTER I', '', 'One--_two_', 'three,* four.', '', '  ***', '', '[Here ends volume I.]', '', 'VOLUME II', '', 'Chapter 2', ' ', 'Five.', '', 'Six.', '']
    assert [*tool['paragraphs'](lines)] == ['One—two three, four.', 'Five.', 'Six.']
    assert tool['opening'](lines, 4) == ['One—two three, four.'] and tool['opening'](lines, 5) == ['One—two three, four.', 'Five.']

def test_the_bible():
    if not shutil.which('bible'): pytest.skip('Debian\'s bible-kjv is not installed')
    parts = load_text('bible')
    assert len(parts) == 66 and parts['Ge'].startswith('In the beginning God created') and sum(len(p.split('\n')) for p in parts.values()) == 31102

def test_the_bible_is_missed_clearly(monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    with pytest.raises(ValueError, match='apt-get install bible-kjv'): load_text('bible')

def test_errors_are_those_of_plain_formulas():
    torch.manual_seed(0)
    q,target = torch.rand(50, 7).softmax(1),torch.randint(7, (50,))
    found = word_errors(q.log(), target)
    for i in range(50):
        one = torch.zeros(7)
        one[target[i]] = 1
        assert found.nats[i].item() == pytest.approx(-q[i,target[i]].log().item(), abs=1e-5)
        assert found.squared[i].item() == pytest.approx((one - q[i]).square().sum().item(), abs=1e-5)
        assert found.wrong[i] == float(q[i].argmax() != target[i])

# --- BERT ---
@pytest.mark.slow
def test_bert_is_a_pre_norm_roberta():
    "Hugging Face's, with the same weights: scores of masked words, and hidden states."
    from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormForMaskedLM
    torch.manual_seed(0)
    D,V,T = 32, 50, 11
    ours = Bert(BertModelConfig((*specials, *map(str, range(V - 3))), T, D, 3, 4)).eval()
    for p in ours.parameters(): p.data += 0.05*torch.randn_like(p)  # biases and gains, too
    theirs = RobertaPreLayerNormForMaskedLM(RobertaPreLayerNormConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=3, num_attention_heads=4, intermediate_size=4*D, max_position_embeddings=T + 1, type_vocab_size=1,
        layer_norm_eps=1e-6, hidden_dropout_prob=0., attention_probs_dropout_prob=0., pad_token_id=None, tie_word_embeddings=True)).eval()
    a,b = ours.state_dict(),theirs.roberta_prelayernorm
    names = {'embeddings.word_embeddings.weight': a['word_embed.weight'], 'embeddings.position_embeddings.weight': a['pos_embed'][0],
             'embeddings.token_type_embeddings.weight': torch.zeros(1, D)}
    b.embeddings.forward = lambda input_ids, **how: ours.embed(input_ids[:,1:])  # ours are normalised before positions are added
    def both(name, own): return {f'{name}.{k}': a[f'{own}.{k}'] for k in ('weight', 'bias')}
    names |= both('embeddings.LayerNorm', 'embed_norm') | both('LayerNorm', 'norm')
    for i in range(3):
        layer,own = f'encoder.layer.{i}',f'blocks.{i}'
        for j,part in enumerate(('query', 'key', 'value')):
            for k in ('weight', 'bias'): names[f'{layer}.attention.self.{part}.{k}'] = a[f'{own}.attn.qkv.{k}'].chunk(3)[j]
        names |= both(f'{layer}.attention.LayerNorm', f'{own}.norm1') | both(f'{layer}.attention.output.dense', f'{own}.attn.proj')
        names |= both(f'{layer}.intermediate.LayerNorm', f'{own}.norm2') | both(f'{layer}.intermediate.dense', f'{own}.mlp.fc1') | both(f'{layer}.output.dense', f'{own}.mlp.fc2')
    missing,unexpected = b.load_state_dict(names, strict=False)
    assert not unexpected and not [m for m in missing if not m.endswith(('position_ids', 'token_type_ids'))]
    head = theirs.lm_head
    for part,own in ((head.dense, 'head.0'), (head.layer_norm, 'head.2')): part.load_state_dict({k: a[f'{own}.{k}'] for k in ('weight', 'bias')})
    head.bias.data.copy_(a['head_bias'])
    head.decoder.weight = b.embeddings.word_embeddings.weight
    head.decoder.bias = head.bias
    ids = torch.randint(3, V, (2, T))
    whole = torch.cat([torch.full((2, 1), 2), ids], 1)
    with torch.no_grad():
        wanted = theirs(whole, position_ids=torch.arange(T + 1)[None].expand(2, -1), attention_mask=torch.ones_like(whole)).logits[:,1:]
        found = ours.word_logits(ids, torch.arange(T).expand(2, -1))
    assert (found - wanted).abs().max() < 1e-4

def test_masks_are_replaced_by_share():
    torch.manual_seed(0)
    ids,scores = torch.full((400, 50), 7),torch.rand(400, 50)
    at = mask_from_scores(scores, 0.4).ids_masked
    new = corrupt_words(ids, at, torch.rand(400, 50), torch.rand(400, 50), 30)
    hit = torch.zeros_like(ids).scatter(1, at, 1).bool()
    assert (new[~hit] == 7).all() and (new[hit] == 1).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (new[hit] == 7).float().mean().item() == pytest.approx(0.1 + 0.1/27, abs=0.02) and set(new.unique().tolist()) == {1, *range(3, 30)}

def test_masked_words_do_not_leak(story):
    train,test = split_text(load_text(story), 16, 40)
    torch.manual_seed(0)
    model = Bert(BertModelConfig(train.vocab.words, 16, 16, 2, 2)).eval()
    before,target = predict_masked(model, test, 0.5)
    other = replace_masked(test)
    after,changed = predict_masked(model, other, 0.5)
    assert not torch.equal(target, changed)
    same = target == changed
    assert same.any() and torch.allclose(before.nats[same], after.nats[same], atol=1e-6)

def replace_masked(test):
    "The same sequences with other words where `predict_masked` masks them."
    scores = SampleRandom(0, [(0, i) for i in range(len(test))]).rand('picture', test.seq_len)
    at = mask_from_scores(scores, 0.5).ids_masked
    other = type(test)(test.ids.scatter(1, at, test.ids.flip(0).gather(1, at)), test.labels, test.classes, test.vocab)
    return other

def test_positions_of_both_kinds():
    for kind in ('learned', 'sincos'):
        model = Bert(BertModelConfig((*specials, *'abc'), 8, 12, 1, 3, kind))
        assert model.pos_embed.requires_grad == (kind == 'learned') and len(model.layers(torch.full((2, 8), 3))) == 2

# --- the run ---
def weights(run): return read_tensors(Path(run)/'model.safetensors')

@pytest.mark.slow
def test_a_run_stops_and_continues_bit_for_bit(tiny, tmp_path):
    whole = train_bert(replace(tiny, output_dir=str(tmp_path/'a')), **QUIET)
    half = Path(shutil.copytree(whole, tmp_path/'b'))
    for c in checkpoints(half)[1:]: shutil.rmtree(c)
    assert checkpoints(half)[0].name.endswith('10') or len(checkpoints(half)) == 1
    train_bert(replace(tiny, output_dir=str(half), resume='auto'), **QUIET)
    a,b = weights(whole),weights(half)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    losses = [[r['loss'] for r in read_jsonl(f/'log.jsonl')] for f in (whole, half)]
    assert losses[0][-1] == losses[1][-1]
    other = replace(tiny, output_dir=str(half), resume='auto', vocab_size=30)
    with pytest.raises(ValueError, match='was written for another text'): train_bert(other, **QUIET)

SCRIPT = """
import json, sys
from mae_nb.relatives.bert_run import train_bert
from mae_nb.relatives.config import BertConfig
train_bert(BertConfig(**json.loads(sys.argv[1])))
"""

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='needs fork and gloo')
def test_two_processes_learn_what_one_does(tiny, tmp_path):
    "Two processes with half of the batch each, or one with two halves one after the other: the same weights, to the last bit."
    (tmp_path/'train.py').write_text(SCRIPT)
    def train(name, processes, **change):
        cfg = replace(tiny, output_dir=str(tmp_path/name), log_every=1, eval_every=2, max_steps=None, **change)
        r = launch(tmp_path/'train.py', json.dumps(asdict(cfg)), processes=processes)
        assert r.returncode == 0, r.said
        return read_jsonl(tmp_path/name/'log.jsonl')
    one,two = train('one', 0, batch_size=16, accum_iter=2), train('two', 2, batch_size=16)
    losses = [[r['loss'] for r in log if 'loss' in r] for log in (one, two)]
    assert len(losses[0]) > 10 and max(abs(a - b) for a,b in zip(*losses, strict=True)) < 1e-4
    assert [r['nats'] for r in one if 'nats' in r] == pytest.approx([r['nats'] for r in two if 'nats' in r], abs=1e-3)
    a,b = weights(tmp_path/'one'),weights(tmp_path/'two')
    for k in a: assert torch.equal(a[k], b[k]), k

def test_samples_do_not_depend_on_the_number_of_processes(tiny):
    from mae_nb.core.dist import DistInfo
    def rows(task, n): return [tuple(map(bytes, (x.numpy().tobytes() for x in row))) for _,batch in zip(range(n), task.batches(0)) for row in zip(*batch)]
    whole = rows(BertTask(tiny), 3)
    parts = [rows(BertTask(replace(tiny, batch_size=16), DistInfo(r, 2)), 3) for r in range(2)]
    assert sorted(whole) == sorted(parts[0] + parts[1]) and len(set(whole)) == len(whole)
    later = [tuple(map(bytes, (x.numpy().tobytes() for x in row))) for _,batch in zip(range(2), BertTask(tiny).batches(1)) for row in zip(*batch)]
    assert later == whole[32:]

@pytest.mark.slow
def test_it_learns_which_verb_follows(tiny, tmp_path):
    "A noun is beside its verb: more than frequency is to be learnt, and the chapter can be told from the features."
    cfg = replace(tiny, epochs=30, max_steps=None, embed_dim=32, eval_every=30, blr=2e-2, output_dir=str(tmp_path/'run'), save_every=None)
    found = read_jsonl(train_bert(cfg, **QUIET)/'log.jsonl')[-1]
    assert found['removed'] > 0.3 and found['explained'] > 0.2 and found['linear'] > 60
    model = load_bert(tmp_path/'run')
    train,test = split_text(load_text(cfg.data), cfg.seq_len, cfg.vocab_size)
    again = explained_words(*predict_masked(model, test, cfg.mask_ratio), unigram(train))
    assert again['nats'] == pytest.approx(found['nats'], abs=1e-4) and len(text_features(model, test)) == cfg.depth + 1

@pytest.mark.parametrize('bad,said', [(dict(batch_size=4000), 'a step needs 4000 sequences'), (dict(seq_len=2000, mask_ratio=0.5), 'needs 80 sequences'),
                                      (dict(data='nowhere.txt'), "must be 'austen', 'bible' or a text file")])
def test_bad_values_are_refused(tiny, bad, said):
    with pytest.raises(ValueError, match=said): BertTask(replace(tiny, **bad))

def test_one_micro_batch_more_is_the_same_step(tiny):
    "Gradients of two halves are the gradient of the whole: every sequence has as many masked words."
    grads = []
    for change in ({}, dict(batch_size=16, accum_iter=2)):
        task = BertTask(replace(tiny, **change))
        for _,batch in zip(range(task.accum_iter), task.batches(0)): (task.loss(task.model, batch)/task.accum_iter).backward()
        grads.append(torch.cat([p.grad.flatten() for p in task.model.parameters() if p.requires_grad]))
    assert torch.allclose(*grads, atol=1e-6)

# --- neighbours ---
def test_copies_against_a_loop():
    g = torch.Generator().manual_seed(0)
    patches,grid = torch.rand(5, 12, 3, generator=g),(3, 4)
    mask = mask_from_scores(random_scores(5, 12, g), 0.6).mask
    found = copy_nearest(patches, mask, grid)
    for b in range(5):
        for i in range(12):
            seen = [j for j in range(12) if not mask[b,j]]
            best = min(seen, key=lambda j: ((i//4 - j//4)**2 + (i % 4 - j % 4)**2, j))
            assert torch.equal(found[b,i], patches[b,best])

def test_harmonic_surfaces_obey_the_mean_value_property():
    imgs = fashion('test').imgs[:6]/255
    mask = mask_from_scores(random_scores(6, 49, torch.Generator().manual_seed(0)), 0.75).mask
    hidden = unpatchify(mask[:,:,None].expand(-1, -1, 16), 4)[:,0]
    x = harmonic_fill(imgs, hidden, tol=1e-6)
    assert torch.equal(x[hidden[:,None] == 0], imgs[hidden[:,None] == 0])
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode='replicate')
    mean = (padded[:,:,1:-1,:-2] + padded[:,:,1:-1,2:] + padded[:,:,:-2,1:-1] + padded[:,:,2:,1:-1])/4
    assert (mean - x)[hidden[:,None] == 1].abs().max() < 1e-4 and x.min() > -1e-4 and x.max() < 1 + 1e-4

def test_linear_prediction_is_least_squares():
    "On noise of a known covariance no other weights have a smaller error; here those that a regression finds."
    g = torch.Generator().manual_seed(0)
    rho,x = 0.8,[torch.randn(20_000, generator=g)]
    for _ in range(11): x.append(rho*x[-1] + (1 - rho**2)**0.5*torch.randn(20_000, generator=g))
    x = torch.stack(x, 1)
    far = torch.arange(24.)
    cov = rho**torch.minimum(far, 24 - far).expand(2, -1)
    mask = torch.zeros(len(x), 12)
    mask[:,3:6] = 1
    rest = x[:,[0, 1, 2, *range(6, 12)]]
    best = rest @ torch.linalg.lstsq(rest, x[:,3:6]).solution
    found = linear_fill(x[:,None,None], mask, 1, cov, 0., noise=0.)[:,3:6,0]
    errors = [(p - x[:,3:6]).square().mean().item() for p in (found, best)]
    assert errors[1] <= errors[0] < 1.01*errors[1]

def test_colours_are_predicted_apart():
    g = torch.Generator().manual_seed(0)
    imgs = torch.rand(2, 3, 12, 12, generator=g)
    mask = mask_from_scores(random_scores(2, 9, g), 0.5).mask
    cov = autocovariance(imgs)
    whole = linear_fill(imgs, mask, 4, cov, 0.5)
    for c in range(3):
        one = linear_fill(imgs[:,c:c + 1], mask, 4, cov, 0.5)
        assert torch.allclose(unpatchify(whole, 4)[:,c:c + 1], unpatchify(one, 4), atol=1e-5)

def test_nearest_words_against_a_loop():
    mask = mask_from_scores(random_scores(20, 15, torch.Generator().manual_seed(0)), 0.7).mask
    left,right = nearest_words(mask)
    for b in range(20):
        for i in range(15):
            assert left[b,i] == max([j for j in range(i + 1) if not mask[b,j]], default=-1)
            assert right[b,i] == min([j for j in range(i, 15) if not mask[b,j]], default=15)

def test_bigrams_against_counting(story):
    train,test = split_text(load_text(story), 16, 40)
    pairs = Bigrams(train, reach=2, strength=3.)
    p = unigram(train)
    counts = [Counter((a, b) for row in train.ids.tolist() for a,b in zip(row, row[k:])) for k in (1, 2)]
    ids,mask = test.ids[:3],mask_from_scores(random_scores(3, 16, torch.Generator().manual_seed(0)), 0.5).mask
    left,right = nearest_words(mask)
    found = pairs(ids, mask).exp()
    V = len(p)
    for row,(b,i) in zip(found, mask.nonzero().tolist()):
        def side(j, after):
            k = abs(i - j)
            if j in (-1, 16) or k > 2: return p.double()
            c = torch.tensor([counts[k - 1][(ids[b,j].item(), w) if after else (w, ids[b,j].item())] for w in range(V)]).double()
            return (c + 3*p)/(c.sum() + 3)
        q = side(left[b,i].item(), True)*side(right[b,i].item(), False)/p
        assert torch.allclose(row.double(), q/q.sum(), atol=1e-5)

def test_bigrams_know_the_verb(story):
    train,test = split_text(load_text(story), 16, 40)
    pairs = Bigrams(train, strength=1.)
    noun,verb = train.vocab.encode(['nouna', 'verba']).tolist()
    ids = torch.tensor([[noun, 0]])
    assert 'nouna' in train.vocab.ids and pairs(ids, torch.tensor([[0., 1.]]))[0].argmax() == verb

# --- the tool ---
@pytest.mark.slow
def test_the_tool_completes_its_table(story, tmp_path):
    cmd = [sys.executable, ROOT/'tools/density.py', tmp_path/'density.csv', '--data', story, '--seeds', '0', '--ratios', '0.5', '--epochs', '1', '--max_steps', '2', '--home', tmp_path/'runs', '--kinds', 'text']
    def go(*more):
        import os
        env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
        return subprocess.run([*map(str, cmd), *more], capture_output=True, text=True, env=env)
    r = go()
    assert r.returncode == 0, r.stderr
    rows = list(csv.DictReader(open(tmp_path/'density.csv', newline='')))
    assert [(r['start'], r['ratio']) for r in rows] == [('input', ''), ('neighbours', '0.5'), ('trained', '0.5'), ('untrained', '')]
    assert rows[2]['steps'] == '2' and float(rows[2]['nats']) > 0 and rows[2]['masked'] == '0.5' and float(rows[1]['explained']) > 0
    before = (tmp_path/'density.csv').read_text()
    assert go().returncode == 0 and (tmp_path/'density.csv').read_text() == before  # nothing is left to do
    assert 'of other settings' in go('--epochs', '3').stderr
