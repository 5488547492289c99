"""Converts the tiny models of FAMILIES to GGUF with llama.cpp's own converter: python make_gguf.py LLAMA_CPP FAMILIES OUT [NAME...]

Nothing is changed but the vocabulary, which these models lack: only its size is written. Settings that newer configurations have under
other names than the converter looks for are given under both.
"""
import pathlib, sys

llama_cpp, families, out = (pathlib.Path(arg) for arg in sys.argv[1:4])
sys.path.insert(1, str(llama_cpp / "gguf-py"))
sys.path.insert(1, str(llama_cpp))
import gguf
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

OLD_NAMES = {
    "gpt_neox": lambda h: {"rotary_pct": h["rope_parameters"]["partial_rotary_factor"]},
    "glm": lambda h: {"layernorm_epsilon": h["rms_norm_eps"]},
    "gpt2": lambda h: {"n_ctx": h["n_positions"]},
}

def no_vocab(self):
    self.gguf_writer.add_tokenizer_model("no_vocab")
    self.gguf_writer.add_vocab_size(self.hparams.get("vocab_size", self.hparams.get("padded_vocab_size", 128)))

def patch(cls):
    for kind in cls.__mro__:
        for name in ("set_vocab", "_set_vocab_none"):
            if name in vars(kind) and kind.__name__ != "ModelBase":
                setattr(kind, name, no_vocab)

def mend_baichuan(cls):
    """The converter calls itself for ever on every other tensor, where it means its base."""
    own, base = cls.modify_tensors, cls.__mro__[1].modify_tensors
    def modify_tensors(self, data, name, bid):
        if name.endswith("W_pack.weight"):
            yield from own(self, data, name, bid)
        else:
            yield from base(self, data, name, bid)
    cls.modify_tensors = modify_tensors

def mend_stablelm(cls):
    """The converter stacks the norms of heads in a generator that it does not run through."""
    own = cls.modify_tensors
    def modify_tensors(self, data, name, bid):
        made = own(self, data, name, bid)
        while True:
            try:
                yield next(made)
            except StopIteration as end:
                yield from end.value or ()
                return
    cls.modify_tensors = modify_tensors

out.mkdir(parents=True, exist_ok=True)
for folder in sorted(families.iterdir()):
    if len(sys.argv) > 4 and folder.name not in sys.argv[4:] or not (folder / "config.json").exists():
        continue
    try:
        hparams = ModelBase.load_hparams(folder, False)
        architecture = get_model_architecture(hparams, ModelType.TEXT)
        cls = get_model_class(architecture)
        patch(cls)
        if cls.__name__ == "BaichuanModel":
            mend_baichuan(cls)
        if cls.__name__ == "StableLMModel":
            mend_stablelm(cls)
        hparams |= OLD_NAMES.get(hparams["model_type"], lambda h: {})(hparams)
        model = cls(folder, gguf.LlamaFileType.ALL_F32, out / f"{folder.name}.gguf", eager=True, model_name=folder.name, hparams=hparams)
        model.write()
        print(folder.name, architecture, "ok")
    except Exception as error:
        print(folder.name, "FAILED", type(error).__name__, str(error)[:300])
