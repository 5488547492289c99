//! One tile of queries against all keys that it sees.
//!
//! ```text
//! S^T = K Q^T        [keys, queries]   queries are lanes, in panels of 32
//! P^T = 2^(S^T - m)                    as at other levels
//! O^T = V^T P^T      [dim, queries]    scaled anew when m rises
//! ```
//!
//! So weights are split where they lie, and neither they nor keys are transposed; values are, once for all queries.

use super::super::Spec;
use super::super::forward::{QUERIES, Seen, State, soften};
use super::super::tile::{Bias, Queries, padded};
use super::{columns, rows, terms, transposed_rows};
use crate::amx::Tiles;
use crate::gemm::kernel::{Transpose, kernels};
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::pool::Disjoint;
use crate::simd::simd_fn;
use crate::split::{CHUNK, Columns, DEPTH, WIDTH, accumulate, product, room};
use std::ops::Range;

/// Keys of a tile: what a panel of queries meets of them, and its scores and weights, about fit into the first-level cache. 96 and 128,
/// with fewer loads and stores of sums, are 5 to 10% slower.
const KEYS: usize = 64;

const PANELS: usize = QUERIES / WIDTH;

/// Keys and values of a head of a run, split: 32 keys after another, and 32 rows of the transposed values after another.
#[derive(Clone, Copy)]
pub(crate) struct SplitKeys<'a> {
    k: &'a [f32],
    v: &'a [f32],
    /// Floats of a block of values.
    v_step: usize,
}

impl<'a> SplitKeys<'a> {
    /// Floats that `len` keys and values take.
    pub(crate) fn floats(spec: &Spec, len: usize) -> usize {
        let [k, v] = SplitKeys::parts(spec, len);
        k + v
    }

    /// Those of keys, and of values.
    fn parts(spec: &Spec, len: usize) -> [usize; 2] {
        let blocks = len.div_ceil(WIDTH);
        [blocks * room(spec.head_dim), blocks * room(spec.value_dim)]
    }

