//! Algebra, merging, folding, fusion and recomputation on whole graphs.

use swift_graph::op::{self, BinaryOp, Op, ReduceOp, UnaryOp};
use swift_graph::passes::{self, GradientsDone, Options, Recompute};
use swift_graph::{DType, Dim, Float, Graph, NodeId, ParamInfo, Shape, SymbolId, Type};

use crate::llama::{Adapter, TINY, forward, training};
use crate::{assert_same, count, environment, run_all};

fn x(g: &mut Graph, name: &str) -> NodeId {
    g.input(name, Type::f32(vec![Dim::symbol(SymbolId::TOKENS), Dim::fixed(4)])).unwrap()
}

#[test]
fn algebra_removes_what_computes_nothing() {
    let mut g = Graph::default();
    let v = x(&mut g, "x");
    let one = g.scalar(1.0, DType::F32).unwrap();
    let zero = g.scalar(0.0, DType::F32).unwrap();
    let mut y = g.mul(v, one).unwrap();
    y = g.add(zero, y).unwrap();
    y = g.unary(UnaryOp::Neg, y).unwrap();
    y = g.unary(UnaryOp::Neg, y).unwrap();
    let flat = Dim::symbol(SymbolId::TOKENS).mul(&Dim::fixed(4)).unwrap();
    let shape = g.ty(v).shape.clone();
    y = g.push(op::Reshape { to: vec![flat].into() }, &[y]).unwrap();
    y = g.push(op::Reshape { to: shape.clone() }, &[y]).unwrap();
    y = g.push(op::Cast(DType::BF16), &[y]).unwrap();
    y = g.push(op::Cast(DType::F32), &[y]).unwrap();
    y = g.push(op::Permute { axes: vec![1, 0] }, &[y]).unwrap();
    y = g.push(op::Permute { axes: vec![1, 0] }, &[y]).unwrap();
    y = g.scale(y, 3.0).unwrap();
    y = g.scale(y, 0.5).unwrap();
    let row = g.input("row", Type::f32(vec![Dim::fixed(4)])).unwrap();
    let wide = g.push(op::Expand { to: shape }, &[row]).unwrap();
    y = g.add(y, wide).unwrap();
    g.outputs.push(("y".into(), y));
    let env = environment(&g, 1);
    let after = passes::dead_code(&passes::algebra(&g, GradientsDone::Yes).unwrap()).unwrap();
    assert_same(&run_all(&g, &env), &run_all(&after, &env), "algebra");
    assert_eq!(after.len(), 5, "x, row, 1.5, product, sum: {:?}", after.nodes());
}

#[test]
fn equal_nodes_merge_and_dropouts_of_other_streams_do_not() {
    let mut g = Graph::default();
    let v = x(&mut g, "x");
    let key = g.input("rng", Type::new(DType::S32, Shape::fixed(&[2]))).unwrap();
    let drop = |g: &mut Graph, stream| g.push(op::Dropout { rate: Float(0.5), stream }, &[v, key]).unwrap();
    let parts = [drop(&mut g, 1), drop(&mut g, 2), drop(&mut g, 1)];
    let (a, b) = (g.add(v, parts[0]).unwrap(), g.add(parts[2], v).unwrap());
    let s = g.add(a, b).unwrap();
    let s = g.add(s, parts[1]).unwrap();
    g.outputs.push(("s".into(), s));
    let env = environment(&g, 2);
    let after = passes::cse(&g).unwrap();
    assert_same(&run_all(&g, &env), &run_all(&after, &env), "cse");
    assert_eq!(count(&after, "dropout"), 2);
    assert_eq!(count(&after, "binary"), 3);
}

#[test]
fn frozen_vectors_become_states() {
    let (g, ..) = forward(&TINY, Adapter::Dora, 0.0);
    let g = passes::before_autodiff(&g).unwrap();
    let mut env = environment(&g, 3);
    let before = run_all(&g, &env);
    let (main, prologue) = passes::fold_frozen(&g).unwrap();
    let prologue = prologue.expect("the weights' row norms fold");
    // Seven linear sites in each of two layers.
    assert_eq!(prologue.effects.len(), 14);
    assert!(main.states().iter().any(|s| s.name.starts_with("folded.")));
    let written = run_all(&prologue, &env);
    env.apply(&written);
    assert_same(&before, &run_all(&main, &env), "folded");
    let squares_weight =
        |g: &Graph| g.nodes().iter().any(|n| matches!(&n.op, Op::Read(_)) && g.ty(n.inputs[0]).shape == Shape::fixed(&[12, 8]));
    assert!(squares_weight(&prologue) && !squares_weight(&main));
}

