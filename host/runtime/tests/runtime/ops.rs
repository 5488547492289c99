//! Every op alone, plain and optimized, on every instruction set and one or two threads.

use swift_graph::op::*;
use swift_graph::{DType, Dim, Float, NodeId, Shape, Target, Type};
use swift_runtime::Format;

use crate::case::{Case, N, dims, n, rows};

#[test]
fn unary() {
    use UnaryOp::*;
    let mut c = Case::new();
    let x = c.x_in(rows(&[9]), -3.0, 3.0);
    for f in [Neg, Abs, Exp, Expm1, Sin, Cos, Tanh, Sigmoid, Silu, GeluErf, GeluTanh, Relu, Softplus, LogSigmoid, Erf, Floor] {
        c.all(Unary(f), &[x]);
    }
    c.all(Unary(Sign), &[x]);
    c.all(Unary(Round), &[x]);
    let positive = c.x_in(dims(&[3, 5]), 0.1, 4.0);
    for f in [Log, Log1p, Sqrt, Rsqrt, Recip] {
        c.all(Unary(f), &[positive]);
    }
    let zero = c.g.scalar(0.0, DType::F32).unwrap();
    let above = c.all(Binary(BinaryOp::Gt), &[x, zero]);
    c.all(Unary(LogicalNot), &[above]);
    c.check();
}

#[test]
fn binary_and_every_broadcast() {
    use BinaryOp::*;
    let mut c = Case::new();
    let (a, b) = (c.x_in(rows(&[6]), 0.2, 2.0), c.x_in(rows(&[6]), 0.3, 2.0));
    for f in [Add, Sub, Mul, Div, Pow, Min, Max, Rem, Eq, Ne, Lt, Le, Gt, Ge] {
        c.all(Binary(f), &[a, b]);
    }
    let (p, q) = (c.g.binary(Lt, a, b).unwrap(), c.g.binary(Ge, a, a).unwrap());
    c.all(Binary(LogicalAnd), &[p, q]);
    c.all(Binary(LogicalOr), &[p, q]);
    let cube = c.x(rows(&[4, 6]));
    let others: [&[u64]; 5] = [&[6], &[4, 6], &[4, 1], &[1, 6], &[]];
    for shape in others {
        let other = c.x(dims(shape));
        c.all(Binary(Mul), &[cube, other]);
        c.all(Binary(Sub), &[other, cube]);
    }
    // Neither rows nor columns: expanded first.
    let odd = c.x(rows(&[1, 6]));
    c.all(Binary(Add), &[cube, odd]);
    let (column, row) = (c.x(rows(&[1])), c.x(dims(&[1, 5])));
    c.all(Binary(Add), &[column, row]);
    c.check();
}

#[test]
fn whole_numbers_select_and_cast() {
    let mut c = Case::new();
    let a = c.i(rows(&[]), (0..N as i32).map(|i| i * 7 - 100).collect());
    let b = c.i(rows(&[]), (0..N as i32).map(|i| i % 5 + 1).collect());
    for f in [BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div, BinaryOp::Rem, BinaryOp::Max, BinaryOp::Lt] {
        c.all(Binary(f), &[a, b]);
    }
    c.all(Unary(UnaryOp::Neg), &[a]);
    c.all(Unary(UnaryOp::Abs), &[a]);
    let x = c.x_in(rows(&[]), -9.0, 9.0);
    let positive = c.g.binary(BinaryOp::Gt, a, b).unwrap();
    c.all(Select, &[positive, a, b]);
    let float = c.all(Cast(DType::F32), &[a]);
    c.all(Select, &[positive, x, float]);
    c.all(Cast(DType::S32), &[x]);
    c.all(Cast(DType::Bool), &[a]);
    c.all(Cast(DType::F32), &[positive]);
    c.all(Cast(DType::S32), &[positive]);
    let zero = c.g.scalar(0.0, DType::F32).unwrap();
    let wide = c.x(rows(&[3]));
    let flag = c.g.binary(BinaryOp::Lt, wide, zero).unwrap();
    c.all(Select, &[flag, wide, zero]);
    c.check();
}

