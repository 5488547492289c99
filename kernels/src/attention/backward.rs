//! The backward pass of the query heads of one key head over part of the keys of one run.
//!
//! ```text
//! S = Q K^T     P = 2^(S - lse)     dP = dO V^T     dS = P (dP - D),  D = rowsum(dO O)
//! dV += P^T dO  dK += dS^T Q        dQ += dS K      keys are lanes
//! ```
//!
//! Tiles of keys are the outer loop: they are transposed once for all query heads of the key head, and
//! their `dK` and `dV` stay in cache until they are complete. `dQ` is added to tile by tile, in the
//! order of the keys. Of a tile that the mask cuts through, each panel of keys is computed for the
//! queries that see any of it, and each block of rows of a gradient sums what concerns it.

use super::forward::Keys;
use super::product::{Left, NOTHING, Product};
use super::tile::{self, Bias, PANEL, Queries, Units, padded};
use super::{Inputs, Saved, Spec};
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::pool::Disjoint;
use crate::simd::{Simd, math, simd_fn};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Keys of a tile: what is packed of queries and gradients serves all of them.
pub(super) const KEYS: usize = 192;

/// Queries of a tile.
pub(super) const QUERIES: usize = 96;

/// Where the gradient of a query head goes: row `i` of the run at `i * stride`, `padded(head_dim)` floats.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) start: *mut f32,
    pub(super) stride: usize,
}

/// Part of the work.
pub(super) struct Part<'a> {
    pub(super) run: Range<usize>,
    pub(super) kv_head: usize,
    /// Keys of the run, from a multiple of [`KEYS`].
    pub(super) keys: Range<usize>,
    /// Tiles of queries that were given gradients, for each query head.
    pub(super) visited: &'a mut [bool],
}

/// What a task works on.
pub(super) struct Job<'a> {
    pub(super) isa: Isa,
    pub(super) spec: &'a Spec,
    pub(super) x: &'a Inputs<'a>,
    pub(super) saved: &'a Saved<'a>,
    /// Those of the key head in the run.
    pub(super) keys: Keys<'a>,
    pub(super) part: Part<'a>,
    pub(super) d_bias: Option<&'a Disjoint<'a, f32>>,
}

