"""Writes texts.json: strings on which tokenizers go wrong. Run: python make_texts.py"""
import json, os
texts = [
    "", " ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\n\n\n", " \n \n", "\t\t\n  x", "a", " a", "  a", "a ", "a  ", "a   b", "\u00a0a\u00a0", "\u3000a\u3000b",
    "Hello, world!", "hello   world", "Hello\tworld\n", "  leading and trailing  ", "x" * 70, " " * 40, "\n" * 9, "ab" * 40, "a" + " " * 33 + "b", "=" * 45, "-" * 17 + ">",
    "I'm you're he'd we'll they've it's don't 'S 'T I'M YOU'RE HE'D WE'LL THEY'VE", "'s't're 'll", "\u2019s \u2019t it\u2019s", "''''", "\"quoted\" 'text' `code`",
    "0 1 12 123 1234 12345 123456 1234567", "3.14159 1,000,000 1e-5 0xFF 2024-01-02", "\u0661\u0662\u0663 \u096a\u096b \u00bd \u2167 \u2460 x\u00b2 10\u2074", "a1b2c3 v1.2.3-rc4", "١٢٣٤٥٦",
    "def f(x):\n    return x ** 2\n\n\nclass A:\n\tpass\r\n", "if (a && b || !c) { x->y[0] = *p++; } // ok", "<div class=\"a\">&amp;</div>", "SELECT * FROM t WHERE a='b';", "C:\\path\\file.txt ~/x $HOME ${y}", "https://example.org/a?b=c&d=%20#e", "user.name+tag@example.co.uk",
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u3002", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3067\u3059\u3002\u30ab\u30bf\u30ab\u30ca", "\ud55c\uad6d\uc5b4 \ubb38\uc7a5\uc785\ub2c8\ub2e4", "\u1112\u1161\u11ab\u1100\u116e\u11a8", "\u4f60\u597dworld123\u4e16\u754c", "\U00020000\U0002a6d6", "\uff21\uff22\uff43\uff11\uff12\uff01\uff5e",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u200fRTL\u200e mixed \u202eabc\u202c", "\u0627\u0644\u0633\u0644\u0627\u0645\u064f \u0639\u064e\u0644\u064e\u064a\u0652\u0643\u064f\u0645\u0652",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0401\u0436", "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5 \u039f\u03a3", "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0 \u13e3\u13b3\u13a9 \u1780\u17b6",
    "\U0001f600\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7", "\u2764\ufe0f\u200d\U0001f525 ok \u2603", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001f644 \U0001f644\U0001f644a",
    "caf\u00e9 cafe\u0301 na\u00efve \u212b \u00c5 A\u030a", "\ufb01ne \u2122 \u00bc \u2075 \u33a5 \u3392", "Z\u0351\u036b\u0343\u0363a\u0316l\u0349g\u0318o", "\u00df\u1e9e \u0130i\u0131I \u01c5 \u01f1", "\u00e0\u0301\u0323", "\u1e9b\u0323", "o\u0328\u0304",
    "\u0000", "a\u0000b", "\u0001\u0002\u0003", "\u001b[31mred\u001b[0m", "\u007f\u0080\u0085x\u009f", "a\u000bb\u000cc\u001cd\u001de\u001ff", "\ufeffBOM", "a\u200bb\u200cc\u2060d", "\u00ad\u00adsoft", "\ufffd\ufffd", "\ufffe\uffff\U0010ffff", "\ue000\uf8ff\U000f0000", "\u2028\u2029line", "\u180e\u1680x\u205fy",
    "\u2581", "a\u2581b", "\u2581\u2581 \u2581", "\u0120a\u010ab", "##ing [UNK] un##able", "<0x0A><0x41>", "\u00c3\u00a9 \u00e2\u20ac\u2122",
    "CamelCaseWords XMLHttpRequest iOS snake_case_name kebab-case", "ALLCAPS lowercase MiXeD \u0394\u03a9\u03b4 \u01c4\u01c5\u01c6", "...!!!???;;;:::,,,", "\u2026\u2014\u2013\u201c\u201d\u2018\u2019\u00ab\u00bb\u2022\u00a7\u00b6", "\u20ac\u00a3\u00a5$\u00a2 \u221e\u2211\u222b\u2260\u2264 \u2190\u2191\u2192", "(((a)))[[b]]{{c}}", "a/b\\c|d", "!\n?\n.\n", "\u3001\u3002\uff1b\uff1a\uff1f\uff01\u300c\u300d", " !", " \u00e9", "\n a\n  b\n   c", "a\r\nb\rc\n\rd", "\t\ta\t b \t", "   \n   x", "x   \n", "1 \n 2", ". \n.", "\u00a0\u00a0\n\u00a0", "\u3000\u3000\u3000", "end.\n\n\nNext", "\u0915\u094d\u0937\u093f 123\u0967\u0968", "\u1200\u1208\u1290 \ua000\ua015 \u0531\u0532", "supercalifragilisticexpialidocious antidisestablishmentarianism", "\u00e9" * 20, "\u0301\u0301\u0301", "\U0001f44d" * 12, "\u4e00" * 30, "0" * 31, "a\u0301" * 11,
]
specials = [
    "<|im_start|>user\nHi<|im_end|>\n", "<s>a</s>", "<bos> a<eos>b", "a<|endoftext|>b", "<|begin_of_text|>x<|eot_id|>", "[CLS] a [SEP][MASK]", " <unk> ", "<|im_start", "<|im_end|><|im_end|>", "<start_of_turn>user\nx<end_of_turn>\n", "\u00a0<|endoftext|>\u00a0", "<\uff5cUser\uff5c>hi<\uff5cAssistant\uff5c>", "[INST] hi [/INST]", "<|start|>user<|message|>x<|end|>",
]
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "texts.json"), "w") as out:
    json.dump({"plain": texts, "special": specials}, out, indent=0); out.write("\n")
print(len(texts), len(specials))
