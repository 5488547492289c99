//! Sampler plugins: transforms against those of transformers, matchers that hold an answer to a language, and what a bad one does.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use swift_graph::{Bindings, DType, Dim, Graph, SymbolId, Type};
use swift_runtime::{HostTensor, Inputs};
use swift_serve::{Batching, Engine, EngineOptions, Request, RequestId, SamplerId, Sampling, Stop, compile};
use swift_tests::{Lab, Loaded, golden, json as read_json, swift_host, workspace};
use swift_train::text_of;

struct Bench {
    lab: Lab,
    loaded: Loaded,
    engine: Engine,
}

/// An answer's text, how it ended, and why it failed if it did.
type Answer = (String, Option<Stop>, Option<String>);

impl Bench {
    fn new() -> Bench {
        let lab = Lab::default();
        let mut loaded = lab.open(&workspace().join("host/cli/assets/swift-tiny.gguf"), None);
        let tokenizer = text_of(loaded.model.checkpoint()).unwrap().tokenizer;
        let options = EngineOptions { chunk: 64, batching: Batching::Throughput, ..EngineOptions::new(8, 200) };
        let Loaded { model, store } = &mut loaded;
        let engine = Engine::new(model, &lab.device, store, options, Some(Arc::clone(&tokenizer))).unwrap();
        Bench { lab, loaded, engine }
    }

    fn sampler(&mut self, plugin: &str, config: Value) -> SamplerId {
        let plugin = self.lab.plugin(plugin);
        self.engine.add_sampler(&plugin, &config.to_string(), &self.lab.device, &self.loaded.store).unwrap()
    }

    fn request(&self, question: &str, samplers: &[SamplerId], temperature: f32) -> Request {
        let tokenizer = text_of(self.loaded.model.checkpoint()).unwrap().tokenizer;
        let prompt = tokenizer.encode(question, false).unwrap().into_iter().map(|id| id as i32).collect();
        let mut request = Request::new(prompt, 120);
        request.stop_tokens = tokenizer.stop_ids().into_iter().map(|id| id as i32).collect();
        request.sampling = Sampling { temperature, ..Sampling::default() };
        request.samplers = samplers.to_vec();
        request
    }