/// Gives the gradients of the keys and values of the part to `out`, and adds to the gradients of the
/// queries at `d_q(head)`, or begins those of tiles that are not visited yet. Gradients of a bias are
/// written where they are not zero.
///
/// # Safety
/// Nobody else uses `d_q` of these heads, which has rows for the run.
pub(super) unsafe fn run(job: Job<'_>, d_q: impl Fn(usize) -> Rows, mut out: impl FnMut(usize, &[f32], &[f32])) {
    let Job { isa, spec, x, saved, keys, part, d_bias } = job;
    let (dim, value_dim, len, group) = (spec.head_dim, spec.value_dim, part.run.len(), spec.group());
    let (k_pitch, v_pitch) = (tile::pitch(padded(dim)), tile::pitch(padded(value_dim)));
    let (width, value_width) = (padded(dim), padded(value_dim));
    let (q_stride, o_stride) = (spec.q_width(), spec.o_width());
    let tiles = query_tiles(spec, &part.run);
    let units = Units::new(spec, x.bias.is_some());
    let floats =
        KEYS * (dim + value_dim + width + k_pitch + value_width) + QUERIES * (2 * KEYS + k_pitch + v_pitch) + 2 * group * len;
    with_scratch(floats, |scratch| {
        let (kt, rest) = scratch.split_at_mut(KEYS * dim);
        let (vt, rest) = rest.split_at_mut(KEYS * value_dim);
        let (d_k, rest) = rest.split_at_mut(KEYS * width);
        let (d_v, rest) = rest.split_at_mut(KEYS * value_width);
        let (p, rest) = rest.split_at_mut(QUERIES * KEYS);
        let (d_s, rest) = rest.split_at_mut(QUERIES * KEYS);
        let (packed_k, rest) = rest.split_at_mut(KEYS * k_pitch);
        let (packed_q, rest) = rest.split_at_mut(QUERIES * k_pitch);
        let (packed_d_o, rest) = rest.split_at_mut(QUERIES * v_pitch);
        let (lse, delta) = rest.split_at_mut(group * len);
        let heads = part.kv_head * group..(part.kv_head + 1) * group;
        prepare(isa, spec, saved, &part, lse, delta);
        for start in part.keys.clone().step_by(KEYS) {
            let tile = start..part.keys.end.min(start + KEYS);
            let k = &keys.k[start * keys.k_stride..];
            tile::transpose(isa, k, tile.len(), keys.k_stride, dim, kt);
            tile::transpose(isa, &keys.v[start * keys.v_stride..], tile.len(), keys.v_stride, value_dim, vt);
            let (k, ldk) = tile::right(isa, k, tile.len(), keys.k_stride, dim, packed_k);
            let mut begun = false;
            for (member, head) in heads.clone().enumerate() {
                let d_q = d_q(head);
                for (number, queries) in tiles.iter().enumerate() {
                    let Some(seen) = Seen::<KEYS>::new(queries, &tile) else { continue };
                    let (count, begin) = (queries.count, number * QUERIES);
                    let token = part.run.start + begin;
                    let q = &x.q[token * q_stride + head * dim..];
                    let d_o = &saved.d_o[token * o_stride + head * value_dim..];
                    // Both operands of products with them: what is packed is read four times.
                    let (q, ldq) = tile::right(isa, q, count, q_stride, dim, packed_q);
                    let (d_o, ldd) = tile::right(isa, d_o, count, o_stride, value_dim, packed_d_o);
                    for panel in (0..tile.len()).step_by(PANEL) {
                        let lanes = panel..tile.len().min(panel + PANEL);
                        let (pitch, rows) = (padded(lanes.len()), seen.rows(&lanes, count));
                        if rows.is_empty() {
                            hide(panel, pitch, 0..count, d_s);
                            continue;
                        }
                        let scores = Product {
                            m: rows.len(),
                            n: pitch,
                            k: dim,
                            a: q.wrapping_add(rows.start * ldq),
                            left: Left::Rows(ldq),
                            b: kt[panel * dim..].as_ptr(),
                            ldb: pitch,
                            ahead: NOTHING,
                            c: p[rows.start * KEYS + panel..].as_mut_ptr(),
                            ldc: KEYS,
                            adds: false,
                            terms: &[],
                        };
                        // SAFETY: `count` rows of queries and gradients, whole panels of transposed keys and
                        // values, and whole tiles of scores.
                        unsafe {
                            scores.run(isa);
                            Product {
                                k: value_dim,
                                a: d_o.wrapping_add(rows.start * ldd),
                                left: Left::Rows(ldd),
                                b: vt[panel * value_dim..].as_ptr(),
                                c: d_s[rows.start * KEYS + panel..].as_mut_ptr(),
                                ..scores
                            }
                            .run(isa);
                        }
                        let (tile, rows, whole) = (&tile, rows.clone(), seen.whole);
                        let chain = Chain { spec, units, queries, tile, head, rows: rows.clone(), lanes, whole, pitch: KEYS };
                        let at = member * len + begin..member * len + begin + count;
                        chain_rule(
                            isa,
                            &chain,
                            &lse[at.clone()],
                            &delta[at],
                            keys.bias.as_ref(),
                            d_bias,
                            &mut p[panel..],
                            &mut d_s[panel..],
                        );
                        hide(panel, pitch, 0..rows.start, d_s);
                        hide(panel, pitch, rows.end..count, d_s);
                    }
                    let visited = &mut part.visited[member * tiles.len() + number];
                    let d_values = Product {
                        m: tile.len(),
                        n: value_width,
                        k: count,
                        a: p.as_ptr(),
                        left: Left::Columns(KEYS),
                        b: d_o,
                        ldb: ldd,
                        ahead: NOTHING,
                        c: d_v.as_mut_ptr(),
                        ldc: value_width,
                        adds: begun,
                        terms: seen.of_keys(tile.len()),
                    };
                    let d_keys =
                        Product { n: width, a: d_s.as_ptr(), b: q, ldb: ldq, c: d_k.as_mut_ptr(), ldc: width, ..d_values };
                    let d_queries = Product {
                        m: count,
                        n: width,
                        k: tile.len(),
                        a: d_s.as_ptr(),
                        left: Left::Rows(KEYS),
                        b: k,
                        ldb: ldk,
                        ahead: NOTHING,
                        c: d_q.start.wrapping_add(begin * d_q.stride),
                        ldc: d_q.stride,
                        adds: std::mem::replace(visited, true),
                        terms: seen.of_queries(count),
                    };
                    // SAFETY: whole tiles in scratch; the gradients have a row for each key, or query.
                    unsafe {
                        d_values.run(isa);
                        d_keys.run(isa);
                        d_queries.run(isa);
                    }
                    begun = true;
                }
            }
            if !begun {
                // No query sees these keys.
                d_k.fill(0.0);
                d_v.fill(0.0);
            }
            let rows = d_k.chunks_exact(width).zip(d_v.chunks_exact(value_width));
            for (key, (d_k, d_v)) in tile.zip(rows) {
                out(key, &d_k[..dim], &d_v[..value_dim]);
            }
        }
    });
}

