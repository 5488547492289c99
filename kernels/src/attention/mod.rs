//! Attention over packed tokens, without the matrix of scores (FlashAttention, Dao 2023).
//!
//! ```text
//! q, d_q: [n, heads * head_dim]        o, d_o: [n, heads * value_dim]
//! k, d_k: [n, kv_heads * head_dim]     v, d_v: [n, kv_heads * value_dim]
//! lse: [heads * n], lse[h * n + i] = log sum_j e^score(i, j)
//! ```
//!
//! Tokens attend inside their run of equal segment numbers only; a causal token sees itself and
//! what precedes it in the run. Query head `h` uses key head `h / (heads / kv_heads)`. With a
//! window `w`, token `i` sees `j` where `|i - j| < w`; with a chunk `c`, where `i / c == j / c`;
//! the first `pinned` tokens of a run are seen in spite of either. Scores are `scale q.k`, then, with
//! a cap `c`, `c tanh(score / c)`, then plus a bias. A sink is the score of one more key, whose value
//! is zero: it only takes weight from the others (gpt-oss, OpenAI 2025). Outputs are overwritten.
//!
//! The wide levels work on tiles, skip those that are masked out entirely, and cut the others to the
//! blocks of registers that see anything. All products are of the one form that `product.rs` computes, or (`amx`) in a matrix unit, and
//! scores are kept in powers of two, of which the exponential is cheapest. An output element is always
//! summed in the order of its keys (or queries), so results do not depend on the number of threads. Error
//! against `scalar.rs` is about `1e-6` relative to the largest value attended to. A bias costs its size in
//! memory, and more time than the rest. What is not finite in a query makes the outputs of that query not
//! finite; in a key or value, those of all queries that see it, and maybe of some more in its run.

#![allow(clippy::too_many_arguments, reason = "a kernel names its sizes, inputs and outputs")]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod backward;
mod cache;
#[cfg(target_arch = "x86_64")]
mod forward;
#[cfg(target_arch = "x86_64")]
mod paged;
#[cfg(target_arch = "x86_64")]
mod product;
mod scalar;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile;
#[cfg(target_arch = "x86_64")]
mod tiled;

#[cfg(any(test, target_arch = "x86_64"))]
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};
use std::ops::Range;

/// Largest head: keeps the scratch of a thread below 2 MB, or 16 MB with a matrix unit.
pub const MAX_HEAD_DIM: usize = 1024;

/// Heads and mask of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Dimensions of a query or key head, at most [`MAX_HEAD_DIM`]. Multiples of 16 are fastest.
    pub head_dim: usize,
    /// Dimensions of a value head, likewise.
    pub value_dim: usize,
    /// Factor on the scores, usually `head_dim^-0.5`.
    pub scale: f32,
    /// Tokens see no later ones.
    pub causal: bool,
    /// Tokens see only others that are nearer than this.
    pub window: Option<usize>,
    /// Tokens see only others in the same block of this many.
    pub chunk: Option<usize>,
    /// First tokens of a run that neither window nor chunk hides.
    pub pinned: usize,
    /// Smooth bound of the scores.
    pub softcap: Option<f32>,
}

