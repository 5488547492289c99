//! A small transformer with a loss, gradients and an update: the shape of a training step.

use swift_graph::autodiff::differentiate;
use swift_graph::op::*;
use swift_graph::passes::{self, Options};
use swift_graph::plan::plan;
use swift_graph::{Bindings, Float, NodeId, ParamId, Result, SymbolId, Target};
use swift_runtime::{CpuDevice, CpuOptions, Device, Format, HostTensor, Inputs, Store};

use crate::case::{Case, N, rows};

struct Model {
    case: Case,
    loss: NodeId,
    trainable: Vec<ParamId>,
}

/// Two layers with a frozen quantized base, LoRA on the queries, trained norms and a tied head.
fn model(base: Format) -> Result<Model> {
    let mut c = Case::new();
    let (d, heads, vocab, rank) = (32u64, 4u64, 50u64, 4u64);
    let mut trainable = Vec::new();
    let ids = c.i(rows(&[]), (0..N as i32).map(|i| i * 7 % 50).collect());
    let targets = c.i(rows(&[]), (0..N as i32).map(|i| if i % 9 == 0 { -100 } else { (i + 1) * 7 % 50 }).collect());
    let positions = c.i(rows(&[]), (0..N as i32).map(|i| i % 20).collect());
    let segments = c.i(rows(&[]), (0..N as i32).map(|i| i / 20).collect());
    let table = c.param("embed", &[vocab, d], base, false).1;
    let mut h = c.g.push(Embed, &[table, ids])?;
    for layer in 0..2 {
        c.g.push_scope(&format!("layers.{layer}"))?;
        let mut weight = |c: &mut Case, name: &str, shape: &[u64], format, train: bool| {
            let (id, node) = c.param(&format!("{layer}.{name}"), shape, format, train);
            if train {
                trainable.push(id);
            }
            node
        };
        let norm = RmsNorm { eps: Float(1e-5), unit_offset: false, weight: true };
        let scale = weight(&mut c, "norm", &[d], Format::F32, true);
        let x = c.g.push(norm.clone(), &[h, scale])?;
        let [q, k, v] = ["q", "k", "v"].map(|name| weight(&mut c, name, &[d, d], base, false));
        let (a, b) = (weight(&mut c, "a", &[rank, d], Format::F32, true), weight(&mut c, "b", &[d, rank], Format::F32, true));
        let low = c.g.linear(x, a)?;
        let low = c.g.linear(low, b)?;
        let low = c.g.scale(low, 0.5)?;
        let plain = c.g.linear(x, q)?;
        let q = c.g.add(plain, low)?;
        let (k, v) = (c.g.linear(x, k)?, c.g.linear(x, v)?);
        let inv_freq: Vec<Float> = [1.0f32, 0.1, 0.01, 0.001].map(Float::from).to_vec();
        let (layout, attn_scale, sections) = (RopeLayout::Halves, Float(1.0), [].into());
        let rope = Rope { inv_freq: inv_freq.into(), layout, attn_scale, inverse: false, sections };
        let split = |c: &mut Case, x| c.g.reshape(x, rows(&[heads, d / heads]).into());
        let (q, k, v) = (split(&mut c, q)?, split(&mut c, k)?, split(&mut c, v)?);
        let (q, k) = (c.g.push(rope.clone(), &[q, positions])?, c.g.push(rope, &[k, positions])?);
        let spec = AttentionSpec::causal(0.35);
        let o = c.g.push(Attention { spec }, &[q, k, v, segments])?;
        let o = c.g.reshape(o, rows(&[d]).into())?;
        h = c.g.add(h, o)?;
        let scale = weight(&mut c, "norm2", &[d], Format::F32, true);
        let x = c.g.push(norm, &[h, scale])?;
        let (gate, up) = (weight(&mut c, "gate", &[2 * d, d], base, false), weight(&mut c, "up", &[2 * d, d], base, false));
        let down = weight(&mut c, "down", &[d, 2 * d], base, false);
        let (gate, up) = (c.g.linear(x, gate)?, c.g.linear(x, up)?);
        let gate = c.g.unary(UnaryOp::Silu, gate)?;
        let x = c.g.mul(gate, up)?;
        let x = c.g.linear(x, down)?;
        h = c.g.add(h, x)?;
        c.g.pop_scope();
    }
    let spec = CrossEntropySpec { label_smoothing: Float(0.0), z_loss: Float(0.0), softcap: None, temperature: Float(1.0) };
    let losses = c.g.push(LinearCrossEntropy { spec, unit_grad: true }, &[h, table, targets])?;
    let loss = c.g.sum_all(losses)?;
    let loss = c.g.scale(loss, 1.0 / N as f64)?;
    c.out(loss);
    Ok(Model { case: c, loss, trainable })
}

