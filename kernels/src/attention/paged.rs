//! Attention of new tokens to a paged cache, for the wide levels.
//!
//! All query heads of a key head, and all consecutive new tokens of a sequence, share a pass over the
//! pages (FlashAttention's running softmax, page by page). Every [`SPLIT`] pages, by position, the
//! pass starts afresh and the parts are joined (Flash-Decoding, Dao et al. 2023), so that long
//! contexts are read by all threads. A row's arithmetic depends on its own position, mask and keys
//! alone: not on threads, on other rows, or on how its sequence was cut into steps.

use super::product::{Layout, Product};
use super::tile::{self, NO_SCORE, Queries, TILE, padded};
use super::{CacheFormat, PAGE, Place, Spec, Step};
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};
use crate::simd::{math, simd_fn};
use std::ops::Range;

/// Pages of an independent part of the sum.
const SPLIT: usize = 4;

/// With fewer tasks than this, parts become tasks of their own.
const FEW: usize = 16;

const _: () = assert!(PAGE == TILE, "a page is a tile of keys");

/// New tokens of one sequence at consecutive positions, under the heads of a key head.
struct Pass {
    /// First row.
    start: usize,
    /// Numbers `row * group + head` from the first row on: one lane each.
    lanes: Range<usize>,
    /// Pages that any lane sees: number in the sequence, number in the cache, keys to look at.
    pages: Vec<(usize, usize, usize)>,
    /// Ranges of `pages` that are summed on their own.
    parts: Vec<Range<usize>>,
}

impl Pass {
    fn queries(&self, spec: &Spec, places: &[Place], keys: usize, kv_head: usize) -> Queries {
        let group = spec.group();
        let lanes = self.lanes.clone().map(|lane| {
            let row = self.start + lane / group;
            (row * spec.heads + kv_head * group + lane % group, places[row].position)
        });
        Queries::new(spec, keys, lanes)
    }
}

/// Cuts rows into passes. The table has been checked.
fn passes(spec: &Spec, step: &Step<'_>, places: &[Place]) -> Vec<Pass> {
    let (mut start, mut passes) = (0, Vec::new());
    for run in places.chunk_by(|a, b| a.slot == b.slot && a.position + 1 == b.position) {
        let lanes = run.len() * spec.group();
        let table = &step.table[run[0].slot * step.columns..][..step.columns];
        for lane in (0..lanes).step_by(TILE) {
            let lanes = lane..lanes.min(lane + TILE);
            let mut pass = Pass { start, lanes, pages: Vec::new(), parts: Vec::new() };
            let queries = pass.queries(spec, places, step.columns * PAGE, 0);
            pass.pages = queries.tiles().map(|keys| (keys.start / PAGE, table[keys.start / PAGE] as usize, keys.len())).collect();
            let mut at = 0;
            for part in pass.pages.chunk_by(|a, b| a.0 / SPLIT == b.0 / SPLIT) {
                pass.parts.push(at..at + part.len());
                at += part.len();
            }
            passes.push(pass);
        }
        start += run.len();
    }
    passes
}

/// A cache that is only read.
#[derive(Clone, Copy)]
struct View<'a> {
    format: CacheFormat,
    k: &'a [u32],
    v: &'a [u32],
}