impl Spec {
    /// # Panics
    /// When the sizes are not as documented.
    #[track_caller]
    fn check(&self) {
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "kv_heads must divide heads");
        let sizes = 1..=MAX_HEAD_DIM;
        assert!(sizes.contains(&self.head_dim) && sizes.contains(&self.value_dim), "size of an attention head");
        assert!(self.window != Some(0) && self.chunk != Some(0), "an attention window or chunk of nothing");
    }

    /// Floats of a token's queries.
    fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Floats of a token's outputs.
    fn o_width(&self) -> usize {
        self.heads * self.value_dim
    }

    /// Floats of a token's keys.
    fn k_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Floats of a token's values.
    fn v_width(&self) -> usize {
        self.kv_heads * self.value_dim
    }

    /// Query heads that share a key head.
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Positions that the query at `i` of `len` sees, but for the pinned ones before.
    fn visible(&self, i: usize, len: usize) -> Range<usize> {
        let reach = self.window.unwrap_or(len);
        let (low, high) = self.chunk.map_or((0, len), |chunk| (i / chunk * chunk, (i / chunk * chunk).saturating_add(chunk)));
        let end = if self.causal { i + 1 } else { len.min(i.saturating_add(reach)).min(high) };
        (i + 1).saturating_sub(reach).max(low)..end
    }

    /// All positions that the query at `i` of `len` sees.
    fn seen(&self, i: usize, len: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let near = self.visible(i, len);
        (0..self.pinned.min(near.start)).chain(near)
    }
}

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Queries.
    pub q: &'a [f32],
    /// Keys.
    pub k: &'a [f32],
    /// Values.
    pub v: &'a [f32],
    /// One number for each token.
    pub segments: &'a [i32],
    /// One score for each head.
    pub sinks: Option<&'a [f32]>,
    /// `[heads, n, n]`: the query's token comes before the key's.
    pub bias: Option<&'a [f32]>,
}

impl Inputs<'_> {
    /// # Panics
    /// When a length is not as documented.
    #[track_caller]
    fn check(&self, spec: &Spec) {
        let n = self.segments.len();
        assert!(self.q.len() == n * spec.q_width(), "length of the queries of attention");
        assert!(self.k.len() == n * spec.k_width(), "length of the keys of attention");
        assert!(self.v.len() == n * spec.v_width(), "length of the values of attention");
        assert!(self.sinks.is_none_or(|sinks| sinks.len() == spec.heads), "length of the sinks of attention");
        assert!(self.bias.is_none_or(|bias| bias.len() == spec.heads * n * n), "length of the bias of attention");
    }
}

/// What the forward pass left, and the gradient that comes in.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// Its output.
    pub o: &'a [f32],
    /// Its log of the sum of exponentials.
    pub lse: &'a [f32],
    /// Gradient of `o`.
    pub d_o: &'a [f32],
}

/// What the backward pass computes; all of it is overwritten.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// Of the queries.
    pub d_q: &'a mut [f32],
    /// Of the keys.
    pub d_k: &'a mut [f32],
    /// Of the values.
    pub d_v: &'a mut [f32],
    /// Of the sinks, if there are sinks and it is wanted.
    pub d_sinks: Option<&'a mut [f32]>,
    /// Of the bias, if there is one and it is wanted.
    pub d_bias: Option<&'a mut [f32]>,
}

/// Ranges of equal numbers.
fn runs(segments: &[i32]) -> Vec<Range<usize>> {
    let mut start = 0;
    segments
        .chunk_by(|a, b| a == b)
        .map(|run| {
            start += run.len();
            start - run.len()..start
        })
        .collect()
}

/// Attention of packed tokens; keeps `lse` for [`backward`].
#[track_caller]
pub fn forward(pool: &Pool, spec: &Spec, x: &Inputs<'_>, o: &mut [f32], lse: &mut [f32]) {
    spec.check();
    x.check(spec);
    let n = x.segments.len();
    assert!(o.len() == n * spec.o_width(), "length of the output of attention");
    assert!(lse.len() == spec.heads * n, "length of the lse of attention");
    let runs = runs(x.segments);
    match pool.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 | Isa::Amx => tiled::forward(pool, spec, x, &runs, o, lse),
        _ => scalar::forward(pool, spec, x, &runs, o, lse),
    }
}

