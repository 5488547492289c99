//! GGUF files that llama.cpp's own converter made of the tiny models: the same logits as from their Hugging Face folders.

use swift_formats::gguf::{self, TensorSource, Value};
use swift_formats::{Checkpoint, Gguf};
use swift_tests::{Lab, golden, json, max_difference, tokens};

use crate::families::values;

/// Every file of `golden/gguf`, by the family it was converted from.
fn check(family: &str) {
    let lab = Lab::new(1);
    let file = golden("gguf").join(format!("{family}.gguf"));
    let mut model = lab.open(&file, None);
    for prompt in json(golden("families").join(family).join("golden.json")).as_array().unwrap() {
        let ids = tokens(&prompt["ids"]);
        let got = match family {
            "bert" => model.encode(&lab, &ids, "last_hidden_state"),
            _ => model.logits(&lab, &ids),
        };
        let off = max_difference(&got, &values(prompt));
        assert!(off < 2e-4, "{family}: outputs are {off} off");
    }
    // Every tensor of the file is known by the names of Hugging Face, and those are the folder's.
    let (read, folder) = (Checkpoint::open(&file).unwrap(), Checkpoint::open(golden("families").join(family)).unwrap());
    let mut missing: Vec<&String> = folder.names().iter().filter(|name| !read.contains(name)).collect();
    // Recomputed or unused by the models.
    missing.retain(|name| !name.starts_with("pooler.") && !name.ends_with(".position_ids"));
    assert!(missing.is_empty(), "{family}: {missing:?}");
    for name in read.names() {
        let (ours, theirs) = (read.tensor(name).unwrap(), folder.tensor(name).unwrap());
        assert_eq!(ours.shape, theirs.shape, "{family}: {name}");
        let off = max_difference(&ours.to_f32().unwrap(), &theirs.to_f32().unwrap());
        assert!(off < 1e-6, "{family}: {name} is {off} off");
    }
}

macro_rules! families {
    ($($name:ident: $family:literal;)*) => {
        $(#[test]
        fn $name() {
            check($family);
        })*
    };
}

families! {
    mixtral: "mixtral";
    qwen2_moe: "qwen2-moe";
    qwen3_moe: "qwen3-moe";
    deepseek_v2: "deepseek-v2";
    deepseek_v3: "deepseek-v3";
    glm4: "glm4";
    chatglm: "chatglm";
    baichuan: "baichuan";
    stablelm: "stablelm";
    gpt_neox: "gpt-neox";
    gpt2: "gpt2";
    phi3_longrope: "phi3-longrope";
    bert: "bert";
    deepseek_v2_lite: "deepseek-v2-lite";
    deepseek_v3_groups: "deepseek-v3-groups";
    gemma: "gemma";
    gemma2: "gemma2";
    gpt_neox_serial: "gpt-neox-serial";
    llama_linear_rope: "llama-linear-rope";
    llama_yarn: "llama-yarn";
    phi4_mini: "phi4-mini";
    qwen3: "qwen3";
    stablelm_parallel: "stablelm-parallel";
    llama3_rope: "llama3-rope";
    glm: "glm";
}

/// Version 2 differs in nothing but the number in the header.
#[test]
fn version_2_is_read_as_version_3_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(golden("gguf").join("stablelm.gguf")).unwrap();
    bytes[4..8].copy_from_slice(&2u32.to_le_bytes());
    let path = dir.path().join("old.gguf");
    std::fs::write(&path, &bytes).unwrap();
    let (old, new) = (Gguf::open(&path).unwrap(), Gguf::open(&golden("gguf").join("stablelm.gguf")).unwrap());
    assert_eq!(old.tensors().len(), new.tensors().len());
    assert!(old.tensors().iter().all(|t| old.bytes(t) == new.bytes(new.tensor(&t.name).unwrap())));
    let lab = Lab::new(1);
    let ids: Vec<i32> = (3..20).collect();
    let of = |path: &std::path::Path| lab.open(path, None).logits(&lab, &ids);
    assert_eq!(of(&path), of(&golden("gguf").join("stablelm.gguf")));
}

/// As llama.cpp's `gguf-split` cuts it: the first part has the metadata, each some of the tensors.
#[test]
fn models_in_parts_are_models() {
    let dir = tempfile::tempdir().unwrap();
    let whole = Gguf::open(&golden("gguf").join("qwen3.gguf")).unwrap();
    let sources: Vec<TensorSource<'_>> = whole
        .tensors()
        .iter()
        .map(|t| TensorSource { name: &t.name, dims: &t.dims, kind: t.kind, data: whole.bytes(t) })
        .collect();
    let count = 3;
    for (no, sources) in sources.chunks(sources.len().div_ceil(count)).enumerate() {
        let mut metadata = if no == 0 { whole.metadata().to_vec() } else { Vec::new() };
        metadata.push(("split.no".into(), Value::U16(no as u16)));
        metadata.push(("split.count".into(), Value::U16(count as u16)));
        metadata.push(("split.tensors.count".into(), Value::I32(whole.tensors().len() as i32)));
        gguf::write(&dir.path().join(format!("m-{:05}-of-{count:05}.gguf", no + 1)), &metadata, sources).unwrap();
    }
    let lab = Lab::new(1);
    let ids: Vec<i32> = (3..20).collect();
    let of = |path: &std::path::Path| lab.open(path, None).logits(&lab, &ids);
    let want = of(&golden("gguf").join("qwen3.gguf"));
    // By its first part, and by the folder that holds nothing else.
    assert_eq!(of(&dir.path().join("m-00001-of-00003.gguf")), want);
    assert_eq!(of(dir.path()), want);
}
