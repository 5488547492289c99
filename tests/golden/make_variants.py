"""Random tiny models of variants and families beyond `families/<model type>`, float32, in the same files as those.

    python make_variants.py OUTDIR [NAME...]      transformers 5.23, torch 2.15

chatglm and baichuan have no class in transformers: their outputs are those of the independent numpy code in `reference.py`, and their
gradients and losses those of the same formulas under torch's differentiation.
"""
import json, os, shutil, sys
import numpy as np
import torch
import transformers as T
import reference

out = sys.argv[1]
V = 128
c = dict(vocab_size=V, hidden_size=48, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
         bos_token_id=1, eos_token_id=2, pad_token_id=0)
gpt2 = dict(vocab_size=V, n_embd=48, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0)
longrope = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5], long_factor=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
mla = dict(n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=24, first_k_dense_replace=1, kv_lora_rank=16, qk_rope_head_dim=8,
           qk_nope_head_dim=8, v_head_dim=12, num_key_value_heads=4)
yarn = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32, mscale=0.707, mscale_all_dim=0.707)
families = {
    "gpt2": (T.GPT2Config, gpt2),
    "stablelm": (T.StableLmConfig, dict(c, num_key_value_heads=2, use_qkv_bias=True, partial_rotary_factor=0.5)),
    "stablelm-parallel": (T.StableLmConfig, dict(c, num_key_value_heads=2, qk_layernorm=True, use_parallel_residual=True, partial_rotary_factor=0.5)),
    "gpt-neox-serial": (T.GPTNeoXConfig, dict(c, rotary_pct=0.5, use_parallel_residual=False)),
    "gemma": (T.GemmaConfig, dict(c, num_key_value_heads=1, head_dim=16)),
    "glm": (T.GlmConfig, dict(c, num_key_value_heads=2, head_dim=12, attention_bias=True)),
    "llama-dynamic": (T.LlamaConfig, dict(c, max_position_embeddings=8, num_key_value_heads=2, rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0))),
    "phi3-longrope": (T.Phi3Config, dict(c, num_key_value_heads=2, original_max_position_embeddings=8, rope_parameters=longrope | {"original_max_position_embeddings": 8})),
    "phi4-mini": (T.Phi3Config, dict(c, num_key_value_heads=2, hidden_size=64, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.75))),
    "qwen2-window": (T.Qwen2Config, dict(c, num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=1)),
    "gemma3-scaled": (T.Gemma3TextConfig, dict(c, num_hidden_layers=3, num_key_value_heads=2, head_dim=16, sliding_window=6, query_pre_attn_scalar=16, layer_types=["sliding_attention", "full_attention", "sliding_attention"], rope_parameters=dict(full_attention=dict(rope_type="linear", rope_theta=1e6, factor=8.0), sliding_attention=dict(rope_type="default", rope_theta=1e4)))),
    "deepseek-v2-lite": (T.DeepseekV2Config, dict(c, q_lora_rank=None, n_shared_experts=2, n_group=1, topk_group=1, topk_method="greedy", rope_parameters=yarn, **mla)),
    "deepseek-v3-groups": (T.DeepseekV3Config, dict(c, q_lora_rank=24, n_shared_experts=1, n_group=4, topk_group=2, rope_parameters=yarn, **mla)),
    "chatglm": ("chatglm", dict(model_type="chatglm", architectures=["ChatGLMModel"], padded_vocab_size=V, hidden_size=48, ffn_hidden_size=88, num_layers=2, num_attention_heads=4, kv_channels=12, multi_query_attention=True, multi_query_group_num=2, add_qkv_bias=True, add_bias_linear=False, rmsnorm=True, post_layer_norm=True, apply_residual_connection_post_layernorm=False, layernorm_epsilon=1e-5, seq_length=128, rope_ratio=2.0, tie_word_embeddings=False)),
    "baichuan": ("baichuan", dict(model_type="baichuan", architectures=["BaiChuanForCausalLM"], vocab_size=V, hidden_size=48, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4, hidden_act="silu", rms_norm_eps=1e-6, max_position_embeddings=128, tie_word_embeddings=False)),
}
prompts = [[5, 17, 100, 33, 4, 99, 120, 7, 55, 21, 58, 61, 3, 90, 18, 44], [7, 2, 9]]


class OwnCode(torch.nn.Module):
    """A family of `reference.py` under torch."""

    def __init__(self, kind, config):
        super().__init__()
        self.kind, self.config = kind, config
        for name, shape in reference.shapes(kind, config).items():
            value = torch.randn(shape) * 0.1 + (1.0 if "norm" in name else 0.0)
            self.register_parameter(name.replace(".", "|"), torch.nn.Parameter(value))

    def weights(self):
        return {n.replace("|", "."): p for n, p in self.named_parameters()}

    def forward(self, ids, labels=None):
        logits = torch.stack([reference.forward(self.kind, self.config, self.weights(), row.tolist(), torch) for row in ids])
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:])
        return type("Output", (), {"logits": logits, "loss": loss})

    def save_pretrained(self, folder):
        from safetensors.torch import save_file
        os.makedirs(folder)
        json.dump(self.config, open(f"{folder}/config.json", "w"), indent=2)
        save_file({n: p.detach().contiguous() for n, p in self.weights().items()}, f"{folder}/model.safetensors", metadata={"format": "pt"})


for name, (cls, kw) in families.items():
    if len(sys.argv) > 2 and name not in sys.argv[2:]:
        continue
    torch.manual_seed(sum(map(ord, name)))
    d = os.path.join(out, name); shutil.rmtree(d, ignore_errors=True)
    own = isinstance(cls, str)
    model = OwnCode(cls, kw) if own else T.AutoModelForCausalLM.from_config(cls(**kw)).float().eval()
    if not own:
        with torch.no_grad():
            for p in model.parameters():
                p.normal_(0, 0.1) if p.dim() > 1 else p.add_(torch.randn_like(p) * 0.1)
            for b_name, b in model.named_buffers():
                if b_name.endswith("e_score_correction_bias"):
                    b.normal_(0, 0.05)
    model.save_pretrained(d)
    for junk in os.listdir(d):
        if junk not in ("config.json", "model.safetensors"):
            os.remove(os.path.join(d, junk))
    rows = []
    for p in prompts:
        if own:
            y = reference.forward(cls, kw, {n: w.detach().numpy().astype(np.float64) for n, w in model.weights().items()}, p, np)
        else:
            with torch.no_grad():
                y = model(torch.tensor([p])).logits[0]
        rows.append({"ids": p, "output": "logits", "values": [[round(v, 6) for v in r] for r in y.tolist()]})
    json.dump(rows, open(f"{d}/golden.json", "w"), separators=(",", ":"))
    ids = torch.tensor([prompts[0]]); model.train()
    loss = model(ids, labels=ids).loss; loss.backward()
    grads = {n.replace("|", "."): p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses = []
    for _ in range(8):
        opt.zero_grad(); step = model(ids, labels=ids).loss; step.backward(); opt.step(); losses.append(step.item())
    json.dump({"loss": loss.item(), "grad_norm": grads, "losses": losses}, open(f"{d}/train.json", "w"), indent=1)
    print(name, sum(p.numel() for p in model.parameters()), f"{float(abs(y).max()):.2f}")
