"""Makes metrics.json, the scores of ms-swift's `--metric rouge`, with the libraries that it uses (rouge 1.0.1, nltk 3.10.4, jieba 0.42.1):
python make_metrics.py > metrics.json

Chinese texts are cut into characters here, and by jieba in ms-swift: the counting is compared, not the cutting.
"""
import json, re
import jieba
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge import Rouge

jieba.setLogLevel(60)
han = re.compile("[\u4e00-\u9fd5]")
pairs = [
    ("The cat sat on the mat.", "The cat sat on the mat."),
    ("The cat is on the mat.", "There is a cat on the mat."),
    ("Paris", "The capital of France is Paris."),
    ("The capital of France is Paris, which lies on the Seine.", "Paris"),
    ("No word in common", "entirely different"),
    ("a", "a"),
    ("a b", "b a"),
    ("the the the the", "the cat the dog"),
    ("First, boil water. Then add 3.5 cups of rice. Stir it. Wait.", "Boil the water first. Add 3.5 cups of rice and stir. Serve warm."),
    ("It costs $1,299.99 (20% off) - see v1.2.3 of well-known_names!", "It costs $1,299 (25% off); see v1.2 of well-known names."),
    ("1. Eat well\n2. Sleep well\n3. Be well\n", "1. Eat\n2. Sleep\r\n3. Move . . often"),
    ("def f(x):\n    return x ** 2  # C++ and c#, AT&T", "def g(x):\n\treturn x * x  # c++ or C#"),
    ("Caf\u00e9 na\u00efve \u2014 \u201cquoted\u201d \U0001f600\u3000wide", "Cafe na\u00efve - \u201cquoted\u201d \U0001f600 wide"),
    ("a c b d a c e b f " * 9, "c a b a d c b e f a " * 8),
    ("\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u3002", "\u4eca\u5929\u5929\u6c14\u4e0d\u597d\uff0c\u6211\u4eec\u5728\u5bb6\u3002"),
    ("\u6211\u7528Python3\u5199\u4ee3\u7801\u3002", "\u6211\u7528Python\u5199\u4e86\u4ee3\u7801\u3002"),
]


def cut(text):
    return [part for word in jieba.cut(text) for part in (list(word) if han.search(word) else [word])]


def score(answer, reference):
    hypothesis, reference = [[w.strip(" ") for w in cut(text) if w.strip(" ")] for text in (answer, reference)]
    scores = Rouge().get_scores(" ".join(hypothesis), " ".join(reference))[0]
    bleu = sentence_bleu([reference], hypothesis, smoothing_function=SmoothingFunction().method3)
    return {**{name: value["f"] for name, value in scores.items()}, "bleu-4": bleu}


rows = [{"answer": answer, "reference": reference, **score(answer, reference)} for answer, reference in pairs]
print(json.dumps(rows, indent=1))
