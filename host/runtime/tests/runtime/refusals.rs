//! Bad inputs, indices and stored tensors give errors that name them.

use swift_graph::op::*;
use swift_graph::plan::plan;
use swift_graph::{Bindings, Dim, Float, Graph, NodeId, Op, Target, Type};
use swift_runtime::{CpuDevice, CpuOptions, Device, Error, Format, HostTensor, Inputs, Isa, Store};

use crate::case::{Case, N, dims, rows};

fn run(g: &Graph, store: &mut Store, bindings: &Bindings, inputs: &Inputs) -> Error {
    let device = CpuDevice::new(CpuOptions { threads: 1, isa: None }).unwrap();
    let plan = plan(g.clone(), &|p| store.is_dense(&g.params()[p.index()].name)).unwrap();
    let mut executable = device.compile(plan).unwrap();
    executable.run(store, bindings, inputs).unwrap_err()
}

fn refused(c: &Case) -> Error {
    let device = CpuDevice::new(CpuOptions { threads: 1, isa: None }).unwrap();
    run(&c.g, &mut c.fill(&device), &c.env.bindings, &c.inputs)
}

#[test]
fn inputs_are_checked_by_name() {
    let mut c = Case::new();
    let x = c.x(rows(&[4]));
    c.all(Unary(UnaryOp::Exp), &[x]);
    let mut store = Store::new();
    let error = run(&c.g, &mut store, &c.env.bindings, &Inputs::new());
    assert!(matches!(error, Error::MissingInput { ref name, .. } if name == "x0"), "{error}");
    let short = Inputs::new().with("x0", HostTensor::f32([3, 4], vec![0.0; 12]));
    let error = run(&c.g, &mut store, &c.env.bindings, &short);
    assert_eq!(error.to_string(), format!("input `x0` is f32[3, 4], expected f32[{N}, 4]"));
    let ints = Inputs::new().with("x0", HostTensor::i32([N, 4], vec![0; N * 4]));
    assert!(matches!(run(&c.g, &mut store, &c.env.bindings, &ints), Error::BadInput { .. }));
    assert!(matches!(run(&c.g, &mut store, &Bindings::new(), &ints), Error::Graph(_)));
}

#[test]
fn indices_outside_their_tables_are_errors() {
    let mut bad = vec![0; N];
    for value in [-1, 9] {
        bad[5] = value;
        let mut c = Case::new();
        let table = c.w(&[9, 32], Format::Q8_0);
        let ids = c.i(rows(&[]), bad.clone());
        c.all(Embed, &[table, ids]);
        let error = refused(&c);
        assert!(matches!(error, Error::Index { what: "token id", at: 5, limit: 9, .. }), "{error}");
    }
    // Other tables skip a negative index.
    let mut c = Case::new();
    let (table, ids, wide) = (c.x(dims(&[9, 2])), c.i(rows(&[]), bad.clone()), c.x(rows(&[2])));
    let (columns, flat) = (c.i(rows(&[1]), bad.clone()), c.x(rows(&[9])));
    let (stack, one) = (c.x(dims(&[9, 3, 2])), c.x(rows(&[1])));
    let d_y = c.x(rows(&[1, 3]));
    let ops: [(Op, &[NodeId], &str); 7] = [
        (GatherRows.into(), &[table, ids], "gather-rows"),
        (ScatterRows { accumulate: true }.into(), &[table, ids, wide], "scatter-rows"),
        (GatherLast.into(), &[flat, columns], "gather-last"),
        (ScatterLast { count: Dim::fixed(9) }.into(), &[one, columns], "scatter-last"),
        (GroupedLinear.into(), &[wide, stack, columns], "grouped-linear"),
        (GroupedLinearDx.into(), &[d_y, stack, columns], "grouped-linear-dx"),
        (GroupedLinearDw { count: Dim::fixed(9) }.into(), &[d_y, wide, columns], "grouped-linear-dw"),
    ];
    for (op, inputs, name) in ops {
        let mut c = c.clone();
        c.all(op, inputs);
        let error = refused(&c);
        assert!(matches!(error, Error::Index { op, at: 5, limit: 9, .. } if op == name), "{error}");
    }
    // Negative targets and segments mean "none", so only large ones are refused.
    let mut c = Case::new();
    let (x, w) = (c.x(rows(&[32])), c.w(&[9, 32], Format::F32));
    let targets = c.i(rows(&[]), vec![9; N]);
    let spec = CrossEntropySpec { label_smoothing: Float(0.0), z_loss: Float(0.0), softcap: None, temperature: Float(1.0) };
    c.all(LinearCrossEntropy { spec, unit_grad: false }, &[x, w, targets]);
    assert!(matches!(refused(&c), Error::Index { what: "target", at: 0, .. }));
    let mut c = Case::new();
    let x = c.x(rows(&[3]));
    let segments = c.i(rows(&[]), vec![4; N]);
    c.all(SegmentReduce { op: ReduceOp::Sum, count: Dim::fixed(4) }, &[x, segments]);
    assert!(matches!(refused(&c), Error::Index { what: "segment", .. }));
}

