//! Nothing falls between the table of gradients and the list of ops without one.

use std::collections::BTreeSet;

use swift_graph::autodiff::differentiate;
use swift_graph::op::{self, Op};
use swift_graph::{Bindings, DType, Error, Float, OpRule, Shape, SymbolId, Type};

use crate::cases;
use crate::harness::Case;

enum Gradient {
    /// Checked against finite differences.
    Checked,
    /// No inputs, or no float among them.
    Leaf,
    /// Refused with an error.
    Refused,
}

/// Exhaustive: a new op does not compile until it is placed here.
fn gradient(op: &Op) -> Gradient {
    match op {
        Op::Input(_) | Op::State(_) | Op::Constant(_) | Op::Full(_) | Op::Iota(_) => Gradient::Leaf,
        // Its result is whole numbers.
        Op::TopK(_) => Gradient::Leaf,
        Op::Param(_)
        | Op::Read(_)
        | Op::StopGrad(_)
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Select(_)
        | Op::Cast(_)
        | Op::Reshape(_)
        | Op::Permute(_)
        | Op::Expand(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Pad(_)
        | Op::Reduce(_)
        | Op::Softmax(_)
        | Op::SegmentReduce(_)
        | Op::GatherRows(_)
        | Op::ScatterRows(_)
        | Op::GatherLast(_)
        | Op::ScatterLast(_)
        | Op::MatMul(_)
        | Op::Linear(_)
        | Op::GroupedLinear(_)
        | Op::Conv(_)
        | Op::Embed(_)
        | Op::RmsNorm(_)
        | Op::Rope(_)
        | Op::Attention(_)
        | Op::Glu(_)
        | Op::LinearCrossEntropy(_)
        | Op::LinearStatistic(_)
        | Op::LinearDivergence(_)
        | Op::Dropout(_) => Gradient::Checked,
        // A part is differentiable as far as its producer's further outputs are, and none of them is.
        Op::Part(_)
        | Op::Fused(_)
        | Op::SoftmaxDx(_)
        | Op::LinearDx(_)
        | Op::LinearDw(_)
        | Op::LowRankLinear(_)
        | Op::GroupedLinearDx(_)
        | Op::GroupedLinearDw(_)
        | Op::ConvDx(_)
        | Op::ConvDw(_)
        | Op::EmbedDw(_)
        | Op::RmsNormDx(_)
        | Op::RmsNormDw(_)
        | Op::AttentionBackward(_)
        | Op::CachedAttention(_)
        | Op::GluBackward(_)
        | Op::Adam(_)
        | Op::LinearCrossEntropyBackward(_)
        | Op::LinearStatisticBackward(_)
        | Op::LinearDivergenceBackward(_) => Gradient::Refused,
    }
}

/// One of each op that takes no part in the table.
fn others(c: &mut Case) -> Vec<(Op, Vec<swift_graph::NodeId>)> {
    let fixed = Shape::fixed;
    let (x, w) = (c.x(&[2, 4]), c.x(&[3, 4]));
    let (dy, d) = (c.x(&[2, 3]), c.x(&[4]));
    let (column, ids) = (c.x(&[2]), c.ints("ids", &[0, 1]));
    let (q, lse) = (c.x(&[2, 1, 4]), c.x(&[1, 2]));
    let (stack, dy3) = (c.x(&[2, 3, 4]), c.x(&[2, 1, 3]));
    let (images, filters) = (c.x(&[1, 1, 4]), c.x(&[1, 1, 2]));
    let conv = op::ConvSpec { stride: vec![1], pad_lo: vec![0], pad_hi: vec![1], dilation: vec![1], groups: 1 };
    let experts = c.g.reshape(ids, fixed(&[2, 1])).unwrap();
    let norm = c.push(op::RmsNorm { eps: Float(1e-5), unit_offset: false, weight: true }, &[x, d]);
    let spec = op::AttentionSpec::causal(1.0);
    let ce = op::CrossEntropySpec { label_smoothing: Float(0.0), z_loss: Float(0.0), softcap: None, temperature: Float(1.0) };
    let bend = op::Bend { softcap: None, temperature: Float(1.0) };
    let entropy = op::LinearStatistic { statistic: op::Statistic::Entropy, bend: bend.clone() };
    let divergence = op::LinearDivergence { alpha: Float(0.5), bends: [bend.clone(), bend] };
    let cache = c.g.declare_state("cache", Type::f32(fixed(&[1, 64, 1, 4]))).unwrap();
    let pages = c.g.input("pages", Type::new(DType::S32, fixed(&[1, 1]))).unwrap();
    let fused = op::Fused {
        shape: fixed(&[2, 4]),
        col_axes: 1,
        instrs: vec![op::Instr::Load(0)],
        spans: vec![op::Span::Full],
        outputs: vec![(0, DType::F32)],
    };
    let one = c.x(&[]);
    let (one_minus_beta1, one_minus_beta2) = (Float(0.1), Float(0.05));
    let adam = op::Adam { one_minus_beta1, beta2: Float(0.95), one_minus_beta2, epsilon: Float(1e-8), packed: false };
    vec![
        (op::Part { index: 1 }.into(), vec![norm]),
        (fused.into(), vec![x]),
        (op::SoftmaxDx.into(), vec![x, x]),
        (op::LinearDx { alpha: Float(1.0), addend: false }.into(), vec![dy, w]),
        (op::LinearDw { alpha: Float(1.0) }.into(), vec![dy, x]),
        (
            op::LowRankLinear {
                backward: false,
                alpha: Float(1.0),
                factor: Float(2.0),
                bias: false,
                activation: None,
                addend: false,
            }
            .into(),
            vec![x, w, x, w],
        ),
        (op::GroupedLinearDx.into(), vec![dy3, stack, experts]),
        (op::GroupedLinearDw { count: 2.into() }.into(), vec![dy3, x, experts]),
        (op::ConvDx { spec: conv.clone(), x: fixed(&[1, 1, 4]) }.into(), vec![images, filters]),
        (op::ConvDw { spec: conv, w: fixed(&[1, 1, 2]) }.into(), vec![images, images]),
        (op::EmbedDw { vocab: 3.into() }.into(), vec![x, ids]),
        (op::RmsNormDx { unit_offset: false, weight: true }.into(), vec![x, d, column, x]),
        (op::RmsNormDw.into(), vec![x, column, x]),
        (op::AttentionBackward { spec: spec.clone() }.into(), vec![q, q, q, ids, q, lse, q]),
        (op::CachedAttention { spec, k_cache: cache, v_cache: cache }.into(), vec![q, q, q, ids, ids, pages]),
        (op::GluBackward(op::Gate::Silu).into(), vec![x, x, x]),
        (adam.into(), vec![x, x, x, x, one, one, one, one]),
        (op::LinearCrossEntropyBackward { spec: ce, weight_grad: true }.into(), vec![x, w, ids, column, column]),
        (op::LinearStatisticBackward { forward: entropy, weight_grad: true }.into(), vec![x, w, column, column, column]),
        (
            op::LinearDivergenceBackward { forward: divergence, weight_grad: true }.into(),
            vec![x, w, x, w, column, column, column, column],
        ),
    ]
}

#[test]
fn every_op_is_checked_or_refused() {
    let mut covered = BTreeSet::new();
    for (_, build) in cases::all() {
        let mut case = Case::new();
        build(&mut case);
        for node in case.g.nodes() {
            assert!(!matches!(gradient(&node.op), Gradient::Refused), "{}", node.op.name());
            covered.insert(node.op.name());
        }
    }
    covered.extend(["state", "constant", "iota"]);
    let mut case = Case::new();
    for (op, inputs) in others(&mut case) {
        let name = op.name();
        assert!(matches!(gradient(&op), Gradient::Refused), "{name}");
        covered.insert(name);
        let mut g = case.g.clone();
        g.push_scope("layer").unwrap();
        let y = g.push(op, &inputs).unwrap();
        g.pop_scope();
        let loss = g.sum_all(y).unwrap();
        let error = differentiate(&mut g, loss, &case.wrt).unwrap_err();
        let part = matches!(error.root(), Error::BadAttr { op: "rms-norm", .. });
        let refused = matches!(error.root(), Error::NoBackward { op } if *op == name);
        assert!(if name == "part" { part } else { refused && error.to_string().contains("`layer`") }, "{name}: {error}");
    }
    // As many names as variants: the match above is exhaustive, so the sets agree.
    assert_eq!(covered.len(), 59, "{covered:?}");
}

#[test]
fn counts_operations() {
    let mut c = Case::new();
    let (x, w) = (c.rows(&[3, 4]), c.weight(&[5, 4]));
    let y = c.g.linear(x, w).unwrap();
    let flops = |g: &swift_graph::Graph, id| {
        let node = g.node(id);
        let inputs: Vec<_> = node.inputs.iter().map(|i| g.ty(*i).clone()).collect();
        node.op.flops(&inputs, &node.outputs).unwrap()
    };
    let bindings = Bindings::new().with(SymbolId::TOKENS, 10);
    assert_eq!(flops(&c.g, y).eval(&bindings).unwrap(), 2 * 10 * 4 * 5);
    let q = c.rows(&[6, 4, 2]);
    let segments = c.tokens("segments", &[0; 6]);
    let spec = op::AttentionSpec::causal(1.0);
    let o = c.push(op::Attention { spec }, &[q, q, q, segments]);
    assert_eq!(flops(&c.g, o).eval(&bindings).unwrap(), 2 * 10 * 10 * 4 * 2);
}
