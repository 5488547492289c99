//! The table: one line builds one graph.

use swift_graph::op::{self, BinaryOp, ReduceOp, UnaryOp};
use swift_graph::{DType, Dim, Float, NodeId, Type};

use crate::harness::{Case, n, shape};

pub(crate) type Build = Box<dyn Fn(&mut Case) -> NodeId>;

fn case(name: &'static str, build: impl Fn(&mut Case) -> NodeId + 'static) -> (&'static str, Build) {
    (name, Box::new(build))
}

pub(crate) fn all() -> Vec<(&'static str, Build)> {
    [unary(), binary(), layout(), reductions(), products(), layers(), attention(), losses()].into_iter().flatten().collect()
}

fn unary() -> Vec<(&'static str, Build)> {
    use UnaryOp::*;
    let any = [
        Neg, Abs, Exp, Expm1, Sin, Cos, Tanh, Sigmoid, Silu, GeluErf, GeluTanh, Relu, Softplus, LogSigmoid, Erf, Floor, Round,
        Sign,
    ];
    let positive = [Log, Log1p, Sqrt, Rsqrt, Recip];
    let on = |f, x: fn(&mut Case) -> NodeId| {
        case("unary", move |c| {
            let x = x(c);
            c.push(op::Unary(f), &[x])
        })
    };
    let mut cases: Vec<_> = any.into_iter().map(|f| on(f, |c| c.given(&[2, 3], &[-2.3, -0.7, -0.1, 0.3, 0.9, 2.6]))).collect();
    cases.extend(positive.into_iter().map(|f| on(f, |c| c.positive(&[2, 3]))));
    // What it stops is in `model::stopped_values_get_nothing`; differences would see through it.
    cases.push(case("stop-grad", |c| {
        let (x, y) = (c.frozen(&[3]), c.x(&[3]));
        let x = c.push(op::Read, &[x]);
        let stopped = c.push(op::StopGrad, &[x]);
        c.g.mul(stopped, y).unwrap()
    }));
    cases.push(case("cast", |c| {
        let x = c.x(&[4]);
        let half = c.push(op::Cast(DType::BF16), &[x]);
        let half = c.g.mul(half, half).unwrap();
        c.push(op::Cast(DType::F32), &[half])
    }));
    cases
}

fn binary() -> Vec<(&'static str, Build)> {
    use BinaryOp::*;
    let shapes: [(&'static [u64], &'static [u64]); 5] =
        [(&[2, 3], &[2, 3]), (&[2, 3], &[3]), (&[2, 1], &[1, 3]), (&[], &[2, 2]), (&[1], &[1])];
    let mut cases = Vec::new();
    for f in [Add, Sub, Mul, Div, Pow, Min, Max] {
        for (a, b) in shapes {
            cases.push(case("binary", move |c| {
                let (a, b) = (c.positive(a), c.positive(b));
                c.g.binary(f, a, b).unwrap()
            }));
        }
    }
    cases.push(case("rem", |c| {
        let (a, b) = (c.given(&[4], &[5.3, -4.9, 0.2, 7.7]), c.given(&[4], &[1.9, 2.0, 0.7, -1.3]));
        c.g.binary(Rem, a, b).unwrap()
    }));
    cases.push(case("one value twice", |c| {
        let a = c.x(&[3]);
        let square = c.g.mul(a, a).unwrap();
        let more = c.g.add(square, a).unwrap();
        c.g.div(more, a).unwrap()
    }));
    cases.push(case("rows of symbolic length", |c| {
        let (a, b, s) = (c.rows(&[3, 2]), c.x(&[2]), c.x(&[]));
        let y = c.g.mul(a, b).unwrap();
        c.g.sub(y, s).unwrap()
    }));
    for (a, b) in shapes {
        cases.push(case("select", move |c| {
            let (a, b) = (c.x(a), c.x(b));
            let below = c.g.binary(Lt, a, b).unwrap();
            let (square, half) = (c.g.mul(a, a).unwrap(), c.g.scale(b, 0.5).unwrap());
            c.g.select(below, square, half).unwrap()
        }));
    }
    cases
}