#[test]
fn trainable_and_written_parameters_do_not_fold() {
    let mut g = Graph::default();
    let info = |name: &str, trainable| ParamInfo { name: name.into(), shape: vec![64, 64], trainable };
    for (name, trainable) in [("frozen", false), ("trained", true), ("written", false)] {
        let id = g.declare_param(info(name, trainable)).unwrap();
        let p = g.param(id).unwrap();
        let r = g.push(op::Read, &[p]).unwrap();
        let s = g.reduce(ReduceOp::Sum, r, &[1], false).unwrap();
        g.outputs.push((name.into(), s));
        if name == "written" {
            let two = g.scale(r, 2.0).unwrap();
            g.write(swift_graph::Target::Param(id), two, false).unwrap();
        }
    }
    let (main, prologue) = passes::fold_frozen(&g).unwrap();
    assert_eq!(prologue.unwrap().effects.len(), 1);
    assert!(matches!(main.node(main.output("frozen").unwrap()).op, Op::State(_)));
    assert!(matches!(main.node(main.output("trained").unwrap()).op, Op::Reduce(_)));
    assert!(matches!(main.node(main.output("written").unwrap()).op, Op::Reduce(_)));
}

#[test]
fn fusion_keeps_values_of_all_broadcast_patterns() {
    let mut g = Graph::default();
    let n = Dim::symbol(SymbolId::TOKENS);
    let v = x(&mut g, "x");
    let row = g.input("row", Type::f32(vec![n.clone(), Dim::fixed(1)])).unwrap();
    let col = g.input("col", Type::f32(vec![Dim::fixed(4)])).unwrap();
    let one = g.input("one", Type::scalar(DType::F32)).unwrap();
    let a = g.mul(v, row).unwrap();
    let b = g.add(a, col).unwrap();
    let c = g.unary(UnaryOp::Tanh, b).unwrap();
    let d = g.mul(c, one).unwrap();
    let big = g.binary(BinaryOp::Gt, d, v).unwrap();
    let e = g.push(op::Select, &[big, d, b]).unwrap();
    let mask = g.push(op::Cast(DType::F32), &[big]).unwrap();
    let e = g.add(e, mask).unwrap();
    let total = g.sum_all(c).unwrap();
    let f = g.div(e, total).unwrap();
    let e2 = g.scale(e, 0.25).unwrap();
    let f = g.sub(f, e2).unwrap();
    g.outputs.push(("f".into(), f));
    g.outputs.push(("b".into(), b));
    let env = environment(&g, 4);
    let after = passes::fuse(&g).unwrap();
    assert_same(&run_all(&g, &env), &run_all(&after, &env), "fused");
    assert_eq!(count(&after, "binary") + count(&after, "unary") + count(&after, "select") + count(&after, "cast"), 0);
    assert_eq!(count(&after, "fused"), 2, "{:?}", after.nodes());
}

#[test]
fn mixed_broadcasts_split_instead_of_failing() {
    let mut g = Graph::default();
    let cube = |a: u64, b: u64, c: u64| Type::f32(Shape::fixed(&[a, b, c]));
    let v = g.input("x", cube(2, 3, 4)).unwrap();
    let middle = g.input("middle", cube(1, 3, 1)).unwrap();
    let ends = g.input("ends", cube(2, 1, 4)).unwrap();
    let row = g.input("row", cube(2, 3, 1)).unwrap();
    let mut y = g.mul(v, row).unwrap();
    y = g.add(y, middle).unwrap();
    y = g.mul(y, ends).unwrap();
    y = g.unary(UnaryOp::Exp, y).unwrap();
    g.outputs.push(("y".into(), y));
    let env = environment(&g, 5);
    let after = passes::fuse(&g).unwrap();
    assert_same(&run_all(&g, &env), &run_all(&after, &env), "split");
    assert_eq!((count(&after, "fused"), count(&after, "binary")), (2, 2));
}

#[test]
fn training_graphs_keep_losses_and_gradients() {
    for adapter in [Adapter::Full, Adapter::Lora, Adapter::Dora] {
        for dropout in [0.0, 0.25] {
            let plain = training(&TINY, adapter, dropout, false);
            let env = environment(&plain, 6);
            let want = run_all(&plain, &env);
            let composites = training(&TINY, adapter, dropout, true);
            assert_same(&want, &run_all(&composites, &env), "composites");
            for recompute in [Recompute::None, Recompute::Cheap, Recompute::Layers] {
                let after = passes::optimize(composites.clone(), &Options { recompute }).unwrap();
                assert_same(&want, &run_all(&after, &env), &format!("{recompute:?}"));
                assert!(after.len() < plain.len() || recompute == Recompute::Layers);
            }
        }
    }
}