/// Adds gradients, their sums in states, and a step of plain descent.
fn training(model: Model) -> Result<Case> {
    let Model { case: mut c, loss, trainable } = model;
    let mut g = passes::before_autodiff(&c.g)?;
    let loss = match g.outputs.first() {
        Some((_, loss)) => *loss,
        None => loss,
    };
    for (param, grad) in differentiate(&mut g, loss, &trainable)? {
        let info = g.params()[param.index()].clone();
        let ty = g.ty(grad).clone();
        let sum = g.declare_state(&format!("grad.{}", info.name), ty)?;
        g.write(Target::State(sum), grad, true)?;
        let node = g.param(param)?;
        let weight = g.push(Read, &[node])?;
        let step = g.scale(grad, 0.1)?;
        let updated = g.sub(weight, step)?;
        g.write(Target::Param(param), updated, false)?;
        g.outputs.push((format!("grad.{}", info.name), grad));
    }
    c.g = g;
    c.tolerance = 2e-4;
    Ok(c)
}

#[test]
fn a_training_step_matches_the_interpreter() {
    for base in [Format::F32, Format::Q8_0, Format::Q4_0] {
        training(model(base).unwrap()).unwrap().check();
    }
}

#[test]
fn steps_of_changing_length_learn_and_repeat() {
    let case = training(model(Format::Q8_0).unwrap()).unwrap();
    let g = passes::optimize(case.g.clone(), &Options::default()).unwrap();
    let names: Vec<String> = g.inputs().iter().map(|i| i.name.clone()).collect();
    let learn = |threads| -> (Vec<u32>, f32, f32) {
        let device = CpuDevice::new(CpuOptions { threads, isa: None }).unwrap();
        let mut store = case.fill(&device);
        let plan = plan(g.clone(), &|p| store.is_dense(&g.params()[p.index()].name)).unwrap();
        let mut executable = device.compile(plan).unwrap();
        executable.set_profiling(true);
        let mut losses = Vec::new();
        for step in 0..30 {
            // Ten lengths are more than the executable keeps prepared.
            let n = 20 + step % 10;
            let data: [Vec<i32>; 4] = [
                (0..n).map(|i| i * 7 % 50).collect(),
                (0..n).map(|i| (i + 1) * 7 % 50).collect(),
                (0..n).collect(),
                vec![0; n as usize],
            ];
            let mut inputs = Inputs::new();
            for (name, data) in names.iter().zip(data) {
                inputs.set(name, HostTensor::i32([n as usize], data));
            }
            let bindings = Bindings::new().with(SymbolId::TOKENS, n as u64);
            let out = executable.run(&mut store, &bindings, &inputs).unwrap();
            losses.push(out.scalar("out0").unwrap() * N as f32 / n as f32);
        }
        let profile = executable.profile().unwrap();
        assert!(profile.rows["linear"].calls > 0 && profile.to_string().contains("GFLOP/s"));
        (losses.iter().map(|l| l.to_bits()).collect(), losses[0], losses[29])
    };
    let (bits, first, last) = learn(1);
    assert!(last < first, "loss went from {first} to {last}");
    assert_eq!(bits, learn(2).0);
}

#[test]
fn tied_and_aliased_weights_are_read_through_both_names() {
    let mut c = Case::new();
    let x = c.x(rows(&[8]));
    let w = c.w(&[6, 8], Format::F32);
    c.all(Linear::plain(), &[x, w]);
    let (expected, _) = c.run(&c.g, CpuOptions::default());
    let device = CpuDevice::new(CpuOptions::default()).unwrap();
    let mut store = Store::new();
    let data = c.fill(&device).read_f32("w0").unwrap();
    store.insert_f32("other", vec![6, 8], data.floats().unwrap().to_vec()).unwrap();
    store.alias("w0", "other").unwrap();
    let mut executable = device.compile(plan(c.g.clone(), &|_| true).unwrap()).unwrap();
    let out = executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
    assert_eq!(out, expected);
}
