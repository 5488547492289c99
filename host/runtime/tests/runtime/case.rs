//! A graph with random data, run on the device in several ways and compared with the interpreter.

use std::collections::BTreeMap;

use swift_graph::interp::{self, Env, Tensor};
use swift_graph::op;
use swift_graph::passes::{self, Options};
use swift_graph::plan::plan;
use swift_graph::{Bindings, DType, Dim, Graph, NodeId, ParamId, ParamInfo, Shape, StateId, SymbolId, Type};
use swift_kernels::quant;
use swift_runtime::{CpuDevice, CpuOptions, Device, Format, HostTensor, Inputs, Isa, Outputs, Store};

/// Tokens of all cases: odd, and more than the rows that thin products take.
pub(crate) const N: usize = 37;

pub(crate) fn n() -> Dim {
    Dim::symbol(SymbolId::TOKENS)
}

pub(crate) fn dims(sizes: &[u64]) -> Vec<Dim> {
    sizes.iter().map(|&d| Dim::fixed(d)).collect()
}

/// `[n, sizes...]`.
pub(crate) fn rows(sizes: &[u64]) -> Vec<Dim> {
    std::iter::once(n()).chain(dims(sizes)).collect()
}

#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) g: Graph,
    pub(crate) env: Env,
    pub(crate) inputs: Inputs,
    pub(crate) store: Vec<(String, Format, Vec<usize>, Vec<u8>)>,
    seed: u64,
    pub(crate) tolerance: f64,
}

