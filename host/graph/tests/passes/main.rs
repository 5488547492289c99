//! Passes and the memory plan, checked against the interpreter: whatever a pass does, outputs and writes stay the same.

mod arena;
mod composites;
mod llama;
mod memory;
mod optimizers;
mod random;
mod rewrites;
mod wishes;

use std::collections::BTreeMap;

use swift_graph::interp::{Env, Tensor, Values, run};
use swift_graph::{Bindings, Graph, SymbolId};

/// Reproducible noise in -1..1 (splitmix64).
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.word() % n as u64) as usize
    }

    pub(crate) fn float(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub(crate) fn tensor(&mut self, shape: Vec<usize>) -> Tensor {
        Tensor::from_index(shape, |_| self.float())
    }
}

/// Values for everything that the graph may read. Whole-number inputs are small, so that they index.
pub(crate) fn environment(g: &Graph, seed: u64) -> Env {
    let bindings = Bindings::new().with(SymbolId::TOKENS, 6).with(SymbolId::SEQUENCES, 2);
    let mut noise = Noise(seed);
    let mut env = Env { bindings: bindings.clone(), ..Env::default() };
    for input in g.inputs() {
        let shape = input.ty.shape.eval(&bindings).unwrap();
        let value = match input.name.as_str() {
            "segments" => Tensor::from_index(shape, |i| if i[0] < 4 { 0.0 } else { 1.0 }),
            "positions" => Tensor::from_index(shape, |i| if i[0] < 4 { i[0] as f64 } else { i[0] as f64 - 4.0 }),
            _ if input.ty.dtype.is_int() => Tensor::from_index(shape, |_| noise.below(5) as f64),
            _ => noise.tensor(shape),
        };
        env.inputs.insert(input.name.clone(), value);
    }
    for param in g.params() {
        let shape = param.shape.iter().map(|&d| d as usize).collect();
        env.params.insert(param.name.clone(), noise.tensor(shape));
    }
    for state in g.states() {
        let shape = state.ty.shape.eval(&bindings).unwrap();
        env.states.insert(state.name.clone(), noise.tensor(shape));
    }
    env
}

pub(crate) fn run_all(g: &Graph, env: &Env) -> Values {
    run(g, env).unwrap()
}

/// Panics when any output or write differs.
pub(crate) fn assert_same(before: &Values, after: &Values, what: &str) {
    let check = |a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>| {
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{what}");
        for (name, x) in a {
            close(x, &b[name], &format!("{what}: {name}"));
        }
    };
    check(&before.outputs, &after.outputs);
    check(&before.params, &after.params);
    check(&before.states, &after.states);
}

pub(crate) fn close(a: &Tensor, b: &Tensor, what: &str) {
    assert_eq!(a.shape, b.shape, "{what}");
    for (i, (x, y)) in a.data.iter().zip(&b.data).enumerate() {
        let fine = (x - y).abs() <= 1e-9 * (1.0 + x.abs()) || (x.is_nan() && y.is_nan());
        assert!(fine, "{what}: element {i} is {y}, was {x}");
    }
}

/// How many live nodes have this name.
pub(crate) fn count(g: &Graph, name: &str) -> usize {
    use swift_graph::OpRule;
    g.nodes().iter().filter(|n| n.op.name() == name).count()
}
