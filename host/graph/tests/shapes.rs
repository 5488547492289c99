//! What shape inference accepts and refuses. Every refusal is an error with the op's name, never a panic: plugins get here.

use swift_graph::op::{self, BinaryOp, Op, ReduceOp, UnaryOp};
use swift_graph::{DType, Dim, Error, Float, Graph, OpRule, Shape, SymbolId, Type};

fn f(dims: &[u64]) -> Type {
    Type::f32(Shape::fixed(dims))
}

fn i(dims: &[u64]) -> Type {
    Type::new(DType::S32, Shape::fixed(dims))
}

fn b(dims: &[u64]) -> Type {
    Type::new(DType::Bool, Shape::fixed(dims))
}

fn n() -> Dim {
    Dim::symbol(SymbolId::TOKENS)
}

fn rows(dims: &[u64]) -> Type {
    Type::f32(std::iter::once(n()).chain(dims.iter().map(|&d| Dim::fixed(d))).collect::<Shape>())
}

fn attention(scale: f64, window: Option<u32>) -> op::AttentionSpec {
    op::AttentionSpec { window, ..op::AttentionSpec::causal(scale) }
}

fn cross_entropy(smoothing: f64, temperature: f64, softcap: Option<f64>) -> Op {
    let spec = op::CrossEntropySpec {
        label_smoothing: Float(smoothing),
        z_loss: Float(0.0),
        softcap: softcap.map(Float),
        temperature: Float(temperature),
    };
    op::LinearCrossEntropy { spec, unit_grad: false }.into()
}

fn rope(pairs: usize) -> Op {
    let inv_freq = vec![Float(1.0); pairs].into();
    op::Rope { inv_freq, layout: op::RopeLayout::Halves, attn_scale: Float(1.0), inverse: false, sections: [].into() }.into()
}

fn rope_in(sections: &[u32]) -> Op {
    let Op::Rope(plain) = rope(3) else { unreachable!() };
    op::Rope { sections: sections.into(), ..plain }.into()
}

fn infer(op: &Op, inputs: &[Type]) -> Result<Vec<Type>, Error> {
    op.infer(&Graph::default(), inputs)
}

