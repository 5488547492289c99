//! One new token for each of some sequences, against the keys and values of all that came before: bound by reading these.
//!
//! The caches of several layers lie past the caches of the processor together, and were written before anything is measured: pages of
//! memory that never were are one page of zeros, which is read from the processor's.

use swift_graph::op::{AttentionSpec, CachedAttention};
use swift_graph::{Bindings, DType, Dim, Type};
use swift_kernels::attention::{CacheFormat, PAGE};

use super::cases::{Build, Case, dims};
use super::{Bound, compile};
use crate::{CpuDevice, HostTensor, Result, Store};

/// Sequences, and the tokens of each.
const SEQUENCES: usize = 8;
const CONTEXT: usize = 4096;

/// Query heads, key heads, and the size of each: those of a model of 135 million weights.
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;

/// Bytes of all caches, at least: as many as the arrays that are copied to measure what memory does.
const BYTES: usize = 512 << 20;

pub(super) fn cases() -> Vec<Build> {
    let formats = [("F16", DType::F16, CacheFormat::F16), ("Int8", DType::S8, CacheFormat::Int8)];
    let build = |(name, dtype, format): (&'static str, DType, CacheFormat)| -> Build {
        // Keys and values.
        let layer = 2 * 4 * format.head_words(DIM) * KV_HEADS * SEQUENCES * CONTEXT / PAGE;
        let layers = BYTES.div_ceil(layer);
        let shape = format!("{SEQUENCES}x{CONTEXT}, {HEADS}/{KV_HEADS}x{DIM} x{layers}");
        Box::new(move |device| {
            let case = || Case::new(device, "attention-cached", shape.clone(), name, (layers * layer) as f64, Bound::Read);
            // A window of one makes cheap queries of those whose keys and values are to be stored.
            let mut filling = case();
            let alone = AttentionSpec { window: Some(1), ..AttentionSpec::causal(1.0) };
            attend(&mut filling, layers, dtype, &alone, 0)?;
            let mut case = case();
            case.store = run(device, filling)?;
            attend(&mut case, layers, dtype, &AttentionSpec::causal((DIM as f64).powf(-0.5)), CONTEXT - 1)?;
            Ok(case)
        })
    };
    formats.map(build).into()
}

/// Attention of every layer for the tokens of all sequences from the position `first` on.
fn attend(c: &mut Case, layers: usize, dtype: DType, spec: &AttentionSpec, first: usize) -> Result<()> {
    let (tokens, columns) = (CONTEXT - first, CONTEXT / PAGE);
    let rows = SEQUENCES * tokens;
    let [q, k, v] = [HEADS, KV_HEADS, KV_HEADS].map(|heads| c.x(&[rows, heads, DIM]));
    let (slots, positions) = (c.whole(rows, |i| (i / tokens) as i32)?, c.whole(rows, |i| (first + i % tokens) as i32)?);
    // Sequences take their pages by turns, as they would while they grow together.
    let table = (0..SEQUENCES * columns).map(|i| (i % columns * SEQUENCES + i / columns) as i32).collect();
    c.inputs.set("pages", HostTensor::i32([SEQUENCES, columns], table));
    let pages = c.graph.input("pages", Type::new(DType::S32, dims(&[SEQUENCES, columns])))?;
    let inputs = [q?, k?, v?, slots, positions, pages];
    for layer in 0..layers {
        let shape = [SEQUENCES * columns, PAGE, KV_HEADS, DIM].map(|size| Dim::fixed(size as u64));
        let ty = Type::new(dtype, shape.to_vec());
        let k_cache = c.graph.declare_state(&format!("k{layer}"), ty.clone())?;
        let v_cache = c.graph.declare_state(&format!("v{layer}"), ty)?;
        c.graph.push(CachedAttention { spec: spec.clone(), k_cache, v_cache }, &inputs)?;
    }
    Ok(())
}

/// What the run of a case leaves.
fn run(device: &CpuDevice, case: Case) -> Result<Store> {
    let Case { graph, inputs, mut store, .. } = case;
    let mut executable = compile(device, graph, &store)?;
    executable.run(&mut store, &Bindings::new(), &inputs)?;
    Ok(store)
}
