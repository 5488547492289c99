//! Integer products: the switch, who rounds what when, and what is held.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use swift_graph::op::{Embed, GroupedLinear, Linear, OpRule, UnaryOp};
use swift_graph::passes;
use swift_graph::plan::plan;
use swift_kernels::linear::int8;
use swift_kernels::panels;
use swift_kernels::pool::Pool;
use swift_kernels::{format::Weight, quant};
use swift_runtime::{Bytes, CpuDevice, CpuOptions, Device, Executable, Format, HostTensor, Owner, Precision, Store};

use crate::case::{Case, N, dims, rows};
use crate::products::adapted;

/// What the kernel gives for one weight of the case.
fn direct(case: &Case, weight: usize, x: &[f32]) -> Vec<f32> {
    let pool = Pool::new(1);
    let (_, format, shape, bytes) = &case.store[weight];
    let (n, k) = (shape[0], shape[1]);
    let m = x.len() / k;
    let mut panels = vec![0; panels::repacked_bytes(*format, n, k).unwrap()];
    panels::repack(&pool, &Weight::new(*format, n, k, bytes), &mut panels);
    let mut rounded = vec![0; int8::quantized_words(m, k)];
    int8::quantize_rows(&pool, m, k, x, &mut rounded);
    let mut y = vec![0.0; m * n];
    let panels = Weight::in_panels(*format, n, k, &panels);
    int8::linear_int8(&pool, m, 1.0, &rounded, &panels, None, &mut y, 0.0);
    y
}

/// The case on a device of two threads: with it, a store of its weights and its graph, for products in whole numbers.
fn compiled(c: &Case) -> (CpuDevice, Store, Box<dyn Executable>) {
    let device = CpuDevice::new(CpuOptions { threads: 2, isa: None }).unwrap();
    let store = c.fill(&device);
    let mut executable = device.compile(plan(c.g.clone(), &|_| false).unwrap()).unwrap();
    executable.set_precision(Precision::Int8);
    (device, store, executable)
}

/// One layer of 32 inputs and 8 outputs.
fn one_layer() -> Case {
    let mut c = Case::new();
    let x = c.x(rows(&[32]));
    let w = c.w(&[8, 32], Format::Q8_0);
    c.all(Linear::plain(), &[x, w]);
    c
}

fn floats(t: &HostTensor) -> &[f32] {
    t.floats().unwrap()
}

#[test]
fn layers_round_their_own_activations_and_weights_are_repacked_once() {
    let mut c = Case::new();
    let x = c.x(rows(&[64]));
    let w = [Format::Q4_0, Format::Q8_0, Format::F16, Format::Q4_1].map(|format| c.w(&[64, 64], format));
    // Two read the input, one of another format in between is exact; the next reads their result, and the last its successor,
    // which may lie in the same place.
    let q = c.g.push(Linear::plain(), &[x, w[0]]).unwrap();
    let exact = c.g.push(Linear::plain(), &[x, w[2]]).unwrap();
    let k = c.g.push(Linear::plain(), &[x, w[1]]).unwrap();
    let one = c.g.scale(q, 2.0).unwrap();
    let y = c.g.push(Linear::plain(), &[one, w[3]]).unwrap();
    let two = c.g.scale(one, 0.3).unwrap();
    let z = c.g.push(Linear::plain(), &[two, w[3]]).unwrap();
    for node in [q, exact, k, y, z] {
        c.out(node);
    }
    for threads in [1, 2] {
        let device = CpuDevice::new(CpuOptions { threads, isa: None }).unwrap();
        let mut store = c.fill(&device);
        let mut executable = device.compile(plan(c.g.clone(), &|_| false).unwrap()).unwrap();
        let before = executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
        let (exact_peak, exact_bytes) = (executable.peak_bytes(&c.env.bindings).unwrap(), store.bytes());
        executable.set_precision(Precision::Int8);
        let run = executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
        let got: Vec<&[f32]> = ["out0", "out1", "out2", "out3", "out4"].map(|name| floats(run.get(name).unwrap())).into();
        let input = floats(c.inputs.get("x0").unwrap());
        assert_eq!(got[0], direct(&c, 0, input));
        assert_eq!(got[1], floats(before.get("out1").unwrap()), "floats stay exact");
        assert_eq!(got[2], direct(&c, 1, input));
        let one: Vec<f32> = got[0].iter().map(|q| q * 2.0).collect();
        assert_eq!(got[3], direct(&c, 3, &one));
        let two: Vec<f32> = one.iter().map(|one| one * 0.3).collect();
        assert_eq!(got[4], direct(&c, 3, &two));
        // Room for the activations is planned, and panels are counted.
        let peak = executable.peak_bytes(&c.env.bindings).unwrap();
        assert!(peak >= exact_peak + N * 64 && device.arena_bytes() >= peak);
        let bytes = store.bytes();
        assert_eq!(bytes.panels, 64 * 2 * (18 + 34 + 20));
        assert_eq!(bytes, exact_bytes, "both precisions read the same panels");
        // Sharing a weight shares its panels; a trainable weight has none.
        let mut other = device.store();
        other.share_weight("w0", &store).unwrap();
        assert_eq!(other.bytes().panels, 64 * 2 * 18);
        other.make_trainable("w0").unwrap();
        assert_eq!(other.bytes().panels, 0);
        executable.set_precision(Precision::Exact);
        assert_eq!(executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap(), before);
    }
}