fn layout() -> Vec<(&'static str, Build)> {
    let slice = |axis, start: u64, len: u64| op::Slice { axis, start: Dim::fixed(start), len: Dim::fixed(len) };
    vec![
        case("reshape", |c| {
            let x = c.x(&[2, 6]);
            c.g.reshape(x, shape(&[3, 4])).unwrap()
        }),
        case("reshape rows", |c| {
            let x = c.rows(&[3, 4]);
            c.g.reshape(x, vec![n(), Dim::fixed(2), Dim::fixed(2)].into()).unwrap()
        }),
        case("permute", |c| {
            let x = c.x(&[2, 3, 4]);
            c.push(op::Permute { axes: vec![2, 0, 1] }, &[x])
        }),
        case("expand", |c| {
            let x = c.x(&[2, 1]);
            c.push(op::Expand { to: shape(&[3, 2, 4]) }, &[x])
        }),
        case("expand a scalar", |c| {
            let x = c.x(&[]);
            c.tokens("order", &[0, 1, 2]);
            c.push(op::Expand { to: vec![n()].into() }, &[x])
        }),
        case("slice", move |c| {
            let x = c.x(&[3, 5]);
            let a = c.push(slice(1, 1, 3), &[x]);
            c.push(slice(0, 2, 1), &[a])
        }),
        case("slice rows", |c| {
            let x = c.rows(&[4, 2]);
            let y = c.push(op::Slice { axis: 0, start: Dim::fixed(0), len: n() }, &[x]);
            c.push(op::Slice { axis: 1, start: Dim::fixed(1), len: Dim::fixed(1) }, &[y])
        }),
        case("slice of a join of rows", |c| {
            let (x, y) = (c.rows(&[4, 2]), c.x(&[3, 2]));
            let both = c.push(op::Concat { axis: 0 }, &[y, x]);
            c.push(op::Slice { axis: 0, start: Dim::fixed(2), len: n() }, &[both])
        }),
        case("concat", |c| {
            let (x, y) = (c.x(&[2, 3]), c.x(&[2, 1]));
            c.push(op::Concat { axis: 1 }, &[x, y, x])
        }),
        case("pad", |c| {
            let x = c.x(&[2, 3]);
            c.push(op::Pad { lo: vec![1, 0], hi: vec![0, 2], value: Float(0.5) }, &[x])
        }),
        case("gather-rows", |c| {
            let (x, idx) = (c.x(&[4, 3]), c.ints("idx", &[2, 0, 2, -1, 3]));
            c.push(op::GatherRows, &[x, idx])
        }),
        case("scatter-rows adds", |c| {
            let (base, rows) = (c.x(&[3, 2]), c.x(&[4, 2]));
            let idx = c.ints("idx", &[1, 1, -1, 0]);
            c.push(op::ScatterRows { accumulate: true }, &[base, idx, rows])
        }),
        case("gather-last", |c| {
            let (x, idx) = (c.x(&[3, 5]), c.ints("idx", &[2, 0, 2, -1, 4, 4]));
            let idx = c.g.reshape(idx, shape(&[3, 2])).unwrap();
            c.push(op::GatherLast, &[x, idx])
        }),
        case("scatter-last", |c| {
            let (x, idx) = (c.x(&[2, 3]), c.ints("idx", &[1, 1, -1, 0, 3, 1]));
            let idx = c.g.reshape(idx, shape(&[2, 3])).unwrap();
            c.push(op::ScatterLast { count: Dim::fixed(4) }, &[x, idx])
        }),
        case("scatter-rows writes", |c| {
            let (base, rows) = (c.x(&[3, 2]), c.x(&[4, 2]));
            let idx = c.ints("idx", &[1, 1, -1, 0]);
            c.push(op::ScatterRows { accumulate: false }, &[base, idx, rows])
        }),
    ]
}