#[test]
fn leaves() {
    let mut c = Case::new();
    let data: Vec<f32> = (0..6).map(|i| i as f32 / 3.0).collect();
    let float = Constant { dtype: DType::F32, shape: vec![2, 3], data: ConstantData::Float(data.into()) };
    let int = Constant { dtype: DType::S32, shape: vec![3], data: ConstantData::Int(vec![4, -5, 6].into()) };
    let bools = Constant { dtype: DType::Bool, shape: vec![3], data: ConstantData::Int(vec![1, 0, 1].into()) };
    let (float, int, bools) = (c.all(float, &[]), c.all(int, &[]), c.all(bools, &[]));
    let casted = c.g.cast(int, DType::F32).unwrap();
    c.all(Select, &[bools, float, casted]);
    for shape in [rows(&[3]), dims(&[2, 3])] {
        c.all(Full { ty: Type::f32(shape.clone()), value: Float(2.5) }, &[]);
        c.all(Full { ty: Type::new(DType::S32, shape.clone()), value: Float(-3.0) }, &[]);
        for axis in 0..2 {
            c.all(Iota { ty: Type::new(DType::S32, shape.clone()), axis }, &[]);
            c.all(Iota { ty: Type::f32(shape.clone()), axis }, &[]);
        }
    }
    c.check();
}

#[test]
fn fused_programs() {
    let mut c = Case::new();
    let shape: Shape = rows(&[40]).into();
    let (x, y) = (c.x(shape.clone()), c.x(shape.clone()));
    let (row, col, one) = (c.x(rows(&[])), c.x(dims(&[40])), c.x(dims(&[])));
    let program = Fused {
        shape,
        col_axes: 1,
        instrs: vec![
            Instr::Load(0),
            Instr::Load(1),
            Instr::Load(2),
            Instr::Load(3),
            Instr::Load(4),
            Instr::Binary(BinaryOp::Mul, 0, 2),
            Instr::Binary(BinaryOp::Add, 5, 3),
            Instr::Unary(UnaryOp::Silu, 6),
            Instr::Const(Float(0.25)),
            Instr::Binary(BinaryOp::Gt, 1, 8),
            Instr::Select(9, 7, 4),
        ],
        spans: vec![Span::Full, Span::Full, Span::Row, Span::Col, Span::Scalar],
        outputs: vec![(10, DType::F32), (9, DType::Bool), (6, DType::F32)],
    };
    c.all(program, &[x, y, row, col, one]);
    c.check();
}

#[test]
fn chains_run_in_place() {
    let mut c = Case::new();
    let x = c.x(rows(&[33]));
    let mut y = c.g.scale(x, 1.5).unwrap();
    for f in [UnaryOp::Tanh, UnaryOp::Silu, UnaryOp::Exp] {
        y = c.g.unary(f, y).unwrap();
    }
    let z = c.g.mul(y, y).unwrap();
    let gate = c.g.sub(z, x).unwrap();
    let up = c.g.unary(UnaryOp::Sin, gate).unwrap();
    let h = c.g.push(Glu(Gate::Silu), &[gate, up]).unwrap();
    let h = c.g.push(Glu(Gate::Silu), &[h, h]).unwrap();
    let key = c.i(dims(&[2]), vec![3, 4]);
    let h = c.g.push(Dropout { rate: Float(0.3), stream: 5 }, &[h, key]).unwrap();
    c.all(Unary(UnaryOp::Abs), &[h]);
    c.check();
}