/// Of an adapted layer, the adapter's product stays exact, and its function follows both.
#[test]
fn an_adapted_layer_is_activated_after_both_products() {
    for (f, few) in [UnaryOp::Silu, UnaryOp::Relu].into_iter().flat_map(|f| [(f, false), (f, true)]) {
        let mut c = adapted(f, Format::Q4_0, few);
        let (_device, mut store, mut executable) = compiled(&c);
        let plain = executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
        c.g = passes::optimize(c.g.clone(), &passes::Options::default()).unwrap();
        assert!(c.g.nodes().iter().all(|node| !["unary", "binary", "fused"].contains(&node.op.name())));
        let (_device, mut store, mut executable) = compiled(&c);
        let fused = executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
        let [got, want] = [&fused, &plain].map(|run| floats(run.get("out0").unwrap()));
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() <= 1e-4 * want.abs().max(1.0)), "{f:?} {few}");
    }
}

#[test]
fn a_tied_head_of_one_row_answers_as_the_exact_product_does() {
    let mut c = Case::new();
    let (rows, d) = (4099, 576);
    let w = c.w(&[rows, d], Format::Q8_0);
    let ids = c.i(dims(&[1]), vec![4098]);
    let x = c.g.push(Embed, &[w, ids]).unwrap();
    let y = c.g.push(Linear::plain(), &[x, w]).unwrap();
    c.out(y);
    let (_device, mut store, mut executable) = compiled(&c);
    executable.set_precision(Precision::Exact);
    let exact = executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
    executable.set_precision(Precision::Int8);
    for _ in 0..3 {
        let run = executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
        let (got, want) = (floats(run.get("out0").unwrap()), floats(exact.get("out0").unwrap()));
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let error = norm(&mut got.iter().zip(want).map(|(x, y)| x - y)) / norm(&mut want.iter().copied());
        assert!(error < 0.01, "off by {error}");
        let top = |x: &[f32]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b]));
        assert_eq!(top(got), Some(4098), "a row is most like itself");
        assert_eq!(top(want), Some(4098));
    }
}

#[test]
fn experts_round_the_rows_that_they_get() {
    let mut c = Case::new();
    let x = c.x(rows(&[64]));
    let w = c.w(&[3, 24, 64], Format::Q4_1);
    let experts: Vec<i32> = (0..2 * N as i32).map(|i| if i % 5 == 4 { -1 } else { i * i % 3 }).collect();
    let choices = c.i(rows(&[2]), experts.clone());
    let y = c.g.push(GroupedLinear, &[x, w, choices]).unwrap();
    c.out(y);
    let (_device, mut store, mut executable) = compiled(&c);
    let run = executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
    assert_eq!(store.bytes().panels, 3 * panels::repacked_bytes(Format::Q4_1, 24, 64).unwrap());
    let (_, format, _, stack) = c.store[0].clone();
    let input = floats(c.inputs.get("x0").unwrap());
    for (pair, y) in floats(run.get("out0").unwrap()).chunks_exact(24).enumerate() {
        let mut expected = vec![0.0; 24];
        if let Ok(e) = usize::try_from(experts[pair]) {
            let bytes = stack.chunks_exact(stack.len() / 3).nth(e).unwrap();
            c.store[0] = ("w0".to_string(), format, vec![24, 64], bytes.to_vec());
            expected = direct(&c, 0, &input[pair / 2 * 64..][..64]);
        }
        assert_eq!(y, expected, "pair {pair}");
    }
}