fn reductions() -> Vec<(&'static str, Build)> {
    use ReduceOp::*;
    let mut cases = Vec::new();
    for f in [Sum, Mean, Max, Min, Prod, LogSumExp] {
        for (dims, axes, keep) in [(&[2, 3, 2][..], vec![1], false), (&[2, 3, 2], vec![0, 2], true), (&[4], vec![0], false)] {
            cases.push(case("reduce", move |c| {
                let x = c.x(dims);
                c.g.reduce(f, x, &axes, keep).unwrap()
            }));
        }
        cases.push(case("reduce rows", move |c| {
            let x = c.rows(&[3, 2]);
            c.g.reduce(f, x, &[0], false).unwrap()
        }));
        // Segment 1 has no row and the fourth row has no segment.
        cases.push(case("segment-reduce", move |c| {
            let (x, segments) = (c.rows(&[5, 2]), c.tokens("segments", &[0, 0, 2, -1, 2]));
            let y = c.push(op::SegmentReduce { op: f, count: Dim::fixed(3) }, &[x, segments]);
            let used = c.push(op::Slice { axis: 0, start: Dim::fixed(0), len: Dim::fixed(1) }, &[y]);
            let last = c.push(op::Slice { axis: 0, start: Dim::fixed(2), len: Dim::fixed(1) }, &[y]);
            c.push(op::Concat { axis: 0 }, &[used, last])
        }));
    }
    for zeros in [[0.0, 1.3, -2.0], [0.0, 0.0, 1.5]] {
        cases.push(case("product of zeros", move |c| {
            let x = c.given(&[3], &zeros);
            c.g.reduce(Prod, x, &[0], false).unwrap()
        }));
    }
    cases.push(case("softmax", |c| {
        let x = c.x(&[2, 2, 5]);
        c.push(op::Softmax, &[x])
    }));
    cases
}

fn products() -> Vec<(&'static str, Build)> {
    let mut cases = Vec::new();
    for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
        let product = op::MatMul { transpose_a, transpose_b };
        for (lead_a, lead_b) in [(vec![], vec![]), (vec![2], vec![2]), (vec![2], vec![]), (vec![2, 2], vec![2, 2])] {
            let product = product.clone();
            let dims = move |lead: &[u64], (r, c): (u64, u64), flip| [lead, &if flip { [c, r] } else { [r, c] }].concat();
            cases.push(case("matmul", move |c| {
                let a = c.x(&dims(&lead_a, (2, 3), transpose_a));
                let b = c.x(&dims(&lead_b, (3, 4), transpose_b));
                c.push(product.clone(), &[a, b])
            }));
        }
    }
    for bias in [false, true] {
        for addend in [false, true] {
            cases.push(case("linear", move |c| {
                let (x, w) = (c.rows(&[3, 4]), c.weight(&[2, 4]));
                let mut inputs = vec![x, w];
                if bias {
                    inputs.push(c.weight(&[2]));
                }
                if addend {
                    inputs.push(c.rows(&[3, 2]));
                }
                c.push(op::Linear { alpha: Float(0.7), bias, activation: None, addend }, &inputs)
            }));
        }
    }
    cases.push(case("linear over more axes", |c| {
        let (x, w) = (c.x(&[2, 3, 4]), c.weight(&[5, 4]));
        c.g.linear(x, w).unwrap()
    }));
    let spec = |stride: &[u64], lo: &[u64], hi: &[u64], dilation: &[u64], groups| op::ConvSpec {
        stride: stride.to_vec(),
        pad_lo: lo.to_vec(),
        pad_hi: hi.to_vec(),
        dilation: dilation.to_vec(),
        groups,
    };
    let convolutions: [(op::ConvSpec, &'static [u64], &'static [u64]); 4] = [
        (spec(&[1], &[2], &[0], &[1], 2), &[1, 2, 5], &[2, 1, 3]),
        (spec(&[2], &[0], &[1], &[2], 1), &[2, 2, 6], &[3, 2, 2]),
        (spec(&[1, 1], &[1, 1], &[1, 1], &[1, 1], 1), &[1, 2, 3, 3], &[2, 2, 3, 2]),
        (spec(&[2, 1], &[0, 1], &[1, 0], &[1, 2], 2), &[2, 4, 4, 3], &[2, 2, 2, 2]),
    ];
    for (spec, images, filters) in convolutions {
        for bias in [false, true] {
            let spec = spec.clone();
            cases.push(case("conv", move |c| {
                let mut inputs = vec![c.x(images), c.weight(filters)];
                if bias {
                    inputs.push(c.weight(&filters[..1]));
                }
                c.push(op::Conv { spec: spec.clone(), bias }, &inputs)
            }));
        }
    }
    for trains in [true, false] {
        cases.push(case("grouped-linear", move |c| {
            let x = c.x(&[4, 3]);
            let w = if trains { c.weight(&[3, 2, 3]) } else { c.frozen(&[3, 2, 3]) };
            let experts = c.ints("experts", &[2, 0, 0, 2, -1, 0, 2, 2]);
            let experts = c.g.reshape(experts, shape(&[4, 2])).unwrap();
            c.push(op::GroupedLinear, &[x, w, experts])
        }));
    }
    cases.push(case("a mixture of experts", mixture));
    cases.push(case("linear of a vector", |c| {
        let (x, w) = (c.x(&[4]), c.weight(&[5, 4]));
        c.g.linear(x, w).unwrap()
    }));
    cases.push(case("linear, frozen", |c| {
        let (x, w, b) = (c.x(&[3, 4]), c.frozen(&[2, 4]), c.weight(&[2]));
        c.push(op::Linear { bias: true, ..op::Linear::plain() }, &[x, w, b])
    }));
    cases
}

