//! Random graphs through passes, plan and simulated arena.

use swift_graph::op::{self, BinaryOp, ReduceOp, UnaryOp};
use swift_graph::passes::{self, Options};
use swift_graph::plan::{Place, plan};
use swift_graph::{DType, Dim, Graph, NodeId, ParamId, ParamInfo, SymbolId, Target, Type};

use crate::arena::simulate;
use crate::{Noise, assert_same, environment, run_all};

/// A graph of ops that planning treats in different ways, with effects of all kinds.
fn random_graph(seed: u64) -> Graph {
    let mut noise = Noise(seed);
    let mut g = Graph::default();
    let n = Dim::symbol(SymbolId::TOKENS);
    let ty = Type::f32(vec![n.clone(), Dim::fixed(4)]);
    let mut values: Vec<NodeId> = (0..2).map(|k| g.input(&format!("x{k}"), ty.clone()).unwrap()).collect();
    let states: Vec<_> = (0..4).map(|k| g.declare_state(&format!("s{k}"), ty.clone()).unwrap()).collect();
    for &s in &states {
        let v = g.read_state(s).unwrap();
        values.push(v);
    }
    let info = |name: &str| ParamInfo { name: name.into(), shape: vec![4, 4], trainable: true };
    let weights: Vec<ParamId> = ["w0", "w1"].iter().map(|w| g.declare_param(info(w)).unwrap()).collect();
    for k in 0..30 {
        // Near values mostly, so that old ones die.
        let span = if noise.below(4) == 0 { values.len() } else { values.len().min(4) };
        let pick = |noise: &mut Noise| values[values.len() - 1 - noise.below(span)];
        let (a, b, c) = (pick(&mut noise), pick(&mut noise), pick(&mut noise));
        let w = g.param(weights[noise.below(2)]).unwrap();
        let y = match noise.below(14) {
            0 => g.unary(UnaryOp::Tanh, a),
            1 => g.add(a, b),
            2 => g.mul(a, b),
            3 => {
                let cond = g.binary(BinaryOp::Gt, a, b).unwrap();
                g.push(op::Select, &[cond, b, c])
            }
            4 => g.linear(a, w),
            5 => {
                let l = g.linear(a, w).unwrap();
                g.add(l, b)
            }
            6 => {
                let r = g.reduce(ReduceOp::Mean, a, &[1], true).unwrap();
                g.sub(b, r)
            }
            7 => {
                let r = g.reduce(ReduceOp::Sum, a, &[0], false).unwrap();
                g.mul(b, r)
            }
            8 => {
                let y = g.push(op::RmsNorm { eps: 1e-6.into(), unit_offset: false, weight: false }, &[a]).unwrap();
                let inv = g.part(y, 1).unwrap();
                let inv = g.reshape(inv, vec![n.clone(), Dim::fixed(1)].into()).unwrap();
                g.mul(b, inv)
            }
            9 => {
                let to = vec![n.mul(&Dim::fixed(2)).unwrap(), Dim::fixed(2)];
                let flat = g.reshape(a, to.into()).unwrap();
                let flat = g.unary(UnaryOp::Sin, flat).unwrap();
                g.reshape(flat, ty.shape.clone())
            }
            10 => g.push(op::Glu(op::Gate::ALL[noise.below(3)]), &[a, b]),
            11 => {
                let d = g.push(op::GluBackward(op::Gate::ALL[noise.below(3)]), &[a, b, c]).unwrap();
                let up = g.part(d, 1).unwrap();
                if noise.below(2) == 0 { Ok(up) } else { g.add(d, up) }
            }
            12 => g.push(op::LinearDx { alpha: 0.5.into(), addend: true }, &[a, w, b]),
            _ => {
                let v = g.push(op::Read, &[w]).unwrap();
                let v = g.push(op::MatMul { transpose_a: false, transpose_b: false }, &[a, v]).unwrap();
                g.push(op::Cast(DType::BF16), &[v]).and_then(|v| g.push(op::Cast(DType::F32), &[v]))
            }
        };
        values.push(y.unwrap());
        if k == 12 && noise.below(2) == 0 {
            g.backward_start = Some(NodeId(g.len() as u32));
        }
    }
    let any = |noise: &mut Noise| values[noise.below(values.len())];
    for &s in &states {
        for _ in 0..[0, 1, 1, 1, 2][noise.below(5)] {
            g.write(Target::State(s), any(&mut noise), noise.below(3) == 0).unwrap();
        }
    }
    // An update in place: read, scale, write back.
    let w = g.param(weights[0]).unwrap();
    let w = g.push(op::Read, &[w]).unwrap();
    let w = g.scale(w, 0.5).unwrap();
    g.write(Target::Param(weights[0]), w, noise.below(2) == 0).unwrap();
    for k in 0..2 {
        let v = any(&mut noise);
        g.outputs.push((format!("y{k}"), v));
    }
    let last = values[values.len() - 1];
    g.outputs.push(("last".into(), last));
    g
}

#[test]
fn plans_of_random_graphs_compute_what_the_interpreter_does() {
    for seed in 0..150 {
        let g = random_graph(seed);
        let env = environment(&g, seed + 1000);
        let want = run_all(&g, &env);
        for optimized in [false, true] {
            let g = if optimized { passes::optimize(g.clone(), &Options::default()).unwrap() } else { g.clone() };
            assert_same(&want, &run_all(&g, &env), &format!("passes, seed {seed}"));
            for dense in [false, true] {
                let p = plan(g.clone(), &|_| dense).unwrap();
                let what = format!("seed {seed}, optimized {optimized}, dense {dense}");
                assert_same(&want, &simulate(&p, &env), &what);
            }
        }
    }
}

#[test]
fn live_buffers_never_overlap() {
    for seed in 0..100 {
        let p = plan(random_graph(seed), &|_| true).unwrap();
        let env = environment(&p.graph, 0);
        let scratch = |l: &swift_graph::plan::Launch| Ok((l.node.0 as usize % 5) * 40);
        let layout = p.layout(&env.bindings, &scratch).unwrap();
        assert_eq!(layout, p.layout(&env.bindings, &scratch).unwrap());
        let mut spans = Vec::new();
        for (b, &offset) in p.buffers.iter().zip(&layout.offsets) {
            spans.push((b.first, b.last, offset, offset + 4 * b.elements.eval(&env.bindings).unwrap() as usize));
        }
        for (k, (launch, &offset)) in p.launches.iter().zip(&layout.scratch).enumerate() {
            spans.push((k, k, offset, offset + scratch(launch).unwrap()));
        }
        for (i, a) in spans.iter().enumerate() {
            assert!(a.3 <= layout.bytes && a.2 % 64 == 0);
            for b in &spans[..i] {
                let together = a.0 <= b.1 && b.0 <= a.1;
                assert!(!together || a.3 <= b.2 || b.3 <= a.2, "seed {seed}: {a:?} and {b:?}");
            }
        }
    }
}

#[test]
fn every_read_value_has_a_place() {
    for seed in 0..50 {
        let p = plan(random_graph(seed), &|_| true).unwrap();
        for launch in &p.launches {
            for &input in &p.graph.node(launch.node).inputs {
                let mut root = input;
                if let Place::Alias(to) = p.places[root.index()] {
                    root = to;
                }
                assert!(!matches!(p.places[root.index()], Place::Alias(_) | Place::Unused), "seed {seed}");
            }
        }
    }
}