    fn drain(&mut self) -> BTreeMap<RequestId, Answer> {
        let mut answers: BTreeMap<RequestId, Answer> = BTreeMap::new();
        self.engine
            .drain(&mut self.loaded.store, |update| {
                let answer = answers.entry(update.request).or_default();
                answer.0.push_str(&update.text);
                (answer.1, answer.2) = (update.finished, update.failure.clone());
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        answers
    }

    fn ask(&mut self, question: &str, samplers: &[SamplerId], temperature: f32) -> Answer {
        let id = self.engine.submit(self.request(question, samplers, temperature)).unwrap();
        self.drain().remove(&id).unwrap()
    }
}

/// Kept sets after transformers' processors; `make_samplers.py` made them.
#[test]
fn transforms_keep_what_transformers_keeps() {
    let lab = Lab::new(1);
    let golden = read_json(golden("samplers.json"));
    let rows: Vec<Vec<f32>> = golden["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row.as_array().unwrap().iter().map(|x| x.as_f64().map_or(f32::NEG_INFINITY, |x| x as f32)).collect())
        .collect();
    let width = rows[0].len();
    for case in golden["cases"].as_array().unwrap() {
        let plugin = lab.plugin(case["plugin"].as_str().unwrap());
        let mut g = Graph::default();
        let ty = Type::new(DType::F32, vec![Dim::symbol(SymbolId::SEQUENCES), Dim::fixed(width as u64)]);
        let logits = g.input("logits", ty).unwrap();
        let changed = plugin.sampler().unwrap().trace(&mut g, logits, &case["config"].to_string()).unwrap();
        g.outputs.push(("logits".into(), changed));
        let mut store = swift_runtime::Device::store(&lab.device);
        let mut program = compile(&lab.device, &store, g).unwrap();
        let calls = plugin.calls().get();
        let inputs = Inputs::new().with("logits", HostTensor::f32([rows.len(), width], rows.concat()));
        let out = program.run(&mut store, &Bindings::new().with(SymbolId::SEQUENCES, rows.len() as u64), &inputs).unwrap();
        let out = out.get("logits").unwrap().floats().unwrap().to_vec();
        assert_eq!(plugin.calls().get(), calls, "a transform that runs enters no WASM");
        for (row, (got, want)) in out.chunks(width).zip(case["kept"].as_array().unwrap()).enumerate() {
            let kept: Vec<usize> = (0..width).filter(|&t| got[t].is_finite()).collect();
            assert_eq!(json!(kept), *want, "{} {}: row {row}", case["plugin"], case["config"]);
            assert!(kept.iter().all(|&t| got[t] == rows[row][t]));
        }
    }
}

#[test]
fn answers_match_what_their_samplers_demand() {
    let mut bench = Bench::new();
    let digits = bench.sampler("regex", json!({ "pattern": "[0-9]{3}-[a-c]+é" }));
    let object = bench.sampler("json", json!({}));
    let typical = bench.sampler("typical", json!({ "mass": 0.5 }));
    // Together, at temperatures that would give anything but.
    let mut ids = Vec::new();
    for (i, samplers) in [&[digits][..], &[object], &[], &[typical, digits], &[object, typical]].into_iter().enumerate() {
        let mut request = bench.request("Say something.", samplers, 1.5);
        request.stream = i as u64;
        ids.push(bench.engine.submit(request).unwrap());
    }
    let answers = bench.drain();
    for at in [0, 3] {
        let (text, stop, failure) = &answers[&ids[at]];
        let fits = text.chars().take(3).all(|c| c.is_ascii_digit()) && text.chars().skip(4).all(|c| "abcé".contains(c));
        assert!(fits && (text.ends_with('é') || *stop == Some(Stop::Length)), "{text:?} {stop:?} {failure:?}");
    }
    for at in [1, 4] {
        let (text, stop, failure) = &answers[&ids[at]];
        assert!(text.starts_with('{'), "{text:?} {failure:?}");
        if *stop == Some(Stop::Token) {
            assert!(serde_json::from_str::<serde_json::Map<String, Value>>(text).is_ok(), "{text:?}");
        }
    }
    assert_eq!(answers[&ids[2]].2, None);
    // A pattern that leaves one text gives it, greedy or not, and the answer ends by itself.
    let word = bench.sampler("regex", json!({ "pattern": "forty-two apples" }));
    for temperature in [0.0, 2.0] {
        assert_eq!(bench.ask("How many?", &[word], temperature), ("forty-two apples".into(), Some(Stop::Token), None));
    }
    // Two matchers: what both allow.
    let numbers = bench.sampler("regex", json!({ "pattern": "[0-9]+" }));
    let longer = bench.sampler("regex", json!({ "pattern": "[a-z0-4]{6}" }));
    let (text, stop, _) = bench.ask("How many?", &[numbers, longer], 1.0);
    assert!(text.len() == 6 && text.bytes().all(|b| (b'0'..=b'4').contains(&b)) && stop == Some(Stop::Token), "{text:?}");
    // And with nothing that both allow, the answer fails while its neighbour goes on.
    let letters = bench.sampler("regex", json!({ "pattern": "[a-z]+" }));
    let none = bench.engine.submit(bench.request("How many?", &[numbers, letters], 1.0)).unwrap();
    let fine = bench.engine.submit(bench.request("How many?", &[word], 1.0)).unwrap();
    let answers = bench.drain();
    let (text, stop, failure) = &answers[&none];
    assert!(
        text.is_empty() && *stop == Some(Stop::Failed) && failure.as_ref().unwrap().contains("allows no token"),
        "{failure:?}"
    );
    assert_eq!(answers[&fine].0, "forty-two apples");
}

#[test]
fn draws_with_samplers_repeat_with_their_seed_whatever_else_is_asked() {
    let mut bench = Bench::new();
    let (eta, object) = (bench.sampler("eta", json!({})), bench.sampler("json", json!({ "root": "any" })));
    let alone = bench.ask("Tell me.", &[eta, object], 1.3);
    let id = bench.engine.submit(bench.request("Tell me.", &[eta, object], 1.3)).unwrap();
    for i in 0..5 {
        bench.engine.submit(bench.request(&format!("Number {i}?"), &[object], 0.7)).unwrap();
    }
    assert_eq!(bench.drain()[&id].0, alone.0);
}

#[test]
fn configurations_that_make_no_sampler_are_refused() {
    let mut bench = Bench::new();
    let cases = [
        ("regex", json!({}), "`pattern` is missing"),
        ("regex", json!({ "pattern": "(" }), "makes no automaton"),
        ("typical", json!({ "mass": 2.0 }), "between 0 and 1"),
        ("json", json!({ "root": "tree" }), "unknown variant `tree`"),
        ("lora", json!({}), "is no sampler plugin"),
    ];
    for (name, config, word) in cases {
        let plugin = bench.lab.plugin(name);
        let refused = bench.engine.add_sampler(&plugin, &config.to_string(), &bench.lab.device, &bench.loaded.store);
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn the_command_line_takes_samplers() {
    let dir = tempfile::tempdir().unwrap();
    let line =
        "infer --model swift-tiny --prompt hi --sampler regex:pattern=[0-9]{4} --sampler typical:mass=0.8 --temperature 1.2";
    let four = |text: &str| text.len() == 5 && text.trim_end().bytes().all(|b| b.is_ascii_digit());
    let ran = swift_host(dir.path(), line).ok();
    assert!(four(&ran.stdout), "{:?}", ran.stdout);
    let ran = swift_host(dir.path(), "run --plugin regex:pattern=[0-9]{4} --prompt hi").ok();
    assert!(four(&ran.stdout), "{:?}", ran.stdout);
    let cases: [(&str, &[&str]); 5] = [
        ("infer --model swift-tiny --prompt hi --sampler nowhere", &["no plugin `nowhere`", "typical"]),
        ("infer --model swift-tiny --prompt hi --sampler typical:mass", &["key=value"]),
        ("infer --model swift-tiny --prompt hi --sampler lora", &["is no sampler plugin"]),
        ("run --plugin lora --plugin typical", &["no part in training", "infer --sampler"]),
        ("run --plugin lora:r=4", &["only a sampler takes its configuration here"]),
    ];
    for (line, words) in cases {
        swift_host(dir.path(), line).refused(words);
    }
}
