//! Steps of Adam and states in 8 bits, over several runs, on all instruction sets.

use swift_graph::dynamic8::Map;
use swift_graph::interp;
use swift_graph::op::{self, BinaryOp, UnaryOp};
use swift_graph::passes::{self, Options};
use swift_graph::plan::plan;
use swift_graph::{DType, Graph, NodeId, StateId, Target, Type};
use swift_runtime::{CpuDevice, CpuOptions, Device, Format, HostTensor, Isa};

use crate::case::{Case, dims};

const SHAPE: [u64; 2] = [37, 131];

fn number(c: &mut Case, x: f64) -> NodeId {
    c.g.scalar(x, DType::F32).unwrap()
}

/// A state of zeros, in 8 bits if there is a map.
fn zeros(g: &mut Graph, name: &str, map: Option<Map>) -> StateId {
    let ty = Type::f32(dims(&SHAPE));
    match map {
        Some(map) => g.declare_packed_state(name, ty, map).unwrap(),
        None => g.declare_state(name, ty).unwrap(),
    }
}

/// One step as an AdamW plugin writes it; or with the mean as a result too, which keeps it from being one op.
fn adamw(maps: [Option<Map>; 2], shown: bool) -> Case {
    let mut c = Case::new();
    let (param, storage) = c.param("w", &SHAPE, Format::F32, true);
    let w = c.g.push(op::Read, &[storage]).unwrap();
    let (lr, clip, grad) = (c.x_in(dims(&[]), 0.01, 0.011), c.x_in(dims(&[]), 0.5, 0.6), c.x(dims(&SHAPE)));
    let states = [zeros(&mut c.g, "m", maps[0]), zeros(&mut c.g, "v", maps[1])];
    let [m, v] = states.map(|state| c.g.read_state(state).unwrap());
    let grad = c.g.mul(grad, clip).unwrap();
    let shrink = c.g.scale(lr, -0.1).unwrap();
    let one = number(&mut c, 1.0);
    let shrink = c.g.add(one, shrink).unwrap();
    let w = c.g.mul(w, shrink).unwrap();
    let apart = c.g.sub(grad, m).unwrap();
    let apart = c.g.scale(apart, 0.1).unwrap();
    let m = c.g.add(m, apart).unwrap();
    let square = c.g.mul(grad, grad).unwrap();
    let (v, square) = (c.g.scale(v, 0.95).unwrap(), c.g.scale(square, 0.05).unwrap());
    let v = c.g.add(v, square).unwrap();
    let root = c.g.unary(UnaryOp::Sqrt, v).unwrap();
    let correction = c.g.binary(BinaryOp::Add, lr, one).unwrap();
    let root = c.g.div(root, correction).unwrap();
    let epsilon = number(&mut c, 1e-8);
    let root = c.g.add(root, epsilon).unwrap();
    let direction = c.g.div(m, root).unwrap();
    let change = c.g.mul(direction, lr).unwrap();
    let w = c.g.sub(w, change).unwrap();
    c.g.write(Target::State(states[0]), m, false).unwrap();
    c.g.write(Target::State(states[1]), v, false).unwrap();
    c.g.write(Target::Param(param), w, false).unwrap();
    if shown {
        c.out(m);
    }
    c
}

const PACKED: [Option<Map>; 2] = [Some(Map::Signed), Some(Map::Unsigned)];

#[test]
fn a_step_is_what_the_interpreter_makes_of_its_formula() {
    for maps in [[None, None], PACKED, [Some(Map::Signed), None]] {
        for shown in [false, true] {
            adamw(maps, shown).check();
        }
    }
}

#[test]
fn moments_in_8_bits_go_on_from_what_was_kept() {
    for (maps, isa) in [[None, None], PACKED].into_iter().flat_map(|maps| Isa::available().map(move |isa| (maps, isa))) {
        let mut runs = Vec::new();
        for threads in [1, 2] {
            let c = adamw(maps, false);
            let device = CpuDevice::new(CpuOptions { threads, isa: Some(isa) }).unwrap();
            let mut store = c.fill(&device);
            let g = passes::optimize(c.g.clone(), &Options::default()).unwrap();
            let mut step = device.compile(plan(g, &|_| true).unwrap()).unwrap();
            let mut env = c.env.clone();
            for _ in 0..4 {
                step.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
                env.apply(&interp::run(&c.g, &env).unwrap());
            }
            let HostTensor::F32 { data, .. } = store.read_f32("w").unwrap() else { panic!("no floats") };
            // A number between two entries of a map may be rounded either way, which moves a step by a part of it.
            let slack = if maps == PACKED { 2e-3 } else { 1e-6 };
            for (got, want) in data.iter().zip(&env.params["w"].data) {
                assert!((f64::from(*got) - want).abs() <= slack, "{got} {want} at {isa}");
            }
            assert_eq!(store.packed_state("m").is_some(), maps == PACKED);
            // A quarter of the memory, and scales.
            let elements = (SHAPE[0] * SHAPE[1]) as usize;
            let held = if maps == PACKED { 2 * (elements + 128) } else { 8 * elements };
            assert!(store.bytes().states <= held + 16, "{:?}", store.bytes());
            runs.push((data.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), store.read_state("m").unwrap()));
        }
        assert!(runs[0] == runs[1], "results depend on the number of threads at {isa}");
    }
}

#[test]
fn any_formula_may_keep_its_states_in_8_bits() {
    let mut c = Case::new();
    let x = c.x(dims(&SHAPE));
    let state = zeros(&mut c.g, "s", Some(Map::Signed));
    let old = c.g.read_state(state).unwrap();
    let new = c.g.sub(x, old).unwrap();
    c.g.write(Target::State(state), new, false).unwrap();
    c.out(old);
    c.check();
    let device = CpuDevice::new(CpuOptions::default()).unwrap();
    let mut store = c.fill(&device);
    let mut run = device.compile(plan(c.g.clone(), &|_| true).unwrap()).unwrap();
    let mut env = c.env.clone();
    for _ in 0..3 {
        let got = run.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
        let want = interp::run(&c.g, &env).unwrap();
        let got = got.get("out0").unwrap().floats().unwrap();
        for (got, want) in got.iter().zip(&want.outputs["out0"].data) {
            assert!((f64::from(*got) - want).abs() <= 1e-6, "{got} {want}");
        }
        // A number between two entries may be rounded either way; the next run goes on from what was kept.
        let HostTensor::F32 { shape, data } = store.read_state("s").unwrap() else { panic!("no floats") };
        let kept: Vec<f64> = data.into_iter().map(f64::from).collect();
        let apart = |(a, b): &(&f64, &f64)| (*a - *b).abs() > 1e-6;
        assert!(kept.iter().zip(&want.states["s"].data).filter(apart).count() * 100 < kept.len());
        env.states.insert("s".into(), interp::Tensor::new(shape, kept));
    }
    // A run that wants floats under the same name is told so.
    let mut g = Graph::default();
    let state = zeros(&mut g, "s", None);
    let value = g.read_state(state).unwrap();
    g.outputs.push(("s".into(), value));
    let mut other = device.compile(plan(g, &|_| true).unwrap()).unwrap();
    let error = other.run(&mut store, &c.env.bindings, &c.inputs).unwrap_err().to_string();
    assert!(error.contains("8 bits"), "{error}");
}
