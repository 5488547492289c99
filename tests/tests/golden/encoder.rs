//! An encoder: outputs, every gradient, and fine-tuning, beside the reference library. It has no vocabulary to predict, so the loss is
//! one over its hidden states; `make_encoder.py` says which.

use std::collections::BTreeMap;

use swift_graph::{Bindings, ParamId, SymbolId, autodiff, passes};
use swift_plugin::Mode;
use swift_runtime::{HostTensor, Inputs};
use swift_serve::compile;
use swift_tests::{Lab, Loaded, assert_close, golden, json, max_difference, norm, numbers, tokens};

use crate::families::values;

const LR: f64 = 1e-3;
const DECAY: f64 = 0.1;
const BETAS: [f64; 2] = [0.9, 0.95];
const EPSILON: f64 = 1e-8;

/// A step of AdamW (Loshchilov, Hutter 2019), in double precision.
fn update(loaded: &mut Loaded, name: &str, gradient: &[f32], moments: &mut [Vec<f64>; 2], step: i32) {
    let mut values = loaded.param(name);
    moments.iter_mut().for_each(|m| m.resize(values.len(), 0.0));
    let [first, second] = moments;
    for (i, value) in values.iter_mut().enumerate() {
        let g = f64::from(gradient[i]);
        first[i] = BETAS[0] * first[i] + (1.0 - BETAS[0]) * g;
        second[i] = BETAS[1] * second[i] + (1.0 - BETAS[1]) * g * g;
        let (m, v) = (first[i] / (1.0 - BETAS[0].powi(step)), second[i] / (1.0 - BETAS[1].powi(step)));
        *value = (f64::from(*value) * (1.0 - LR * DECAY) - LR * m / (v.sqrt() + EPSILON)) as f32;
    }
    loaded.set(name, values);
}

#[test]
fn bert() {
    let folder = golden("families").join("bert");
    let lab = Lab::new(1);
    let mut loaded = lab.open(&folder, None);
    let prompts = json(folder.join("golden.json"));
    for prompt in prompts.as_array().unwrap() {
        let off = max_difference(&loaded.encode(&lab, &tokens(&prompt["ids"]), "last_hidden_state"), &values(prompt));
        assert!(off < 2e-4, "hidden states are {off} off");
    }

    let ids = tokens(&prompts[0]["ids"]);
    let (n, d) = (ids.len(), values(&prompts[0]).len() / ids.len());
    let traced = loaded.model.trace(Mode::Encode).unwrap();
    let hidden = traced.outputs.iter().find(|(name, _)| name == "last_hidden_state").unwrap().1;
    let mut g = traced.graph;
    let target = g.input("target", g.ty(hidden).clone()).unwrap();
    let off = g.sub(hidden, target).unwrap();
    let square = g.mul(off, off).unwrap();
    let sum = g.sum_all(square).unwrap();
    let loss = g.scale(sum, 1.0 / (n * d) as f64).unwrap();
    g.outputs = vec![("loss".into(), loss)];
    let mut g = passes::before_autodiff(&g).unwrap();
    let names: Vec<String> = g.params().iter().map(|param| param.name.clone()).collect();
    let wrt: Vec<ParamId> = (0..names.len() as u32).map(ParamId).collect();
    let loss = g.output("loss").unwrap();
    for (param, gradient) in autodiff::differentiate(&mut g, loss, &wrt).unwrap() {
        g.outputs.push((names[param.index()].clone(), gradient));
    }
    // Owned, so that steps may replace them.
    for name in &names {
        let values = loaded.param(name);
        loaded.set(name, values);
    }
    let mut program = compile(&lab.device, &loaded.store, g).unwrap();
    let bindings = Bindings::new().with(SymbolId::TOKENS, n as u64).with(SymbolId::SEQUENCES, 1);
    let target: Vec<f32> = (0..n * d).map(|i| (0.37 * i as f64).sin() as f32).collect();
    let inputs = Inputs::new()
        .with("ids", HostTensor::i32([n], ids))
        .with("positions", HostTensor::i32([n], (0..n as i32).collect()))
        .with("segments", HostTensor::i32([n], vec![0; n]))
        .with("target", HostTensor::f32([n, d], target));

    let want = json(folder.join("train.json"));
    let gradients = want["grad_norm"].as_object().unwrap();
    assert!(names.len() == gradients.len() && names.iter().all(|name| gradients.contains_key(name)), "trained are {names:?}");
    let mut moments: BTreeMap<&str, [Vec<f64>; 2]> = BTreeMap::new();
    for (step, loss) in numbers(&want["losses"]).into_iter().enumerate() {
        let outputs = program.run(&mut loaded.store, &bindings, &inputs).unwrap();
        let got = f64::from(outputs.scalar("loss").unwrap());
        assert_close(&format!("loss of step {}", step + 1), got, loss, if step == 0 { 1e-4 } else { 1e-3 });
        let found: BTreeMap<&str, &HostTensor> = outputs.iter().collect();
        for name in &names {
            let gradient = found[name.as_str()].floats().unwrap();
            let want = gradients[name].as_f64().unwrap();
            // A bias of keys moves all scores of a query alike: its gradient is nothing but rounding.
            if step == 0 && want < 1e-6 {
                assert!(norm(gradient) < 1e-6, "gradient of {name}");
            } else if step == 0 {
                assert_close(&format!("gradient of {name}"), norm(gradient), want, 1e-3);
            }
            update(&mut loaded, name, gradient, moments.entry(name).or_default(), step as i32 + 1);
        }
    }
}
