//! The query heads of one key head over part of the keys of one run, as [`super::super::backward`] has it.
//!
//! ```text
//! S = Q K^T          P = 2^(S - lse)         dP = dO V^T      dS = P (dP - D)     [queries, keys]
//! dV^T += dO^T P     dK^T += Q^T dS          [dim, keys]      dQ += dS K          [queries, dim]
//! ```
//!
//! Keys are lanes, so that weights and gradients of scores are split where they lie: as right operands by columns of 32 keys, and, for
//! `dQ`, as left ones by rows. A column of a tile is computed, split and multiplied while it is in the first-level cache.

use super::super::backward::{Chain, Job, QUERIES, Rows, Seen, chain_rule, prepare, query_tiles};
use super::super::tile::Units;
use super::forward::turn;
use super::{columns, rows, terms, transposed_rows};
use crate::amx::Tiles;
use crate::gemm::scratch::with_scratch;
use crate::pool::Disjoint;
use crate::simd::simd_fn;
use crate::split::{CHUNK, DEPTH, WIDTH, accumulate, room};
use std::ops::Range;

/// Keys of a tile: what is split of queries and gradients serves all of them. With 192, heads of 64 are 5% slower.
const KEYS: usize = 384;

/// Blocks of a tile, each way.
const KEY_BLOCKS: usize = KEYS / WIDTH;
const QUERY_BLOCKS: usize = QUERIES / WIDTH;

/// Sums of a block.
const BLOCK: usize = WIDTH * WIDTH;

