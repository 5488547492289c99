//! Products with weights and with each other, alone and as layers write them, in every format.

use swift_graph::op::*;
use swift_graph::{Dim, Float, Graph, passes};
use swift_runtime::Format;

use crate::case::{Case, N, dims, n, rows};

const FORMATS: [Format; 6] = [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q4_1];

#[test]
fn experts_in_every_format() {
    for format in FORMATS {
        let mut c = Case::new();
        let x = c.x(rows(&[64]));
        let w = c.w(&[5, 24, 64], format);
        let experts = |i: i32| if i % 11 == 3 { -1 } else { i * i % 4 };
        let chosen = c.i(rows(&[2]), (0..2 * N as i32).map(experts).collect());
        c.all(GroupedLinear, &[x, w, chosen]);
        let few = c.x(dims(&[2, 64]));
        let own = c.i(dims(&[2, 1]), vec![4, 1]);
        c.all(GroupedLinear, &[few, w, own]);
        let d_y = c.x(rows(&[2, 24]));
        c.all(GroupedLinearDx, &[d_y, w, chosen]);
        c.all(GroupedLinearDw { count: Dim::fixed(5) }, &[d_y, x, chosen]);
        let dense = c.all(Read, &[w]);
        let computed = c.g.scale(dense, 2.0).unwrap();
        c.all(GroupedLinear, &[x, computed, chosen]);
        c.tolerance = 1e-4;
        c.check();
    }
}

#[test]
fn matrix_products() {
    for (transpose_a, transpose_b) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut c = Case::new();
        let shape = |t: bool, a: Dim, b: Dim| if t { [b, a] } else { [a, b] };
        let with = |lead: &[u64], m: [Dim; 2]| -> Vec<Dim> { dims(lead).into_iter().chain(m).collect() };
        let a = c.x(with(&[2, 3], shape(transpose_a, n(), Dim::fixed(7))));
        let b = c.x(with(&[2, 3], shape(transpose_b, Dim::fixed(7), Dim::fixed(19))));
        let shared = c.x(with(&[], shape(transpose_b, Dim::fixed(7), Dim::fixed(19))));
        let plain = c.x(with(&[], shape(transpose_a, n(), Dim::fixed(7))));
        let op = MatMul { transpose_a, transpose_b };
        c.all(op.clone(), &[a, b]);
        c.all(op.clone(), &[a, shared]);
        c.all(op, &[plain, shared]);
        c.check();
    }
}

#[test]
fn low_rank_linear() {
    for format in [Format::F32, Format::Q4_1] {
        for few in [false, true] {
            let mut c = Case::new();
            let n = |d: u64| if few { dims(&[2, d]) } else { rows(&[d]) };
            let (x, h, d_y) = (c.x(n(64)), c.x(n(3)), c.x(n(40)));
            let (w, bias) = (c.w(&[40, 64], format), c.w(&[40], Format::F32));
            let (b, a) = (c.w(&[40, 3], Format::F32), c.w(&[3, 64], Format::F32));
            let (alpha, factor) = (Float(0.5), Float(2.0));
            let spec = |backward, bias, addend| LowRankLinear { backward, alpha, factor, bias, activation: None, addend };
            c.all(spec(false, false, false), &[x, w, h, b]);
            c.all(spec(true, false, false), &[d_y, w, h, a]);
            // Addends that live on, and that die.
            c.all(spec(false, true, true), &[x, w, h, b, bias, d_y]);
            c.all(spec(true, false, true), &[d_y, w, h, a, x]);
            let (fresh_y, fresh_x) = (c.g.scale(d_y, 3.0).unwrap(), c.g.scale(x, 3.0).unwrap());
            c.all(spec(false, true, true), &[x, w, h, b, bias, fresh_y]);
            c.all(spec(true, false, true), &[d_y, w, h, a, fresh_x]);
            for f in [UnaryOp::Silu, UnaryOp::GeluErf, UnaryOp::Relu] {
                c.all(LowRankLinear { activation: Some(f), ..spec(false, false, false) }, &[x, w, h, b]);
                let fresh_y = c.g.scale(d_y, 3.0).unwrap();
                c.all(LowRankLinear { activation: Some(f), ..spec(false, true, true) }, &[x, w, h, b, bias, fresh_y]);
            }
            c.check();
        }
    }
}

