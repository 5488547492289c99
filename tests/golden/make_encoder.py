"""Gradients and fine-tuning losses of the encoder in FAMILIES/bert: python make_encoder.py FAMILIES     transformers 5.23, torch 2.15

The loss is the mean of (h - t)^2 over the hidden states h of the first prompt, t = sin(0.37 i) for their i-th element. Without dropout.
"""
import json, sys
import torch
import transformers as T

folder = f"{sys.argv[1]}/bert"
model = T.BertModel.from_pretrained(folder, attn_implementation="eager").float().eval()
ids = torch.tensor([json.load(open(f"{folder}/golden.json"))[0]["ids"]])

def loss():
    h = model(ids).last_hidden_state
    return (h - torch.sin(0.37 * torch.arange(h.numel(), dtype=torch.float64)).float().reshape(h.shape)).pow(2).mean()

first = loss(); first.backward()
grads = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
opt = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
losses = []
for _ in range(8):
    opt.zero_grad(); step = loss(); step.backward(); opt.step(); losses.append(step.item())
json.dump({"loss": first.item(), "grad_norm": grads, "losses": losses}, open(f"{folder}/train.json", "w"), indent=1)