/// As [`super::super::backward::run`].
///
/// # Safety
/// As there.
pub(crate) unsafe fn run(job: Job<'_>, d_q: impl Fn(usize) -> Rows, mut out: impl FnMut(usize, &[f32], &[f32])) {
    let Job { isa, spec, x, saved, keys, part, d_bias } = job;
    let (dim, value_dim, len, group) = (spec.head_dim, spec.value_dim, part.run.len(), spec.group());
    let (q_stride, o_stride) = (spec.q_width(), spec.o_width());
    let (depth, value_depth) = (dim.div_ceil(DEPTH), value_dim.div_ceil(DEPTH));
    let tiles = query_tiles(spec, &part.run);
    let units = Units::new(spec, x.bias.is_some());
    let sizes = [
        KEY_BLOCKS * room(dim),
        KEY_BLOCKS * room(value_dim),
        depth * room(KEYS),
        KEY_BLOCKS * depth * BLOCK,
        KEY_BLOCKS * value_depth * BLOCK,
        QUERY_BLOCKS * room(dim),
        QUERY_BLOCKS * room(value_dim),
        depth * room(QUERIES),
        value_depth * room(QUERIES),
        QUERY_BLOCKS * BLOCK,
        QUERY_BLOCKS * BLOCK,
        room(QUERIES),
        room(QUERIES),
        QUERY_BLOCKS * room(KEYS),
        BLOCK,
        depth.max(value_depth) * BLOCK,
        value_depth * BLOCK,
        group * len,
        group * len,
    ];
    with_scratch(sizes.iter().sum(), |scratch| {
        let parts = cut(scratch, sizes);
        let [k_columns, v_columns, k_terms, d_k, d_v, q_rows, o_rows, q_turned, o_turned, ..] = parts;
        let [.., p, d_s, p_terms, s_terms, s_rows, sums, turned, turned_values, lse, delta] = parts;
        let heads = part.kv_head * group..(part.kv_head + 1) * group;
        prepare(isa, spec, saved, &part, lse, delta);
        // SAFETY: the level has tiles, and nothing below takes them.
        let _tiles = unsafe { Tiles::take() };
        for start in part.keys.clone().step_by(KEYS) {
            let tile = start..part.keys.end.min(start + KEYS);
            let (k, v) = (&keys.k[start * keys.k_stride..], &keys.v[start * keys.v_stride..]);
            for (block, first) in (0..tile.len()).step_by(WIDTH).enumerate() {
                let count = WIDTH.min(tile.len() - first);
                let (k, v) = (&k[first * keys.k_stride..], &v[first * keys.v_stride..]);
                columns(isa, k, count, keys.k_stride, dim, turned, &mut k_columns[block * room(dim)..]);
                columns(isa, v, count, keys.v_stride, value_dim, turned, &mut v_columns[block * room(value_dim)..]);
            }
            for (first, out) in (0..dim).step_by(WIDTH).zip(k_terms.chunks_exact_mut(room(KEYS))) {
                terms(&k[first..], keys.k_stride, WIDTH.min(dim - first), tile.len(), out);
            }
            let mut begun = [false; KEY_BLOCKS];
            for (member, head) in heads.clone().enumerate() {
                let d_q = d_q(head);
                for (number, queries) in tiles.iter().enumerate() {
                    let Some(seen) = Seen::<KEYS>::new(queries, &tile) else { continue };
                    let (count, begin) = (queries.count, number * QUERIES);
                    let token = part.run.start + begin;
                    let q = &x.q[token * q_stride + head * dim..];
                    let d_o = &saved.d_o[token * o_stride + head * value_dim..];
                    for (block, first) in (0..count).step_by(WIDTH).enumerate() {
                        let lanes = WIDTH.min(count - first);
                        let (q, d_o) = (&q[first * q_stride..], &d_o[first * o_stride..]);
                        rows(q, lanes, q_stride, dim, &mut q_rows[block * room(dim)..]);
                        rows(d_o, lanes, o_stride, value_dim, &mut o_rows[block * room(value_dim)..]);
                        let (q_out, o_out) = (Disjoint::new(q_turned), Disjoint::new(o_turned));
                        // SAFETY: nobody else has them.
                        unsafe {
                            transposed_rows(isa, q, lanes, q_stride, dim, turned, &q_out.after(block * CHUNK), room(QUERIES));
                            transposed_rows(
                                isa,
                                d_o,
                                lanes,
                                o_stride,
                                value_dim,
                                turned,
                                &o_out.after(block * CHUNK),
                                room(QUERIES),
                            );
                        }
                    }
                    // Blocks of keys that each block of queries sees. Their bounds ascend.
                    let spans: [Range<usize>; QUERY_BLOCKS] = std::array::from_fn(|block| {
                        let lanes = (block * WIDTH).min(count)..(block * WIDTH + WIDTH).min(count);
                        let keys = seen.keys_of(lanes, tile.len());
                        if keys.is_empty() { 0..0 } else { keys.start / WIDTH..keys.end.div_ceil(WIDTH) }
                    });
                    for (key_block, first) in (0..tile.len()).step_by(WIDTH).enumerate() {
                        let Some(low) = spans.iter().position(|span| span.contains(&key_block)) else { continue };
                        let high = spans.iter().rposition(|span| span.contains(&key_block)).map_or(0, |last| last + 1);
                        let lanes = first..tile.len().min(first + WIDTH);
                        let (k, v) = (&k_columns[key_block * room(dim)..], &v_columns[key_block * room(value_dim)..]);
                        for block in low..high {
                            let (q, d_o) = (&q_rows[block * room(dim)..], &o_rows[block * room(value_dim)..]);
                            let (p, d_p) = (&mut p[block * BLOCK..][..BLOCK], &mut d_s[block * BLOCK..][..BLOCK]);
                            // SAFETY: whole operands, and blocks of sums.
                            unsafe {
                                accumulate(q.as_ptr(), k.as_ptr(), depth, p.as_mut_ptr(), false);
                                accumulate(d_o.as_ptr(), v.as_ptr(), value_depth, d_p.as_mut_ptr(), false);
                            }
                        }
                        let rows_seen = low * WIDTH..count.min(high * WIDTH);
                        let at = member * len + begin..member * len + begin + count;
                        let chain = Chain {
                            spec,
                            units,
                            queries,
                            tile: &tile,
                            head,
                            rows: rows_seen.clone(),
                            lanes: lanes.clone(),
                            whole: seen.whole,
                            pitch: WIDTH,
                        };
                        chain_rule(isa, &chain, &lse[at.clone()], &delta[at], keys.bias.as_ref(), d_bias, p, d_s);
                        terms(&p[low * BLOCK..], WIDTH, lanes.len(), rows_seen.len(), p_terms);
                        terms(&d_s[low * BLOCK..], WIDTH, lanes.len(), rows_seen.len(), s_terms);
                        for block in low..high {
                            let count = WIDTH.min(count - block * WIDTH);
                            let chunk = &mut s_rows[block * room(KEYS) + key_block * CHUNK..];
                            rows(&d_s[block * BLOCK..], count, WIDTH, lanes.len(), &mut chunk[..CHUNK]);
                        }
                        let adds = std::mem::replace(&mut begun[key_block], true);
                        let sides = [(&*o_turned, &*p_terms, &mut *d_v, value_depth), (&*q_turned, &*s_terms, &mut *d_k, depth)];
                        for (left, right, sums, blocks) in sides {
                            let sums = &mut sums[key_block * blocks * BLOCK..][..blocks * BLOCK];
                            for (left, sums) in left.chunks_exact(room(QUERIES)).zip(sums.chunks_exact_mut(BLOCK)) {
                                let left = &left[low * CHUNK..high * CHUNK];
                                // SAFETY: as many chunks of both operands, and a block of sums.
                                unsafe { accumulate(left.as_ptr(), right.as_ptr(), high - low, sums.as_mut_ptr(), adds) };
                            }
                        }
                    }
                    let adds = std::mem::replace(&mut part.visited[member * tiles.len() + number], true);
                    for (block, first) in (0..count).step_by(WIDTH).enumerate() {
                        let (span, count) = (spans[block].clone(), WIDTH.min(count - first));
                        let left = &s_rows[block * room(KEYS)..][span.start * CHUNK..span.end * CHUNK];
                        for (at, k) in (0..dim).step_by(WIDTH).zip(k_terms.chunks_exact(room(KEYS))) {
                            let right = &k[span.start * CHUNK..span.end * CHUNK];
                            // SAFETY: as many chunks of both operands, and a block of sums.
                            unsafe { accumulate(left.as_ptr(), right.as_ptr(), span.len(), sums.as_mut_ptr(), false) };
                            let start = d_q.start.wrapping_add((begin + first) * d_q.stride + at);
                            give(isa, sums, count, WIDTH.min(dim - at), Rows { start, stride: d_q.stride }, adds);
                        }
                    }
                }
            }
            for (block, begun) in begun.into_iter().enumerate().take(tile.len().div_ceil(WIDTH)) {
                let (d_k, d_v) = (&mut d_k[block * depth * BLOCK..], &mut d_v[block * value_depth * BLOCK..]);
                if !begun {
                    // No query sees these keys.
                    d_k[..depth * BLOCK].fill(0.0);
                    d_v[..value_depth * BLOCK].fill(0.0);
                }
                turn(isa, d_k, depth * WIDTH, turned);
                turn(isa, d_v, value_depth * WIDTH, turned_values);
                let gradients = turned.chunks_exact(depth * WIDTH).zip(turned_values.chunks_exact(value_depth * WIDTH));
                for (key, (d_k, d_v)) in (start + block * WIDTH..tile.end).zip(gradients.take(WIDTH)) {
                    out(key, &d_k[..dim], &d_v[..value_dim]);
                }
            }
        }
    });
}

/// Parts of such sizes.
fn cut<const N: usize>(mut scratch: &mut [f32], sizes: [usize; N]) -> [&mut [f32]; N] {
    sizes.map(|floats| scratch.split_off_mut(..floats).expect("room for all parts"))
}

simd_fn! {
    /// Adds rows of a block of sums to `to`, or overwrites it.
    ///
    /// Callers promise that so many rows and columns are writable.
    fn give<S>(s, sums: &[f32], rows: usize, columns: usize, to: Rows, adds: bool) {
        assert!(rows <= WIDTH && columns <= WIDTH && sums.len() >= BLOCK);
        for row in 0..rows {
            for column in (0..columns).step_by(S::LANES) {
                let (left, to) = (columns - column, to.start.wrapping_add(row * to.stride + column));
                // SAFETY: below the number of columns; whole vectors of the block.
                unsafe {
                    let sum = s.load(sums.as_ptr().add(row * WIDTH + column));
                    s.store_up_to(to, left, if adds { s.add(s.load_up_to(to, left), sum) } else { sum });
                }
            }
        }
    }
}
