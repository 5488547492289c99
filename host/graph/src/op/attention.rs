//! Scaled dot-product attention over packed sequences.

use crate::autodiff::Backward;
use crate::interp::{Eval, Tensor};
use std::ops::Range;

use super::{OpRule, ReduceOp, arity, count, floats};
use crate::{DType, Dim, Error, Float, Graph, Result, StateId, SymbolId, Type};

/// What all attention ops share. Masks are structural, so that no `[n, n]` tensor exists unless there is a bias.
///
/// Scores are `scale·q·k`, then capped, then biased. A token sees its own run of equal segment numbers; of that, what `causal`,
/// `window` and `chunk` all let through, and the first `pinned` tokens in spite of the last two.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionSpec {
    /// Factor of the scores.
    pub scale: Float,
    /// `cap·tanh(score/cap)` where set.
    pub softcap: Option<Float>,
    /// Later tokens are masked.
    pub causal: bool,
    /// Only tokens nearer than `window` are seen: the last `window` of them where causal, the own one included.
    pub window: Option<u32>,
    /// Only tokens in the same block of `chunk` are seen, counted from the start of the run.
    pub chunk: Option<u32>,
    /// First tokens of a run that neither window nor chunk hides (attention sinks, Xiao et al. 2023).
    pub pinned: u32,
    /// A further input `sinks [heads]`: for each head the score of one more key, whose value is zero (gpt-oss, OpenAI 2025).
    pub sinks: bool,
    /// A further input `bias [heads, n, n]`, added to the score of (query's head, query's token, key's token). Slow.
    pub bias: bool,
}

impl AttentionSpec {
    /// The attention of decoders: causal and nothing else.
    pub fn causal(scale: f64) -> AttentionSpec {
        AttentionSpec {
            scale: Float(scale),
            softcap: None,
            causal: true,
            window: None,
            chunk: None,
            pinned: 0,
            sinks: false,
            bias: false,
        }
    }

    /// Inputs beside those that every attention has.
    fn more(&self) -> usize {
        usize::from(self.sinks) + usize::from(self.bias)
    }
}

/// Inputs `q [n, heads, d]`, `k [n, kv, d]`, `v [n, kv, e]`, `segments [n]` (runs of equal values; tokens see only their own run),
/// then sinks and bias where the spec has them. `heads` is a multiple of `kv`. Output 0 is `[n, heads, e]`, output 1 the
/// log-sum-exp of each row `[heads, n]`, sinks included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attention {
    /// Scale, cap and mask.
    pub spec: AttentionSpec,
}

/// Checks queries, keys, values, the spec, and sinks and bias, which are the inputs from `more` on.
fn check(op: &'static str, spec: &AttentionSpec, inputs: &[Type], more: usize) -> Result<()> {
    arity(op, inputs, more + spec.more())?;
    floats(op, &inputs[..3])?;
    floats(op, &inputs[more..])?;
    let (q, k, v) = (&inputs[0].shape, &inputs[1].shape, &inputs[2].shape);
    if q.rank() != 3 || k.rank() != 3 || v.rank() != 3 || k[..2] != v[..2] || q[0] != k[0] || q[2] != k[2] {
        return Err(Error::shape(op, "takes q [n, heads, d], k [n, kv, d] and v [n, kv, e]", inputs));
    }
    let sizes = [&q[1], &k[1], &q[2], &v[2]].map(|d| d.as_fixed().unwrap_or(0));
    if sizes.contains(&0) || !sizes[0].is_multiple_of(sizes[1]) {
        return Err(Error::shape(op, "head counts and head sizes must be fixed, heads a multiple of kv", inputs));
    }
    if spec.sinks && inputs[more].shape.dims() != &q[1..2] {
        return Err(Error::shape(op, "takes one sink a head", inputs));
    }
    if spec.bias && inputs[more + usize::from(spec.sinks)].shape.dims() != [q[1].clone(), q[0].clone(), q[0].clone()] {
        return Err(Error::shape(op, "takes a bias [heads, n, n]", inputs));
    }
    let positive = spec.softcap.is_none_or(|c| c.0 > 0.0);
    if spec.window == Some(0) || spec.chunk == Some(0) || !spec.scale.0.is_finite() || !positive {
        return Err(Error::attr(op, "window and chunk must be at least 1, scale finite and softcap positive"));
    }
    Ok(())
}

