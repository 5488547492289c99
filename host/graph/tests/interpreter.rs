//! The interpreter against independent spellings of the composites, and its own promises.

use swift_graph::interp::{self, Env, Tensor};
use swift_graph::op::{self, BinaryOp, ReduceOp, UnaryOp};
use swift_graph::{DType, Float, Graph, NodeId, ParamInfo, Shape, Target, Type};

struct Bench {
    g: Graph,
    env: Env,
    drawn: u64,
}

impl Bench {
    fn new() -> Bench {
        Bench { g: Graph::default(), env: Env { refuse_nan: true, ..Env::default() }, drawn: 0 }
    }

    fn input(&mut self, name: &str, dtype: DType, shape: &[u64], data: Vec<f64>) -> NodeId {
        let sizes = shape.iter().map(|&d| d as usize).collect();
        self.env.inputs.insert(name.into(), Tensor::new(sizes, data));
        self.g.input(name, Type::new(dtype, Shape::fixed(shape))).unwrap()
    }

    fn x(&mut self, name: &str, shape: &[u64]) -> NodeId {
        let data = (0..shape.iter().product::<u64>()).map(|_| {
            self.drawn += 1;
            f64::from(swift_graph::philox::word([1, 2], 0, self.drawn)) / 2f64.powi(31) - 1.0
        });
        let data = data.collect();
        self.input(name, DType::F32, shape, data)
    }

    fn ints(&mut self, name: &str, values: &[i64]) -> NodeId {
        self.input(name, DType::S32, &[values.len() as u64], values.iter().map(|&v| v as f64).collect())
    }

    fn run(&self) -> interp::Values {
        interp::run(&self.g, &self.env).unwrap()
    }
}

#[track_caller]
fn close(a: &Tensor, b: &Tensor) {
    assert_eq!(a.shape, b.shape);
    for (a, b) in a.data.iter().zip(&b.data) {
        assert!((a - b).abs() <= 1e-12 * (1.0 + b.abs()), "{a} against {b}");
    }
}