#[test]
fn movement() {
    let mut c = Case::new();
    let x = c.x(rows(&[3, 5]));
    for axes in [[0, 1, 2], [1, 0, 2], [2, 1, 0], [1, 2, 0]] {
        c.all(Permute { axes: axes.to_vec() }, &[x]);
    }
    c.all(Reshape { to: rows(&[15]).into() }, &[x]);
    c.all(StopGrad, &[x]);
    let small = c.x(rows(&[1, 5]));
    c.all(Expand { to: rows(&[3, 5]).into() }, &[small]);
    c.all(Expand { to: vec![Dim::fixed(2), n(), Dim::fixed(4), Dim::fixed(5)].into() }, &[small]);
    c.all(Slice { axis: 1, start: Dim::fixed(1), len: Dim::fixed(2) }, &[x]);
    c.all(Slice { axis: 2, start: Dim::fixed(4), len: Dim::fixed(1) }, &[x]);
    for axis in 1..3 {
        c.all(Concat { axis }, &[x, x, x]);
    }
    let other = c.x(dims(&[4, 3, 5]));
    c.all(Concat { axis: 0 }, &[x, other]);
    c.all(Pad { lo: vec![1, 0, 2], hi: vec![0, 2, 3], value: Float(-1.5) }, &[x]);
    let ids = c.i(rows(&[]), (0..N as i32).collect());
    c.all(Pad { lo: vec![2], hi: vec![1], value: Float(-7.0) }, &[ids]);
    c.check();
}

#[test]
fn reductions() {
    use ReduceOp::*;
    let mut c = Case::new();
    let x = c.x_in(rows(&[3, 5]), 0.5, 1.5);
    for op in [Sum, Mean, Max, Min, Prod, LogSumExp] {
        for axes in [vec![], vec![0], vec![1], vec![2], vec![0, 1], vec![1, 2], vec![0, 2], vec![0, 1, 2]] {
            c.all(Reduce { op, axes: axes.clone(), keep: axes.len() == 2 }, &[x]);
        }
    }
    let flat = c.x(dims(&[4, 1, 3]));
    c.all(Reduce { op: Sum, axes: vec![0, 2], keep: false }, &[flat]);
    let y = c.all(Softmax, &[x]);
    let d = c.x(rows(&[3, 5]));
    c.all(SoftmaxDx, &[y, d]);
    c.tolerance = 1e-4;
    c.check();
}

#[test]
fn segments_and_rows_by_index() {
    use ReduceOp::*;
    let mut c = Case::new();
    let x = c.x(rows(&[2, 3]));
    let segments = c.i(rows(&[]), (0..N as i32).map(|i| i % 5 - 1).collect());
    for op in [Sum, Mean, Max, Min, Prod, LogSumExp] {
        c.all(SegmentReduce { op, count: Dim::fixed(6) }, &[x, segments]);
    }
    let idx = c.i(dims(&[5]), vec![0, 36, -1, 5, 5]);
    c.all(GatherRows, &[x, idx]);
    let added = c.x(dims(&[5, 2, 3]));
    for accumulate in [false, true] {
        c.all(ScatterRows { accumulate }, &[x, idx, added]);
        let fresh = c.g.scale(x, 2.0).unwrap();
        c.all(ScatterRows { accumulate }, &[fresh, idx, added]);
    }
    c.check();
}

#[test]
fn the_largest_and_elements_by_index() {
    let mut c = Case::new();
    let x = c.x(rows(&[3, 9]));
    for k in [1, 2, 9] {
        let chosen = c.all(TopK { k }, &[x]);
        let values = c.all(GatherLast, &[x, chosen]);
        c.all(ScatterLast { count: Dim::fixed(9) }, &[values, chosen]);
    }
    let places = c.i(rows(&[4]), (0..4 * N as i32).map(|i| i * 5 % 7 - 1).collect());
    let (flat, wide) = (c.x(rows(&[6])), c.x(rows(&[4])));
    c.all(GatherLast, &[flat, places]);
    c.all(ScatterLast { count: Dim::fixed(6) }, &[wide, places]);
    let whole = c.i(rows(&[6]), (0..6 * N as i32).collect());
    c.all(GatherLast, &[whole, places]);
    // A vector is one row.
    let line = c.x(rows(&[]));
    c.all(TopK { k: 5 }, &[line]);
    c.check();
}