/// The type of the output of queries and values.
fn output(inputs: &[Type]) -> Type {
    let (q, v) = (&inputs[0].shape, &inputs[2].shape);
    Type::new(inputs[0].dtype, vec![q[0].clone(), q[1].clone(), v[2].clone()])
}

impl OpRule for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        check(self.name(), &self.spec, inputs, 4)?;
        let q = &inputs[0];
        if !inputs[3].dtype.is_int() || inputs[3].shape.dims() != &q.shape[..1] {
            return Err(Error::shape(self.name(), "takes whole-number segments [n]", inputs));
        }
        Ok(vec![output(inputs), Type::f32(vec![q.shape[1].clone(), q.shape[0].clone()])])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let v = cx.input(2);
        let heads = Heads::of(cx);
        let run = runs(&cx.whole(3));
        let (mut o, mut lse) = (vec![0.0; heads.n * heads.q * heads.e], vec![0.0; heads.n * heads.q]);
        for h in 0..heads.q {
            for i in 0..heads.n {
                let seen: Vec<usize> = self.spec.visible(&run[i], i).collect();
                let biased = |j| self.spec.score(cx, &heads, h, i, j) + self.spec.bias(cx, &heads, 4, h, i, j);
                let scores: Vec<f64> = seen.iter().map(|&j| biased(j)).chain(self.spec.sink(cx, 4, h)).collect();
                let sum = ReduceOp::LogSumExp.eval(&scores);
                lse[h * heads.n + i] = sum;
                let o = &mut o[heads.o_at(h, i)..][..heads.e];
                for (j, s) in seen.into_iter().zip(scores) {
                    let v = &v.data[heads.v_at(h, j)..];
                    o.iter_mut().zip(v).for_each(|(o, v)| *o += (s - sum).exp() * v);
                }
            }
        }
        Ok(vec![Tensor::new(cx.shape(0)?, o), Tensor::new(cx.shape(1)?, lse)])
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        let (d, lse, o) = (cx.d_out()?, cx.output(1)?, cx.node());
        let mut inputs = vec![cx.input(0), cx.input(1), cx.input(2), cx.input(3), o, lse, d];
        inputs.extend((4..4 + self.spec.more()).map(|i| cx.input(i)));
        let node = cx.g.push(AttentionBackward { spec: self.spec.clone() }, &inputs)?;
        for (part, i) in [0, 1, 2].into_iter().chain(4..4 + self.spec.more()).enumerate() {
            if cx.needs(i) {
                let part = cx.g.part(node, part as u8)?;
                cx.add(i, part)?;
            }
        }
        Ok(())
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        self.spec.flops([1, 1], inputs)
    }
}

/// Inputs `q`, `k`, `v`, `segments`, `o`, `lse`, `d_o`, then sinks and bias; outputs `d_q`, `d_k`, `d_v`, then those of sinks and
/// bias.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttentionBackward {
    /// As in the forward op.
    pub spec: AttentionSpec,
}

