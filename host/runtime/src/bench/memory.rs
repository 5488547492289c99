//! What moves memory and computes little. Arrays are 256 MB each, as those that the ceilings are taken on, so that they lie past the
//! caches; the elementwise program also runs over 64 MB, beside a copy of as much.
//!
//! Counted is what an op must read and write once. What a cache reads of a line before it writes it is not, neither here nor in the
//! ceiling.

use swift_graph::op::{
    BinaryOp, Embed, EmbedDw, Gate, GatherRows, Glu, GluBackward, ReduceOp, RmsNorm, RmsNormDx, Rope, RopeLayout, ScatterRows,
    SegmentReduce, Softmax, SoftmaxDx, TopK, UnaryOp,
};
use swift_graph::{Dim, Float, NodeId};

use super::Bound;
use super::cases::{Build, Case, sizes_text};
use crate::{Format, Result};

/// Rows and columns of the arrays: 256 MB.
const ROWS: usize = 65536;
const COLS: usize = 1024;
const SHAPE: [usize; 2] = [ROWS, COLS];

/// Rows of 64 MB.
const NEAR: usize = 16384;

/// A case that reads and writes so many arrays of `rows`.
fn streamed(
    op: &'static str,
    rows: usize,
    arrays: f64,
    bound: Bound,
    build: impl Fn(&mut Case) -> Result<NodeId> + 'static,
) -> Build {
    Box::new(move |device| {
        let bytes = arrays * (rows * COLS * size_of::<f32>()) as f64;
        let mut c = Case::new(device, op, sizes_text(&[rows, COLS]), "F32", bytes, bound);
        let node = build(&mut c)?;
        c.keep(node)?;
        Ok(c)
    })
}

/// Past the caches, reading about as much as it writes.
fn far(op: &'static str, arrays: usize, build: impl Fn(&mut Case) -> Result<NodeId> + 'static) -> Build {
    streamed(op, ROWS, arrays as f64, Bound::Copy, build)
}

/// `|-relu(...)|`: eight operations on every element.
fn chain(c: &mut Case, rows: usize) -> Result<NodeId> {
    let mut x = c.x(&[rows, COLS])?;
    for step in 0..4 {
        x = c.graph.scale(x, 1.01 + f64::from(step))?;
        x = c.graph.unary([UnaryOp::Abs, UnaryOp::Relu, UnaryOp::Neg, UnaryOp::Abs][step as usize], x)?;
    }
    Ok(x)
}

/// An order of rows without order.
fn shuffled(c: &mut Case) -> Result<NodeId> {
    c.whole(ROWS, |i| (i * 7919 % ROWS) as i32)
}

