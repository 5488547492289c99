//! The bundled plugins through the host's eyes: built from source, loaded under default limits, traced in every mode. Without a guest
//! toolchain this says so and passes.

use std::path::Path;

use swift_graph::{DType, Dim, Graph, Op, Shape, SymbolId, Type};
use swift_plugin::build::{ToolchainOptions, build_guest};
use swift_plugin::{
    BatchBinding, HostConfig, Kind, Mode, ParamInfo, Plugin, PluginHost, Result, SiteBinding, SiteKind, StepBinding, TracedModel,
};

const CONFIG: &str = r#"{
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": true
}"#;

/// All bundled plugins by name, or nothing where they cannot be built.
fn bundled() -> Option<impl Fn(&str) -> Plugin> {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, out) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins"), scratch.join("bundled"));
    // In the guests' own target folder, where the README's build has already compiled them.
    let options = ToolchainOptions { quiet: true, ..ToolchainOptions::default() };
    match build_guest(&source, &out, &options) {
        Ok(built) => assert!(built.len() >= 10, "{built:?}"),
        Err(e) => {
            assert!(e.to_string().contains("rustup target add"), "the bundled plugins do not build: {e}");
            eprintln!("skipped: {e}");
            return None;
        }
    }
    let host = PluginHost::new(HostConfig { cache_dir: Some(scratch.join("compiled")), ..HostConfig::default() }).unwrap();
    Some(move |name: &str| host.load_file(&out.join(format!("{name}.wasm"))).unwrap())
}

fn model(plugin: &Plugin) -> TracedModel {
    let mut guest = plugin.model().unwrap();
    let plan = guest.plan(CONFIG).unwrap();
    for mode in [Mode::Prefill, Mode::Decode, Mode::Encode] {
        let traced = guest.trace(CONFIG, &plan, mode).unwrap();
        let cached = traced.graph.nodes().iter().filter(|n| matches!(n.op, Op::CachedAttention(_))).count();
        assert_eq!(cached, if mode == Mode::Encode { 0 } else { 2 });
    }
    guest.trace(CONFIG, &plan, Mode::Train).unwrap()
}

fn tune(plugin: &Plugin, traced: &TracedModel) -> Result<()> {
    let mut tuner = plugin.tuner()?;
    let infos = traced.site_infos(|_| true)?;
    let plan = tuner.plan("{}", &infos)?;
    assert!(!plan.sites.is_empty(), "{} plans nothing", plugin.name());
    let mut g = traced.graph.clone();
    for site in &plan.sites {
        let info = infos.iter().find(|i| i.id == site.id).unwrap().clone();
        if info.kind != SiteKind::Linear || site.params.is_empty() {
            continue;
        }
        let at = g.sites[site.id as usize].clone();
        assert_eq!(at.path, info.path);
        let mut params = Vec::new();
        for p in &site.params {
            let name = format!("{}.{}", info.path, p.name);
            let id = g.declare_param(swift_graph::ParamInfo { name, shape: p.shape.clone(), trainable: true }).unwrap();
            params.push((p.name.clone(), id));
        }
        let common = Vec::new();
        let binding = SiteBinding { info, x: at.x, weight: at.weight, bias: at.bias, params, common, training: true };
        let out = tuner.apply(&mut g, &binding)?;
        assert_eq!(g.ty(out), g.ty(at.output));
        assert!(tuner.merge(&mut g, &binding)?.is_some());
        for (name, _) in &binding.params {
            tuner.init_param(&mut g, &binding, name)?;
        }
    }
    // A tuner without parameters of its own has no adapter to write.
    if plan.sites.iter().any(|s| !s.params.is_empty()) {
        assert!(tuner.export("hf-peft")?.config_json.starts_with('{'));
    }
    Ok(())
}