pub(super) fn attend(
    pool: &Pool,
    spec: &Spec,
    step: &Step<'_>,
    places: &[Place],
    format: CacheFormat,
    [k, v]: [&[u32]; 2],
    o: &mut [f32],
) {
    let passes = passes(spec, step, places);
    let (view, o, isa) = (View { format, k, v }, Disjoint::new(o), pool.isa());
    let width = padded(spec.value_dim);
    let finish = |queries: &Queries, sums: &Sums, acc: &mut [f32]| {
        for (lane, acc) in acc.chunks_exact_mut(width).enumerate().take(queries.count) {
            let (mut sum, mut shrink) = (sums.sum[lane], 1.0);
            if let Some(sinks) = step.sinks {
                let sink = sinks[queries.row[lane] % spec.heads];
                let higher = sums.top[lane].max(sink);
                shrink = (sums.top[lane] - higher).exp();
                sum = sum * shrink + (sink - higher).exp();
            }
            tile::scale(isa, acc, shrink / sum);
            // SAFETY: each head of each row belongs to one lane of one pass.
            let o = unsafe { o.slice(queries.row[lane] * spec.value_dim, spec.value_dim) };
            o.copy_from_slice(&acc[..spec.value_dim]);
        }
    };
    let (tasks, keys) = (passes.len() * spec.kv_heads, step.columns * PAGE);
    let parts = passes.iter().map(|pass| pass.parts.len()).max().unwrap_or(0);
    if tasks >= FEW || parts < 2 {
        pool.run(tasks, &|task| {
            let (pass, kv_head) = (&passes[task / spec.kv_heads], task % spec.kv_heads);
            let queries = pass.queries(spec, places, keys, kv_head);
            with_scratch(2 * TILE * width, |scratch| {
                let (acc, other) = scratch.split_at_mut(TILE * width);
                let mut sums = Sums::new();
                for (number, part) in pass.parts.iter().enumerate() {
                    if number == 0 {
                        sums = sum(isa, spec, &queries, step.q, view, kv_head, &pass.pages[part.clone()], acc);
                    } else {
                        let more = sum(isa, spec, &queries, step.q, view, kv_head, &pass.pages[part.clone()], other);
                        join(isa, queries.count, width, &mut sums, acc, &more, other);
                    }
                }
                finish(&queries, &sums, acc);
            });
        });
        return;
    }
    // Few rows over long contexts: every part is a task, and they are joined in order afterwards.
    let piece = TILE * width;
    let mut found = vec![Sums::new(); tasks * parts];
    with_scratch(tasks * parts * piece, |scratch| {
        let (all, results) = (Disjoint::new(scratch), Disjoint::new(&mut found));
        pool.run(tasks * parts, &|task| {
            let (pass, kv_head) = (&passes[task / parts / spec.kv_heads], task / parts % spec.kv_heads);
            let Some(part) = pass.parts.get(task % parts) else { return };
            let queries = pass.queries(spec, places, keys, kv_head);
            // SAFETY: each part belongs to one task.
            let (acc, result) = unsafe { (all.slice(task * piece, piece), results.slice(task, 1)) };
            result[0] = sum(isa, spec, &queries, step.q, view, kv_head, &pass.pages[part.clone()], acc);
        });
        pool.run(tasks, &|task| {
            let (pass, kv_head) = (&passes[task / spec.kv_heads], task % spec.kv_heads);
            let queries = pass.queries(spec, places, keys, kv_head);
            // SAFETY: the parts of one pass belong to one task now.
            let (acc, results) = unsafe { (all.slice(task * parts * piece, parts * piece), results.slice(task * parts, parts)) };
            let (acc, others) = acc.split_at_mut(piece);
            let mut sums = results[0];
            for (other, more) in others.chunks_exact(piece).zip(&results[1..pass.parts.len()]) {
                join(isa, queries.count, width, &mut sums, acc, more, other);
            }
            finish(&queries, &sums, acc);
        });
    });
}

/// Running softmax of the lanes.
#[derive(Clone, Copy)]
struct Sums {
    top: [f32; TILE],
    sum: [f32; TILE],
}

impl Sums {
    fn new() -> Sums {
        Sums { top: [NO_SCORE; TILE], sum: [0.0; TILE] }
    }
}

/// Adds the part `more`, `other` to `sums`, `acc`.
fn join(isa: Isa, count: usize, width: usize, sums: &mut Sums, acc: &mut [f32], more: &Sums, other: &[f32]) {
    for lane in 0..count {
        let top = sums.top[lane].max(more.top[lane]);
        let (a, b) = ((sums.top[lane] - top).exp(), (more.top[lane] - top).exp());
        sums.top[lane] = top;
        sums.sum[lane] = sums.sum[lane] * a + more.sum[lane] * b;
        let range = lane * width..(lane + 1) * width;
        blend(isa, &mut acc[range.clone()], a, &other[range], b);
    }
}

simd_fn! {
    /// `x = x a + y b`.
    fn blend<S>(s, x: &mut [f32], a: f32, y: &[f32], b: f32) {
        assert_eq!(x.len(), y.len());
        let (pointer, a, b) = (x.as_mut_ptr(), s.splat(a), s.splat(b));
        // SAFETY: slices of one length; `x` is worked on in place.
        unsafe { crate::simd::map2(s, pointer, y.as_ptr(), pointer, x.len(), |x, y| s.fma(x, a, s.mul(y, b))) };
    }
}

