//! Steps of optimizers: one op for Adam, whatever its moments are kept in, and nothing where the formula is another.

use swift_graph::dynamic8::Map;
use swift_graph::interp::Tensor;
use swift_graph::op::{self, BinaryOp, Op, UnaryOp};
use swift_graph::passes::{self, patterns};
use swift_graph::plan::{Place, plan};
use swift_graph::{DType, Graph, NodeId, ParamInfo, StateId, Target, Type};

use crate::{assert_same, close, count, environment, run_all};

/// What is varied.
#[derive(Clone, Copy, Default)]
struct Spelling {
    maps: [Option<Map>; 2],
    /// Neither clipping nor decay.
    plain: bool,
    /// Operands of sums and products the other way round.
    swapped: bool,
    /// The mean is a result, too.
    mean_shown: bool,
    /// The mean goes to another state than it came from.
    elsewhere: bool,
}

/// AdamW as its plugin writes it, on a clipped gradient.
fn adamw(how: Spelling) -> Graph {
    let mut g = Graph::default();
    let scalar = |g: &mut Graph, name: &str| g.input(name, Type::scalar(DType::F32)).unwrap();
    let [lr, step, decay, clip] = ["lr", "step", "weight-decay", "clip"].map(|name| scalar(&mut g, name));
    let info = ParamInfo { name: "w".into(), shape: vec![100, 100], trainable: true };
    let id = g.declare_param(info).unwrap();
    let storage = g.param(id).unwrap();
    let w = g.push(op::Read, &[storage]).unwrap();
    let ty = g.ty(w).clone();
    let mut state = |name: &str, map: Option<Map>| -> StateId {
        let ty = ty.clone();
        match map {
            Some(map) => g.declare_packed_state(name, ty, map).unwrap(),
            None => g.declare_state(name, ty).unwrap(),
        }
    };
    let states = [state("grad", None), state("m", how.maps[0]), state("v", how.maps[1]), state("other", how.maps[0])];
    let [grad, m, v, _] = states.map(|state| g.read_state(state).unwrap());
    let number = |g: &mut Graph, x: f64| g.scalar(x, DType::F32).unwrap();
    let pair = |a: NodeId, b: NodeId| if how.swapped { (b, a) } else { (a, b) };
    let mul = |g: &mut Graph, a, b| {
        let (a, b) = pair(a, b);
        g.mul(a, b).unwrap()
    };
    let add = |g: &mut Graph, a, b| {
        let (a, b) = pair(a, b);
        g.add(a, b).unwrap()
    };
    let one = number(&mut g, 1.0);
    let shrink = g.mul(lr, decay).unwrap();
    let shrink = g.sub(one, shrink).unwrap();
    let (grad, w) = if how.plain { (grad, w) } else { (mul(&mut g, grad, clip), mul(&mut g, w, shrink)) };
    let apart = g.sub(grad, m).unwrap();
    let c = number(&mut g, 0.1);
    let apart = mul(&mut g, apart, c);
    let m = add(&mut g, m, apart);
    let square = mul(&mut g, grad, grad);
    let (beta2, rest) = (number(&mut g, 0.95), number(&mut g, 0.05));
    let (v, square) = (mul(&mut g, v, beta2), mul(&mut g, square, rest));
    let v = add(&mut g, v, square);
    let correction = |g: &mut Graph, beta: f64| {
        let beta = g.scalar(beta, DType::F32).unwrap();
        let power = g.binary(BinaryOp::Pow, beta, step).unwrap();
        g.sub(one, power).unwrap()
    };
    let (first, second) = (correction(&mut g, 0.9), correction(&mut g, 0.95));
    let second = g.unary(UnaryOp::Sqrt, second).unwrap();
    let root = g.unary(UnaryOp::Sqrt, v).unwrap();
    let root = g.div(root, second).unwrap();
    let epsilon = number(&mut g, 1e-8);
    let root = add(&mut g, root, epsilon);
    let direction = g.div(m, root).unwrap();
    let rate = g.div(lr, first).unwrap();
    let change = mul(&mut g, direction, rate);
    let w = g.sub(w, change).unwrap();
    g.write(Target::State(states[if how.elsewhere { 3 } else { 1 }]), m, false).unwrap();
    g.write(Target::State(states[2]), v, false).unwrap();
    g.write(Target::Param(id), w, false).unwrap();
    if how.mean_shown {
        g.outputs.push(("m".into(), m));
    }
    g
}

