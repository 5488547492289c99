"""Writes tokenizers.json: ids that reference libraries give for texts.json, without bos and eos.

Run: python make_tokenizers.py ASSETS     (tokenizers 0.23.3, sentencepiece 0.2.3, gguf 0.19.0)
ASSETS holds what `tests/assets/fetch-vocabularies` fetches. `hf:` ids are those of a `tokenizer.json`, `sp:` those of the
sentencepiece library on a `tokenizer.model`, `spm:` of that library on a GGUF vocabulary written as a model, and `bpe:` of the
tokenizers library on a GGUF vocabulary behind the pre-tokenizer that the model's own `tokenizer.json` has.
"""
import json, os, sys
import gguf, sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers as p

here, assets = os.path.dirname(os.path.abspath(__file__)), sys.argv[1]
texts = json.load(open(f"{here}/texts.json"))
out = {}

def hf(name, tokenizer, special=True):
    run = lambda key: [tokenizer.encode(t, add_special_tokens=False).ids for t in texts[key]]
    out[name] = {"plain": run("plain"), **({"special": run("special")} if special else {})}

def sp(name, processor):
    out[name] = {"plain": [processor.encode(t) for t in texts["plain"]]}

def fields(path):
    return {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items() if k.startswith("tokenizer.")}

def spm(name, path):
    f = fields(path)
    get = lambda key, default: f.get(f"tokenizer.ggml.{key}", default)
    m = pb.ModelProto()
    unigram = get("model", "") == "t5"
    for i, (t, s, k) in enumerate(zip(get("tokens", []), get("scores", []), get("token_type", []))):
        # A model has one unknown piece; files mark several.
        first = k != 2 or i == get("token_type", []).index(2)
        m.pieces.add(piece=t or f"[EMPTY_{i}]", score=s, type=k if first else 3)
    m.trainer_spec.model_type = 1 if unigram else 2
    m.trainer_spec.byte_fallback = any(k == 6 for k in get("token_type", []))
    for key, id_key in (("unk_id", "unknown"), ("bos_id", "bos"), ("eos_id", "eos"), ("pad_id", "padding")):
        setattr(m.trainer_spec, key, get(f"{id_key}_token_id", -1 if key == "pad_id" else getattr(m.trainer_spec, key)))
    m.normalizer_spec.add_dummy_prefix = get("add_space_prefix", True)
    m.normalizer_spec.remove_extra_whitespaces = get("remove_extra_whitespaces", False)
    m.normalizer_spec.precompiled_charsmap = bytes(x & 255 for x in get("precompiled_charsmap", []))
    sp(name, sentencepiece.SentencePieceProcessor(model_proto=m.SerializeToString()))

split = lambda pattern: p.Split(Regex(pattern), "isolated")
bytes_only, gpt2 = p.ByteLevel(add_prefix_space=False, use_regex=False), p.ByteLevel(add_prefix_space=False, use_regex=True)
digits = p.Digits(individual_digits=True)
L3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
Q2 = L3.replace("{1,3}", "")
Q35 = Q2.replace(r"\p{L}+|", r"[\p{L}\p{M}]+|", 1).replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+")

def bpe(name, path, steps, normalizer=None, ignore_merges=False):
    f = fields(path)
    vocab = {t: i for i, t in enumerate(f["tokenizer.ggml.tokens"])}
    merges = [tuple(m.split(" ")) for m in f["tokenizer.ggml.merges"]]
    t = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges))
    t.pre_tokenizer = p.Sequence(steps)
    if normalizer:
        t.normalizer = normalizer
    # User-defined tokens are found first, as in llama.cpp.
    t.add_tokens([gguf_token(x) for x, k in zip(f["tokenizer.ggml.tokens"], f["tokenizer.ggml.token_type"]) if k == 4])
    hf(name, t, special=False)

def gguf_token(text):
    from tokenizers import AddedToken
    return AddedToken(text, normalized=False)

for name in ("qwen3", "llama3", "llama2", "gemma3", "deepseek_v3", "gptoss"):
    hf(f"hf:tokenizers/{name}", Tokenizer.from_file(f"{assets}/tokenizers/{name}/tokenizer.json"))
mini = Tokenizer.from_file(f"{assets}/all-MiniLM-L6-v2/tokenizer.json")
mini.no_truncation(); mini.no_padding()
hf("hf:all-MiniLM-L6-v2", mini)
for name in ("tokenizer.model.v1", "mistral_instruct_tokenizer_240216.model.v2", "mistral_instruct_tokenizer_240323.model.v3", "mistral_instruct_tokenizer_241114.model.v7"):
    sp(f"sp:spm/{name}", sentencepiece.SentencePieceProcessor(model_file=f"{assets}/spm/{name}"))
for name in ("vocab/ggml-vocab-llama-spm", "vocab/ggml-vocab-phi-3", "vocab/ggml-vocab-baichuan", "vocab/ggml-vocab-nomic-bert-moe"):
    spm(f"spm:{name}.gguf", f"{assets}/{name}.gguf")
v = lambda name: (f"bpe:vocab/ggml-vocab-{name}.gguf", f"{assets}/vocab/ggml-vocab-{name}.gguf")
bpe("bpe:SmolLM2-135M-Instruct.Q4_1.gguf", f"{assets}/SmolLM2-135M-Instruct.Q4_1.gguf", [digits, gpt2])
bpe("bpe:qwen2.5-coder-0.5b-instruct.Q4_K_M.gguf", f"{assets}/qwen2.5-coder-0.5b-instruct.Q4_K_M.gguf", [split(Q2), bytes_only], normalizers.NFC())
bpe(*v("gpt-2"), [gpt2])
bpe(*v("gpt-neox"), [gpt2], normalizers.NFC())
bpe(*v("starcoder"), [digits, gpt2])
bpe(*v("refact"), [digits, gpt2])
bpe(*v("command-r"), [digits, gpt2], normalizers.NFC())
bpe(*v("mpt"), [gpt2], normalizers.NFC())
bpe(*v("llama-bpe"), [split(L3), bytes_only], ignore_merges=True)
bpe(*v("qwen2"), [split(Q2), bytes_only], normalizers.NFC())
bpe(*v("qwen35"), [split(Q35), bytes_only], normalizers.NFC())
bpe(*v("deepseek-coder"), [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), digits, bytes_only])
with open(f"{here}/tokenizers.json", "w") as file:
    rows = [f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in out.items()]
    file.write("{\n" + ",\n".join(rows) + "\n}\n")
