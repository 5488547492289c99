"""ChatGLM 2 to GLM-4 and Baichuan 7B after their own modeling code, as plain formulas over one sequence: `xp` is numpy or torch."""
import math


def shapes(kind, c):
    d, out = c["hidden_size"], {}
    if kind == "chatglm":
        q, kv, ff = c["num_attention_heads"] * c["kv_channels"], c["multi_query_group_num"] * c["kv_channels"], c["ffn_hidden_size"]
        out["transformer.embedding.word_embeddings.weight"] = (c["padded_vocab_size"], d)
        for i in range(c["num_layers"]):
            at = f"transformer.encoder.layers.{i}."
            out |= {at + "input_layernorm.weight": (d,), at + "self_attention.query_key_value.weight": (q + 2 * kv, d),
                    at + "self_attention.query_key_value.bias": (q + 2 * kv,), at + "self_attention.dense.weight": (d, q),
                    at + "post_attention_layernorm.weight": (d,), at + "mlp.dense_h_to_4h.weight": (2 * ff, d),
                    at + "mlp.dense_4h_to_h.weight": (d, ff)}
        return out | {"transformer.encoder.final_layernorm.weight": (d,), "transformer.output_layer.weight": (c["padded_vocab_size"], d)}
    ff = c["intermediate_size"]
    out["model.embed_tokens.weight"] = (c["vocab_size"], d)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        out |= {at + "input_layernorm.weight": (d,), at + "self_attn.W_pack.weight": (3 * d, d), at + "self_attn.o_proj.weight": (d, d),
                at + "post_attention_layernorm.weight": (d,), at + "mlp.gate_proj.weight": (ff, d), at + "mlp.up_proj.weight": (ff, d),
                at + "mlp.down_proj.weight": (d, ff)}
    return out | {"model.norm.weight": (d,), "lm_head.weight": (c["vocab_size"], d)}


def forward(kind, c, w, ids, xp):
    """Logits [n, vocab]."""
    n = len(ids)

    def rms(x, weight, eps):
        return x / xp.sqrt((x * x).mean(-1)[:, None] + eps) * weight

    def silu(x):
        return x / (1 + xp.exp(-x))

    def cat(parts, axis=-1):
        return xp.concatenate(parts, axis)

    def table(rotary, base):
        """[n, rotary / 2] cosines and sines, computed in double."""
        angles = [[p / base ** (2 * i / rotary) for i in range(rotary // 2)] for p in range(n)]
        like = next(iter(w.values()))
        make = (lambda rows: xp.tensor(rows, dtype=like.dtype)) if hasattr(xp, "tensor") else xp.array
        return make([[math.cos(a) for a in r] for r in angles]), make([[math.sin(a) for a in r] for r in angles])

    def halves(x, cos, sin):  # Baichuan: rotate_half
        a, b = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2:]
        return cat([a * cos - b * sin, b * cos + a * sin])

    def neighbours(x, cos, sin):  # ChatGLM: the first half of a head, as pairs (2i, 2i + 1)
        r = 2 * cos.shape[1]
        a, b = x[:, 0:r:2], x[:, 1:r:2]
        pairs = xp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(n, r)
        return cat([pairs, x[:, r:]])

    def attend(q, k, v, heads, groups, size, turn):
        out = []
        for h in range(heads):
            g = h // (heads // groups)
            part = lambda x, i: x[:, i * size:(i + 1) * size]
            scores = turn(part(q, h)) @ turn(part(k, g)).T / math.sqrt(size)
            rows = []
            for i in range(n):
                s = scores[i, : i + 1]
                e = xp.exp(s - s.max())
                rows.append((e / e.sum()) @ part(v, g)[: i + 1])
            out.append(xp.stack(rows))
        return cat(out)

    if kind == "chatglm":
        heads, groups, size, ff, eps = c["num_attention_heads"], c["multi_query_group_num"], c["kv_channels"], c["ffn_hidden_size"], c["layernorm_epsilon"]
        cos, sin = table(size // 2, 10000 * c["rope_ratio"])
        x = w["transformer.embedding.word_embeddings.weight"][ids]
        for i in range(c["num_layers"]):
            at = f"transformer.encoder.layers.{i}."
            h = rms(x, w[at + "input_layernorm.weight"], eps)
            mixed = h @ w[at + "self_attention.query_key_value.weight"].T + w[at + "self_attention.query_key_value.bias"]
            q, k, v = mixed[:, : heads * size], mixed[:, heads * size:(heads + groups) * size], mixed[:, (heads + groups) * size:]
            x = x + attend(q, k, v, heads, groups, size, lambda y: neighbours(y, cos, sin)) @ w[at + "self_attention.dense.weight"].T
            h = rms(x, w[at + "post_attention_layernorm.weight"], eps) @ w[at + "mlp.dense_h_to_4h.weight"].T
            x = x + (silu(h[:, :ff]) * h[:, ff:]) @ w[at + "mlp.dense_4h_to_h.weight"].T
        return rms(x, w["transformer.encoder.final_layernorm.weight"], eps) @ w["transformer.output_layer.weight"].T
    heads, d, eps = c["num_attention_heads"], c["hidden_size"], c["rms_norm_eps"]
    cos, sin = table(d // heads, 10000)
    x = w["model.embed_tokens.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        qkv = rms(x, w[at + "input_layernorm.weight"], eps) @ w[at + "self_attn.W_pack.weight"].T
        y = attend(qkv[:, :d], qkv[:, d:2 * d], qkv[:, 2 * d:], heads, heads, d // heads, lambda y: halves(y, cos, sin))
        x = x + y @ w[at + "self_attn.o_proj.weight"].T
        h = rms(x, w[at + "post_attention_layernorm.weight"], eps)
        x = x + (silu(h @ w[at + "mlp.gate_proj.weight"].T) * (h @ w[at + "mlp.up_proj.weight"].T)) @ w[at + "mlp.down_proj.weight"].T
    return rms(x, w["model.norm.weight"], eps) @ w["lm_head.weight"].T