/// Forward and backward of one gate.
fn gated(names: [&'static str; 2], gate: Gate) -> [Build; 2] {
    let forward = far(names[0], 3, move |c| {
        let (x, up) = (c.x(&SHAPE)?, c.x(&SHAPE)?);
        Ok(c.graph.push(Glu(gate), &[x, up])?)
    });
    let backward = far(names[1], 5, move |c| {
        let (x, up, d) = (c.x(&SHAPE)?, c.x(&SHAPE)?, c.x(&SHAPE)?);
        let d_gate = c.graph.push(GluBackward(gate), &[x, up, d])?;
        let d_up = c.graph.part(d_gate, 1)?;
        c.keep(d_up)?;
        Ok(d_gate)
    });
    [forward, backward]
}

fn rope(name: &'static str, layout: RopeLayout) -> Build {
    far(name, 2, move |c| {
        let head = 64;
        let (x, positions) = (c.x(&[ROWS, COLS / head, head])?, c.whole(ROWS, |i| i as i32 % 2048)?);
        let inv_freq: Vec<Float> = (0..head / 2).map(|i| Float(1e4f64.powf(-2.0 * i as f64 / head as f64))).collect();
        let (attn_scale, sections) = (Float(1.0), [].into());
        Ok(c.graph.push(Rope { inv_freq: inv_freq.into(), layout, attn_scale, inverse: false, sections }, &[x, positions])?)
    })
}

pub(super) fn cases() -> Vec<Build> {
    let mut cases = vec![
        streamed("elementwise (8 ops)", NEAR, 2.0, Bound::CopyNear, |c| chain(c, NEAR)),
        far("elementwise (8 ops)", 2, |c| chain(c, ROWS)),
        far("silu", 2, |c| {
            let x = c.x(&SHAPE)?;
            Ok(c.graph.unary(UnaryOp::Silu, x)?)
        }),
        far("add", 3, |c| {
            let (a, b) = (c.x(&SHAPE)?, c.x(&SHAPE)?);
            Ok(c.graph.binary(BinaryOp::Add, a, b)?)
        }),
    ];
    cases.extend(gated(["swiglu", "swiglu-backward"], Gate::Silu));
    cases.extend(gated(["geglu (tanh)", "geglu-backward (tanh)"], Gate::GeluTanh));
    cases.extend(gated(["geglu (erf)", "geglu-backward (erf)"], Gate::GeluErf));
    cases.extend([
        far("rms-norm", 2, |c| {
            let (x, w) = (c.x(&SHAPE)?, c.w(Format::F32, &[COLS])?);
            Ok(c.graph.push(RmsNorm { eps: Float(1e-5), unit_offset: false, weight: true }, &[x, w])?)
        }),
        far("rms-norm-dx", 3, |c| {
            let (x, w, inv, d) = (c.x(&SHAPE)?, c.w(Format::F32, &[COLS])?, c.x(&[ROWS])?, c.x(&SHAPE)?);
            Ok(c.graph.push(RmsNormDx { unit_offset: false, weight: true }, &[x, w, inv, d])?)
        }),
        far("softmax", 2, |c| {
            let x = c.x(&SHAPE)?;
            Ok(c.graph.push(Softmax, &[x])?)
        }),
        far("softmax-dx", 3, |c| {
            let (y, d) = (c.x(&SHAPE)?, c.x(&SHAPE)?);
            Ok(c.graph.push(SoftmaxDx, &[y, d])?)
        }),
        rope("rope (halves)", RopeLayout::Halves),
        rope("rope (interleaved)", RopeLayout::Interleaved),
        far("gather-rows", 2, |c| {
            let (x, rows) = (c.x(&SHAPE)?, shuffled(c)?);
            Ok(c.graph.push(GatherRows, &[x, rows])?)
        }),
        far("scatter-add-rows", 3, |c| {
            let (base, rows, x) = (c.x(&SHAPE)?, shuffled(c)?, c.x(&SHAPE)?);
            Ok(c.graph.push(ScatterRows { accumulate: true }, &[base, rows, x])?)
        }),
        far("embed", 2, |c| {
            let (table, ids) = (c.w(Format::F32, &SHAPE)?, shuffled(c)?);
            Ok(c.graph.push(Embed, &[table, ids])?)
        }),
        far("embed-dw", 2, |c| {
            let (ids, d) = (shuffled(c)?, c.x(&SHAPE)?);
            Ok(c.graph.push(EmbedDw { vocab: Dim::fixed(ROWS as u64) }, &[d, ids])?)
        }),
        // These read and write next to nothing.
        streamed("segment-sum", ROWS, 1.0, Bound::Read, |c| {
            let (x, segments) = (c.x(&SHAPE)?, c.whole(ROWS, |i| i as i32 / 512)?);
            let count = Dim::fixed(ROWS as u64 / 512);
            Ok(c.graph.push(SegmentReduce { op: ReduceOp::Sum, count }, &[x, segments])?)
        }),
        streamed("top-k (8)", ROWS, 1.0, Bound::Read, |c| {
            let x = c.x(&SHAPE)?;
            Ok(c.graph.push(TopK { k: 8 }, &[x])?)
        }),
    ]);
    cases
}
