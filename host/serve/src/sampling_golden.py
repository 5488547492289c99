"""Makes sampling_golden.json with the logits processors of transformers: python sampling_golden.py > sampling_golden.json"""
import json
import torch
from transformers.generation import logits_process as lp

torch.manual_seed(5)
logits = (torch.randn(1, 24) * 2.5).round(decimals=3)
logits[0, 9] = logits[0, 4]  # a tie
prompt = torch.tensor([[1, 4, 4, 7, 11, 19]])
cases = [
    {"temperature": 0.7}, {"temperature": 1.9}, {"top_k": 5}, {"top_k": 24}, {"top_p": 0.8}, {"top_p": 0.3, "temperature": 1.5},
    {"min_p": 0.1}, {"min_p": 0.02, "temperature": 2.0}, {"repetition_penalty": 1.3}, {"repetition_penalty": 0.8, "temperature": 0.9},
    {"bias": 4.5}, {"bias": -2.0, "top_k": 7},
    {"bias": 1.5, "repetition_penalty": 1.2, "temperature": 0.8, "top_k": 10, "top_p": 0.9, "min_p": 0.05},
    {"top_k": 3, "top_p": 0.95, "temperature": 1.2},
]
for case in cases:
    steps = []
    if "bias" in case:
        steps.append(lp.SequenceBiasLogitsProcessor([[[3], case["bias"]]]))
    if "repetition_penalty" in case:
        steps.append(lp.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    if "temperature" in case:
        steps.append(lp.TemperatureLogitsWarper(case["temperature"]))
    if "top_k" in case:
        steps.append(lp.TopKLogitsWarper(case["top_k"]))
    if "top_p" in case:
        steps.append(lp.TopPLogitsWarper(case["top_p"]))
    if "min_p" in case:
        steps.append(lp.MinPLogitsWarper(case["min_p"]))
    scores = logits.clone()
    for step in steps:
        scores = step(prompt, scores)
    case["probabilities"] = [round(p, 8) for p in scores.double().softmax(-1)[0].tolist()]
print(json.dumps({"logits": [round(x, 3) for x in logits[0].tolist()], "prompt": prompt[0].tolist(), "cases": cases}))