#[test]
fn refusals() {
    let slice = |axis, start: Dim, len: Dim| op::Slice { axis, start, len }.into();
    let linear = |bias, addend| op::Linear { bias, addend, ..op::Linear::plain() }.into();
    let norm = |weight| op::RmsNorm { eps: Float(1e-5), unit_offset: false, weight }.into();
    let matmul = op::MatMul { transpose_a: false, transpose_b: false };
    let conv = |stride: &[u64], pad: &[u64], groups| {
        let ones = vec![1; stride.len()];
        let spec = op::ConvSpec { stride: stride.to_vec(), pad_lo: pad.to_vec(), pad_hi: pad.to_vec(), dilation: ones, groups };
        op::Conv { spec, bias: false }.into()
    };
    let table: Vec<(Op, Vec<Type>)> = vec![
        (conv(&[1], &[0], 1), vec![f(&[1, 2, 5])]),
        (conv(&[1], &[0], 1), vec![f(&[1, 2, 5]), f(&[4, 3, 2])]),
        (conv(&[1], &[0], 1), vec![f(&[1, 2, 5]), f(&[4, 2, 6])]),
        (conv(&[1], &[0], 1), vec![f(&[1, 2, 5]), f(&[4, 2, 0])]),
        (conv(&[1], &[0], 1), vec![f(&[1, 2, 5, 5]), f(&[4, 2, 2, 2])]),
        (conv(&[1, 1], &[0], 1), vec![f(&[1, 2, 5, 5]), f(&[4, 2, 2, 2])]),
        (conv(&[1, 1, 1], &[0, 0, 0], 1), vec![f(&[1, 2, 5, 5, 5]), f(&[4, 2, 2, 2, 2])]),
        (conv(&[0], &[0], 1), vec![f(&[1, 2, 5]), f(&[4, 2, 2])]),
        (conv(&[1], &[0], 0), vec![f(&[1, 2, 5]), f(&[4, 2, 2])]),
        (conv(&[1], &[0], 3), vec![f(&[1, 6, 5]), f(&[4, 2, 2])]),
        (conv(&[1], &[u64::MAX], 1), vec![f(&[1, 2, 5]), f(&[4, 2, 2])]),
        (conv(&[1], &[0], 1), vec![i(&[1, 2, 5]), f(&[4, 2, 2])]),
        (op::Unary(UnaryOp::Exp).into(), vec![]),
        (op::Unary(UnaryOp::Exp).into(), vec![i(&[2])]),
        (op::Unary(UnaryOp::LogicalNot).into(), vec![f(&[2])]),
        (op::Binary(BinaryOp::Add).into(), vec![f(&[2]), f(&[3])]),
        (op::Binary(BinaryOp::Add).into(), vec![f(&[2]), i(&[2])]),
        (op::Binary(BinaryOp::Add).into(), vec![rows(&[]), f(&[3])]),
        (op::Binary(BinaryOp::LogicalAnd).into(), vec![f(&[2]), f(&[2])]),
        (op::Binary(BinaryOp::Add).into(), vec![b(&[2]), b(&[2])]),
        (op::Select.into(), vec![f(&[2]), f(&[2]), f(&[2])]),
        (op::Select.into(), vec![b(&[3]), f(&[2]), f(&[2])]),
        (op::Reshape { to: Shape::fixed(&[5]) }.into(), vec![f(&[2, 3])]),
        (op::Reshape { to: Shape::fixed(&[6]) }.into(), vec![rows(&[2])]),
        (op::Permute { axes: vec![0, 0] }.into(), vec![f(&[2, 3])]),
        (op::Permute { axes: vec![0] }.into(), vec![f(&[2, 3])]),
        (op::Expand { to: Shape::fixed(&[3]) }.into(), vec![f(&[2])]),
        (op::Expand { to: Shape::fixed(&[1]) }.into(), vec![f(&[2])]),
        (op::Expand { to: Shape::fixed(&[2]) }.into(), vec![f(&[1, 2])]),
        (slice(2, 0.into(), 1.into()), vec![f(&[2, 3])]),
        (slice(1, 2.into(), 2.into()), vec![f(&[2, 3])]),
        (slice(0, 0.into(), 3.into()), vec![rows(&[])]),
        (slice(0, 1.into(), n()), vec![rows(&[])]),
        (slice(0, u64::MAX.into(), u64::MAX.into()), vec![f(&[2])]),
        (op::Concat { axis: 0 }.into(), vec![]),
        (op::Concat { axis: 1 }.into(), vec![f(&[2]), f(&[2])]),
        (op::Concat { axis: 0 }.into(), vec![f(&[2, 3]), f(&[2, 4])]),
        (op::Pad { lo: vec![1], hi: vec![], value: Float(0.0) }.into(), vec![f(&[2])]),
        (op::Pad { lo: vec![u64::MAX], hi: vec![u64::MAX], value: Float(0.0) }.into(), vec![f(&[2])]),
        (op::Reduce { op: ReduceOp::Sum, axes: vec![1, 0], keep: false }.into(), vec![f(&[2, 3])]),
        (op::Reduce { op: ReduceOp::Sum, axes: vec![2], keep: false }.into(), vec![f(&[2, 3])]),
        (op::Reduce { op: ReduceOp::Sum, axes: vec![0], keep: false }.into(), vec![i(&[2])]),
        (op::Softmax.into(), vec![f(&[])]),
        (op::SoftmaxDx.into(), vec![f(&[2]), f(&[3])]),
        (op::SegmentReduce { op: ReduceOp::Sum, count: 2.into() }.into(), vec![f(&[3]), i(&[2])]),
        (op::SegmentReduce { op: ReduceOp::Sum, count: 2.into() }.into(), vec![f(&[3]), f(&[3])]),
        (op::GatherRows.into(), vec![f(&[]), i(&[2])]),
        (op::GatherRows.into(), vec![f(&[3]), f(&[2])]),
        (op::ScatterRows { accumulate: true }.into(), vec![f(&[3, 2]), i(&[2]), f(&[2, 3])]),
        (op::ScatterRows { accumulate: true }.into(), vec![f(&[3, 2]), i(&[1]), f(&[2, 2])]),
        (matmul.clone().into(), vec![f(&[2, 3]), f(&[2, 3])]),
        (matmul.clone().into(), vec![f(&[3]), f(&[3, 2])]),
        (matmul.into(), vec![f(&[2, 2, 3]), f(&[3, 3, 2])]),
        (linear(false, false), vec![f(&[]), f(&[2, 3])]),
        (linear(false, false), vec![f(&[4]), f(&[2, 3])]),
        (linear(false, false), vec![f(&[3]), f(&[3])]),
        (linear(true, false), vec![f(&[5, 3]), f(&[2, 3]), f(&[3])]),
        (linear(false, true), vec![f(&[5, 3]), f(&[2, 3]), f(&[2])]),
        (linear(true, true), vec![f(&[5, 3]), f(&[2, 3]), f(&[2])]),
        (op::LinearDx { alpha: Float(1.0), addend: false }.into(), vec![f(&[5, 3]), f(&[2, 3])]),
        (op::LinearDw { alpha: Float(1.0) }.into(), vec![f(&[5, 3]), f(&[4, 3])]),
        (op::Embed.into(), vec![f(&[5]), i(&[2])]),
        (op::Embed.into(), vec![f(&[5, 2]), f(&[2])]),
        (op::EmbedDw { vocab: 3.into() }.into(), vec![f(&[5, 2]), i(&[2])]),
        (norm(false), vec![f(&[])]),
        (norm(true), vec![f(&[2, 3]), f(&[2])]),
        (op::RmsNormDx { unit_offset: false, weight: false }.into(), vec![f(&[]), f(&[]), f(&[])]),
        (op::RmsNormDx { unit_offset: false, weight: true }.into(), vec![f(&[2, 3]), f(&[3]), f(&[3]), f(&[2, 3])]),
        (op::RmsNormDw.into(), vec![f(&[2, 3]), f(&[3]), f(&[2, 3])]),
        (rope(3), vec![f(&[2, 1, 4]), i(&[2])]),
        (rope(1), vec![f(&[2, 4]), i(&[2])]),
        (rope(1), vec![f(&[2, 1, 4]), i(&[3])]),
        (rope_in(&[1, 1]), vec![f(&[2, 1, 6]), i(&[2, 2])]),
        (rope_in(&[3, 0]), vec![f(&[2, 1, 6]), i(&[2, 2])]),
        (rope_in(&[1, 2]), vec![f(&[2, 1, 6]), i(&[2])]),
        (rope_in(&[1, 2]), vec![f(&[2, 1, 6]), i(&[2, 3])]),
        (rope_in(&[1, 2]), vec![f(&[2, 1, 6]), i(&[0, 2])]),
        (op::Attention { spec: attention(1.0, None) }.into(), vec![f(&[4, 3, 2]), f(&[4, 2, 2]), f(&[4, 2, 2]), i(&[4])]),
        (op::Attention { spec: attention(1.0, None) }.into(), vec![f(&[4, 2, 2]), f(&[4, 2, 2]), f(&[4, 2, 2]), i(&[3])]),
        (op::Attention { spec: attention(1.0, Some(0)) }.into(), vec![f(&[4, 2, 2]), f(&[4, 2, 2]), f(&[4, 2, 2]), i(&[4])]),
        (op::Attention { spec: attention(f64::NAN, None) }.into(), vec![f(&[4, 2, 2]), f(&[4, 2, 2]), f(&[4, 2, 2]), i(&[4])]),
        (op::Glu(op::Gate::Silu).into(), vec![f(&[2]), f(&[3])]),
        (op::GluBackward(op::Gate::GeluTanh).into(), vec![f(&[2]), f(&[2])]),
        (cross_entropy(1.0, 1.0, None), vec![f(&[2, 3]), f(&[5, 3]), i(&[2])]),
        (cross_entropy(0.0, 0.0, None), vec![f(&[2, 3]), f(&[5, 3]), i(&[2])]),
        (cross_entropy(0.0, 1.0, Some(-1.0)), vec![f(&[2, 3]), f(&[5, 3]), i(&[2])]),
        (cross_entropy(0.0, 1.0, None), vec![f(&[2, 3]), f(&[5, 4]), i(&[2])]),
        (cross_entropy(0.0, 1.0, None), vec![f(&[2, 3]), f(&[5, 3]), f(&[2])]),
        (op::Dropout { rate: Float(1.0), stream: 0 }.into(), vec![f(&[2]), i(&[2])]),
        (op::Dropout { rate: Float(0.5), stream: 0 }.into(), vec![f(&[2]), i(&[3])]),
        (op::Iota { ty: f(&[2]), axis: 1 }.into(), vec![]),
        (op::Constant { dtype: DType::F32, shape: vec![3], data: op::ConstantData::Float([1.0].into()) }.into(), vec![]),
        (op::Constant { dtype: DType::S32, shape: vec![1], data: op::ConstantData::Float([1.0].into()) }.into(), vec![]),
        (op::Param { id: swift_graph::ParamId(0) }.into(), vec![]),
        (op::Input { id: swift_graph::InputId(0) }.into(), vec![]),
        (op::State { id: swift_graph::StateId(0) }.into(), vec![]),
    ];
    for (op, inputs) in table {
        let error = infer(&op, &inputs).expect_err(&format!("{} of {inputs:?}", op.name()));
        let named = error.to_string().starts_with(op.name()) || matches!(error, Error::Dim(_));
        assert!(named, "{}: {error}", op.name());
    }
}