#[test]
fn a_weight_replaced_between_runs_is_repacked() {
    let mut c = one_layer();
    let (_device, mut store, mut executable) = compiled(&c);
    executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
    let mut bytes = vec![0; Format::Q4_0.row_bytes(8 * 32)];
    quant::quantize(Format::Q4_0, &c.floats(8 * 32), &mut bytes);
    c.store[0] = ("w0".to_string(), Format::Q4_0, vec![8, 32], bytes.clone());
    store.insert_weight("w0", Format::Q4_0, vec![8, 32], bytes.into()).unwrap();
    let run = executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
    assert_eq!(floats(run.get("out0").unwrap()), direct(&c, 0, floats(c.inputs.get("x0").unwrap())));
}

/// Bytes that are made again once they were let go.
struct Again {
    bytes: Vec<u8>,
    made: Arc<AtomicUsize>,
}

impl Owner for Again {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn release(&self) -> Option<Arc<dyn Owner>> {
        self.made.fetch_add(1, Ordering::SeqCst);
        Some(Arc::new(Again { bytes: self.bytes.clone(), made: Arc::clone(&self.made) }))
    }
}

#[test]
fn bytes_that_were_let_go_are_found_again_by_whoever_reads_them() {
    let c = one_layer();
    let (device, mut store, mut whole) = compiled(&c);
    let made = Arc::new(AtomicUsize::new(0));
    let bytes = c.store[0].3.clone();
    let count = bytes.len();
    let owner = Again { bytes, made: Arc::clone(&made) };
    store.insert_weight("w0", Format::Q8_0, vec![8, 32], Bytes::new(Arc::new(owner), 0..count).unwrap()).unwrap();
    let mut exact = device.compile(plan(c.g.clone(), &|_| false).unwrap()).unwrap();
    let want = exact.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
    let rounded = whole.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
    let times = made.load(Ordering::SeqCst);
    assert!(times > 0, "the weight is in panels, and its bytes were let go");
    // The first executable had bound the old bytes.
    assert_eq!(exact.run(&mut store, &c.env.bindings, &c.inputs).unwrap(), want);
    assert_eq!(whole.run(&mut store, &c.env.bindings, &c.inputs).unwrap(), rounded);
    assert_eq!(made.load(Ordering::SeqCst), times, "once");
}

/// Notes which parts of its bytes were let go.
struct Noted {
    bytes: Vec<u8>,
    parts: Arc<Mutex<Vec<Range<usize>>>>,
}

impl Owner for Noted {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn release_part(&self, part: Range<usize>) {
        self.parts.lock().unwrap().push(part);
    }
}

#[test]
fn large_weights_are_let_go_while_they_are_repacked() {
    // A stack of two, each of more bytes than are repacked at once, and not of whole panels.
    let (rows_of, cols) = (9001, 1024);
    let mut c = Case::new();
    let x = c.x(rows(&[cols as u64]));
    let w = c.w(&[2, rows_of as u64, cols as u64], Format::Q8_0);
    let choices = c.i(rows(&[1]), (0..N as i32).map(|i| i % 2).collect());
    let y = c.g.push(GroupedLinear, &[x, w, choices]).unwrap();
    c.out(y);
    let (_device, mut store, mut executable) = compiled(&c);
    let (_, format, shape, bytes) = c.store[0].clone();
    let (count, parts) = (bytes.len(), Arc::default());
    let owner = Noted { bytes: bytes.clone(), parts: Arc::clone(&parts) };
    store.insert_weight("w0", format, shape, Bytes::new(Arc::new(owner), 0..count).unwrap()).unwrap();
    let run = executable.run(&mut store, &c.env.bindings, &c.inputs).unwrap();
    let parts = parts.lock().unwrap().clone();
    assert!(parts.len() >= 4 && parts.iter().all(|part| part.len() < 10 << 20), "{parts:?}");
    assert!(parts[0].start == 0 && parts[parts.len() - 1].end == count && parts.windows(2).all(|p| p[0].end == p[1].start));
    let input = floats(c.inputs.get("x0").unwrap()).to_vec();
    let y = floats(run.get("out0").unwrap());
    for (i, (x, y)) in input.chunks(cols).zip(y.chunks(rows_of)).enumerate().take(2) {
        c.store[0] = ("w0".to_string(), format, vec![rows_of, cols], bytes[i * count / 2..][..count / 2].to_vec());
        assert_eq!(y, direct(&c, 0, x), "row {i}");
    }
}
