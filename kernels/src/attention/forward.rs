//! The forward tile: one tile of queries against all keys that it sees.
//!
//! ```text
//! S^T = K Q^T        [keys, queries]   queries are lanes, in panels of three vectors
//! P^T = 2^(S^T - m)  m, l: maximum so far, but for a little slack, and sum of each lane
//! O   = P V          [queries, dim]    scaled anew when m rises
//! ```
//!
//! Of a tile of keys that the mask cuts through, each vector of queries computes the scores up to its
//! own last key, and each block of rows of `O` sums up to its own.

use super::Spec;
use super::product::{Left, NOTHING, Product};
use super::tile::{self, Bias, NO_SCORE, PAD, PANEL, Queries, SLACK, Units, mask, padded};
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::simd::{math, simd_fn};
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// Queries of a tile: what the first-level cache holds of keys and values serves all of them.
pub(super) const QUERIES: usize = 192;

/// Keys of a tile: sums of the output are loaded and stored once for so many terms.
const KEYS: usize = 128;

/// Keys and values of one head of one run: row `j` of the keys is at `j * k_stride`. Rows of values are whole vectors for
/// [`attend`], with zeros behind `value_dim`.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    pub(super) k_stride: usize,
    pub(super) v_stride: usize,
    pub(super) bias: Option<Bias<'a>>,
}

/// Attends a tile of one head, whose queries are rows of `q`; `out` receives each lane's sums (`value_dim` floats), the
/// factor that makes them the result, and the log of the sum of exponentials, in which a `sink` takes part.
pub(super) fn attend(
    isa: Isa,
    spec: &Spec,
    queries: &Queries<QUERIES>,
    q: &[f32],
    keys: Keys<'_>,
    sink: Option<f32>,
    mut out: impl FnMut(usize, &[f32], f32, f32),
) {
    let (dim, value_dim, count) = (spec.head_dim, spec.value_dim, queries.count);
    let width = padded(value_dim);
    let biased = keys.bias.map_or(0, |_| KEYS * PANEL);
    with_scratch(QUERIES * (dim + width) + KEYS * PANEL + biased, |scratch| {
        let (qt, rest) = scratch.split_at_mut(QUERIES * dim);
        let (scores, rest) = rest.split_at_mut(KEYS * PANEL);
        let (o, rest) = rest.split_at_mut(QUERIES * width);
        let bias = &mut rest[..biased];
        tile::transpose(isa, &q[queries.row[0] * dim..], count, spec.q_width(), dim, qt);
        let mut state = State::new();
        for tile in queries.tiles(KEYS) {
            let k = &keys.k[tile.start * keys.k_stride..];
            let v = &keys.v[tile.start * keys.v_stride..];
            for panel in (0..count).step_by(PANEL) {
                let lanes = panel..count.min(panel + PANEL);
                let Some(seen) = Seen::new(queries, lanes.clone(), &tile) else { continue };
                let pitch = padded(lanes.len());
                for (vectors, keys_seen) in seen.pieces() {
                    // SAFETY: rows of keys, `dim` rows of a panel of queries, and a tile of scores.
                    unsafe {
                        Product {
                            m: keys_seen.len(),
                            n: pitch - vectors * PAD,
                            k: dim,
                            a: k[keys_seen.start * keys.k_stride..].as_ptr(),
                            left: Left::Rows(keys.k_stride),
                            b: qt[panel * dim + vectors * PAD..].as_ptr(),
                            ldb: pitch,
                            ahead: NOTHING,
                            c: scores[keys_seen.start * pitch + vectors * PAD..].as_mut_ptr(),
                            ldc: pitch,
                            adds: false,
                            terms: &[],
                        }
                        .run(isa);
                    }
                }
                if let Some(from) = &keys.bias {
                    from.transpose(&queries.row[panel..][..pitch], &tile, pitch, bias);
                }
                soften(isa, spec, queries, &seen, bias, &mut state, scores);
                let o = &mut o[panel * width..];
                let fresh = !std::mem::replace(&mut state.begun[panel / PANEL], true);
                if !fresh {
                    for (o, &shrink) in o.chunks_exact_mut(width).zip(&state.shrink[lanes.clone()]) {
                        if shrink != 1.0 {
                            tile::scale(isa, o, shrink);
                        }
                    }
                }
                // SAFETY: scores are in scratch, the values have a row for each key, `o` has one for each lane.
                unsafe {
                    Product {
                        m: lanes.len(),
                        n: width,
                        k: tile.len(),
                        a: scores.as_ptr(),
                        left: Left::Columns(pitch),
                        b: v.as_ptr(),
                        ldb: keys.v_stride,
                        ahead: NOTHING,
                        c: o.as_mut_ptr(),
                        ldc: width,
                        adds: !fresh,
                        terms: seen.terms(),
                    }
                    .run(isa);
                }
            }
        }
        for (lane, o) in o.chunks_exact_mut(width).enumerate().take(count) {
            let (factor, log_sum) = state.finish(lane, sink);
            out(lane, &o[..value_dim], factor, log_sum);
        }
    });
}