/// Gradients of [`forward`].
#[track_caller]
pub fn backward(pool: &Pool, spec: &Spec, x: &Inputs<'_>, saved: &Saved<'_>, d: Gradients<'_>) {
    spec.check();
    x.check(spec);
    let n = x.segments.len();
    assert!(saved.o.len() == n * spec.o_width() && saved.d_o.len() == saved.o.len(), "length of an output of attention");
    assert!(saved.lse.len() == spec.heads * n, "length of the lse of attention");
    assert!(
        d.d_q.len() == x.q.len() && d.d_k.len() == x.k.len() && d.d_v.len() == x.v.len(),
        "length of a gradient of attention"
    );
    if let (Some(sinks), Some(d_sinks)) = (x.sinks, d.d_sinks) {
        assert!(d_sinks.len() == sinks.len(), "length of the gradient of the sinks of attention");
        sink_gradients(pool, spec, sinks, saved, d_sinks);
    }
    let d_bias = d.d_bias.filter(|_| x.bias.is_some());
    assert!(
        d_bias.as_ref().is_none_or(|d_bias| d_bias.len() == spec.heads * n * n),
        "length of the gradient of the bias of attention"
    );
    let runs = runs(x.segments);
    match pool.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 | Isa::Amx => tiled::backward(pool, spec, x, &runs, saved, d.d_q, d.d_k, d.d_v, d_bias),
        _ => scalar::backward(pool, spec, x, &runs, saved, d.d_q, d.d_k, d.d_v, d_bias),
    }
}

/// `d_sink = -sum_i e^(sink - lse_i) (do_i . o_i)`: as for any key, of which the value is zero.
fn sink_gradients(pool: &Pool, spec: &Spec, sinks: &[f32], saved: &Saved<'_>, d_sinks: &mut [f32]) {
    let (n, dim) = (saved.lse.len() / spec.heads, spec.value_dim);
    pool.run_pieces(d_sinks, 1, |head, d_sink| {
        let mut sum = 0.0;
        for i in 0..n {
            let at = (i * spec.heads + head) * dim;
            let weight = f64::from(sinks[head] - saved.lse[head * n + i]).exp();
            let pairs = saved.o[at..][..dim].iter().zip(&saved.d_o[at..]);
            sum -= weight * pairs.map(|(&o, &d)| f64::from(o) * f64::from(d)).sum::<f64>();
        }
        d_sink[0] = sum as f32;
    });
}

/// Fewer rows than this are written to a cache by the caller: waking other threads takes longer.
const FEW_ROWS: usize = 32;

/// Positions of a page of a cache.
pub const PAGE: usize = 64;

/// How a cache keeps keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheFormat {
    /// As they are.
    F32,
    /// Rounded to half precision.
    F16,
    /// Whole numbers in -127..=127 and a factor for each row of a head, its largest magnitude / 127.
    Int8,
}

impl CacheFormat {
    /// All of them.
    pub const ALL: [CacheFormat; 3] = [CacheFormat::F32, CacheFormat::F16, CacheFormat::Int8];

    /// Bytes of an element.
    fn bytes(self) -> usize {
        match self {
            CacheFormat::F32 => 4,
            CacheFormat::F16 => 2,
            CacheFormat::Int8 => 1,
        }
    }

    /// Words of four bytes that the keys, or the values, of one head take in a page.
    pub fn head_words(self, dim: usize) -> usize {
        let factors = if self == CacheFormat::Int8 { PAGE } else { 0 };
        PAGE * dim * self.bytes() / 4 + factors
    }
}

/// New tokens of a generation step.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Queries `[n, heads * head_dim]`.
    pub q: &'a [f32],
    /// Keys `[n, kv_heads * head_dim]`.
    pub k: &'a [f32],
    /// Values `[n, kv_heads * value_dim]`.
    pub v: &'a [f32],
    /// Row of the table of each token's sequence.
    pub slots: &'a [i32],
    /// Position of each token in its sequence.
    pub positions: &'a [i32],
    /// `[slots, columns]`: the page of the cache that holds the positions from `PAGE * column` on.
    pub table: &'a [i32],
    /// Pages that a sequence may have.
    pub columns: usize,
    /// One score for each head.
    pub sinks: Option<&'a [f32]>,
}

/// A number of a [`Step`] that points outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside {
    /// "cache slot", "cache position" or "cache page".
    pub what: &'static str,
    /// The number.
    pub value: i64,
    /// Where it stands: the token, or the place in the table.
    pub at: usize,
    /// What it must be below.
    pub limit: usize,
}

/// Where a row of a generation step lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    slot: usize,
    position: usize,
}

