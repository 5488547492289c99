//! Attention of new tokens to a paged cache, for the wide levels.
//!
//! All query heads of a key head, and all consecutive new tokens of a sequence, share a pass over the
//! pages. Every [`SPLIT`] pages, by position, are a part: scores of all its keys, then their weights, then
//! the sums of its values. Parts are joined afterwards (Flash-Decoding, Dao et al. 2023), so that long
//! contexts are read by all threads. A row's arithmetic depends on its own position, mask and keys
//! alone: not on threads, on other rows, or on how its sequence was cut into steps.

use super::product::{Kept, Left, NOTHING, Product, STREAMS};
use super::tile::{self, NO_SCORE, PAD, Queries, Units, padded};
use super::{CacheFormat, PAGE, Place, Spec, Step};
use crate::gemm::scratch::with_scratch;
use crate::isa::Isa;
use crate::pool::{Disjoint, Pool};
use crate::simd::{math, simd_fn};
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Lanes of a pass: rows of a sequence, times the query heads of a key head.
const LANES: usize = 96;

/// Pages of an independent part of the sum.
const SPLIT: usize = 4;

/// Distance of the rows of a part's scores: no power of two, which would crowd them into few sets of the
/// first-level cache.
const SCORES: usize = SPLIT * PAGE + PAD;

/// With fewer tasks than this, parts become tasks of their own.
const FEW: usize = 16;

/// Tasks of a thread then, about: neighbouring parts are one, so that what the next one reads is fetched meanwhile.
const SHARES: usize = 8;

/// Up to so many rows, halves and bytes are widened on their way into a product; for more, once for all of
/// them.
const NARROW: usize = 12;

