//! The cases: sizes of models that people train on such machines, and arrays past the caches.

use swift_graph::op::{
    Attention, AttentionBackward, AttentionSpec, CrossEntropySpec, Linear, LinearCrossEntropy, LinearDw, LinearDx, MatMul,
};
use swift_graph::{DType, Dim, Float, Graph, NodeId, ParamInfo, Target, Type};
use swift_kernels::pages::prefer_huge;
use swift_kernels::panels::repacked_bytes;
use swift_kernels::quant;

use super::{Bound, cache, memory, models, optimizer};
use crate::{Bytes, CpuDevice, Device, Format, HostTensor, Inputs, Precision, Result, Store};

/// A graph with its data, and what a run of it amounts to.
pub(super) struct Case {
    pub(super) op: String,
    pub(super) shape: String,
    pub(super) format: String,
    pub(super) graph: Graph,
    pub(super) inputs: Inputs,
    pub(super) store: Store,
    pub(super) precision: Precision,
    /// Operations or bytes.
    pub(super) amount: f64,
    pub(super) bound: Bound,
}

pub(super) type Build = Box<dyn Fn(&CpuDevice) -> Result<Case>>;

/// The cases of one of [`super::FAMILIES`].
pub(super) fn of(family: &str) -> Vec<Build> {
    match family {
        "gemm" => gemm(),
        "linear" => linear(),
        "experts" => models::experts(),
        "conv" => models::conv(),
        "attention" => attention().into_iter().chain(cache::cases()).collect(),
        "cross-entropy" => vec![Box::new(|device| cross_entropy(device, [1024, 576, 49152]))],
        "lora" => vec![Box::new(|device| lora(device, [1024, 576, 1536], 8))],
        "optimizer" => optimizer::cases(),
        _ => memory::cases(),
    }
}

impl Case {
    pub(super) fn new(device: &CpuDevice, op: &str, shape: String, format: &str, amount: f64, bound: Bound) -> Case {
        let (graph, inputs, store) = (Graph::default(), Inputs::new(), device.store());
        let precision = Precision::Exact;
        Case { op: op.into(), shape, format: format.into(), graph, inputs, store, precision, amount, bound }
    }

    /// An input of numbers in -0.5..0.5.
    pub(super) fn x(&mut self, shape: &[usize]) -> Result<NodeId> {
        let name = format!("x{}", self.graph.inputs().len());
        self.inputs.set(&name, HostTensor::f32(shape.to_vec(), values(shape.iter().product())));
        Ok(self.graph.input(&name, Type::f32(dims(shape)))?)
    }

    /// An input of whole numbers.
    pub(super) fn whole(&mut self, len: usize, value: impl Fn(usize) -> i32) -> Result<NodeId> {
        let name = format!("i{}", self.graph.inputs().len());
        self.inputs.set(&name, HostTensor::i32([len], (0..len).map(value).collect()));
        Ok(self.graph.input(&name, Type::new(DType::S32, dims(&[len])))?)
    }

    /// A frozen weight.
    pub(super) fn w(&mut self, format: Format, shape: &[usize]) -> Result<NodeId> {
        let data = values(shape.iter().product());
        let mut bytes = Vec::with_capacity(format.row_bytes(data.len()));
        prefer_huge(bytes.spare_capacity_mut());
        bytes.resize(bytes.capacity(), 0);
        quant::quantize(format, &data, &mut bytes);
        self.stored(format, shape, bytes.into())
    }

    /// A frozen weight of these bytes.
    fn stored(&mut self, format: Format, shape: &[usize], bytes: Bytes) -> Result<NodeId> {
        let name = format!("w{}", self.graph.params().len());
        self.store.insert_weight(&name, format, shape.to_vec(), bytes)?;
        let shape = shape.iter().map(|&d| d as u64).collect();
        let id = self.graph.declare_param(ParamInfo { name, shape, trainable: false })?;
        Ok(self.graph.param(id)?)
    }

    /// Keeps a result in a state, which costs no copy out of the device.
    pub(super) fn keep(&mut self, node: NodeId) -> Result<()> {
        let ty = self.graph.ty(node).clone();
        let state = self.graph.declare_state(&format!("out{}", self.graph.states().len()), ty)?;
        Ok(self.graph.write(Target::State(state), node, false)?)
    }
}

pub(super) fn dims(sizes: &[usize]) -> Vec<Dim> {
    sizes.iter().map(|&d| Dim::fixed(d as u64)).collect()
}

fn values(len: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(len);
    prefer_huge(values.spare_capacity_mut());
    values.extend((0..len).map(|i| (i * 7919 % 1000) as f32 * 1e-3 - 0.5));
    values
}