impl OpRule for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention-backward"
    }
    fn infer(&self, _: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        check(self.name(), &self.spec, inputs, 7)?;
        let o = output(inputs);
        if inputs[4] != o || inputs[6] != o {
            return Err(Error::shape(self.name(), "o and d_o must have the forward output's type", inputs));
        }
        let q = &inputs[0].shape;
        if inputs[3].shape.dims() != &q[..1] || inputs[5].shape.dims() != [q[1].clone(), q[0].clone()] {
            return Err(Error::shape(self.name(), "takes segments [n] and a log-sum-exp [heads, n]", inputs));
        }
        Ok(inputs[..3].iter().chain(&inputs[7..]).cloned().collect())
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let [q, k, v, _, o, lse, d_o] = [0, 1, 2, 3, 4, 5, 6].map(|i| &cx.input(i).data);
        let heads = Heads::of(cx);
        let run = runs(&cx.whole(3));
        let (mut d_q, mut d_k, mut d_v) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
        let (mut d_sinks, mut d_bias) = (vec![0.0; heads.q], vec![0.0; heads.q * heads.n * heads.n]);
        for h in 0..heads.q {
            for i in 0..heads.n {
                let (at, from) = (heads.q_at(h, i), heads.o_at(h, i));
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).take(heads.e).map(|(a, b)| a * b).sum::<f64>();
                let delta = dot(&o[from..], &d_o[from..]);
                let lse = lse[h * heads.n + i];
                d_sinks[h] -= self.spec.sink(cx, 7, h).map_or(0.0, |sink| (sink - lse).exp() * delta);
                for j in self.spec.visible(&run[i], i) {
                    let (to, value) = (heads.k_at(h, j), heads.v_at(h, j));
                    let score = self.spec.score(cx, &heads, h, i, j);
                    let p = (score + self.spec.bias(cx, &heads, 7, h, i, j) - lse).exp();
                    let d_s = p * (dot(&d_o[from..], &v[value..]) - delta);
                    d_bias[heads.bias_at(h, i, j)] = d_s;
                    let bend = self.spec.softcap.map_or(1.0, |c| 1.0 - (score / c.0).powi(2));
                    let d_s = d_s * bend * self.spec.scale.0;
                    for c in 0..heads.d {
                        d_q[at + c] += d_s * k[to + c];
                        d_k[to + c] += d_s * q[at + c];
                    }
                    for c in 0..heads.e {
                        d_v[value + c] += p * d_o[from + c];
                    }
                }
            }
        }
        let mut all = vec![d_q, d_k, d_v];
        all.extend(self.spec.sinks.then_some(d_sinks));
        all.extend(self.spec.bias.then_some(d_bias));
        all.into_iter().enumerate().map(|(i, d)| Ok(Tensor::new(cx.shape(i)?, d))).collect()
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        self.spec.flops([3, 2], inputs)
    }
}

/// Attention over a paged cache of keys and values, for generation. Inputs `q [n, heads, d]`, `k [n, kv, d]`, `v [n, kv, e]`,
/// `slots [n]`, `positions [n]`, `pages [slots, capacity]`, then sinks where the spec has them; output `[n, heads, e]`.
///
/// Row `i` is the token at `positions[i]` of the sequence `slots[i]`. `pages[s, c]` is the page of the cache that holds the positions
/// `PAGE·c..PAGE·(c + 1)` of sequence `s`: whoever runs the graph gives pages to sequences, and sequences with a common beginning may
/// share the full pages of it. First all rows of `k` and `v` are written to their places, then each row of `q` attends to positions
/// `0..=positions[i]` of its sequence. Entries of `pages` that no row needs, such as those before a window, may hold anything.
///
/// The caches are states `[pages, PAGE, kv, d]` and `[pages, PAGE, kv, e]` of type f32, f16 or s8 (a factor for each row of a head,
/// which is the device's business). Their type is what they are stored as: the device computes in f32, and the reference evaluation
/// rounds nothing. The op reads and writes them in place, so it counts as an effect. No other op can use them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CachedAttention {
    /// Scale, cap and mask; always causal, and without bias.
    pub spec: AttentionSpec,
    /// Keys.
    pub k_cache: StateId,
    /// Values.
    pub v_cache: StateId,
}

impl CachedAttention {
    /// Positions of a page.
    pub const PAGE: u64 = 64;

    /// The shape of a cache of `heads` heads of `size`.
    pub fn cache_shape(heads: Dim, size: Dim) -> Vec<Dim> {
        vec![Dim::symbol(SymbolId::PAGES), Dim::fixed(CachedAttention::PAGE), heads, size]
    }

    /// The type of the input `pages`.
    pub fn table() -> Type {
        Type::new(DType::S32, vec![Dim::symbol(SymbolId::SLOTS), Dim::symbol(SymbolId::CAPACITY)])
    }
}