/// Sums the values of `pages` under the weights of the queries into `acc`, rows of
/// `padded(value_dim)`.
fn sum(
    isa: Isa,
    spec: &Spec,
    queries: &Queries,
    q: &[f32],
    view: View<'_>,
    kv_head: usize,
    pages: &[(usize, usize, usize)],
    acc: &mut [f32],
) -> Sums {
    let (dim, value_dim) = (spec.head_dim, spec.value_dim);
    let width = padded(value_dim);
    let (k_words, v_words) = (view.format.head_words(dim), view.format.head_words(value_dim));
    assert!(acc.len() >= queries.count * width);
    let mut sums = Sums::new();
    let mut shrink = [1.0; TILE];
    with_scratch(TILE * (2 * dim + TILE + width + value_dim), |scratch| {
        let (scaled, rest) = scratch.split_at_mut(TILE * dim);
        let (scores, rest) = rest.split_at_mut(TILE * TILE);
        let (k_page, rest) = rest.split_at_mut(PAGE * dim);
        let (v_page, v_rows) = rest.split_at_mut(PAGE * value_dim);
        for (scaled, &row) in scaled.chunks_exact_mut(dim).zip(&queries.row[..queries.count]) {
            scaled.iter_mut().zip(&q[row * dim..]).for_each(|(to, from)| *to = from * spec.scale);
        }
        for (number, &(page, place, len)) in pages.iter().enumerate() {
            let k = &view.k[(place * spec.kv_heads + kv_head) * k_words..][..k_words];
            let v = &view.v[(place * spec.kv_heads + kv_head) * v_words..][..v_words];
            let (k, k_scales) = floats(isa, view.format, k, PAGE * dim, k_page);
            let (v, v_scales) = floats(isa, view.format, v, len * value_dim, v_page);
            // SAFETY: `count` rows of queries, `dim` rows of a page of keys, `count` rows of scores.
            unsafe {
                Product {
                    m: queries.count,
                    n: PAGE,
                    k: dim,
                    a: scaled.as_ptr(),
                    a_row: dim,
                    a_step: 1,
                    b: k.as_ptr(),
                    b_layout: Layout::Rows(PAGE),
                    c: scores.as_mut_ptr(),
                    ldc: TILE,
                    adds: false,
                }
                .run(isa);
            }
            weigh(isa, spec, queries, page * PAGE, k_scales, v_scales, scores, &mut sums, &mut shrink);
            if number > 0 {
                for (acc, &shrink) in acc.chunks_exact_mut(width).zip(&shrink).take(queries.count) {
                    if shrink != 1.0 {
                        tile::scale(isa, acc, shrink);
                    }
                }
            }
            let (v, v_stride) = tile::rows(v, len, value_dim, value_dim, v_rows);
            // SAFETY: `count` rows of scores, `len` rows of values, and `acc` has rows for all queries.
            unsafe {
                Product {
                    m: queries.count,
                    n: width,
                    k: len,
                    a: scores.as_ptr(),
                    a_row: TILE,
                    a_step: 1,
                    b: v,
                    b_layout: Layout::Rows(v_stride),
                    c: acc.as_mut_ptr(),
                    ldc: width,
                    adds: number > 0,
                }
                .run(isa);
            }
        }
    });
    sums
}

/// The first `count` elements of a head's page as floats, which may be in `scratch`, and the factors
/// of its rows, if there are any.
fn floats<'a>(
    isa: Isa,
    format: CacheFormat,
    words: &'a [u32],
    count: usize,
    scratch: &'a mut [f32],
) -> (&'a [f32], Option<&'a [f32]>) {
    assert!(words.len() * 4 >= count * format.bytes() && scratch.len() >= count);
    // SAFETY: every bit pattern is a float, of a word's size and alignment.
    let as_floats = |words: &'a [u32]| unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<f32>(), words.len()) };
    match format {
        CacheFormat::F32 => (&as_floats(words)[..count], None),
        CacheFormat::F16 => {
            widen_f16(isa, words, &mut scratch[..count]);
            (&scratch[..count], None)
        }
        CacheFormat::Int8 => {
            widen_i8(isa, words, &mut scratch[..count]);
            (&scratch[..count], Some(as_floats(&words[words.len() - PAGE..])))
        }
    }
}