fn product_flops([m, k, n]: [usize; 3]) -> f64 {
    2.0 * (m * k * n) as f64
}

pub(super) fn sizes_text(sizes: &[usize]) -> String {
    sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")
}

fn gemm() -> Vec<Build> {
    let square = [512, 1024, 2048].map(|size| -> Build {
        Box::new(move |device| {
            let sizes = [size; 3];
            let mut c = Case::new(device, "matmul", sizes_text(&sizes), "F32", product_flops(sizes), Bound::Flops);
            let (a, b) = (c.x(&[size, size])?, c.x(&[size, size])?);
            let y = c.graph.push(MatMul { transpose_a: false, transpose_b: false }, &[a, b])?;
            c.keep(y)?;
            Ok(c)
        })
    });
    let layers = [[1024, 576, 49152], [512, 576, 1536], [512, 1536, 576], [1024, 896, 4864]];
    let layers = layers.map(|sizes| -> Build { Box::new(move |device| layer(device, Format::F32, sizes)) });
    square.into_iter().chain(layers).collect()
}

/// `[m, k, n]`: `y = x Wᵀ` with `W` `[n, k]`.
fn layer(device: &CpuDevice, format: Format, sizes: [usize; 3]) -> Result<Case> {
    let [m, k, n] = sizes;
    let mut c = Case::new(device, "linear", sizes_text(&sizes), &format!("{format:?}"), product_flops(sizes), Bound::Flops);
    let (x, w) = (c.x(&[m, k])?, c.w(format, &[n, k])?);
    let y = c.graph.push(Linear::plain(), &[x, w])?;
    c.keep(y)?;
    Ok(c)
}

fn linear() -> Vec<Build> {
    let mut cases: Vec<Build> = Vec::new();
    for format in Format::ALL {
        for [k, n] in [[1536, 576], [4864, 896]] {
            cases.push(Box::new(move |device| layer(device, format, [512, k, n])));
            cases.push(Box::new(move |device| {
                let sizes = [512, n, k];
                let text = format!("{format:?}");
                let mut c = Case::new(device, "linear-dx", sizes_text(&sizes), &text, product_flops(sizes), Bound::Flops);
                let (dy, w) = (c.x(&[512, n])?, c.w(format, &[n, k])?);
                let dx = c.graph.push(LinearDx { alpha: Float(1.0), addend: false }, &[dy, w])?;
                c.keep(dx)?;
                Ok(c)
            }));
        }
        let whole = repacked_bytes(format, 16, 1536).is_some();
        for [k, n] in [[1536, 576], [4864, 896]].into_iter().filter(|_| whole) {
            cases.push(Box::new(move |device| {
                let exact = layer(device, format, [512, k, n])?;
                Ok(Case { op: "linear-int8".into(), precision: Precision::Int8, bound: Bound::Int8, ..exact })
            }));
        }
        for precision in [Precision::Exact, Precision::Int8].into_iter().take(1 + usize::from(whole)) {
            cases.push(Box::new(move |device| past_caches(device, format, precision)));
        }
    }
    cases
}

/// Bytes of weights that are read one after the other, four times the largest last-level caches in use: when the first comes around again, none
/// of it is left in a cache.
const PAST_CACHES: usize = 1 << 30;

/// One row of activations and a number of weights, which every run reads from memory.
fn past_caches(device: &CpuDevice, format: Format, precision: Precision) -> Result<Case> {
    let sizes @ [_, k, n] = [1, 2048, 8192];
    let op = if precision == Precision::Int8 { "linear-int8" } else { "linear" };
    // Reading takes the same time whatever the levels are.
    let few = values(16 * k);
    let mut rows = vec![0; 16 * format.row_bytes(k)];
    quant::quantize(format, &few, &mut rows);
    let bytes = n / 16 * rows.len();
    let copies = PAST_CACHES.div_ceil(bytes);
    let shape = format!("{} x{copies}", sizes_text(&sizes));
    let mut c = Case::new(device, op, shape, &format!("{format:?}"), (copies * bytes) as f64, Bound::Read);
    c.precision = precision;
    let x = c.x(&[1, k])?;
    let weight = || {
        let mut data = Vec::with_capacity(bytes);
        prefer_huge(data.spare_capacity_mut());
        (0..n / 16).for_each(|_| data.extend_from_slice(&rows));
        Bytes::from(data)
    };
    // In panels, weights are apart from each other even where the bytes they were made of are shared.
    let shared = weight();
    for _ in 0..copies {
        let bytes = if precision == Precision::Int8 { shared.clone() } else { weight() };
        let w = c.stored(format, &[n, k], bytes)?;
        let y = c.graph.push(Linear::plain(), &[x, w])?;
        c.keep(y)?;
    }
    Ok(c)
}