    /// Keys and values that [`split`] has written.
    pub(crate) fn new(spec: &Spec, len: usize, packed: &'a [f32]) -> SplitKeys<'a> {
        let [k, v] = SplitKeys::parts(spec, len);
        let (k, rest) = packed.split_at(k);
        SplitKeys { k, v: &rest[..v], v_step: room(len) }
    }
}

/// Splits some rows of keys and values of a head, from a multiple of 32 on, to their places in the head's `out`. Whether all are
/// finite.
///
/// # Safety
/// Nobody else uses the places of these rows.
pub(crate) unsafe fn split(
    isa: Isa,
    spec: &Spec,
    [k, v]: [(&[f32], usize); 2],
    len: usize,
    rows_of_task: Range<usize>,
    out: &Disjoint<'_, f32>,
) -> bool {
    let (k_room, v_step) = (room(spec.head_dim), room(len));
    let [k_floats, _] = SplitKeys::parts(spec, len);
    with_scratch(WIDTH * spec.value_dim, |scratch| {
        rows_of_task.clone().step_by(WIDTH).fold(true, |finite, first| {
            let (count, block) = (WIDTH.min(rows_of_task.end - first), first / WIDTH);
            // SAFETY: the caller's promise.
            let k_out = unsafe { out.slice(block * k_room, k_room) };
            let finite = finite & rows(&k.0[first * k.1..], count, k.1, spec.head_dim, k_out);
            let (values, v_out) = (&v.0[first * v.1..], out.after(k_floats + block * CHUNK));
            // SAFETY: as above.
            finite & unsafe { transposed_rows(isa, values, count, v.1, spec.value_dim, scratch, &v_out, v_step) }
        })
    })
}

/// As [`super::super::forward::attend`].
pub(crate) fn attend(
    isa: Isa,
    spec: &Spec,
    queries: &Queries<QUERIES>,
    q: &[f32],
    keys: SplitKeys<'_>,
    biases: Option<Bias<'_>>,
    sink: Option<f32>,
    mut out: impl FnMut(usize, &[f32], f32, f32),
) {
    let (dim, value_dim, count) = (spec.head_dim, spec.value_dim, queries.count);
    let (q_room, v_rows) = (room(dim), value_dim.next_multiple_of(WIDTH));
    let biased = biases.map_or(0, |_| KEYS * WIDTH);
    let floats = PANELS * (q_room + v_rows * WIDTH) + KEYS * WIDTH + room(KEYS) + WIDTH * v_rows.max(dim) + biased;
    with_scratch(floats, |scratch| {
        let (qt, rest) = scratch.split_at_mut(PANELS * q_room);
        let (o, rest) = rest.split_at_mut(PANELS * v_rows * WIDTH);
        let (scores, rest) = rest.split_at_mut(KEYS * WIDTH);
        let (weights, rest) = rest.split_at_mut(room(KEYS));
        let (turned, bias) = rest.split_at_mut(WIDTH * v_rows.max(dim));
        let panels = || (0..count).step_by(WIDTH).map(|first| first..count.min(first + WIDTH));
        for (lanes, qt) in panels().zip(qt.chunks_exact_mut(q_room)) {
            let q = &q[queries.row[lanes.start] * dim..];
            columns(isa, q, lanes.len(), spec.q_width(), dim, turned, qt);
        }
        let mut state = State::new();
        let mut begun = [false; PANELS];
        // SAFETY: the level has tiles, and nothing below takes them.
        let tiles = unsafe { Tiles::take() };
        for tile in queries.tiles(KEYS) {
            for (panel, lanes) in panels().enumerate() {
                let Some(seen) = Seen::new(queries, lanes.clone(), &tile) else { continue };
                let (pitch, computed) = (padded(lanes.len()), seen.computed());
                let blocks = computed.start / WIDTH..computed.end.div_ceil(WIDTH);
                let first = tile.start / WIDTH;
                let width = if pitch > WIDTH / 2 { Columns::Both } else { Columns::First };
                for block in blocks.clone() {
                    let (k, to) = (&keys.k[(first + block) * q_room..][..q_room], &mut scores[block * WIDTH * pitch..]);
                    // SAFETY: whole operands; a block of scores, whose rows are as long as is written.
                    unsafe {
                        let qt = qt[panel * q_room..].as_ptr();
                        product(k.as_ptr(), qt, dim.div_ceil(DEPTH), to[..WIDTH * pitch].as_mut_ptr(), pitch, width);
                    }
                }
                if let Some(from) = &biases {
                    from.transpose(&queries.row[lanes.start..][..pitch], &tile, pitch, bias);
                }
                soften(isa, spec, queries, &seen, bias, &mut state, scores);
                scores[blocks.start * WIDTH * pitch..computed.start * pitch].fill(0.0);
                scores[computed.end * pitch..blocks.end * WIDTH * pitch].fill(0.0);
                terms(&scores[blocks.start * WIDTH * pitch..], pitch, lanes.len(), blocks.len() * WIDTH, weights);
                let o = &mut o[panel * v_rows * WIDTH..][..v_rows * WIDTH];
                let shrink = &state.shrink[lanes.start..][..WIDTH];
                let adds = std::mem::replace(&mut begun[panel], true);
                if adds && shrink.iter().fold(false, |any, &shrink| any | (shrink != 1.0)) {
                    scale_lanes(isa, o, shrink);
                }
                for (value, o) in o.chunks_exact_mut(WIDTH * WIDTH).enumerate() {
                    let v = &keys.v[value * keys.v_step + (first + blocks.start) * CHUNK..][..blocks.len() * CHUNK];
                    // SAFETY: as many chunks of both operands, and a block of sums.
                    unsafe { accumulate(v.as_ptr(), weights.as_ptr(), blocks.len(), o.as_mut_ptr(), adds) };
                }
            }
        }
        drop(tiles);
        for (lanes, o) in panels().zip(o.chunks_exact(v_rows * WIDTH)) {
            turn(isa, o, v_rows, turned);
            for (lane, o) in lanes.zip(turned.chunks_exact(v_rows)) {
                let (factor, log_sum) = state.finish(lane, sink);
                out(lane, &o[..value_dim], factor, log_sum);
            }
        }
    });
}

/// Transposes `count` rows of 32 floats, a multiple of 16.
pub(super) fn turn(isa: Isa, from: &[f32], count: usize, to: &mut [f32]) {
    const ROWS: usize = 16;
    assert!(count.is_multiple_of(ROWS) && from.len() >= count * WIDTH && to.len() >= count * WIDTH);
    for first in (0..count).step_by(ROWS) {
        let (src, dst) = (from[first * WIDTH..].as_ptr(), to[first..].as_mut_ptr());
        let rows = Transpose { rows: ROWS, len: WIDTH, src, src_stride: WIDTH, dst, dst_stride: count };
        // SAFETY: whole rows of `from`, and sixteen columns of `to`.
        unsafe { (kernels(isa).transpose)(rows) };
    }
}

simd_fn! {
    /// Multiplies rows of 32 lanes by a factor for each lane.
    fn scale_lanes<S>(s, x: &mut [f32], factors: &[f32]) {
        assert!(x.len().is_multiple_of(WIDTH) && factors.len() == WIDTH);
        for lane in (0..WIDTH).step_by(S::LANES) {
            // SAFETY: whole vectors of the factors, and of every row.
            unsafe {
                let factor = s.load(factors.as_ptr().add(lane));
                for at in (lane..x.len()).step_by(WIDTH) {
                    let x = x.as_mut_ptr().add(at);
                    s.store(x, s.mul(s.load(x), factor));
                }
            }
        }
    }
}