/// With fewer rows than this, what surrounds the sums is not worth other threads.
const FEW_ROWS: usize = 64;

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
    /// Pages of a part, none if there is none.
    fn pages_of(&self, part: usize) -> &[(usize, usize, usize)] {
        self.parts.get(part).map_or(&[], |part| &self.pages[part.clone()])
    }

    fn queries(&self, spec: &Spec, places: &[Place], keys: usize, kv_head: usize) -> Queries<LANES> {
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
        for lane in (0..lanes).step_by(LANES) {
            let lanes = lane..lanes.min(lane + LANES);
            let mut pass = Pass { start, lanes, pages: Vec::new(), parts: Vec::new() };
            let queries = pass.queries(spec, places, step.columns * PAGE, 0);
            pass.pages =
                queries.tiles(PAGE).map(|keys| (keys.start / PAGE, table[keys.start / PAGE] as usize, keys.len())).collect();
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
    let (o, isa, keys) = (Disjoint::new(o), pool.isa(), step.columns * PAGE);
    let cache = Cache { isa, spec, q: step.q, format, k, v };
    let width = padded(spec.value_dim);
    let finish = |queries: &Queries<LANES>, sums: Sums<'_>| {
        for (lane, acc) in sums.acc.chunks_exact_mut(width).enumerate() {
            let (mut sum, mut shrink) = (sums.sum[lane], 1.0);
            if let Some(sinks) = step.sinks {
                let (top, sink) = (sums.top[lane], sinks[queries.row[lane] % spec.heads] * LOG2_E);
                let higher = top.max(sink);
                shrink = (top - higher).exp2();
                sum = sum * shrink + (sink - higher).exp2();
            }
            tile::scale(isa, acc, shrink / sum);
            // SAFETY: each head of each row belongs to one lane of one pass.
            let o = unsafe { o.slice(queries.row[lane] * spec.value_dim, spec.value_dim) };
            o.copy_from_slice(&acc[..spec.value_dim]);
        }
    };
    let tasks = passes.len() * spec.kv_heads;
    let parts = passes.iter().map(|pass| pass.parts.len()).max().unwrap_or(0);
    if tasks >= FEW || parts < 2 {
        pool.run(tasks, &|task| {
            let (pass, kv_head) = (&passes[task / spec.kv_heads], task % spec.kv_heads);
            let (queries, piece) = (pass.queries(spec, places, keys, kv_head), Sums::floats(pass.lanes.len(), width));
            with_scratch(2 * piece, |scratch| {
                let (scratch, other) = scratch.split_at_mut(piece);
                let mut sums = Sums::new(scratch, queries.count, width);
                for number in 0..pass.parts.len() {
                    let (pages, next) = (pass.pages_of(number), pass.pages_of(number + 1));
                    if number == 0 {
                        cache.sum(&queries, kv_head, pages, next, &mut sums);
                    } else {
                        let mut more = Sums::new(other, queries.count, width);
                        cache.sum(&queries, kv_head, pages, next, &mut more);
                        sums.join(isa, &more, width);
                    }
                }
                finish(&queries, sums);
            });
        });
        return;
    }
    // Few rows over long contexts: some parts are a task, and all are joined in order afterwards.
    let piece = passes.iter().map(|pass| Sums::floats(pass.lanes.len(), width)).max().unwrap_or(0);
    with_scratch(tasks * parts * piece, |scratch| {
        let all = Disjoint::new(scratch);
        let together = (tasks * parts / (SHARES * pool.threads())).clamp(1, parts);
        let stretches = parts.div_ceil(together);
        pool.run(tasks * stretches, &|task| {
            let (task, stretch) = (task / stretches, task % stretches);
            let (pass, kv_head) = (&passes[task / spec.kv_heads], task % spec.kv_heads);
            let queries = pass.queries(spec, places, keys, kv_head);
            let end = pass.parts.len().min((stretch + 1) * together);
            for number in stretch * together..end {
                let next = if number + 1 < end { pass.pages_of(number + 1) } else { &[] };
                // SAFETY: each part belongs to one task.
                let sums = unsafe { all.slice((task * parts + number) * piece, piece) };
                cache.sum(&queries, kv_head, pass.pages_of(number), next, &mut Sums::new(sums, queries.count, width));
            }
        });
        let join = |task: usize| {
            let (pass, kv_head) = (&passes[task / spec.kv_heads], task % spec.kv_heads);
            let queries = pass.queries(spec, places, keys, kv_head);
            // SAFETY: the parts of one pass belong to one task now.
            let (first, others) = unsafe { all.slice(task * parts * piece, parts * piece) }.split_at_mut(piece);
            let mut sums = Sums::new(first, queries.count, width);
            for more in others.chunks_exact_mut(piece).take(pass.parts.len() - 1) {
                sums.join(isa, &Sums::new(more, queries.count, width), width);
            }
            finish(&queries, sums);
        };
        if places.len() * spec.heads < FEW_ROWS {
            (0..tasks).for_each(join);
        } else {
            pool.run(tasks, &join);
        }
    });
}

/// Weighted values of some lanes, relative to the maximum of each, and the sum of the weights.
struct Sums<'a> {
    top: &'a mut [f32],
    sum: &'a mut [f32],
    /// Rows of `padded(value_dim)`.
    acc: &'a mut [f32],
}

impl<'a> Sums<'a> {
    /// Floats that they take.
    fn floats(lanes: usize, width: usize) -> usize {
        lanes * width + 2 * padded(lanes)
    }