/// Attention spelled with matmul, a mask and softmax.
#[test]
fn attention_is_masked_softmax() {
    let segments = [0, 0, 0, 4, 4, 0];
    let run_of: [usize; 6] = [0, 0, 0, 3, 3, 5];
    let plain = op::AttentionSpec::causal(0.9);
    for spec in [
        plain.clone(),
        op::AttentionSpec { causal: false, softcap: Some(Float(0.7)), ..plain.clone() },
        op::AttentionSpec { window: Some(2), ..plain.clone() },
        op::AttentionSpec { window: Some(1), pinned: 1, ..plain.clone() },
        op::AttentionSpec { causal: false, window: Some(2), ..plain.clone() },
        op::AttentionSpec { chunk: Some(2), ..plain.clone() },
        op::AttentionSpec { causal: false, chunk: Some(2), pinned: 1, ..plain.clone() },
        op::AttentionSpec { causal: false, sinks: true, softcap: Some(Float(0.7)), bias: true, ..plain.clone() },
        op::AttentionSpec { sinks: true, ..plain },
    ] {
        let mut b = Bench::new();
        let (q, k, v) = (b.x("q", &[6, 4, 2]), b.x("k", &[6, 2, 2]), b.x("v", &[6, 2, 3]));
        let seg = b.ints("segments", &segments);
        let (sinks, bias) = (b.x("sinks", &[4]), b.x("bias", &[4, 6, 6]));
        let more = [sinks, bias].into_iter().zip([spec.sinks, spec.bias]).filter(|(_, there)| *there).map(|(id, _)| id);
        let inputs: Vec<NodeId> = [q, k, v, seg].into_iter().chain(more).collect();
        let fast = b.g.push(op::Attention { spec: spec.clone() }, &inputs).unwrap();
        // Key heads are repeated for their group of query heads.
        let heads = b.ints("heads", &[0, 0, 1, 1]);
        let spread = |g: &mut Graph, x| {
            let x = g.push(op::Permute { axes: vec![1, 0, 2] }, &[x]).unwrap();
            g.push(op::GatherRows, &[x, heads]).unwrap()
        };
        let (k, v) = (spread(&mut b.g, k), spread(&mut b.g, v));
        let q = b.g.push(op::Permute { axes: vec![1, 0, 2] }, &[q]).unwrap();
        let scores = b.g.push(op::MatMul { transpose_a: false, transpose_b: true }, &[q, k]).unwrap();
        let mut scores = b.g.scale(scores, 0.9).unwrap();
        if let Some(cap) = spec.softcap {
            scores = b.g.scale(scores, 1.0 / cap.0).unwrap();
            scores = b.g.unary(UnaryOp::Tanh, scores).unwrap();
            scores = b.g.scale(scores, cap.0).unwrap();
        }
        if spec.bias {
            scores = b.g.add(scores, bias).unwrap();
        }
        let mask = Tensor::from_index(vec![6, 6], |at| {
            let (i, j) = (at[0], at[1]);
            let near = spec.window.is_none_or(|w| i.abs_diff(j) < w as usize);
            let block = |i: usize| spec.chunk.map(|c| (i - run_of[i]) / c as usize);
            let seen = (near && block(i) == block(j)) || (j < i && j - run_of[j] < spec.pinned as usize);
            if run_of[i] == run_of[j] && (!spec.causal || j <= i) && seen { 0.0 } else { f64::NEG_INFINITY }
        });
        let mask = b.input("mask", DType::F32, &[6, 6], mask.data);
        let mut masked = b.g.add(scores, mask).unwrap();
        let mut values = v;
        if spec.sinks {
            // One more column of scores, and one more value of zero.
            let column = b.g.reshape(sinks, Shape::fixed(&[4, 1, 1])).unwrap();
            let column = b.g.push(op::Expand { to: Shape::fixed(&[4, 6, 1]) }, &[column]).unwrap();
            masked = b.g.push(op::Concat { axis: 2 }, &[masked, column]).unwrap();
            let zero = b.input("zero", DType::F32, &[4, 1, 3], vec![0.0; 12]);
            values = b.g.push(op::Concat { axis: 1 }, &[v, zero]).unwrap();
        }
        let lse = b.g.reduce(ReduceOp::LogSumExp, masked, &[2], false).unwrap();
        let p = b.g.push(op::Softmax, &[masked]).unwrap();
        let o = b.g.push(op::MatMul { transpose_a: false, transpose_b: false }, &[p, values]).unwrap();
        let o = b.g.push(op::Permute { axes: vec![1, 0, 2] }, &[o]).unwrap();
        let values = b.run();
        close(values.of(fast), values.of(o));
        close(&values.all_of(fast)[1], values.of(lse));
    }
}

/// A prefill and single steps over a cache give what attention over the whole sequence gives.
#[test]
fn cached_attention_continues_a_sequence() {
    let mut whole = Bench::new();
    let (q, k, v) = (whole.x("q", &[5, 2, 2]), whole.x("k", &[5, 1, 2]), whole.x("v", &[5, 1, 2]));
    let segments = whole.ints("segments", &[0; 5]);
    let spec = op::AttentionSpec { window: Some(3), ..op::AttentionSpec::causal(0.5) };
    let o = whole.g.push(op::Attention { spec: spec.clone() }, &[q, k, v, segments]).unwrap();
    let want = whole.run().of(o).clone();
    let mut states = std::collections::BTreeMap::new();
    for (from, to) in [(0, 3), (3, 4), (4, 5)] {
        let mut b = Bench::new();
        b.env.states = states;
        let rows = (to - from) as u64;
        let mut part = |name: &str, heads: u64| {
            let width = heads as usize * 2;
            let data = whole.env.inputs[name].data[from * width..to * width].to_vec();
            b.input(name, DType::F32, &[rows, heads, 2], data)
        };
        let (q, k, v) = (part("q", 2), part("k", 1), part("v", 1));
        let slots = b.ints("slots", &vec![1; to - from]);
        let positions = b.ints("positions", &(from as i64..to as i64).collect::<Vec<_>>());
        let pages = b.input("pages", DType::S32, &[2, 1], vec![9.0, 1.0]);
        let cache = Type::new(DType::F16, Shape::fixed(&[2, 64, 1, 2]));
        let k_cache = b.g.declare_state("cache.k.0", cache.clone()).unwrap();
        let v_cache = b.g.declare_state("cache.v.0", cache).unwrap();
        let op = op::CachedAttention { spec: spec.clone(), k_cache, v_cache };
        let o = b.g.push(op, &[q, k, v, slots, positions, pages]).unwrap();
        let values = b.run();
        close(&Tensor::new(vec![to - from, 2, 2], want.data[from * 4..to * 4].to_vec()), values.of(o));
        b.env.apply(&values);
        states = b.env.states;
    }
    assert_eq!(states["cache.k.0"].data[128..138], whole.env.inputs["k"].data);
    assert!(states["cache.k.0"].data[..128].iter().all(|v| *v == 0.0));
}