/// Attention of new tokens to a paged cache, for generation.
///
/// The caches are `[pages, kv_heads, head_words]`. First row `i` of `k` and `v` is written at
/// `positions[i]` of the sequence `slots[i]`, for all rows; then row `i` of `q` attends to positions
/// `0..=positions[i]` of its sequence, as far as window and chunk let it (`causal` is implied). Pages
/// that no row sees are not looked up, so their places in the table may hold anything. Rows of one
/// sequence at consecutive positions, as in a prefill, are fastest when they are adjacent. A row's
/// result does not depend on other rows (as long as keys and values are finite), on threads or on how its
/// sequence was cut into steps.
///
/// # Errors
/// When a slot, a position or a page that is needed lies outside; nothing is written then.
///
/// # Panics
/// When a length is wrong.
#[track_caller]
pub fn cached(
    pool: &Pool,
    spec: &Spec,
    step: &Step<'_>,
    format: CacheFormat,
    k_cache: &mut [u32],
    v_cache: &mut [u32],
    o: &mut [f32],
) -> Result<(), Outside> {
    let spec = &Spec { causal: true, ..*spec };
    spec.check();
    let n = step.positions.len();
    assert!(step.q.len() == n * spec.q_width() && o.len() == n * spec.o_width(), "length of the queries or output");
    assert!(step.k.len() == n * spec.k_width() && step.v.len() == n * spec.v_width(), "length of the keys or values");
    assert!(step.slots.len() == n && step.table.len().is_multiple_of(step.columns.max(1)), "length of the slots or table");
    assert!(step.sinks.is_none_or(|sinks| sinks.len() == spec.heads), "length of the sinks of attention");
    let sizes = [spec.head_dim, spec.value_dim].map(|dim| spec.kv_heads * format.head_words(dim));
    let pages = k_cache.len() / sizes[0];
    assert!(k_cache.len() == pages * sizes[0] && v_cache.len() == pages * sizes[1], "length of the caches of attention");
    let places = places(spec, step, pages)?;
    // A task for each key head: rows that share a place by mistake are written one after the other.
    let (k_parts, v_parts) = (Disjoint::new(k_cache), Disjoint::new(v_cache));
    let write = |kv_head: usize| cache::write(spec, step, &places, format, kv_head, &k_parts, &v_parts);
    if n < FEW_ROWS {
        (0..spec.kv_heads).for_each(write);
    } else {
        pool.run(spec.kv_heads, &write);
    }
    match pool.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 | Isa::Avx512 | Isa::Amx => paged::attend(pool, spec, step, &places, format, [k_cache, v_cache], o),
        _ => scalar::cached(pool, spec, step, &places, format, [k_cache, v_cache], o),
    }
    Ok(())
}

/// Checks the places of all rows and the pages that they need.
fn places(spec: &Spec, step: &Step<'_>, pages: usize) -> Result<Vec<Place>, Outside> {
    let below = |what, value: i32, at, limit| {
        let index = usize::try_from(value).ok().filter(|&index| index < limit);
        index.ok_or(Outside { what, value: i64::from(value), at, limit })
    };
    let slots = step.table.len() / step.columns.max(1);
    let mut places: Vec<Place> = Vec::with_capacity(step.slots.len());
    for (at, (&slot, &position)) in step.slots.iter().zip(step.positions).enumerate() {
        let slot = below("cache slot", slot, at, slots)?;
        let position = below("cache position", position, at, step.columns * PAGE)?;
        let near = spec.visible(position, step.columns * PAGE);
        // The row before has checked all pages but the one that this row may begin.
        let follows = places.last().is_some_and(|last| last.slot == slot && last.position + 1 == position);
        let first = if follows { position } else { near.start };
        for column in (0..spec.pinned.min(near.start).div_ceil(PAGE)).chain(first / PAGE..position / PAGE + 1) {
            let at = slot * step.columns + column;
            below("cache page", step.table[at], at, pages)?;
        }
        places.push(Place { slot, position });
    }
    Ok(places)
}