    /// Sums in `scratch`, whose contents stay.
    fn new(scratch: &'a mut [f32], lanes: usize, width: usize) -> Sums<'a> {
        let (acc, rest) = scratch.split_at_mut(lanes * width);
        let (top, sum) = rest.split_at_mut(padded(lanes));
        Sums { top: &mut top[..lanes], sum: &mut sum[..lanes], acc }
    }

    /// Adds another part.
    fn join(&mut self, isa: Isa, more: &Sums<'_>, width: usize) {
        let rows = self.acc.chunks_exact_mut(width).zip(more.acc.chunks_exact(width));
        for (lane, (acc, other)) in rows.enumerate() {
            let top = self.top[lane].max(more.top[lane]);
            let (a, b) = ((self.top[lane] - top).exp2(), (more.top[lane] - top).exp2());
            self.top[lane] = top;
            self.sum[lane] = self.sum[lane] * a + more.sum[lane] * b;
            blend(isa, acc, a, other, b);
        }
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

/// A cache that is only read, and who reads it.
#[derive(Clone, Copy)]
struct Cache<'a> {
    isa: Isa,
    spec: &'a Spec,
    q: &'a [f32],
    format: CacheFormat,
    k: &'a [u32],
    v: &'a [u32],
}

impl<'a> Cache<'a> {
    /// A key head's page: its number in the sequence, its number in the cache, keys to look at.
    fn page(&self, queries: &Queries<LANES>, kv_head: usize, (number, place, len): (usize, usize, usize)) -> Held<'a> {
        let (k_words, v_words) = (self.format.head_words(self.spec.head_dim), self.format.head_words(self.spec.value_dim));
        let (first, head) = (number * PAGE, place * self.spec.kv_heads + kv_head);
        Held {
            first,
            len,
            whole: queries.see_all(0..queries.count, &(first..first + PAGE)),
            k: Page::new(self.format, &self.k[head * k_words..][..k_words]),
            v: Page::new(self.format, &self.v[head * v_words..][..v_words]),
        }
    }

    /// Sums the values of the `pages` of a part under the weights of the queries; `into` is overwritten. The part of the pages `next` is summed
    /// after this one.
    fn sum(
        &self,
        queries: &Queries<LANES>,
        kv_head: usize,
        pages: &[(usize, usize, usize)],
        next: &[(usize, usize, usize)],
        into: &mut Sums<'_>,
    ) {
        let Cache { isa, spec, .. } = *self;
        let (dim, value_dim, count) = (spec.head_dim, spec.value_dim, queries.count);
        let width = padded(value_dim);
        assert!(into.acc.len() == count * width && (1..=SPLIT).contains(&pages.len()));
        let held: [Held<'_>; SPLIT] = std::array::from_fn(|i| self.page(queries, kv_head, pages[i.min(pages.len() - 1)]));
        let held = &held[..pages.len()];
        // Values are fetched while keys are multiplied, and the keys of the next part while values are. Both at once would not fit into the
        // places that pages a power of two from each other share in the second-level cache.
        let next: [_; STREAMS] = std::array::from_fn(|i| next.get(i).map(|&page| self.page(queries, kv_head, page).k));
        let values: [_; STREAMS] = std::array::from_fn(|i| held.get(i).map(|page| page.v));

        // Few rows read a cache where it is; values must be whole vectors then.
        let here = count <= NARROW;
        with_scratch(count * (dim + SCORES) + PAGE * (dim + value_dim + tile::pitch(width)), |scratch| {
            let (q, rest) = scratch.split_at_mut(count * dim);
            let (scores, rest) = rest.split_at_mut(count * SCORES);
            let (k_page, rest) = rest.split_at_mut(PAGE * dim);
            let (v_page, packed) = rest.split_at_mut(PAGE * value_dim);
            for (q, &row) in q.chunks_exact_mut(dim).zip(&queries.row[..count]) {
                q.copy_from_slice(&self.q[row * dim..][..dim]);
            }
            for (number, page @ Held { k, .. }) in held.iter().enumerate() {
                let products = Product {
                    m: count,
                    n: page.columns(),
                    k: dim,
                    a: q.as_ptr(),
                    left: Left::Rows(dim),
                    b: k_page.as_ptr(),
                    ldb: PAGE,
                    ahead: NOTHING,
                    c: scores[number * PAGE..].as_mut_ptr(),
                    ldc: SCORES,
                    adds: false,
                    terms: &[],
                };
                // SAFETY: `count` rows of queries, `dim` rows of a page of keys, `count` rows of scores.
                unsafe {
                    if here || k.is_wide() {
                        k.multiply(isa, products, &values, number);
                    } else {
                        k.widen(isa, &mut k_page[..]);
                        products.run(isa);
                    }
                }
            }
            weigh(isa, spec, queries, held, scores, into);
            for (number, Held { first, len, whole, v, .. }) in held.iter().enumerate() {
                let mut spans = [const { 0..0 }; LANES];
                if !whole {
                    let seen = *first..first + len;
                    spans.iter_mut().enumerate().take(count).for_each(|(lane, span)| *span = queries.span(lane, &seen));
                }
                let values = Product {
                    m: count,
                    n: width,
                    k: *len,
                    a: scores[number * PAGE..].as_ptr(),
                    left: Left::Rows(SCORES),
                    b: v_page.as_ptr(),
                    ldb: value_dim,
                    ahead: NOTHING,
                    c: into.acc.as_mut_ptr(),
                    ldc: width,
                    adds: number > 0,
                    terms: if *whole { &[] } else { &spans[..count] },
                };
                // SAFETY: `count` rows of scores, `len` rows of values, and `acc` has rows for all queries.
                unsafe {
                    if here && value_dim == width {
                        v.multiply(isa, values, &next, number);
                    } else {
                        let rows = if let Some(rows) = v.floats() {
                            rows
                        } else {
                            v.widen(isa, &mut v_page[..len * value_dim]);
                            &v_page[..]
                        };
                        let (b, ldb) = tile::right(isa, rows, *len, value_dim, value_dim, packed);
                        Product { b, ldb, ..values }.run(isa);
                    }
                }
            }
        });
    }
}

/// A page that a pass looks at.
struct Held<'a> {
    /// Position of its first key.
    first: usize,
    /// Keys to look at.
    len: usize,
    /// Whether all queries see all of it.
    whole: bool,
    k: Page<'a>,
    v: Page<'a>,
}

impl Held<'_> {
    /// Columns of scores that are computed: of the keys to look at, in whole vectors of any level.
    fn columns(&self) -> usize {
        self.len.next_multiple_of(16).min(PAGE)
    }
}

