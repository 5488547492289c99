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

/// A layer as models write it, with all that follows. Where gradients follow, the function stays: they read its argument.
#[test]
fn an_activation_and_a_residual_are_an_epilogue() {
    for f in [UnaryOp::Silu, UnaryOp::GeluErf, UnaryOp::GeluTanh, UnaryOp::Relu] {
        for flipped in [false, true] {
            let mut g = Graph::default();
            let (x, residual) = (rows(&mut g, "x", 4), rows(&mut g, "r", 6));
            let bias = g.input("bias", Type::f32(vec![Dim::fixed(6)])).unwrap();
            let w = weight(&mut g, "w", 6, 4);
            let y = g.linear(x, w).unwrap();
            let y = g.add(y, bias).unwrap();
            let y = g.unary(f, y).unwrap();
            let y = if flipped { g.add(residual, y) } else { g.add(y, residual) }.unwrap();
            g.outputs.push(("y".into(), y));
            let after = passes::after_autodiff(&g, &passes::Options::default()).unwrap();
            let after = check(&g, &after, "activation");
            assert_eq!(["linear", "unary", "binary", "fused"].map(|op| count(&after, op)), [1, 0, 0, 0]);
            let Op::Linear(only) = &after.node(after.output("y").unwrap()).op else { panic!("no linear") };
            assert!(only.bias && only.addend && only.activation == Some(f), "{only:?}");

            // Somebody else reads what it is applied to.
            let before = g.node(y).inputs.iter().copied().find(|&i| i != residual).unwrap();
            let before = g.node(before).inputs[0];
            g.outputs.push(("before".into(), before));
            let after = passes::after_autodiff(&g, &passes::Options::default()).unwrap();
            let after = check(&g, &after, "two readers");
            let Op::Linear(kept) = &after.node(after.output("before").unwrap()).op else { panic!("no linear") };
            assert!(kept.bias && !kept.addend && kept.activation.is_none(), "{kept:?}");
        }
    }
}

/// As above, of a layer with an adapter beside it.
#[test]
fn an_activation_and_a_residual_are_an_epilogue_of_two_products() {
    for f in [UnaryOp::Silu, UnaryOp::GeluTanh] {
        let mut g = Graph::default();
        let (x, residual) = (rows(&mut g, "x", 80), rows(&mut g, "r", 6));
        let (w, a, b) = (weight(&mut g, "w", 6, 80), weight(&mut g, "a", 2, 80), weight(&mut g, "b", 6, 2));
        let y = g.linear(x, w).unwrap();
        let h = g.linear(x, a).unwrap();
        let h = g.linear(h, b).unwrap();
        let sums = g.add(y, h).unwrap();
        let y = g.unary(f, sums).unwrap();
        let y = g.add(residual, y).unwrap();
        g.outputs.push(("y".into(), y));
        let optimized = |g: &Graph, what| check(g, &passes::after_autodiff(g, &passes::Options::default()).unwrap(), what);
        let after = optimized(&g, "adapted activation");
        assert_eq!(["linear", "low-rank-linear", "unary", "binary", "fused"].map(|op| count(&after, op)), [1, 1, 0, 0, 0]);
        let Op::LowRankLinear(only) = &after.node(after.output("y").unwrap()).op else { panic!("not both products") };
        assert!(only.addend && only.activation == Some(f), "{only:?}");
        g.outputs.push(("sums".into(), sums));
        let with_readers = optimized(&g, "two readers");
        assert_eq!(with_readers.len(), after.len() + 1);
        let Op::LowRankLinear(kept) = &with_readers.node(with_readers.output("sums").unwrap()).op else {
            panic!("not both products")
        };
        assert!(!kept.addend && kept.activation.is_none(), "{kept:?}");
    }
}