/// Cross-entropy spelled with logits in memory.
#[test]
fn cross_entropy_is_its_definition() {
    let mut b = Bench::new();
    let (x, w) = (b.x("x", &[3, 4]), b.x("w", &[5, 4]));
    let targets = b.ints("targets", &[2, 0, 4]);
    let spec = op::CrossEntropySpec {
        label_smoothing: Float(0.1),
        z_loss: Float(0.01),
        softcap: Some(Float(1.5)),
        temperature: Float(0.8),
    };
    let fast = b.g.push(op::LinearCrossEntropy { spec, unit_grad: false }, &[x, w, targets]).unwrap();
    let logits = b.g.linear(x, w).unwrap();
    let logits = b.g.scale(logits, 1.0 / 1.5).unwrap();
    let logits = b.g.unary(UnaryOp::Tanh, logits).unwrap();
    let z = b.g.scale(logits, 1.5 / 0.8).unwrap();
    let lse = b.g.reduce(ReduceOp::LogSumExp, z, &[1], false).unwrap();
    let mean = b.g.reduce(ReduceOp::Mean, z, &[1], false).unwrap();
    let column = b.g.push(op::Iota { ty: Type::new(DType::S32, Shape::fixed(&[3, 5])), axis: 1 }, &[]).unwrap();
    let rows = b.g.reshape(targets, Shape::fixed(&[3, 1])).unwrap();
    let hit = b.g.binary(BinaryOp::Eq, column, rows).unwrap();
    let zero = b.g.scalar(0.0, DType::F32).unwrap();
    let hit = b.g.select(hit, z, zero).unwrap();
    let hit = b.g.reduce(ReduceOp::Sum, hit, &[1], false).unwrap();
    let (hit, mean) = (b.g.scale(hit, -0.9).unwrap(), b.g.scale(mean, -0.1).unwrap());
    let square = b.g.mul(lse, lse).unwrap();
    let square = b.g.scale(square, 0.01).unwrap();
    let loss = [hit, mean, square].into_iter().fold(lse, |sum, term| b.g.add(sum, term).unwrap());
    let values = b.run();
    close(values.of(fast), values.of(loss));
    close(&values.all_of(fast)[1], values.of(lse));
}

#[test]
fn rope_turns_pairs() {
    let mut b = Bench::new();
    let x = b.input("x", DType::F32, &[1, 1, 5], vec![1.0, 2.0, 3.0, 4.0, 5.0]);
    let at = b.ints("positions", &[3]);
    let mut turn = |layout| {
        let inv_freq = [Float(1.0), Float(0.5)].into();
        let op = op::Rope { inv_freq, layout, attn_scale: Float(1.0), inverse: false, sections: [].into() };
        b.g.push(op, &[x, at]).unwrap()
    };
    let (halves, pairs) = (turn(op::RopeLayout::Halves), turn(op::RopeLayout::Interleaved));
    let (c, s, c2, s2) = (3f64.cos(), 3f64.sin(), 1.5f64.cos(), 1.5f64.sin());
    let values = b.run();
    let want = vec![c - 3.0 * s, 2.0 * c2 - 4.0 * s2, s + 3.0 * c, 2.0 * s2 + 4.0 * c2, 5.0];
    close(values.of(halves), &Tensor::new(vec![1, 1, 5], want));
    let want = vec![c - 2.0 * s, s + 2.0 * c, 3.0 * c2 - 4.0 * s2, 3.0 * s2 + 4.0 * c2, 5.0];
    close(values.of(pairs), &Tensor::new(vec![1, 1, 5], want));
}

