//! A graph's digest: equal for graphs that compute the same by the same nodes in the same order, whatever their parts are called.
//!
//! The digest is SHA-256 over the lines of [`crate::dump`], with inputs, parameters, states and symbols of plugins numbered in the
//! order of first use, and scopes left out. Well-known symbols, names of results, shapes, element types, constants and whether a
//! parameter trains all count.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::dump::{Names, line, results};
use crate::op::ConstantData;
use crate::{Dim, Graph, InputId, ParamId, StateId, SymbolId, SymbolTable};

/// Numbers in the order of first use.
#[derive(Default)]
struct Order(HashMap<u32, u32>);

impl Order {
    fn of(&mut self, id: u32) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(id).or_insert(next)
    }
}

struct Neutral<'a> {
    g: &'a Graph,
    inputs: Order,
    params: Order,
    states: Order,
    symbols: Order,
}

impl Names for Neutral<'_> {
    fn input(&mut self, id: InputId) -> String {
        self.inputs.of(id.0).to_string()
    }
    fn param(&mut self, id: ParamId) -> String {
        let trainable = self.g.params()[id.index()].trainable;
        format!("{}{}", self.params.of(id.0), if trainable { " trainable" } else { "" })
    }
    fn state(&mut self, id: StateId) -> String {
        // An effect's target may have no node that would show its type.
        let info = &self.g.states()[id.index()];
        let map = info.map.map(|map| format!(" {}", map.name())).unwrap_or_default();
        let ty = info.ty.clone();
        format!("{} {}{map}", self.states.of(id.0), self.ty(&ty))
    }
    fn dim(&mut self, dim: &Dim) -> String {
        let known = SymbolTable::default().len() as u32;
        let renamed = dim.rename(&mut |id| if id.0 < known { id } else { SymbolId(known + self.symbols.of(id.0)) });
        renamed.to_string()
    }
    fn data(&mut self, data: &ConstantData) -> String {
        let mut digest = Sha256::new();
        match data {
            ConstantData::Float(v) => v.iter().for_each(|x| digest.update(x.to_bits().to_le_bytes())),
            ConstantData::Int(v) => v.iter().for_each(|x| digest.update(x.to_le_bytes())),
        }
        hex(digest)
    }
}

/// The digest, in lower-case hexadecimal.
pub fn digest(g: &Graph) -> String {
    let mut names =
        Neutral { g, inputs: Order::default(), params: Order::default(), states: Order::default(), symbols: Order::default() };
    let mut digest = Sha256::new();
    for id in g.ids() {
        digest.update(line(id, g.node(id), &mut names));
        digest.update(b"\n");
    }
    digest.update(results(g, &mut names));
    hex(digest)
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DType, Float, NodeId, ParamInfo, Result, SymbolInfo, Type, op};

    fn symbol(g: &mut Graph, name: &str) -> Dim {
        Dim::symbol(g.symbols.add(SymbolInfo { name: name.into(), lo: 1, hi: None, multiple_of: 1 }))
    }

    fn build(names: [&str; 3], build: impl Fn(&mut Graph, NodeId, NodeId) -> Result<NodeId>) -> String {
        let mut g = Graph::default();
        // Unused tables must not count.
        g.declare_param(ParamInfo { name: names[2].into(), shape: vec![9], trainable: false }).unwrap();
        if names[2] != "c" {
            symbol(&mut g, "unused");
        }
        let rows = symbol(&mut g, names[0]);
        g.push_scope(names[1]).unwrap();
        let x = g.input(names[0], Type::f32(vec![rows, 4.into()])).unwrap();
        let w = g.declare_param(ParamInfo { name: names[1].into(), shape: vec![2, 4], trainable: false }).unwrap();
        let w = g.param(w).unwrap();
        let y = build(&mut g, x, w).unwrap();
        g.outputs.push(("y".into(), y));
        digest(&g)
    }

    #[test]
    fn names_do_not_count_and_everything_else_does() {
        let plain = |g: &mut Graph, x, w| g.linear(x, w);
        let one = build(["a", "b", "c"], plain);
        assert_eq!(one.len(), 64);
        assert_eq!(one, build(["x", "y", "z"], plain));
        let scaled = build(["a", "b", "c"], |g, x, w| g.push(op::Linear { alpha: Float(2.0), ..op::Linear::plain() }, &[x, w]));
        let constant = |value: f32| {
            build(["a", "b", "c"], move |g, x, _| {
                let data = op::ConstantData::Float([value, 0.0, 0.0, 0.0].into());
                let c = g.push(op::Constant { dtype: DType::F32, shape: vec![4], data }, &[])?;
                g.add(x, c)
            })
        };
        let all = [one, scaled, constant(0.0), constant(-0.0), constant(1.0)];
        assert_eq!(all.iter().collect::<std::collections::BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn a_change_of_what_trains_counts() {
        let digest_of = |trainable| {
            let mut g = Graph::default();
            let w = g.declare_param(ParamInfo { name: "w".into(), shape: vec![2], trainable }).unwrap();
            g.param(w).unwrap();
            digest(&g)
        };
        assert_ne!(digest_of(true), digest_of(false));
    }
}