/// Tiles of the queries of a run; rows are those of the first head.
pub(super) fn query_tiles(spec: &Spec, run: &Range<usize>) -> Vec<Queries<QUERIES>> {
    let len = run.len();
    let tile = |begin: usize| (begin..len.min(begin + QUERIES)).map(|i| ((run.start + i) * spec.heads, i));
    (0..len).step_by(QUERIES).map(|begin| Queries::new(spec, len, tile(begin))).collect()
}

/// Writes `lse`, in powers of two, and `D` of all queries that may see keys of the part, for each head.
pub(super) fn prepare(isa: Isa, spec: &Spec, saved: &Saved<'_>, part: &Part<'_>, lse: &mut [f32], delta: &mut [f32]) {
    let (group, value_dim, len) = (spec.group(), spec.value_dim, part.run.len());
    let first = if spec.causal { part.keys.start } else { 0 };
    for (member, (lse, delta)) in lse.chunks_exact_mut(len).zip(delta.chunks_exact_mut(len)).enumerate() {
        let head = part.kv_head * group + member;
        for (i, (lse, delta)) in lse.iter_mut().zip(delta).enumerate().skip(first) {
            let token = part.run.start + i;
            let at = token * spec.o_width() + head * value_dim;
            *lse = saved.lse[head * (saved.lse.len() / spec.heads) + token] * LOG2_E;
            *delta = dot(isa, &saved.o[at..][..value_dim], &saved.d_o[at..][..value_dim]);
        }
    }
}

/// What a tile of queries sees of a tile of keys.
pub(super) struct Seen<const KEYS: usize> {
    pub(super) whole: bool,
    /// Keys that each query sees, and queries that see each key.
    queries: [Range<u32>; QUERIES],
    keys: [Range<u32>; KEYS],
}

impl<const KEYS: usize> Seen<KEYS> {
    /// `None` if they see nothing.
    pub(super) fn new(queries: &Queries<QUERIES>, tile: &Range<usize>) -> Option<Seen<KEYS>> {
        let count = queries.count;
        let whole = queries.ascend_and_see_all(0..count, tile);
        let mut seen = Seen { whole, queries: [const { 0..0 }; QUERIES], keys: [const { 0..0 }; KEYS] };
        if whole {
            return Some(seen);
        }
        for (lane, span) in seen.queries.iter_mut().enumerate().take(count) {
            *span = queries.span(lane, tile);
        }
        if seen.queries[..count].iter().all(Range::is_empty) {
            return None;
        }
        // Starts and ends ascend, so the queries that see a key are a range whose bounds ascend too.
        let (mut start, mut end) = (0, 0);
        for (key, span) in seen.keys.iter_mut().enumerate().take(tile.len()) {
            while start < count && seen.queries[start].end as usize <= key {
                start += 1;
            }
            while end < count && seen.queries[end].start as usize <= key {
                end += 1;
            }
            *span = start as u32..end as u32;
        }
        Some(seen)
    }

    /// Queries that see any of these keys.
    fn rows(&self, keys: &Range<usize>, count: usize) -> Range<usize> {
        if self.whole { 0..count } else { tile::union(self.keys[keys.clone()].iter().cloned()) }
    }

    /// Keys, of `len`, that any of these queries sees.
    pub(super) fn keys_of(&self, queries: Range<usize>, len: usize) -> Range<usize> {
        if self.whole && !queries.is_empty() { 0..len } else { tile::union(self.queries[queries].iter().cloned()) }
    }

    fn of_queries(&self, count: usize) -> &[Range<u32>] {
        if self.whole { &[] } else { &self.queries[..count] }
    }

    fn of_keys(&self, count: usize) -> &[Range<u32>] {
        if self.whole { &[] } else { &self.keys[..count] }
    }
}

/// Clears rows of a panel that nobody computed, but that share a block with others.
fn hide(panel: usize, pitch: usize, rows: Range<usize>, d_s: &mut [f32]) {
    d_s.chunks_exact_mut(KEYS).take(rows.end).skip(rows.start).for_each(|row| row[panel..][..pitch].fill(0.0));
}