impl Case {
    pub(crate) fn new() -> Case {
        let mut env = Env { bindings: Bindings::new().with(SymbolId::TOKENS, N as u64), ..Env::default() };
        env.bindings.set(SymbolId::SLOTS, 3);
        env.bindings.set(SymbolId::CAPACITY, 2);
        env.bindings.set(SymbolId::PAGES, 5);
        Case { g: Graph::default(), env, inputs: Inputs::new(), store: Vec::new(), seed: 0x9E37_79B9_7F4A_7C15, tolerance: 3e-5 }
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        let mut next = || {
            // splitmix64
            self.seed = self.seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    fn sizes(&self, shape: &Shape) -> Vec<usize> {
        shape.eval(&self.env.bindings).unwrap()
    }

    /// A float input of random numbers in -1..1.
    pub(crate) fn x(&mut self, shape: impl Into<Shape>) -> NodeId {
        self.x_in(shape, -1.0, 1.0)
    }

    pub(crate) fn x_in(&mut self, shape: impl Into<Shape>, lo: f32, hi: f32) -> NodeId {
        let shape = shape.into();
        let sizes = self.sizes(&shape);
        let data: Vec<f32> = self.floats(sizes.iter().product()).iter().map(|x| lo + (x + 1.0) / 2.0 * (hi - lo)).collect();
        let name = format!("x{}", self.env.inputs.len());
        self.env.inputs.insert(name.clone(), tensor(&sizes, &data));
        self.inputs.set(&name, HostTensor::f32(sizes, data));
        self.g.input(&name, Type::f32(shape)).unwrap()
    }

    /// A whole-number input.
    pub(crate) fn i(&mut self, shape: impl Into<Shape>, data: Vec<i32>) -> NodeId {
        let shape = shape.into();
        let sizes = self.sizes(&shape);
        let name = format!("i{}", self.env.inputs.len());
        let values = data.iter().map(|&v| f64::from(v)).collect();
        self.env.inputs.insert(name.clone(), Tensor::new(sizes.clone(), values));
        self.inputs.set(&name, HostTensor::i32(sizes, data));
        self.g.input(&name, Type::new(DType::S32, shape)).unwrap()
    }

    /// A parameter in a format; the interpreter gets what the format can represent.
    pub(crate) fn param(&mut self, name: &str, shape: &[u64], format: Format, trainable: bool) -> (ParamId, NodeId) {
        let sizes: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
        let data = self.floats(sizes.iter().product());
        let mut bytes = vec![0; data.len() / format.block_len() * format.block_bytes()];
        quant::quantize(format, &data, &mut bytes);
        let mut back = vec![0.0; data.len()];
        quant::dequantize(format, &bytes, &mut back);
        self.env.params.insert(name.to_string(), tensor(&sizes, &back));
        self.store.push((name.to_string(), format, sizes, bytes));
        let id = self.g.declare_param(ParamInfo { name: name.to_string(), shape: shape.to_vec(), trainable }).unwrap();
        (id, self.g.param(id).unwrap())
    }

    pub(crate) fn w(&mut self, shape: &[u64], format: Format) -> NodeId {
        let name = format!("w{}", self.store.len());
        self.param(&name, shape, format, false).1
    }

    /// A state of random numbers.
    pub(crate) fn state(&mut self, name: &str, shape: impl Into<Shape>) -> StateId {
        let shape = shape.into();
        let sizes = self.sizes(&shape);
        let data = self.floats(sizes.iter().product());
        self.env.states.insert(name.to_string(), tensor(&sizes, &data));
        self.g.declare_state(name, Type::f32(shape)).unwrap()
    }

    pub(crate) fn out(&mut self, node: NodeId) {
        self.g.outputs.push((format!("out{}", self.g.outputs.len()), node));
    }

    /// Pushes an op and makes all its outputs results.
    pub(crate) fn all(&mut self, op: impl Into<swift_graph::Op>, inputs: &[NodeId]) -> NodeId {
        let node = self.g.push(op, inputs).unwrap();
        self.out(node);
        for index in 1..self.g.node(node).outputs.len() as u8 {
            let part = self.g.push(op::Part { index }, &[node]).unwrap();
            self.out(part);
        }
        node
    }

    /// A store with the case's weights and states.
    pub(crate) fn fill(&self, device: &dyn Device) -> Store {
        let mut store = device.store();
        for (name, format, shape, bytes) in &self.store {
            store.insert_weight(name, *format, shape.clone(), bytes.clone().into()).unwrap();
            let trainable = self.g.params().iter().any(|p| &p.name == name && p.trainable);
            if trainable {
                store.make_trainable(name).unwrap();
            }
        }
        for (name, t) in &self.env.states {
            let data: Vec<f32> = t.data.iter().map(|&v| v as f32).collect();
            store.write_state(name, t.shape.clone(), &data).unwrap();
        }
        store
    }

    /// Runs `g`, which computes what the case's graph does.
    pub(crate) fn run(&self, g: &Graph, options: CpuOptions) -> (Outputs, Store) {
        let device = CpuDevice::new(options).unwrap();
        let mut store = self.fill(&device);
        let dense = |p: ParamId| store.is_dense(&g.params()[p.index()].name);
        let plan = plan(g.clone(), &dense).unwrap();
        let mut executable = device.compile(plan).unwrap();
        let outputs = executable.run(&mut store, &self.env.bindings, &self.inputs).unwrap();
        assert!(device.arena_bytes() >= executable.peak_bytes(&self.env.bindings).unwrap());
        (outputs, store)
    }

    /// Compares plain and optimized graphs on all instruction sets with the interpreter, and thread counts with each other.
    pub(crate) fn check(&self) {
        let expected = interp::run(&self.g, &self.env).unwrap();
        let optimized = passes::optimize(self.g.clone(), &Options::default()).unwrap();
        for (what, g) in [("plain", &self.g), ("optimized", &optimized)] {
            for isa in Isa::available() {
                let what = format!("{what} on {isa}");
                let (one, store) = self.run(g, CpuOptions { threads: 1, isa: Some(isa) });
                self.compare(&what, &outputs(&one), &expected.outputs);
                let read = |names: &BTreeMap<String, Tensor>, read: &dyn Fn(&str) -> HostTensor| {
                    names.keys().map(|k| (k.clone(), to_f64(&read(k)))).collect::<BTreeMap<_, _>>()
                };
                // Caches are the device's own; what is read from them is compared.
                let states = expected.states.iter().filter(|(name, _)| !name.starts_with("cache."));
                let states: BTreeMap<String, Tensor> = states.map(|(name, t)| (name.clone(), t.clone())).collect();
                self.compare(&what, &read(&states, &|k| store.read_state(k).unwrap()), &states);
                self.compare(&what, &read(&expected.params, &|k| store.read_f32(k).unwrap()), &expected.params);
                let (two, other) = self.run(g, CpuOptions { threads: 2, isa: Some(isa) });
                assert!(bits(&one) == bits(&two), "{what}: results depend on the number of threads");
                let dense = |s: &Store| -> Vec<u32> { s.dense().flat_map(|t| t.data.iter().map(|x| x.to_bits())).collect() };
                assert!(dense(&store) == dense(&other), "{what}: writes depend on the number of threads");
            }
        }
    }

    fn compare(&self, what: &str, got: &BTreeMap<String, Tensor>, want: &BTreeMap<String, Tensor>) {
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}");
        for (name, want) in want {
            let got = &got[name];
            assert_eq!(got.shape, want.shape, "{what}: {name}");
            let finite = want.data.iter().filter(|x| x.is_finite());
            let scale = finite.fold(1.0f64, |m, x| m.max(x.abs()));
            for (i, (g, w)) in got.data.iter().zip(&want.data).enumerate() {
                let close = (g - w).abs() <= self.tolerance * scale || g == w || (g.is_nan() && w.is_nan());
                assert!(close, "{what}: {name}[{i}] of {:?} is {g}, expected {w}\n{:?}", want.shape, self.g.output(name));
            }
        }
    }
}

fn tensor(shape: &[usize], data: &[f32]) -> Tensor {
    Tensor::new(shape.to_vec(), data.iter().map(|&x| f64::from(x)).collect())
}

fn to_f64(t: &HostTensor) -> Tensor {
    let data = match t {
        HostTensor::F32 { data, .. } => data.iter().map(|&x| f64::from(x)).collect(),
        HostTensor::I32 { data, .. } => data.iter().map(|&x| f64::from(x)).collect(),
    };
    Tensor::new(t.shape().to_vec(), data)
}

fn outputs(outputs: &Outputs) -> BTreeMap<String, Tensor> {
    outputs.iter().map(|(name, t)| (name.to_string(), to_f64(t))).collect()
}

fn bits(outputs: &Outputs) -> Vec<u32> {
    let of = |t: &HostTensor| -> Vec<u32> {
        match t {
            HostTensor::F32 { data, .. } => data.iter().map(|x| x.to_bits()).collect(),
            HostTensor::I32 { data, .. } => data.iter().map(|x| x.cast_unsigned()).collect(),
        }
    };
    outputs.iter().flat_map(|(_, t)| of(t)).collect()
}