#[test]
fn bundled_plugins_trace_under_default_limits() {
    let Some(load) = bundled() else { return };
    let llama = load("llama");
    let traced = model(&llama);
    let sites: Vec<&str> = traced.graph.sites.iter().map(|s| s.path.as_str()).collect();
    assert!(sites.contains(&"model.layers.0.self_attn.q_proj"), "{sites:?}");
    let infos = traced.site_infos(|_| false).unwrap();
    assert!(infos.iter().any(|i| i.kind == SiteKind::Norm) && infos.iter().any(|i| i.kind == SiteKind::Embedding));
    for name in ["lora", "dora", "full"] {
        tune(&load(name), &traced).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    let n = Dim::symbol(SymbolId::TOKENS);
    let pairs = Dim::symbol(SymbolId::PAIRS);
    for (name, paired) in [("cross-entropy", false), ("dpo", true)] {
        let mut loss = load(name).loss().unwrap();
        let needs = loss.needs("{}").unwrap();
        assert_eq!((needs.paired, needs.reference), (paired, paired));
        let mut g = traced.graph.clone();
        let mut fields = Vec::new();
        for (field, dtype, dim) in [
            ("targets", DType::S32, &n),
            ("segments", DType::S32, &n),
            ("loss-weights", DType::F32, &n),
            ("chosen", DType::S32, &pairs),
            ("rejected", DType::S32, &pairs),
        ] {
            fields.push((field.to_string(), g.input(field, Type::new(dtype, vec![dim.clone()])).unwrap()));
        }
        let mut total = |name: &str| (name.to_string(), g.input(&format!("total.{name}"), Type::scalar(DType::F32)).unwrap());
        let totals = vec![total("tokens"), total("sequences")];
        let policy = traced.head.clone().unwrap();
        let reference = paired.then(|| policy.clone());
        let out = loss.trace(&mut g, &BatchBinding { policy, reference, teacher: None, fields, totals }, "{}").unwrap();
        assert_eq!(g.ty(out.loss), &Type::scalar(DType::F32));
    }

    let mut adamw = load("adamw").optimizer().unwrap();
    let info = ParamInfo { name: "w".into(), shape: vec![4, 4], tags: vec![] };
    let small = adamw.plan("{\"eight_bit\": true}", &info).unwrap();
    let kept = small.slots.iter().map(|s| (s.name.as_str(), s.dtype, s.quantised)).collect::<Vec<_>>();
    assert_eq!(kept, [("exp_avg", DType::S8, true), ("exp_avg_sq", DType::U8, true)]);
    let plan = adamw.plan("{}", &info).unwrap();
    assert!(plan.slots.iter().all(|s| !s.quantised && s.dtype == DType::F32));
    let mut g = Graph::default();
    let ty = Type::f32(Shape::fixed(&info.shape));
    let weight = g.input("weight", ty.clone()).unwrap();
    let grad = g.input("grad", ty).unwrap();
    let slots = plan.slots.iter().map(|s| (s.name.clone(), g.declare_state(&s.name, Type::f32(Shape::fixed(&s.shape))).unwrap()));
    let slots = slots.collect();
    let scalars = ["lr", "step", "weight-decay"].map(|s| (s.to_string(), g.input(s, Type::scalar(DType::F32)).unwrap())).to_vec();
    let step = StepBinding { info, grad, weight, slots, scalars };
    assert!(adamw.trace(&mut g, &plan.programs[0].name, &step, "{}").unwrap().is_some());
    assert_eq!(g.effects.len(), 2);
}

#[test]
fn bundled_datasets_give_samples() {
    let Some(load) = bundled() else { return };
    let synthetic = load("synthetic");
    assert_eq!(synthetic.kinds(), [Kind::Dataset]);
    assert!(synthetic.imports().iter().all(|i| !i.contains("graph")), "{:?}", synthetic.imports());
    let mut guest = synthetic.dataset().unwrap();
    assert!(!guest.shards("{}").unwrap().is_empty());
    let samples = guest.generate("{}", "train", 5, 7).unwrap();
    assert_eq!((samples.len(), &samples), (7, &guest.generate("{}", "train", 5, 7).unwrap()));
    let row = r#"{"instruction": "Add.", "input": "1 2", "output": "3"}"#.to_string();
    assert_eq!(load("alpaca").dataset().unwrap().map_rows("{}", &[row]).unwrap().len(), 1);
    let row = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}"#.to_string();
    let messages = load("messages").dataset().unwrap().map_rows("{}", &[row]).unwrap();
    assert_eq!(messages[0].turns.iter().map(|t| t.train).collect::<Vec<_>>(), [false, true]);
}
