//! Attention over packed tokens, without the matrix of scores (FlashAttention, Dao 2023).
//!
//! ```text
//! q, o, d_q, d_o: [n, heads * head_dim]      k, v, d_k, d_v: [n, kv_heads * head_dim]
//! lse: [heads * n], lse[h * n + i] = log sum_j e^score(i, j)
//! ```
//!
//! Tokens attend inside their run of equal segment numbers only; a causal token sees itself and
//! what precedes it in the run. Query head `h` uses key head `h / (heads / kv_heads)`. With a
//! window `w`, token `i` sees `j` where `|i - j| < w`. Scores are `scale q.k`, then, with a cap
//! `c`, `c tanh(score / c)`. Outputs are overwritten.
//!
//! The wide levels work on tiles of 64 queries by 64 keys, skip tiles that are masked out
//! entirely, and hold the scores transposed: a query is a vector lane, so its running maximum
//! and sum need no horizontal operation, and all products are of the one form that `product.rs`
//! computes. An output element is always summed in the order of its keys (or queries), so results
//! do not depend on the number of threads. Error against `scalar.rs` is about `1e-6` relative to
//! the largest value attended to.

#![allow(clippy::too_many_arguments, reason = "a kernel names its sizes, inputs and outputs")]

#[cfg(target_arch = "x86_64")]
mod backward;
#[cfg(target_arch = "x86_64")]
mod forward;
#[cfg(target_arch = "x86_64")]
mod product;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile;
#[cfg(target_arch = "x86_64")]
mod tiled;

use crate::isa::Isa;
use crate::pool::Pool;

/// Heads and mask of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Dimensions of a head: a multiple of 4, at most 256.
    pub head_dim: usize,
    /// Factor on the scores, usually `head_dim^-0.5`.
    pub scale: f32,
    /// Tokens see no later ones.
    pub causal: bool,
    /// Tokens see only others that are nearer than this.
    pub window: Option<usize>,
    /// Smooth bound of the scores.
    pub softcap: Option<f32>,
}

impl Spec {
    /// # Panics
    /// When the sizes are not as documented.
    #[track_caller]
    fn check(&self) {
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "kv_heads must divide heads");
        assert!(
            (4..=256).contains(&self.head_dim) && self.head_dim.is_multiple_of(4),
            "head_dim must be a multiple of 4, at most 256"
        );
        assert!(self.window != Some(0), "an attention window of nothing");
    }

    /// Floats of a token's queries.
    fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Floats of a token's keys.
    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Positions that the query at `i` of `len` sees.
    fn visible(&self, i: usize, len: usize) -> std::ops::Range<usize> {
        let reach = self.window.unwrap_or(len);
        let end = if self.causal { i + 1 } else { len.min(i.saturating_add(reach)) };
        (i + 1).saturating_sub(reach)..end
    }
}

/// Ranges of equal numbers.
fn runs(segments: &[i32]) -> Vec<std::ops::Range<usize>> {
    let mut start = 0;
    segments
        .chunk_by(|a, b| a == b)
        .map(|run| {
            start += run.len();
            start - run.len()..start
        })
        .collect()
}

/// Attention of `n` packed tokens; keeps `lse` for [`backward`].
#[track_caller]
pub fn forward(
    pool: &Pool,
    spec: &Spec,
    n: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[i32],
    o: &mut [f32],
    lse: &mut [f32],
) {
    spec.check();
    assert!(q.len() == n * spec.q_width() && o.len() == q.len(), "length of the queries or the output of attention");
    assert!(k.len() == n * spec.kv_width() && v.len() == k.len(), "length of the keys or values of attention");
    assert!(segments.len() == n && lse.len() == spec.heads * n, "length of the segments or lse of attention");
    let runs = runs(segments);
    match pool.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => tiled::forward(pool, spec, n, q, k, v, &runs, o, lse),
        _ => scalar::forward(pool, spec, n, q, k, v, &runs, o, lse),
    }
}

/// Gradients of [`forward`] from its `o` and `lse`.
#[track_caller]
pub fn backward(
    pool: &Pool,
    spec: &Spec,
    n: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    segments: &[i32],
    o: &[f32],
    lse: &[f32],
    d_o: &[f32],
    d_q: &mut [f32],
    d_k: &mut [f32],
    d_v: &mut [f32],
) {
    spec.check();
    assert!(
        q.len() == n * spec.q_width() && o.len() == q.len() && d_o.len() == q.len() && d_q.len() == q.len(),
        "length of a query-like operand of attention"
    );
    assert!(
        k.len() == n * spec.kv_width() && v.len() == k.len() && d_k.len() == k.len() && d_v.len() == k.len(),
        "length of a key-like operand of attention"
    );
    assert!(segments.len() == n && lse.len() == spec.heads * n, "length of the segments or lse of attention");
    let runs = runs(segments);
    match pool.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => tiled::backward(pool, spec, n, q, k, v, &runs, o, lse, d_o, d_q, d_k, d_v),
        _ => scalar::backward(pool, spec, n, q, k, v, &runs, o, lse, d_o, d_q, d_k, d_v),
    }
}

/// Attention of new tokens to a cache of keys and values, for generation.
///
/// The caches are `[slots, capacity, kv_heads * head_dim]`. First row `i` of `k` and `v` is
/// written at `(slots[i], positions[i])`, for all rows; then row `i` of `q` attends to positions
/// `0..=positions[i]` of its slot (fewer with a window; `causal` is implied). Rows of one slot at
/// consecutive positions, as in a prefill, are fastest when they are adjacent.
///
/// # Panics
/// When a slot or position lies outside the cache, two rows have the same place, or a length is
/// wrong.
#[track_caller]
pub fn cached(
    pool: &Pool,
    spec: &Spec,
    n: usize,
    capacity: usize,
    slots: &[i32],
    positions: &[i32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    k_cache: &mut [f32],
    v_cache: &mut [f32],
    o: &mut [f32],
) {
    spec.check();
    let width = spec.kv_width();
    assert!(q.len() == n * spec.q_width() && o.len() == q.len(), "length of the queries or the output of attention");
    assert!(k.len() == n * width && v.len() == k.len(), "length of the keys or values of attention");
    assert!(slots.len() == n && positions.len() == n, "length of the slots or positions of attention");
    assert!(
        k_cache.len() == v_cache.len() && k_cache.len().is_multiple_of((capacity * width).max(1)),
        "length of the caches of attention"
    );
    let places: Vec<Place> = slots
        .iter()
        .zip(positions)
        .map(|(&slot, &position)| {
            let place = usize::try_from(slot)
                .ok()
                .zip(usize::try_from(position).ok())
                .filter(|&(slot, position)| position < capacity && (slot + 1) * capacity * width <= k_cache.len());
            let (slot, position) = place.expect("slot and position lie inside the cache");
            Place { slot, position }
        })
        .collect();
    for (row, place) in places.iter().enumerate() {
        let at = (place.slot * capacity + place.position) * width;
        k_cache[at..at + width].copy_from_slice(&k[row * width..][..width]);
        v_cache[at..at + width].copy_from_slice(&v[row * width..][..width]);
    }
    match pool.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 => tiled::cached(pool, spec, capacity, &places, q, k_cache, v_cache, o),
        _ => scalar::cached(pool, spec, capacity, &places, q, k_cache, v_cache, o),
    }
}

/// Where a row of a generation step lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    slot: usize,
    position: usize,
}