const PACKED: [Option<Map>; 2] = [Some(Map::Signed), Some(Map::Unsigned)];

/// The optimized graph, which computes the same.
fn optimized(how: Spelling) -> Graph {
    let g = adamw(how);
    let mut env = environment(&g, 7);
    // As in a run: squares, a step from one, and rates below one.
    env.states.insert("v".into(), env.states["v"].map(|x| x * x));
    for (name, x) in [("lr", 0.01), ("step", 3.0), ("weight-decay", 0.1), ("clip", 0.5)] {
        env.inputs.insert(name.into(), Tensor::new(vec![], vec![x]));
    }
    let after = passes::optimize(g.clone(), &passes::Options::default()).unwrap();
    assert_same(&run_all(&g, &env), &run_all(&after, &env), "adam");
    after
}

fn packed(g: &Graph) -> Vec<bool> {
    g.nodes().iter().filter_map(|n| if let Op::Adam(a) = &n.op { Some(a.packed) } else { None }).collect()
}

#[test]
fn a_step_is_one_op_that_writes_where_things_lie() {
    for (plain, swapped) in [(false, false), (true, false), (false, true)] {
        for maps in [[None, None], PACKED] {
            let after = optimized(Spelling { plain, swapped, maps, ..Spelling::default() });
            assert_eq!(packed(&after), [maps == PACKED]);
            // Nothing large is left beside it, and no copy at the end: all is written where it lies.
            let plan = plan(after, &|_| true).unwrap();
            assert!(plan.buffers.iter().all(|b| b.elements.as_fixed().is_some_and(|elements| elements < 100)));
            assert_eq!(plan.places.iter().filter(|p| matches!(p, Place::State(_))).count(), 5);
        }
    }
}

#[test]
fn moments_that_are_not_the_ops_own_become_floats() {
    // One in 8 bits; and one that is written to another place than it was read from.
    let mixed = Spelling { maps: [Some(Map::Signed), None], ..Spelling::default() };
    let elsewhere = Spelling { maps: PACKED, elsewhere: true, ..Spelling::default() };
    for (how, floats) in [(mixed, 1), (elsewhere, 2)] {
        let after = optimized(how);
        assert_eq!(packed(&after), [false]);
        let plan = plan(after, &|_| true).unwrap();
        let states = plan.launches.iter().filter(|l| matches!(plan.graph.node(l.node).op, Op::State(_)));
        assert_eq!(states.count(), floats);
    }
}

#[test]
fn a_moment_that_others_read_is_left_alone() {
    let after = optimized(Spelling { mean_shown: true, ..Spelling::default() });
    assert_eq!(count(&after, "adam"), 0);
    // And a sum instead of a difference is another formula.
    let mut g = adamw(Spelling::default());
    let sum = g.effects[2].value;
    let [kept, change] = [0, 1].map(|i| g.node(sum).inputs[i]);
    g.effects[2].value = g.add(kept, change).unwrap();
    assert_eq!(count(&patterns::adam(&passes::dead_code(&g).unwrap()).unwrap(), "adam"), 0);
}

#[test]
fn what_is_written_to_8_bits_is_rounded_and_read_back_as_rounded() {
    let mut g = Graph::default();
    let ty = Type::f32(swift_graph::Shape::fixed(&[2, 300]));
    let x = g.input("x", ty.clone()).unwrap();
    let state = g.declare_packed_state("s", ty.clone(), Map::Signed).unwrap();
    assert!(g.declare_state("s", ty.clone()).is_err() && g.declare_packed_state("s", ty, Map::Unsigned).is_err());
    let old = g.read_state(state).unwrap();
    let sum = g.add(old, x).unwrap();
    assert!(g.write(Target::State(state), sum, true).is_err());
    g.write(Target::State(state), sum, false).unwrap();
    g.outputs.push(("old".into(), old));
    let mut env = environment(&g, 3);
    env.states.clear();
    let first = run_all(&g, &env);
    let mut want = env.inputs["x"].clone();
    Map::Signed.round(&mut want.data);
    close(&first.states["s"], &want, "rounded");
    assert!(first.states["s"].data != env.inputs["x"].data);
    env.apply(&first);
    close(&run_all(&g, &env).outputs["old"], &want, "read");
}