#[test]
fn cache_places_are_checked() {
    for (slot, position, page, what) in
        [(3, 0, 0, "cache slot"), (0, 128, 0, "cache position"), (-1, 0, 0, "cache slot"), (0, 0, 5, "cache page")]
    {
        let mut c = Case::new();
        let mut state =
            |name| c.g.declare_state(name, Type::f32(CachedAttention::cache_shape(Dim::fixed(1), Dim::fixed(4)))).unwrap();
        let (k_cache, v_cache) = (state("cache.k"), state("cache.v"));
        let q = c.x(rows(&[1, 4]));
        let (slots, positions) = (c.i(rows(&[]), vec![slot; N]), c.i(rows(&[]), vec![position; N]));
        let pages = c.i(CachedAttention::table().shape, vec![page; 6]);
        let spec = AttentionSpec::causal(1.0);
        c.all(CachedAttention { spec, k_cache, v_cache }, &[q, q, q, slots, positions, pages]);
        let error = refused(&c);
        assert!(matches!(error, Error::Index { what: w, .. } if w == what), "{error}");
    }
}

#[test]
fn stored_tensors_must_fit_the_graph() {
    let mut c = Case::new();
    let x = c.x(dims(&[4, 32]));
    let (w, node) = c.param("w", &[4, 32], Format::Q8_0, false);
    c.all(Linear::plain(), &[x, node]);
    let device = CpuDevice::new(CpuOptions { threads: 1, isa: None }).unwrap();
    let error = run(&c.g, &mut Store::new(), &c.env.bindings, &c.inputs);
    assert_eq!(error.to_string(), "weight `w` does not exist");
    let mut other = Store::new();
    other.insert_f32("w", vec![5, 32], vec![0.0; 160]).unwrap();
    let error = run(&c.g, &mut other, &c.env.bindings, &c.inputs);
    assert!(error.to_string().contains("has shape [5, 32], the graph takes [4, 32]"), "{error}");
    // A frozen weight is never written.
    c.g.write(Target::Param(w), x, false).unwrap();
    let error = refused(&c);
    assert!(error.to_string().contains("is frozen"), "{error}");
    let mut store = c.fill(&device);
    store.make_trainable("w").unwrap();
    let plan = plan(c.g.clone(), &|_| true).unwrap();
    device.compile(plan).unwrap().run(&mut store, &c.env.bindings, &c.inputs).unwrap();
    // States keep their shape.
    let state = c.g.declare_state("s", swift_graph::Type::f32(dims(&[4, 32]))).unwrap();
    c.g.write(Target::State(state), x, false).unwrap();
    store.ensure_state("s", &[3]).unwrap();
    let error = run(&c.g, &mut store, &c.env.bindings, &c.inputs);
    assert!(matches!(error, Error::BadTensor { kind: "state", .. }), "{error}");
}

#[test]
fn sizes_that_kernels_lack_are_named() {
    let mut c = Case::new();
    c.g.push_scope("model").unwrap();
    let q = c.x(rows(&[1, 1025]));
    let segments = c.i(rows(&[]), vec![0; N]);
    let spec = AttentionSpec::causal(1.0);
    c.all(Attention { spec }, &[q, q, q, segments]);
    assert_eq!(refused(&c).to_string(), "attention at `model`: head size 1025 is above 1024");
}

#[test]
fn devices_describe_themselves_and_refuse_foreign_instructions() {
    let device = CpuDevice::new(CpuOptions { threads: 3, isa: Some(Isa::Scalar) }).unwrap();
    let info = device.describe();
    assert_eq!((info.threads, info.isa.as_str()), (3, "scalar"));
    assert!(!info.name.is_empty());
    if Isa::detect() < Isa::Avx512 {
        assert!(CpuDevice::new(CpuOptions { threads: 1, isa: Some(Isa::Avx512) }).is_err());
    }
}