/// Routing, two products by expert and the weighted sum, as models spell it.
fn mixture(c: &mut Case) -> NodeId {
    let (x, router) = (c.rows(&[5, 3]), c.weight(&[4, 3]));
    let logits = c.g.linear(x, router).unwrap();
    let p = c.push(op::Softmax, &[logits]);
    let chosen = c.push(op::TopK { k: 2 }, &[p]);
    let p = c.push(op::GatherLast, &[p, chosen]);
    let total = c.g.reduce(ReduceOp::Sum, p, &[1], true).unwrap();
    let p = c.g.div(p, total).unwrap();
    let (up, down) = (c.weight(&[4, 6, 3]), c.weight(&[4, 3, 6]));
    let h = c.push(op::GroupedLinear, &[x, up, chosen]);
    let h = c.g.unary(UnaryOp::Silu, h).unwrap();
    let pairs = n().mul(&Dim::fixed(2)).unwrap();
    let h = c.g.reshape(h, vec![pairs.clone(), Dim::fixed(6)].into()).unwrap();
    let own = c.g.reshape(chosen, vec![pairs, Dim::fixed(1)].into()).unwrap();
    let y = c.push(op::GroupedLinear, &[h, down, own]);
    let y = c.g.reshape(y, vec![n(), Dim::fixed(2), Dim::fixed(3)].into()).unwrap();
    let p = c.g.reshape(p, vec![n(), Dim::fixed(2), Dim::fixed(1)].into()).unwrap();
    let y = c.g.mul(y, p).unwrap();
    c.g.reduce(ReduceOp::Sum, y, &[1], false).unwrap()
}