/// What of a tile [`chain_rule`] works on.
pub(super) struct Chain<'a> {
    pub(super) spec: &'a Spec,
    pub(super) units: Units,
    pub(super) queries: &'a Queries<QUERIES>,
    pub(super) tile: &'a Range<usize>,
    pub(super) head: usize,
    /// Queries of the tile, and keys: lanes of a panel.
    pub(super) rows: Range<usize>,
    pub(super) lanes: Range<usize>,
    pub(super) whole: bool,
    /// Distance of the rows of scores and gradients, which begin with the panel.
    pub(super) pitch: usize,
}

simd_fn! {
    /// Turns scores into weights, and gradients of weights into gradients of scores, times the scale.
    /// `lse`, in powers of two, and `delta` have an element for each row of the tile.
    pub(super) fn chain_rule<S>(
        s,
        chain: &Chain<'_>,
        lse: &[f32],
        delta: &[f32],
        bias: Option<&Bias<'_>>,
        d_bias: Option<&Disjoint<'_, f32>>,
        scores: &mut [f32],
        d_weights: &mut [f32],
    ) {
        let Chain { spec, units, queries, tile, head, rows, lanes, whole, pitch } = chain;
        let (width, panel) = (padded(lanes.len()), tile.start + lanes.start..tile.start + lanes.end);
        let (factor, scale) = (s.splat(units.factor), s.splat(spec.scale));
        for row in rows.clone() {
            let whole = *whole || queries.see_all(row..row + 1, &panel);
            let (scores, d_weights) = (&mut scores[row * pitch..][..width], &mut d_weights[row * pitch..][..width]);
            let (less, delta) = (s.splat(-lse[row]), delta[row]);
            let less_delta = s.splat(-delta * spec.scale);
            for lane in (0..width).step_by(S::LANES) {
                let key = panel.start + lane;
                // SAFETY: whole vectors of a row of a panel.
                unsafe {
                    let (scores, d_weights) = (scores.as_mut_ptr().add(lane), d_weights.as_mut_ptr().add(lane));
                    let (mut score, d_weight) = (s.load(scores), s.load(d_weights));
                    let mut slope = s.splat(1.0);
                    let biased = bias.map(|bias| (bias.at(queries.row[row] + head, key), lanes.len().saturating_sub(lane)));
                    if units.bent {
                        score = s.mul(score, scale);
                        if let Some(cap) = spec.softcap {
                            let bent = math::tanh(s, s.mul(score, s.splat(1.0 / cap)));
                            slope = s.fnma(bent, bent, slope);
                            score = s.mul(s.splat(cap), bent);
                        }
                        if let (Some(bias), Some((at, left))) = (bias, biased) {
                            score = s.add(score, s.load_up_to(bias.all.as_ptr().wrapping_add(at), left));
                        }
                        score = s.mul(score, s.splat(LOG2_E));
                    }
                    let weight = shown(s, whole, queries, row, key, math::exp2(s, s.fma(score, factor, less)));
                    s.store(scores, weight);
                    if !units.bent {
                        s.store(d_weights, shown(s, whole, queries, row, key, s.mul(weight, s.fma(d_weight, scale, less_delta))));
                        continue;
                    }
                    let d_score = shown(s, whole, queries, row, key, s.mul(weight, s.sub(d_weight, s.splat(delta))));
                    if let (Some(d_bias), Some((at, left))) = (d_bias, biased) {
                        // This part alone has these keys of the query.
                        s.store_up_to(d_bias.as_mut_ptr().wrapping_add(at), left, d_score);
                    }
                    s.store(d_weights, s.mul(d_score, s.mul(slope, scale)));
                }
            }
        }
    }
}

/// `x` where the query of a row sees the vector of keys from `key` on, else zero: what is hidden may
/// not even be a number.
#[inline(always)]
fn shown<S: Simd>(s: S, whole: bool, queries: &Queries<QUERIES>, row: usize, key: usize, x: S::F) -> S::F {
    if whole { x } else { queries.mask_keys(s, row, key, x, s.zero()) }
}

simd_fn! {
    fn dot<S>(s, a: &[f32], b: &[f32]) -> f32 {
        let len = a.len().min(b.len());
        let mut acc = s.zero();
        for i in (0..len).step_by(S::LANES) {
            let n = len - i;
            // SAFETY: below both lengths.
            acc = unsafe { s.fma(s.load_up_to(a.as_ptr().add(i), n), s.load_up_to(b.as_ptr().add(i), n), acc) };
        }
        s.sum(acc)
    }
}
