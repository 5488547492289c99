//! Each pattern: it applies, and no value changes.

use swift_graph::op::{self, Op, ReduceOp, UnaryOp};
use swift_graph::passes::patterns;
use swift_graph::{Dim, Graph, NodeId, ParamInfo, SymbolId, Type, passes};

use crate::llama::{Adapter, TINY, training};
use crate::{assert_same, count, environment, run_all};

fn weight(g: &mut Graph, name: &str, out: u64, inp: u64) -> NodeId {
    let id = g.declare_param(ParamInfo { name: name.into(), shape: vec![out, inp], trainable: false }).unwrap();
    g.param(id).unwrap()
}

fn rows(g: &mut Graph, name: &str, d: u64) -> NodeId {
    g.input(name, Type::f32(vec![Dim::symbol(SymbolId::TOKENS), Dim::fixed(d)])).unwrap()
}

fn check(g: &Graph, after: &Graph, what: &str) -> Graph {
    let env = environment(g, 7);
    assert_same(&run_all(g, &env), &run_all(after, &env), what);
    passes::dead_code(after).unwrap()
}

#[test]
fn a_lora_branch_is_an_epilogue() {
    let mut g = Graph::default();
    let x = rows(&mut g, "x", 4);
    let (w, a, b) = (weight(&mut g, "w", 6, 4), weight(&mut g, "a", 2, 4), weight(&mut g, "b", 6, 2));
    let y = g.linear(x, w).unwrap();
    let h = g.linear(x, a).unwrap();
    let h = g.scale(h, 0.5).unwrap();
    let h = g.linear(h, b).unwrap();
    let h = g.scale(h, 3.0).unwrap();
    let sum = g.add(y, h).unwrap();
    g.outputs.push(("y".into(), sum));
    let after = check(&g, &patterns::epilogue(&g).unwrap(), "lora");
    assert_eq!((count(&after, "linear"), count(&after, "binary")), (3, 0));
    let Op::Linear(last) = &after.node(after.output("y").unwrap()).op else { panic!("no linear") };
    assert!(last.addend && last.alpha.0 == 1.5 || last.alpha.0 == 3.0, "{last:?}");
}

#[test]
fn residual_bias_and_difference_are_epilogues() {
    let mut g = Graph::default();
    let x = rows(&mut g, "x", 4);
    let w = weight(&mut g, "w", 4, 4);
    let bias = g.input("bias", Type::f32(vec![Dim::fixed(4)])).unwrap();
    let y = g.linear(x, w).unwrap();
    let y = g.add(y, bias).unwrap();
    let y = g.add(x, y).unwrap();
    let z = g.linear(y, w).unwrap();
    let z = g.scale(z, 0.25).unwrap();
    let z = g.sub(y, z).unwrap();
    g.outputs.push(("z".into(), z));
    let once = patterns::epilogue(&g).unwrap();
    let twice = patterns::epilogue(&passes::dead_code(&once).unwrap()).unwrap();
    let after = check(&g, &twice, "residual");
    assert_eq!((count(&after, "linear"), count(&after, "binary")), (2, 0));
}

#[test]
fn a_residual_goes_into_the_first_product_of_an_adapted_site() {
    let mut g = Graph::default();
    let x = rows(&mut g, "x", 4);
    let (w, a, b) = (weight(&mut g, "w", 4, 4), weight(&mut g, "a", 2, 4), weight(&mut g, "b", 4, 2));
    let y = g.linear(x, w).unwrap();
    let h = g.linear(x, a).unwrap();
    let h = g.linear(h, b).unwrap();
    let h = g.scale(h, 3.0).unwrap();
    let y = g.add(y, h).unwrap();
    let y = g.add(x, y).unwrap();
    g.outputs.push(("y".into(), y));
    let after = check(&g, &passes::before_autodiff(&g).unwrap(), "adapted residual");
    assert_eq!((count(&after, "linear"), count(&after, "binary")), (3, 0));
}

#[test]
fn products_read_twice_stay() {
    let mut g = Graph::default();
    let x = rows(&mut g, "x", 4);
    let w = weight(&mut g, "w", 4, 4);
    let y = g.linear(x, w).unwrap();
    let z = g.add(x, y).unwrap();
    g.outputs.push(("y".into(), y));
    g.outputs.push(("z".into(), z));
    let after = check(&g, &patterns::epilogue(&g).unwrap(), "shared");
    assert_eq!((count(&after, "linear"), count(&after, "binary")), (1, 1));
}

#[test]
fn gradients_that_meet_become_a_chain() {
    let g = training(&TINY, Adapter::Lora, 0.0, true);
    let after = check(&g, &passes::optimize(g.clone(), &passes::Options::default()).unwrap(), "fan-in");
    let chained = after.nodes().iter().filter(|n| matches!(&n.op, Op::LinearDx(l) if l.addend)).count();
    // Each of seven sites adds its adapter's gradient to its weight's, and q, k, v and gate, up meet.
    assert!(chained >= 2 * 7, "{chained}");
}

#[test]
fn a_gated_activation_is_swiglu_in_either_order() {
    for flip in [false, true] {
        let mut g = Graph::default();
        let (gate, up) = (rows(&mut g, "gate", 4), rows(&mut g, "up", 4));
        let s = g.unary(UnaryOp::Sigmoid, gate).unwrap();
        let s = g.mul(gate, s).unwrap();
        let y = if flip { g.mul(up, s) } else { g.mul(s, up) }.unwrap();
        g.outputs.push(("y".into(), y));
        let after = check(&g, &passes::before_autodiff(&g).unwrap(), "swiglu");
        assert_eq!((count(&after, "swiglu"), after.len()), (1, 3));
    }
}

#[test]
fn the_adapted_weight_is_never_formed() {
    for variant in 0..4 {
        let mut g = Graph::default();
        let (w, a, b) = (weight(&mut g, "w", 6, 5), weight(&mut g, "a", 2, 5), weight(&mut g, "b", 6, 2));
        let read = |g: &mut Graph, p| g.push(op::Read, &[p]).unwrap();
        let (mut w, a, mut b) = (read(&mut g, w), read(&mut g, a), read(&mut g, b));
        if variant == 3 {
            b = g.push(op::Permute { axes: vec![1, 0] }, &[b]).unwrap();
            w = g.push(op::StopGrad, &[w]).unwrap();
        }
        let mut delta = g.push(op::MatMul { transpose_a: variant == 3, transpose_b: false }, &[b, a]).unwrap();
        if variant > 0 {
            delta = g.scale(delta, 0.5).unwrap();
        }
        let z = if variant == 2 { g.add(delta, w) } else { g.add(w, delta) }.unwrap();
        let zz = g.mul(z, z).unwrap();
        let norm = g.reduce(ReduceOp::Sum, zz, &[1], variant == 1).unwrap();
        g.outputs.push(("norm".into(), norm));
        let after = check(&g, &passes::before_autodiff(&g).unwrap(), "dora");
        assert_eq!(count(&after, "linear"), 2, "variant {variant}");
        let (main, prologue) = passes::fold_frozen(&after).unwrap();
        assert!(prologue.is_some() && main.nodes().iter().all(|n| !matches!(n.op, Op::MatMul(_) | Op::Linear(_))));
    }
}