#[test]
fn norms() {
    for (unit_offset, weight) in [(false, false), (false, true), (true, true)] {
        let mut c = Case::new();
        let x = c.x(rows(&[3, 17]));
        let d_y = c.x(rows(&[3, 17]));
        let w = c.w(&[17], Format::F16);
        let with = |a: NodeId, rest: &[NodeId]| -> Vec<NodeId> {
            std::iter::once(a).chain(weight.then_some(w)).chain(rest.iter().copied()).collect()
        };
        let y = c.all(RmsNorm { eps: Float(1e-5), unit_offset, weight }, &with(x, &[]));
        let inv_rms = c.g.part(y, 1).unwrap();
        c.all(RmsNormDx { unit_offset, weight }, &with(x, &[inv_rms, d_y]));
        c.all(RmsNormDw, &[x, inv_rms, d_y]);
        c.check();
    }
}

#[test]
fn rotations() {
    for layout in [RopeLayout::Halves, RopeLayout::Interleaved] {
        let mut c = Case::new();
        let x = c.x(rows(&[3, 12]));
        let positions = c.i(rows(&[]), (0..N as i32).map(|i| i * 3).collect());
        let inv_freq = [1.0f32, 0.3, 0.05, 0.001].map(Float::from).to_vec().into();
        let rope = |inverse| {
            let (inv_freq, sections) = (std::sync::Arc::clone(&inv_freq), [].into());
            Rope { inv_freq, layout, attn_scale: Float(1.25), inverse, sections }
        };
        let places = c.i([dims(&[3]), rows(&[])].concat(), (0..3 * N as i32).map(|i| i * 7 % 50).collect());
        for sections in [vec![1, 1, 2], vec![1, 1, 1, 1], vec![3, 1]] {
            c.all(Rope { sections: sections.into(), ..rope(false) }, &[x, places]);
        }
        let turned = c.all(rope(false), &[x, positions]);
        c.all(rope(true), &[turned, positions]);
        let fresh = c.g.scale(x, 2.0).unwrap();
        let turned = c.g.push(rope(false), &[fresh, positions]).unwrap();
        c.all(rope(true), &[turned, positions]);
        c.check();
    }
}

fn attention_specs() -> [AttentionSpec; 7] {
    let plain = AttentionSpec::causal(0.4);
    [
        plain.clone(),
        AttentionSpec { window: Some(5), softcap: Some(Float(2.0)), ..plain.clone() },
        AttentionSpec { window: Some(3), pinned: 2, sinks: true, ..plain.clone() },
        AttentionSpec { chunk: Some(4), ..plain.clone() },
        AttentionSpec { causal: false, sinks: true, bias: true, ..plain.clone() },
        AttentionSpec { bias: true, ..plain.clone() },
        AttentionSpec { causal: false, ..plain },
    ]
}

#[test]
fn attention() {
    for (i, spec) in attention_specs().into_iter().enumerate() {
        let mut c = Case::new();
        let value_dim = 8 - i as u64;
        let (q, k, v) = (c.x(rows(&[4, 8])), c.x(rows(&[2, 8])), c.x(rows(&[2, value_dim])));
        let segments = c.i(rows(&[]), (0..N as i32).map(|i| i / 15).collect());
        let sinks = spec.sinks.then(|| c.x(dims(&[4])));
        let bias = spec.bias.then(|| c.x(vec![Dim::fixed(4), n(), n()]));
        let more = || sinks.into_iter().chain(bias);
        let inputs: Vec<NodeId> = [q, k, v, segments].into_iter().chain(more()).collect();
        let o = c.all(Attention { spec: spec.clone() }, &inputs);
        let lse = c.g.part(o, 1).unwrap();
        let d_o = c.x(rows(&[4, value_dim]));
        let inputs: Vec<NodeId> = [q, k, v, segments, o, lse, d_o].into_iter().chain(more()).collect();
        c.all(AttentionBackward { spec }, &inputs);
        c.tolerance = 1e-4;
        c.check();
    }
}