/// What the queries of a panel see of a tile of keys.
pub(super) struct Seen {
    lanes: Range<usize>,
    /// The tile.
    keys: Range<usize>,
    /// Whether they see all of it.
    whole: bool,
    /// First key that is computed, and where each vector of lanes ends, counted from the tile's start.
    start: usize,
    ends: [usize; PANEL / PAD],
    /// What each lane sees, as far as it is computed.
    spans: [Range<u32>; PANEL],
}

impl Seen {
    /// `None` if they see nothing.
    pub(super) fn new(queries: &Queries<QUERIES>, lanes: Range<usize>, keys: &Range<usize>) -> Option<Seen> {
        let whole = queries.ascend_and_see_all(lanes.clone(), keys);
        let mut seen = Seen {
            lanes: lanes.clone(),
            keys: keys.clone(),
            whole,
            start: 0,
            ends: [keys.len(); PANEL / PAD],
            spans: [const { 0..0 }; PANEL],
        };
        if !whole {
            for (span, lane) in seen.spans.iter_mut().zip(lanes.clone()) {
                *span = queries.span(lane, keys);
            }
            let all = tile::union(seen.spans[..lanes.len()].iter().cloned());
            if all.is_empty() {
                return None;
            }
            // Whole blocks of rows cost no more.
            seen.start = all.start / 8 * 8;
            let mut before = seen.start;
            for (end, spans) in seen.ends.iter_mut().zip(seen.spans[..lanes.len()].chunks(PAD)) {
                let last = tile::union(spans.iter().cloned()).end;
                *end = last.next_multiple_of(8).min(keys.len()).max(before);
                before = *end;
            }
        }
        Some(seen)
    }

    /// Vectors of queries.
    fn vectors(&self) -> usize {
        self.lanes.len().div_ceil(PAD)
    }

    /// Keys that any vector computes.
    pub(super) fn computed(&self) -> Range<usize> {
        self.start..self.ends[self.vectors() - 1]
    }

    /// Ranges of keys, each with the first of the vectors that see it.
    fn pieces(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut from = self.start;
        (0..self.vectors()).filter_map(move |vector| {
            let keys = from..self.ends[vector];
            from = keys.end;
            (!keys.is_empty()).then_some((vector, keys))
        })
    }

    /// Keys that each row of the output sums.
    fn terms(&self) -> &[Range<u32>] {
        if self.whole { &[] } else { &self.spans[..self.lanes.len()] }
    }
}

/// Running softmax of the lanes.
pub(super) struct State {
    top: [f32; QUERIES],
    sum: [f32; QUERIES],
    /// What the last tile multiplied earlier sums by.
    pub(super) shrink: [f32; QUERIES],
    /// Panels that have seen a key.
    begun: [bool; QUERIES / PANEL],
}

impl State {
    pub(super) fn new() -> State {
        let (top, none, one) = ([NO_SCORE; QUERIES], [0.0; QUERIES], [1.0; QUERIES]);
        State { top, sum: none, shrink: one, begun: [false; QUERIES / PANEL] }
    }