fn layers() -> Vec<(&'static str, Build)> {
    let mut cases = Vec::new();
    for (weight, unit_offset) in [(false, false), (true, false), (true, true)] {
        cases.push(case("rms-norm", move |c| {
            let x = c.rows(&[3, 4]);
            let inputs = if weight { vec![x, c.weight(&[4])] } else { vec![x] };
            c.push(op::RmsNorm { eps: Float(1e-5), unit_offset, weight }, &inputs)
        }));
    }
    cases.push(case("rms-norm of heads", |c| {
        let (x, w) = (c.x(&[2, 3, 4]), c.weight(&[4]));
        c.push(op::RmsNorm { eps: Float(1e-2), unit_offset: false, weight: true }, &[x, w])
    }));
    for layout in [op::RopeLayout::Halves, op::RopeLayout::Interleaved] {
        for inverse in [false, true] {
            cases.push(case("rope", move |c| {
                let (x, at) = (c.rows(&[3, 2, 6]), c.tokens("positions", &[0, 5, 2]));
                let inv_freq = [Float(1.0), Float(0.1)].into();
                c.push(op::Rope { inv_freq, layout, attn_scale: Float(1.2), inverse, sections: [].into() }, &[x, at])
            }));
            cases.push(case("rope in sections", move |c| {
                let x = c.x(&[3, 2, 8]);
                let at = c.ints("positions", &[0, 5, 2, 1, 0, 3]);
                let at = c.g.reshape(at, shape(&[2, 3])).unwrap();
                let (inv_freq, sections) = ([Float(1.0), Float(0.3), Float(0.1)].into(), [1, 1, 1].into());
                c.push(op::Rope { inv_freq, layout, attn_scale: Float(1.2), inverse, sections }, &[x, at])
            }));
        }
    }
    for gate in op::Gate::ALL {
        cases.push(case("glu", move |c| {
            let (x, up) = (c.x(&[2, 3]), c.x(&[2, 3]));
            c.push(op::Glu(gate), &[x, up])
        }));
    }
    cases.push(case("glu, one side", |c| {
        let (gate, up) = (c.frozen(&[2, 3]), c.x(&[2, 3]));
        let gate = c.push(op::Read, &[gate]);
        c.push(op::Glu(op::Gate::Silu), &[gate, up])
    }));
    cases.push(case("embed", |c| {
        let (w, ids) = (c.weight(&[4, 3]), c.tokens("ids", &[1, 3, 1]));
        c.push(op::Embed, &[w, ids])
    }));
    cases.push(case("dropout", |c| {
        let (x, key) = (c.x(&[4, 5]), c.ints("rng", &[3, 9]));
        c.push(op::Dropout { rate: Float(0.4), stream: 2 }, &[x, key])
    }));
    cases
}

fn attention() -> Vec<(&'static str, Build)> {
    let mut cases = Vec::new();
    for (softcap, causal, window) in [
        (None, true, None),
        (None, false, None),
        (Some(Float(0.8)), true, None),
        (None, true, Some(2)),
        (Some(Float(1.5)), false, Some(2)),
    ] {
        for (heads, kv) in [(2, 2), (4, 2), (2, 1)] {
            let spec = op::AttentionSpec { softcap, causal, window, ..op::AttentionSpec::causal(0.6) };
            cases.push(case("attention", move |c| {
                let (q, k, v) = (c.rows(&[6, heads, 2]), c.rows(&[6, kv, 2]), c.rows(&[6, kv, 2]));
                let segments = c.tokens("segments", &[0, 0, 0, 0, 1, 1]);
                c.push(op::Attention { spec: spec.clone() }, &[q, k, v, segments])
            }));
        }
    }
    let spec = op::AttentionSpec::causal(0.6);
    for (spec, value_dim) in [
        (op::AttentionSpec { chunk: Some(2), ..spec.clone() }, 2),
        (op::AttentionSpec { chunk: Some(3), causal: false, ..spec.clone() }, 3),
        (op::AttentionSpec { window: Some(1), pinned: 1, ..spec.clone() }, 1),
        (op::AttentionSpec { sinks: true, ..spec.clone() }, 2),
        (op::AttentionSpec { sinks: true, bias: true, softcap: Some(Float(1.5)), causal: false, ..spec.clone() }, 3),
        (op::AttentionSpec { bias: true, window: Some(2), ..spec }, 2),
    ] {
        cases.push(case("attention", move |c| {
            let mut inputs = vec![c.x(&[6, 4, 2]), c.x(&[6, 2, 2]), c.x(&[6, 2, value_dim])];
            inputs.push(c.ints("segments", &[0, 0, 0, 0, 1, 1]));
            if spec.sinks {
                inputs.push(c.x(&[4]));
            }
            if spec.bias {
                inputs.push(c.x(&[4, 6, 6]));
            }
            c.push(op::Attention { spec: spec.clone() }, &inputs)
        }));
    }
    cases.push(case("attention, values only", |c| {
        let (q, v) = (c.frozen(&[3, 1, 2]), c.x(&[3, 1, 2]));
        let q = c.push(op::Read, &[q]);
        let segments = c.ints("segments", &[0, 0, 0]);
        let spec = op::AttentionSpec::causal(1.0);
        c.push(op::Attention { spec }, &[q, q, v, segments])
    }));
    cases
}