#[test]
fn attention_over_a_cache() {
    for (i, spec) in attention_specs().into_iter().filter(|s| s.causal && !s.bias).enumerate() {
        for (dtype, tolerance) in [(DType::F32, 3e-5), (DType::F16, 2e-3), (DType::S8, 2e-2)] {
            let mut c = Case::new();
            let value_dim = 8 - i as u64;
            let mut state = |name, size| {
                let shape = CachedAttention::cache_shape(Dim::fixed(2), Dim::fixed(size));
                c.g.declare_state(name, Type::f32(shape)).unwrap()
            };
            let (k_cache, v_cache) = (state("cache.k", 8), state("cache.v", value_dim));
            let (q, k, v) = (c.x(rows(&[4, 8])), c.x(rows(&[2, 8])), c.x(rows(&[2, value_dim])));
            // Sequences 2 and 0 get the tokens 60..76 and 0..20, sequence 1 token 19.
            let place = |i: i32| {
                if i < 16 {
                    (2, 60 + i)
                } else if i < 36 {
                    (0, i - 16)
                } else {
                    (1, 19)
                }
            };
            let slots = c.i(rows(&[]), (0..N as i32).map(|i| place(i).0).collect());
            let positions = c.i(rows(&[]), (0..N as i32).map(|i| place(i).1).collect());
            let pages = c.i(CachedAttention::table().shape, vec![3, -1, 0, -1, 4, 1]);
            let sinks = spec.sinks.then(|| c.x(dims(&[4])));
            let inputs: Vec<NodeId> = [q, k, v, slots, positions, pages].into_iter().chain(sinks).collect();
            c.all(CachedAttention { spec: spec.clone(), k_cache, v_cache }, &inputs);
            c.g.set_cache_dtype(dtype).unwrap();
            c.tolerance = tolerance;
            c.check();
        }
    }
}

#[test]
fn glu() {
    for f in Gate::ALL {
        let mut c = Case::new();
        let (gate, up, d) = (c.x_in(rows(&[70]), -4.0, 4.0), c.x(rows(&[70])), c.x(rows(&[70])));
        c.all(Glu(f), &[gate, up]);
        c.all(GluBackward(f), &[gate, up, d]);
        // Inputs that die here: the outputs lie over them.
        let (a, b) = (c.g.scale(gate, 0.5).unwrap(), c.g.scale(up, 0.5).unwrap());
        c.all(GluBackward(f), &[a, b, d]);
        let a = c.g.scale(gate, 0.25).unwrap();
        c.all(GluBackward(f), &[a, up, d]);
        let b = c.g.scale(up, 0.25).unwrap();
        c.all(Glu(f), &[gate, b]);
        c.check();
    }
}

#[test]
fn distributions_of_heads() {
    let bends = [(None, 1.0), (Some(Float(3.0)), 0.7)].map(|(softcap, t)| Bend { softcap, temperature: Float(t) });
    for (format, bend) in [(Format::F32, &bends[0]), (Format::Q8_0, &bends[1])] {
        let mut c = Case::new();
        let (x, y) = (c.x(rows(&[32])), c.x(rows(&[64])));
        let (w, v) = (c.w(&[50, 32], format), c.w(&[50, 64], Format::F32));
        let d = c.x(rows(&[]));
        for statistic in [Statistic::Entropy, Statistic::Mean] {
            let forward = LinearStatistic { statistic, bend: bend.clone() };
            let value = c.all(forward.clone(), &[x, w]);
            let lse = c.g.part(value, 1).unwrap();
            for weight_grad in [false, true] {
                let op = LinearStatisticBackward { forward: forward.clone(), weight_grad };
                c.all(op, &[x, w, value, lse, d]);
            }
        }
        for alpha in [0.0, 0.4, 1.0] {
            let forward = LinearDivergence { alpha: Float(alpha), bends: [bend.clone(), bends[0].clone()] };
            let value = c.all(forward.clone(), &[x, w, y, v]);
            let [lse_p, lse_q, share] = [1, 2, 3].map(|part| c.g.part(value, part).unwrap());
            for weight_grad in [false, true] {
                let op = LinearDivergenceBackward { forward: forward.clone(), weight_grad };
                c.all(op, &[x, w, y, v, lse_p, lse_q, share, d]);
            }
        }
        c.tolerance = 1e-4;
        c.check();
    }
}