/// LoRA as a tuner writes it: a branch with an input of its own, on a residual stream, and a second layer on the same input.
#[test]
fn a_branch_of_low_rank_joins_the_product_beside_it() {
    let mut g = Graph::default();
    let (x, residual) = (rows(&mut g, "x", 80), rows(&mut g, "r", 6));
    let dropped = rows(&mut g, "dropped", 80);
    let bias = g.input("bias", Type::f32(vec![Dim::fixed(6)])).unwrap();
    let (w, a, b) = (weight(&mut g, "w", 6, 80), weight(&mut g, "a", 2, 80), weight(&mut g, "b", 6, 2));
    let y = g.linear(x, w).unwrap();
    let y = g.add(y, bias).unwrap();
    let h = g.linear(dropped, a).unwrap();
    let h = g.linear(h, b).unwrap();
    let h = g.scale(h, 3.0).unwrap();
    let y = g.add(y, h).unwrap();
    let y = g.add(residual, y).unwrap();
    g.outputs.push(("y".into(), y));
    let once = passes::dead_code(&patterns::epilogue(&g).unwrap()).unwrap();
    let products = passes::dead_code(&patterns::epilogue(&once).unwrap()).unwrap();
    let after = check(&g, &patterns::low_rank(&products).unwrap(), "low rank");
    assert_eq!(["linear", "low-rank-linear", "binary"].map(|op| count(&after, op)), [1, 1, 0]);

    // Gradients in one input: a chain of products, thin ones after and before the others.
    for thin_first in [false, true] {
        let mut g = Graph::default();
        let (dy, dh) = (rows(&mut g, "dy", 80), rows(&mut g, "dh", 2));
        let mut sum = None;
        for layer in ["q", "k"] {
            let (w, a) = (weight(&mut g, &format!("w.{layer}"), 80, 6), weight(&mut g, &format!("a.{layer}"), 2, 6));
            let mut pair = [(dy, w, 1.0), (dh, a, 0.5)];
            if thin_first {
                pair.reverse();
            }
            for (x, w, alpha) in pair {
                let op = op::LinearDx { alpha: alpha.into(), addend: sum.is_some() };
                let inputs: Vec<NodeId> = [x, w].into_iter().chain(sum).collect();
                sum = Some(g.push(op, &inputs).unwrap());
            }
        }
        g.outputs.push(("dx".into(), sum.unwrap()));
        let after = check(&g, &patterns::low_rank(&g).unwrap(), "chain");
        assert_eq!(["linear-dx", "low-rank-linear"].map(|op| count(&after, op)), [0, 2]);
    }
}

#[test]
fn a_product_that_is_read_twice_stays() {
    let mut g = Graph::default();
    let (x, h) = (rows(&mut g, "x", 80), rows(&mut g, "h", 2));
    let (w, b) = (weight(&mut g, "w", 6, 80), weight(&mut g, "b", 6, 2));
    let y = g.linear(x, w).unwrap();
    let both = g.push(op::Linear { addend: true, ..op::Linear::plain() }, &[h, b, y]).unwrap();
    g.outputs.extend([("y".into(), y), ("both".into(), both)]);
    let after = check(&g, &patterns::low_rank(&g).unwrap(), "read twice");
    assert_eq!(count(&after, "low-rank-linear"), 0);
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
fn a_gated_activation_is_a_unit_in_either_order() {
    for flip in [false, true] {
        for f in [UnaryOp::Sigmoid, UnaryOp::Silu, UnaryOp::GeluTanh, UnaryOp::GeluErf] {
            let mut g = Graph::default();
            let (gate, up) = (rows(&mut g, "gate", 4), rows(&mut g, "up", 4));
            let s = g.unary(f, gate).unwrap();
            let s = if f == UnaryOp::Sigmoid { g.mul(gate, s).unwrap() } else { s };
            let y = if flip { g.mul(up, s) } else { g.mul(s, up) }.unwrap();
            g.outputs.push(("y".into(), y));
            let after = check(&g, &passes::before_autodiff(&g).unwrap(), "glu");
            assert_eq!((count(&after, "glu"), after.len()), (1, 3));
        }
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