/// The keys or values of a head in a page.
#[derive(Clone, Copy)]
struct Page<'a> {
    format: CacheFormat,
    words: &'a [u32],
    /// The factors of its rows.
    scales: Option<&'a [f32]>,
}

impl<'a> Page<'a> {
    fn new(format: CacheFormat, words: &'a [u32]) -> Page<'a> {
        let scales = (format == CacheFormat::Int8).then(|| as_floats(&words[words.len() - PAGE..]));
        Page { format, words, scales }
    }

    /// Whether it holds floats.
    fn is_wide(&self) -> bool {
        self.format == CacheFormat::F32
    }

    /// Its floats, if it holds any.
    fn floats(&self) -> Option<&'a [f32]> {
        self.is_wide().then(|| as_floats(self.words))
    }

    /// Its first elements as floats, without their factors.
    fn widen(&self, isa: Isa, to: &mut [f32]) {
        match self.format {
            CacheFormat::F32 => to.copy_from_slice(&as_floats(self.words)[..to.len()]),
            CacheFormat::F16 => widen_f16(isa, self.words, to),
            CacheFormat::Int8 => widen_i8(isa, self.words, to),
        }
    }

    /// The product with this as its right operand, instead of the one it names, while this quarter of each of some other pages is fetched.
    ///
    /// # Safety
    /// As [`Product::run`].
    unsafe fn multiply(&self, isa: Isa, p: Product<'_>, next: &[Option<Page<'_>>; STREAMS], quarter: usize) {
        let words = self.words.as_ptr();
        const { assert!(SPLIT == STREAMS) };
        let next = next.map(|page| {
            let words = page.map_or(self.words, |page| page.words);
            words.as_ptr().wrapping_add(quarter * words.len() / STREAMS)
        });
        // SAFETY: promised by the caller; words hold whole elements.
        unsafe {
            match self.format {
                CacheFormat::F32 if p.m > NARROW => Product { b: words.cast(), ..p }.run(isa),
                CacheFormat::F32 => p.by(words.cast::<Kept>(), next.map(|next| next.cast())).run(isa),
                CacheFormat::F16 => p.by(words.cast::<u16>(), next.map(|next| next.cast())).run(isa),
                CacheFormat::Int8 => p.by(words.cast::<i8>(), next.map(|next| next.cast())).run(isa),
            }
        }
    }
}