#[test]
fn cross_entropy() {
    for format in [Format::F32, Format::Q8_0] {
        for (softcap, smoothing, z_loss, temperature) in [(None, 0.0, 0.0, 1.0), (Some(Float(3.0)), 0.1, 1e-2, 0.7)] {
            let spec = CrossEntropySpec {
                label_smoothing: Float(smoothing),
                z_loss: Float(z_loss),
                softcap,
                temperature: Float(temperature),
            };
            let mut c = Case::new();
            let x = c.x(rows(&[32]));
            let w = c.w(&[50, 32], format);
            let targets = c.i(rows(&[]), (0..N as i32).map(|i| if i % 4 == 0 { -100 } else { i % 50 }).collect());
            let loss = c.all(LinearCrossEntropy { spec: spec.clone(), unit_grad: true }, &[x, w, targets]);
            c.all(LinearCrossEntropy { spec: spec.clone(), unit_grad: false }, &[x, w, targets]);
            let lse = c.g.part(loss, 1).unwrap();
            let d_loss = c.x(rows(&[]));
            for weight_grad in [false, true] {
                c.all(LinearCrossEntropyBackward { spec: spec.clone(), weight_grad }, &[x, w, targets, lse, d_loss]);
            }
            c.tolerance = 1e-4;
            c.check();
        }
    }
}

#[test]
fn unread_outputs_go_to_scratch() {
    let mut c = Case::new();
    let x = c.x(rows(&[16]));
    let y = c.g.push(RmsNorm { eps: Float(1e-5), unit_offset: false, weight: false }, &[x]).unwrap();
    let up = c.x(rows(&[16]));
    let d_gate = c.g.push(GluBackward(Gate::Silu), &[y, up, x]).unwrap();
    let d_up = c.g.part(d_gate, 1).unwrap();
    c.out(d_up);
    c.check();
}

#[test]
fn dropout_keeps_its_share() {
    let mut c = Case::new();
    let x = c.x(rows(&[501]));
    let key = c.i(dims(&[2]), vec![-3, 17]);
    c.all(Dropout { rate: Float(0.25), stream: 2 }, &[x, key]);
    c.check();
}

#[test]
fn effects_write_accumulate_and_keep_old_values() {
    let mut c = Case::new();
    let x = c.x(dims(&[5, 8]));
    let sum = c.state("sum", dims(&[5, 8]));
    let slot = c.state("slot", dims(&[5, 8]));
    let fresh = c.g.declare_state("fresh", Type::f32(dims(&[5, 8]))).unwrap();
    let (w, w_node) = c.param("w", &[5, 8], Format::F16, true);
    let (m, weight) = (c.g.read_state(slot).unwrap(), c.g.push(Read, &[w_node]).unwrap());
    let decayed = c.g.scale(m, 0.9).unwrap();
    let moved = c.g.add(decayed, x).unwrap();
    let step = c.g.scale(moved, 0.1).unwrap();
    let updated = c.g.sub(weight, step).unwrap();
    c.out(m);
    c.out(weight);
    c.g.write(Target::State(slot), moved, false).unwrap();
    c.g.write(Target::Param(w), updated, false).unwrap();
    c.g.write(Target::State(sum), step, true).unwrap();
    c.g.write(Target::State(fresh), x, true).unwrap();
    c.check();
}
