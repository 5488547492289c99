"""Trains tiny SentencePiece models with every setting that matters and writes sentencepiece.json: the models and their ids.

Run: python make_sentencepiece.py     (sentencepiece 0.2.3)
"""
import base64, io, json, os, tempfile
import sentencepiece as sp

here = os.path.dirname(os.path.abspath(__file__))
texts = json.load(open(f"{here}/texts.json"))["plain"]
corpus = [t for t in texts if t.strip() and "\0" not in t and "\n" not in t and sum(c > "\u024f" for c in t) < 5] + [
    "the quick brown fox jumps over the lazy dog", "the cat sat on the mat and the dog sat on the log", "hello hello world", "in the beginning there was nothing, said the singing king",
    "cafe table caf\u00e9 \ufb01ne \u00e9t\u00e9 \uff21 a\u200bb a\u00a0b"] * 9
rules = os.path.join(tempfile.mkdtemp(), "rules.tsv")
# full-width A, fi ligature, two characters to one, one to nothing, no-break space to space, a cased pair that shares a prefix
open(rules, "w").write("FF21\t41\nFB01\t66 69\n63 61\t4B\n200B\t\nA0\t20\n3000\t20\nE9\t65\n63 61 66\t4C\n")
cases = {
    "bpe-llama": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, vocab_size=560),
    "bpe-user": dict(model_type="bpe", user_defined_symbols=["  ", "he", "<x>", "\u2581\u2581\u2581"], normalization_rule_tsv=rules, vocab_size=360),
    "bpe-noprefix": dict(model_type="bpe", byte_fallback=True, add_dummy_prefix=False, normalization_rule_name="identity", vocab_size=560),
    "unigram": dict(model_type="unigram", normalization_rule_tsv=rules, vocab_size=360),
    "unigram-bytes": dict(model_type="unigram", byte_fallback=True, normalization_rule_name="identity", vocab_size=560, user_defined_symbols=["ing", "<x>"]),
    "unigram-suffix": dict(model_type="unigram", normalization_rule_tsv=rules, treat_whitespace_as_suffix=True, vocab_size=340, remove_extra_whitespaces=False),
}
out = {}
for name, options in cases.items():
    model = io.BytesIO()
    sp.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=model, character_coverage=0.98, hard_vocab_limit=False,
                                  minloglevel=2, pad_id=3, **options)
    processor = sp.SentencePieceProcessor(model_proto=model.getvalue())
    ids = [processor.encode(t) for t in texts]
    out[name] = {"model": base64.b64encode(model.getvalue()).decode(), "ids": ids, "vocab": processor.get_piece_size()}
with open(f"{here}/sentencepiece.json", "w") as file:
    file.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in out.items()) + "\n}\n")
print({k: (v["vocab"], len(v["model"])) for k, v in out.items()})