fn as_floats(words: &[u32]) -> &[f32] {
    // SAFETY: every bit pattern is a float, of a word's size and alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<f32>(), words.len()) }
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

simd_fn! {
    /// Turns the products of a part, a row for each query, into weights relative to the maximum of the row, and
    /// multiplies them by the factors of the values. Maxima and sums are overwritten.
    fn weigh<S>(
        s,
        spec: &Spec,
        queries: &Queries<LANES>,
        held: &[Held<'_>],
        scores: &mut [f32],
        sums: &mut Sums<'_>,
    ) {
        assert!(scores.len() >= queries.count * SCORES && held.len() <= SPLIT);
        assert!(held.iter().flat_map(|page| [page.k.scales, page.v.scales]).flatten().all(|scales| scales.len() >= PAGE));
        let units = Units::new(spec, false);
        let (hidden, factor) = (s.splat(f32::NEG_INFINITY), s.splat(units.factor));
        for lane in 0..queries.count {
            let row = scores[lane * SCORES..][..SCORES].as_mut_ptr();
            let mut whole = [true; SPLIT];
            let mut highest = hidden;
            for (number, page) in held.iter().enumerate() {
                let sees_all = page.whole || queries.see_all(lane..lane + 1, &(page.first..page.first + PAGE));
                whole[number] = sees_all;
                for at in (0..page.columns()).step_by(S::LANES) {
                    // SAFETY: whole vectors of a row of the part, and of the factors of a page.
                    unsafe {
                        let place = row.add(number * PAGE + at);
                        let mut score = s.load(place);
                        if let Some(scales) = page.k.scales {
                            score = s.mul(score, s.load(scales.as_ptr().add(at)));
                        }
                        if units.bent {
                            score = s.mul(score, s.splat(spec.scale));
                            if let Some(cap) = spec.softcap {
                                score = s.mul(s.splat(cap), math::tanh(s, s.mul(score, s.splat(1.0 / cap))));
                            }
                            score = s.mul(score, s.splat(LOG2_E));
                        }
                        if !sees_all {
                            score = queries.mask_keys(s, lane, page.first + at, score, hidden);
                        }
                        s.store(place, score);
                        highest = s.max(score, highest);
                    }
                }
            }
            let top = s.top(s.mul(highest, factor)).max(NO_SCORE);
            let less = s.splat(-top);
            let mut sum = s.zero();
            for ((number, page), sees_all) in held.iter().enumerate().zip(whole) {
                for at in (0..page.columns()).step_by(S::LANES) {
                    // SAFETY: as above.
                    unsafe {
                        let place = row.add(number * PAGE + at);
                        let mut weight = math::exp2(s, s.fma(s.load(place), factor, less));
                        sum = s.add(sum, weight);
                        if let Some(scales) = page.v.scales {
                            weight = s.mul(weight, s.load(scales.as_ptr().add(at)));
                            if !sees_all {
                                // Places that nobody wrote have factors that are not numbers.
                                weight = queries.mask_keys(s, lane, page.first + at, weight, s.zero());
                            }
                        }
                        s.store(place, weight);
                    }
                }
            }
            sums.top[lane] = top;
            sums.sum[lane] = s.sum(sum);
        }
    }
}