simd_fn! {
    /// Half floats to floats.
    fn widen_f16<S>(s, from: &[u32], to: &mut [f32]) {
        assert!(from.len() * 2 >= to.len());
        let whole = to.len() / S::LANES * S::LANES;
        let halves = from.as_ptr().cast::<u16>();
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: whole vectors below both lengths.
            unsafe { s.store(to.as_mut_ptr().add(i), s.load_f16(halves.add(i))) };
        }
        for (i, to) in to.iter_mut().enumerate().skip(whole) {
            // SAFETY: below the length.
            *to = half::f16::from_bits(unsafe { *halves.add(i) }).to_f32();
        }
    }
}

simd_fn! {
    /// Bytes to floats, without their factor.
    fn widen_i8<S>(s, from: &[u32], to: &mut [f32]) {
        assert!(from.len() * 4 >= to.len());
        let whole = to.len() / S::LANES * S::LANES;
        let bytes = from.as_ptr().cast::<i8>();
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: whole vectors below both lengths.
            unsafe { s.store(to.as_mut_ptr().add(i), s.load_i8(bytes.add(i))) };
        }
        for (i, to) in to.iter_mut().enumerate().skip(whole) {
            // SAFETY: below the length.
            *to = f32::from(unsafe { *bytes.add(i) });
        }
    }
}

/// Numbers of lanes.
static COUNT: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

simd_fn! {
    /// Turns the scores of a page, a row for each query, into weights relative to the running
    /// maximum, and multiplies them by the factors of the values.
    fn weigh<S>(
        s,
        spec: &Spec,
        queries: &Queries,
        first: usize,
        k_scales: Option<&[f32]>,
        v_scales: Option<&[f32]>,
        scores: &mut [f32],
        sums: &mut Sums,
        shrink: &mut [f32; TILE],
    ) {
        assert!(scores.len() >= TILE * TILE && queries.count <= TILE);
        assert!([k_scales, v_scales].iter().flatten().all(|scales| scales.len() >= PAGE));
        let hidden = s.splat(f32::NEG_INFINITY);
        for (lane, shrink) in shrink.iter_mut().enumerate().take(queries.count) {
            let whole = queries.sees_all(lane, &(first..first + PAGE));
            let before = sums.top[lane];
            // SAFETY: whole vectors of rows of a page; there are as many numbers as lanes.
            unsafe {
                let row = scores.as_mut_ptr().add(lane * TILE);
                let mut top = s.splat(before);
                for at in (0..PAGE).step_by(S::LANES) {
                    let mut score = s.load(row.add(at));
                    if let Some(scales) = k_scales {
                        score = s.mul(score, s.load(scales.as_ptr().add(at)));
                    }
                    if let Some(cap) = spec.softcap {
                        score = s.mul(s.splat(cap), math::tanh(s, s.mul(score, s.splat(1.0 / cap))));
                    }
                    if !whole {
                        let keys = s.add(s.splat((first + at) as f32), s.load(COUNT.as_ptr()));
                        score = queries.mask_keys(s, lane, keys, score, hidden);
                    }
                    s.store(row.add(at), score);
                    top = s.max(score, top);
                }
                let top = s.top(top);
                let mut sum = s.zero();
                for at in (0..PAGE).step_by(S::LANES) {
                    let mut weight = math::exp(s, s.sub(s.load(row.add(at)), s.splat(top)));
                    sum = s.add(sum, weight);
                    if let Some(scales) = v_scales {
                        weight = s.mul(weight, s.load(scales.as_ptr().add(at)));
                        if !whole {
                            // Places that nobody wrote have factors that are not numbers.
                            let keys = s.add(s.splat((first + at) as f32), s.load(COUNT.as_ptr()));
                            weight = queries.mask_keys(s, lane, keys, weight, s.zero());
                        }
                    }
                    s.store(row.add(at), weight);
                }
                *shrink = (before - top).exp();
                sums.sum[lane] = sums.sum[lane] * *shrink + s.sum(sum);
                sums.top[lane] = top;
            }
        }
    }
}
