"""Makes sentences.json, what all-MiniLM-L6-v2 says of some sentences, in float64 numpy (BERT as in Devlin et al. 2019; vectors as
sentence-transformers pools them): python make_sentences.py MODEL_FOLDER > sentences.json"""
import json, math, sys
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

folder = sys.argv[1]
config = json.load(open(f"{folder}/config.json"))
w = {name: value.astype(np.float64) for name, value in load_file(f"{folder}/model.safetensors").items()}
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.no_padding()
erf = np.vectorize(math.erf)
sentences = [
    "The cat sits on the mat.",
    "A kitten is lying on a rug.",
    "Interest rates rose by half a percent in March.",
    "Na\u00efve caf\u00e9s, 42 of them!",
]


def linear(x, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(x, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def hidden(ids):
    n, heads = len(ids), config["num_attention_heads"]
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:n]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        q, k, v = (linear(x, f"{at}.attention.self.{part}").reshape(n, heads, -1).transpose(1, 0, 2) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(n, -1)
        x = norm(x + linear(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        wide = linear(x, f"{at}.intermediate.dense")
        wide = wide * (1 + erf(wide / math.sqrt(2))) / 2
        x = norm(x + linear(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return x


rows = []
for sentence in sentences:
    ids = tokenizer.encode(sentence).ids
    x = hidden(ids)
    vectors = {"mean": x.mean(0), "cls": x[0], "last": x[-1]}
    rows.append({"text": sentence, "ids": ids} | {name: [round(y, 7) for y in (v / np.linalg.norm(v))[:16].tolist()] for name, v in vectors.items()})
print(json.dumps(rows, indent=1))