impl OpRule for CachedAttention {
    fn name(&self) -> &'static str {
        "cached-attention"
    }
    fn infer(&self, g: &Graph, inputs: &[Type]) -> Result<Vec<Type>> {
        check(self.name(), &self.spec, inputs, 6)?;
        if !self.spec.causal || self.spec.bias {
            return Err(Error::attr(self.name(), "attention over a cache is causal and has no bias"));
        }
        for (state, input) in [(self.k_cache, 1), (self.v_cache, 2)] {
            let cache = g.states().get(state.index()).ok_or_else(|| Error::attr(self.name(), "names another graph's cache"))?;
            if !matches!(cache.ty.dtype, DType::F32 | DType::F16 | DType::S8) {
                return Err(Error::dtype(self.name(), "keeps caches as f32, f16 or s8", std::slice::from_ref(&cache.ty)));
            }
            let cache = &cache.ty.shape;
            if cache.rank() != 4 || cache[1] != Dim::fixed(Self::PAGE) || cache[2..] != inputs[input].shape[1..] {
                return Err(Error::shape(self.name(), format!("the cache {cache} does not hold these keys and values"), inputs));
            }
        }
        if inputs[3..6].iter().any(|t| !t.dtype.is_int()) || inputs[3..5].iter().any(|t| t.shape.dims() != &inputs[0].shape[..1])
        {
            return Err(Error::shape(self.name(), "takes whole-number slots [n], positions [n] and pages", inputs));
        }
        if inputs[5].shape.rank() != 2 {
            return Err(Error::shape(self.name(), "takes pages [slots, capacity]", inputs));
        }
        Ok(vec![output(inputs)])
    }
    fn eval(&self, cx: &Eval<'_>) -> Result<Vec<Tensor>> {
        let heads = Heads::of(cx);
        let (q, slots, positions, table) = (cx.input(0), cx.whole(3), cx.whole(4), cx.whole(5));
        let (sequences, columns, page) = (cx.input(5).shape[0], cx.input(5).shape[1], Self::PAGE as usize);
        // The row of a cache that holds a position.
        let place = |slot: usize, position: usize, pages: usize| -> Result<usize> {
            let at = cx.index(table[slot * columns + position / page], pages, "page")?;
            Ok(at * page + position % page)
        };
        for (input, cache, size) in [(1, self.k_cache, heads.d), (2, self.v_cache, heads.e)] {
            cx.with_cache(cache, |cache| {
                let width = heads.kv * size;
                for (i, (&slot, &position)) in slots.iter().zip(&positions).enumerate() {
                    let slot = cx.index(slot, sequences, "slot")?;
                    let position = cx.index(position, columns * page, "position")?;
                    let to = place(slot, position, cache.shape[0])? * width;
                    cache.data[to..][..width].copy_from_slice(&cx.input(input).data[i * width..][..width]);
                }
                Ok(())
            })?;
        }
        let k = cx.with_cache(self.k_cache, |k| Ok(k.clone()))?;
        let v = cx.with_cache(self.v_cache, |v| Ok(v.clone()))?;
        let mut o = vec![0.0; heads.n * heads.q * heads.e];
        for i in 0..heads.n {
            let (slot, last) = (slots[i] as usize, positions[i] as usize);
            let seen = self.spec.visible(&(0..last + 1), last).map(|j| place(slot, j, k.shape[0]));
            let seen = seen.collect::<Result<Vec<usize>>>()?;
            for h in 0..heads.q {
                let row = &q.data[heads.q_at(h, i)..][..heads.d];
                let scores = seen.iter().map(|&j| self.spec.of_rows(row, &k.data[heads.k_at(h, j)..]));
                let scores: Vec<f64> = scores.chain(self.spec.sink(cx, 6, h)).collect();
                let sum = ReduceOp::LogSumExp.eval(&scores);
                let o = &mut o[heads.o_at(h, i)..][..heads.e];
                for (&j, s) in seen.iter().zip(scores) {
                    o.iter_mut().zip(&v.data[heads.v_at(h, j)..]).for_each(|(o, v)| *o += (s - sum).exp() * v);
                }
            }
        }
        cx.one(o)
    }
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()> {
        cx.refuse()
    }

    fn flops(&self, inputs: &[Type], _: &[Type]) -> Result<Dim> {
        // Every row over a full cache.
        let (q, v) = (&inputs[0].shape, &inputs[2].shape);
        count(2 * Self::PAGE, [&q[0], &q[1], &q[2].add(&v[2])?, &inputs[5].shape[1]])
    }
}