#[test]
fn linear_in_every_format() {
    for format in FORMATS {
        let mut c = Case::new();
        let x = c.x(rows(&[64]));
        let few = c.x(dims(&[2, 64]));
        let w = c.w(&[40, 64], format);
        let bias = c.w(&[40], Format::BF16);
        c.all(Linear::plain(), &[x, w]);
        c.all(Linear::plain(), &[few, w]);
        let addend = c.x(rows(&[40]));
        let spec = Linear { alpha: Float(0.5), bias: true, activation: None, addend: true };
        c.all(spec.clone(), &[x, w, bias, addend]);
        // An addend that dies: the product is added to it in place.
        let fresh = c.g.scale(addend, 3.0).unwrap();
        c.all(spec, &[x, w, bias, fresh]);
        for f in [UnaryOp::Silu, UnaryOp::GeluErf, UnaryOp::GeluTanh, UnaryOp::Relu] {
            c.all(Linear { alpha: Float(0.5), bias: true, activation: Some(f), addend: false }, &[x, w, bias]);
            c.all(Linear { alpha: Float(0.5), bias: false, activation: Some(f), addend: true }, &[x, w, addend]);
        }
        let few_more = c.x(dims(&[2, 40]));
        c.all(Linear { alpha: Float(0.5), bias: true, activation: Some(UnaryOp::Silu), addend: true }, &[few, w, bias, few_more]);
        let d_y = c.x(rows(&[40]));
        c.all(LinearDx { alpha: Float(2.0), addend: false }, &[d_y, w]);
        let fresh = c.g.scale(x, 3.0).unwrap();
        c.all(LinearDx { alpha: Float(2.0), addend: true }, &[d_y, w, fresh]);
        c.all(LinearDw { alpha: Float(-1.5) }, &[d_y, x]);
        let table = c.w(&[9, 32], format);
        let ids = c.i(rows(&[]), (0..N as i32).map(|i| i * 5 % 9).collect());
        c.all(Embed, &[table, ids]);
        let d_rows = c.x(rows(&[32]));
        c.all(EmbedDw { vocab: Dim::fixed(9) }, &[d_rows, ids]);
        let dense = c.all(Read, &[w]);
        c.all(Linear::plain(), &[x, dense]);
        let computed = c.g.scale(dense, 2.0).unwrap();
        c.all(Linear::plain(), &[x, computed]);
        c.tolerance = 1e-4;
        c.check();
    }
}

/// What the optimized graph launches.
fn launches(g: &Graph) -> Vec<&'static str> {
    let g = passes::after_autodiff(g, &passes::Options::default()).unwrap();
    g.nodes().iter().map(|node| node.op.name()).filter(|name| !["input", "param"].contains(name)).collect()
}

/// One layer of a network as models write it, with all that follows, is one launch, and two gradient-free layers are two.
#[test]
fn layers_take_their_activation_and_residual() {
    for f in [UnaryOp::Silu, UnaryOp::GeluErf, UnaryOp::GeluTanh, UnaryOp::Relu] {
        let mut c = Case::new();
        let (x, residual) = (c.x(rows(&[64])), c.x(rows(&[40])));
        let (w, v, bias) = (c.w(&[40, 64], Format::BF16), c.w(&[40, 40], Format::F16), c.w(&[40], Format::F32));
        let h = c.g.push(Linear::plain(), &[x, w]).unwrap();
        let b = c.g.push(Read, &[bias]).unwrap();
        let h = c.g.add(h, b).unwrap();
        let h = c.g.unary(f, h).unwrap();
        let h = c.g.add(residual, h).unwrap();
        let h = c.g.push(Linear::plain(), &[h, v]).unwrap();
        let h = c.g.unary(f, h).unwrap();
        c.g.outputs.push(("y".into(), h));
        assert_eq!(launches(&c.g), ["read", "linear", "linear"]);
        c.tolerance = 1e-4;
        c.check();
    }
}