#[test]
fn fused_programs_are_their_instructions() {
    let mut b = Bench::new();
    let (x, row, col, one) = (b.x("x", &[2, 3]), b.x("row", &[2, 1]), b.x("col", &[3]), b.x("one", &[]));
    use op::{Instr, Span};
    let fused = op::Fused {
        shape: Shape::fixed(&[2, 3]),
        col_axes: 1,
        instrs: vec![
            Instr::Load(0),
            Instr::Load(1),
            Instr::Binary(BinaryOp::Mul, 0, 1),
            Instr::Load(2),
            Instr::Binary(BinaryOp::Add, 2, 3),
            Instr::Load(3),
            Instr::Binary(BinaryOp::Lt, 4, 5),
            Instr::Const(Float(0.5)),
            Instr::Select(6, 7, 4),
            Instr::Unary(UnaryOp::Silu, 8),
        ],
        spans: vec![Span::Full, Span::Row, Span::Col, Span::Scalar],
        outputs: vec![(9, DType::F32), (4, DType::F32)],
    };
    let fused = b.g.push(fused, &[x, row, col, one]).unwrap();
    let y = b.g.mul(x, row).unwrap();
    let y = b.g.add(y, col).unwrap();
    let below = b.g.binary(BinaryOp::Lt, y, one).unwrap();
    let half = b.g.scalar(0.5, DType::F32).unwrap();
    let z = b.g.select(below, half, y).unwrap();
    let z = b.g.unary(UnaryOp::Silu, z).unwrap();
    let values = b.run();
    close(values.of(fused), values.of(z));
    close(&values.all_of(fused)[1], values.of(y));
}

#[test]
fn dropout_is_a_function_of_key_stream_and_element() {
    let mut b = Bench::new();
    let x = b.input("x", DType::F32, &[4000], vec![1.0; 4000]);
    let key = b.ints("rng", &[-5, 7]);
    let [a, again, other] = [1, 1, 2].map(|stream| b.g.push(op::Dropout { rate: Float(0.25), stream }, &[x, key]).unwrap());
    let values = b.run();
    assert_eq!(values.of(a), values.of(again));
    assert_ne!(values.of(a), values.of(other));
    assert!(values.of(a).data.iter().all(|&v| v == 0.0 || v == 1.0 / 0.75));
    let kept = values.of(a).data.iter().filter(|v| **v != 0.0).count();
    assert!((2900..3100).contains(&kept), "{kept}");
}

#[test]
fn effects_happen_in_order_and_carry_over() {
    let mut b = Bench::new();
    let x = b.input("x", DType::F32, &[2], vec![1.0, 2.0]);
    let sum = b.g.declare_state("sum", Type::f32(Shape::fixed(&[2]))).unwrap();
    let w = b.g.declare_param(ParamInfo { name: "w".into(), shape: vec![2], trainable: true }).unwrap();
    b.env.params.insert("w".into(), Tensor::new(vec![2], vec![5.0, 5.0]));
    let before = b.g.read_state(sum).unwrap();
    b.g.write(Target::State(sum), x, true).unwrap();
    b.g.write(Target::State(sum), x, true).unwrap();
    b.g.write(Target::Param(w), x, false).unwrap();
    b.g.outputs.push(("before".into(), before));
    for step in 0..2 {
        let values = b.run();
        assert_eq!(values.outputs["before"].data, [2.0 * f64::from(step), 4.0 * f64::from(step)]);
        b.env.apply(&values);
    }
    assert_eq!(b.env.states["sum"].data, [4.0, 8.0]);
    assert_eq!(b.env.params["w"].data, [1.0, 2.0]);
}

#[test]
fn failures_say_where() {
    let mut b = Bench::new();
    let x = b.input("x", DType::F32, &[2], vec![1.0, -1.0]);
    b.g.push_scope("layers.3").unwrap();
    let log = b.g.unary(UnaryOp::Log, x).unwrap();
    b.g.pop_scope();
    b.g.sum_all(log).unwrap();
    let error = interp::run(&b.g, &b.env).unwrap_err().to_string();
    assert!(error.contains("`layers.3`") && error.contains("unary") && error.contains("makes a NaN"), "{error}");
    b.env.refuse_nan = false;
    assert!(b.run().of(log).data[1].is_nan());
    let idx = b.ints("idx", &[2]);
    b.g.push(op::GatherRows, &[x, idx]).unwrap();
    assert!(interp::run(&b.g, &b.env).unwrap_err().to_string().contains("row 2 is not below 2"));
    b.env.inputs.remove("x");
    assert!(interp::run(&b.g, &b.env).unwrap_err().to_string().contains("input `x` does not exist"));
}