    /// What makes the sums of a lane its result, and the log of the sum of exponentials.
    pub(super) fn finish(&self, lane: usize, sink: Option<f32>) -> (f32, f32) {
        let (mut top, mut sum, mut shrink) = (self.top[lane], self.sum[lane], 1.0);
        if let Some(sink) = sink {
            // The highest of both keeps every exponential finite.
            let sink = sink * LOG2_E;
            let higher = top.max(sink);
            shrink = (top - higher).exp2();
            sum = sum * shrink + (sink - higher).exp2();
            top = higher;
        }
        (shrink / sum, (top + sum.log2()) * LN_2)
    }
}

simd_fn! {
    /// Turns the products of a panel into weights relative to the running maximum, zero for what is
    /// hidden. A `bias` that is not empty has the layout of the scores.
    pub(super) fn soften<S>(
        s,
        spec: &Spec,
        queries: &Queries<QUERIES>,
        seen: &Seen,
        bias: &[f32],
        state: &mut State,
        scores: &mut [f32],
    ) {
        let (units, computed) = (Units::new(spec, !bias.is_empty()), seen.computed());
        let (pitch, first) = (padded(seen.lanes.len()), seen.keys.start);
        assert!(computed.end * pitch <= scores.len() && seen.lanes.start + pitch <= QUERIES);
        assert!(bias.is_empty() || computed.end * pitch <= bias.len());
        let (hidden, factor) = (s.splat(f32::NEG_INFINITY), s.splat(units.factor));
        for lane in (0..pitch).step_by(S::LANES) {
            let (at, end) = (seen.lanes.start + lane, seen.ends[lane / PAD]);
            // SAFETY: whole vectors below `pitch` lanes, keys below what was computed.
            unsafe {
                let scores = scores.as_mut_ptr().add(lane);
                let mut tops = [hidden; 4];
                if !seen.whole || units.bent {
                    let bounds = if seen.whole { None } else { Some(queries.bounds(s, at)) };
                    for key in computed.start..end {
                        let mut score = s.load(scores.add(key * pitch));
                        if units.bent {
                            score = s.mul(score, s.splat(spec.scale));
                            if let Some(cap) = spec.softcap {
                                score = s.mul(s.splat(cap), math::tanh(s, s.mul(score, s.splat(1.0 / cap))));
                            }
                            if !bias.is_empty() {
                                score = s.add(score, s.load(bias.as_ptr().add(key * pitch + lane)));
                            }
                            score = s.mul(score, s.splat(LOG2_E));
                        }
                        score = mask(s, bounds, first + key, score, hidden);
                        s.store(scores.add(key * pitch), score);
                        tops[0] = s.max(score, tops[0]);
                    }
                } else {
                    let mut key = computed.start;
                    while key + 4 <= end {
                        for (i, top) in tops.iter_mut().enumerate() {
                            *top = s.max(s.load(scores.add((key + i) * pitch)), *top);
                        }
                        key += 4;
                    }
                    for key in key..end {
                        tops[0] = s.max(s.load(scores.add(key * pitch)), tops[0]);
                    }
                }
                let highest = s.max(s.max(tops[0], tops[1]), s.max(tops[2], tops[3]));
                let highest = s.mul(highest, factor);
                let before = s.load(state.top.as_ptr().add(at));
                let exceeded = s.lt(s.add(before, s.splat(SLACK)), highest);
                let top = s.select(exceeded, highest, before);
                let less = s.neg(top);
                let mut sum = s.zero();
                for key in computed.start..end {
                    let weight = math::exp2(s, s.fma(s.load(scores.add(key * pitch)), factor, less));
                    s.store(scores.add(key * pitch), weight);
                    sum = s.add(sum, weight);
                }
                for key in end..computed.end {
                    s.store(scores.add(key * pitch), s.zero());
                }
                let shrink = math::exp2(s, s.sub(before, top));
                let total = s.fma(s.load(state.sum.as_ptr().add(at)), shrink, sum);
                s.store(state.sum.as_mut_ptr().add(at), total);
                s.store(state.top.as_mut_ptr().add(at), top);
                s.store(state.shrink.as_mut_ptr().add(at), shrink);
            }
        }
    }
}
