//! Scopes that wish for recomputation, or against it.

use swift_graph::autodiff::differentiate;
use swift_graph::op::{self, Op, UnaryOp};
use swift_graph::passes::{self, Recompute};
use swift_graph::{Dim, Graph, NodeId, ParamInfo, SymbolId, Target, Type};

use crate::{assert_same, environment, run_all};

/// Two products with an activation between them; wishes for the first product and for the activation.
fn network(product: Option<bool>, activation: Option<bool>, layer: bool) -> Graph {
    let mut g = Graph::default();
    let x = g.input("x", Type::f32(vec![Dim::symbol(SymbolId::TOKENS), Dim::fixed(64)])).unwrap();
    let params =
        ["a", "b"].map(|name| g.declare_param(ParamInfo { name: name.into(), shape: vec![64, 64], trainable: true }).unwrap());
    let [a, b] = params.map(|id| g.param(id).unwrap());
    g.push_scope(if layer { "layers.0" } else { "block" }).unwrap();
    g.wish_recompute(product).unwrap();
    let y = g.linear(x, a).unwrap();
    g.wish_recompute(activation).unwrap();
    let y = g.unary(UnaryOp::Silu, y).unwrap();
    g.pop_scope();
    let y = g.linear(y, b).unwrap();
    let y = g.mul(y, y).unwrap();
    let loss = g.sum_all(y).unwrap();
    for (param, grad) in differentiate(&mut g, loss, &params).unwrap() {
        g.write(Target::Param(param), grad, false).unwrap();
    }
    g.outputs.push(("loss".into(), loss));
    g
}

/// Products and activations that the backward pass computes again.
fn again(g: &Graph, how: Recompute) -> (usize, usize) {
    let after = passes::recompute(&passes::schedule(g).unwrap(), how).unwrap();
    let env = environment(g, 5);
    assert_same(&run_all(g, &env), &run_all(&after, &env), "recomputation");
    let border = after.backward_start.unwrap();
    let count = |is: &dyn Fn(&Op) -> bool| after.ids().filter(|&id: &NodeId| id >= border && is(&after.node(id).op)).count();
    let silu = |op: &Op| matches!(op, Op::Unary(op::Unary(UnaryOp::Silu)));
    (count(&|op| matches!(op, Op::Linear(_))), count(&silu))
}

#[test]
fn the_host_chooses_where_nothing_is_wished() {
    assert_eq!(again(&network(None, None, false), Recompute::Cheap), (0, 1));
}

#[test]
fn a_product_is_computed_again_if_so_wished_and_an_activation_kept() {
    assert_eq!(again(&network(Some(true), None, false), Recompute::Cheap), (1, 1));
    assert_eq!(again(&network(None, Some(false), false), Recompute::Cheap), (0, 0));
    assert_eq!(again(&network(Some(true), Some(false), false), Recompute::Cheap), (1, 0));
}

#[test]
fn wishes_count_within_layers_and_outside_of_them() {
    // The activation passes from the layer to what follows, so it is kept anyway.
    assert_eq!(again(&network(None, None, true), Recompute::Layers), (1, 0));
    assert_eq!(again(&network(Some(false), None, true), Recompute::Layers), (0, 0));
    assert_eq!(again(&network(Some(true), Some(true), false), Recompute::Layers), (1, 1));
}

#[test]
fn nobody_wishes_against_a_user_who_turned_it_off() {
    assert_eq!(again(&network(Some(true), Some(true), false), Recompute::None), (0, 0));
}

#[test]
fn a_wish_ends_with_its_scope_and_leaves_paths_as_they_are() {
    let mut g = Graph::default();
    g.push_scope("model").unwrap();
    g.wish_recompute(Some(true)).unwrap();
    g.wish_recompute(Some(false)).unwrap();
    g.push_scope("layer").unwrap();
    assert_eq!((g.scope_path(g.scope()), g.recompute_wish(g.scope())), ("model/layer".into(), Some(false)));
    g.pop_scope();
    assert_eq!((g.scope_path(g.scope()), g.recompute_wish(g.scope())), ("model".into(), Some(false)));
    g.pop_scope();
    assert_eq!((g.scope_path(g.scope()), g.recompute_wish(g.scope())), (String::new(), None));
    // At the root, and into another graph.
    g.wish_recompute(Some(true)).unwrap();
    g.scalar(1.0, swift_graph::DType::F32).unwrap();
    g.pop_scope();
    assert_eq!(g.recompute_wish(g.scope()), None);
    let mut other = Graph::default();
    other.push_scope("outer").unwrap();
    let image = other.inline(&g, |_, _, _| Ok(None)).unwrap()[0];
    let scope = other.node(image).scope;
    assert_eq!((other.scope_path(scope), other.recompute_wish(scope)), ("outer".into(), Some(true)));
    assert_eq!(other.recompute_wish(other.scope()), None);
}