impl AttentionSpec {
    /// Score of a query row and a key row.
    fn of_rows(&self, q: &[f64], k: &[f64]) -> f64 {
        let score = self.scale.0 * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
        self.softcap.map_or(score, |c| c.0 * (score / c.0).tanh())
    }

    /// Score of query `i` and key `j` of inputs 0 and 1 under head `h`.
    fn score(&self, cx: &Eval<'_>, heads: &Heads, h: usize, i: usize, j: usize) -> f64 {
        self.of_rows(&cx.input(0).data[heads.q_at(h, i)..][..heads.d], &cx.input(1).data[heads.k_at(h, j)..])
    }

    /// Score of a head's sink, which inputs have from `more` on.
    fn sink(&self, cx: &Eval<'_>, more: usize, h: usize) -> Option<f64> {
        self.sinks.then(|| cx.input(more).data[h])
    }

    /// What is added to a score.
    fn bias(&self, cx: &Eval<'_>, heads: &Heads, more: usize, h: usize, i: usize, j: usize) -> f64 {
        if self.bias { cx.input(more + usize::from(self.sinks)).data[heads.bias_at(h, i, j)] } else { 0.0 }
    }

    /// Keys that token `i` of a run sees.
    fn visible(&self, run: &Range<usize>, i: usize) -> impl Iterator<Item = usize> + use<> {
        let at = i - run.start;
        let reach = self.window.map_or(usize::MAX, |w| w as usize);
        let block = self.chunk.map_or(0..usize::MAX, |c| {
            let start = at / c as usize * c as usize;
            start..start.saturating_add(c as usize)
        });
        let first = (at + 1).saturating_sub(reach).max(block.start);
        let end = if self.causal { at + 1 } else { run.len().min(at.saturating_add(reach)).min(block.end) };
        let start = run.start;
        (0..first.min(self.pinned as usize)).chain(first..end).map(move |j| start + j)
    }

    /// Products over the size of a query and over that of a value, as if all tokens were one sequence; a causal mask halves them.
    fn flops(&self, products: [u64; 2], inputs: &[Type]) -> Result<Dim> {
        let each = if self.causal { 1 } else { 2 };
        let (q, v) = (&inputs[0].shape, &inputs[2].shape);
        let sizes = count(products[0], [&q[2]])?.add(&count(products[1], [&v[2]])?)?;
        count(each, [&q[0], &q[0], &q[1], &sizes])
    }
}

/// Sizes and offsets of queries, keys and values.
struct Heads {
    n: usize,
    q: usize,
    kv: usize,
    d: usize,
    e: usize,
}

impl Heads {
    fn of(cx: &Eval<'_>) -> Heads {
        let (q, v) = (&cx.input(0).shape, &cx.input(2).shape);
        Heads { n: q[0], q: q[1], kv: v[1], d: q[2], e: v[2] }
    }

    fn q_at(&self, h: usize, i: usize) -> usize {
        (i * self.q + h) * self.d
    }

    fn o_at(&self, h: usize, i: usize) -> usize {
        (i * self.q + h) * self.e
    }

    /// Query heads share key heads in groups of neighbours.
    fn k_at(&self, h: usize, j: usize) -> usize {
        (j * self.kv + h / (self.q / self.kv)) * self.d
    }

    fn v_at(&self, h: usize, j: usize) -> usize {
        (j * self.kv + h / (self.q / self.kv)) * self.e
    }

    fn bias_at(&self, h: usize, i: usize, j: usize) -> usize {
        (h * self.n + i) * self.n + j
    }
}

/// The run of equal segment numbers that each token is in.
fn runs(segments: &[i64]) -> Vec<Range<usize>> {
    let mut start = 0;
    let mut out = Vec::with_capacity(segments.len());
    for run in segments.chunk_by(|a, b| a == b) {
        out.resize(start + run.len(), start..start + run.len());
        start += run.len();
    }
    out
}
