"""Makes samplers.json with the logits processors of transformers: python make_samplers.py > samplers.json"""
import json
import torch
from transformers.generation import logits_process as lp

torch.manual_seed(11)
rows = [(torch.randn(1, 40) * scale).round(decimals=3) for scale in (0.3, 1.5, 4.0)]
rows[1][0, 7] = rows[1][0, 20]  # a tie
rows[2][0, 3] = float("-inf")  # what a matcher forbade
cases = [("typical", {"mass": m}, lp.TypicalLogitsWarper(m)) for m in (0.1, 0.5, 0.9, 0.99)]
cases += [("eta", {"epsilon": e}, lp.EtaLogitsWarper(e)) for e in (1e-4, 9e-4, 0.02, 0.3)]
out = []
for plugin, config, warper in cases:
    kept = [[i for i, x in enumerate(warper(None, row.clone())[0].tolist()) if x != float("-inf")] for row in rows]
    out.append({"plugin": plugin, "config": config, "kept": kept})
number = lambda x: round(x, 3) if x != float("-inf") else None
print(json.dumps({"rows": [[number(x) for x in row[0].tolist()] for row in rows], "cases": out}))