/// Causal attention of one sequence. Half of the scores are masked and not counted: `2 n² d` operations a head forward, and 2.5 times
/// as many backward.
pub(super) fn attention() -> Vec<Build> {
    let mut cases: Vec<Build> = Vec::new();
    for sizes @ [heads, n, d] in [[9, 1024, 64], [14, 2048, 64], [4, 2048, 256]] {
        for backward in [false, true] {
            cases.push(Box::new(move |device| {
                let forward = (2 * heads * n * n * d) as f64;
                let (op, flops) = if backward { ("attention+backward", 3.5 * forward) } else { ("attention", forward) };
                let mut c = Case::new(device, op, sizes_text(&sizes), "F32", flops, Bound::Flops);
                let spec = AttentionSpec::causal((d as f64).powf(-0.5));
                let shape = [n, heads, d];
                let (q, k, v) = (c.x(&shape)?, c.x(&shape)?, c.x(&shape)?);
                let segments = c.whole(n, |_| 0)?;
                let o = c.graph.push(Attention { spec: spec.clone() }, &[q, k, v, segments])?;
                c.keep(o)?;
                if backward {
                    let (lse, d_o) = (c.graph.part(o, 1)?, c.x(&shape)?);
                    let d_q = c.graph.push(AttentionBackward { spec }, &[q, k, v, segments, o, lse, d_o])?;
                    for part in [d_q, c.graph.part(d_q, 1)?, c.graph.part(d_q, 2)?] {
                        c.keep(part)?;
                    }
                }
                Ok(c)
            }));
        }
    }
    cases
}

/// Head and loss with the gradient of the input, for a frozen head.
fn cross_entropy(device: &CpuDevice, sizes: [usize; 3]) -> Result<Case> {
    let [n, d, vocab] = sizes;
    let flops = 2.0 * product_flops(sizes);
    let mut c = Case::new(device, "linear-cross-entropy", sizes_text(&sizes), "F32", flops, Bound::Flops);
    let (x, w, targets) = (c.x(&[n, d])?, c.w(Format::F32, &[vocab, d])?, c.whole(n, |i| (i * 31 % vocab) as i32)?);
    let spec = CrossEntropySpec { label_smoothing: Float(0.0), z_loss: Float(0.0), softcap: None, temperature: Float(1.0) };
    let loss = c.graph.push(LinearCrossEntropy { spec, unit_grad: true }, &[x, w, targets])?;
    let dx = c.graph.part(loss, 2)?;
    c.keep(loss)?;
    c.keep(dx)?;
    Ok(c)
}

/// A LoRA linear with all of its gradients but that of the frozen weight: `y = x Wᵀ + 2 (x Aᵀ) Bᵀ`.
fn lora(device: &CpuDevice, sizes: [usize; 3], rank: usize) -> Result<Case> {
    let [m, k, n] = sizes;
    let adapter = product_flops([m, k, rank]) + product_flops([m, rank, n]);
    let flops = 2.0 * product_flops(sizes) + 3.0 * adapter;
    let shape = format!("{} r{rank}", sizes_text(&sizes));
    let mut c = Case::new(device, "lora-linear+backward", shape, "F32", flops, Bound::Flops);
    let (x, w, dy) = (c.x(&[m, k])?, c.w(Format::F32, &[n, k])?, c.x(&[m, n])?);
    let (a, b) = (c.w(Format::F32, &[rank, k])?, c.w(Format::F32, &[n, rank])?);
    let h = c.graph.push(Linear::plain(), &[x, a])?;
    let base = c.graph.push(Linear::plain(), &[x, w])?;
    let y = c.graph.push(Linear { alpha: Float(2.0), addend: true, ..Linear::plain() }, &[h, b, base])?;
    c.keep(y)?;
    let d_h = c.graph.push(LinearDx { alpha: Float(2.0), addend: false }, &[dy, b])?;
    let d_b = c.graph.push(LinearDw { alpha: Float(2.0) }, &[dy, h])?;
    let d_a = c.graph.push(LinearDw { alpha: Float(1.0) }, &[d_h, x])?;
    let d_x = c.graph.push(LinearDx { alpha: Float(1.0), addend: false }, &[d_h, a])?;
    let d_x = c.graph.push(LinearDx { alpha: Float(1.0), addend: true }, &[dy, w, d_x])?;
    for node in [d_b, d_a, d_x] {
        c.keep(node)?;
    }
    Ok(c)
}