fn losses() -> Vec<(&'static str, Build)> {
    let mut cases = Vec::new();
    for (label_smoothing, z_loss, softcap, temperature) in [
        (0.0, 0.0, None, 1.0),
        (0.1, 0.0, None, 1.0),
        (0.0, 0.01, None, 1.0),
        (0.0, 0.0, Some(2.0), 1.0),
        (0.1, 0.02, Some(1.5), 0.7),
    ] {
        let spec = op::CrossEntropySpec {
            label_smoothing: Float(label_smoothing),
            z_loss: Float(z_loss),
            softcap: softcap.map(Float),
            temperature: Float(temperature),
        };
        for (x_trains, w_trains, unit_grad) in
            [(true, true, false), (true, false, false), (true, false, true), (false, true, false)]
        {
            let spec = spec.clone();
            cases.push(case("linear-cross-entropy", move |c| {
                let x = if x_trains {
                    c.rows(&[4, 3])
                } else {
                    c.tokens("order", &[0, 1, 2, 3]);
                    let x = c.frozen(&[4, 3]);
                    let x = c.push(op::Read, &[x]);
                    let order = c.g.input("order", Type::new(DType::S32, vec![n()])).unwrap();
                    c.push(op::GatherRows, &[x, order])
                };
                let w = if w_trains { c.weight(&[5, 3]) } else { c.frozen(&[5, 3]) };
                let targets = c.tokens("targets", &[4, -100, 0, 2]);
                c.push(op::LinearCrossEntropy { spec: spec.clone(), unit_grad }, &[x, w, targets])
            }));
        }
    }
    let bends = [(None, 1.0), (Some(Float(1.5)), 0.7)].map(|(softcap, t)| op::Bend { softcap, temperature: Float(t) });
    for (bend, w_trains) in bends.iter().flat_map(|bend| [(bend.clone(), false), (bend.clone(), true)]) {
        for statistic in [op::Statistic::Entropy, op::Statistic::Mean] {
            let bend = bend.clone();
            cases.push(case("linear-statistic", move |c| {
                let x = c.rows(&[4, 3]);
                let w = if w_trains { c.weight(&[5, 3]) } else { c.frozen(&[5, 3]) };
                c.push(op::LinearStatistic { statistic, bend: bend.clone() }, &[x, w])
            }));
        }
        for alpha in [0.0, 0.3, 1.0] {
            let op = op::LinearDivergence { alpha: Float(alpha), bends: [bend.clone(), bends[0].clone()] };
            cases.push(case("linear-divergence", move |c| {
                let (x, y) = (c.rows(&[4, 3]), c.rows(&[4, 2]));
                let w = if w_trains { c.weight(&[5, 3]) } else { c.frozen(&[5, 3]) };
                let v = c.weight(&[5, 2]);
                c.push(op.clone(), &[x, w, y, v])
            }));
        }
    }
    cases
}