/// With an adapter of low rank, too: then the adapter's first product is the other launch.
#[test]
fn adapted_layers_take_their_activation_and_residual() {
    for f in [UnaryOp::Silu, UnaryOp::GeluErf, UnaryOp::GeluTanh, UnaryOp::Relu] {
        for few in [false, true] {
            let mut c = adapted(f, Format::Q8_0, few);
            assert_eq!(launches(&c.g), ["read", "linear", "low-rank-linear"]);
            c.tolerance = 1e-4;
            c.check();
            // Somebody else reads what it is applied to.
            let activated = c.g.node(c.g.outputs[0].1).inputs[0];
            let sums = c.g.node(activated).inputs[0];
            c.out(sums);
            assert_eq!(launches(&c.g), ["read", "linear", "low-rank-linear", "fused"]);
            c.check();
        }
    }
}

/// `f(x·Wᵀ + bias + 2 x·Aᵀ·Bᵀ) + residual`.
pub(crate) fn adapted(f: UnaryOp, format: Format, few: bool) -> Case {
    let mut c = Case::new();
    let n = |d: u64| if few { dims(&[2, d]) } else { rows(&[d]) };
    let (x, residual) = (c.x(n(96)), c.x(n(40)));
    let (w, bias) = (c.w(&[40, 96], format), c.w(&[40], Format::F32));
    let (a, b) = (c.w(&[8, 96], Format::F32), c.w(&[40, 8], Format::F32));
    let y = c.g.linear(x, w).unwrap();
    let bias = c.g.push(Read, &[bias]).unwrap();
    let y = c.g.add(y, bias).unwrap();
    let h = c.g.linear(x, a).unwrap();
    let h = c.g.linear(h, b).unwrap();
    let h = c.g.scale(h, 2.0).unwrap();
    let y = c.g.add(y, h).unwrap();
    let y = c.g.unary(f, y).unwrap();
    let y = c.g.add(y, residual).unwrap();
    c.out(y);
    c
}

#[test]
fn convolutions() {
    let spec = |stride: &[u64], lo: &[u64], hi: &[u64], dilation: &[u64], groups| ConvSpec {
        stride: stride.to_vec(),
        pad_lo: lo.to_vec(),
        pad_hi: hi.to_vec(),
        dilation: dilation.to_vec(),
        groups,
    };
    // Over tokens, causal and depthwise, then images of two kinds.
    let cases: [(ConvSpec, Vec<Dim>, &[u64]); 4] = [
        (spec(&[1], &[3], &[0], &[1], 6), vec![Dim::fixed(1), Dim::fixed(6), n()], &[6, 1, 4]),
        (spec(&[2], &[0], &[1], &[2], 1), vec![Dim::fixed(2), Dim::fixed(3), n()], &[5, 3, 3]),
        (spec(&[1, 1], &[1, 1], &[1, 1], &[1, 1], 1), dims(&[2, 3, 8, 9]), &[4, 3, 3, 3]),
        (spec(&[2, 3], &[0, 2], &[1, 0], &[2, 1], 2), dims(&[3, 4, 11, 7]), &[6, 2, 2, 3]),
    ];
    for (spec, shape, filters) in cases {
        let mut c = Case::new();
        let (x, w) = (c.x(shape.clone()), c.x(dims(filters)));
        let bias = c.w(&filters[..1], Format::F32);
        c.all(Conv { spec: spec.clone(), bias: false }, &[x, w]);
        let y = c.all(Conv { spec: spec.clone(), bias: true }, &[x, w, bias]);
        let d_y = c.x(c.g.ty(y).shape.clone());
        c.all(ConvDx { spec: spec.clone(), x: shape.into() }, &[d_y, w]);
        c.all(ConvDw { spec, w: dims(filters).into() }, &[d_y, x]);
        c.check();
    }
}
