"""Renders chat templates as transformers does and makes templates.json: python make_templates.py ASSETS > templates.json

ASSETS holds templates/*.jinja (of the sources of llama.cpp), tokenizers/*/tokenizer_config.json and GGUF files. The templates themselves are
not committed, so of each rendering only its length and the beginning of its SHA-256 are, and of each source its digest. What a template
refuses is `null`; where it stumbles over a type ("accident"), anything goes. A template that asks whether `strftime_now` is defined is told that it is not; for the others it is 26 July 2024: a
prompt is the same every day here.
"""
import glob, hashlib, json, os, sys
from datetime import datetime
from transformers.utils import chat_template_utils

def user(text): return {"role": "user", "content": text}
def assistant(text, **more): return {"role": "assistant", "content": text, **more}
def system(text): return {"role": "system", "content": text}

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather at a \"place\" <now>.", "parameters": {"type": "object", "properties": {
        "place": {"type": "string", "description": "City, é"}, "days": {"type": "integer", "enum": [1, 2, 3]}, "wind": {"type": "boolean", "default": True}},
        "required": ["place"]}}},
    {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}}},
]
def call(name, arguments, id="abcdefghi"): return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}

CASES = [
    ("question", [user("Hi")], None, True, {}),
    ("system", [system("You are terse."), user("Hi")], None, True, {}),
    ("turns", [user("One?"), assistant("1"), user("Two?"), assistant("2"), user("Three?")], None, True, {}),
    ("trained", [system("Be kind.\n"), user("One?"), assistant("1"), user("Two?"), assistant("2\n")], None, False, {}),
    ("letters", [system(" \tS \n"), user("  <|im_end|> {{ x }} \"q\" 'p' \\n é 世界 😀\n\n"), assistant("  a\n b  "), user("<b>&amp;</b>")], None, True, {}),
    ("thinking", [user("2+2?"), assistant("<think>\nTwo and two.\n</think>\n\n4"), user("And 3+3?")], None, True, {}),
    ("reasoning", [user("2+2?"), assistant("4", reasoning_content="Two and two."), user("And 3+3?"), assistant("6", reasoning_content="More.")], None, False, {}),
    ("not thinking", [user("2+2?")], None, True, {"enable_thinking": False}),
    ("tools", [user("Weather in Bonn?")], TOOLS, True, {}),
    ("system and tools", [system("You are terse."), user("Weather in Bonn?")], TOOLS, True, {}),
    ("called", [user("Weather in Bonn?"), assistant("", tool_calls=[call("get_weather", {"place": "Bonn", "days": 2, "wind": False, "x": None, "f": 1.5})]),
        {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "{\"sky\": \"clear\"}"}, assistant("Clear."), user("Thanks")], TOOLS, True, {}),
    ("called twice", [user("Weather and time?"), assistant("Wait.", tool_calls=[call("get_weather", {"place": "Bönn"}), call("clock", {}, "123456789")]),
        {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "clear"}, {"role": "tool", "name": "clock", "tool_call_id": "123456789", "content": "noon"}], TOOLS, True, {}),
    ("parts", [user([{"type": "text", "text": "Look: "}, {"type": "text", "text": "here"}]), assistant("Yes")], None, True, {}),
    ("strange order", [assistant("Hello"), user("Hi"), user("again")], None, True, {}),
]

def render(source, messages, tools, prompt, variables):
    compiled = chat_template_utils._compile_jinja_template(source)
    if "strftime_now is " in source:
        compiled.environment.globals.pop("strftime_now", None)
        compiled.globals.pop("strftime_now", None)
    else:
        compiled.globals["strftime_now"] = lambda f: datetime(2024, 7, 26).strftime(f)
    try:
        text = compiled.render(messages=messages, tools=tools, documents=None, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>", **variables)
    except Exception as error:
        print(f"    {type(error).__name__}: {str(error)[:150]}", file=sys.stderr)
        # A refusal of the template's own, or an accident of Python's types, which binds nobody.
        return None if type(error).__name__ == "TemplateError" else "accident"
    if len(sys.argv) > 2:
        print(repr(text))
    return [len(text.encode()), hashlib.sha256(text.encode()).hexdigest()[:16]]

def sources(assets):
    for path in sorted(glob.glob(f"{assets}/templates/*.jinja")):
        yield os.path.relpath(path, assets), open(path, newline="").read()
    for path in sorted(glob.glob(f"{assets}/tokenizers/*/tokenizer_config.json")):
        template = json.load(open(path)).get("chat_template")
        named = template if isinstance(template, list) else [{"name": "default", "template": template}]
        for entry in named:
            if entry["template"]:
                yield f"{os.path.relpath(path, assets)}#{entry['name']}", entry["template"]
    from gguf import GGUFReader
    for path in sorted(glob.glob(f"{assets}/*.gguf")):
        field = GGUFReader(path).fields.get("tokenizer.chat_template")
        if field is not None:
            yield os.path.relpath(path, assets), bytes(field.parts[field.data[0]]).decode()

templates = {}
for name, source in sources(sys.argv[1]):
    if len(sys.argv) > 2 and sys.argv[2] not in name:
        continue
    print(name, file=sys.stderr)
    rendered = [render(source, *case[1:]) for case in CASES]
    templates[name] = {"source": hashlib.sha256(source.encode()).hexdigest()[:16], "rendered": rendered}
if len(sys.argv) == 2:
    cases = [{"name": n, "messages": m, "tools": t, "add_generation_prompt": p, "variables": v} for n, m, t, p, v in CASES]
    line = lambda value: json.dumps(value, ensure_ascii=False)
    print('{"cases": [\n ' + ",\n ".join(map(line, cases)) + '],\n"templates": {\n ' + ",\n ".join(f"{line(k)}: {line(v)}" for k, v in templates.items()) + "}}")