#[test]
fn symbolic_shapes_come_out() {
    let along = |stride, lo| {
        let spec = op::ConvSpec { stride: vec![stride], pad_lo: vec![lo], pad_hi: vec![0], dilation: vec![1], groups: 1 };
        op::Conv { spec, bias: false }.into()
    };
    let sequence = Type::f32(vec![Dim::fixed(1), Dim::fixed(2), n()]);
    let table: Vec<(Op, Vec<Type>, &str)> = vec![
        (op::Binary(BinaryOp::Mul).into(), vec![rows(&[4]), f(&[4])], "f32[n, 4]"),
        (op::Binary(BinaryOp::Lt).into(), vec![rows(&[1]), f(&[1, 4])], "bool[n, 4]"),
        (op::Reshape { to: Shape::from(vec![n(), 2.into(), 2.into()]) }.into(), vec![rows(&[4])], "f32[n, 2, 2]"),
        (op::Concat { axis: 0 }.into(), vec![rows(&[2]), f(&[3, 2]), rows(&[2])], "f32[3 + 2*n, 2]"),
        (op::Reduce { op: ReduceOp::Mean, axes: vec![0], keep: true }.into(), vec![rows(&[2])], "f32[1, 2]"),
        (op::GatherRows.into(), vec![f(&[5, 2]), Type::new(DType::S32, vec![n()])], "f32[n, 2]"),
        (op::Linear::plain().into(), vec![rows(&[3]), f(&[2, 3])], "f32[n, 2]"),
        // As many values as before, since all that a filter reaches over is padded.
        (along(1, 3), vec![sequence.clone(), f(&[4, 2, 4])], "f32[1, 4, n]"),
        (along(1, 0), vec![sequence, f(&[4, 2, 4])], "f32[1, 4, -3 + n]"),
        (
            op::SegmentReduce { op: ReduceOp::Sum, count: Dim::symbol(SymbolId::SEQUENCES) }.into(),
            vec![rows(&[2]), Type::new(DType::S32, vec![n()])],
            "f32[b, 2]",
        ),
    ];
    for (op, inputs, want) in table {
        assert_eq!(infer(&op, &inputs).unwrap()[0].to_string(), want, "{}", op.name());
    }
}

#[test]
fn graphs_are_bounded() {
    let mut g = Graph::default();
    g.limits.nodes = 3;
    let x = g.scalar(1.0, DType::F32).unwrap();
    let y = g.add(x, x).unwrap();
    g.add(y, y).unwrap();
    assert!(matches!(g.add(x, y), Err(Error::Limit { name: "nodes", limit: 3, .. })));
    let huge = Shape::from(vec![Dim::fixed(1 << 40), Dim::fixed(1 << 40)]);
    assert!(Graph::default().full(huge, 0.0, DType::F32).is_err());
    assert!(Graph::default().push(op::Softmax, &[x]).is_err());
}
